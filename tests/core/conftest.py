"""A small detector, and particles whose intensity is a formula: what the engine's parts are tested on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from napari_xrai.core.detector import square_detector
from napari_xrai.core.frames import BAD, Detector, Frames
from napari_xrai.core.pixels import Background, Pixels, SparsePhotons, pixels_of
from napari_xrai.core.rotations import random_rotations


def exhaust(work):
    """What a generator returns."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def atoms_of(seed: int, n: int = 12, spread: float = 0.045) -> np.ndarray:
    """(n, 3) positions of point atoms, in 1/voxel: a particle without symmetry, with speckles about 4 voxels wide."""
    return spread * np.random.default_rng(seed).normal(size=(n, 3))


def intensity_ratio(atoms: np.ndarray, edge: int, weight: np.ndarray | float = 1.0) -> np.ndarray:
    """(edge³) float32: |F|² of weighted atoms over its radial mean, flat (z, y, x), kept above 0.05."""
    axis = np.arange(edge) - edge // 2
    x, y, z = np.exp(2j * np.pi * axis[:, None] * atoms.T[:, None])
    intensity = np.square(np.abs((weight * z[:, None] * y).reshape(edge**2, -1) @ x.T)).reshape(-1)
    radius = np.sqrt((axis**2)[:, None, None] + (axis**2)[:, None] + axis**2).reshape(-1)
    shell = np.rint(radius).astype(int)
    mean = np.maximum(np.bincount(shell, intensity) / np.bincount(shell), 1e-9)
    return np.maximum(intensity / np.interp(radius, np.arange(len(mean)), mean), 0.05).astype(np.float32)


def lopsided_detector(side: int = 32) -> Detector:
    """A detector whose mask has no ring symmetry: a cross-shaped stop, and a quadrant that is not there."""
    detector = square_detector((side, side), 1e-3, 0.2, None, polarization="x", stop_radius_px=2.5)
    row, column = np.indices((side, side)) - (side - 1) / 2
    cross = (np.abs(row) < 1) | (np.abs(column) < 1)
    quadrant = (row > 0) & (column > 0)
    return detector.with_mask(np.where(cross | quadrant, BAD, 0))


@dataclass(frozen=True, eq=False)
class Bench:
    """A known particle before a detector: everything a test needs to make frames and to judge them."""

    pixels: Pixels
    ratio: np.ndarray
    brightness: np.ndarray

    def under(self, light: np.ndarray) -> Bench:
        """The same with a background of `light` (U,) photons per frame, and it known."""
        share = self.brightness / (self.brightness + light)
        found = Background(light.astype(np.float32), share.astype(np.float32))
        return replace(self, pixels=replace(self.pixels, background=found))

    def streak(self, photons: float) -> np.ndarray:
        """(U,) a streak through the beam, narrower than a speckle, with so many photons per frame."""
        x, y = self.pixels.q[:, 0], self.pixels.q[:, 1]
        streak = np.exp(-np.square((y - 0.3 * x) / 0.9) / 2) / (np.abs(x) + 3)
        return photons * streak / streak.sum()

    def expected(self, rotation: np.ndarray, ratio: np.ndarray | None = None) -> np.ndarray:
        """(N, U) photons expected at poses (N, 3, 3) and fluence 1, by the definition: trilinear, pixel by pixel."""
        cube = (self.ratio if ratio is None else ratio).reshape((self.pixels.edge,) * 3).astype(np.float64)
        point = np.einsum("nij,uj->nui", rotation, self.pixels.q.astype(np.float64)) + self.pixels.edge // 2
        value = map_coordinates(cube, point.reshape(-1, 3)[:, ::-1].T, order=1)
        return value.reshape(point.shape[:2]) * self.brightness

    def as_scored(self, rotation: np.ndarray) -> np.ndarray:
        """(N, U) the same where it is ln V that is trilinear between voxels, as in scoring."""
        return self.brightness * np.exp(self.expected(rotation, np.log(self.ratio)) / self.brightness)

    def frames(
        self, n: int, seed: int, photons: float | None = None, fluence: np.ndarray | None = None
    ) -> tuple[SparsePhotons, np.ndarray]:
        """N Poisson frames at random poses, with those poses (N, 3, 3); `photons` per frame on average."""
        rng = np.random.default_rng(seed)
        rotation = random_rotations(n, rng)
        rate = self.expected(rotation) * (1.0 if fluence is None else fluence[:, None])
        if photons is not None:
            rate = rate * photons / rate.sum(1).mean()
        if self.pixels.background is not None:
            rate = rate + self.pixels.background.light
        return sparse(rng.poisson(rate)), rotation


def sparse(counts: np.ndarray) -> SparsePhotons:
    """Counts (N, U) on the engine's own pixels, as its sparse photons."""
    frames = Frames.from_dense(counts)
    return SparsePhotons(frames.start, frames.pixel, frames.count.astype(np.float32), frames.index)


def bench(
    detector: Detector, photons: float = 400.0, atoms: np.ndarray | None = None, weight: np.ndarray | float = 1.0
) -> Bench:
    pixels = pixels_of(detector)
    ratio = intensity_ratio(atoms_of(5) if atoms is None else atoms, pixels.edge, weight)
    profile = pixels.response * np.exp(-np.square(pixels.rho / 8) / 2) + 0.1
    return Bench(pixels, ratio, (profile * photons / profile.sum()).astype(np.float32))


@pytest.fixture(scope="session")
def lopsided() -> Bench:
    return bench(lopsided_detector())


@pytest.fixture(scope="session")
def round_bench() -> Bench:
    return bench(square_detector((32, 32), 1e-3, 0.2, None, stop_radius_px=2.5))


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
