"""Sleep and wake: the encoder follows the field as it sharpens, and proposes poses for real frames."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from .encoder import PolarImage, PoseEncoder, propose, sleep
from .pixels import Pixels, SparsePhotons

F32 = NDArray[np.float32]

FIRST_STEPS, NEXT_STEPS = 400, 150
"""Steps of sleep, about 20 ms each: to learn a field from nothing, and to follow one that has sharpened."""

FIRST_RATE, NEXT_RATE = 4e-3, 3e-3

SIGHT = 3.2
"""Speckles from the beam that the encoder sees: beyond, frames hold few photons and its rings would grow too wide."""


class AmortisedPoses:
    """An encoder and when to teach it.

    Parameters
    ----------
    pixels : Pixels
    brightness : (U,) float32
        Mean photons per frame and pixel of a structureless particle.
    speckle : float
        Size of a speckle, voxels.
    fluence_shape : float
        As in `likelihood`.
    device : torch.device or str
        Where it sleeps and wakes.
    """

    def __init__(
        self, pixels: Pixels, brightness: F32, speckle: float, fluence_shape: float,
        device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        self.pixels, self.brightness, self.device = pixels, brightness, device
        self.sight, self.fluence_shape = SIGHT * speckle, fluence_shape
        self.encoder: PoseEncoder | None = None

    def sleep(self, ratio: F32, radius: float, rng: np.random.Generator) -> Iterator[None]:
        """Learn the field (edge³) as far as it is resolved; yields after every step."""
        radius = min(radius, self.sight)
        polar = PolarImage(self.pixels, self.brightness, radius, self.fluence_shape, device=self.device)
        steps, rate = NEXT_STEPS, NEXT_RATE
        if self.encoder is None:
            self.encoder = PoseEncoder(polar, seed=int(rng.integers(2**31)))
            steps, rate = FIRST_STEPS, FIRST_RATE
        self.encoder.polar = polar
        for _ in sleep(self.encoder, ratio, steps, rng, rate=rate):
            yield

    def propose(self, photons: SparsePhotons) -> F32:
        """(N, M, 3, 3) poses that the encoder holds possible, modulo Rz(π)."""
        if self.encoder is None:
            raise RuntimeError("an encoder that has not slept knows no poses")
        return propose(self.encoder, photons)[0]
