"""Expected photons of a frame as a function of its pose, and the adjoint: where in 3D a set of poses has looked.

Σ_p c_p V(R q_p) needs every pixel, lit or not. It is tabulated over viewing directions once per field update and then
costs four look-ups per pose. Where response × mask has no ring symmetry (polarisation, gaps, panels, square pixels
near the beam) it also depends on the in-plane angle α: the table then carries the harmonics that the mask excites,

    S(R) = Σ_k S_k(direction) e^{ikα},   S_k = Σ_rings V_k(ring) W_k(ring),   W_k = Σ_{p in ring} w_p e^{ikφ_p}.
"""

from __future__ import annotations

from collections.abc import Generator
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from . import kernels
from .fine_directions import FineDirections, fine_side
from .pixels import Pixels
from .rotations import direction_to_rotation
from .workers import chunks, in_threads

F32 = NDArray[np.float32]

NEGLIGIBLE_HARMONIC = 4e-3
"""In-plane harmonics of response × mask below this part of the mean are left out."""

MOST_HARMONICS = 16

LEAST_POINTS = 2 * MOST_HARMONICS + 8
"""Points on a ring: with fewer, a high harmonic would take V's mean for itself."""

POINT_SPACING, POINTS_PER_SPECKLE = 1.5, 4.0
"""Of points along a ring, voxels, and how many a speckle has at least: V has no harmonics so fine that they would alias
to those kept."""

SPACING, DIRECTIONS_PER_SPECKLE, FINEST = 1 / 12, 2.3, 1 / 40
"""Of directions, radians; and how many a speckle has at least where the detector ends. With fewer, the total of a view
that looks along a thin sheet of the volume comes out too small, and its exposure too thin: frames gather there, make
the sheet brighter, and more frames gather.
"""

DIRECTIONS_PER_STEP = 128

FINE_DEPTH = 8.0
"""Voxels from the beam stop's edge within which rings are half a voxel wide."""


class ExposureTable:
    """Rings on the Ewald sphere × a lattice of viewing directions, on the faces of a cube.

    Parameters
    ----------
    pixels : Pixels
    brightness : (U,) float32
        Mean photons per frame and pixel of a structureless particle: response × radial profile. Or of a background,
        where a few may be negative.
    speckle : float
        Width of a speckle, voxels: the finer, the more directions, and the more points on a ring.
    """

    def __init__(self, pixels: Pixels, brightness: F32, speckle: float = np.inf) -> None:
        spacing = max(min(SPACING, speckle / (DIRECTIONS_PER_SPECKLE * pixels.orient_radius)), FINEST)
        self.m = round(np.pi / 2 / spacing) + 1
        self.point_spacing = min(POINT_SPACING, speckle / POINTS_PER_SPECKLE)
        self.rotation: F32 = direction_to_rotation(cube_directions(self.m)).astype(np.float32)
        self._lay_rings(pixels, brightness)

    def _lay_rings(self, pixels: Pixels, brightness: F32) -> None:
        # near the beam a ring half a voxel wide: there V is steepest, and points cost little
        depth = pixels.rho - pixels.rho.min()
        ring = np.rint(2 * np.minimum(depth, FINE_DEPTH) + np.maximum(depth - FINE_DEPTH, 0)).astype(int)
        total = np.bincount(ring, np.abs(brightness))
        mean_radius = np.bincount(ring, pixels.rho) / np.maximum(np.bincount(ring), 1)
        present = np.flatnonzero(total > 0)
        length = np.maximum(LEAST_POINTS, (2 * np.pi / self.point_spacing * mean_radius[present]).astype(int))
        self.ring_of_point = np.repeat(present, length)
        azimuth = np.concatenate([np.arange(k) * 2 * np.pi / k for k in length])
        rho = mean_radius[self.ring_of_point]
        depth = np.sqrt(pixels.ewald_radius**2 - rho**2) - pixels.ewald_radius
        self.point = np.stack([rho * np.cos(azimuth), rho * np.sin(azimuth), depth], -1).astype(np.float32)
        self.pixels, self.ring, self.brightness = pixels, ring, brightness
        self.azimuth, self.share = azimuth, 1.0 / np.repeat(length, length)
        self.harmonics = MOST_HARMONICS
        strength = np.abs(self._moments(pixels.n_orient)).sum(1)
        audible = strength > NEGLIGIBLE_HARMONIC * np.abs(brightness[: pixels.n_orient]).sum()
        self.harmonics = int(np.flatnonzero(audible)[-1]) if audible.any() else 0

    def _moments(self, n_pixels: int) -> NDArray[np.complex128]:
        """(1 + K, rings) Σ over each ring's pixels among the first `n_pixels` of brightness · e^{ikφ}."""
        ring, weight, rings = self.ring[:n_pixels], self.brightness[:n_pixels], self.ring.max() + 1
        phase = np.arange(self.harmonics + 1)[:, None] * self.pixels.azimuth[:n_pixels]
        return np.array([
            np.bincount(ring, weight * np.cos(p), rings) + 1j * np.bincount(ring, weight * np.sin(p), rings)
            for p in phase
        ])  # fmt: skip

    def _points(self, n_pixels: int) -> tuple[F32, F32]:
        """Ring points that the first `n_pixels` pixels look at, and the (points, 1 + 2K) basis that takes V on them to
        the table's columns: these pixels and no others.
        """
        moment = self._moments(n_pixels)
        column = [moment[0].real[self.ring_of_point] * self.share]
        for k in range(1, self.harmonics + 1):
            wave = 2 * moment[k][self.ring_of_point] * np.exp(-1j * k * self.azimuth) * self.share
            column += [wave.real, -wave.imag]
        basis = np.stack(column, -1)
        seen = basis.any(1)
        return self.point[seen], basis[seen].astype(np.float32)

    def _points_laid(self, radius: float) -> tuple[F32, F32]:
        """`_points` of orienting pixels within `radius` of the beam, or of all pixels where it is infinite."""
        return self._points(self.pixels.within(radius) if np.isfinite(radius) else len(self.pixels.rho))

    def totals(
        self, grid: F32, edge: int, radius: float, threads: int, of_logarithm: bool = False
    ) -> Generator[None, None, F32]:  # fmt: skip
        """Tabulate the photons expected on orienting pixels within `radius` voxels of the beam.

        `grid` (edge³) is V, linear between voxels, or ln V. Yields between steps of work; returns a (nodes, 1 + 2K)
        table for `kernels.expected_total`.
        """
        point, basis = self._points(self.pixels.within(radius))
        table = np.empty((len(self.rotation), basis.shape[1]), np.float32)

        def tabulate(part: slice) -> None:
            value = np.empty((part.stop - part.start, len(point)), np.float32)
            kernels.gather(self.rotation[part], point, grid, edge, value)
            table[part] = (np.exp(value, out=value) if of_logarithm else value) @ basis

        parts = chunks(len(table), DIRECTIONS_PER_STEP)
        for step in chunks(len(parts), threads):
            in_threads(tabulate, parts[step], threads)
            yield
        return table

    @cached_property
    def fine(self) -> FineDirections:
        """A finer lattice for look-ups."""
        return FineDirections(cube_directions(fine_side(self.m)), self.rotation, self.m, self.harmonics)

    def amplitudes(self) -> NDArray[np.float64]:
        """(nodes, 1 + 2K) zeros, for poses to be laid on by `deposit`."""
        return np.zeros((len(self.rotation), 1 + 2 * self.harmonics))

    def deposit(self, rotation: F32, weight: NDArray[np.float64], amplitude: NDArray[np.float64]) -> None:
        """Lay poses (J, 3, 3) with weights (J,) on the directions."""
        kernels.deposit(rotation, weight, self.rotation, self.m, amplitude)

    def spread(
        self, amplitudes: list[NDArray[np.float64]], radius: float, edge: int, threads: int
    ) -> Generator[None, None, list[F32]]:  # fmt: skip
        """The volumes (edge³) of exposure behind two `amplitudes`, from orienting pixels within `radius` of the beam,
        or from all pixels where it is infinite.

        The adjoint of `totals` of V. Yields between steps of work.
        """
        point, basis = self._points_laid(radius)
        basis = np.ascontiguousarray(basis.T)
        grids = [np.zeros((edge**3, 2), np.float32) for _ in range(2)]  # always two, whatever the threads: same sums
        lit = np.flatnonzero((amplitudes[0][:, 0] > 0) | (amplitudes[1][:, 0] > 0))

        def scatter(job: tuple[F32, slice]) -> None:
            grid, part = job
            value = np.empty((2, part.stop - part.start, basis.shape[1]), np.float32)
            for half, amplitude in enumerate(amplitudes):
                np.matmul(amplitude[lit[part]].astype(np.float32), basis, out=value[half])
            kernels.scatter_halves(self.rotation[lit[part]], point, value, grid, edge)

        parts = chunks(len(lit), DIRECTIONS_PER_STEP)
        for pair in chunks(len(parts), 2):
            in_threads(scatter, list(zip(grids, parts[pair], strict=False)), threads)
            yield
        return [np.ascontiguousarray(grids[0][:, half] + grids[1][:, half]) for half in range(2)]

    def look_ups(
        self, amplitude: NDArray[np.float64], radius: float, log_grid: F32, edge: int, threads: int
    ) -> Generator[None, None, F32]:  # fmt: skip
        """The photons (edge³) that look-ups in `log_grid` (edge³), ln V, make of an exposure, laid down as it is.

        Parameters as of `spread`, and of `totals`. Yields between steps of work.
        """
        point, basis = self._points_laid(radius)
        basis = np.ascontiguousarray(basis.T)
        grids = [np.zeros(edge**3, np.float32) for _ in range(2)]
        lit = np.flatnonzero(amplitude[:, 0] > 0)

        def scatter(job: tuple[F32, slice]) -> None:
            grid, part = job
            turn = self.rotation[lit[part]]
            value = np.empty((len(turn), len(point)), np.float32)
            kernels.gather(turn, point, log_grid, edge, value)
            np.exp(value, out=value)
            value *= amplitude[lit[part]].astype(np.float32) @ basis
            kernels.scatter(turn, point, value, grid, edge)

        parts = chunks(len(lit), DIRECTIONS_PER_STEP)
        for pair in chunks(len(parts), 2):
            in_threads(scatter, list(zip(grids, parts[pair], strict=False)), threads)
            yield
        return grids[0] + grids[1]


def cube_directions(m: int) -> NDArray[np.float64]:
    """(6·m², 3) unit vectors: m × m on each face of a cube, equally spaced in angle along its edges.

    Faces +x, −x, +y, −y, +z, −z; on each, the other two axes in their order, the first fastest. Spacings vary by a
    factor of 1.4, and two neighbours interpolate bilinearly up to the face's edge, whose nodes both faces have.
    """
    angle = np.tan(np.linspace(-np.pi / 4, np.pi / 4, m))
    v, u = np.meshgrid(angle, angle, indexing="ij")
    faces = []
    for axis in range(3):
        for sign in (1.0, -1.0):
            face = np.stack([u, v], -1).reshape(-1, 2)
            faces.append(np.insert(face, axis, sign, axis=1))
    direction = np.concatenate(faces)
    return np.asarray(direction / np.linalg.norm(direction, axis=1, keepdims=True))
