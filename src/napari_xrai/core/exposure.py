"""Expected photons of a frame as a function of its pose, and the adjoint: where in 3D a set of poses has looked.

Σ_p c_p V(R q_p) needs every pixel, lit or not. It is tabulated over viewing directions once per field update and then
costs eight look-ups per pose. Where response × mask has no ring symmetry (polarisation, gaps, panels) it also depends on
the in-plane angle: the table then carries the in-plane harmonics k = 1…K that the mask excites,

    S(R) = Σ_k S_k(direction) e^{ikα},   S_k = Σ_rings V_k(ring) W_k(ring),   W_k = Σ_{p in ring} w_p e^{ikφ_p}.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import kernels
from .pixels import Pixels
from .rotations import direction_to_rotation
from .workers import chunks, in_threads

F32 = NDArray[np.float32]

NEGLIGIBLE_HARMONIC = 4e-3
"""In-plane harmonics of response × mask below this part of the mean are left out."""

MOST_HARMONICS = 16


class ExposureTable:
    """Rings on the Ewald sphere × a lattice of viewing directions.

    Parameters
    ----------
    pixels : Pixels
    brightness : (U,) float32
        Mean photons per frame and pixel of a structureless particle: response × radial profile.
    lattice_radius : int
        Directions are spaced by 1/lattice_radius rad.
    """

    def __init__(self, pixels: Pixels, brightness: F32, lattice_radius: int = 12) -> None:
        self.scale = float(lattice_radius)
        self.m = 2 * (lattice_radius + 2) + 1
        self._lay_directions(lattice_radius)
        self._lay_rings(pixels, brightness)

    def _lay_directions(self, radius: int) -> None:
        """Nodes of a cubic lattice within reach of trilinear interpolation on the sphere of `radius`."""
        axis = np.arange(self.m) - (self.m - 1) / 2
        z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
        point = np.stack([x, y, z], -1).reshape(-1, 3)
        distance = np.linalg.norm(point, axis=1)
        near = np.flatnonzero(np.abs(distance - radius) < 1.75)
        self.node = np.zeros(self.m**3, np.int32)
        self.node[near] = np.arange(len(near), dtype=np.int32)
        self.rotation: F32 = direction_to_rotation(point[near] / distance[near, None]).astype(np.float32)

    def _lay_rings(self, pixels: Pixels, brightness: F32) -> None:
        ring = np.rint(pixels.rho - pixels.inner_radius).astype(int)
        total = np.bincount(ring, brightness)
        mean_radius = np.bincount(ring, pixels.rho) / np.maximum(np.bincount(ring), 1)
        present = np.flatnonzero(total > 0)
        length = np.maximum(16, (2 * np.pi * mean_radius[present]).astype(int))
        self.ring_of_point = np.repeat(present, length)
        azimuth = np.concatenate([np.arange(k) * 2 * np.pi / k for k in length])
        self.rho = mean_radius[self.ring_of_point]
        depth = np.sqrt(pixels.ewald_radius**2 - self.rho**2) - pixels.ewald_radius
        self.point = np.stack([self.rho * np.cos(azimuth), self.rho * np.sin(azimuth), depth], -1).astype(np.float32)
        share = 1.0 / np.repeat(length, length)
        orients = np.arange(len(ring)) < pixels.n_orient
        moment = {
            part: [_ring_moment(ring, w, k * pixels.azimuth) for k in range(MOST_HARMONICS + 1)]
            for part, w in (("orient", brightness * orients), ("merge", brightness))
        }
        strength = [np.abs(w).sum() / np.abs(moment["orient"][0]).sum() for w in moment["orient"]]
        self.harmonics = max(k for k in range(MOST_HARMONICS + 1) if k == 0 or strength[k] > NEGLIGIBLE_HARMONIC)
        self.orient_basis = self._basis(moment["orient"], azimuth, share)
        self.merge_basis = self._basis(moment["merge"], azimuth, share)

    def _basis(self, moment: list[NDArray[np.complex128]], azimuth: NDArray[Any], share: NDArray[Any]) -> F32:
        """(points, 1 + 2K): from V on the ring points to the table's columns."""
        column = [moment[0].real[self.ring_of_point] * share]
        for k in range(1, self.harmonics + 1):
            wave = 2 * moment[k][self.ring_of_point] * np.exp(-1j * k * azimuth) * share
            column += [wave.real, -wave.imag]
        return np.stack(column, -1).astype(np.float32)

    def totals(self, grid: F32, edge: int, radius: float, threads: int = 1) -> F32:
        """(nodes, 1 + 2K) table of the photons expected on orienting pixels within `radius` voxels of the beam."""
        within = self.rho < radius + 0.5
        point, basis = self.point[within], self.orient_basis[within]
        out = np.empty((len(self.rotation), basis.shape[1]), np.float32)

        def tabulate(part: slice) -> None:
            value = np.empty((part.stop - part.start, len(point)), np.float32)
            kernels.gather(self.rotation[part], point, grid, edge, value)
            out[part] = value @ basis

        in_threads(tabulate, chunks(len(self.rotation), 256), threads)
        return out

    def expected(self, rotation: F32, table: F32) -> NDArray[np.float64]:
        """(J,) expected photons at `rotation` (J, 3, 3) from a table of `totals`."""
        total = np.zeros(len(rotation))
        for node, share, basis in self._corners(rotation):
            total += share * (table[node] * basis).sum(1)
        return total

    def spread(self, rotation: F32, weight: NDArray[Any], grids: list[F32], edge: int) -> None:
        """Add the exposure of poses `rotation` (J, 3, 3) with `weight` (J,) to the volume: the adjoint of `totals`.

        The volume is given as one private grid per thread, to be summed by the caller.
        """
        amplitude = np.zeros((len(self.rotation), self.merge_basis.shape[1]))
        for node, share, basis in self._corners(rotation):
            for column in range(amplitude.shape[1]):
                amplitude[:, column] += np.bincount(node, weight * share * basis[:, column], len(self.rotation))
        lit = np.flatnonzero(amplitude[:, 0] > 0)
        amplitude = amplitude[lit].astype(np.float32)

        def scatter(job: tuple[int, F32]) -> None:
            first, grid = job
            for part in chunks(len(lit), 256)[first :: len(grids)]:
                value = amplitude[part] @ self.merge_basis.T
                kernels.scatter(self.rotation[lit[part]], self.point, value, grid, edge)

        in_threads(scatter, list(enumerate(grids)), len(grids))

    def _corners(self, rotation: F32) -> Any:
        """Trilinear neighbours of each viewing direction: node, share, and in-plane harmonics relative to its frame."""
        position = rotation[:, :, 2].astype(np.float64) * self.scale + (self.m - 1) / 2
        base = position.astype(int)
        f = position - base
        for corner in range(8):
            d = np.array([corner & 1, corner >> 1 & 1, corner >> 2])
            share = np.prod(np.where(d, f, 1 - f), axis=1)
            x, y, z = (base + d).T
            node = self.node[(z * self.m + y) * self.m + x]
            basis = np.ones((len(rotation), 1 + 2 * self.harmonics))
            if self.harmonics:
                a = np.einsum("jki,jkl->jil", self.rotation[node][:, :, :2], rotation[:, :, :2])
                alpha = np.arctan2(a[:, 1, 0] - a[:, 0, 1], a[:, 0, 0] + a[:, 1, 1])
                for k in range(1, self.harmonics + 1):
                    basis[:, 2 * k - 1], basis[:, 2 * k] = np.cos(k * alpha), np.sin(k * alpha)
            yield node, share, basis


def _ring_moment(ring: NDArray[Any], weight: NDArray[Any], phase: NDArray[Any]) -> NDArray[np.complex128]:
    """Σ over each ring's pixels of weight · e^{i phase}."""
    return np.asarray(np.bincount(ring, weight * np.cos(phase)) + 1j * np.bincount(ring, weight * np.sin(phase)))
