"""Large detectors at the working resolution: pixels are summed on reading, cell by cell of a square grid on the beam.

Sums of Poisson counts are Poisson counts, so nothing is lost but detail finer than the engine's voxel. Cells follow the
lab frame, not the array: whatever lies together in the array, only what lies together on the detector is summed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.frames import BAD, MERGE_ONLY, Detector, Frames, UsedGeometry
from ..core.pixels import LARGEST_RADIUS, covered_radius, pixel_step
from .batched import BatchedSource, Rows

LARGE_DETECTOR = 2**18
"""Pixels from which frames are binned unasked: below, the engine sums pixels itself at little cost."""

BLOCK_CELLS = 8_000_000
"""Cells laid out at once: bounds memory."""


def working_binning(detector: Detector) -> int:
    """Detector pixels along a cell's edge such that a cell is the engine's voxel; 1 for small detectors.

    One voxel less than the engine's own limit, so that the binned detector keeps to it.
    """
    if detector.n_pixels < LARGE_DETECTOR:
        return 1
    usable = (detector.mask < BAD) & (detector.response > 0)
    if usable.sum() < 1000:
        return 1
    step = pixel_step(detector.q[usable])
    rho = np.hypot(*detector.q[detector.mask < MERGE_ONLY, :2].T)
    limit = covered_radius(rho, step) if len(rho) else 0.0
    return max(1, math.ceil(limit / step / (LARGEST_RADIUS - 1)))


class BinnedSource(BatchedSource):
    """Another source's frames, summed over cells of `factor` × `factor` pixels.

    Pixels that are bad have no cell. Photons on all others are conserved exactly.

    Parameters
    ----------
    source : BatchedSource
        With a detector.
    factor : int
    """

    def __init__(self, source: BatchedSource, factor: int) -> None:
        if source.detector is None:
            raise ValueError("frames can be binned only where their geometry is known")
        self._source, self._factor, self.detector_shape = source, factor, source.shape
        self._cell, detector = bin_detector(source.detector, factor)
        super().__init__(
            source.format, source.paths, source.n_frames, detector.shape, detector,
            (*source.notes, f"{factor}×{factor} pixels summed on reading"), source.missing, source.beam,
        )  # fmt: skip

    def identity(self, frames: NDArray[np.integer]) -> dict[str, NDArray[Any]]:
        """As of the source."""
        return self._source.identity(frames)

    def on_pixels(self, used: UsedGeometry) -> UsedGeometry:
        """The same over a frame as the source has it: every pixel is what its cell is."""
        cell, masked = self._cell.reshape(self.detector_shape), self._cell.reshape(self.detector_shape) < 0
        x, y = used.moved
        return UsedGeometry(
            used.tangent, (x * self._factor, y * self._factor),
            np.where(masked, BAD, used.mask[cell]).astype(np.uint8), ~masked & used.left_out[cell],
        )  # fmt: skip

    def _block(self) -> int:
        return max(1, min(self._source._block(), BLOCK_CELLS // self.n_pixels))

    @contextmanager
    def _rows(self) -> Iterator[Rows]:
        with self._source._rows() as rows:
            yield lambda lo, hi: bin_frames(rows(lo, hi), self._cell, self.n_pixels)


def bin_detector(detector: Detector, factor: int) -> tuple[NDArray[np.int32], Detector]:
    """Sum the pixels of a detector that share a cell.

    Parameters
    ----------
    factor : int
        Edge of a cell, in pixels beside the beam.

    Returns
    -------
    cell : (P,) int32
        Of each pixel; −1 for bad ones. Pixels that are merged only have cells of their own.
    detector : Detector
        A flat list of cells. q is the mean over a cell's pixels, put back onto the Ewald sphere; response is the
        cells' sum, scaled to a mean of 1.
    """
    usable = np.flatnonzero((detector.mask < BAD) & (detector.response > 0))
    step = pixel_step(detector.q[usable]) * factor
    column, row = np.floor(detector.q[usable, :2] / step).astype(np.int64).T
    width = int(np.ptp(column)) + 1
    key = ((row - row.min()) * width + column - column.min()) * 2 + (detector.mask[usable] == MERGE_ONLY)
    keys, cell_of, size = np.unique(key, return_inverse=True, return_counts=True)
    n = len(keys)

    def summed(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.bincount(cell_of, values[usable], n), np.float64)

    q = np.stack([summed(detector.q[:, axis]) for axis in range(3)], axis=1) / size[:, None]
    rho2 = (q[:, :2] ** 2).sum(axis=1)
    radius = detector.ewald_radius
    forward = radius + q[:, 2] > 0
    height = np.sqrt(np.maximum(radius**2 - rho2, 0.0))
    q[:, 2] = np.where(forward, -rho2 / (radius + height), -radius - height)
    response = summed(detector.response)
    background = None if detector.background is None else summed(detector.background)
    cell = np.full(detector.n_pixels, -1, np.int32)
    cell[usable] = cell_of
    mask = np.where(keys % 2 == 1, MERGE_ONLY, 0).astype(np.uint8)
    return cell, Detector(q, response / response.mean(), mask, (n,), radius, detector.units, background)


def bin_frames(frames: Frames, cell: NDArray[np.int32], n_cells: int) -> Frames:
    """Photons of each cell.

    Parameters
    ----------
    cell : (P,) int32
        Of each pixel; photons where it is −1 are left out.
    """
    where = cell[frames.pixel]
    row = np.repeat(np.arange(len(frames)), np.diff(frames.start))
    kept = where >= 0
    key = row[kept] * np.int64(n_cells) + where[kept]
    # exact: whole numbers below 2^53 are themselves in double precision
    total = np.bincount(key, frames.count[kept], len(frames) * n_cells).astype(np.int64)
    return Frames.from_dense(total.reshape(len(frames), n_cells), int(frames.index[0]) if len(frames) else 0)
