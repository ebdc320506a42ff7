"""What a CrystFEL geometry says about bad pixels: regions, and masks in HDF5 files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np
from numpy.typing import NDArray

from .batched import open_hdf5
from .source import InputError

if TYPE_CHECKING:
    from .geom import Panel

MASKS_READ = 100
KEYS_DATA = ("min_ss", "max_ss", "min_fs", "max_fs")
OLD_ENDINGS = {"": "data", "_file": "file", "_good": "goodbits", "_bad": "badbits"}
KEYS_LAB = ("min_x", "max_x", "min_y", "max_y")
OLD_NAMES = {
    "mask": "mask0_data",
    "mask_file": "mask0_file",
    "mask_good": "mask0_goodbits",
    "mask_bad": "mask0_badbits",
}


@dataclass(frozen=True)
class BadBox:
    """A bad region: pixels of one panel (both ends included), or a rectangle in the lab, in pixels of the panel."""

    name: str
    panel: str | None
    limits: tuple[float, float, float, float]

    @classmethod
    def parse(cls, path: Path, name: str, values: dict[str, str], panels: set[str]) -> BadBox:
        """Out of the region's entries in the file.

        Raises
        ------
        InputError
            If it mixes or lacks limits, or names no panel of the file.
        """
        in_data, in_lab = (any(key in values for key in keys) for keys in (KEYS_DATA, KEYS_LAB))
        keys = KEYS_DATA if in_data else KEYS_LAB
        if in_data == in_lab or any(key not in values for key in keys):
            raise InputError(
                f"{path}, {name}: a bad region needs {', '.join(KEYS_LAB)}, or {', '.join(KEYS_DATA)} and its panel"
            )
        panel = values.get("panel")
        if in_data and panel not in panels:
            raise InputError(f"{path}, {name}: {panel or 'no'} panel is given or known: name one of the file's panels")
        try:
            limits = [float(values[key]) for key in keys]
        except ValueError as error:
            raise InputError(f"{path}, {name}: its limits must be numbers: correct them") from error
        return cls(name, panel if in_data else None, (limits[0], limits[1], limits[2], limits[3]))


def masked_by_boxes(
    box: BadBox, panels: Sequence[Panel], centre_m: NDArray[np.float64], shape: tuple[int, ...]
) -> NDArray[np.bool_]:
    """Pixels of a frame of `shape` inside the region."""
    inside = np.zeros(shape, np.bool_)
    for panel in panels:
        at = panel.region()
        if box.panel is None:
            pixel = float(np.linalg.norm(panel.step_m[1]))
            x, y = np.moveaxis(centre_m[at][..., :2] / pixel, -1, 0)
            min_x, max_x, min_y, max_y = box.limits
            inside[at] |= (x >= min_x) & (x <= max_x) & (y >= min_y) & (y <= max_y)
        elif box.panel == panel.name:
            slow = np.arange(panel.span[0], panel.span[1] + 1)[:, None]
            fast = np.arange(panel.span[2], panel.span[3] + 1)[None]
            min_ss, max_ss, min_fs, max_fs = box.limits
            inside[at] |= (slow >= min_ss) & (slow <= max_ss) & (fast >= min_fs) & (fast <= max_fs)
    return inside


@dataclass(frozen=True)
class DetectorMask:
    """A mask in an HDF5 file: bad unless all `good_bits` are set, and where any of `bad_bits` is."""

    location: str
    file: str | None
    good_bits: int
    bad_bits: int

    @classmethod
    def parse_all(cls, path: Path, values: dict[str, str]) -> tuple[DetectorMask, ...]:
        """The masks of a geometry file.

        Raises
        ------
        InputError
            If its bits are no numbers.
        """
        renamed = {OLD_NAMES.get(key, key): value for key, value in values.items()}
        masks = []
        for key in sorted(renamed):
            if not re.fullmatch(r"mask[0-7]_data", key):
                continue
            stem = key.removesuffix("_data")
            try:
                good, bad = (int(renamed.get(f"{stem}_{kind}bits", "0"), 0) for kind in ("good", "bad"))
            except ValueError as error:
                raise InputError(f"{path}: the bits of {stem} are no numbers: write them as 0x00ff") from error
            masks.append(cls(renamed[key], renamed.get(f"{stem}_file"), good, bad))
        return tuple(masks)


def read_detector_mask(mask: DetectorMask, geom: Path, frames: Path | None, n_pixels: int) -> NDArray[np.bool_] | str:
    """Which pixels a mask makes bad; or, in words, why it could not be applied.

    Raises
    ------
    InputError
        If a mask file of its own is missing or cannot be read, or the mask has another number of pixels.
    """
    path = geom.parent / mask.file if mask.file else frames
    if mask.file and not (path and path.is_file()):
        raise InputError(f"{geom} names the mask file {mask.file}, which is not there: bring it back")
    if path is None or not h5py.is_hdf5(path):
        return f"the mask {mask.location} that {geom.name} names is not in these files"
    with open_hdf5(path) as file:
        node = file.get(mask.location) if "%" not in mask.location else None
        if not isinstance(node, h5py.Dataset) or node.dtype.kind not in "iu" or node.ndim == 0:
            return f"the mask {mask.location} that {geom.name} names is not in these files"
        one_frame = int(np.prod(node.shape)) == n_pixels
        if not one_frame and int(np.prod(node.shape[1:])) != n_pixels:
            raise InputError(
                f"{path}: {mask.location} has shape {node.shape}, not that of the frames: correct the mask"
            )
        bits = np.asarray(node[()] if one_frame else node[:MASKS_READ]).astype(np.int64).reshape(-1, n_pixels)
    bad: NDArray[np.bool_] = (((bits & mask.good_bits) != mask.good_bits) | ((bits & mask.bad_bits) != 0)).any(axis=0)
    return bad
