"""A first look at a file: enough to say what it is, and no more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py

from .batched import open_hdf5

HEAD_BYTES = 4096
HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"


@dataclass(frozen=True)
class Glance:
    """What a format's `sniff` is given.

    Parameters
    ----------
    path : Path
        A file that is not empty.
    head : bytes
        Its first 4096 bytes.
    hdf5 : h5py.File or None
        Open while the look lasts; None where the file is not HDF5.
    """

    path: Path
    head: bytes
    hdf5: h5py.File | None

    def has(self, *names: str) -> bool:
        """Whether it is HDF5 with all of these datasets."""
        return self.hdf5 is not None and all(isinstance(self.hdf5.get(name), h5py.Dataset) for name in names)


@contextmanager
def glance(path: Path) -> Iterator[Glance]:
    """Look at a file.

    Raises
    ------
    InputError
        If it is HDF5 and damaged.
    """
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if head.startswith(HDF5_MAGIC) or h5py.is_hdf5(path):
        with open_hdf5(path) as hdf5:
            yield Glance(path, head, hdf5)
    else:
        yield Glance(path, head, None)
