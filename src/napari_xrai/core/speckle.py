"""The particle's size and the fluences' spread, from photon coincidences alone: no pose is needed.

Over many frames, two pixels Δq apart count together more often than by chance, the more so the nearer they are:

    g(Δq) = ⟨K_p K_p'⟩ / ⟨K_p⟩⟨K_p'⟩ − 1 = contrast · |s(Δq)|² + far

where s is the shape's transform (for a sphere of diameter D its square halves at Δq = 0.576/D). What is left far apart
is the fluence's relative variance 1/a, and the particle's own anisotropy: frames are brighter from some sides than from
others. The anisotropy differs from ring to ring, the fluence does not: 1/a is the least that two rings share.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .pixels import Pixels, SparsePhotons

HALF_WIDTH_OF_SPHERE = 0.576
"""Δq·D at which a uniform sphere's |s|² is one half: 3(sin x − x cos x)/x³ = √½ at x = πDΔq = 1.81."""

PIXELS_PAIRED = 1500

SMALLEST_SPECKLE = 2.0
"""Voxels: finer speckles are not sampled, and what looks like one is noise."""

FEWEST_SPECKLES = 2.5
"""Between the beam and the edge: with fewer there is nothing to orient by, whatever noise says."""

RINGS = 10
LEAST_VARIANCE = 5e-3


@dataclass(frozen=True)
class Speckle:
    """What coincidences tell.

    Parameters
    ----------
    diameter : float
        Of the sphere with speckles of the same size, in 1/voxel.
    fluence_shape : float
        Shape a of the fluences' Gamma distribution; inf where they are equal within 7 %.
    contrast : float
        Of the speckles: 1 for fully developed ones, 0 where frames hold no structure.
    sampled : bool
        Whether neighbouring pixels light together: if not, there is nothing to tell a pose by.
    """

    diameter: float
    fluence_shape: float
    contrast: float
    sampled: bool

    @property
    def size(self) -> float:
        """1/diameter: the width of a speckle, voxels."""
        return 1.0 / self.diameter


def measure_speckle(pixels: Pixels, photons: SparsePhotons) -> Speckle:
    """Estimate speckle size and fluence spread from the coincidences of a few thousand frames.

    Under an uneven background photons count by the particle's share of a pixel, and chance is that of the particle's.
    """
    n = min(PIXELS_PAIRED, pixels.n_orient)
    share = pixels.share[:n]
    counts = photons.dense(n) * share
    mean = counts.mean(0, dtype=np.float64)
    particle = mean * share
    pair = counts.T @ counts / len(counts)
    pair[np.diag_indices(n)] -= particle  # a photon does not coincide with itself
    pair -= np.outer(mean, mean) - np.outer(particle, particle)
    position = pixels.q[:n]
    distance = np.sqrt(np.square(position[:, None] - position[None]).sum(-1))
    # one bin a voxel wide around Δq = 0, 1, 2 …; the pair's Friedel mates lie at opposite pixels: keep to one side
    near = distance < pixels.rho[:n][:, None]
    bin_ = np.rint(distance[near]).astype(int)
    coincident = np.bincount(bin_, pair[near])
    chance = np.bincount(bin_, np.outer(particle, particle)[near])
    g = coincident / np.maximum(chance, 1e-30) - 1
    outer = g[len(g) // 2 :]
    baseline = float(np.average(outer, weights=chance[len(g) // 2 :]))
    variance = least_common_variance(pixels, photons)
    size = half_width(g - baseline) / HALF_WIDTH_OF_SPHERE
    sampled = size >= SMALLEST_SPECKLE
    size = float(np.clip(size, SMALLEST_SPECKLE, max(SMALLEST_SPECKLE, pixels.orient_radius / FEWEST_SPECKLES)))
    return Speckle(
        diameter=1 / size,
        fluence_shape=1 / variance if variance > LEAST_VARIANCE else float("inf"),
        contrast=float(g[0] - baseline),
        sampled=sampled,
    )


def least_common_variance(pixels: Pixels, photons: SparsePhotons) -> float:
    """The smallest relative covariance between the photon counts of two rings, among those known to within 0.01."""
    edges = np.linspace(0, pixels.orient_radius * 1.001, RINGS + 1)
    ring = np.minimum(np.digitize(pixels.rho, edges) - 1, RINGS)
    ring[pixels.n_orient :] = RINGS
    row = np.repeat(np.arange(len(photons)), np.diff(photons.start))
    cell = row * (RINGS + 1) + ring[photons.pixel]
    count = np.bincount(cell, photons.count, len(photons) * (RINGS + 1)).reshape(-1, RINGS + 1)[:, :RINGS]
    light = 0 if pixels.background is None else np.bincount(ring, pixels.background.light, RINGS + 1)[:RINGS]
    mean = np.maximum(count.mean(0) - light, 0)
    i, j = np.triu_indices(RINGS, 2)
    noise = 1 / np.sqrt(np.maximum(len(photons) * mean[i] * mean[j], 1e-12))
    known = noise < 0.01
    i, j = i[known], j[known]
    return float((np.cov(count.T)[i, j] / (mean[i] * mean[j])).min(initial=np.inf)) if known.any() else 0.0


def half_width(curve: NDArray[np.float64]) -> float:
    """Where a falling curve first reaches half its value at 0, linear between bins."""
    below = np.flatnonzero(curve < curve[0] / 2)
    if len(below) == 0 or curve[0] <= 0:
        return 1.0
    i = int(below[0])
    return float(i - 1 + (curve[i - 1] - curve[0] / 2) / (curve[i - 1] - curve[i]))
