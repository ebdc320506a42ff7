"""Frames of a stream as the engine takes them: what came, when it was acquired, and what was lost on the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .frames import Detector, Frames


@dataclass(frozen=True, eq=False)
class Arrivals:
    """What has come since the last time.

    Parameters
    ----------
    frames : Frames
        Hits to be used; `index` is the position in the order of reception, from 0.
    acquired : (N,) float64
        When each was acquired, in seconds since the epoch.
    not_hit, dropped : (M,), (K,) int64
        Positions of received frames that are not given: no particle in them; lost for want of time, or unusable.
    blanks : Frames or None
        Those of `not_hit` that can tell of the background: the hit finder knows them from hits.
    detector : Detector or None
        That of these frames and all that follow, where it is another than before.
    """

    frames: Frames
    acquired: NDArray[np.float64]
    not_hit: NDArray[np.int64]
    dropped: NDArray[np.int64]
    detector: Detector | None = None
    blanks: Frames | None = None


class Inlet(Protocol):
    """Where the engine takes frames from while they arrive."""

    @property
    def ended(self) -> bool:
        """Whether no frame will come any more and none is waiting."""
        ...

    @property
    def waiting(self) -> int:
        """Frames received and not yet taken."""
        ...

    @property
    def silent_s(self) -> float | None:
        """Seconds since a frame came, taken or not; None while none has come, and once none will come any more."""
        ...

    def take(self, size: int, wait_s: float) -> Arrivals:
        """At most `size` frames, the oldest that wait; waits up to `wait_s` for the first."""
        ...
