"""Checks that HDF5 itself leaves out, before it opens a file: with a heap of zeroed entries it never comes back from
reading a string. What else it takes on trust is in `hdf5_walk`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from .hdf5_walk import find_fault
from .source import InputError

HEAP_MAGIC = b"GCOL\x01\0\0\0"
"""With its version and the bytes kept free: photons do not look like this by chance."""

HEADER, ENTRY = 16, 16
BYTES_LOOKED_AT = 2**24
"""Strings and attributes lie near the beginning; lists of photons have their own reader."""


def check_heaps(path: Path) -> None:
    """Refuse a file in whose heaps HDF5 would go round for ever, or in which it would trust a size that cannot be.

    A collection is a row of objects, each with its length; number 0 is the room that is left, and its length counts
    itself (HDF5 File Format Specification 3.0, III.E). An object 0 of length 0 leads to itself.

    Raises
    ------
    InputError
        If there is such a fault.
    """
    try:
        status = path.stat()
    except OSError:
        return  # whoever opens it says what is wrong
    wrong = _wrong(path, status.st_mtime_ns, status.st_size)
    if wrong:
        raise InputError(f"{path} is damaged ({wrong}): copy it again in full")


@lru_cache(maxsize=64)
def _wrong(path: Path, changed_ns: int, size: int) -> str:
    with path.open("rb") as file:
        content = file.read(BYTES_LOOKED_AT)
        if not all(_ends(content, at) for at in _all(content, HEAP_MAGIC)):
            return "a heap that leads to itself"
        return find_fault(file, size)


def _all(content: bytes, magic: bytes) -> Iterator[int]:
    at = content.find(magic)
    while at >= 0:
        yield at
        at = content.find(magic, at + 1)


def _ends(content: bytes, at: int) -> bool:
    """Whether the walk through the collection at `at` comes to its end."""
    if at + HEADER > len(content):
        return True
    size = struct.unpack_from("<Q", content, at + 8)[0]
    place, end = at + HEADER, min(at + size, len(content))
    while place + ENTRY <= end:
        number, length = struct.unpack_from("<H6xQ", content, place)
        step = length if number == 0 else (ENTRY + (length + 7) // 8 * 8) % 2**64
        if step == 0:
            return False
        place += step
    return True
