"""Choosing frames: by a list of positions, a mask, a blacklist, or a rule such as ``odd``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ..core.frames import Frames
from .batched import BatchedSource, Rows, open_hdf5
from .source import InputError

NOT = "not:"
MOST_BYTES = 2**28
SLICE = re.compile(r"(-?\d*):(-?\d*)(?::(-?\d*))?")


def read_selection(selection: str, n_frames: int) -> NDArray[np.int64]:
    """Positions of the chosen frames, rising.

    Parameters
    ----------
    selection : str
        ``odd``, ``even`` (positions count from 0); ``start:stop:step`` as Python slices; or a file: text or ``.npy``
        with positions, a mask with a value per frame (``.npy``, or ``FILE.h5:/dataset``: true is chosen), or a
        blacklist as Dragonfly has it (text with 0 or 1 per frame: 1 is left out). ``not:`` before any of these
        chooses all other frames.
    n_frames : int
        How many there are to choose from.

    Raises
    ------
    InputError
        If it cannot be understood, reaches beyond the frames, or chooses none.
    """
    inverted = selection.startswith(NOT)
    rule = selection.removeprefix(NOT)
    chosen = np.zeros(n_frames, np.bool_)
    named = {"odd": slice(1, None, 2), "even": slice(0, None, 2)}
    if rule in named:
        chosen[named[rule]] = True
    elif match := SLICE.fullmatch(rule):
        start, stop, step = (int(part) if part and part != "-" else None for part in match.groups())
        if step is not None and step <= 0:
            raise InputError(f"the selection {selection} has a step of {step}: give a positive one")
        chosen[slice(start, stop, step)] = True
    else:
        chosen[_from_file(rule, n_frames)] = True
    positions = np.flatnonzero(chosen != inverted)
    if not len(positions):
        raise InputError(f"the selection {selection} leaves none of the {n_frames:,} frames: choose some")
    return positions.astype(np.int64)


def _from_file(rule: str, n_frames: int) -> NDArray[Any]:
    """Positions, or a mask over all frames."""
    name, colon, dataset = rule.partition(":/")
    path = Path(name)
    if not path.is_file():
        raise InputError(f"the selection {rule} is no file: give one, or odd, even or start:stop:step")
    if path.stat().st_size > MOST_BYTES:
        raise InputError(f"{path} is too large for a list of frames: give positions or a mask")
    values = _hdf5_values(path, dataset) if colon else _plain_values(path)
    if values.dtype.kind == "b" or (len(values) == n_frames and n_frames > 2 and set(np.unique(values)) <= {0, 1}):
        if len(values) != n_frames:
            raise InputError(f"{path} is a mask of {len(values):,} frames, but there are {n_frames:,}: give theirs")
        listed = values.astype(np.bool_)
        # Dragonfly's blacklists are text; masks of other programs are arrays in which 1 is good
        return ~listed if _is_text(path) else listed
    if len(values) and not (values.min() >= 0 and values.max() < n_frames):
        worst = values.min() if values.min() < 0 else values.max()
        raise InputError(f"{path} names frame {worst:,}, but they are 0 to {n_frames - 1:,}: correct the list")
    return values


def _is_text(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(8)
    return not head.startswith((b"\x93NUMPY", b"\x89HDF"))


def _plain_values(path: Path) -> NDArray[Any]:
    try:
        if not _is_text(path):
            values = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False)).ravel()
        else:
            words = path.read_text("ascii").replace(",", " ").split()
            values = np.array([int(word) for word in words], np.int64)
    except (ValueError, OSError, OverflowError, EOFError) as error:
        raise InputError(f"{path} is no list of frames: give whole numbers, one per line, or an .npy array") from error
    return _whole(values, str(path))


def _hdf5_values(path: Path, dataset: str) -> NDArray[Any]:
    with open_hdf5(path) as file:
        node = file.get("/" + dataset)
        if not isinstance(node, h5py.Dataset) or node.ndim != 1:
            raise InputError(f"{path} has no list /{dataset}: name a dataset with a value per frame")
        return _whole(np.asarray(node[()]), f"{path}: /{dataset}")


def _whole(values: NDArray[Any], what: str) -> NDArray[Any]:
    if values.dtype.kind not in "biu":
        raise InputError(f"{what} holds {values.dtype}: give positions as whole numbers, or a mask of booleans")
    return values if values.dtype.kind == "b" else values.astype(np.int64)


class SelectedSource(BatchedSource):
    """Some frames of another source, in its order.

    Parameters
    ----------
    source : BatchedSource
    positions : (N,) int64
        Rising.
    words : str
        How they were chosen, for the user.
    """

    def __init__(self, source: BatchedSource, positions: NDArray[np.int64], words: str) -> None:
        self._source, self._positions = source, positions
        super().__init__(
            source.format, source.paths, len(positions), source.shape, source.detector,
            (*source.notes, f"{len(positions):,} of {source.n_frames or 0:,} frames chosen by {words}"),
            source.missing, source.beam, source.mask,
        )  # fmt: skip

    def identity(self, frames: NDArray[np.integer]) -> dict[str, NDArray[Any]]:
        """As of the source: `frame` is the position before the selection."""
        return self._source.identity(self._positions[frames])

    def _block(self) -> int:
        return self._source._block()

    @contextmanager
    def _rows(self) -> Iterator[Rows]:
        with self._source._rows() as rows:

            def chosen(lo: int, hi: int) -> Frames:
                wanted = self._positions[lo:hi]
                pieces = []
                for part in np.split(wanted, np.flatnonzero(np.diff(wanted) > _gap(self._source)) + 1):
                    found = self._source._bounded(rows, int(part[0]), int(part[-1]) + 1)
                    pieces.append(found.take(part - part[0]))
                got = Frames.concatenate(pieces)
                return Frames(got.start, got.pixel, got.count, np.arange(lo, hi), got.n_pixels)

            yield chosen


def _gap(source: BatchedSource) -> int:
    """Frames that are sooner read through than skipped: small ones share a chunk."""
    return max(1, 16_384 // source.n_pixels)
