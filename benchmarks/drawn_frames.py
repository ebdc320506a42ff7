"""Frames of the klh1 particle in any number, drawn from its true intensity at random poses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numba
import numpy as np

from napari_xrai.core.frames import BAD, Detector, Volume
from napari_xrai.core.rotations import random_rotations
from napari_xrai.io.open import open_source
from napari_xrai.io.truth import read_truth

SHAPE = (64, 64)
AT_ONCE = 200


@dataclass
class Klh1:
    """The particle's true intensity, as a volume in detector voxels and in (x, y, z) order, and the detector."""

    folder: Path
    volume: Volume
    intensity: np.ndarray
    detector: Detector

    @classmethod
    def read(cls, data: Path) -> Klh1:
        """Read DIR/klh1/."""
        folder = data / "klh1"
        detector = open_source([folder / "photons.emc"], detector=folder / "det_sim.h5").detector
        assert detector is not None
        data = read_truth(folder / "truth.h5").intensity.data
        intensity = np.ascontiguousarray(np.transpose(data), np.float32)
        return cls(folder, Volume(data, 1.0, "detector_voxel"), intensity, detector)

    def frames(self, rotation: np.ndarray, photons: float, seed: int) -> Iterator[np.ndarray]:
        """Draw (AT_ONCE, 64, 64) counts at each of the rotations (N, 3, 3), `photons` each on average."""
        response = self.detector.response * (self.detector.mask < BAD)
        mean = np.zeros((min(AT_ONCE, len(rotation)), len(response)))
        _expected(rotation[:AT_ONCE], self.detector.q, response, self.intensity, mean)
        scale = photons / mean.sum(1).mean()
        _seed(seed)
        for first in range(0, len(rotation), AT_ONCE):
            part = rotation[first : first + AT_ONCE]
            out = np.zeros((len(part), len(response)), np.uint8)
            _draw(part, self.detector.q, response * scale, self.intensity, out)
            yield out.reshape(-1, *SHAPE)

    def write(self, out: Path, n: int, photons: float, seed: int) -> np.ndarray:
        """Write an HDF5 file, which appears when it is complete; returns the true poses."""
        rotation = random_rotations(n, np.random.default_rng(seed)).astype(np.float32)
        part = out.with_name(f".{out.name}.part")
        with h5py.File(part, "w") as file:
            data = file.create_dataset("frames", (n, *SHAPE), "u1", chunks=(AT_ONCE, *SHAPE))
            for n_before, counts in enumerate(self.frames(rotation, photons, seed)):
                data[AT_ONCE * n_before : AT_ONCE * n_before + len(counts)] = counts
        part.rename(out)
        return rotation

    def write_truth(self, out: Path, rotation: np.ndarray) -> None:
        """Write the truth of klh1 with these poses."""
        with h5py.File(self.folder / "truth.h5") as given, h5py.File(out, "w") as file:
            for name in given:
                if name != "rot_lab_to_volume":
                    given.copy(name, file)
            file["rot_lab_to_volume"] = rotation


@numba.njit(nogil=True, cache=True)
def _seed(seed: int) -> None:
    np.random.seed(seed)


@numba.njit(nogil=True, cache=True)
def _expected(rotation: Any, q: Any, response: Any, grid: Any, mean: Any) -> None:
    """Trilinear intensity at each pixel of each frame, 0 outside the grid."""
    middle = grid.shape[0] // 2
    for n in range(len(rotation)):
        r = rotation[n]
        for p in range(len(q)):
            mean[n, p] = 0
            if response[p] == 0:
                continue
            x = r[0, 0] * q[p, 0] + r[0, 1] * q[p, 1] + r[0, 2] * q[p, 2] + middle
            y = r[1, 0] * q[p, 0] + r[1, 1] * q[p, 1] + r[1, 2] * q[p, 2] + middle
            z = r[2, 0] * q[p, 0] + r[2, 1] * q[p, 1] + r[2, 2] * q[p, 2] + middle
            i, j, k = int(np.floor(x)), int(np.floor(y)), int(np.floor(z))
            if min(i, j, k) < 0 or max(i, j, k) + 1 >= grid.shape[0]:
                continue
            total = 0.0
            for a in range(2):
                u = x - i if a else 1 - x + i
                for b in range(2):
                    v = y - j if b else 1 - y + j
                    w = z - k
                    total += u * v * ((1 - w) * grid[i + a, j + b, k] + w * grid[i + a, j + b, k + 1])
            mean[n, p] = total * response[p]


@numba.njit(nogil=True, cache=True)
def _draw(rotation: Any, q: Any, response: Any, grid: Any, out: Any) -> None:
    mean = np.zeros((1, len(q)))
    for n in range(len(rotation)):
        _expected(rotation[n : n + 1], q, response, grid, mean)
        for p in range(len(q)):
            if mean[0, p] > 0:
                out[n, p] = min(255, np.random.poisson(mean[0, p]))
