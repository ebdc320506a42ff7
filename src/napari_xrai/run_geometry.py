"""The geometry and mask that a run used, as its reconstruction.h5 holds them."""

from __future__ import annotations

from typing import Any

import numpy as np

from .core.frames import BAD, GOOD, MERGE_ONLY, UsedGeometry

GROUP = "geometry"

MASK_VALUES = {"used_for_poses": GOOD, "merged_only": MERGE_ONLY, "not_used": BAD}

ABOUT = {
    "beam_tangent": "x and y over z of where the beam goes, from where the files have it; x left, y up along the beam",
    "beam_moved": "the same in pixels",
    "mask": "pixels of a frame as they were used",
    "left_out": "1: good in the files, but hot, dead, in a beam stop's shadow, or without a response: not used",
}
UNITS = {"beam_tangent": "1", "beam_moved": "pixel"}


def put_geometry(file: Any, used: UsedGeometry) -> None:
    """Write it into an open file: /geometry."""
    group = file.create_group(GROUP)
    group["beam_tangent"], group["beam_moved"] = used.tangent, used.moved
    for name in ("mask", "left_out"):
        group.create_dataset(name, data=np.asarray(getattr(used, name), np.uint8), compression="gzip", chunks=True)
    group["mask"].attrs.update(MASK_VALUES)
    for name, about in ABOUT.items():
        group[name].attrs["about"] = about
    for name, unit in UNITS.items():
        group[name].attrs["units"] = unit


def get_geometry(file: Any) -> UsedGeometry | None:
    """Read it back; None where a file has none."""
    group = file.get(GROUP)
    if group is None:
        return None
    tangent, moved = ((float(x), float(y)) for x, y in (group[name][()] for name in ("beam_tangent", "beam_moved")))
    return UsedGeometry(tangent, moved, group["mask"][()], group["left_out"][()].astype(bool))
