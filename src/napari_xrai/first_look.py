"""Frames looked at before any reconstruction: powder sum, photons per frame, lit pixels, hits.

Read in slices spread over the whole file, so that a first look at 1,000 of 100,000 frames speaks for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .core.frames import Frames

if TYPE_CHECKING:
    from .io.source import FrameSource

SLICES = 25
PIXELS_AT_ONCE = 4_000_000
"""A slice takes no longer than this needs: the user may stop between any two."""

MOST_BINS = 60
SIGMAS = 5.0
CLIPS = 5
"""Hits widen what is taken for the bulk; taking them out again and again undoes it."""
POISSON_LIKE = 1.5
"""A bulk of frames that spreads by no more than this times the square root of its median is background."""
TWO_KINDS = 0.8
"""Share of the variance between two classes above which they are two: a flat distribution has 0.75."""


@dataclass(frozen=True, eq=False)
class FirstLook:
    """What the frames read so far hold. Masked pixels count nowhere.

    Parameters
    ----------
    frame : (M,) int64
        Positions in the source, rising.
    photons, lit : (M,) int64
        Photons, and pixels with at least one, of each frame.
    powder : (P,) float64
        Photons of each pixel over these frames.
    """

    frame: NDArray[np.int64]
    photons: NDArray[np.int64]
    lit: NDArray[np.int64]
    powder: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.frame)

    def hits(self, threshold: float) -> NDArray[np.int64]:
        """Positions of the frames with at least `threshold` lit pixels."""
        return self.frame[self.lit >= threshold]


@dataclass
class _Sums:
    powder: NDArray[np.float64]
    bad: NDArray[np.bool_]
    rows: list[NDArray[np.int64]] = field(default_factory=list)

    def add(self, frames: Frames) -> None:
        row = np.repeat(np.arange(len(frames)), np.diff(frames.start))
        good = ~self.bad[frames.pixel]
        self.powder += np.bincount(frames.pixel[good], frames.count[good], len(self.powder))
        photons = np.bincount(row[good], frames.count[good], len(frames)).astype(np.int64)
        self.rows.append(np.stack([frames.index, photons, np.bincount(row[good], minlength=len(frames))]))

    def look(self) -> FirstLook:
        frame, photons, lit = np.concatenate([np.zeros((3, 0), np.int64), *self.rows], axis=1)
        return FirstLook(frame, photons, lit, self.powder.copy())


def take_first_look(source: FrameSource, wanted: int, bad: NDArray[np.bool_]) -> Iterator[FirstLook]:
    """Look at `wanted` frames, spread over the source; yields what is known after every slice.

    Parameters
    ----------
    wanted : int
        All frames, if there are no more.
    bad : (P,) bool
        Pixels to leave out.

    Raises
    ------
    InputError
        If a frame cannot be read.
    """
    sums = _Sums(np.zeros(source.n_pixels), bad)
    at_once = max(1, PIXELS_AT_ONCE // source.n_pixels)
    for first, last in spread_slices(source.n_frames or 0, wanted):
        for start in range(first, last, at_once):
            sums.add(source.read(np.arange(start, min(start + at_once, last))))
            yield sums.look()


def spread_slices(n_frames: int, wanted: int) -> list[tuple[int, int]]:
    """At most `SLICES` ranges ``first, last + 1``, evenly spread, of `wanted` frames together; all if that is all."""
    wanted = min(wanted, n_frames)
    n = max(1, min(SLICES, wanted))
    length = np.diff(np.arange(n + 1) * wanted // n)
    first = np.arange(n) * n_frames // n
    return [(int(a), int(a + size)) for a, size in zip(first, length, strict=True) if size]


def histogram(values: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Histogram of whole numbers in equal bins of whole width.

    Returns
    -------
    edges : (B+1,) float64
        Between whole numbers: …½. At most `MOST_BINS` bins.
    counts : (B,) int64
    """
    if not len(values):
        return np.zeros(1), np.zeros(0, np.int64)
    low = int(values.min())
    width = -(-(int(values.max()) - low + 1) // MOST_BINS)
    counts = np.bincount((values - low) // width)
    return low - 0.5 + width * np.arange(len(counts) + 1.0), counts


def suggest_threshold(lit: NDArray[np.int64]) -> int:
    """Lit pixels from which a frame is a hit: a proposal, for the user to move.

    Background is Poisson: where the bulk of the frames spreads no more than that and some stand out by 5 σ, those are
    the hits. Where there are two kinds of frames (Otsu, IEEE Trans. SMC 9, 62, 1979), the brighter are. Else all are.
    """
    if not len(lit):
        return 0
    bulk = lit
    for _ in range(CLIPS):
        middle = float(np.median(bulk))
        poisson = max(1.0, np.sqrt(middle))
        sigma = 1.4826 * float(np.median(np.abs(bulk - middle)))
        beyond = middle + SIGMAS * max(sigma, poisson)
        bulk = bulk[bulk <= beyond]
    if sigma <= POISSON_LIKE * poisson and lit.max() > beyond:
        return int(beyond) + 1
    edge, share = _best_cut(np.sort(lit).astype(float))
    return edge if share > TWO_KINDS else int(lit.min())


def _best_cut(ordered: NDArray[np.float64]) -> tuple[int, float]:
    """The cut of rising values with the most variance between its two sides, and its share of all variance."""
    n, total = len(ordered), ordered.var()
    if n < 3 or total == 0:
        return int(ordered[0]), 0.0
    below = np.arange(1, n)
    mean_below = np.cumsum(ordered)[:-1] / below
    mean_above = (ordered.sum() - np.cumsum(ordered)[:-1]) / (n - below)
    between = below * (n - below) / n**2 * (mean_above - mean_below) ** 2
    best = int(np.argmax(between))
    return int(np.ceil((ordered[best] + ordered[best + 1]) / 2)), float(between[best] / total)


def decades(values: NDArray[np.generic], least: float | None = None) -> NDArray[np.float64]:
    """log₁₀ for a logarithmic axis; what is not positive is `least`'s logarithm, or a gap."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found: NDArray[np.float64] = np.log10(np.asarray(values, np.float64))
    return np.where(np.isfinite(found), found, np.nan if least is None else np.log10(least))
