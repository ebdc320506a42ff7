"""Which views are there? The density of viewing directions, and what chance alone makes of it.

A frame looks along d = R ẑ; d and −d cut the same plane of V, so only even degrees of the density matter. With N frames
looking anywhere, the power of degree l,

    p_l = (1/N) Σ_ij P_l(d_i · d_j),

is 1 on average. More says that views are uneven: the particles were aligned, or the reconstruction has drawn frames
towards favoured directions, which distorts it. Which of the two, views alone do not tell.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.special import chdtrc, chdtri

from .rotations import fibonacci_directions

F64 = NDArray[np.float64]

DEGREES = (2, 4, 6)
NODES = 1000
"""Directions that views are counted at, 6.4° apart: finer than degree 6 by far."""

BY_CHANCE = 0.001
"""Probability of chance below which views are called uneven."""

FEW, MANY = 0.5, 2.0
"""Relative density of views that is worth a word."""


@dataclass(frozen=True, eq=False)
class Coverage:
    """How evenly the particle was seen.

    Parameters
    ----------
    direction : (M, 3) float64
        Viewing directions in the particle's frame (x, y, z), over the whole sphere.
    density : (M,) float64
        Views along each, relative to an even spread; degrees up to 6 of it, noise shrunk; ±d are one.
    power : (3,) float64
        Of degrees 2, 4 and 6; 1 by chance.
    anisotropy, expected : float
        Relative root-mean-square unevenness up to degree 6, and what as many frames looking anywhere would show.
    probability : float
        That chance alone is as uneven.
    frames : int
    sentence : str
        In words.
    """

    direction: F64
    density: F64
    power: F64
    anisotropy: float
    expected: float
    probability: float
    frames: int
    sentence: str

    def along(self, direction: NDArray[np.floating]) -> F64:
        """(N,) views along `direction` (N, 3), relative to an even spread."""
        return np.asarray(self.density[cKDTree(self.direction).query(direction)[1]])


class ViewDensity:
    """Views counted on a lattice of directions, and what follows from them.

    Parameters
    ----------
    directions : iterable of (N, 3)
        Unit vectors, third columns of the poses, in parts of any size: all of a long stream's need not be in memory.
    """

    def __init__(self, directions: Iterable[NDArray[np.floating]]) -> None:
        self.node = fibonacci_directions(NODES)
        tree, count = cKDTree(self.node), np.zeros(NODES, np.int64)
        for direction in directions:
            upper = direction * np.where(direction[:, 2:] < 0, -1.0, 1.0)  # d and −d are one view
            count += np.bincount(tree.query(upper)[1], minlength=NODES)
        self.frames = int(count.sum())
        views = count / max(self.frames, 1)
        self.views: F64 = views
        cosine = self.node @ self.node.T
        self.power = np.array([self.frames * views @ _legendre(degree, cosine) @ views for degree in DEGREES])
        order = 2 * np.array(DEGREES) + 1
        # chance gives each degree a power of 1; only one even sample in twenty has as much as this
        beyond = self.power > chdtri(order.astype(float), 0.05) / order
        self._shrunk = np.where(beyond, 1 - 1 / np.maximum(self.power, 1.0), 0.0) * order

    @property
    def crowding(self) -> float:
        """Relative root-mean-square unevenness up to degree 6, less what chance makes of it."""
        order = 2 * np.array(DEGREES) + 1
        return float(np.sqrt(max((order * (self.power - 1)).sum(), 0.0) / max(self.frames, 1)))

    def excess(self, direction: NDArray[np.floating]) -> F64:
        """(N,) relative excess of views along `direction` (N, 3), chance shrunk away."""
        cosine = direction @ self.node.T
        parts = [s * (_legendre(n, cosine) @ self.views) for n, s in zip(DEGREES, self._shrunk, strict=True)]
        return np.asarray(np.sum(parts, axis=0))

    def coverage(self) -> Coverage:
        """The figures, and a sentence."""
        degrees = np.array(DEGREES)
        freedom = float((2 * degrees + 1).sum())
        total = float(((2 * degrees + 1) * self.power).sum())
        density = 1 + self.excess(self.node)
        probability = float(chdtrc(freedom, total)) if self.frames else 1.0
        frames = max(self.frames, 1)
        return Coverage(
            self.node, density, self.power, float(np.sqrt(total / frames)), float(np.sqrt(freedom / frames)),
            probability, self.frames, _sentence(self.node, density, probability, self.frames),
        )  # fmt: skip


def _legendre(degree: int, x: F64) -> F64:
    """P_l, for the degrees in use."""
    x2 = x * x
    if degree == 2:
        return 1.5 * x2 - 0.5
    if degree == 4:
        return (35 * x2 - 30) * x2 / 8 + 0.375
    return ((231 * x2 - 315) * x2 + 105) * x2 / 16 - 0.3125


def _sentence(node: F64, density: F64, probability: float, frames: int) -> str:
    if frames < 20:
        return "too few frames to tell how evenly the particle was seen"
    if probability > BY_CHANCE:
        return "views are even: no more uneven than chance makes them"
    least, most = int(density.argmin()), int(density.argmax())
    extremes = f"{max(density[least], 0):.2f} of the mean {_axis(node[least])}, {density[most]:.2f} {_axis(node[most])}"
    if density[least] < FEW:
        return f"few views along some directions: {extremes}"
    if density[most] > MANY:
        return f"many views along some directions: {extremes}"
    return f"views are slightly uneven, more than chance makes them: {extremes}"


def _axis(direction: F64) -> str:
    x, y, z = direction if direction[2] >= 0 else -direction
    return f"along (x, y, z) = ({x:.1f}, {y:.1f}, {z:.1f})"
