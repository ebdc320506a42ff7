"""Truth files of simulations: what reconstructions are scored against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..core.frames import Volume
from ..core.simulate import Truth
from .batched import open_hdf5
from .dragonfly_output import is_output, read_output
from .hdf5_file import new_hdf5
from .source import InputError


def truth_path(frames: Path) -> Path:
    """Where the truth of simulated frames lies: ``<stem>.truth.h5`` beside them."""
    return frames.with_suffix(".truth.h5")


def write_truth(path: Path, truth: Truth) -> None:
    """Write a truth file, whole or not at all. Volumes are stored in (x, y, z) order.

    Raises
    ------
    InputError
        If it cannot be written.
    """
    with new_hdf5(path) as file:
        file["rot_lab_to_volume"] = truth.rotation.astype(np.float32)
        file["rot_lab_to_volume"].attrs["meaning"] = "x_volume = M @ q_lab"
        intensity = _put_volume(file, "intensity", truth.intensity)
        intensity.attrs["voxel_size_invA"] = truth.intensity.voxel_size
        intensity.attrs["units"] = "photons per frame in a pixel of response 1"
        if truth.density is not None:
            density = _put_volume(file, "density", truth.density)
            density.attrs["voxel_A"] = truth.density.voxel_size
            density.attrs["units"] = "electrons per cubic angstrom"
        if truth.fluence is not None:
            file["fluence"] = truth.fluence
        if truth.point_group is not None:
            file["point_group_ops"] = truth.point_group
        file.attrs["beam"] = "+z, y up, right-handed; q = (r - z)/wavelength, no 2 pi; q_z <= 0"


def _put_volume(file: h5py.File, name: str, volume: Volume) -> h5py.Dataset:
    data = volume.data.transpose(2, 1, 0)
    dataset = file.create_dataset(name, data=data, compression="gzip", compression_opts=1, shuffle=True)
    dataset.attrs["axes"] = "[x,y,z], C order"
    dataset.attrs["centre"] = data.shape[0] // 2
    return dataset


def read_truth(path: Path) -> Truth:
    """Read a truth file, ours or another program's of the same layout; or a reconstruction of Dragonfly's.

    Raises
    ------
    InputError
        If it is not a truth file.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist: give the truth file of the simulation")
    if not path.is_file() or not h5py.is_hdf5(path):
        what = "a folder" if path.is_dir() else "no HDF5 file"
        raise InputError(f"{path} is {what}: give the truth file of the simulation")
    with open_hdf5(path) as file:
        if is_output(file):
            return read_output(path)
        for name in ("rot_lab_to_volume", "intensity"):
            if not isinstance(file.get(name), h5py.Dataset):
                raise InputError(f"{path} has no dataset {name}: it is no truth file")
        voxel = file["intensity"].attrs.get("voxel_size_invA")
        if voxel is None:
            raise InputError(f"{path}: intensity has no attribute voxel_size_invA: write the truth again")
        intensity = Volume(_get_volume(file["intensity"]), float(voxel), "1/angstrom")
        if len(set(intensity.data.shape)) != 1:
            raise InputError(f"{path}: intensity has shape {intensity.data.shape}, expected a cube: write it again")
        density = None
        if "density" in file:
            # a density whose grid is cropped keeps the voxel that its intensity's grid implies
            size = file["density"].attrs.get("voxel_A")
            implied = 1 / (intensity.data.shape[0] * float(voxel))
            known = isinstance(size, (int, float, np.number))
            density = Volume(_get_volume(file["density"]), float(size) if known else implied, "angstrom")
        rotation = np.asarray(file["rot_lab_to_volume"][()], np.float32)
        if rotation.ndim != 3 or rotation.shape[1:] != (3, 3):
            raise InputError(f"{path}: rot_lab_to_volume has shape {rotation.shape}, expected (N, 3, 3)")
        return Truth(
            rotation, intensity, density,
            _optional(file, "fluence", np.float32), _optional(file, "point_group_ops", np.float64),
        )  # fmt: skip


def _get_volume(dataset: h5py.Dataset) -> Any:
    return np.ascontiguousarray(dataset[()].astype(np.float32).transpose(2, 1, 0))


def _optional(file: h5py.File, name: str, dtype: Any) -> Any:
    return np.asarray(file[name][()], dtype) if name in file else None
