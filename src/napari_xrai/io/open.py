"""One door for every file: told apart by content, never by extension."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..core.detector import Polarization, square_detector
from ..core.frames import GOOD
from .batched import BatchedSource
from .binning import BinnedSource, working_binning
from .cell_mask import CellMaskedSource, read_cell_mask
from .euxfel import EuxfelRun, is_euxfel_run
from .experiment import join
from .folder import expand, in_order, without_repeats
from .formats import FORMATS, DetectorFormat, FrameFormat, Kind, OtherFormat
from .glance import glance
from .mask import read_mask
from .plain import open_dataset, refuse_array, split_dataset
from .select import SelectedSource, read_selection
from .source import CENTRE_ASSUMED, Beam, FrameSource, InputError
from .units import check_beam

FRAMES_LOOKED_AT = 5000
PIXELS_LOOKED_AT = 50_000_000
"""Enough frames for a mean; and a bound for megapixel detectors."""
PIXELS_AT_ONCE = 4_000_000
"""The first look of all takes no longer than this needs."""


BACKGROUND_NOTE = (
    "the background in these files is not used: what is uneven of it is found in the frames, the rest becomes part of "
    "the intensity"
)


@dataclass(frozen=True)
class Description:
    """What was found, for a person and for a program.

    Parameters
    ----------
    format : str
    frames : int or None
    shape : tuple of int
    photons_per_frame : float
        Mean over the first frames, at most 5000.
    missing : list of str
        What the files do not say: ``"geometry"``, ``"wavelength"``, ``"polarisation"``.
    notes : list of str
        What the readers had to assume or correct.
    """

    format: str
    frames: int | None
    shape: tuple[int, ...]
    photons_per_frame: float
    missing: list[str]
    notes: list[str]

    @property
    def sentence(self) -> str:
        """In words: ``4,000 frames · 4,096 pixels · 497 photons/frame · wavelength not in these files``."""
        parts = [] if self.frames is None else [f"{self.frames:,} frame{'s' * (self.frames != 1)}"]
        parts += [f"{int(np.prod(self.shape)):,} pixels", f"{self.photons_per_frame:,.3g} photons/frame"]
        if self.photons_per_frame >= 100:
            parts[-1] = f"{self.photons_per_frame:,.0f} photons/frame"
        if self.missing:
            parts.append(f"{' and '.join(self.missing)} not in these files")
        return " · ".join([*parts, *self.notes])

    def as_json(self) -> dict[str, Any]:
        """As ``info --json`` prints it."""
        return {
            "format": self.format, "frames": self.frames, "shape": list(self.shape),
            "photons_per_frame": self.photons_per_frame, "missing": list(self.missing),
            **({"notes": list(self.notes)} if self.notes else {}),
        }  # fmt: skip


def classify(path: Path) -> Kind:
    """What a file or folder is, by its content."""
    path = Path(path)
    if path.is_dir():
        return _classify_folder(path)
    if split_dataset(path)[1] is not None:
        return "frames"
    if not path.is_file() or path.stat().st_size == 0:
        return "unknown"
    try:
        found = find_format(path)
    except InputError:
        return "frames"  # damaged: opening it as frames says how
    return found.kind if found is not None else "unknown"


def find_format(path: Path) -> FrameFormat | DetectorFormat | OtherFormat | None:
    """The row of the table of formats that a file belongs to.

    Raises
    ------
    InputError
        If it is HDF5 and damaged.
    """
    with glance(path) as look:
        return next((row for row in FORMATS if row.sniff(look)), None)


def is_ours(path: Path) -> bool:
    """Whether a file, or one in a folder, can only be meant for X-RAI: a picture or a plain array could be anything."""
    path = Path(path)
    if path.is_dir():
        return (
            _classify_folder(path) == "run" or is_euxfel_run(path) or any(map(is_ours, _files_by_kind(path)["frames"]))
        )
    try:
        row = find_format(path) if path.is_file() and path.stat().st_size else None
    except InputError:
        return True  # damaged: opening it says how
    common = isinstance(row, FrameFormat) and row.common
    return row is not None and row.kind in ("frames", "detector", "run") and not common


def _classify_folder(path: Path) -> Kind:
    if any((path / name).is_file() for name in ("reconstruction.h5", "metrics.jsonl")):
        return "run"
    if is_euxfel_run(path):
        return "frames"
    try:
        if {"input", "engine"} <= set(json.loads((path / "settings.json").read_text())):
            return "run"
    except (OSError, ValueError, TypeError):
        pass
    return "frames" if _files_by_kind(path)["frames"] else "unknown"


def _files_by_kind(folder: Path) -> dict[str, list[Path]]:
    """Frames, detectors and masks in a folder, in order; what is anything else is not looked at."""
    found: dict[str, list[Path]] = {"frames": [], "detector": [], "mask": []}
    for path in in_order(p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")):
        kind = classify(path)
        if kind in found:
            found[kind].append(path)
    certain = [path for path in found["frames"] if is_ours(path)]
    return {**found, "frames": certain or found["frames"]}


def open_source(
    paths: Sequence[Path],
    *,
    detector: Path | None = None,
    mask: Path | None = None,
    energy_eV: float | None = None,
    distance_m: float | None = None,
    pixel_size_m: float | None = None,
    polarization: Polarization | None = None,
    select: str | None = None,
    binning: int | Literal["auto"] = 1,
) -> FrameSource:
    """Open frames of any known format, with their detector and mask wherever those are.

    Parameters
    ----------
    paths : sequence of Path
        Files or folders of frames; a detector file and a mask may be among them.
    detector, mask : Path, optional
        Detector file (wins over geometry in the frames' file); mask laid over the detector's own.
    energy_eV, distance_m, pixel_size_m, polarization : optional
        What the files do not say, or say wrongly: these win.
    select : str, optional
        Which frames; see `read_selection`.
    binning : int or "auto"
        Pixels summed along each edge of a cell; ``"auto"``: as many as the engine's voxel has, on large detectors.

    Returns
    -------
    FrameSource
        `detector` is None while the geometry is missing.

    Raises
    ------
    InputError
        One sentence: which file, which dataset, and the remedy.
    """
    frames, detectors, masks = _sort_paths(expand([Path(p) for p in paths]))
    detectors = [Path(detector)] if detector is not None else detectors
    masks = [Path(mask)] if mask is not None else masks
    for found, kind in ((detectors, "detector"), (masks, "mask")):
        if len(found) > 1 and not (kind == "detector" and _are_alike(found, frames[0])):
            raise InputError(f"{found[0]} and {found[1]} are both {kind} files: give one")
    beam = Beam(energy_eV, distance_m, pixel_size_m, polarization)
    check_beam(beam)
    parts, notes = without_repeats([_open_frames(p, beam) for p in frames])
    source = join(parts)
    source.notes = (*source.notes, *notes)
    laid_over = next(iter(masks), None)
    cells = read_cell_mask(laid_over, source) if laid_over is not None else None
    equip(source, next(iter(detectors), None), laid_over if cells is None else None, beam)
    if cells is not None:
        source = CellMaskedSource(source, cells, str(laid_over))
    if select is not None:
        source = SelectedSource(source, read_selection(select, source.n_frames or 0), select)
    _check_usable(source)
    return binned(source, binning)


def equip(source: BatchedSource, detector: Path | None, mask: Path | None, beam: Beam) -> None:
    """Give frames the geometry of a detector file, or one made from figures where there is enough; and a mask.

    Raises
    ------
    InputError
        If they do not go together.
    """
    if detector is not None:
        _use_detector_file(source, detector, beam)
    else:
        _use_figures(source, beam)
    if mask is not None:
        _use_mask(source, mask)
    if source.detector is not None and source.detector.background is not None:
        source.notes = (*source.notes, BACKGROUND_NOTE)


def binned(source: BatchedSource, binning: int | Literal["auto"]) -> BatchedSource:
    """The source with pixels summed as `open_source` has it; itself where there is no geometry."""
    if source.detector is None:
        return source
    factor = working_binning(source.detector) if binning == "auto" else binning
    if factor <= 1:
        return source
    if (2 * factor) ** 2 > source.n_pixels:
        n = source.n_pixels
        raise InputError(f"{source.paths[0]}: a binning of {factor} leaves next to nothing of {n:,} pixels: give less")
    return BinnedSource(source, factor)


def _are_alike(detectors: list[Path], frames: Path) -> bool:
    """Whether files of one folder describe one detector, as writers leave it in HDF5 and in text."""
    if len({path.parent for path in detectors}) > 1:
        return False
    shape = _open_frames(frames, Beam()).shape
    found = [row.read(path, frames, shape, Beam()).detector for path in detectors
             if isinstance(row := find_format(path), DetectorFormat)]  # fmt: skip
    first = found[0]
    return all(
        other.q.shape == first.q.shape and np.allclose(other.q, first.q, atol=1e-6 * np.abs(first.q).max())
        and np.array_equal(other.mask, first.mask) for other in found
    )  # fmt: skip


def _sort_paths(paths: Sequence[Path]) -> tuple[list[Path], list[Path], list[Path]]:
    sorted_: dict[str, list[Path]] = {"frames": [], "detector": [], "mask": []}
    for path in paths:
        if not split_dataset(path)[0].exists():
            raise InputError(f"{path} does not exist: check the name")
        if path.is_file() and path.stat().st_size == 0:
            raise InputError(f"{path} is empty: copy it again")
        kind = classify(path)
        if path.is_dir() and is_euxfel_run(path):
            sorted_["frames"].append(path)
        elif path.is_dir() and kind == "frames":
            for found, files in _files_by_kind(path).items():
                sorted_[found] += files
        elif path.is_dir() and kind == "unknown":
            raise InputError(f"{path} holds no frames: give a folder of files of frames")
        elif kind == "run":
            raise InputError(f"{path} is a run, not frames: see it with napari-xrai report {path}, or in napari")
        elif kind in sorted_:
            sorted_[kind].append(path)
        elif kind == "volume":
            raise InputError(f"{path} is a map, not frames: give frames, a detector file or a mask")
        else:
            refuse_array(path)
            raise InputError(f"{path} is of no known format: give frames, a detector file or a mask")
    if not sorted_["frames"]:
        what = "nothing was given" if not paths else f"{paths[0]} is a {classify(paths[0])} file"
        raise InputError(f"there are no frames: {what}; give a file of frames")
    return sorted_["frames"], sorted_["detector"], sorted_["mask"]


def _open_frames(path: Path, beam: Beam) -> BatchedSource:
    if path.is_dir():
        return EuxfelRun(path, beam)
    if split_dataset(path)[1] is not None:
        return open_dataset(path, beam)
    row = find_format(path)
    if not isinstance(row, FrameFormat):
        raise InputError(f"{path} holds no frames: give CXI, Dragonfly, NeXus, HDF5 or NumPy frames")
    with _in_words(path):
        return row.open(path, beam)


@contextmanager
def _in_words(path: Path) -> Iterator[None]:
    """A geometry that cannot be is the file's fault, whichever reader it passed."""
    try:
        yield
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: {error}; correct the file") from error


def _use_detector_file(source: BatchedSource, path: Path, beam: Beam) -> None:
    if not path.is_file():
        raise InputError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}: give the detector file")
    row = find_format(path)
    if not isinstance(row, DetectorFormat):
        raise InputError(f"{path} is no detector file: give a Dragonfly detector or a CrystFEL .geom")
    with _in_words(path):
        found = row.read(path, source.paths[0], source.shape, beam.over(source.beam))
    if found.detector.n_pixels != source.n_pixels:
        raise InputError(
            f"{path} has {found.detector.n_pixels:,} pixels but the frames in {source.paths[0]} have "
            f"{source.n_pixels:,}: give the detector file that belongs to these frames"
        )
    mask = source.mask  # the frames' own holds under any geometry
    source.detector = found.detector if mask is None else found.detector.with_mask(mask)
    source.missing = found.missing
    source.notes = (*(note for note in source.notes if note != CENTRE_ASSUMED), *found.notes)


def _use_figures(source: BatchedSource, beam: Beam) -> None:
    """A plain detector, where no file says more and there are figures enough for one."""
    if source.detector is not None or len(source.shape) != 2 or not (beam.distance_m and beam.pixel_size_m):
        return
    source.detector = square_detector(
        (source.shape[0], source.shape[1]), beam.pixel_size_m, beam.distance_m, beam.over(source.beam).energy_eV,
        polarization=beam.over(source.beam).polarization or "none",
    )  # fmt: skip
    if source.mask is not None:
        source.detector = source.detector.with_mask(source.mask)
    source.missing = tuple(m for m in source.missing if m != "geometry")
    source.notes = (*source.notes, CENTRE_ASSUMED)


def _use_mask(source: BatchedSource, path: Path) -> None:
    mask = read_mask(path, source.shape)
    if mask.size != source.n_pixels:
        raise InputError(
            f"{path} has {mask.size:,} pixels but the frames in {source.paths[0]} have {source.n_pixels:,}: "
            "give the mask that belongs to these frames"
        )
    if source.detector is not None:
        source.detector = source.detector.with_mask(mask)


def _check_usable(source: BatchedSource) -> None:
    """Refuse at the door what no reconstruction can use: no good pixel, no photon."""
    if source.detector is None and "geometry" not in source.missing:
        source.missing = ("geometry", *source.missing)
    if source.detector is not None and not (source.detector.mask == GOOD).any():
        raise InputError(f"the mask leaves no good pixel of {source.paths[0]}: give another mask or detector file")
    looked_at = 0
    for batch in source.batches(max(1, min(100, PIXELS_AT_ONCE // source.n_pixels))):
        looked_at += len(batch)
        if len(batch.pixel):
            return
        if looked_at >= _frames_to_look_at(source):
            break
    raise InputError(f"{source.paths[0]}: the first {looked_at:,} frames hold no photons: give frames with a signal")


def _frames_to_look_at(source: FrameSource) -> int:
    return max(10, min(FRAMES_LOOKED_AT, PIXELS_LOOKED_AT // source.n_pixels))


def describe(source: FrameSource) -> Description:
    """Say what a source holds, from its header and its first frames.

    Raises
    ------
    InputError
        If those frames cannot be read.
    """
    photons = seen = 0
    for batch in source.batches(100):
        photons += int(batch.photons.sum())
        seen += len(batch)
        if seen >= _frames_to_look_at(source):
            break
    notes = list(getattr(source, "notes", ()))
    if source.detector is not None and not source.detector.mask.any():
        notes.append("no pixel is masked")
    return Description(
        source.format,
        source.n_frames,
        source.shape,
        photons / max(seen, 1),
        list(getattr(source, "missing", ())),
        notes,
    )
