"""Point groups: the proper rotations that leave a particle's intensity unchanged, and what follows from them."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from . import kernels

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

IDENTITY = np.eye(3)[None]

GENERIC = np.array([0.267, 0.148, 0.952])
"""A direction on no group's axis or mirror: of all views of one kind, the one nearest to it is looked for."""

UNIT_MARGIN = 0.02
"""Of the cosine to it: views just outside are looked for too."""


def point_group(name: str) -> NDArray[np.float64]:
    """Proper rotations of a point group in Schoenflies notation.

    Parameters
    ----------
    name : str
        ``"C1"``, ``"C4"``, ``"D5"``, ``"T"``, ``"O"``, ``"I"``. The main axis of C and D is z; D has a two-fold
        axis along x; T, O and I have two-fold axes along x, y and z.

    Returns
    -------
    (n, 3, 3) float64
        The identity first.

    Raises
    ------
    ValueError
        If the name is none of these.
    """
    group = name.strip().upper()
    if not re.fullmatch(r"[CD][1-9]\d*|[TOI]", group):
        raise ValueError(f"{name!r} is no point group; give C1, C2, …, D2, D3, …, T, O or I")
    matrices: NDArray[np.float64] = Rotation.create_group(group).as_matrix()
    identity_first = np.argsort(-np.trace(matrices, axis1=1, axis2=2), kind="stable")
    return matrices[identity_first]


class Orbit:
    """Evidence seen from every pose that a point group makes equal.

    Parameters
    ----------
    group : (n, 3, 3) float64
        As `point_group` gives it.
    edge : int
        Of the grids summed.
    """

    def __init__(self, group: F64, edge: int) -> None:
        self.group, self.edge = group, edge
        self.rotation = group.astype(np.float32)
        axis = np.arange(edge) - edge // 2
        z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
        point = np.stack([x, y, z], -1).reshape(-1, 3)
        distance = np.linalg.norm(point, axis=1)
        self.order = np.argsort(distance, kind="stable")
        self.order = self.order[: np.searchsorted(distance[self.order], edge // 2 - 1)]
        self.distance = distance[self.order]
        self.point = point[self.order].astype(np.float32)

    def sum(self, grid: F32, radius: float) -> F32:
        """Σ_g grid(g q) within `radius` voxels, (edge³) flat; beyond, the grid as it is."""
        near = slice(int(np.searchsorted(self.distance, radius)))
        value = np.empty((len(self.rotation), len(self.point[near])), np.float32)
        kernels.gather(self.rotation, self.point[near], grid, self.edge, value)
        out = grid.copy()
        out[self.order[near]] = value.sum(0)
        return out


def asymmetric_unit(direction: F64, group: F64) -> NDArray[np.bool_]:
    """(N,) which viewing directions (N, 3) one needs to look along, where `group` makes the others equal."""
    nearness = np.einsum("ni,gji,j->ng", direction, group, GENERIC)
    return np.asarray(direction @ GENERIC >= nearness.max(1) - UNIT_MARGIN)
