"""Masks with a picture for every memory cell of an integrating detector: which is bad differs from cell to cell."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..core.frames import BAD, GOOD, Frames
from .batched import BatchedSource, Rows
from .cxi_mask import LEFT_OUT
from .mask import read_mask
from .source import InputError

IDENTITIES = 100_000
"""Frames whose cells are asked for at once."""


@dataclass(frozen=True, eq=False)
class CellMask:
    """What is bad in all frames, and the cells that lack far more.

    Parameters
    ----------
    common : (P,) uint8
        0, 1, 2: the worst of all usual cells.
    unusual : (C,) bool
        Cells that lack a larger share than `LEFT_OUT` beyond what is usual: their frames are left out.
    """

    common: NDArray[np.uint8]
    unusual: NDArray[np.bool_]


def read_cell_mask(path: Path, source: BatchedSource) -> CellMask | None:
    """A mask of shape (cells, … of a frame); None where the file has one picture for all frames.

    Raises
    ------
    InputError
        If it cannot be read, or the frames do not say of which cell they are.
    """
    values = read_mask(path)
    n_cells, rest = divmod(values.size, source.n_pixels)
    if rest or n_cells < 2:
        return None
    if "cellId" not in source.ids:
        raise InputError(
            f"{path} has masks for {n_cells} cells, but {source.paths[0]} does not say of which cell its frames are: "
            "give one mask"
        )
    cells = values.reshape(n_cells, -1)
    lacking = (cells == BAD).mean(axis=1)
    unusual: NDArray[np.bool_] = lacking > np.median(lacking) + LEFT_OUT
    return CellMask(cells[~unusual].max(axis=0, initial=GOOD), unusual)


class CellMaskedSource(BatchedSource):
    """Another source's frames, those of unusual cells without photons.

    Raises
    ------
    InputError
        If a frame is of a cell that the mask does not have.
    """

    def __init__(self, source: BatchedSource, mask: CellMask, name: str) -> None:
        self._source = source
        cells = np.concatenate([
            source.identity(np.arange(lo, min(lo + IDENTITIES, source.n_frames or 0)))["cellId"].astype(np.int64)
            for lo in range(0, source.n_frames or 0, IDENTITIES)
        ])  # fmt: skip
        if not (cells.min() >= 0 and cells.max() < len(mask.unusual)):
            raise InputError(f"{name} has masks for {len(mask.unusual)} cells, but frames are of cell {cells.max()}")
        self._left_out: NDArray[np.bool_] = mask.unusual[cells]
        words = (
            f"a mask for each of {len(mask.unusual)} cells: what is bad in any is bad in all, and "
            f"{self._left_out.sum():,} frames of {mask.unusual.sum()} cells that lack {LEFT_OUT:.0%} more are left out"
        )
        super().__init__(
            source.format, source.paths, source.n_frames, source.shape,
            None if source.detector is None else source.detector.with_mask(mask.common),
            (*source.notes, words), source.missing, source.beam, mask.common, source.ids,
        )  # fmt: skip

    def identity(self, frames: NDArray[np.integer]) -> dict[str, NDArray[np.generic]]:
        """As of the source."""
        return self._source.identity(frames)

    def _block(self) -> int:
        return self._source._block()

    @contextmanager
    def _rows(self) -> Iterator[Rows]:
        with self._source._rows() as rows:

            def usual(lo: int, hi: int) -> Frames:
                found = self._source._bounded(rows, lo, hi)
                kept = np.where(self._left_out[lo:hi], 0, np.diff(found.start))
                entry = np.repeat(~self._left_out[lo:hi], np.diff(found.start))
                start = np.concatenate([[0], np.cumsum(kept)]).astype(np.int64)
                return Frames(start, found.pixel[entry], found.count[entry], found.index, found.n_pixels)

            yield usual
