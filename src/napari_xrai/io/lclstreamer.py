"""LCLStreamer's messages: each one an HDF5 file in memory, of some events of a run at LCLS.

https://github.com/slac-lcls/lclstreamer: every dataset has one row per event; which holds what is up to the sender's
configuration.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import h5py
import numpy as np

from .train import MessageError, Part, Train

SIGNATURE = b"\x89HDF\r\n\x1a\n"
SOURCE = "hdf5"
TIME = "timestamp"
EPOCH_S = (1e9, 1e10)
"""Times outside are no seconds since 1970: psana2's are not, and the arrival counts instead."""
LARGEST = 2**31
"""Bytes of one array; more is damage."""


def speaks(parts: Sequence[bytes]) -> bool:
    """Whether this message is an HDF5 file."""
    return len(parts) == 1 and parts[0].startswith(SIGNATURE)


def unpack(parts: Sequence[bytes]) -> Train:
    """A message's events: every numeric dataset by its path, under one source.

    Raises
    ------
    MessageError
        If the message is no HDF5 file, or a damaged one.
    """
    if not speaks(parts):
        raise MessageError("no HDF5 file")
    part = Part()

    def take(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset) and node.dtype.kind in "uifb" and node.nbytes < LARGEST and not node.external:
            part.data[name] = node[()]

    try:
        with h5py.File(io.BytesIO(parts[0]), "r") as file:
            file.visititems(take)
    except Exception as error:  # damage turns up in h5py as any of Python's own exceptions
        raise MessageError(str(error) or type(error).__name__) from error
    times = next((v for k, v in part.data.items() if k.rpartition("/")[2] == TIME and np.size(v)), None)
    if times is not None:
        first = float(np.ravel(times)[0])
        part.metadata["timestamp.tid"] = int(first * 1e6) if np.isfinite(first) else 0
        part.metadata[TIME] = first if EPOCH_S[0] < first < EPOCH_S[1] else 0.0
    return {SOURCE: part}
