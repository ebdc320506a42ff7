"""Columns that grow by whole blocks: what is there is never copied to make room, however long a stream runs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from mmap import mmap
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

BLOCK_ROWS = 2**16
"""Of the 62 bytes that are kept of a frame, its names included, 4 MB: the most that is to spare."""


class Blocks:
    """Rows that are given and taken by slices (of step 1) and index arrays, as those of an array; always copies.

    Parameters
    ----------
    kind : dtype
    fill : float
        What a new row holds until it is given something.
    shape : tuple of int
        Of a row.
    """

    def __init__(self, kind: DTypeLike, fill: float = 0, shape: tuple[int, ...] = ()) -> None:
        self.dtype, self.fill, self.row_shape = np.dtype(kind), fill, shape
        self._length = 0
        self._blocks: list[NDArray[Any]] = []

    @classmethod
    def of(cls, rows: NDArray[Any], fill: float = 0) -> Blocks:
        """These rows."""
        made = cls(rows.dtype, fill, rows.shape[1:])
        made.append(rows)
        return made

    def __len__(self) -> int:
        return self._length

    @property
    def shape(self) -> tuple[int, ...]:
        """As of an array."""
        return self._length, *self.row_shape

    @property
    def ndim(self) -> int:
        """As of an array."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Of all blocks, the room at the end of the last one included."""
        return sum(block.nbytes for block in self._blocks)

    def grow(self, length: int) -> None:
        """Have at least `length` rows."""
        self._length = max(self._length, length)
        while len(self._blocks) * BLOCK_ROWS < length:
            self._blocks.append(self._room(BLOCK_ROWS))
            if self.fill:  # pages are made of zeros, and take no memory until they are written to
                self._blocks[-1][:] = self.fill

    def _room(self, rows: int) -> NDArray[Any]:
        """Zeros on pages of their own.

        Among arrays that come and go, one that stays keeps the allocator from giving theirs back; and one that is a
        little larger each time it comes, as copies of a growing column are, fits no gap that the last one left.
        """
        room = mmap(-1, max(1, rows * self.dtype.itemsize * math.prod(self.row_shape)))
        flat = np.frombuffer(room, self.dtype, rows * math.prod(self.row_shape))
        return flat.reshape(rows, *self.row_shape)

    def append(self, rows: NDArray[Any]) -> None:
        """Put rows at the end; numbers too large for those before them make all of them larger."""
        kind = np.promote_types(self.dtype, rows.dtype)
        if kind != self.dtype:
            self.dtype, self._blocks = kind, [block.astype(kind) for block in self._blocks]
        start = self._length
        self.grow(start + len(rows))
        self[start:] = rows

    def __getitem__(self, rows: slice | NDArray[np.integer]) -> NDArray[Any]:
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(self._length)
            blocks = range(start // BLOCK_ROWS, -(-stop // BLOCK_ROWS))
            pieces = [self._blocks[n][max(0, start - n * BLOCK_ROWS) : max(0, stop - n * BLOCK_ROWS)] for n in blocks]
            length = max(0, stop - start)
            out = self._room(length) if length > BLOCK_ROWS else np.empty((length, *self.row_shape), self.dtype)
            return np.concatenate([out[:0], *pieces], out=out)
        out = np.empty((len(rows), *self.row_shape), self.dtype)
        for block, mine, inside in self._split(rows):
            out[mine] = block[inside]
        return out

    def __setitem__(self, rows: slice | NDArray[np.integer], values: Any) -> None:
        index = np.arange(*rows.indices(self._length)) if isinstance(rows, slice) else rows
        given = np.broadcast_to(values, (len(index), *self.row_shape))
        for block, mine, inside in self._split(index):
            block[inside] = given[mine]

    def copy(self) -> NDArray[Any]:
        """All rows, as an array."""
        return self[:]

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[:], dtype)

    def find(self, values: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Where each of the values stands in a column that rises, or would; and whether it is there."""
        row = np.zeros(len(values), np.int64)
        if not self._length:
            return row, np.zeros(len(values), bool)
        first = [block[0] for block in self._blocks]
        home = np.maximum(np.searchsorted(first, values, side="right") - 1, 0)
        for n in np.unique(home):
            mine, start = home == n, n * BLOCK_ROWS
            row[mine] = start + np.searchsorted(self._blocks[n][: self._length - start], values[mine])
        there = row < self._length
        there[there] = self[row[there]] == values[there]
        return row, there

    def _split(
        self, rows: NDArray[np.integer]
    ) -> Iterator[tuple[NDArray[Any], NDArray[np.bool_], NDArray[np.integer]]]:
        """Each block that holds some of the rows: the block, which of them, and where they are in it."""
        home = rows // BLOCK_ROWS
        for n in np.unique(home):
            mine = home == n
            yield self._blocks[n], mine, rows[mine] - n * BLOCK_ROWS


Column = NDArray[Any] | Blocks
"""What can be written slice by slice."""
