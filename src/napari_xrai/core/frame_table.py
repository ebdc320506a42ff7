"""What is known of every received frame: one byte, and 41 more where it has a pose, however many passes are made."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .frames import JUNK, NOT_HIT, STATUS_NAMES, USED, Counters, Poses
from .rotations import matrix_to_quaternion, quaternion_to_matrix
from .workers import chunks

UNSEEN = 255
FRAMES_AT_A_TIME = 1000

_COLUMNS: dict[str, tuple[tuple[int, ...], type, float]] = {
    "position": ((), np.int64, 0),
    "quaternion": ((4,), np.float32, 0),
    "fluence": ((), np.float32, 0),
    "log_likelihood": ((), np.float32, np.nan),
    "confidence": ((), np.float32, 0),
    "radius68": ((), np.float32, np.nan),
    "modes": ((), np.uint8, 0),
}


class FrameTable:
    """Pose, fluence, log-likelihood, confidence, uncertainty and fate by source position; grows as frames arrive.

    Every frame has a fate; those that were inferred have a row, too. Of a fast stream most frames may be dropped.

    Attributes
    ----------
    length : int
        Positions known.
    """

    def __init__(self, capacity: int = 0) -> None:
        self.length = self._rows = 0
        self._fate = np.full(capacity, UNSEEN, np.uint8)
        self._column: dict[str, NDArray[Any]] = {
            name: np.full((capacity, *shape), fill, kind) for name, (shape, kind, fill) in _COLUMNS.items()
        }

    @property
    def column(self) -> dict[str, NDArray[Any]]:
        """By row: ``position``, ascending, and what was found."""
        return {name: column[: self._rows] for name, column in self._column.items()}

    def _reach(self, index: NDArray[np.int64]) -> None:
        """Make room for the fates of frames at `index`."""
        if len(index):
            length = int(index.max()) + 1
            self._fate = _with_room(self._fate, length, UNSEEN)
            self.length = max(self.length, length)

    def _find(self, index: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Rows of frames at `index`, and whether they have one."""
        position = self.column["position"]
        row = np.searchsorted(position, index)
        known = row < self._rows
        known[known] = position[row[known]] == index[known]
        return row, known

    def _rows_of(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of frames at `index`, made where there are none: mostly at the end, for frames come in order."""
        self._reach(index)
        row, known = self._find(index)
        if known.all():
            return row
        new, start = np.sort(index[~known]), self._rows
        behind = not start or new[0] > self._column["position"][start - 1]
        for name, (shape, kind, fill) in _COLUMNS.items():
            self._column[name] = _with_room(self._column[name], start + len(new), fill)
            self._column[name][start : start + len(new)] = np.full((len(new), *shape), fill, kind)
        self._column["position"][start : start + len(new)] = new
        self._rows += len(new)
        if not behind:
            order = np.argsort(self.column["position"])
            for name, column in self.column.items():
                self._column[name][: self._rows] = column[order]
        return self._find(index)[0]

    def receive(self, index: NDArray[np.int64], empty: NDArray[np.bool_]) -> None:
        """Note that frames at source positions `index` have arrived; those `empty` of photons are no hits."""
        self._reach(index)
        self._fate[index] = np.where(empty, NOT_HIT, USED)

    def note(self, index: NDArray[np.int64], fate: int) -> None:
        """Note the fate of frames at source positions `index`."""
        self._reach(index)
        self._fate[index] = fate

    def rotation(self, index: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """(N, 3, 3) last pose of each frame, and whether it has one (the identity where not)."""
        row, known = self._find(index)
        quaternion = np.tile(np.array([0, 0, 0, 1], np.float32), (len(index), 1))
        quaternion[known] = self._column["quaternion"][row[known]]
        return quaternion_to_matrix(quaternion).astype(np.float32), known

    def put(
        self, index: NDArray[np.int64], rotation: NDArray[np.float32], fluence: NDArray[np.floating],
        log_likelihood: NDArray[np.floating], confidence: NDArray[np.floating],
    ) -> None:  # fmt: skip
        """Store what was found for the frames at `index`."""
        row = self._rows_of(index)
        self._column["quaternion"][row] = matrix_to_quaternion(rotation)
        self._column["fluence"][row] = fluence
        self._column["log_likelihood"][row] = log_likelihood
        self._column["confidence"][row] = confidence

    def judge(self, index: NDArray[np.int64], junk: NDArray[np.bool_]) -> None:
        """Note which of the frames at `index` no pose explains; frames may be taken back."""
        self._fate[index] = np.where(junk, JUNK, USED)

    def put_modes(self, index: NDArray[np.int64], modes: NDArray[np.uint8]) -> None:
        """Store how many modes the posteriors of the frames at `index` have, which have poses."""
        self._column["modes"][self._find(index)[0]] = modes

    def put_radius(self, index: NDArray[np.int64], radius_deg: NDArray[np.floating]) -> None:
        """Store the 68 % radius of the poses of the frames at `index`."""
        self._column["radius68"][self._find(index)[0]] = radius_deg

    def directions(self, group: NDArray[np.float64]) -> Iterator[NDArray[np.float64]]:
        """Viewing directions (M, 3), in the particle's frame, of all frames that have a pose, and those that the
        particle's point group (n, 3, 3) makes equal; part by part, for they take more room than the table.
        """
        quaternion = self.column["quaternion"]
        for part in chunks(len(quaternion), FRAMES_AT_A_TIME):
            direction = quaternion_to_matrix(quaternion[part])[..., 2]
            yield np.einsum("gij,nj->gni", group, direction).reshape(-1, 3)

    def adopt(self, received: FrameTable) -> None:
        """Take the fates of frames that `received` knows."""
        self._fate, self.length = received.status.copy(), received.length

    @classmethod
    def of(cls, status: NDArray[np.uint8], column: dict[str, NDArray[Any]]) -> FrameTable:
        """The table with these fates and columns."""
        table = cls()
        table._fate, table._column = status, column
        table.length, table._rows = len(status), len(column["position"])
        return table

    @property
    def status(self) -> NDArray[np.uint8]:
        """(length,) fate by source position."""
        return self._fate[: self.length]

    def counters(self) -> Counters:
        """Frames by fate."""
        count = {name: int(np.count_nonzero(self.status == fate)) for fate, name in STATUS_NAMES.items()}
        return Counters(received=sum(count.values()), **count)

    def poses(self, at_most: int | None) -> Poses:
        """Poses of the frames that have one: all of them, or an even sample."""
        row = np.arange(self._rows)
        if at_most is not None and len(row) > at_most:
            row = np.linspace(0, len(row) - 1, at_most).astype(np.int64)
        found = {name: column[row] for name, column in self.column.items()}
        return Poses(frame=found.pop("position"), **found)


def _with_room(column: NDArray[Any], length: int, fill: float) -> NDArray[Any]:
    """The column, longer where need be: an eighth more than it was, so that growing stays cheap."""
    more = max(length - len(column), len(column) // 8)
    if length <= len(column):
        return column
    return np.concatenate([column, np.full((more, *column.shape[1:]), fill, column.dtype)])
