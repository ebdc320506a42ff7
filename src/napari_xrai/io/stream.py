"""What every stream gives: frames as they come, and what went wrong on the way."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Protocol

from numpy.typing import NDArray

from ..core.frames import Detector, Frames


@dataclass(frozen=True, eq=False)
class Batch:
    """Frames that came together.

    Parameters
    ----------
    frames : Frames or None
        In the order in which they came; their `index` means nothing yet. None where all were lost.
    acquired : float
        When, in seconds since the epoch.
    lost : int
        Frames that came but cannot be used: of a wrong shape, seen before, unreadable.
    detector : Detector or None
        That of these frames and all that follow, where it is another than before.
    names : dict of str to (N,) array
        What the frames are called elsewhere: ``trainId``, ``index`` in their file, ….
    """

    frames: Frames | None
    acquired: float
    lost: int = 0
    detector: Detector | None = None
    names: dict[str, NDArray[Any]] = field(default_factory=dict)


class Stream(Protocol):
    """Frames that arrive.

    Attributes
    ----------
    faults : Counter of str
        What went wrong so far, in words, and how often; the stream goes on.
    max_age_s : float or None
        Frames that waited longer are dropped. None: they wait where they are, on disk, and the stream says how long.
    ended : bool
        Whether the end was told: nothing will come any more.
    """

    faults: Counter[str]
    max_age_s: float | None
    ended: bool

    def next_batch(self, wait_s: float) -> Batch | None:
        """What came next, or None after waiting for `wait_s`."""
        ...

    def notice(self) -> None:
        """Look what is there without taking it, while nobody has room for it."""
        ...

    def close(self) -> None:
        """Let go of files and sockets."""
        ...
