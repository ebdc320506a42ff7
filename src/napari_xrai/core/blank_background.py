"""The background, as frames without a particle show it: taken off the intensity that poses were found against.

Light from gas, windows and optics is in every frame alike, whatever the particle's pose: the field that explains the
frames holds the particle's intensity plus this light, smeared over each shell. So it is needed to find poses, and only
the volume that is shown and saved is the particle's alone. What is not even about the beam is taken out before
(`uneven_background`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .field import grid_radius
from .frames import Frames
from .pixels import Pixels

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

FEWEST = 200
"""Frames; of fewer the mean says little."""


class BlankBackground:
    """Photons of frames without a particle, by detector pixel.

    Attributes
    ----------
    frames : int
        Frames so far.
    """

    def __init__(self) -> None:
        self.frames = 0
        self._photons: F64 = np.zeros(0)

    def note(self, blanks: Frames) -> None:
        """Take note of frames without a particle."""
        if len(self._photons) != blanks.n_pixels:
            self._photons, self.frames = np.zeros(blanks.n_pixels), 0
        np.add.at(self._photons, blanks.pixel, blanks.count)
        self.frames += len(blanks)

    def by_shell(self, pixels: Pixels) -> F64:
        """(S,) expected photons per frame in a pixel of response 1, by |q| in whole voxels."""
        seen = pixels.rank >= 0
        mean = np.zeros(len(pixels.rho))
        mean[pixels.rank[seen]] = self._photons[seen] / self.frames
        if pixels.background is not None:  # what is uneven of it is no part of the intensity
            mean -= pixels.background.light
        shell = np.rint(np.linalg.norm(pixels.q, axis=1)).astype(int)
        total, response = np.bincount(shell, mean), np.bincount(shell, pixels.response)
        known = response > 0
        return np.interp(np.arange(len(total)), np.flatnonzero(known), total[known] / response[known])

    def taken_off(self, intensity: F32, weight: F32, pixels: Pixels) -> F32:
        """(edge,)*3 intensity without the background, where there is one; 0 where nothing was measured, as before."""
        if self.frames < FEWEST:
            return intensity
        shells = self.by_shell(pixels)
        radius = grid_radius(pixels.edge).reshape(intensity.shape)
        light = np.interp(radius, np.arange(len(shells)), shells).astype(np.float32)
        return np.where(weight > 0, np.maximum(intensity - light, 0), intensity)

    @property
    def sentence(self) -> str:
        """What was found, in words; nothing before there are enough frames."""
        if self.frames < FEWEST:
            return ""
        photons = self._photons.sum() / self.frames
        return f"{photons:,.3g} photons per frame, from {self.frames:,} without a particle; taken off shell by shell"
