"""How well, and how fast, pose encoders learn from dreams: architectures × CPU seconds of training.

    python benchmarks/encoder.py --data DIR [--run RUN] [--seconds 10 20 40] [--only circular dense]

DIR holds photons.emc, det_sim.h5 and truth.h5 of one simulated run of asymmetric particles. Dreams come from the true
volume or, with --run, from the volume of a finished or stopped reconstruction; the real frames are never trained on.
Errors are medians over the real frames in degrees, modulo Rz(π) and one global rotation.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from torch import Tensor, nn

from napari_xrai.core.encoder import PolarImage, PoseEncoder, coverage, expected_ratio, propose, sleep
from napari_xrai.core.field import RadialProfile, friedel_sum, grid_radius
from napari_xrai.core.frames import Frames, Volume
from napari_xrai.core.pixels import Pixels, SparsePhotons, pixels_of
from napari_xrai.core.rotations import RZ_PI, align_poses, geodesic_angle
from napari_xrai.io.open import open_source
from napari_xrai.io.truth import read_truth
from napari_xrai.run import read_run

RADIUS, BATCH = 20.0, 128


class DenseEncoder(PoseEncoder):
    """Plain dense layers on the flattened image: 1024-1024-512."""

    def _build(self, width: tuple[int, int, int], stride: int) -> None:
        n = self.polar.n_rings * self.polar.n_angles
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(n, 1024), nn.GELU(), nn.Linear(1024, 1024), nn.GELU(),
            nn.Linear(1024, 512), nn.GELU(),
        )  # fmt: skip
        self._one_place(512)

    def _one_place(self, features: int) -> None:
        self.head = nn.Linear(features, self.hypotheses * 7)
        bias = torch.randn(self.hypotheses, 7)
        bias[:, 6] = 0
        self.head.bias = nn.Parameter(bias.flatten())
        self.register_buffer("place", torch.tensor([[1.0, 0.0]]))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """As the engine's encoder, with one place."""
        out = self.head(self.layers(image)).view(len(image), 1, self.hypotheses, 7)
        return out[..., :6], out[..., 6]


class ConvolutionalEncoder(DenseEncoder):
    """Small circular kernels over the angle, then dense: convolutional, but not equivariant at the end."""

    def _build(self, width: tuple[int, int, int], stride: int) -> None:
        def circular(before: int, after: int, step: int) -> nn.Conv1d:
            return nn.Conv1d(before, after, 5, stride=step, padding=2, padding_mode="circular")

        self.layers = nn.Sequential(
            circular(self.polar.n_rings, 64, 1), nn.SiLU(), circular(64, 128, 2), nn.SiLU(), circular(128, 128, 2),
            nn.SiLU(), nn.Flatten(), nn.Linear(32 * self.polar.n_angles, 512), nn.SiLU(),
        )  # fmt: skip
        self._one_place(512)


WHOLE_TURN = {"n_angles": 48, "turn": 2 * np.pi}
ARCHITECTURES = {
    "circular": (PoseEncoder, {}, 4e-3),
    "circular, 16 hypotheses": (lambda polar: PoseEncoder(polar, 16), {}, 4e-3),
    "convolutional": (ConvolutionalEncoder, WHOLE_TURN, 2e-3),
    "dense": (DenseEncoder, WHOLE_TURN, 2e-3),
    "dense, half a turn": (DenseEncoder, {}, 2e-3),
}
"""Class, image, learning rate (the best of 1, 2, 4, 6 · 10⁻³ for each)."""


@dataclass
class Case:
    """One simulated run with its truth, laid out as the engine does."""

    pixels: Pixels
    photons: SparsePhotons
    brightness: NDArray[np.float32]
    profile: RadialProfile
    rotation: NDArray[np.float32]
    truth: Volume

    def true_ratio(self) -> NDArray[np.float32]:
        """True V/Ī on the engine's grid, scaled to the frames' photons."""
        edge, pixels = self.pixels.edge, self.pixels
        step = 1.0 if pixels.units == "detector_voxel" else pixels.voxel_size / self.truth.voxel_size
        axis = (np.arange(edge) - edge // 2) * step + self.truth.data.shape[0] // 2
        place = np.meshgrid(axis, axis, axis, indexing="ij")
        volume = map_coordinates(self.truth.data, place, order=1, mode="nearest").astype(np.float32).reshape(-1)
        seen = expected_ratio(torch.from_numpy(self.rotation[:200]), pixels.q, volume, edge).numpy() * pixels.response
        volume *= self.photons.take(np.arange(200)).count.sum() / seen.sum()
        return self._over_profile(volume)

    def run_ratio(self, run: Path) -> NDArray[np.float32]:
        """V/Ī of a reconstruction."""
        snapshot = read_run(run).snapshot
        if snapshot is None or snapshot.intensity.data.shape != (self.pixels.edge,) * 3:
            raise SystemExit(f"{run} holds no volume of these frames")
        return self._over_profile(snapshot.intensity.data.reshape(-1))

    def _over_profile(self, volume: NDArray[np.float32]) -> NDArray[np.float32]:
        ratio = volume / self.profile(grid_radius(self.pixels.edge))
        return np.ascontiguousarray(friedel_sum(np.where(volume > 0, ratio, 1).astype(np.float32)) / 2)


def read_case(folder: Path) -> Case:
    source = open_source([folder / "photons.emc"], detector=folder / "det_sim.h5")
    pixels = pixels_of(source.detector)
    photons = pixels.sparse(Frames.concatenate(list(source.batches(1000))))
    profile = RadialProfile(pixels, np.bincount(photons.pixel, photons.count, len(pixels.rho)), len(photons))
    brightness = (pixels.response * profile(np.linalg.norm(pixels.q, axis=1))).astype(np.float32)
    truth = read_truth(folder / "truth.h5")
    return Case(pixels, photons, brightness, profile, truth.rotation, truth.intensity)


def train(encoder: PoseEncoder, ratio: NDArray[np.float32], seconds: float, rate: float, seed: int) -> float:
    """Train for about so many CPU seconds; frames/s."""
    state, rng = encoder.state(), np.random.default_rng(seed)
    for steps in (5, 20):  # the first few load what is compiled
        begin = time.process_time()
        for _ in sleep(encoder, ratio, steps, rng, BATCH, rate):
            pass
    steps = int(seconds / (time.process_time() - begin) * steps)
    encoder.restore(state)
    begin = time.process_time()
    for _ in sleep(encoder, ratio, steps, rng, BATCH, rate):
        pass
    return steps * BATCH / (time.process_time() - begin)


def assess(encoder: PoseEncoder, case: Case) -> tuple[str, float]:
    """Errors, calibration and coverage on real frames in words; frames/s of inference."""
    begin = time.process_time()
    parts = [propose(encoder, case.photons.take(rows)) for rows in np.array_split(np.arange(len(case.photons)), 16)]
    spent = time.process_time() - begin
    rotation, score = (np.concatenate(x) for x in zip(*parts, strict=True))
    frame, top = np.arange(len(score)), score.argmax(1)
    turn, _ = align_poses(rotation[frame, top][:1500], case.rotation[:1500])
    true = case.rotation[:, None]
    error = np.degrees(np.minimum(*(geodesic_angle(turn @ rotation @ k, true) for k in (np.eye(3), RZ_PI))))
    probability = F.softmax(torch.from_numpy(score), 1).numpy().max(1).mean()
    words = (
        f"{np.median(error.min(1)):6.2f} {np.median(error[frame, top]):6.2f} {(error.min(1) < 15).mean():7.3f}"
        f" {probability:6.2f} {(error.argmin(1) == top).mean():6.2f} {coverage(rotation[frame, top]):6.2f}"
    )
    return words, len(score) / spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--seconds", type=float, nargs="+", default=[10, 20, 40])
    parser.add_argument("--only", nargs="+", choices=list(ARCHITECTURES), default=list(ARCHITECTURES))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    case = read_case(options.data)
    ratio = case.run_ratio(options.run) if options.run else case.true_ratio()
    print("architecture              CPU s  best°   top°    <15° P(top)   true  cover  train/s  infer/s  weights")
    for name in options.only:
        kind, image, rate = ARCHITECTURES[name]
        polar = PolarImage(case.pixels, case.brightness, RADIUS, **image)
        for seconds in options.seconds:
            encoder = kind(polar)
            speed = train(encoder, ratio, seconds, rate, options.seed)
            words, infer = assess(encoder, case)
            weights = sum(p.numel() for p in encoder.parameters())
            print(f"{name:24} {seconds:6.0f} {words} {speed:8.0f} {infer:8.0f} {weights:8d}", flush=True)


if __name__ == "__main__":
    main()
