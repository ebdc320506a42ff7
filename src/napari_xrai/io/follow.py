"""Files that grow, and folders that fill, while they are read."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from ..core.frames import Detector, Frames
from .batched import BatchedSource
from .source import InputError
from .stream import Batch

READ_AT_ONCE = 200
LOOK_EVERY_S = 0.2
SETTLED_S = 2.0
"""A file that did not change for so long is finished; frames at a file's end that stay empty so long are empty."""
MOST_BEHIND_S, LEAST_BEHIND_S = 60.0, 5.0
"""Frames that were in the file for so long and are still unread are dropped: at first the longer time, which the starts
may take; it falls by half a second per second from when it has passed, so that a run that cannot keep up stays near."""
FIRST_ERROR_S, LAST_ERROR_S = 0.5, 5.0


class GrowingFile:
    """A `Stream` of the frames that another process appends to a file.

    Each look opens the file anew: nothing of what was seen before is believed. HDF5 written under SWMR shows a frame's
    place before its photons, so empty frames at the end are looked at again before they are taken for empty.

    Parameters
    ----------
    source : BatchedSource
        The file as it is now.
    length : callable
        Frames in the file as it is when called.
    start : int
        First frame to give.
    """

    def __init__(self, source: BatchedSource, length: Callable[[], int], start: int = 0) -> None:
        self.faults: Counter[str] = Counter()
        self.max_age_s: float | None = None
        self.ended = False
        self._source, self._length = source, length
        self._next = start
        self._visible = 0
        self._seen_at: deque[tuple[int, float]] = deque()
        self._empty_since: float | None = None
        self._look_again = 0.0
        self._pause_s = FIRST_ERROR_S
        self._began = time.monotonic()

    def next_batch(self, wait_s: float) -> Batch | None:
        """The next frames that are in the file."""
        now = time.monotonic()
        if self._next >= self._visible or now >= self._look_again:
            if now < self._look_again:
                time.sleep(min(wait_s, self._look_again - now))
                return None
            try:
                self._look()
                self._pause_s = FIRST_ERROR_S
            except InputError as error:
                self._stumble(error)
                return None
        lost = self._too_old() - self._next
        if lost > 0:
            self._next += lost
            return Batch(None, time.time(), lost)
        return self._read() if self._next < self._visible else None

    def notice(self) -> None:
        """See how far the file has grown."""
        if time.monotonic() >= self._look_again:
            try:
                self._look()
            except InputError as error:
                self._stumble(error)

    def _too_old(self) -> int:
        """Frames that the file has shown for too long: all those of a position below this."""
        later = time.monotonic() - self._began - MOST_BEHIND_S
        limit = time.time() - max(LEAST_BEHIND_S, MOST_BEHIND_S - max(0.0, later) / 2)
        return max((length for length, seen in self._seen_at if seen < limit), default=0)

    def _look(self) -> None:
        self._look_again = time.monotonic() + LOOK_EVERY_S
        length = self._length()
        if length < self._visible:
            self.faults["the file became shorter"] += 1
            self._next = min(self._next, length)
            self._seen_at.clear()
        elif length > self._visible:
            self._seen_at.append((length, time.time()))
            self._empty_since = None
        self._visible = length

    def _read(self) -> Batch | None:
        size = min(READ_AT_ONCE, self._visible - self._next)
        self._source.n_frames = self._visible
        try:
            frames = next(self._source.batches(size, self._next))
        except InputError as error:
            return self._read_one_by_one(error, size)
        frames = self._written(frames)
        if not len(frames):
            self._look_again = time.monotonic() + LOOK_EVERY_S
            time.sleep(LOOK_EVERY_S / 2)
            return None
        self._pause_s = FIRST_ERROR_S
        return self._taken(frames)

    def _written(self, frames: Frames) -> Frames:
        """Without the empty frames at the file's very end, unless they have been there for a while."""
        if self._next + len(frames) < self._visible or not len(frames):
            return frames
        lit = np.flatnonzero(np.diff(frames.start))
        full = int(lit[-1]) + 1 if len(lit) else 0
        if full == len(frames):
            self._empty_since = None
            return frames
        self._empty_since = self._empty_since or time.monotonic()
        return frames if time.monotonic() - self._empty_since > SETTLED_S else frames.take(slice(0, full))

    def _read_one_by_one(self, error: InputError, size: int) -> Batch | None:
        """After a failure: if it lasts, the frame that cannot be read is left out."""
        self._stumble(error)
        if self._pause_s < LAST_ERROR_S:
            return None
        try:
            frames = next(self._source.batches(1, self._next))
        except InputError:
            self._next += 1
            self.faults["frames that cannot be read"] += 1
            return Batch(None, time.time(), 1)
        return self._taken(frames)

    def _taken(self, frames: Frames) -> Batch:
        index = self._next + np.arange(len(frames))
        self._next += len(frames)
        return Batch(frames, self._time_of(self._next - 1), names={"index": index})

    def _stumble(self, error: InputError) -> None:
        self.faults[str(error)] += 1
        self._look_again = time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, LAST_ERROR_S)

    def _time_of(self, position: int) -> float:
        """When the file first showed this frame."""
        while len(self._seen_at) > 1 and self._seen_at[0][0] <= position:
            self._seen_at.popleft()
        return self._seen_at[0][1] if self._seen_at else time.time()

    def close(self) -> None:
        """Nothing stays open."""


class FillingFolder:
    """A `Stream` of the frames in the files of a folder, each once it is finished, in order of their names.

    Parameters
    ----------
    folder : Path
    open_file : callable
        Gives a file's frames, or raises InputError: another detector, another experiment, no frames.
    is_frames : callable
        Whether a file can be one of frames.
    detector : Detector or None
        What is known before the first file is read; a file whose own is another one is given with it.
    skip : int
        Frames to leave out, that were seen before.

    Attributes
    ----------
    paths : list of Path
        Files read so far; frames are named by their ``file`` in it and their ``index`` in that.
    """

    def __init__(
        self, folder: Path, open_file: Callable[[Path], BatchedSource], is_frames: Callable[[Path], bool],
        detector: Detector | None, skip: int = 0,
    ) -> None:  # fmt: skip
        self.faults: Counter[str] = Counter()
        self.max_age_s: float | None = None
        self.ended = False
        self._folder, self._open, self._is_frames, self._skip = folder, open_file, is_frames, skip
        self._before: dict[Path, tuple[int, int, float]] = {}
        self._done: set[Path] = set()
        self._batches: Iterator[Frames] = iter(())
        self._finished_at = time.time()
        self.paths: list[Path] = []
        self._detector, self._new_detector = detector, detector
        self._index = 0

    def next_batch(self, wait_s: float) -> Batch | None:
        """The next frames of the file being read, or of the next one that is finished."""
        try:
            frames = next(self._batches, None)
        except InputError as error:
            self._give_up(error)
            return None
        if frames is not None:
            return self._batch(frames)
        path = self._next_finished()
        if path is None:
            time.sleep(wait_s)
            return None
        self._done.add(path)
        self._finished_at = path.stat().st_mtime
        try:
            source = self._open(path)
        except InputError as error:
            self._give_up(error)
            return None
        self._batches, self._index = iter(source.batches(READ_AT_ONCE)), 0
        self.paths.append(path)
        self._new_detector = source.detector
        return None

    def _batch(self, frames: Frames) -> Batch | None:
        n = len(frames)
        frames = frames.take(slice(min(self._skip, n), None))
        self._skip -= n - len(frames)
        self._index += n
        if not len(frames):
            return None
        names = {"file": np.full(len(frames), len(self.paths) - 1), "index": self._index + np.arange(-len(frames), 0)}
        detector = None
        if self._new_detector is not None and not are_alike(self._detector, self._new_detector):
            self._detector = detector = self._new_detector
        return Batch(frames, self._finished_at, detector=detector, names=names)

    def _give_up(self, error: InputError) -> None:
        self._batches = iter(())
        self.faults[str(error)] += 1

    def _next_finished(self) -> Path | None:
        from .folder import in_order

        now = time.monotonic()
        for path in in_order(p for p in self._folder.iterdir() if not p.name.startswith(".") and p not in self._done):
            try:
                state = path.stat()
            except FileNotFoundError:
                continue
            size, modified, since = self._before.get(path, (-1, -1, now))
            if (size, modified) != (state.st_size, state.st_mtime_ns):
                since = now
            self._before[path] = (state.st_size, state.st_mtime_ns, since)
            old = time.time() - state.st_mtime > SETTLED_S
            if state.st_size and path.is_file() and (now - since > SETTLED_S or (old and size == -1)):
                del self._before[path]
                if self._is_frames(path):
                    return path
                self._done.add(path)
        return None

    def notice(self) -> None:
        """Files wait in their folder."""

    def close(self) -> None:
        """Close the file being read."""
        self._batches = iter(())


def are_alike(one: Detector | None, other: Detector) -> bool:
    """Whether two detectors see the same, pixel by pixel."""
    return one is not None and all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in ("q", "mask", "response")
    )
