"""How strongly speckles modulate the intensity: in truth, without any pose, and as the reconstruction has it.

Photons of one pixel, over frames in all poses, vary by more than Poisson's law: the second factorial moment is

    ⟨K(K − 1)⟩ = ⟨f²⟩ ⟨w²v²⟩,   hence   Var v = ⟨K(K − 1)⟩ / (⟨f²⟩⟨K⟩²) − 1   for v of mean 1,

whatever the poses are (the coincidences of Kam 1977, Macromolecules 10, 927, at zero distance). Where an uneven
background adds d photons to w v, ⟨K(K − 1)⟩ is greater by 2 w d + d², and ⟨K⟩ by d. Two half-sets with independent
noise have Cov(v₀, v₁) = H² Var v in common, where H < 1 is what pose errors and interpolation have left. So the frames
themselves say how much is missing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .field import IntensityField, grid_radius
from .pixels import Pixels, SparsePhotons

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

SHELLS_TOGETHER = 2
"""Shells on either side that are taken together: a ratio of variances is noisy."""

LEAST_RESPONSE = 0.2
"""H below this is not believed: division by it would blow noise up."""

FEWEST_PHOTONS = 0.5
"""Expected in a voxel by each half-set, for the two to be compared there."""

KNOWN = 0.25
"""Relative error of a shell's contrast beyond which the last shell known better speaks for it."""


@dataclass(frozen=True, eq=False)
class Contrast:
    """Var v by shell of |q| (whole voxels), with its standard error; NaN where no pixel looks."""

    value: F64
    error: F64

    def with_fluence(self, shape: float) -> Contrast:
        """The same where fluences are not equal but of Gamma shape a, ⟨f²⟩ = 1 + 1/a (inf: equal; 0: not known)."""
        spread = 1 + 1 / shape if shape > 0 else 1.0
        return Contrast((1 + self.value) / spread - 1, self.error / spread)


def photon_contrast(pixels: Pixels, photons: SparsePhotons) -> Contrast:
    """Var v from the photons of single pixels over a few thousand frames of equal fluence; no pose is needed."""
    n = pixels.n_orient
    shell = np.rint(np.linalg.norm(pixels.q[:n], axis=1)).astype(int)
    count = photons.count.astype(np.float64)
    mean = np.bincount(photons.pixel, count, len(pixels.rho))[:n] / len(photons)
    pairs = np.bincount(photons.pixel, count * (count - 1), len(pixels.rho))[:n] / len(photons)
    light = np.zeros(n) if pixels.background is None else pixels.background.light[:n].astype(np.float64)
    particle = mean - light
    chance = np.bincount(shell, particle * particle)
    counted = np.bincount(shell, pairs)
    coincident = counted - np.bincount(shell, light * (2 * particle + light))
    with np.errstate(divide="ignore", invalid="ignore"):
        moment = np.where(chance > 0, coincident / chance, np.nan)
        # pairs of photons are rare, so they are Poisson-distributed; each counts twice in K(K − 1)
        error = np.sqrt(2 * counted / len(photons)) / np.where(chance > 0, chance, np.nan)
    return Contrast(moment - 1, error)


def half_ratios(field: IntensityField, photons: list[F32], exposure: list[F32]) -> tuple[F32, F32]:
    """Ratios (edge³) of both half-sets, each counted twice: so they are filtered exactly as the field of all frames is,
    which is then their mean, and (v₀ − v₁)²/4 its noise.
    """
    one, other = (field.estimate(2 * p, 2 * e) for p, e in zip(photons, exposure, strict=True))
    return one, other


def common_contrast(halves: tuple[F32, F32], seen: NDArray[np.bool_], edge: int) -> F64:
    """Cov(v₀, v₁)/⟨v₀⟩⟨v₁⟩ of half-set ratio grids (edge³) over each shell's `seen` voxels; NaN with fewer than 3."""
    shell = np.rint(grid_radius(edge)).astype(int)[seen]
    length = edge // 2 + 1
    inside = shell < length
    shell = shell[inside]
    a, b = (half[seen][inside].astype(np.float64) for half in halves)
    count = np.bincount(shell, minlength=length)

    def mean(value: F64) -> F64:
        return np.asarray(np.bincount(shell, value, length) / np.maximum(count, 1))

    chance = mean(a) * mean(b)
    return np.where((count >= 3) & (chance > 0), mean(a * b) / np.maximum(chance, 1e-30) - 1, np.nan)


def response(true: Contrast, common: F64) -> F64:
    """H by shell: the part of the speckles' amplitude that the reconstruction has, 0.2 … 1."""
    length = min(len(true.value), len(common))
    value, error, common = true.value[:length], true.error[:length], common[:length]
    usable = np.isfinite(value) & np.isfinite(common) & (error > 0)
    if not usable.any():
        return np.ones(length)
    weight = np.where(usable, 1 / np.square(np.where(usable, error, 1.0)), 0.0)
    window = np.ones(2 * SHELLS_TOGETHER + 1)

    def together(x: F64) -> F64:
        return np.asarray(np.convolve(np.where(usable, weight * x, 0.0), window, "same"))

    total, sharp = together(np.nan_to_num(value)), together(np.nan_to_num(common))
    certain = np.sqrt(np.convolve(weight, window, "same")) * KNOWN * total > np.convolve(weight, window, "same")
    certain &= total > 0
    if not certain.any():
        return np.ones(length)
    squared = np.clip(sharp[certain] / total[certain], LEAST_RESPONSE**2, 1.0)
    return np.asarray(np.sqrt(np.interp(np.arange(length), np.flatnonzero(certain), squared)))
