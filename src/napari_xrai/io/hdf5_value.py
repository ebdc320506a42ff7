"""A single number out of an HDF5 file."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from .batched import open_hdf5

MOST_VALUES = 10_000_000


def read_number(path: Path, location: str) -> float | None:
    """The scalar at `location`, or the median of an array with a value per frame; None if there is none.

    Raises
    ------
    InputError
        If the file cannot be read.
    """
    if not h5py.is_hdf5(path):
        return None
    with open_hdf5(path) as file:
        node = file.get(location)
        if not isinstance(node, h5py.Dataset) or node.dtype.kind not in "iuf" or not 0 < node.size <= MOST_VALUES:
            return None
        values = np.asarray(node[()], np.float64).ravel()
    values = values[np.isfinite(values) & (values > 0)]
    return float(np.median(values)) if len(values) else None
