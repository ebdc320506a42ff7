"""Compression of HDF5 files by filters that HDF5 does not bring along."""

from __future__ import annotations

import importlib
from pathlib import Path

import h5py

from .chunks import check_chunks
from .source import InputError

NAMES = {
    32000: "LZF", 32001: "Blosc", 32004: "LZ4", 32008: "bitshuffle", 32013: "ZFP", 32015: "Zstandard",
    32017: "SZ", 32024: "SZ3", 32026: "Blosc2",
}  # fmt: skip
"""Filters registered with the HDF Group."""


def require_readable(path: Path, *datasets: h5py.Dataset) -> None:
    """Make sure that these datasets can be decompressed; plugins are loaded only where one is needed.

    Raises
    ------
    InputError
        If the plugin is not installed, or chunks claim sizes that they cannot have.
    """
    for dataset in datasets:
        check_chunks(dataset, f"{path}: {dataset.name}")
    needed = {code for dataset in datasets for code in _filters(dataset)}
    if _missing(needed):
        _load_plugins()
    for code in _missing(needed):
        name = NAMES.get(code, f"HDF5 filter {code}")
        remedy = 'pip install "napari-xrai[compression]"'
        if _load_plugins():  # installed, and of no help
            remedy = "repack it with h5repack -f GZIP=1"
        raise InputError(f"{path} is compressed with {name}, which is not installed here: {remedy}")


def _filters(dataset: h5py.Dataset) -> list[int]:
    plan = dataset.id.get_create_plist()
    return [int(plan.get_filter(i)[0]) for i in range(plan.get_nfilters())]


def _missing(codes: set[int]) -> list[int]:
    return [code for code in sorted(codes) if not h5py.h5z.filter_avail(code)]


def _load_plugins() -> bool:
    try:
        importlib.import_module("hdf5plugin")
    except ImportError:
        return False
    return True
