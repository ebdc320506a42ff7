"""What the readers of frames share: batches of bounded memory, random access, and checks of the counts."""

from __future__ import annotations

import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ..core.frames import Detector, Frames
from .heaps import check_heaps
from .source import UNKNOWN_BEAM, Beam, InputError

BLOCK_PIXELS = 16_000_000
MOST_PHOTONS = 2**31 - 1
"""Dense pixels read at once: bounds memory whatever batch size is asked for."""

MOST_FRAMES, MOST_PIXELS, MOST_DENSE_PIXELS = 2**40, 2**31 - 1, 2**25
"""More than these in a header is a damaged file, not data."""

Rows = Callable[[int, int], Frames]
"""Reads the frames from one position up to, not including, another."""


@dataclass(eq=False)
class BatchedSource(ABC):
    """A `FrameSource` on files: subclasses say how to read a range of frames.

    Parameters
    ----------
    format : str
    paths : tuple of Path
    n_frames : int
    shape : tuple of int
    detector : Detector or None
    notes : tuple of str
        What the reader had to assume or correct, in words, for the user.
    missing : tuple of str
        What the user could still say: ``"geometry"``, ``"wavelength"``, ``"polarisation"``.
    beam : Beam
        What the frames' own file says of the beam, for a detector file that needs it.
    mask : (P,) uint8 or None
        The frames' own file's, 0/1/2: laid over that of a detector file.
    ids : dict of str to str
        HDF5 datasets (N,) or (N, modules) in the frames' file that name each frame: see `identity`.
    """

    format: str
    paths: tuple[Path, ...]
    n_frames: int | None
    shape: tuple[int, ...]
    detector: Detector | None = None
    notes: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    beam: Beam = UNKNOWN_BEAM
    mask: NDArray[np.uint8] | None = None
    ids: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.n_pixels = int(np.prod(self.shape))

    @abstractmethod
    def _rows(self) -> AbstractContextManager[Rows]:
        """Open the file for as long as the block lasts."""

    def _stored(self) -> Path:
        """The file that is read."""
        return self.paths[0]

    def _block(self) -> int:
        """Most frames that may be read at once."""
        return max(1, BLOCK_PIXELS // self.n_pixels)

    def batches(self, size: int, start: int = 0) -> Iterator[Frames]:
        """Yield frames ``start, start+1, …`` in batches of `size` (the last may be smaller).

        Raises
        ------
        InputError
            If the file cannot be read or holds something that is not a photon count.
        """
        total = self.n_frames or 0
        with self._rows() as rows:
            for first in range(start, total, size):
                yield self._bounded(rows, first, min(first + size, total))

    def read(self, frames: NDArray[np.integer]) -> Frames:
        """The frames at these source positions, in this order.

        Raises
        ------
        InputError
            As `batches`.
        IndexError
            If a position is outside the source.
        """
        wanted = np.asarray(frames, np.int64)
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < (self.n_frames or 0)):
            raise IndexError(f"frames {wanted.min()}…{wanted.max()} asked of a source of {self.n_frames}")
        unique, inverse = np.unique(wanted, return_inverse=True)
        runs = np.split(unique, np.flatnonzero(np.diff(unique) > 1) + 1)
        with self._rows() as rows:
            pieces = [self._bounded(rows, int(r[0]), int(r[-1]) + 1) for r in runs if len(r)]
        if not pieces:
            none = np.zeros(0, np.int32)
            return Frames(np.zeros(1, np.int64), none, none, np.zeros(0, np.int64), self.n_pixels)
        return Frames.concatenate(pieces).take(inverse)

    def identity(self, frames: NDArray[np.integer]) -> dict[str, NDArray[Any]]:
        """What the frames at these source positions are called elsewhere.

        Returns
        -------
        dict of str to (N,) array
            ``frame``, the position in everything that was given; ``file``, in `paths`; ``index``, the position in that
            file; and what the file itself has (`ids`): ``trainId``, ``pulseId``, ``cellId``.
        """
        wanted = np.asarray(frames, np.int64)
        found: dict[str, NDArray[Any]] = {
            "frame": wanted, "file": np.zeros(len(wanted), np.int32), "index": wanted,
        }  # fmt: skip
        if not self.ids:
            return found
        first, last = (int(wanted.min()), int(wanted.max()) + 1) if len(wanted) else (0, 0)
        with open_hdf5(self._stored()) as file:
            for name, dataset in self.ids.items():
                node = file.get(dataset)
                if isinstance(node, h5py.Dataset) and node.ndim and len(node) >= (self.n_frames or 0):
                    values = np.asarray(node[first:last] if node.ndim == 1 else node[first:last, 0])
                    found[name] = values[wanted - first]
        return found

    def _bounded(self, rows: Rows, lo: int, hi: int) -> Frames:
        block = self._block()
        pieces = [rows(a, min(a + block, hi)) for a in range(lo, hi, block)]
        return pieces[0] if len(pieces) == 1 else Frames.concatenate(pieces)


class JoinedSource(BatchedSource):
    """Several files of the same detector, one after the other."""

    def __init__(self, parts: list[BatchedSource]) -> None:
        first = parts[0]
        for part in parts[1:]:
            if part.n_pixels != first.n_pixels:
                raise InputError(
                    f"{part.paths[0]} has {part.n_pixels:,} pixels per frame but {first.paths[0]} has "
                    f"{first.n_pixels:,}: open files of one detector together"
                )
        super().__init__(
            first.format, tuple(p for part in parts for p in part.paths), sum(p.n_frames or 0 for p in parts),
            first.shape, first.detector, tuple(dict.fromkeys(n for p in parts for n in p.notes)), first.missing,
            first.beam, first.mask,
        )  # fmt: skip
        # files that name their frames differently keep only the names that all have
        self.ids = {name: "" for name in first.ids if all(name in part.ids for part in parts)}
        self._parts = parts
        self._offset = np.concatenate([[0], np.cumsum([p.n_frames or 0 for p in parts])])

    @contextmanager
    def _rows(self) -> Iterator[Rows]:
        def rows(lo: int, hi: int) -> Frames:
            pieces = []
            for part, offset in zip(self._parts, self._offset, strict=False):
                a, b = max(lo - offset, 0), min(hi - offset, part.n_frames or 0)
                if a < b:
                    with part._rows() as own:
                        got = part._bounded(own, int(a), int(b))
                    pieces.append(Frames(got.start, got.pixel, got.count, got.index + offset, got.n_pixels))
            return Frames.concatenate(pieces)

        yield rows

    def identity(self, frames: NDArray[np.integer]) -> dict[str, NDArray[Any]]:
        """As of each part; see `BatchedSource.identity`."""
        wanted = np.asarray(frames, np.int64)
        part_of = np.searchsorted(self._offset, wanted, side="right") - 1
        found: dict[str, NDArray[Any]] = {}
        files_before = 0
        for n, part in enumerate(self._parts):
            rows = np.flatnonzero(part_of == n)
            named = part.identity(wanted[rows] - self._offset[n]) if len(rows) else {"file": np.zeros(0, np.int32)}
            named["file"] = named["file"] + np.int32(files_before)
            files_before += len(part.paths)
            for name, values in named.items():
                if name in self.ids or name in ("file", "index"):
                    found.setdefault(name, np.zeros(len(wanted), values.dtype))[rows] = values
        return {"frame": wanted, **found}

    def _block(self) -> int:
        return max(1, self.n_frames or 0)  # every part bounds its own reads


def sparse_frames(
    frame: NDArray[np.int64], pixel: NDArray[Any], count: NDArray[Any], span: tuple[int, int], n_pixels: int, what: str
) -> Frames:
    """Frames from lit pixels in any order; a pixel that is listed twice gets the sum.

    Parameters
    ----------
    frame, pixel, count : (L,)
        Frame (from 0), pixel and photons of each entry.
    span : (first, last + 1)
        Source positions of these frames.
    what : str
        File and dataset, for the message.

    Raises
    ------
    InputError
        If a pixel lies outside the frame or a count is negative.
    """
    if len(pixel) and not (pixel.min() >= 0 and pixel.max() < n_pixels):
        bad = span[0] + int(frame[np.argmax((pixel < 0) | (pixel >= n_pixels))])
        raise InputError(f"{what}: frame {bad} has photons outside its {n_pixels:,} pixels: the file is damaged")
    if len(count) and count.min() < 0:
        bad = span[0] + int(frame[np.argmin(count)])
        raise InputError(f"{what}: frame {bad} has negative counts: write photon counts, not detector units")
    key = frame * n_pixels + pixel
    order = np.argsort(key, kind="stable")
    key, count = key[order], np.asarray(count)[order]
    first = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]])) if len(key) else np.zeros(0, np.int64)
    total = np.add.reduceat(count.astype(np.int64), first) if len(key) else np.zeros(0, np.int64)
    key, total = key[first][total > 0], total[total > 0]
    start = np.zeros(span[1] - span[0] + 1, np.int64)
    np.cumsum(np.bincount(key // n_pixels, minlength=span[1] - span[0]), out=start[1:])
    return Frames(
        start, (key % n_pixels).astype(np.int32), total.astype(np.int32), np.arange(*span, dtype=np.int64), n_pixels
    )


def dense_frames(block: NDArray[Any], first: int, what: str, ignore: NDArray[np.bool_] | None = None) -> Frames:
    """Frames from an (N, …) array of counts, after checking that they are counts.

    Parameters
    ----------
    ignore : (P,) bool, optional
        Bad pixels: NaN or negative values there are no photons, not an error.

    Raises
    ------
    InputError
        If a value is NaN or infinite, negative, or not a whole number.
    """
    flat = block.reshape(len(block), -1)
    if flat.dtype.kind == "u" and flat.dtype.itemsize <= 2:
        return Frames.from_dense(flat, first)
    if flat.dtype.kind not in "uif":
        raise InputError(f"{what}: values of type {flat.dtype} are not photon counts")
    if ignore is not None and ignore.any():
        flat = flat.copy()
        flat[:, ignore] = 0
    checks: list[tuple[str, NDArray[np.bool_]]] = [
        ("negative values", flat < 0),
        (f"more than {MOST_PHOTONS:,} photons on one pixel", flat > MOST_PHOTONS),
    ]
    if flat.dtype.kind == "f":
        checks = [("NaN or infinite values", ~np.isfinite(flat)), *checks, ("fractions of photons", flat % 1 != 0)]
    for wrong, where in checks:
        if where.any():
            frame = first + int(np.argmax(where.any(axis=1)))
            raise InputError(f"{what}: frame {frame} has {wrong}: mask those pixels, or convert the data to photons")
    return Frames.from_dense(flat, first)


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading; every failure within is one sentence naming the file.

    Raises
    ------
    InputError
        If the file, or a part of it, cannot be read.
    """
    try:
        with _opened(path) as file:
            yield file
    except Exception as error:
        if isinstance(error, InputError) or not (isinstance(error, OSError | RuntimeError) or _is_of_h5py(error)):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if "truncated" in reason or "eof" in reason:
            raise InputError(f"{path} is truncated: copy it again in full") from error
        if "filter returned failure" in reason:
            raise InputError(f"{path} cannot be read: some of its frames are damaged; copy it again in full") from error
        if "filter" in reason or "plugin" in reason:
            remedy = 'pip install "napari-xrai[compression]"'
            raise InputError(f"{path} is compressed in a way this HDF5 does not know: {remedy}") from error
        raise InputError(f"{path} cannot be read as HDF5 ({reason}): copy it again in full") from error


def _is_of_h5py(error: Exception) -> bool:
    """Whether it comes from within h5py: damage turns up there as any of Python's own exceptions."""
    frames = list(traceback.walk_tb(error.__traceback__))
    return bool(frames) and "h5py" in frames[-1][0].f_code.co_filename


def _opened(path: Path) -> h5py.File:
    """Without a lock: reading must work beside a writer and on shared file systems."""
    check_heaps(path)
    try:
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        if "already open for write" in str(error):  # grows while it is read (SWMR), or its writer died
            return h5py.File(path, "r", swmr=True, locking=False)
        if "locking flag" not in str(error):
            raise
        return h5py.File(path, "r")  # open in this process already, by somebody who locks


def find_ids(file: h5py.File, n_frames: int) -> dict[str, str]:
    """Datasets that name each frame as its facility does: see `BatchedSource.ids`.

    Looked for where EXtra-data, the SPI groups and Dragonfly put them.
    """
    places = ("entry_1", "entry_1/instrument_1/detector_1", "entry_1/data_1", "id")
    names = {"trainId": ("trainId", "trains"), "pulseId": ("pulseId", "pulses"), "cellId": ("cellId", "cells")}
    found: dict[str, str] = {}
    for name, spellings in names.items():
        for dataset in (f"{place}/{spelling}" for place in places for spelling in spellings):
            node = file.get(dataset)
            if not isinstance(node, h5py.Dataset) or node.dtype.kind not in "iu" or node.ndim not in (1, 2):
                continue
            if len(node) >= n_frames and (node.ndim == 1 or node.shape[1]):
                found.setdefault(name, dataset)
    return found


def check_header(path: Path, n_frames: int, n_pixels: int, most_pixels: int = MOST_PIXELS) -> None:
    """Refuse absurd sizes before anything is allocated.

    Raises
    ------
    InputError
        If there are no frames or pixels, or more than any file holds.
    """
    if not 0 < n_frames <= MOST_FRAMES:
        raise InputError(f"{path} claims {n_frames:,} frames: it holds no frames or its header is damaged")
    if not 0 < n_pixels <= most_pixels:
        raise InputError(f"{path} claims {n_pixels:,} pixels per frame: its header is damaged")
