"""What the frames of a stream are called elsewhere, kept for those that were handed on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.blocks import Blocks, Column

UNKNOWN = -1
PREFIX = "names_"
POSITION = "position"


class FrameNames:
    """Numbers by position in the order of reception: ``trainId``, ``pulseId``, the ``index`` in a file, ….

    At most 20 bytes per frame that was handed on, where it has two names.
    """

    def __init__(self) -> None:
        self._column: dict[str, Blocks] = {}

    def add(self, position: NDArray[np.int64], names: Mapping[str, NDArray[Any]]) -> None:
        """Take note of frames at rising positions (N,), each name (N,)."""
        if not names or not len(position):
            return
        before = len(self._column.get(POSITION, ()))
        for name, values in {POSITION: position, **{name: _small(values) for name, values in names.items()}}.items():
            column = self._column.setdefault(name, Blocks(values.dtype, UNKNOWN))
            column.grow(before)
            column.append(values)
        for column in self._column.values():
            column.grow(before + len(position))

    def of(self, position: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Each name of the frames at these positions (N,); −1 where it is not known."""
        if not self._column:
            return {}
        row, there = self._column[POSITION].find(position)
        row[~there] = 0
        names = {name: column for name, column in self._column.items() if name != POSITION}
        return {name: np.where(there, column[row], UNKNOWN) for name, column in names.items()}

    def state(self) -> dict[str, Blocks]:
        """Everything, for `restore`."""
        return {PREFIX + name: column for name, column in self._column.items()}

    def restore(self, arrays: Mapping[str, Column]) -> None:
        """Take up a `state`, among other arrays."""
        state = {name.removeprefix(PREFIX): np.asarray(a) for name, a in arrays.items() if name.startswith(PREFIX)}
        self._column = {name: Blocks.of(values, UNKNOWN) for name, values in state.items()}


def _small(values: NDArray[Any]) -> NDArray[Any]:
    """Pulses and cells are small numbers: 4 bytes do."""
    if values.dtype.kind in "iu" and (not len(values) or abs(int(values.max())) < 2**31):
        return values.astype(np.int32)
    return values.astype(np.int64) if values.dtype.kind in "iu" else values
