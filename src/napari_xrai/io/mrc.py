"""MRC volumes, as ChimeraX and the cryo-EM programs read them."""

from __future__ import annotations

from pathlib import Path

import mrcfile
import numpy as np

from ..core.frames import Volume
from .atomic import replacing
from .source import InputError

LABEL_BYTES = 80
HEADER_BYTES, MORE_AT, MAGIC_AT, MACHINE_AT, BIG_ENDIAN = 1024, 92, 208, 212, 0x11


def write_mrc(volume: Volume, path: Path, label: str) -> None:
    """Write a volume, whole or not at all: float32, (z, y, x).

    Parameters
    ----------
    volume : Volume
        Its `voxel_size` goes into the header as it is, in Å by the format's rule: scale an intensity's, and say so.
    label : str
        What it is and in which unit; at most 80 ASCII characters.

    Raises
    ------
    InputError
        If it cannot be written.
    """
    text = label.encode("ascii", "replace").decode()[:LABEL_BYTES]
    with replacing(path) as part, mrcfile.new(part, overwrite=True) as file:
        file.set_data(np.ascontiguousarray(volume.data, np.float32))
        file.voxel_size = volume.voxel_size
        file.set_volume()
        file.update_header_stats()
        file.header.label[0] = text
        file.header.nlabl = 1


def read_mrc(path: Path) -> tuple[Volume, str]:
    """Read an MRC volume and its first label; the voxel size is the header's, in its own unit.

    Raises
    ------
    InputError
        If it is not an MRC volume.
    """
    _check_size(path)
    try:
        with mrcfile.open(path) as file:
            label = bytes(file.header.label[0]).decode("ascii", "replace").rstrip(" \0")
            data = np.array(file.data, np.float32)
            return Volume(data, float(file.voxel_size.x), "1/angstrom" if "intensity" in label else "angstrom"), label
    except (ValueError, OSError) as error:
        raise InputError(f"{path} cannot be read as MRC ({error}): copy it again in full") from error


def _check_size(path: Path) -> None:
    """Refuse a header that promises more than the file holds, before room is made for it."""
    try:
        with path.open("rb") as file:
            head = file.read(HEADER_BYTES)
        size = path.stat().st_size
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): check the name") from error
    if len(head) < HEADER_BYTES or head[MAGIC_AT : MAGIC_AT + 4] != b"MAP ":
        return  # compressed, or none: mrcfile says
    order = ">" if head[MACHINE_AT] == BIG_ENDIAN else "<"
    nx, ny, nz = (int(n) for n in np.frombuffer(head[:12], f"{order}i4"))
    more = int(np.frombuffer(head[MORE_AT : MORE_AT + 4], f"{order}i4")[0])
    if min(nx, ny, nz) <= 0 or nx * ny * nz > 8 * size or not 0 <= more <= size:
        raise InputError(f"{path} promises {nx} × {ny} × {nz} voxels, more than it holds: copy it again in full")
