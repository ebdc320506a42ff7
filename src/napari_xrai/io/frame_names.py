"""What the frames of a stream are called elsewhere, kept for those that were handed on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

UNKNOWN = -1
PREFIX = "names_"
POSITION = "position"


class FrameNames:
    """Numbers by position in the order of reception: ``trainId``, ``pulseId``, the ``index`` in a file, ….

    At most 20 bytes per frame that was handed on, where it has two names.
    """

    def __init__(self) -> None:
        self._parts: list[dict[str, NDArray[Any]]] = []

    def add(self, position: NDArray[np.int64], names: Mapping[str, NDArray[Any]]) -> None:
        """Take note of frames at rising positions (N,), each name (N,)."""
        if names and len(position):
            self._parts.append({POSITION: position, **{name: _small(values) for name, values in names.items()}})
        if len(self._parts) > 1000:
            self._joined()

    def of(self, position: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Each name of the frames at these positions (N,); −1 where it is not known."""
        known = self._joined()
        if not known:
            return {}
        row = np.minimum(np.searchsorted(known[POSITION], position), len(known[POSITION]) - 1)
        there = known[POSITION][row] == position
        return {name: np.where(there, values[row], UNKNOWN) for name, values in known.items() if name != POSITION}

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything, for `restore`."""
        return {PREFIX + name: values for name, values in self._joined().items()}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take up a `state`, among other arrays."""
        state = {name.removeprefix(PREFIX): a for name, a in arrays.items() if name.startswith(PREFIX)}
        self._parts = [state] if state else []

    def _joined(self) -> dict[str, NDArray[Any]]:
        if len(self._parts) > 1:
            kinds = {name: values.dtype for part in self._parts for name, values in part.items()}

            def column(part: dict[str, NDArray[Any]], name: str) -> NDArray[Any]:
                return part[name] if name in part else np.full(len(part[POSITION]), UNKNOWN, kinds[name])

            joined = {name: np.concatenate([column(part, name) for part in self._parts]) for name in kinds}
            self._parts = [joined]
        return self._parts[0] if self._parts else {}


def _small(values: NDArray[Any]) -> NDArray[Any]:
    """Pulses and cells are small numbers: 4 bytes do."""
    if values.dtype.kind in "iu" and (not len(values) or abs(int(values.max())) < 2**31):
        return values.astype(np.int32)
    return values.astype(np.int64) if values.dtype.kind in "iu" else values
