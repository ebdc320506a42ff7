"""What the frames seen so far say about each voxel: photons, and the exposure under which they were counted."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
from numpy.typing import NDArray

from . import kernels
from .band_limit import PRIOR_PHOTONS
from .exposure import ExposureTable
from .field import friedel_sum
from .pixels import Pixels, SparsePhotons
from .symmetry import Orbit
from .workers import in_threads

F32 = NDArray[np.float32]

FLATTEST = 2.0
"""No look-up is believed to find more than so many times what a voxel holds, or less than one part of it."""


class Evidence:
    """Photons and exposure in 3D, in two halves by even and odd source position, so that one can check the other.

    Poses are laid on the direction table as they come; their exposure is spread to the volume once, when asked for.

    Parameters
    ----------
    pixels : Pixels
    exposure : ExposureTable
    radius : float
        Pixels farther from the beam are left out, voxels: while the resolution still grows, nobody looks there.
    threads : int
    light : ExposureTable or None
        Of an uneven background, where there is one: what it adds to the photons is taken off.
    """

    def __init__(
        self, pixels: Pixels, exposure: ExposureTable, radius: float, threads: int, light: ExposureTable | None = None
    ) -> None:
        self.pixels, self.exposure, self.threads, self.light = pixels, exposure, threads, light
        self.radius = radius if radius < pixels.orient_radius else np.inf
        self.n_pixels = pixels.within(radius) if np.isfinite(self.radius) else len(pixels.rho)
        self.photons = [np.zeros(pixels.edge**3, np.float32) for _ in range(2)]
        self.amplitude = [exposure.amplitudes() for _ in range(2)]
        self.lit = [light.amplitudes() for _ in range(2)] if light else []

    def add(
        self, photons: SparsePhotons, row: NDArray[np.int64], rotation: F32,
        weight: NDArray[np.float64], fluence: NDArray[np.float64],
    ) -> None:  # fmt: skip
        """Merge frames `row` (J,) of a batch at `rotation` (J, 3, 3) with posterior `weight` and `fluence` (J,)."""
        odd = photons.index[row] % 2
        stop = photons.stops(self.n_pixels)

        def merge(half: int) -> None:
            mine = odd == half
            kernels.scatter_photons(
                rotation[mine], row[mine], weight[mine], self.pixels.q,
                photons.start[:-1], stop, photons.pixel, photons.count, self.pixels.share,
                self.photons[half], self.pixels.edge,
            )  # fmt: skip
            self.exposure.deposit(rotation[mine], weight[mine] * fluence[mine], self.amplitude[half])
            if self.light:  # it does not grow with the fluence
                self.light.deposit(rotation[mine], weight[mine], self.lit[half])

        in_threads(merge, (0, 1), self.threads)

    def volumes(self, orbit: Orbit | None = None) -> Generator[None, None, tuple[list[F32], list[F32]]]:
        """Return photons and exposure of both halves, each (edge³), under all rotations of the `orbit`'s point group;
        yields between steps of work.
        """
        edge, photons = self.pixels.edge, self._photons()
        exposed = yield from self.exposure.spread(self._amplitudes(), self.radius, edge, self.threads)
        if self.light:
            added = yield from self.light.spread(self._lit(), self.radius, edge, self.threads)
            photons = [counted - light for counted, light in zip(photons, added, strict=True)]
        if orbit is None:
            return photons, exposed
        return [orbit.sum(grid, edge) for grid in photons], [orbit.sum(grid, edge) for grid in exposed]

    def flattening(
        self, log_grid: F32, exposed: list[F32], orbit: Orbit | None = None
    ) -> Generator[None, None, F32]:  # fmt: skip
        """Return what look-ups between voxels find around each voxel, over what it holds, (edge³); yields between
        steps of work.

        Parameters
        ----------
        log_grid : (edge³) float32
            ln of the ratio that photons were scored against when these poses were found.
        exposed : two of (edge³) float32
            From `volumes`.
        orbit : Orbit or None
            As there.
        """
        edge = self.pixels.edge
        even, odd = self._amplitudes()
        laid = yield from self.exposure.look_ups(even + odd, self.radius, log_grid, edge, self.threads)
        found, seen = friedel_sum(laid), np.maximum(friedel_sum(exposed[0] + exposed[1]), 0)
        if orbit is not None:
            found = orbit.sum(found, edge)
        quotient = (found + PRIOR_PHOTONS) / (seen * np.exp(log_grid) + PRIOR_PHOTONS)
        return np.clip(quotient, 1 / FLATTEST, FLATTEST)

    def _photons(self) -> list[F32]:
        return self.photons

    def _amplitudes(self) -> list[NDArray[np.float64]]:
        return self.amplitude

    def _lit(self) -> list[NDArray[np.float64]]:
        return self.lit
