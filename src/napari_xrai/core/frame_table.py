"""What is known of every received frame: at most 34 bytes each, however many passes are made."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .frames import JUNK, NOT_HIT, USED, Counters, Poses
from .rotations import matrix_to_quaternion, quaternion_to_matrix

UNSEEN = 255

_COLUMNS: dict[str, tuple[tuple[int, ...], type, float]] = {
    "quaternion": ((4,), np.float32, 0),
    "fluence": ((), np.float32, 0),
    "log_likelihood": ((), np.float32, np.nan),
    "confidence": ((), np.float32, 0),
    "radius68": ((), np.float32, np.nan),
    "modes": ((), np.uint8, 0),
    "status": ((), np.uint8, UNSEEN),
}


class FrameTable:
    """Pose, fluence, log-likelihood, confidence, uncertainty and fate by source position; grows as frames arrive."""

    def __init__(self, capacity: int = 0) -> None:
        self.length = 0
        self.column: dict[str, NDArray[Any]] = {
            name: np.full((capacity, *shape), fill, kind) for name, (shape, kind, fill) in _COLUMNS.items()
        }

    def _reach(self, length: int) -> None:
        """Make room for positions below `length`, an eighth more than asked so that growing stays cheap."""
        capacity = len(self.column["status"])
        if length > capacity:
            more = max(length - capacity, capacity // 8)
            for name, (shape, kind, fill) in _COLUMNS.items():
                self.column[name] = np.concatenate([self.column[name], np.full((more, *shape), fill, kind)])
        self.length = max(self.length, length)

    def receive(self, index: NDArray[np.int64], empty: NDArray[np.bool_]) -> None:
        """Note that frames at source positions `index` have arrived; those `empty` of photons are no hits."""
        if len(index):
            self._reach(int(index.max()) + 1)
            self.column["status"][index] = np.where(empty, NOT_HIT, USED)

    def note(self, index: NDArray[np.int64], fate: int) -> None:
        """Note the fate of frames at source positions `index`."""
        if len(index):
            self._reach(int(index.max()) + 1)
            self.column["status"][index] = fate

    def rotation(self, index: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """(N, 3, 3) last pose of each frame, and whether it has one (the identity where not)."""
        if len(index):
            self._reach(int(index.max()) + 1)
        quaternion = self.column["quaternion"][index]
        known = np.asarray(quaternion.any(1))
        quaternion = np.where(known[:, None], quaternion, np.array([0, 0, 0, 1], np.float32))
        return quaternion_to_matrix(quaternion).astype(np.float32), known

    def put(
        self, index: NDArray[np.int64], rotation: NDArray[np.float32], fluence: NDArray[np.floating],
        log_likelihood: NDArray[np.floating], confidence: NDArray[np.floating],
    ) -> None:  # fmt: skip
        """Store what was found for the frames at `index`."""
        self._reach(int(index.max()) + 1)
        self.column["quaternion"][index] = matrix_to_quaternion(rotation)
        self.column["fluence"][index] = fluence
        self.column["log_likelihood"][index] = log_likelihood
        self.column["confidence"][index] = confidence

    def judge(self, index: NDArray[np.int64], junk: NDArray[np.bool_]) -> None:
        """Note which of the frames at `index` no pose explains; frames may be taken back."""
        self.column["status"][index] = np.where(junk, JUNK, USED)

    def put_modes(self, index: NDArray[np.int64], modes: NDArray[np.uint8]) -> None:
        """Store how many modes the posteriors of the frames at `index` have."""
        self.column["modes"][index] = modes

    def put_radius(self, index: NDArray[np.int64], radius_deg: NDArray[np.floating]) -> None:
        """Store the 68 % radius of the poses of the frames at `index`."""
        self.column["radius68"][index] = radius_deg

    def directions(self, group: NDArray[np.float64]) -> NDArray[np.float64]:
        """(M, 3) viewing directions, in the particle's frame, of all frames that have a pose, and those that the
        particle's point group (n, 3, 3) makes equal.
        """
        quaternion = self.column["quaternion"][: self.length]
        direction = quaternion_to_matrix(quaternion[quaternion.any(1)])[..., 2]
        return np.asarray(np.einsum("gij,nj->gni", group, direction).reshape(-1, 3))

    def adopt(self, received: FrameTable) -> None:
        """Take the fates, and the length, of frames that `received` knows."""
        self._reach(received.length)
        self.column["status"][: received.length] = received.status

    @classmethod
    def of(cls, column: dict[str, NDArray[Any]]) -> FrameTable:
        """The table with these columns."""
        table = cls(len(column["status"]))
        table.column.update(column)
        table.length = len(column["status"])
        return table

    @property
    def status(self) -> NDArray[np.uint8]:
        """(length,) fate by source position."""
        return self.column["status"][: self.length]

    def counters(self) -> Counters:
        """Frames by fate."""
        count = np.bincount(self.status, minlength=UNSEEN + 1)
        return Counters(int(count[:UNSEEN].sum()), dropped=int(count[3]), not_hit=int(count[2]), junk=int(count[1]),
                        used=int(count[0]))  # fmt: skip

    def poses(self, at_most: int | None) -> Poses:
        """Poses of the frames that have one: all of them, or an even sample."""
        frame = np.flatnonzero(self.column["quaternion"][: self.length].any(1))
        if at_most is not None and len(frame) > at_most:
            frame = frame[np.linspace(0, len(frame) - 1, at_most).astype(np.int64)]
        return Poses(frame=frame, **{k: v[frame] for k, v in self.column.items() if k != "status"})
