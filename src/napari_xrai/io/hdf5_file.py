"""A new HDF5 file, whole or not at all, written straight to the disk: of a long run it is too large for memory."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py

from .atomic import replacing


class _Forbearing(io.FileIO):
    """Takes every write, and keeps what went wrong first: one that fails inside HDF5 brings the process down."""

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all of it, unless a write has failed before."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while len(rest) and self.failure is None:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self.failure = error
        return size

    def truncate(self, size: int | None = None) -> int:
        """Set the file's length, unless a write has failed before."""
        try:
            if self.failure is None:
                return super().truncate(size)
        except OSError as error:
            self.failure = error
        return size or 0


@contextmanager
def new_hdf5(path: Path) -> Iterator[h5py.File]:
    """Give an HDF5 file to fill; it takes its name when the block ends well.

    Raises
    ------
    InputError
        If the operating system refuses to write: no such folder, no permission, disk full.
    """
    with replacing(path) as part, _Forbearing(part, "w+") as raw:
        try:
            with h5py.File(raw, "w") as file:
                yield file
        finally:
            if raw.failure is not None:
                raise raw.failure
