"""Mask files: 0 good · 1 merged but not used for orientation · 2 bad."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ..core.frames import BAD
from .batched import open_hdf5
from .source import InputError

NUMPY_MAGIC = b"\x93NUMPY"
LARGEST_BYTES = 2**28


def read_mask(path: Path) -> NDArray[np.uint8]:
    """Read a mask: ``.npy``, HDF5 (dataset ``mask``, or the only one), or one raw byte per pixel; told by content.

    Returns
    -------
    (P,) uint8
        Values 0, 1, 2, flattened in C order.

    Raises
    ------
    InputError
        If it cannot be read, or holds other values.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist: give the mask file")
    values = _values(path)
    # in a boolean mask, True means good to some programs and bad to others
    if values.dtype.kind not in "iu":
        raise InputError(f"{path} holds {values.dtype}: write the mask as integers, 0 good, 1 merge only, 2 bad")
    if values.size == 0 or values.min() < 0 or values.max() > BAD:
        raise InputError(
            f"{path} holds values other than 0, 1, 2: write 0 for good, 1 for merge only, 2 for bad pixels"
        )
    return values.astype(np.uint8).ravel()


def _values(path: Path) -> NDArray[Any]:
    with path.open("rb") as file:
        head = file.read(8)
    if head.startswith(NUMPY_MAGIC):
        try:
            return np.asarray(np.load(path, mmap_mode="r"))
        except (ValueError, OSError) as error:
            raise InputError(f"{path} cannot be read as a NumPy array ({error}): write it again") from error
    if h5py.is_hdf5(path):
        with open_hdf5(path) as hdf5:
            names = [n for n in hdf5 if isinstance(hdf5[n], h5py.Dataset)]
            name = "mask" if "mask" in names else names[0] if len(names) == 1 else None
            if name is None:
                raise InputError(f"{path} has no dataset mask: name it so")
            return np.asarray(hdf5[name][()])
    if path.stat().st_size > LARGEST_BYTES:
        raise InputError(f"{path} is too large for a mask: give one byte per pixel")
    return np.fromfile(path, np.uint8)
