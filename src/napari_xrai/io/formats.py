"""Every format that is understood: one row each. A new one is a row here and a file beside this one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from ..core.frames import BAD, Detector
from . import cxi, dragonfly, dragonfly_config, geom_text, nexus, plain, skopi
from .batched import BatchedSource
from .glance import Glance
from .mask import LARGEST_BYTES, NUMPY_MAGIC, WHITE, is_image
from .source import Beam, InputError

MOST_MODULES = 32
"""Of a detector whose mask is a stack of pictures; a longer stack is frames."""

Kind = Literal["frames", "detector", "mask", "run", "volume", "unknown"]


@dataclass(frozen=True)
class Geometry:
    """What a detector file gives.

    Parameters
    ----------
    detector : Detector
        Of the frames' shape.
    notes : tuple of str
        What was assumed or corrected.
    missing : tuple of str
        ``"wavelength"``, ``"polarisation"``: what the user could still say.
    """

    detector: Detector
    notes: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class FrameFormat:
    """Frames: `sniff` tells them by content, `open` makes a source of them.

    `common` formats may hold anything: other programs open them as well, and a folder may have some beside its frames.
    """

    sniff: Callable[[Glance], bool]
    open: Callable[[Path, Beam], BatchedSource]
    kind: Kind = "frames"
    common: bool = False


@dataclass(frozen=True)
class DetectorFormat:
    """A detector or geometry: `read` fits it to the frames in a file, under a beam of which more or less is known.

    Its arguments: the detector file, the frames' file, the shape of a frame, the beam.
    """

    sniff: Callable[[Glance], bool]
    read: Callable[[Path, Path, tuple[int, ...], Beam], Geometry]
    kind: Kind = "detector"


@dataclass(frozen=True)
class OtherFormat:
    """Something that is recognised, and read elsewhere."""

    sniff: Callable[[Glance], bool]
    kind: Kind


def _dragonfly_detector(path: Path, frames: Path, shape: tuple[int, ...], beam: Beam) -> Geometry:
    found, notes = dragonfly.read_detector(path)
    # a file for another detector keeps its own shape: who asked says what is wrong
    shape = shape if int(np.prod(shape)) == found.n_pixels else found.shape
    found = Detector(found.q, found.response, found.mask, shape, found.ewald_radius, found.units, found.background)
    if beam.energy_eV is None:
        return Geometry(found, notes, ("wavelength",))
    return Geometry(found.with_energy(beam.energy_eV), notes)


def _crystfel_geometry(path: Path, frames: Path, shape: tuple[int, ...], beam: Beam) -> Geometry:
    detector, notes, missing = geom_text.read_geom(path).detector(shape, beam, frames)
    return Geometry(detector, notes, missing)


def _is_run(look: Glance) -> bool:
    return look.hdf5 is not None and "format_version" in look.hdf5.attrs and "intensity" in look.hdf5


def _is_hdf5_volume(look: Glance) -> bool:
    return any(look.has(name) for name in ("intensity", "density", "intens"))


def _is_hdf5_mask(look: Glance) -> bool:
    if look.hdf5 is None:
        return False
    datasets = [look.hdf5[n] for n in look.hdf5 if isinstance(look.hdf5.get(n), h5py.Dataset)]
    if len(datasets) == 1:
        named = "mask" in str(datasets[0].name).lower()
        return _is_mask(datasets[0], surely=named)
    return look.has("mask") and not any(d.ndim >= 3 and d.shape[0] > MOST_MODULES for d in datasets)


def _is_numpy_mask(look: Glance) -> bool:
    array = _numpy_array(look)
    return array is not None and (array.dtype.kind == "b" or _is_mask(array))


def _is_mask(array: Any, *, surely: bool = False) -> bool:
    """Whether whole numbers are 0, 1, 2 in one picture, or in the modules of a detector; not in a stack of frames.

    A few dim frames are such numbers too, but photons lie apart and bad pixels together.
    """
    if array.dtype.kind not in "iub" or not 0 < array.size <= LARGEST_BYTES:
        return False
    if array.ndim > 3 or (array.ndim == 3 and array.shape[0] > MOST_MODULES):
        return False
    values = np.asarray(array[()])
    if values.max() > BAD or values.min() < 0:
        return False
    return surely or array.ndim < 3 or _lie_together(values != 0)


def _lie_together(lit: NDArray[np.bool_]) -> bool:
    """Whether pixels (…, rows, columns) that are not zero have others beside or below them, more than by chance."""
    share = lit.mean()
    beside = [(lit[..., 1:, :] & lit[..., :-1, :]).sum(), (lit[..., :, 1:] & lit[..., :, :-1]).sum()]
    together = max(beside) / max(1, lit.sum())
    return bool(share == 0 or together > max(0.5, min(3 * share, 0.8)))


def _is_numpy_volume(look: Glance) -> bool:
    array = _numpy_array(look)
    return array is not None and array.ndim == 3 and array.dtype.kind == "f" and len(set(array.shape)) == 1


def _numpy_array(look: Glance) -> NDArray[Any] | None:
    if not look.head.startswith(NUMPY_MAGIC):
        return None
    try:
        return plain.load_npy(look.path)
    except InputError:
        return None


def _is_raw_mask(look: Glance) -> bool:
    if look.hdf5 is not None or max(look.head, default=WHITE) > BAD or look.path.stat().st_size > LARGEST_BYTES:
        return False
    return bool(np.fromfile(look.path, np.uint8).max() <= BAD)


FORMATS: tuple[FrameFormat | DetectorFormat | OtherFormat, ...] = (
    OtherFormat(_is_run, "run"),
    FrameFormat(dragonfly_config.is_config, dragonfly_config.ConfiguredSource),
    FrameFormat(dragonfly.is_hdf5_photons, lambda path, beam: dragonfly.Hdf5Photons(path)),
    FrameFormat(skopi.is_skopi, skopi.SkopiSource),
    FrameFormat(cxi.is_cxi, cxi.CxiSource),
    FrameFormat(dragonfly.is_binary_photons, lambda path, beam: dragonfly.BinaryPhotons(path)),
    DetectorFormat(dragonfly.is_detector, _dragonfly_detector),
    DetectorFormat(lambda look: geom_text.is_geom(look.head), _crystfel_geometry),
    OtherFormat(_is_hdf5_volume, "volume"),
    OtherFormat(lambda look: look.head[208:212] == b"MAP ", "volume"),
    OtherFormat(_is_numpy_mask, "mask"),
    OtherFormat(_is_numpy_volume, "volume"),
    OtherFormat(_is_hdf5_mask, "mask"),
    FrameFormat(nexus.is_nexus, nexus.NexusSource),
    FrameFormat(plain.is_numpy_frames, plain.NumpyFrames, common=True),
    FrameFormat(plain.is_plain_hdf5, plain.open_hdf5_dataset, common=True),
    OtherFormat(lambda look: is_image(look.head), "mask"),
    OtherFormat(_is_raw_mask, "mask"),
)
"""In this order: the first whose `sniff` says yes has the file."""
