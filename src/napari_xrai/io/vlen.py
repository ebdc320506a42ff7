"""Lists of whole numbers of varying length in HDF5, read without HDF5's own walk through their heaps.

That walk never ends in some damaged files, and makes a Python object per list. The layout is that of the HDF5 File
Format Specification, version 3.0: sections III.E (global heap) and IV.A.2.d (variable-length datatypes).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

import h5py
import numpy as np
from numpy.typing import NDArray

from .chunks import raw_chunk
from .source import InputError

DESCRIPTOR = np.dtype([("length", "<u4"), ("heap", "<u8"), ("object", "<u4")])
HEAP_MAGIC = b"GCOL"
HEADER, OBJECT = 16, 16
MOST_HEAP_BYTES = 2**26
HEAPS_KEPT = 16


def can_read_lists(dataset: h5py.Dataset) -> bool:
    """Whether a dataset is a plain list of lists of little-endian 32-bit numbers, in a file of 64-bit addresses."""
    kind = h5py.check_vlen_dtype(dataset.dtype)
    if kind != np.dtype("<i4") or dataset.ndim != 1 or dataset.is_virtual or dataset.external:
        return False
    create = dataset.id.get_create_plist()
    plain = create.get_nfilters() == 0 and (dataset.chunks is not None or dataset.id.get_offset() is not None)
    return plain and dataset.file.id.get_create_plist().get_sizes()[0] == 8 and dataset.file.userblock_size == 0


@dataclass
class ListReader:
    """Reads lists out of one file.

    Parameters
    ----------
    file : BinaryIO
        The HDF5 file itself, open for reading.
    what : str
        Its name, for messages.
    """

    file: BinaryIO
    what: str
    _heaps: dict[int, dict[int, NDArray[np.uint8]]] = field(default_factory=dict)

    def read(self, dataset: h5py.Dataset, lo: int, hi: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Lists ``lo … hi-1`` of `dataset`.

        Returns
        -------
        values : (L,) int32
            One list after the other.
        lengths : (hi - lo,) int64

        Raises
        ------
        InputError
            If the file is damaged.
        """
        descriptor = np.concatenate(list(self._descriptors(dataset, lo, hi)))
        lists = [self._list(*entry) for entry in descriptor.tolist()]
        values = np.concatenate([np.zeros(0, np.int32), *lists])
        return values, descriptor["length"].astype(np.int64)

    def _descriptors(self, dataset: h5py.Dataset, lo: int, hi: int) -> Iterator[NDArray[np.void]]:
        if dataset.chunks is None:
            yield self._from_file(dataset.id.get_offset(), lo, hi)
            return
        size = dataset.chunks[0]
        for first in range(lo - lo % size, hi, size):
            a, b = max(lo - first, 0), min(hi - first, size)
            raw = raw_chunk(dataset, (first,), self.what)[0]
            if not raw:  # never written: empty lists
                yield np.zeros(b - a, DESCRIPTOR)
            elif len(raw) < size * DESCRIPTOR.itemsize:
                raise self._damaged()
            else:
                yield np.frombuffer(raw, DESCRIPTOR, size)[a:b]

    def _from_file(self, offset: int, a: int, b: int) -> NDArray[np.void]:
        content = self._bytes(offset + a * DESCRIPTOR.itemsize, (b - a) * DESCRIPTOR.itemsize)
        return np.frombuffer(content, DESCRIPTOR)

    def _list(self, length: int, heap: int, number: int) -> NDArray[np.int32]:
        if length == 0:
            return np.zeros(0, np.int32)
        if heap not in self._heaps:
            if len(self._heaps) >= HEAPS_KEPT:
                self._heaps.pop(next(iter(self._heaps)))
            self._heaps[heap] = self._heap(heap)
        content = self._heaps[heap].get(number)
        if content is None or len(content) < 4 * length:
            raise self._damaged()
        return content[: 4 * length].view("<i4")

    def _heap(self, address: int) -> dict[int, NDArray[np.uint8]]:
        """The objects of a collection, by their numbers."""
        header = self._bytes(address, HEADER)
        size = struct.unpack("<Q", header[8:])[0]
        if header[:4] != HEAP_MAGIC or not HEADER <= size <= MOST_HEAP_BYTES:
            raise self._damaged()
        content = self._bytes(address, size)
        objects, at = {}, HEADER
        while at + OBJECT <= size:
            number, _, length = struct.unpack_from("<HH4xQ", content, at)
            if number == 0 or at + OBJECT + length > size:  # the room that is left
                break
            objects[number] = np.frombuffer(content, np.uint8, length, at + OBJECT)
            at += OBJECT + (length + 7) // 8 * 8
        return objects

    def _bytes(self, offset: int, n: int) -> bytes:
        if offset >= 2**62:
            raise self._damaged()
        self.file.seek(offset)
        content = self.file.read(n)
        if len(content) < n:
            raise self._damaged()
        return content

    def _damaged(self) -> InputError:
        return InputError(f"{self.what}: its lists of lit pixels lead nowhere: the file is damaged; copy it again")
