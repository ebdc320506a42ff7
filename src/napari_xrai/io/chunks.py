"""Photons out of HDF5 chunks: read as they lie in the file, inflated in threads, never laid out beyond a chunk.

HDF5 itself inflates one chunk at a time, and shuffles the bytes of every pixel back, lit or not.
"""

from __future__ import annotations

import itertools
import math
import os
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ..core.frames import Frames
from .batched import Rows, dense_frames
from .source import InputError

GZIP, SHUFFLE = 1, 2
"""Numbers of these filters in HDF5."""

LARGE_FRAME = 60_000
"""Pixels from which this pays; below, HDF5's cache of chunks serves small reads better."""

MOST_CHUNK_BYTES = 2**26
SLACK_BYTES = 2**16
"""What filters may add to a chunk that they cannot make smaller, besides an eighth."""

LARGEST_CHUNK_BYTES = 2**29
CHUNKS_LOOKED_AT = 2**18
"""A look at more would be felt when a file is opened."""

AHEAD = 2
"""Chunks in flight per thread: bounds memory."""

Lit = tuple[NDArray[np.int64], NDArray[np.int32]]
"""Positions of what is not zero, and the values there."""


@contextmanager
def photon_rows(data: h5py.Dataset, what: str, ignore: NDArray[np.bool_] | None = None) -> Iterator[Rows]:
    """Read frames of photon counts from an HDF5 dataset (N, …), the fastest way that it allows.

    Parameters
    ----------
    data : h5py.Dataset
        Open as long as the block lasts.
    what : str
        File and dataset, for messages.
    ignore : (P,) bool, optional
        Bad pixels; see `dense_frames`.
    """
    if math.prod(data.shape[1:]) < LARGE_FRAME or not _is_plain(data):
        yield lambda lo, hi: dense_frames(data[lo:hi], lo, what, ignore)
        return
    with ThreadPoolExecutor(_usable_cores()) as pool:
        yield ChunkReader(data, what, pool).rows


def _is_plain(data: h5py.Dataset) -> bool:
    """Whether it is chunks of one- or two-byte counts, compressed by nothing or gzip, shuffled or not."""
    if data.chunks is None or data.is_virtual or data.dtype not in ("u1", "<u2") or data.fillvalue != 0:
        return False
    small = math.prod(data.chunks) * data.dtype.itemsize <= MOST_CHUNK_BYTES
    return small and set(_filters(data)) <= {GZIP, SHUFFLE}


def _filters(data: h5py.Dataset) -> list[int]:
    pipeline = data.id.get_create_plist()
    return [int(pipeline.get_filter(n)[0]) for n in range(pipeline.get_nfilters())]


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def raw_chunk(data: h5py.Dataset, corner: tuple[int, ...], what: str) -> tuple[bytes | memoryview, int]:
    """A chunk's bytes as they lie in the file, and the filters it went without; no bytes where it was never written.

    HDF5 tells a chunk's size beforehand only by a walk through all chunks before it; so it gets room for what a chunk
    can have.

    Raises
    ------
    InputError
        If the chunk claims more than that.
    """
    try:
        skipped, raw = data.id.read_direct_chunk(corner, out=np.empty(_most_bytes(data), np.uint8))
    except (ValueError, RuntimeError) as error:
        # of a dataset without any chunk HDF5 tells no size, but whatever was in memory
        if "not allocated" in str(error) or data.id.get_num_chunks() == 0:
            return b"", 0
        if isinstance(error, RuntimeError):
            raise
        raise _claims_too_much(what) from error  # too small a room
    return raw, int(skipped)


def check_chunks(data: h5py.Dataset, what: str) -> None:
    """Refuse a dataset whose chunks claim more bytes than they can have: HDF5 would first make room for them.

    Raises
    ------
    InputError
    """
    if data.chunks is None or data.is_virtual:
        return
    size = math.prod(data.chunks) * data.dtype.itemsize
    if size > LARGEST_CHUNK_BYTES:
        raise InputError(f"{what} has chunks of {size / 2**30:.3g} GiB, too large to read: h5repack it to smaller")
    most, looked_at, too_large = _most_bytes(data), itertools.count(1), []

    def look(chunk: Any) -> bool | None:
        if chunk.size > most:
            too_large.append(chunk)
        return True if too_large or next(looked_at) >= CHUNKS_LOOKED_AT else None  # None: go on

    data.id.chunk_iter(look)
    if too_large:
        raise _claims_too_much(what)


def _most_bytes(data: h5py.Dataset) -> int:
    size: int = math.prod(data.chunks) * data.dtype.itemsize
    return size + size // 8 + SLACK_BYTES


def _claims_too_much(what: str) -> InputError:
    return InputError(f"{what}: a chunk claims more bytes than it can have: the file is damaged; copy it again")


@dataclass(frozen=True, eq=False)
class ChunkReader:
    """Reads frames out of a chunked HDF5 dataset (N, …) of ``u1`` or ``<u2``; `photon_rows` makes one where it can.

    Parameters
    ----------
    data : h5py.Dataset
    what : str
        File and dataset, for messages.
    pool : ThreadPoolExecutor
        Inflates.
    """

    data: h5py.Dataset
    what: str
    pool: ThreadPoolExecutor

    def rows(self, lo: int, hi: int) -> Frames:
        """Frames ``lo … hi-1``.

        Raises
        ------
        InputError
            If a chunk is damaged.
        """
        n_pixels = math.prod(self.data.shape[1:])
        pieces = list(self._pieces(lo, hi))
        at, count = (np.concatenate([p[n] for p in pieces]) for n in range(2))
        if self.data.chunks[1:] != self.data.shape[1:]:  # a frame's photons come from several chunks
            order = np.argsort(at)
            at, count = at[order], count[order]
        start = np.searchsorted(at, np.arange(hi - lo + 1) * n_pixels)
        return Frames(start.astype(np.int64), (at % n_pixels).astype(np.int32), count, np.arange(lo, hi), n_pixels)

    def _pieces(self, lo: int, hi: int) -> Iterator[Lit]:
        chunks = self.data.chunks
        first = range(lo - lo % chunks[0], hi, chunks[0])
        rest = [range(0, n, c) for n, c in zip(self.data.shape[1:], chunks[1:], strict=True)]
        running: deque[Future[Lit]] = deque()
        try:
            for corner in itertools.product(first, *rest):
                if len(running) >= AHEAD * _usable_cores():
                    yield running.popleft().result()
                raw, skipped = raw_chunk(self.data, corner, self.what)
                running.append(self.pool.submit(self._expand, raw, skipped, corner, (lo, hi)))
            while running:
                yield running.popleft().result()
        finally:
            for job in running:
                job.cancel()

    def _expand(self, raw: bytes | memoryview, skipped: int, corner: tuple[int, ...], span: tuple[int, int]) -> Lit:
        """Lit pixels of one chunk, without those outside `span` and outside the frame; positions from frame span[0]."""
        chunks, shape = self.data.chunks, self.data.shape
        at, count = self._lit_of_chunk(raw, skipped) if raw else (np.zeros(0, np.int64), np.zeros(0, np.int32))
        if chunks[1:] == shape[1:]:
            at = at + (corner[0] - span[0]) * math.prod(shape[1:])
            if span[0] <= corner[0] and corner[0] + chunks[0] <= span[1]:
                return at, count
            kept = (at >= 0) & (at < (span[1] - span[0]) * math.prod(shape[1:]))
            return at[kept], count[kept]
        place = [w + c for w, c in zip(np.unravel_index(at, chunks), corner, strict=True)]
        kept = (place[0] >= span[0]) & (place[0] < span[1])
        at = place[0] - span[0]
        for position, n in zip(place[1:], shape[1:], strict=True):
            kept &= position < n
            at = at * n + position
        return at[kept], count[kept]

    def _lit_of_chunk(self, raw: bytes | memoryview, skipped: int) -> Lit:
        """Position and value of what is not zero in a chunk."""
        size = math.prod(self.data.chunks) * self.data.dtype.itemsize
        shuffled = False
        for number, code in reversed(list(enumerate(_filters(self.data)))):
            if not skipped >> number & 1:
                raw = self._inflate(raw, size) if code == GZIP else raw
                shuffled |= code == SHUFFLE
        if len(raw) != size:
            raise InputError(f"{self.what}: a chunk holds {len(raw):,} bytes, not {size:,}: copy the file again")
        if self.data.dtype.itemsize == 1:
            return _lit_bytes(np.frombuffer(raw, np.uint8))
        if shuffled:
            # all low bytes, then all high ones: lit pixels are found there, without shuffling back
            low, high = np.frombuffer(raw, np.uint8).reshape(2, -1)
            at, count = _lit_bytes(low)
            if not high.any():
                return at, count
            at = np.union1d(at, np.flatnonzero(high))
            return at, low[at] | high[at].astype(np.int32) << 8
        values = np.frombuffer(raw, "<u2")
        at = np.flatnonzero(values != 0)
        return at, values[at].astype(np.int32)

    def _inflate(self, raw: bytes | memoryview, size: int) -> bytes:
        try:
            return zlib.decompressobj().decompress(raw, size + 1)
        except zlib.error as error:
            raise InputError(f"{self.what}: a compressed chunk is damaged ({error}): copy the file again") from error


def _lit_bytes(values: NDArray[Any]) -> Lit:
    """Position and value of the bytes that are not zero: looks at eight together, then into those that are lit."""
    whole = len(values) // 8 * 8
    words = values[:whole].view(np.uint64) if values.flags.aligned else values[:whole].copy().view(np.uint64)
    lit = np.flatnonzero(words != 0)
    found = np.flatnonzero(words[lit].view(np.uint8) != 0)
    at = np.concatenate([lit[found // 8] * 8 + found % 8, whole + np.flatnonzero(values[whole:])])
    return at, values[at].astype(np.int32)
