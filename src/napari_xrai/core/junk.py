"""Frames that no pose explains: debris, two particles at once, another particle. Found by the photons in each speckle.

At its likeliest pose a frame's photons are summed over cells about as large as speckles and compared with those
expected, the total matched. The Poisson deviance of cell c is D = 2 (K log(K/λ) − (K − λ)); summed over cells, less its
mean and over its standard deviation under Poisson's law, it is 0 ± 1 for a frame of the particle, bright or dim, if the
field is the particle. As it never quite is, the deviance grows with the photons; how fast, the frames themselves tell.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse
from numpy.typing import NDArray
from scipy.special import gammaln

from . import kernels
from .field import DARKEST
from .pixels import Pixels, SparsePhotons

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

Law = tuple[list[float], list[float]]
"""By size of cell: growth of the score with photons, and its spread about that."""

CELLS = (0.5, 1.0)
"""Sizes of cells, speckles: two particles at once show in small ones, another particle in large ones."""

DEVIATIONS = 4.5
"""Standard deviations above what other frames as bright have, beyond which a frame is junk."""

WIDENING = 0.25
"""Of the scores' spread, as they grow: poses differ in how well the field is known."""

FEWEST_FRAMES = 100
"""A median of fewer says too little to call anything junk."""

SIGMA_PER_MAD = 1.4826

LAMBDA = np.geomspace(1e-4, 300, 120)
"""Expected photons at which the deviance's mean and variance are tabulated; beyond, they are 1 and 2."""


class JunkGate:
    """Judges frames by how their photons lie about those expected at their likeliest pose.

    Parameters
    ----------
    pixels : Pixels
    brightness : (U,) float32
        Mean photons per frame and pixel of a structureless particle.
    speckle : float
        Size of a speckle, voxels.
    law : (growth, spread) or None
        As `settle` gave it before: a continued run judges at once.
    """

    def __init__(self, pixels: Pixels, brightness: F32, speckle: float, law: Law | None = None) -> None:
        self.n_pixels = pixels.n_orient
        self.point, self.edge = pixels.q[: self.n_pixels], pixels.edge
        self.brightness = brightness[: self.n_pixels]
        self.light = None if pixels.background is None else pixels.background.light[: self.n_pixels]
        self.cells = [_cells(pixels, size * speckle) for size in CELLS]
        self.law = law
        self.scores: list[F64] = []
        self.totals: list[F64] = []
        self.log_lambda, self.mean, self.variance = _deviance_law()

    def junk(self, photons: SparsePhotons, rotation: F32, ratio: F32) -> NDArray[np.bool_]:
        """(N,) whether frames fit the field `ratio` (edge³) at their poses `rotation` (N, 3, 3) too badly; none, before
        there is a law.
        """
        score, total = self._scores(photons, rotation, ratio)
        self.scores.append(score)
        self.totals.append(total)
        if self.law is None:
            return np.zeros(len(photons), bool)
        growth, spread = self.law
        return np.asarray((_deviation(score, total, growth) > DEVIATIONS * np.array(spread)).any(1))

    def _scores(self, photons: SparsePhotons, rotation: F32, ratio: F32) -> tuple[F64, F64]:
        """(N, sizes of cells) standardised deviance of frames at their poses, and their photons (N, 1)."""
        value = np.empty((len(photons), self.n_pixels), np.float32)
        kernels.gather(rotation, self.point, ratio, self.edge, value)
        counted = photons.dense(self.n_pixels)
        expected = np.maximum(value, np.float32(DARKEST)) * self.brightness
        expected *= self._scale(counted.sum(1), expected.sum(1))[:, None]
        if self.light is not None:
            expected += self.light
        score = np.stack([self._deviance(counted @ cell, expected @ cell) for cell in self.cells], -1)
        return score, counted.sum(1, dtype=np.float64)[:, None]

    def _scale(self, counted: F32, expected: F32) -> F32:
        """(N,) times that the particle's `expected` photons (N,) are to be taken, for as many in all as `counted`."""
        added = 0 if self.light is None else self.light.sum()
        return np.asarray(np.maximum(counted - added, 0) / expected)

    def _deviance(self, counted: F32, expected: F32) -> F64:
        """(N,) standardised deviance of photons `counted` in cells (N, cells)."""
        where = np.log(np.maximum(expected, np.float32(LAMBDA[0])))
        deviance = 2 * (counted * (np.log(np.maximum(counted, 1)) - where) - (counted - expected))
        excess = (deviance - np.interp(where, self.log_lambda, self.mean)).sum(1)
        return np.asarray(excess / np.sqrt(np.interp(where, self.log_lambda, self.variance).sum(1)))

    def settle(self) -> Law | None:
        """Measure from the frames since the last time how their scores grow with photons, and how they spread."""
        if sum(map(len, self.scores)) >= FEWEST_FRAMES:
            score, total = np.concatenate(self.scores), np.concatenate(self.totals)
            growth = np.maximum(np.median(score / total, 0), 0).tolist()
            deviation = _deviation(score, total, growth)
            spread = SIGMA_PER_MAD * np.median(np.abs(deviation - np.median(deviation, 0)), 0)
            self.law = growth, spread.tolist()
        self.scores.clear()
        self.totals.clear()
        return self.law


def _deviation(score: F64, total: F64, growth: list[float]) -> F64:
    """(N, cells) scores less what frames as bright have, over how that spreads."""
    expected = np.array(growth) * total
    return np.asarray((score - expected) / (1 + WIDENING * expected))


def _cells(pixels: Pixels, size: float) -> scipy.sparse.csr_matrix:
    """(orienting pixels, cells) of ones: sectors of rings, each about `size` voxels wide and long."""
    rho, azimuth = pixels.rho[: pixels.n_orient], pixels.azimuth[: pixels.n_orient]
    ring = ((rho - rho[0]) / size).astype(int)
    sectors = np.maximum(4, np.rint(2 * np.pi * (rho[0] / size + ring + 0.5))).astype(int)
    sector = (azimuth / (2 * np.pi) * sectors).astype(int)
    _, cell = np.unique(ring * (sectors.max() + 1) + sector, return_inverse=True)
    ones = np.ones(len(rho), np.float32)
    return scipy.sparse.csr_matrix((ones, (np.arange(len(rho)), cell)))


def _deviance_law() -> tuple[F64, F64, F64]:
    """Log λ, and there the mean and variance of the Poisson deviance."""
    k = np.arange(600)[:, None]
    deviance = 2 * (k * np.log(np.maximum(k, 1) / LAMBDA) - (k - LAMBDA))
    law = np.exp(k * np.log(LAMBDA) - LAMBDA - gammaln(k + 1))
    mean = (law * deviance).sum(0)
    return np.log(LAMBDA), mean, (law * deviance**2).sum(0) - mean**2
