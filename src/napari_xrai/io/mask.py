"""Mask files: 0 good · 1 merged but not used for orientation · 2 bad."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ..core.frames import BAD
from .batched import open_hdf5
from .source import InputError

NUMPY_MAGIC = b"\x93NUMPY"
PNG_MAGIC, TIFF_MAGICS = b"\x89PNG\r\n\x1a\n", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
LARGEST_BYTES = 2**28
WHITE = 255


def is_image(head: bytes) -> bool:
    """Whether a file that begins so is a PNG or TIFF."""
    return head.startswith((PNG_MAGIC, *TIFF_MAGICS))


def read_mask(path: Path, shape: tuple[int, ...] | None = None) -> NDArray[np.uint8]:
    """Read a mask; the format is told by content.

    Parameters
    ----------
    path : Path
        ``.npy``; HDF5 (dataset ``mask``, the only one, or ``FILE.h5:/dataset``); PNG or TIFF (white, 255, is bad as 2
        is); one raw byte per pixel; or the mask of a CXI file, a Dragonfly detector or a CrystFEL geometry.
    shape : tuple of int, optional
        Of a frame.

    Returns
    -------
    (P,) uint8
        Values 0, 1, 2, flattened in C order.

    Raises
    ------
    InputError
        If it cannot be read, holds other values, or is not of `shape`.
    """
    name, colon, dataset = str(path).partition(":/")
    path = Path(name) if not path.is_file() else path
    if not path.is_file():
        raise InputError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}: give the mask file")
    values = _values(path, dataset if colon else None, shape)
    # in a boolean mask, True means good to some programs and bad to others
    if values.dtype.kind not in "iu":
        raise InputError(f"{path} holds {values.dtype}: write the mask as integers, 0 good, 1 merge only, 2 bad")
    if values.size == 0 or values.min() < 0 or values.max() > BAD:
        raise InputError(
            f"{path} holds values other than 0, 1, 2: write 0 for good, 1 for merge only, 2 for bad pixels"
        )
    if shape is not None:
        _check_shape(path, values.shape, shape)
    return values.astype(np.uint8).ravel()


def _check_shape(path: Path, found: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """A mask with rows and columns must have the frames': turned by a quarter it would have as many pixels."""
    rows = [n for n in found if n > 1]
    flat = len(rows) < 2 or len(shape) < 2
    if not flat and rows[-1] != shape[-1] and math.prod(rows) == math.prod(shape):
        raise InputError(
            f"{path} is a mask of {' × '.join(map(str, rows))} pixels but the frames have "
            f"{' × '.join(map(str, shape))}: turn it"
        )


def _values(path: Path, dataset: str | None, shape: tuple[int, ...] | None) -> NDArray[Any]:
    with path.open("rb") as file:
        head = file.read(4096)
    if head.startswith(NUMPY_MAGIC):
        from .plain import load_npy

        return load_npy(path)
    if h5py.is_hdf5(path):
        return _hdf5_values(path, dataset)
    if path.stat().st_size > LARGEST_BYTES:
        raise InputError(f"{path} is too large for a mask: give one byte per pixel")
    if is_image(head):
        return _image_values(path)
    return _of_a_detector(path, head, shape)


def _hdf5_values(path: Path, dataset: str | None) -> NDArray[Any]:
    with open_hdf5(path) as hdf5:
        names = [n for n in map(str, hdf5) if isinstance(hdf5.get(n), h5py.Dataset)]
        name = dataset or ("mask" if "mask" in names else names[0] if len(names) == 1 else None)
        node = hdf5.get("/" + name) if name is not None else None
        if isinstance(node, h5py.Dataset):
            if node.size > LARGEST_BYTES:
                raise InputError(f"{path}: {node.name} is too large for a mask: give one value per pixel")
            return np.asarray(node[()])
        if dataset is not None or "entry_1" not in hdf5:
            raise InputError(f"{path} has no dataset {dataset or 'mask'}: name it so")
    from .cxi import CxiSource  # opens masks by the version of the file; not needed for any other

    found = CxiSource(path)
    return np.zeros(found.shape, np.uint8) if found.mask is None else found.mask.reshape(found.shape)


def _image_values(path: Path) -> NDArray[Any]:
    from PIL import Image

    try:
        with Image.open(path) as image:
            grey = image.convert("L") if image.mode in ("P", "RGB", "RGBA", "LA", "1") else image
            values = np.asarray(grey)
    except Exception as error:  # whatever it meets in a damaged file
        raise InputError(f"{path} cannot be read as an image: save the mask again as PNG or TIFF") from error
    return np.where(values == WHITE, BAD, values) if values.dtype.kind == "u" else values


def _of_a_detector(path: Path, head: bytes, shape: tuple[int, ...] | None) -> NDArray[Any]:
    from .dragonfly import ascii_detector_header, read_detector
    from .geom_text import is_geom, read_geom

    if is_geom(head):
        geometry = read_geom(path)
        shape = shape or geometry.frame_shape
        return np.where(geometry.placed(shape)[2], BAD, 0).reshape(shape)
    if ascii_detector_header(head) is not None:
        return read_detector(path)[0].mask
    return np.fromfile(path, np.uint8)
