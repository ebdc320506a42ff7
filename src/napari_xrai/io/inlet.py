"""Between a stream and the engine: a reader thread, a bounded queue that drops the oldest, and the hit finder.

Every frame that comes gets the next position, whatever becomes of it: received = dropped + not hit + junk + used.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..core.arrivals import Arrivals
from ..core.frames import BAD, Detector, Frames
from ..core.hits import HitFinder
from .frame_names import FrameNames
from .source import InputError
from .stream import Batch, Stream

POLL_S = 0.1
MOST_ENTRIES = 8_000_000
"""Lit pixels that may wait: 64 MB."""
MOST_WAITING = 50_000
"""Frames."""
FEW_WAITING = 2000
"""Of frames that can as well wait on disk."""
UNBELIEVABLE_S = 3600.0
"""A frame acquired so long ago, or in the future, was taken by another clock: its arrival counts."""
FEWEST_JUDGED_S = 3.0
"""The first frames wait so long until there are enough to tell hits from blanks."""


@dataclass(eq=False)
class _Waiting:
    """Frames in the queue: with positions and lit pixels, and when they came by either clock."""

    frames: Frames
    lit: NDArray[np.int64]
    acquired: float
    detector: Detector | None
    names: dict[str, NDArray[Any]]
    came: float = field(default_factory=time.monotonic)

    def take(self, n: int) -> _Waiting:
        """Split the first `n` frames off."""
        rest = slice(n, None)
        first = replace(
            self, frames=self.frames.take(slice(0, n)), lit=self.lit[:n],
            names={name: values[:n] for name, values in self.names.items()},
        )  # fmt: skip
        self.frames, self.lit, self.detector = self.frames.take(rest), self.lit[rest], None
        self.names = {name: values[rest] for name, values in self.names.items()}
        return first


class StreamInlet:
    """Receives a stream in a thread of its own and hands it out; a context manager.

    Parameters
    ----------
    stream : Stream
    detector : Detector
        Its good pixels are those that may be lit.
    names : FrameNames or None
        Where to note what frames are called elsewhere.
    start : int
        Position of the first frame to come.
    most_frames : int or None
        Positions end here.
    idle_timeout_s : float
        Without a frame for so long, the stream has ended.
    find_hits : bool
        Tell hits from blanks by lit pixels; otherwise every frame with a photon is a hit.
    """

    def __init__(
        self, stream: Stream, detector: Detector, names: FrameNames | None = None, *, start: int = 0,
        most_frames: int | None = None, idle_timeout_s: float = 60.0, find_hits: bool = True,
    ) -> None:  # fmt: skip
        self.stream, self.idle_timeout_s = stream, idle_timeout_s
        self.received = self._start = start
        self.most_frames = np.inf if most_frames is None else most_frames
        self.finder = HitFinder() if find_hits else None
        self.error: InputError | None = None
        self.names = names or FrameNames()
        self._usable = detector.mask < BAD
        self._pending: Detector | None = None
        self._queue: deque[_Waiting] = deque()
        self._entries = self._waiting = 0
        self._dropped: list[NDArray[np.int64]] = []
        self._change = threading.Condition()
        self._over = False
        self._asked_at: float | None = None
        self._came_at: float | None = None
        self._stopping = threading.Event()
        self._began = time.monotonic()
        self._thread = threading.Thread(target=self._receive, name="xrai-inlet", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        with self._change:
            self._change.notify_all()
        self._thread.join(10.0)
        self.stream.close()

    # ---- the engine's side

    @property
    def ended(self) -> bool:
        """Whether no frame will come any more and none is waiting.

        Raises
        ------
        InputError
            If the stream broke in a way that waiting does not mend, or nothing but faults came.
        """
        with self._change:
            over = self._over and not self._queue and not self._dropped
        if over and self.error is not None:
            raise self.error
        if over and self.received == self._start and self.stream.faults and not self._stopping.is_set():
            raise InputError(next(iter(self.stream.faults)))
        return over

    @property
    def waiting(self) -> int:
        """Frames received and not yet taken."""
        return self._waiting

    @property
    def silent_s(self) -> float | None:
        """Seconds since a frame came, taken or not; None while none has come, and once none will come any more."""
        return None if self._came_at is None or self._over else time.monotonic() - self._came_at

    def take(self, size: int, wait_s: float) -> Arrivals:
        """At most `size` frames, the oldest that wait; waits up to `wait_s` for the first."""
        with self._change:
            if size and self._asked_at is None:
                self._asked_at = time.monotonic()
            if size and not self._queue and wait_s and not self._over:
                self._change.wait(wait_s)
            self._drop_the_old()
            taken: list[_Waiting] = []
            while self._queue and size > 0 and self._can_judge():
                first = self._queue[0]
                if taken and first.detector is not None:
                    break
                part = self._queue.popleft() if len(first.frames) <= size else first.take(size)
                self._count(part, -1)
                size -= len(part.frames)
                taken.append(part)
            dropped, self._dropped = self._dropped, []
            detector = None
            if taken:
                detector, self._pending = taken[0].detector or self._pending, None
            self._change.notify_all()
        return self._judged(taken, dropped, detector)

    def _can_judge(self) -> bool:
        waited = time.monotonic() - self._began > FEWEST_JUDGED_S
        return self.finder is None or self.finder.sure or self._over or waited

    def _judged(
        self, taken: list[_Waiting], dropped: list[NDArray[np.int64]], detector: Detector | None
    ) -> Arrivals:  # fmt: skip
        frames = Frames.concatenate([part.frames for part in taken]) if taken else _none(len(self._usable))
        acquired = np.concatenate([np.full(len(p.frames), p.acquired) for p in taken]) if taken else np.zeros(0)
        hit = np.ones(len(frames), bool)
        if taken and self.finder is not None:
            hit = self.finder.hits(np.concatenate([part.lit for part in taken]))
        if taken:
            names = {name: np.concatenate([part.names[name] for part in taken]) for name in _common(taken)}
            self.names.add(frames.index[hit], {name: values[hit] for name, values in names.items()})
        return Arrivals(
            frames.take(hit), acquired[hit], frames.index[~hit],
            np.concatenate(dropped) if dropped else np.zeros(0, np.int64), detector,
            frames.take(~hit) if self.finder is not None and self.finder.threshold > 1 else None,
        )  # fmt: skip

    # ---- the stream's side

    def _receive(self) -> None:
        last = time.monotonic()
        try:
            while not self._stopping.is_set() and not self.stream.ended and self.received < self.most_frames:
                if self.stream.max_age_s is None and self._is_full():
                    self.stream.notice()
                    self._stopping.wait(POLL_S)
                    last = self._came_at = time.monotonic()  # more may be there: nobody looks while there is no room
                    continue
                batch = self.stream.next_batch(POLL_S)
                if batch is not None:
                    last = time.monotonic()
                    self._put(batch)
                elif time.monotonic() - last > self.idle_timeout_s:
                    break
        except InputError as error:
            self.error = error
        finally:
            with self._change:
                self._over = True
                self._change.notify_all()

    def _put(self, batch: Batch) -> None:
        frames = batch.frames
        if batch.detector is not None:
            self._usable = batch.detector.mask < BAD
        with self._change:
            if frames is not None and len(frames):
                frames = frames.take(slice(0, int(min(len(frames), self.most_frames - self.received))))
                self._queue_up(self._placed(frames), batch)
            lost = int(min(batch.lost, self.most_frames - self.received))
            if lost:
                self._dropped.append(np.arange(self.received, self.received + lost, dtype=np.int64))
                self.received += lost
            if lost or (frames is not None and len(frames)):
                self._came_at = time.monotonic()
            self._drop_the_old()
            self._change.notify_all()

    def _placed(self, frames: Frames) -> Frames:
        """With the positions that are next."""
        index = np.arange(self.received, self.received + len(frames), dtype=np.int64)
        self.received += len(frames)
        return Frames(frames.start, frames.pixel, frames.count, index, frames.n_pixels)

    def _queue_up(self, frames: Frames, batch: Batch) -> None:
        now, acquired = time.time(), batch.acquired
        if not now - UNBELIEVABLE_S < acquired < now + 1:
            acquired = now
        good = np.concatenate([[0], np.cumsum(self._usable[frames.pixel])])
        lit = good[frames.start[1:]] - good[frames.start[:-1]]
        if self.finder is not None:
            self.finder.learn(lit)
        names = {name: values[: len(frames)] for name, values in batch.names.items()}
        part = _Waiting(frames, lit, min(acquired, now), batch.detector, names)
        self._queue.append(part)
        self._count(part, 1)

    def _count(self, part: _Waiting, sign: int) -> None:
        self._waiting += sign * len(part.frames)
        self._entries += sign * len(part.frames.pixel)

    def _is_full(self) -> bool:
        most = FEW_WAITING if self.stream.max_age_s is None else MOST_WAITING
        return self._entries >= MOST_ENTRIES or self._waiting >= most

    def _drop_the_old(self) -> None:
        age, asked_at = self.stream.max_age_s, self._asked_at
        while self._queue:
            too_old = False
            if age is not None and asked_at is not None:  # until the engine is ready they wait for it
                too_old = time.monotonic() - max(asked_at, self._queue[0].came) > age
            if not (too_old or (age is not None and self._is_full())):
                return
            gone = self._queue.popleft()
            self._pending = gone.detector or self._pending
            self._count(gone, -1)
            self._dropped.append(gone.frames.index)


def _common(parts: list[_Waiting]) -> set[str]:
    """Names that all of them have."""
    return set.intersection(*(set(part.names) for part in parts))


def _none(n_pixels: int) -> Frames:
    none = np.zeros(0, np.int32)
    return Frames(np.zeros(1, np.int64), none, none, np.zeros(0, np.int64), n_pixels)
