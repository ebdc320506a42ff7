"""Dragonfly's reconstructions (output_NNN.h5), to compare a run with: intensity, and the pose of every frame."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from ..core.frames import Volume
from ..core.rotations import quaternion_to_matrix
from ..core.simulate import Truth
from .batched import open_hdf5
from .source import InputError

LARGEST_BYTES = 2**30


def read_output(path: Path) -> Truth:
    """Read an output file of Dragonfly's as if it were a truth.

    Its voxels are those of its detector file. A frame that it left out has NaN for a rotation.

    Raises
    ------
    InputError
        If it has no volume, several, or no quaternions, as the older program in C wrote it.
    """
    with open_hdf5(path) as file:
        intensity = _read_intensity(path, file)
        for name in ("orientations", "quaternions"):
            if not isinstance(file.get(name), h5py.Dataset):
                raise InputError(f"{path} has no dataset {name}, so its poses are unknown: write it with dragonfly-spi")
        index = np.asarray(file["orientations"][()], np.int64).ravel()
        sampling = np.asarray(file["quaternions"][()], np.float64)
    if sampling.ndim != 2 or sampling.shape[1] not in (4, 5) or not len(index) or index.max() >= len(sampling):
        raise InputError(f"{path}: its orientations and quaternions do not belong together: write it again")
    return Truth(_rotations(index, sampling), Volume(intensity, 1.0, "detector_voxel"))


def _read_intensity(path: Path, file: h5py.File) -> NDArray[np.float32]:
    """(z, y, x); the file counts x, y, z."""
    node = file["intens"]
    if node.ndim == 4 and node.shape[0] > 1:
        raise InputError(f"{path} holds {node.shape[0]} volumes, one for each mode: compare with a run of one")
    if node.ndim not in (3, 4) or len(set(node.shape[-3:])) != 1 or 8 * node.size > LARGEST_BYTES:
        raise InputError(f"{path}: intens has shape {node.shape}, expected one cube: give a 3D reconstruction")
    volume = np.asarray(node[()], np.float32).reshape(node.shape[-3:])
    return np.ascontiguousarray(np.nan_to_num(volume).transpose(2, 1, 0))


def _rotations(index: NDArray[np.int64], sampling: NDArray[np.float64]) -> NDArray[np.float32]:
    """Lab → particle. Quaternions are scalar-first, and stand for the transpose of the usual matrix."""
    matrices = quaternion_to_matrix(sampling[:, [1, 2, 3, 0]]).transpose(0, 2, 1)
    rotations = matrices[np.maximum(index, 0)].astype(np.float32)
    rotations[index < 0] = np.nan
    return rotations


def is_output(file: h5py.File) -> bool:
    """Whether this is one of Dragonfly's reconstructions."""
    return isinstance(file.get("intens"), h5py.Dataset)
