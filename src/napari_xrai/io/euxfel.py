"""Runs of the European XFEL: folders of files, one per module, read through EXtra-data (extra ``euxfel``)."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import h5py

from .cxi import CxiSource
from .folder import in_order
from .source import UNKNOWN_BEAM, Beam, InputError

VIEW = "view.cxi"


def is_euxfel_run(folder: Path) -> bool:
    """Whether a folder's first HDF5 file is one of the European XFEL's."""
    first = next((path for path in in_order(folder.glob("*.h5")) if path.is_file()), None)
    if first is None or not h5py.is_hdf5(first):
        return False
    try:
        with h5py.File(first, "r", locking=False) as file:
            return all(name in file for name in ("INDEX/trainId", "METADATA", "INSTRUMENT"))
    except (OSError, RuntimeError):
        return False


class EuxfelRun(CxiSource):
    """Photons of the one detector of several modules in a run folder, frames put together by train and pulse.

    EXtra-data makes a view of the run, in a temporary folder: the run's own is never written to. The view has neither
    geometry nor photon energy.

    Raises
    ------
    InputError
        If EXtra-data is not installed, or the run has no such detector, or several.
    """

    def __init__(self, folder: Path, beam: Beam = UNKNOWN_BEAM) -> None:
        self._folder = TemporaryDirectory(prefix="napari-xrai-")  # goes when this goes
        self._view = Path(self._folder.name) / VIEW
        detector = _make_view(folder, self._view)
        super().__init__(self._view, beam)
        self.format, self.paths = f"European XFEL run, {detector}", (folder,)

    def _stored(self) -> Path:
        return self._view


def _make_view(folder: Path, view: Path) -> str:
    """Write the view; the detector's name."""
    try:
        from extra_data import DataCollection
        from extra_data.components import identify_multimod_detectors
    except ImportError as error:
        raise InputError(
            f'{folder} is a run of the European XFEL: pip install "napari-xrai[euxfel]", or make a view of it with '
            "extra-data-make-virtual-cxi"
        ) from error
    files = [str(path) for path in in_order(folder.glob("*.h5"))]
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # it says more than is asked
            # not RunDirectory: that leaves a map of the run beside the data
            run: Any = DataCollection.from_paths(files, is_single_run=True, parallelize=False)
            opened = {file.filename for file in run.files}
            found = sorted(identify_multimod_detectors(run), key=lambda pair: str(pair[0]))
            if len(found) == 1:
                found[0][1](run, found[0][0]).write_virtual_cxi(str(view))
            for file in run.files:
                file.close()
    except Exception as error:  # whatever it meets in damaged files
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{folder} cannot be read by EXtra-data ({said}): copy it again, or give a view of it"
        ) from error
    skipped = [name for name in files if name not in opened]
    if skipped:
        raise InputError(f"{skipped[0]} cannot be read: copy it again in full, or take it out of the folder")
    if len(found) != 1:
        names = ", ".join(str(pair[0]) for pair in found) or "none"
        raise InputError(
            f"{folder} has not one detector of several modules but {names}: make a view of the one that is meant, with "
            "extra-data-make-virtual-cxi"
        )
    return str(found[0][0])
