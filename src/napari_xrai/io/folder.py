"""Many files at once: what a folder or a pattern stands for, and frames that are in it more than once."""

from __future__ import annotations

import glob
import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from .batched import BatchedSource
from .source import InputError

FRAMES_COMPARED = 3
"""From the beginning and from the end of a file: equal photons there, and as many frames, are the same frames."""


def expand(paths: Sequence[Path]) -> list[Path]:
    """Patterns such as ``run*/*.cxi`` replaced by the files that fit, numbers in their names in numerical order.

    Raises
    ------
    InputError
        If nothing fits a pattern.
    """
    found: list[Path] = []
    for path in paths:
        if path.exists() or not glob.has_magic(str(path)):
            found.append(path)
            continue
        fitting = in_order(Path(p) for p in glob.glob(str(path), recursive=True))
        if not fitting:
            raise InputError(f"nothing fits {path}: check the pattern")
        found += fitting
    return found


def in_order(paths: Iterable[Path]) -> list[Path]:
    """By name, r9 before r10."""

    def key(path: Path) -> list[tuple[bool, int, str]]:
        parts = re.split(r"([0-9]+)", str(path))
        return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]

    return sorted(paths, key=key)


def without_repeats(parts: Sequence[BatchedSource]) -> tuple[list[BatchedSource], list[str]]:
    """Files that hold the same frames as one before them are left out: counted twice, they would pass for more data.

    Returns
    -------
    parts : list of BatchedSource
        The first of each.
    notes : list of str
        Which were left out.

    Raises
    ------
    InputError
        If a file cannot be read.
    """
    if len(parts) < 2:
        return list(parts), []
    kept: dict[str, BatchedSource] = {}
    notes = []
    for part in parts:
        same = kept.setdefault(_fingerprint(part), part)
        if same is not part:
            notes.append(f"{part.paths[0].name} holds the frames of {same.paths[0].name} once more: left out")
    return list(kept.values()), notes


def _fingerprint(source: BatchedSource) -> str:
    """Of the number of frames and the photons of a few; unique where those few are empty."""
    n = source.n_frames or 0
    few = np.unique(np.concatenate([np.arange(min(FRAMES_COMPARED, n)), np.arange(max(0, n - FRAMES_COMPARED), n)]))
    frames = source.read(few)
    if not len(frames.pixel):
        return str(source.paths[0])
    digest = hashlib.blake2b(f"{n} {source.n_pixels}".encode())
    for column in (frames.start, frames.pixel, frames.count):
        digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()
