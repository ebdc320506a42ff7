"""What a first look found, as files that a run takes: the painted mask, the moved geometry, the list of hits."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .core.frames import Detector
from .io.atomic import replacing
from .io.dragonfly_writer import write_detector


def name_beside_the_run(frames: Path, what: str, ending: str) -> Path:
    """``<stem>_<what>_<time>.<ending>`` in the current folder, where run folders go too; never beside the data."""
    return Path.cwd() / f"{frames.stem}_{what}_{time.strftime('%Y%m%d-%H%M%S')}{ending}"


def save_geometry(detector: Detector, frames: Path) -> Path:
    """Write a detector as Dragonfly has it, and return where.

    Raises
    ------
    InputError
        If it cannot be written.
    """
    path = name_beside_the_run(frames, "geometry", ".h5")
    write_detector(path, detector)
    return path


def save_array(values: NDArray[Any], frames: Path, what: str) -> Path:
    """Write a mask (in the frames' shape, 0/1/2) or a list of frames as ``.npy``, and return where.

    Raises
    ------
    InputError
        If it cannot be written.
    """
    path = name_beside_the_run(frames, what, ".npy")
    with replacing(path) as part, part.open("wb") as file:
        np.save(file, values)
    return path
