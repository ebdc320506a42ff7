"""What one wants to be told at once at a beamline: beam, hit rate or convergence are no longer what they were."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

import numpy as np

SILENCE_S = 5.0
"""Without a frame for so long, the beam may be off."""
JUDGED = 1000
"""Frames after which the hit rate is compared with what it was; half as many hits for their photons."""
SURE = 5.0
"""Standard deviations of a change that is told."""
CHANGE = 1.3
"""It must be by such a factor, too."""
FALL = 0.05
"""Of the log-likelihood or the resolution below the best so far."""
STILL = 0.005
"""Growth of the log-likelihood while the frames double, below which more of them bring little."""
REMEMBERED = 50


@dataclass(frozen=True)
class Alert:
    """A change, in words, and when it was noticed, in seconds since the epoch."""

    time: float
    words: str

    def __str__(self) -> str:
        return f"{time.strftime('%H:%M:%S', time.localtime(self.time))} {self.words}"


class StreamWatch:
    """Compares what comes with what came before.

    Attributes
    ----------
    alerts : deque of Alert
        The latest.
    said : int
        How many there were in all.
    """

    def __init__(self) -> None:
        self.alerts: deque[Alert] = deque(maxlen=REMEMBERED)
        self.said = 0
        self._hits = self._blanks = self._bright = 0
        self._photons = 0.0
        self._rate: tuple[float, int] | None = None
        self._brightness: float | None = None
        self._silent_s = 0.0
        self._is_still = self._has_fallen = False
        self._curve: list[tuple[float, float, float]] = []

    def say(self, words: str) -> None:
        """Tell something."""
        self.alerts.append(Alert(time.time(), words))
        self.said += 1

    def listen(self, silent_s: float | None) -> None:
        """Take note of how long no frame has come, whatever is done with frames; None where none is to be missed."""
        if silent_s is None:
            return
        if silent_s > SILENCE_S:
            if not self._silent_s:
                self.say(f"no frame for {SILENCE_S:.0f} s: the beam is off, or the stream is cut")
            self._silent_s = silent_s
        elif self._silent_s:
            self.say(f"frames again, after {self._silent_s:.0f} s without")
            self._silent_s = 0.0

    def note(self, hits: int, blanks: int, photons: float) -> None:
        """Take note of what was taken since the last call: hits with so many photons in all, and blanks."""
        self._hits, self._blanks = self._hits + hits, self._blanks + blanks
        self._bright, self._photons = self._bright + hits, self._photons + photons
        if self._hits + self._blanks >= JUDGED:
            self._judge_rate(self._hits / (self._hits + self._blanks), self._hits + self._blanks)
            self._hits = self._blanks = 0
        if self._bright >= JUDGED / 2:
            self._judge_brightness(self._photons / self._bright)
            self._bright, self._photons = 0, 0.0

    def _judge_rate(self, rate: float, n: int) -> None:
        if self._rate is None:
            self._rate = rate, n
            return
        before, total = self._rate
        pooled = (rate * n + before * total) / (n + total)
        error = np.sqrt(max(pooled * (1 - pooled), 1e-9) * (1 / n + 1 / total))
        if abs(rate - before) > SURE * error and not 1 / CHANGE < (rate + 1e-6) / (before + 1e-6) < CHANGE:
            self.say(f"hit rate {_went(before, rate)} {before:.1%} to {rate:.1%}")
            self._rate = rate, n
        else:
            self._rate = pooled, n + total

    def _judge_brightness(self, photons: float) -> None:
        before = self._brightness
        if before is not None and not 1 / CHANGE < photons / max(before, 1e-9) < CHANGE:
            self.say(f"photons per hit {_went(before, photons)} {before:,.0f} to {photons:,.0f}")
            before = None
        self._brightness = photons if before is None else 0.9 * before + 0.1 * photons

    def note_update(self, frames: float, log_likelihood: float, resolution_q: float) -> None:
        """Take note of how the reconstruction stands after an update."""
        self._curve.append((frames, log_likelihood, resolution_q if np.isfinite(resolution_q) else 0.0))
        seen, likelihood, resolution = np.array(self._curve).T
        fallen = likelihood[-1] < (1 - FALL) * likelihood.max() or resolution[-1] < (1 - FALL) * resolution.max()
        if fallen and not self._has_fallen:
            self.say(
                f"convergence lost: log-likelihood {likelihood[-1]:.1f} of {likelihood.max():.1f} per frame, "
                f"resolution at {resolution[-1] / max(resolution.max(), 1e-30):.0%} of the best"
            )
            self._curve = self._curve[-1:]
            self._is_still = False
        self._has_fallen = bool(fallen)
        half = int(np.searchsorted(seen, seen[-1] / 2))
        still = (
            half > 0 and resolution[-1] <= resolution[half]
            and likelihood[-1] - likelihood[half] < STILL * abs(likelihood[-1])
        )  # fmt: skip
        if still and not self._is_still and not fallen:
            self.say(f"more frames bring little: twice as many as {seen[half]:,.0f} changed neither resolution nor fit")
            self._is_still = True  # told once, until convergence is lost


def _went(before: float, after: float) -> str:
    return "rose from" if after > before else "fell from"
