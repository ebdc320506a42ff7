"""Blocks of frames with what they said when they were last seen, and sums of such evidence."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .evidence import Evidence
from .pixels import SparsePhotons

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Volumes = tuple[list[F32], list[F32]]
"""Photons and exposure, each of both halves."""


@dataclass(eq=False)
class Growing:
    """Frames that came since the last update."""

    evidence: Evidence
    parts: list[SparsePhotons]
    tally: F64
    since: float = field(default_factory=time.monotonic)

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def merge(self, photons: SparsePhotons, tally: F64) -> None:
        """Take note of frames that `evidence` has."""
        self.parts.append(photons)
        self.tally += tally


@dataclass(eq=False)
class Block:
    """Frames in the reservoir, and what they said when they were last seen."""

    photons: SparsePhotons
    evidence: Volumes


def add_volumes(total: Volumes, more: Volumes) -> Volumes:
    """Add evidence to `total`, in place."""
    for kind, other in zip(total, more, strict=True):
        for grid, addend in zip(kind, other, strict=True):
            grid += addend
    return total


def scale_volumes(volumes: Volumes, factor: float) -> None:
    """Let evidence count less, in place."""
    for kind in volumes:
        for grid in kind:
            grid *= np.float32(factor)
