"""Where on a picture each pixel of a frame is drawn: the detector as it lies, seen along the beam."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .core.frames import BAD, Detector, Frames

if TYPE_CHECKING:
    from .io.source import FrameSource

MOST_CELLS_PER_PIXEL = 16
"""Panels so far apart that a picture would be emptier than this are drawn as the file stores them."""

MAX_STACK_BYTES = 64 * 2**20
"""No more pictures than these are read for one look; one frame always is."""

NEIGHBOURS_OF_A_HOLE = 3


@dataclass(frozen=True, eq=False)
class Layout:
    """A picture of the detector, one cell per pixel: +y up and +x to the left, as one looks along the beam.

    Parameters
    ----------
    shape : (rows, columns)
    cell : (P,) int64
        Index of each pixel's cell in the flattened picture; −1 for pixels that are nowhere.
    owner : (rows·columns,) int64
        Pixel that a cell shows; −1 beside the detector.
    centre : (row, column) or None
        Where the beam meets the picture, in cells; None without a geometry.
    pitch : float
        Tangent of the angle that a cell at the beam subtends.
    """

    shape: tuple[int, int]
    cell: NDArray[np.int64]
    owner: NDArray[np.int64]
    centre: tuple[float, float] | None = None
    pitch: float = float("nan")

    def photons(self, frames: Frames) -> NDArray[np.float32]:
        """(N, rows, columns) photons, each in its pixel's cell; NaN beside the detector.

        No photon is lost or doubled, also where panels are turned and two pixels share a cell.
        """
        n_cells = len(self.owner)
        where = self.cell[frames.pixel]
        row = np.repeat(np.arange(len(frames)), np.diff(frames.start))
        there = where >= 0
        total = np.bincount(row[there] * n_cells + where[there], frames.count[there], len(frames) * n_cells)
        picture = total.astype(np.float32).reshape(len(frames), n_cells)
        picture[:, self.owner < 0] = np.nan
        return picture.reshape(len(frames), *self.shape)

    def picture(self, values: NDArray[Any], beside: float = np.nan) -> NDArray[Any]:
        """(rows, columns): every cell shows the value, of (P,), of its pixel; `beside` where there is none."""
        return np.where(self.owner >= 0, values[self.owner], beside).reshape(self.shape)

    def of_pixels(self, picture: NDArray[Any], nowhere: int = 0) -> NDArray[Any]:
        """(P,): what a picture of this shape, painted by a user, says of each pixel."""
        return np.where(self.cell >= 0, picture.reshape(-1)[self.cell], nowhere)


def lay_out(shape: tuple[int, ...], detector: Detector | None) -> Layout | None:
    """Lay a frame out: by the geometry, or without one as the file stores it; None for a list of nameless pixels.

    Parameters
    ----------
    shape : tuple of int
        Of one frame. Modules without a geometry are drawn one below the other.
    detector : Detector or None
    """
    layout = None if detector is None else _as_it_lies(detector)
    if layout is not None or len(shape) < 2:
        return layout
    cell = np.arange(int(np.prod(shape)))
    return Layout((int(np.prod(shape[:-1])), shape[-1]), cell, cell)


def _as_it_lies(detector: Detector) -> Layout | None:
    from .core.pixels import pixel_step

    direction = detector.q / detector.ewald_radius + [0.0, 0.0, 1.0]
    # what no panel has is at the beam in some files, without any area
    placed = (direction[:, 2] > 0) & ((detector.response > 0) | (detector.mask != BAD))
    if placed.sum() < 2:
        return None
    across = direction[placed, :2] / direction[placed, 2:]
    pitch = pixel_step(across)  # in the plane, where pixels are equal: on the sphere they grow narrower
    left_top = across.max(axis=0)
    if not pitch > 0:
        return None
    column, row = np.rint((left_top - across) / pitch).astype(np.int64).T
    shape = (int(row.max()) + 1, int(column.max()) + 1)
    if shape[0] * shape[1] > MOST_CELLS_PER_PIXEL * len(across):
        return None
    cell = np.full(detector.n_pixels, -1, np.int64)
    cell[placed] = row * shape[1] + column
    owner = np.full(shape[0] * shape[1], -1, np.int64)
    owner[cell[placed]] = np.flatnonzero(placed)
    centre = (float(left_top[1] / pitch), float(left_top[0] / pitch))
    return Layout(shape, cell, _without_holes(owner.reshape(shape)).ravel(), centre, pitch)


def _without_holes(owner: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rounding leaves holes in panels that are turned by a little: each shows a pixel beside it."""
    for _ in range(2):  # where two lines slip at once, one hole hides another
        padded = np.pad(owner, 1, constant_values=-1)
        beside = np.stack([padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]])
        hole = (owner < 0) & ((beside >= 0).sum(axis=0) >= NEIGHBOURS_OF_A_HOLE)
        owner = np.where(hole, beside.max(axis=0), owner)
    return owner


class FrameStack:
    """All frames of a source as a stack of pictures, each read when it is looked at (an array to napari).

    Parameters
    ----------
    source : FrameSource
        With a known number of frames.
    layout : Layout
    """

    dtype = np.dtype(np.float32)
    ndim = 3

    def __init__(self, source: FrameSource, layout: Layout) -> None:
        self.source, self.layout = source, layout
        self.shape = (source.n_frames or 0, *layout.shape)
        self.size = int(np.prod(self.shape))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> NDArray[np.float32]:
        """Photons of the chosen frames; NaN, and nothing read, where they are more than a look can hold."""
        first, *rest = key if isinstance(key, tuple) else (key,)
        frames = np.arange(len(self))[first]
        wanted = np.atleast_1d(frames)
        if len(wanted) > 1 and 4 * len(wanted) * len(self.layout.owner) > MAX_STACK_BYTES:
            stack = np.broadcast_to(np.float32(np.nan), (len(wanted), *self.layout.shape))
        else:
            stack = self.layout.photons(self.source.read(wanted))
        return stack[(0 if np.ndim(frames) == 0 else slice(None), *rest)]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[:], dtype)
