"""A multi-resolution hash grid that is even by construction: features looked up at q and at −q are added.

After Müller, Evans, Schied & Keller, ACM Trans. Graph. 41, 102 (2022): few features per node of nested lattices,
trilinear between nodes, and a small network that turns the features of all levels into one number. Lattices finer than
`LARGEST_TABLE` nodes share entries by hashing; the network sorts collisions out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CELLS = (0.8, 0.4)
"""Spacing of the lattices, speckles: finer ones hold noise, coarser ones add nothing."""

FEATURES = 2
HIDDEN = 32

LARGEST_TABLE = 2**16
PRIMES = (1, 2654435761, 805459861)

TABLE_RATE, RATE = 1e-2, 5e-3


class HashGridPair(nn.Module):
    """Two independent hash grids evaluated together: q → x, with x(q) = x(−q).

    Parameters
    ----------
    reach : float
        Largest |coordinate|, speckles.
    generator : torch.Generator
        The start, drawn on the CPU whatever the device.
    """

    def __init__(self, reach: float, generator: torch.Generator) -> None:
        super().__init__()
        self.nodes = [2 * int(reach / cell + 1) + 2 for cell in CELLS]  # along an edge, q = 0 on a node of each
        self.size = [min(n**3, LARGEST_TABLE) for n in self.nodes]
        width = len(CELLS) * FEATURES
        table = 2e-2 * torch.rand(2, sum(self.size), FEATURES, generator=generator) - 1e-2
        self.table = nn.Parameter(table)
        self.weight = nn.Parameter((2 / width) ** 0.5 * torch.randn(2, width, HIDDEN, generator=generator))
        self.bias = nn.Parameter(0.2 * torch.rand(2, 1, HIDDEN, generator=generator) - 0.1)
        self.out = nn.Parameter(0.3 / HIDDEN**0.5 * torch.randn(2, HIDDEN, 1, generator=generator))
        self.offset = nn.Parameter(torch.zeros(2, 1, 1))

    def forward(self, q: Tensor) -> Tensor:
        """(2, B) values of both networks at `q` (2, B, 3), in speckles."""
        mates = torch.stack([q, -q], 2)
        feature = []
        start = 0
        for cell, nodes, size in zip(CELLS, self.nodes, self.size, strict=True):
            entry, share = _corners(mates / cell, nodes, size)
            entry = entry + (start + sum(self.size) * torch.arange(2, device=q.device)[:, None, None, None])
            bags = F.embedding_bag(
                entry.reshape(-1, 16), self.table.flatten(0, 1), mode="sum", per_sample_weights=share.reshape(-1, 16)
            )
            feature.append(bags.view(*q.shape[:2], FEATURES))
            start += size
        hidden = torch.relu(torch.baddbmm(self.bias, torch.cat(feature, -1), self.weight))
        return torch.baddbmm(self.offset, hidden, self.out)[..., 0]

    def rates(self) -> list[tuple[list[nn.Parameter], float]]:
        """Parameters and the learning rate that suits them."""
        return [([self.table], TABLE_RATE), ([self.weight, self.bias, self.out, self.offset], RATE)]


def _corners(point: Tensor, nodes: int, size: int) -> tuple[Tensor, Tensor]:
    """(…, 8) table entries of the cell's corners around `point` (…, 3), in cells, and their trilinear shares."""
    point = point + nodes // 2
    low = point.floor()
    part = point - low
    low = low.long().clamp_(0, nodes - 2)
    share = torch.stack([1 - part, part], -1)  # (…, axis, side)
    side = low[..., None] + torch.arange(2, device=point.device)
    hashed = nodes**3 > size
    step = PRIMES if hashed else (1, nodes, nodes**2)
    x, y, z = (side[..., axis, :] * step[axis] for axis in range(3))
    x, y, z = x[..., None, None, :], y[..., None, :, None], z[..., None, None]
    entry = (x ^ y ^ z) % size if hashed else x + y + z
    weight = share[..., 0, :][..., None, None, :] * share[..., 1, :][..., None, :, None] * share[..., 2, :, None, None]
    return entry.flatten(-3), weight.flatten(-3)
