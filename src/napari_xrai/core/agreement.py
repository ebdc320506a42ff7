"""Have two independent starts found the same particle? Their intensities agree after one rotation, or they have not."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from . import kernels
from .rotations import exp_map, fibonacci_directions, super_fibonacci

F32 = NDArray[np.float32]

ROTATIONS = 6000
POINTS = 500
BEST = 12
REFINEMENTS = 4


def intensity_agreement(a: F32, b: F32, edge: int, inner: float, outer: float) -> float:
    """Correlation of two intensity ratios between two radii, at the rotation where it is largest.

    Searches SO(3), so it holds for symmetric particles too. The comparison is made on spheres one voxel apart, each
    with zero mean and unit variance: no shell outweighs another.

    Parameters
    ----------
    a, b : (edge³) float32
        Ratio grids, flat (z, y, x).
    inner, outer : float
        Radii in voxels.

    Returns
    -------
    float
        −1 … 1; two different particles seldom exceed 0.5.
    """
    radii = np.arange(np.ceil(inner), np.floor(outer) + 1)
    sphere = fibonacci_directions(2 * max(20, POINTS // len(radii)))[: max(20, POINTS // len(radii))]  # V(q) = V(−q)
    point = (radii[:, None, None] * sphere).astype(np.float32)
    target = _standardised(_sample(np.eye(3)[None], point, b, edge))[0]

    def correlation(rotation: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray((_standardised(_sample(rotation, point, a, edge)) * target).mean((1, 2)))

    rotation = super_fibonacci(ROTATIONS)
    score = correlation(rotation)
    rotation = rotation[np.argsort(-score)[:BEST]]
    rng = np.random.default_rng(0)
    width = (8 * np.pi**2 / ROTATIONS) ** (1 / 3) / 2
    for _ in range(REFINEMENTS):
        nudge = exp_map(width * rng.normal(size=(len(rotation), 40, 3)) / np.sqrt(3))
        rotation = np.concatenate([rotation, (nudge @ rotation[:, None]).reshape(-1, 3, 3)])
        score = correlation(rotation)
        rotation = rotation[np.argsort(-score)[:BEST]]
        width /= 2
    return float(score.max())


def _sample(rotation: NDArray[np.float64], point: F32, grid: F32, edge: int) -> F32:
    """(rotations, shells, points) values of the grid at the rotated points."""
    out = np.empty((len(rotation), point.shape[0] * point.shape[1]), np.float32)
    kernels.gather(rotation.astype(np.float32), point.reshape(-1, 3), grid, edge, out)
    return out.reshape(len(rotation), *point.shape[:2])


def _standardised(value: F32) -> F32:
    value = value - value.mean(-1, keepdims=True)
    return np.asarray(value / np.maximum(value.std(-1, keepdims=True), 1e-12), np.float32)
