"""CXI files (cxidb.org): frames of versions 1.x, as the standard, Cheetah, the SPI groups and EXtra-data write them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from ..core.detector import detector_from_positions
from ..core.frames import BAD, Detector, Frames
from .batched import MOST_DENSE_PIXELS, BatchedSource, Rows, check_header, dense_frames, find_ids, open_hdf5
from .chunks import photon_rows
from .compression import require_readable
from .cxi_geometry import CxiExperiment
from .cxi_mask import DETECTOR, read_mask
from .glance import Glance
from .source import UNKNOWN_BEAM, Beam, InputError
from .views import check_view

RAW_AXES = 5


class CxiSource(BatchedSource):
    """Frames of a CXI file: 3D (frame, y, x) or modular 4D (frame, module, y, x).

    Parameters
    ----------
    path : Path
    beam : Beam
        What the file does not say, or says wrongly: this wins.

    Raises
    ------
    InputError
        If there is no data, or it is not frames.
    """

    def __init__(self, path: Path, beam: Beam = UNKNOWN_BEAM) -> None:
        with open_hdf5(path) as file:
            data = _require_frames(path, file)
            n_frames, shape = written(data), tuple(int(n) for n in data.shape[1:])
            check_header(path, n_frames, int(np.prod(shape)), MOST_DENSE_PIXELS)
            version = _version(file)
            super().__init__(f"CXI {version // 100}.{version // 10 % 10}", (path,), n_frames, shape)
            absent = check_view(path, data)
            require_readable(path, data)
            self._dataset, self.ids = data.name, find_ids(file, n_frames)
            self._masks = read_mask(file, data, n_frames, version, absent)
            experiment = CxiExperiment(file, n_frames, shape, beam)
            panels, background = experiment.panels(), experiment.background()
            positions = experiment.positions_m()
        self.mask, self.beam = self._masks.common, experiment.beam
        self.notes = (*experiment.notes, *self._masks.notes)
        self.missing = () if panels is not None else ("geometry",)
        if panels is not None:
            centre = panels.centres_m() if positions is None else positions
            found = detector_from_positions(
                centre, panels.areas_m2(), shape,
                energy_eV=self.beam.energy_eV, polarization=self.beam.polarization or "none", mask=self.mask,
            )  # fmt: skip
            self.detector = Detector(
                found.q, found.response, found.mask, shape, found.ewald_radius, found.units, background
            )
            self.missing += ("polarisation",) if self.beam.polarization is None else ()
        self.missing += ("wavelength",) if self.beam.energy_eV is None else ()

    @contextmanager
    def _rows(self) -> Iterator[Rows]:
        masks, what = self._masks, f"{self.paths[0]}: {self._dataset}"
        with open_hdf5(self._stored()) as file:
            data = file[self._dataset]

            def each_under_its_mask(lo: int, hi: int) -> Frames:
                block = masks.blank(data[lo:hi].reshape(hi - lo, -1), file, lo)
                return dense_frames(block, lo, what, masks.common == BAD)

            if masks.varies:
                yield each_under_its_mask
            else:
                with photon_rows(data, what, masks.common == BAD) as rows:
                    yield rows


def is_cxi(look: Glance) -> bool:
    """Whether this is HDF5 laid out as a CXI file."""
    return look.hdf5 is not None and ("entry_1" in look.hdf5 or find_data(look.hdf5) is not None)


def find_data(file: h5py.File) -> h5py.Dataset | None:
    """The frames' dataset, wherever the file's links lead; None if there is none."""
    for name in ("entry_1/data_1/data", f"{DETECTOR}/data", "entry_1/data_1", "entry_1/image_1/data"):
        node = file.get(name)  # None, too, where a soft link leads nowhere
        if isinstance(node, h5py.Dataset):
            return node
    return None


def _require_frames(path: Path, file: h5py.File) -> h5py.Dataset:
    data = find_data(file)
    if data is None:
        raise InputError(f"{path} has no dataset entry_1/data_1/data: it is no CXI file of frames")
    if data.ndim == RAW_AXES:
        raise InputError(
            f"{path}: {data.name} has shape {data.shape}, detector units and gain side by side: give calibrated photons"
        )
    if data.ndim not in (3, 4):
        raise InputError(f"{path}: {data.name} has shape {data.shape}; expected frames of 2 or 3 axes")
    if data.dtype.kind not in "uif":
        raise InputError(f"{path}: {data.name} holds {data.dtype}, not photon counts")
    shifted = file.get("entry_1/image_1/is_fft_shifted")
    if "image_1" in data.name and isinstance(shifted, h5py.Dataset) and np.any(shifted[()]):
        raise InputError(f"{path}: {data.name} is FFT-shifted: give the frames as the detector has them")
    return data


def written(data: h5py.Dataset) -> int:
    """Frames that were written: Cheetah makes room ahead, and says in an attribute how far it came."""
    said = data.attrs.get("numEvents")
    n = int(data.shape[0])
    count = int(np.ravel(said)[0]) if isinstance(said, np.ndarray | np.integer) and np.size(said) else 0
    return min(n, count) if count > 0 else n


def _version(file: h5py.File) -> int:
    node = file.get("cxi_version")
    if not isinstance(node, h5py.Dataset) or node.dtype.kind not in "iuf" or node.size != 1:
        return 160
    return int(np.ravel(node[()])[0])
