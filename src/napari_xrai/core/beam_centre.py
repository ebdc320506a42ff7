"""Where is the beam? Photons of one frame mirror about it, whatever the particle and its pose.

V(q) = V(−q), so a pixel and the one opposite count together more often than by chance. With pixels i and j of a flat
pattern at q_i and q_j, the coincidences beyond chance

    g(s) = Σ ⟨K_i K_j⟩ / Σ ⟨K_i⟩⟨K_j⟩ − 1      over all pairs with q_i + q_j = s

peak, a speckle wide, at s = 0; if the beam is c away from where the geometry has it, at s = 2c. No pose is needed, and
what is the same in all frames, background or shadow, is chance. Where a background is uneven, photons count by the
particle's share of a pixel, or the peak would lean to where that is greater. A speckle is lost long before its width: 2
pixels off, where speckles are 4 to 7 pixels wide, no pose is found, and starts agree nevertheless.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from .detector import through_beam
from .frames import Detector
from .pixels import Pixels, SparsePhotons, pixel_step, pixels_of
from .uneven_background import find_uneven_background

F64 = NDArray[np.float64]

PIXELS_PAIRED, INNERMOST = 1000, 1500
INNER = 4.0
"""Speckles from the beam within which they lie, and at least so many pixels: bright, and the Ewald sphere is flat."""

REACH = 16
"""Voxels from the geometry's beam that are searched."""

APART = 2.4
"""Speckles between the pixels of a pair, at least: neighbours count together, too."""

FLAT = 0.5
"""Speckles that q_i and −q_j may differ along the beam."""

WIDTH = 0.3
"""Of the Gaussian that gathers pairs that mirror about neighbouring points, speckles: as wide as the peak."""

FEWEST_PAIRS = 30
"""Expected by chance under it, for a point to be looked at."""

SURE = 8.0
"""Standard deviations that the peak stands above the rest."""

SHARP = 0.5
"""Part of the peak's height that is left a speckle away, at most: what flickers more broadly is not the particle."""

SAME = 0.1
"""Speckles that two halves of the frames may differ by."""

MOVED = 0.05
"""Speckles from which on a geometry is corrected: an error of 0.13 costs a twelfth of the poses' accuracy."""

MOST_MOVES = 3
"""A far peak is found aslant: the pairs that mirror about it are few on one side."""


def mirror_point(pixels: Pixels, photons: SparsePhotons, speckle: float) -> F64 | None:
    """Where photons mirror: (2,) q_x and q_y in voxels, 0 where the geometry is right; None where it is not seen.

    Parameters
    ----------
    pixels : Pixels
    photons : SparsePhotons
        A few thousand frames. Odd and even ones must agree: a few bright frames do not speak for all.
    speckle : float
        Width of a speckle, voxels.
    """
    inner = min(pixels.n_orient, max(INNERMOST, pixels.within(INNER * speckle)))
    few = np.random.default_rng(0).permutation(inner)[:PIXELS_PAIRED]
    pairs, counts = _Pairs(pixels.q[few].astype(np.float64), speckle), photons.dense(inner)[:, few]
    odd, even = (pairs.count(counts[half::2], pixels.share[few]) for half in (1, 0))
    summits = [pairs.summit(*map_) for map_ in (odd, even, (odd[0] + even[0], odd[1] + even[1]))]
    if any(np.isnan(at).any() for at in summits) or np.abs(summits[0] - summits[1]).max() > SAME * speckle:
        return None
    return summits[2]


class _Pairs:
    """Pairs of pixels, by the point that they mirror about: maps of s in whole voxels, so of the beam in half ones."""

    def __init__(self, q: F64, speckle: float) -> None:
        i, j = np.triu_indices(len(q), 1)
        s, d = q[i] + q[j], q[i, :2] - q[j, :2]
        used = np.square(d).sum(1) > (APART * speckle) ** 2
        used &= np.abs(s[:, 2]) < FLAT * speckle
        used &= (np.abs(s[:, :2]) < 2 * REACH + 0.5).all(1)
        self.i, self.j, self.s = i[used], j[used], s[used, :2]
        self.size, self.speckle, self.blur = 4 * REACH + 1, speckle, WIDTH * speckle
        bins = np.rint(self.s).astype(np.int64) + 2 * REACH
        self.cell = bins[:, 0] * self.size + bins[:, 1]

    def count(self, counts: NDArray[np.float32], share: NDArray[np.float32]) -> tuple[F64, F64]:
        """Coincidences of the particle's photons in frames (N, n), and those expected by chance, where of each pixel's
        light a part `share` (n,) is the particle's.
        """
        counts = counts * share
        mean = counts.mean(0, dtype=np.float64)
        particle = mean * share
        chance, expected = (len(counts) * light[self.i] * light[self.j] for light in (mean, particle))
        return self._map((counts.T @ counts)[self.i, self.j] - chance + expected), self._map(expected)

    def summit(self, coincident: F64, chance: F64) -> F64:
        """(2,) the beam at which coincidences most exceed chance; NaN where nothing stands out."""
        coincident, chance = (gaussian_filter(part, self.blur, mode="constant") for part in (coincident, chance))
        pairs = 4 * np.pi * self.blur**2  # cells that a Gaussian's noise averages over
        seen = chance * pairs > FEWEST_PAIRS
        if not seen.any():
            return np.full(2, np.nan)
        g = np.where(seen, coincident / np.maximum(chance, 1e-30) - 1, np.nan)
        error = np.sqrt(np.maximum(coincident, 1 / pairs) / pairs) / np.maximum(chance, 1e-30)
        above = np.where(seen, (g - np.nanmedian(g)) / error, -np.inf)
        x, y = (int(at) for at in np.unravel_index(above.argmax(), above.shape))
        reach = max(2, round(self.blur))
        near = np.s_[max(0, x - reach) : x + reach + 1, max(0, y - reach) : y + reach + 1]
        if above[x, y] < SURE or g[near].size != (2 * reach + 1) ** 2 or np.isnan(g[near]).any():
            return np.full(2, np.nan)
        row, column = np.indices(g.shape)
        beside = np.abs(np.hypot(row - x, column - y) / self.speckle - 1) < 0.25
        if np.nanmean(g[beside]) - np.nanmedian(g) > SHARP * (g[x, y] - np.nanmedian(g)):
            return np.full(2, np.nan)
        at = [(axis[near] / self._pairs[near]).ravel() for axis in self._positions]
        return _summit(at[0], at[1], g[near].ravel()) / 2

    @cached_property
    def _pairs(self) -> F64:
        return np.maximum(self._map(np.ones(len(self.cell))), 1e-30)

    @cached_property
    def _positions(self) -> list[F64]:
        """Sums of s over the pairs of each cell: on a lattice all lie off the cell's middle alike."""
        return [self._map(axis) for axis in self.s.T]

    def _map(self, value: NDArray[np.floating]) -> F64:
        flat = np.bincount(self.cell, value, self.size**2)
        return np.asarray(flat.reshape(self.size, self.size), np.float64)


def _summit(x: F64, y: F64, value: F64) -> F64:
    """(2,) where the paraboloid fitted to `value` (N,) at x, y by least squares is highest, within their range."""
    terms = np.column_stack([np.ones(len(x)), x, y, x * x, x * y, y * y])
    _, bx, by, cxx, cxy, cyy = np.linalg.lstsq(terms, value, rcond=None)[0]
    curvature = np.array([[2 * cxx, cxy], [cxy, 2 * cyy]])
    if np.linalg.eigvalsh(curvature).max() >= 0:
        return np.full(2, np.nan)
    at = -np.linalg.solve(curvature, [bx, by])
    return np.clip(at, [x.min(), y.min()], [x.max(), y.max()])


@dataclass(frozen=True)
class Beam:
    """Where the beam goes.

    Parameters
    ----------
    tangent : (x, y)
        Over z, from where the geometry has it: 0 where it was left there.
    off : float
        Speckles that photons mirror beside it.
    sentence : str
        To be shown.
    """

    tangent: tuple[float, float] = (0.0, 0.0)
    off: float = 0.0
    sentence: str = ""

    @classmethod
    def of(cls, saved: dict[str, Any]) -> Beam:
        """The beam with these ``vars``, as JSON gives them back."""
        x, y = saved.get("tangent", (0.0, 0.0))
        return cls(**saved | {"tangent": (x, y)})


def find_beam(
    detector: Detector, pixels: Pixels, photons: SparsePhotons, speckle: float, move: bool, take_out: bool = True
) -> Beam:
    """Find the beam, again from where it was found until it stays.

    Parameters
    ----------
    detector : Detector
        Of which `pixels` are those in use.
    photons : SparsePhotons
        A few thousand frames on `pixels`.
    speckle : float
        Width of a speckle, voxels.
    move : bool
        Whether the geometry may be corrected.
    take_out : bool
        Whether an uneven background is to be looked for.
    """
    pitch = pixel_step(detector.q[pixels.on_detector])
    beam = None
    for _ in range(MOST_MOVES):
        lit = find_uneven_background(pixels, photons)[:2] if take_out else (pixels, photons)
        offset = mirror_point(*lit, speckle)
        if offset is None:
            return beam or Beam(
                sentence=f"left where the geometry has it: photons do not show it within {REACH} voxels"
            )
        off, near = offset * pixels.voxel_size / pitch, np.hypot(*offset) < MOVED * speckle
        if beam is not None and near:
            return beam
        if near:
            return Beam(sentence=f"where the geometry has it: photons mirror {np.hypot(*off):.2f} pixels from there")
        if not move:
            return Beam(off=float(np.hypot(*offset) / speckle), sentence=f"left as given; photons mirror {_away(off)}")
        sine = offset / pixels.ewald_radius
        x, y = np.array(beam.tangent if beam else (0, 0)) + sine / np.sqrt(1 - sine @ sine)
        moved = np.array([x, y]) * detector.ewald_radius / pitch
        beam = Beam((float(x), float(y)), 0.0, f"moved to where photons mirror, {_away(moved)}")
        pixels, photons = moved_pixels(detector, beam, pixels, photons)
    assert beam is not None
    return beam


def _away(off: F64) -> str:
    x, y = off
    place = f"(left, up) = ({x:+.2f}, {y:+.2f}) along the beam"  # lab x and y: columns and rows run the other way
    return f"{np.hypot(x, y):.2f} pixels from where the geometry has it, {place}"


def moved_pixels(
    detector: Detector, beam: Beam, pixels: Pixels, photons: SparsePhotons
) -> tuple[Pixels, SparsePhotons]:
    """Pixels in use, and frames on them, as if the `detector` had the beam there; faulty pixels stay out."""
    moved = pixels_of(through_beam(detector, np.array(beam.tangent)))
    moved = moved.only(pixels.rank[moved.on_detector] >= 0)
    return moved, photons.at(moved.rank[pixels.on_detector])
