"""The density of a run: phased live within a share of the time, and well at the end."""

from __future__ import annotations

import math
import threading
import time

from .core.frames import Phasing, Snapshot, Volume

PHASING_SHARE = 0.1
"""Part of the time that live phasing may take."""

FINAL_STARTS = 6


class LiveDensity:
    """Phases the newest intensity, within its share of the time.

    Attributes
    ----------
    density : Volume or None
        The newest; None before there is one, and where no two starts agreed.
    outcome : Phasing or None
        What came of the independent starts.
    starts : int
        Of these, made so far.
    finished : bool
        Whether all were made.
    """

    def __init__(self) -> None:
        from .core.live_phasing import LivePhasing

        self.density: Volume | None = None
        self.outcome: Phasing | None = None
        self._phasing = LivePhasing()
        self._spent_s, self.starts = 0.0, 0
        self._finishing = self.finished = False

    def is_due(self, elapsed_s: float) -> bool:
        """Whether phasing has had less than its share of `elapsed_s`."""
        return not self._finishing and self._spent_s <= PHASING_SHARE * elapsed_s

    def update(self, snapshot: Snapshot) -> None:
        """A few iterations more, under the newest intensity."""
        began = time.monotonic()
        radius = math.ceil(snapshot.progress.radius)
        density = self._phasing.update(snapshot.intensity, snapshot.weight, radius)
        self.density = density if density.data.any() else None
        self._spent_s += time.monotonic() - began

    def finish(self, snapshot: Snapshot, stopping: threading.Event) -> None:
        """Replace the live density by the average of the independent starts that agree; by none, where no two do.

        Once it is `stopping` no other start begins, and the live density stays.
        """
        from .core.half_densities import compared_by_halves
        from .core.phasing import phase

        def count() -> None:
            if stopping.is_set():
                raise InterruptedError
            self.starts += 1

        self._finishing = True
        given, radius = (snapshot.intensity, snapshot.weight, FINAL_STARTS), math.ceil(snapshot.progress.radius)
        try:
            result = phase(*given, radius=radius, like=self.density, on_start=count)
        except InterruptedError:
            return
        except ValueError as error:  # nothing measured that could be phased
            self.outcome = Phasing("failed", str(error), FINAL_STARTS, 0, 0)
        else:
            self.outcome = result.record(seed=0)
            if snapshot.trust is not None:
                halves = snapshot.trust.halves
                self.outcome = compared_by_halves(self.outcome, result, halves, snapshot.weight, radius)
        self.outcome = self.outcome.of_intensity(snapshot.verdict, snapshot.reason)
        self.density = None if self.outcome.verdict == "failed" else result.density
        self.finished = True
