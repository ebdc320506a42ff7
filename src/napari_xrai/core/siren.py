"""An implicit neural representation that is even by construction: a SIREN whose first layer holds cosines only.

The intensity of a particle of diameter D is a sum of cosines cos(2π r·q) over its autocorrelation, |r| ≤ D. So the
first layer, cos(W q), starts with W spread over that ball: the speckle size sets the frequencies, no constant is tuned.
Whatever follows an even layer is even: V(q) = V(−q), at no cost. (SIREN: Sitzmann, Martel, Bergman, Lindell &
Wetzstein, NeurIPS 2020.)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

FIRST_BAND = 0.45
"""Outermost frequency of the start, in diameters: |F|² of a compact particle holds little beyond half its reach."""

NEURONS_PER_SPECKLE = 12.0
"""Cosines are this many times (radius in speckles)^1.5, half as many sines follow."""

FEWEST, MOST = 64, 512

RATE = 5e-3
BAND_RATE = 2e-2
"""Learning rate of the frequencies, radians per speckle."""


class SirenPair(nn.Module):
    """Two independent networks evaluated together: q → x, with x(q) = x(−q).

    Parameters
    ----------
    radius : float
        Of what is to be represented, speckles: sets the width.
    generator : torch.Generator
        The start, drawn on the CPU whatever the device.
    """

    def __init__(self, radius: float, generator: torch.Generator) -> None:
        super().__init__()
        cosines = 16 * round(min(max(NEURONS_PER_SPECKLE * radius**1.5, FEWEST), MOST) / 16)
        sines = cosines // 2
        direction = torch.randn(2, cosines, 3, generator=generator)
        direction /= direction.norm(dim=-1, keepdim=True)
        length = torch.rand(2, cosines, 1, generator=generator) ** (1 / 3)
        self.band = nn.Parameter(2 * math.pi * FIRST_BAND * length * direction)
        bound = math.sqrt(6 / cosines)  # keeps sin's argument at unit variance, as in SIREN
        self.weight = nn.Parameter(bound * (2 * torch.rand(2, cosines, sines, generator=generator) - 1))
        self.phase = nn.Parameter(math.pi * (2 * torch.rand(2, 1, sines, generator=generator) - 1))
        self.out = nn.Parameter(1e-2 * (2 * torch.rand(2, sines, 1, generator=generator) - 1))
        self.offset = nn.Parameter(torch.zeros(2, 1, 1))

    def forward(self, q: Tensor) -> Tensor:
        """(2, B) values of both networks at `q` (2, B, 3), in speckles."""
        wave = torch.cos(q @ self.band.mT)
        hidden = torch.sin(torch.baddbmm(self.phase, wave, self.weight))
        return torch.baddbmm(self.offset, hidden, self.out)[..., 0]

    def rates(self) -> list[tuple[list[nn.Parameter], float]]:
        """Parameters and the learning rate that suits them."""
        return [([self.band], BAND_RATE), ([self.weight, self.phase, self.out, self.offset], RATE)]
