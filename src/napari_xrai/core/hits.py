"""Which frames hold a particle at all: told by how many pixels are lit, where frames come in two kinds."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

FEWEST = 200
"""Below so many frames nobody can tell two kinds apart, and every frame with a photon is a hit."""
REMEMBERED = 10_000
"""The threshold follows the last so many frames."""
JUDGED_EVERY = 500
SEPARATION = 1.8
"""Distance of the two kinds' means over the sum of their widths. Cut at Otsu's threshold, one Gaussian has 1.3 and a
uniform distribution 1.7."""
VALLEY = 0.1
"""So few of the frames between the two means may lie in the middle fifth; a uniform distribution has 0.2 there."""


class HitFinder:
    """Learns a threshold on lit pixels from the frames that pass, blanks and hits alike.

    Otsu's threshold on √(lit pixels), whose Poisson noise is the same for blanks and for hits; believed only where the
    frames are clearly of two kinds, with few in between. Where they are of one kind, every lit frame is a hit.

    Attributes
    ----------
    threshold : int
        Frames with at least so many lit pixels are hits.

    References
    ----------
    N. Otsu, *IEEE Trans. Syst. Man Cybern.* **9**, 62 (1979). 10.1109/TSMC.1979.4310076
    """

    def __init__(self) -> None:
        self.threshold = 1
        self._lit = np.zeros(REMEMBERED, np.int32)
        self._seen = self._judged = 0

    def learn(self, lit: NDArray[np.integer[Any]]) -> None:
        """Take note of frames with `lit` (N,) pixels."""
        recent = np.asarray(lit)[-REMEMBERED:]
        self._lit[(self._seen + np.arange(len(recent))) % REMEMBERED] = recent
        self._seen += len(recent)
        if self._seen >= FEWEST and self._seen - self._judged >= min(JUDGED_EVERY, max(FEWEST, self._judged)):
            self._judged = self._seen
            self.threshold = two_kinds(self._lit[: min(self._seen, REMEMBERED)]) or 1

    @property
    def sure(self) -> bool:
        """Whether enough frames were seen to tell."""
        return self._judged > 0

    def hits(self, lit: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
        """(N,) whether frames with `lit` (N,) pixels hold a particle."""
        return np.asarray(lit) >= self.threshold


def two_kinds(lit: NDArray[np.integer[Any]]) -> int | None:
    """Fewest lit pixels of the brighter kind of frames; None where all frames are of one kind."""
    value = np.sort(np.sqrt(np.asarray(lit, np.float64)))
    below = np.arange(1, len(value))
    total, square = np.cumsum(value), np.cumsum(value**2)
    mean = total[:-1] / below, (total[-1] - total[:-1]) / (len(value) - below)
    cut = int(np.argmax(below * (len(value) - below) * (mean[1] - mean[0]) ** 2))
    low, high = mean[0][cut], mean[1][cut]
    spread = [
        np.sqrt(max(0.0, squares / n - m**2))
        for squares, n, m in (
            (square[cut], cut + 1, low), (square[-1] - square[cut], len(value) - cut - 1, high),
        )
    ]  # fmt: skip
    if high - low <= SEPARATION * max(sum(spread), 0.5):  # Poisson noise alone is ½
        return None
    between = value[(value > low) & (value < high)]
    middle = np.abs(between - (low + high) / 2) < 0.1 * (high - low)
    if middle.sum() > VALLEY * len(between):
        return None
    return int(np.ceil(((value[cut] + value[cut + 1]) / 2) ** 2))
