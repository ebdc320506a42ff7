"""What is known of every received frame: one byte, and 41 more where it has a pose, however many passes are made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from .blocks import BLOCK_ROWS, Blocks, Column
from .frames import JUNK, NOT_HIT, STATUS_NAMES, USED, Counters, Poses
from .rotations import matrix_to_quaternion, quaternion_to_matrix
from .workers import chunks

UNSEEN = 255
FRAMES_AT_A_TIME = 1000
FRAME = "frame_"

_COLUMNS: dict[str, tuple[type, float, tuple[int, ...]]] = {
    "position": (np.int64, 0, ()),
    "quaternion": (np.float32, 0, (4,)),
    "fluence": (np.float32, 0, ()),
    "log_likelihood": (np.float32, np.nan, ()),
    "confidence": (np.float32, 0, ()),
    "radius68": (np.float32, np.nan, ()),
    "modes": (np.uint8, 0, ()),
}


class FrameTable:
    """Pose, fluence, log-likelihood, confidence, uncertainty and fate by source position; grows as frames arrive.

    Every frame has a fate; those that were inferred have a row, too. Of a fast stream most frames may be dropped.

    Attributes
    ----------
    fate : Blocks
        By source position.
    column : dict of str to Blocks
        By row: ``position``, ascending, and what was found.
    """

    def __init__(self) -> None:
        self.fate = Blocks(np.uint8, UNSEEN)
        self.column = {name: Blocks(*column) for name, column in _COLUMNS.items()}

    @property
    def length(self) -> int:
        """Positions known."""
        return len(self.fate)

    def _reach(self, index: NDArray[np.int64]) -> None:
        """Make room for the fates of frames at `index`."""
        if len(index):
            self.fate.grow(int(index.max()) + 1)

    def _find(self, index: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Rows of frames at `index`, and whether they have one."""
        return self.column["position"].find(index)

    def _rows_of(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of frames at `index`, made where there are none."""
        self._reach(index)
        row, known = self._find(index)
        if known.all():
            return row
        self._insert(np.sort(index[~known]))
        return self._find(index)[0]

    def _insert(self, new: NDArray[np.int64]) -> None:
        """Make rows for frames at these rising positions: mostly at the end, for frames come in order."""
        start = int(self._find(new[:1])[0][0])
        behind = {name: column[start:] for name, column in self.column.items()}
        order = np.argsort(np.concatenate([behind["position"], new]))
        for name, column in self.column.items():
            rows = new if name == "position" else np.full((len(new), *column.row_shape), column.fill, column.dtype)
            column.grow(len(column) + len(new))
            column[start:] = np.concatenate([behind[name], rows])[order]

    def receive(self, index: NDArray[np.int64], empty: NDArray[np.bool_]) -> None:
        """Note that frames at source positions `index` have arrived; those `empty` of photons are no hits."""
        self._reach(index)
        self.fate[index] = np.where(empty, NOT_HIT, USED)

    def note(self, index: NDArray[np.int64], fate: int) -> None:
        """Note the fate of frames at source positions `index`."""
        self._reach(index)
        self.fate[index] = fate

    def rotation(self, index: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """(N, 3, 3) last pose of each frame, and whether it has one (the identity where not)."""
        row, known = self._find(index)
        quaternion = np.tile(np.array([0, 0, 0, 1], np.float32), (len(index), 1))
        quaternion[known] = self.column["quaternion"][row[known]]
        return quaternion_to_matrix(quaternion).astype(np.float32), known

    def put(
        self, index: NDArray[np.int64], rotation: NDArray[np.float32], fluence: NDArray[np.floating],
        log_likelihood: NDArray[np.floating], confidence: NDArray[np.floating],
    ) -> None:  # fmt: skip
        """Store what was found for the frames at `index`."""
        row = self._rows_of(index)
        self.column["quaternion"][row] = matrix_to_quaternion(rotation)
        self.column["fluence"][row] = fluence
        self.column["log_likelihood"][row] = log_likelihood
        self.column["confidence"][row] = confidence

    def judge(self, index: NDArray[np.int64], junk: NDArray[np.bool_]) -> None:
        """Note which of the frames at `index` no pose explains; frames may be taken back."""
        self.fate[index] = np.where(junk, JUNK, USED)

    def put_modes(self, index: NDArray[np.int64], modes: NDArray[np.uint8]) -> None:
        """Store how many modes the posteriors of the frames at `index` have, which have poses."""
        self.column["modes"][self._find(index)[0]] = modes

    def put_radius(self, index: NDArray[np.int64], radius_deg: NDArray[np.floating]) -> None:
        """Store the 68 % radius of the poses of the frames at `index`."""
        self.column["radius68"][self._find(index)[0]] = radius_deg

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
        self.fate = Blocks.of(received.fate.copy(), UNSEEN)

    def state(self) -> dict[str, Column]:
        """Everything, for `of`: the columns themselves."""
        return {"status": self.fate, **{FRAME + name: column for name, column in self.column.items()}}

    @classmethod
    def of(cls, arrays: Mapping[str, Column]) -> FrameTable:
        """The table with this `state`, among other arrays; older ones lack some columns."""
        table = cls()
        table.fate.append(arrays["status"].copy())
        for name, column in table.column.items():
            column.grow(len(arrays[FRAME + "position"]))
            if FRAME + name in arrays:
                column[:] = arrays[FRAME + name].copy()
        return table

    @property
    def status(self) -> NDArray[np.uint8]:
        """(length,) fate by source position: a copy."""
        return self.fate.copy()

    def counters(self) -> Counters:
        """Frames by fate."""
        count = dict.fromkeys(STATUS_NAMES.values(), 0)
        for part in chunks(self.length, BLOCK_ROWS):
            status = self.fate[part]
            for fate, name in STATUS_NAMES.items():
                count[name] += int(np.count_nonzero(status == fate))
        return Counters(received=sum(count.values()), **count)

    def pose_columns(self) -> dict[str, Blocks]:
        """All poses, by the names of `Poses`, as they are until something is put: nothing is copied."""
        return {"frame" if name == "position" else name: column for name, column in self.column.items()}

    def poses(self, at_most: int | None) -> Poses:
        """Poses of the frames that have one: all of them, or an even sample."""
        n = len(self.column["position"])
        row = slice(None) if at_most is None or n <= at_most else np.linspace(0, n - 1, at_most).astype(np.int64)
        return Poses(**{name: column[row] for name, column in self.pose_columns().items()})
