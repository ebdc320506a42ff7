"""A file played back at a chosen rate, as if it were arriving now: for rehearsals, and labelled so."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator

from ..core.frames import Frames
from .source import FrameSource
from .stream import Batch

BATCHES_PER_S = 10.0
MAX_AGE_S = 1.5


class Replay:
    """A `Stream` of a file's frames, `rate_hz` of them per second, in file order.

    Parameters
    ----------
    source : FrameSource
    rate_hz : float
    start : int
        First frame.
    """

    def __init__(self, source: FrameSource, rate_hz: float, start: int = 0) -> None:
        self.faults: Counter[str] = Counter()
        self.max_age_s: float | None = MAX_AGE_S
        self.ended = False
        self._size = max(1, min(1000, round(rate_hz / BATCHES_PER_S)))
        self._period_s = self._size / rate_hz
        self._batches: Iterator[Frames] = source.batches(self._size, start)
        self._due: float | None = None

    def next_batch(self, wait_s: float) -> Batch | None:
        """The next frames, once they are due."""
        now = time.monotonic()
        self._due = now + self._period_s if self._due is None else self._due
        time.sleep(min(wait_s, max(0.0, self._due - now)))
        if time.monotonic() < self._due:
            return None
        frames = next(self._batches, None)
        if frames is None:
            self.ended = True
            return None
        self._due += self._period_s
        return Batch(frames, time.time())

    def notice(self) -> None:
        """Nothing comes before it is due."""

    def close(self) -> None:
        """Nothing is held open between batches but the file, which goes with this object."""
        self._batches = iter(())
