"""What pixels expect of a field, lit or not, by viewing direction: the particle's light, and an uneven background's."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
from numpy.typing import NDArray

from .backend import Backend
from .evidence import Evidence
from .likelihood import PoseLikelihood
from .pixels import Pixels

F32 = NDArray[np.float32]

Tables = tuple[F32, F32 | None]
"""Of a field, (nodes, 1 + 2K) each: photons expected; and what a background adds to Σ K ln v, where there is one."""


class LightTables:
    """The tables of one detector, and what is made with them.

    Parameters
    ----------
    backend : Backend
    pixels : Pixels
    brightness : (U,) float32
        Mean photons per frame and pixel of a structureless particle.
    speckle : float
        Width of a speckle, voxels.
    threads : int

    Attributes
    ----------
    brightness : (U,) float32
        As photons count.
    exposure : ExposureTable
    background : ExposureTable or None
    """

    def __init__(self, backend: Backend, pixels: Pixels, brightness: F32, speckle: float, threads: int) -> None:
        self.backend, self.pixels, self.threads = backend, pixels, threads
        self.brightness = brightness * pixels.share
        self.exposure = backend.exposure_table(pixels, self.brightness, speckle)
        found = pixels.background
        self.background = None if found is None else backend.exposure_table(pixels, found.light * found.share, speckle)

    def evidence(self, radius: float) -> Evidence:
        """None yet, of orienting pixels within `radius` voxels of the beam."""
        return self.backend.evidence(self.pixels, self.exposure, radius, self.threads, self.background)

    def of(self, log_grid: F32, ratio: F32 | None, radius: float) -> Generator[None, None, Tables]:
        """Tabulate a field within `radius` voxels of the beam; yields between steps of work.

        Parameters
        ----------
        log_grid : (edge³) float32
            Its ln v.
        ratio : (edge³) float32 or None
            Its v, whose sums are linear between voxels; None: sums are of look-ups in `log_grid`.
        radius : float
        """
        grid, edge = log_grid if ratio is None else ratio, self.pixels.edge
        expected = yield from self.exposure.totals(grid, edge, radius, self.threads, ratio is None)
        if self.background is None:
            return expected, None
        return expected, (yield from self.background.totals(log_grid, edge, radius, self.threads))

    def likelihood(self, log_grid: F32, tables: Tables, radius: float, fluence_shape: float) -> PoseLikelihood:
        """The likelihood of poses under a field and its tables."""
        expected, added = tables
        light = None if added is None or self.background is None else self.background.fine.table(added)
        return self.backend.likelihood(
            self.pixels, self.brightness, self.exposure, log_grid, expected, radius, fluence_shape, self.threads, light
        )
