"""What every reader of frames gives: a stream that can be read again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..core.frames import Detector, Frames


class InputError(ValueError):
    """Something the user gave cannot be used. Its message is one sentence: file, dataset, remedy."""


class FrameSource(Protocol):
    """Frames in source order, a batch at a time, as often as asked; never the whole file in memory."""

    format: str
    """In words: ``"CXI 1.6"``, ``"Dragonfly photons (HDF5)"``."""
    paths: tuple[Path, ...]
    n_frames: int | None
    """None where the end is not known."""
    shape: tuple[int, ...]
    """Of one frame, as the file stores it."""
    n_pixels: int
    detector: Detector | None
    """None while the geometry is missing."""

    def batches(self, size: int, start: int = 0) -> Iterator[Frames]:
        """Yield frames ``start, start+1, …`` in batches of `size` (the last may be smaller)."""
        ...

    def read(self, frames: NDArray[np.integer]) -> Frames:
        """The frames at these source positions, in this order."""
        ...
