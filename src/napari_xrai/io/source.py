"""What every reader of frames gives: a stream that can be read again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..core.detector import Polarization
from ..core.frames import Detector, Frames


class InputError(ValueError):
    """Something the user gave cannot be used. Its message is one sentence: file, dataset, remedy."""


@dataclass(frozen=True)
class Beam:
    """What is known of an experiment besides its frames: from the user, whose word wins, or from a file."""

    energy_eV: float | None = None
    distance_m: float | None = None
    pixel_size_m: float | None = None
    polarization: Polarization | None = None

    def over(self, other: Beam) -> Beam:
        """Take the `other`'s figures where this beam has none."""
        mine = {name: value for name, value in vars(self).items() if value is not None}
        return Beam(**{**vars(other), **mine})


CENTRE_ASSUMED = "the beam centre is not in these files: taken at the middle of the frame"
"""A note of readers."""

UNKNOWN_BEAM = Beam()
"""Nobody said anything."""


class FrameSource(Protocol):
    """Frames in source order, a batch at a time, as often as asked; never the whole file in memory."""

    format: str
    """In words: ``"CXI 1.6"``, ``"Dragonfly photons (HDF5)"``."""
    n_frames: int | None
    """None where the end is not known."""
    shape: tuple[int, ...]
    """Of one frame, as the file stores it."""
    n_pixels: int
    detector: Detector | None
    """None while the geometry is missing."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """Files that the frames come from; of a stream, so far."""
        ...

    def batches(self, size: int, start: int = 0) -> Iterator[Frames]:
        """Yield frames ``start, start+1, …`` in batches of `size` (the last may be smaller)."""
        ...

    def read(self, frames: NDArray[np.integer]) -> Frames:
        """The frames at these source positions, in this order."""
        ...
