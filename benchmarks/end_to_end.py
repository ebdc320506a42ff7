"""The ablation: X-RAI's own objective, end to end, beside the engine and beside the engine's encoder left to itself.

    python benchmarks/end_to_end.py --data DIR [--cases klh1 4bed] [--seeds 0 1] [--budget 300] [--methods …]

DIR as for benchmarks/convergence.py. *End to end*: image → encoder → poses → decoder → image, and nothing else: no
search, no dreams, no refinement. Every head at every place is a hypothesis, with its half-turn; the one under which the
decoder explains the frame best takes all (symmetric loss), and Adam follows the Poisson likelihood's gradient into both
networks. It is given the radial mean, the frames' spread of fluence, resolution that grows from the engine's own start
to the edge over the first half of its budget, and at the end the likeliest of its hypotheses for every frame. *From the
truth* starts the decoder at the true intensity: whether the objective, given the answer, holds on to it.

*Encoder alone*: once the engine has converged, its encoder learns the final field and names poses for the real frames:
nearest of its hypotheses, the one scored highest, the likeliest, all without refinement; intensities are merged there.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from convergence import CASES, METHODS, RADII, load, true_field
from napari_xrai.core.amortised import FIRST_STEPS, SIGHT, AmortisedPoses
from napari_xrai.core.encoder import PolarImage, PoseEncoder, expected_ratio, propose
from napari_xrai.core.field import DARKEST, VoxelField, grid_radius
from napari_xrai.core.frames import Detector, Frames, Volume
from napari_xrai.core.inference import HALF_TURN
from napari_xrai.core.likelihood import PoseLikelihood
from napari_xrai.core.neural_field import DIMMEST, ONE
from napari_xrai.core.pixels import SparsePhotons
from napari_xrai.core.reconstruction import Reconstruction
from napari_xrai.core.reconstruction_settings import ReconstructionSettings
from napari_xrai.core.resolution import sphere_correlation
from napari_xrai.core.rotations import align_poses, geodesic_angle
from napari_xrai.core.simulate import Truth
from napari_xrai.core.siren import SirenPair

F32 = NDArray[np.float32]

BATCH = 64
HEADS, STRIDE = 4, 6
"""Four heads at each of four places on the circle."""
ENCODER_RATE, VOXEL_RATE, SIREN_PACE = 1e-3, 0.02, 0.3
MARCHED = 0.5
"""Share of the budget after which all pixels count."""
STEPS_PER_RENDER = 20
"""A siren's grid, by which hypotheses are compared, is rendered anew after so many steps."""


@dataclass
class Row:
    """The figures of one method."""

    case: str
    method: str
    seed: int
    median_deg: float
    p90_deg: float
    within_15: float
    shell_cc: list[float]
    cpu_s: float
    note: str = ""


class VoxelDecoder(nn.Module):
    """V/Ī on a grid, even by construction: trilinear, then positive."""

    def __init__(self, engine: Reconstruction, rng: np.random.Generator, ratio: F32 | None) -> None:
        super().__init__()
        self.edge = engine.pixels.edge
        if ratio is None:
            ratio = np.exp(0.3 * rng.normal(size=self.edge**3)).astype(np.float32)
        value = torch.from_numpy(np.maximum(ratio, DARKEST))
        self.value = nn.Parameter(torch.log(torch.expm1(value)) - ONE)

    def even(self) -> Tensor:
        """(edge³) of what is stored, made even."""
        return (self.value + self.value.flip(0)) / 2

    def forward(self, point: Tensor) -> Tensor:
        """(B, P) ratio at `point` (B, P, 3), voxels."""
        grid = self.even().view(1, 1, self.edge, self.edge, self.edge)
        sampled = F.grid_sample(grid, point[None, :, :, None] / (self.edge // 2), align_corners=True)
        return F.softplus(sampled[0, 0, :, :, 0] + ONE) + DIMMEST

    @torch.no_grad()
    def grid(self, step: int, radius: float) -> Tensor:
        """(edge³) ratio."""
        return F.softplus(self.even() + ONE) + DIMMEST

    def rates(self) -> list[dict[str, object]]:
        """Parameters and learning rates, for Adam."""
        return [{"params": [self.value], "lr": VOXEL_RATE}]


class SirenDecoder(nn.Module):
    """One of the engine's even networks."""

    def __init__(self, engine: Reconstruction, rng: np.random.Generator) -> None:
        super().__init__()
        self.edge, self.speckle = engine.pixels.edge, engine.speckle.size
        seed = torch.Generator().manual_seed(int(rng.integers(2**31)))
        self.network = SirenPair(engine.pixels.orient_radius / self.speckle, seed)
        for name, weight in list(self.network.named_parameters()):
            setattr(self.network, name, nn.Parameter(weight.detach()[:1].clone()))
        self.radius = grid_radius(self.edge)[: self.edge**3 // 2 + 1]
        self.ratio = torch.ones(self.edge**3)

    def forward(self, point: Tensor) -> Tensor:
        """(B, P) ratio at `point` (B, P, 3), voxels."""
        said = self.network(point.reshape(1, -1, 3) / self.speckle).view(point.shape[:-1])
        return F.softplus(said + ONE) + DIMMEST

    @torch.no_grad()
    def grid(self, step: int, radius: float) -> Tensor:
        """(edge³) ratio, as of the last rendering, at least as far as `radius`."""
        if step % STEPS_PER_RENDER == 0:
            voxel = np.flatnonzero(self.radius <= radius + 3)
            z, y, x = np.unravel_index(voxel, (self.edge,) * 3)
            place = torch.from_numpy((np.stack([x, y, z], -1) - self.edge // 2).astype(np.float32))
            value = torch.cat([self(part[None])[0] for part in place.split(16384)])
            self.ratio[voxel] = self.ratio[self.edge**3 - 1 - voxel] = value
        return self.ratio

    def rates(self) -> list[dict[str, object]]:
        """Parameters and learning rates, for Adam."""
        return [{"params": w, "lr": SIREN_PACE * rate} for w, rate in self.network.rates()]


class EndToEnd:
    """Encoder and decoder, trained on nothing but the frames."""

    def __init__(self, engine: Reconstruction, photons: SparsePhotons, decoder: VoxelDecoder | SirenDecoder) -> None:
        self.engine, self.photons, self.decoder = engine, photons, decoder
        pixels = engine.pixels
        polar = PolarImage(pixels, engine.brightness, SIGHT * engine.speckle.size, engine.fluence_shape)
        self.encoder = PoseEncoder(polar, HEADS, stride=STRIDE, seed=int(engine.rng.integers(2**31)))
        self.q, self.bright = torch.from_numpy(pixels.q), torch.from_numpy(engine.brightness)
        self.radius = engine.start_radius
        self.optimiser = torch.optim.Adam([{"params": self.encoder.parameters(), "lr": ENCODER_RATE}, *decoder.rates()])
        for group in self.optimiser.param_groups:
            group["full"] = group["lr"]

    def fit(self, budget: float) -> Iterator[tuple[float, float]]:
        """Train for `budget` CPU seconds; yields the share spent and the loss per frame."""
        begin, step, pixels = time.process_time(), 0, self.engine.pixels
        order = self.engine.rng.permutation(len(self.photons))
        while (share := (time.process_time() - begin) / budget) < 1:
            self.radius = np.interp(share, [0, MARCHED], [self.engine.start_radius, pixels.orient_radius])
            for group in self.optimiser.param_groups:
                group["lr"] = group["full"] * min(1, (step + 1) / 50) * (0.02 + 0.98 * min(1, 2 * (1 - share)))
            rows = order[np.arange(step * BATCH, (step + 1) * BATCH) % len(order)]
            loss = self._step(self.photons.take(rows), step)
            if step % 100 == 0 and share < 0.7:
                self.encoder.revive(self.engine.rng)
            yield share, loss
            step += 1

    def _step(self, photons: SparsePhotons, step: int) -> float:
        n = self.engine.pixels.within(self.radius)
        count = torch.from_numpy(photons.dense(n))
        said, logit = self.encoder(self.encoder.polar(photons))
        pose = self._poses(said)
        value = self._values(pose.detach(), count, self.decoder.grid(step, self.radius))
        winner = value.argmax(1)
        every = torch.arange(len(winner))
        ratio = self.decoder(self.q[:n] @ pose[every, winner].mT)
        loss = -self._log_likelihood(count, ratio).mean()
        surprise = F.cross_entropy(logit.flatten(1), winner // 2)
        self.optimiser.zero_grad(set_to_none=True)
        (loss + 0.3 * surprise).backward()
        self.optimiser.step()
        won = torch.bincount(winner // 2 % HEADS, minlength=HEADS) / len(winner)
        self.encoder.won.lerp_(won, 0.02)
        return float(loss.detach())

    def _poses(self, said: Tensor) -> Tensor:
        """(B, hypotheses × 2, 3, 3): every head at every place, each with its half-turn."""
        place = torch.arange(said.shape[1])[None, :, None].expand(said.shape[:3])
        pose = self.encoder.absolute(said, place).flatten(1, 2)
        return torch.stack([pose, pose @ torch.from_numpy(HALF_TURN)], 2).flatten(1, 2)

    def _values(self, pose: Tensor, count: Tensor, grid: Tensor) -> Tensor:
        """(B, hypotheses) log-likelihoods, looked up in the decoder's grid."""
        n = count.shape[1]
        ratio = expected_ratio(pose.flatten(0, 1).contiguous(), self.engine.pixels.q[:n], grid.numpy(),
                               self.engine.pixels.edge)  # fmt: skip
        return self._log_likelihood(count[:, None], ratio.view(*pose.shape[:2], n))

    def _log_likelihood(self, count: Tensor, ratio: Tensor) -> Tensor:
        """The engine's likelihood by its definition, over every pixel: Poisson, fluence integrated over."""
        total = ratio @ self.bright[: count.shape[-1]]
        seen, shape = (count * ratio.log()).sum(-1), self.engine.fluence_shape
        if np.isinf(shape):
            return seen - total
        return seen - (count.sum(-1) + shape) * torch.log((total + shape) / (1 + shape))

    @torch.no_grad()
    def poses(self, rows: NDArray[np.int64]) -> F32:
        """(N, 3, 3) likeliest hypothesis of each frame."""
        n, best = self.engine.pixels.within(self.radius), []
        grid = self.decoder.grid(0, self.radius)
        for part in np.array_split(rows, -(-len(rows) // 200)):
            photons = self.photons.take(part)
            pose = self._poses(self.encoder(self.encoder.polar(photons))[0])
            winner = self._values(pose, torch.from_numpy(photons.dense(n)), grid).argmax(1)
            best.append(pose[torch.arange(len(winner)), winner].numpy())
        return np.concatenate(best)


def end_to_end(
    engine: Reconstruction, frames: Frames, truth: Truth, method: str, budget: float, ratio: F32 | None
) -> tuple[F32, F32, float, str]:
    """Poses, V/Ī, CPU s, and how the error went, by fifths of the budget."""
    photons = engine.pixels.sparse(frames)
    decoder = SirenDecoder(engine, engine.rng) if "siren" in method else VoxelDecoder(engine, engine.rng, ratio)
    both = EndToEnd(engine, photons, decoder)
    begin, looked, course, seen = time.process_time(), 0.0, [], 0
    some = np.arange(0, len(photons), max(1, len(photons) // 500))
    losses = []
    for share, loss in both.fit(budget):
        losses.append(loss)
        if share > (len(course) + 1) / 5:
            start = time.process_time()
            course.append(float(np.median(align_poses(both.poses(some), truth.rotation[some])[1])))
            looked += time.process_time() - start
    seen = len(losses) * BATCH
    cpu = time.process_time() - begin - looked
    note = f"{seen / len(photons):.0f} passes; median error by fifths: {' '.join(f'{x:.0f}' for x in course)}°"
    rotation = both.poses(np.arange(len(photons)))
    return rotation, both.decoder.grid(0, engine.pixels.orient_radius).numpy().copy(), cpu, note


def figures(
    engine: Reconstruction, truth: Truth, key: tuple[str, str, int], rotation: F32, ratio: F32, cpu: float, note: str
) -> Row:  # fmt: skip
    """A row from poses of all frames and V/Ī."""
    align, error = align_poses(rotation, truth.rotation, truth.point_group)
    pixels = engine.pixels
    cube = (ratio * engine.profile(grid_radius(pixels.edge))).astype(np.float32).reshape((pixels.edge,) * 3)
    volume = Volume(cube, pixels.voxel_size, pixels.units)
    cc = sphere_correlation(volume, truth.intensity, RADII, rotation=align.T).value
    return Row(*key, float(np.median(error)), float(np.percentile(error, 90)), float((error < 15).mean()),
               [float(c) for c in cc], cpu, note)  # fmt: skip


def fresh(detector: Detector, frames: Frames, seed: int) -> Reconstruction:
    """An engine that has looked at its frames and done nothing else."""
    engine = Reconstruction(detector, ReconstructionSettings(seed=seed), len(frames))
    engine._measure(engine._settle(engine.pixels.sparse(frames)))
    return engine


def engine_rows(detector: Detector, frames: Frames, truth: Truth, name: str, seed: int) -> Iterator[Row]:
    """The engine, and its encoder alone."""
    begin = time.process_time()
    engine = Reconstruction(detector, replace(METHODS["engine"], seed=seed), len(frames))
    for _ in engine.run(lambda size, start: (frames.take(slice(a, a + size)) for a in range(start, len(frames), size))):
        pass
    cpu = time.process_time() - begin
    photons = engine.pixels.sparse(frames)
    rotation, known = engine.table.rotation(photons.index)
    assert known.all() and engine.field is not None
    yield figures(engine, truth, (name, "engine", seed), rotation, engine.field.ratio, cpu, engine.verdict()[0])
    begin = time.process_time()
    amortised = AmortisedPoses(engine.pixels, engine.brightness, engine.speckle.size, engine.fluence_shape)
    for _ in amortised.sleep(engine.field.ratio, engine.radius, engine.rng):
        pass
    assert amortised.encoder is not None
    parts = [propose(amortised.encoder, photons.take(r)) for r in np.array_split(np.arange(len(photons)), 20)]
    proposed, score = (np.concatenate(x) for x in zip(*parts, strict=True))
    cpu = time.process_time() - begin
    likelihood, _ = _end(engine._prepare("none"))
    every = np.arange(len(photons))
    top = proposed[every, score.argmax(1)]
    turned = np.concatenate([proposed, proposed @ HALF_TURN], 1)
    begin = time.process_time()
    likeliest = turned[every, likelihood.score(photons, turned).argmax(1)]
    scoring = time.process_time() - begin
    note = f"{FIRST_STEPS} steps of sleep; nearest of 8: {nearest(proposed, top, truth):.1f}°"
    for method, pose, spent in (
        ("encoder alone, scored highest", top, cpu),
        ("encoder alone, likeliest", likeliest, cpu + scoring),
    ):
        ratio = merged(engine, photons, pose, likelihood, halves="highest" in method)
        yield figures(engine, truth, (name, method, seed), pose, ratio, spent, note)


def nearest(proposed: F32, top: F32, truth: Truth) -> float:
    """Median error of the nearest of the hypotheses (N, M, 3, 3)."""
    turn, _ = align_poses(top, truth.rotation, truth.point_group)
    laid, true = turn @ proposed.astype(np.float64), truth.rotation[:, None]
    error = np.minimum(geodesic_angle(laid, true), geodesic_angle(laid @ HALF_TURN, true))
    return float(np.median(np.degrees(error.min(1))))


def merged(
    engine: Reconstruction, photons: SparsePhotons, pose: F32, likelihood: PoseLikelihood, halves: bool
) -> F32:  # fmt: skip
    """V/Ī from frames merged at one pose each, or, with `halves`, at both half-turns of it."""
    evidence = engine.light.evidence(np.inf)
    total = photons.totals(likelihood.n_pixels)
    every, weight = np.arange(len(photons)), np.full(len(photons), 0.5 if halves else 1.0)
    for sample in (pose, np.ascontiguousarray(pose @ HALF_TURN)) if halves else (pose,):
        evidence.add(photons, every, sample, weight, likelihood.fluence(sample, total))
    field = VoxelField(engine.pixels, engine.profile, np.random.default_rng(0), 0.11 * engine.speckle.size)
    grids = _end(evidence.volumes())
    for work in (field.choose_band(*grids, engine.radius), field.update(*grids)):
        for _ in work:
            pass
    return field.ratio


def _end(work):  # type: ignore[no-untyped-def]
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def run(name: str, seed: int, methods: list[str], budget: float, data: Path) -> Iterator[Row]:
    """All methods on one case."""
    case = CASES[name]
    detector, frames, truth = load(case, name, data, seed)
    for method in methods:
        if method == "engine":
            yield from engine_rows(detector, frames, truth, name, seed)
            continue
        engine = fresh(detector, frames, seed)
        start = true_field(engine, truth, case).ratio if method.endswith("truth") else None
        rotation, ratio, cpu, note = end_to_end(engine, frames, truth, method, budget, start)
        yield figures(engine, truth, (name, method, seed), rotation, ratio, cpu, note)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cases", nargs="+", default=["klh1", "4bed"], choices=list(CASES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--budget", type=float, default=300, help="CPU seconds per end-to-end run")
    every = ["engine", "end to end, voxel", "end to end, siren", "end to end, voxel, from the truth"]
    parser.add_argument("--methods", nargs="+", default=every, choices=every)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    for name in chosen.cases:
        for seed in chosen.seeds:
            for row in run(name, seed, chosen.methods, chosen.budget, chosen.data):
                rows.append(row)
                print(asdict(row), flush=True)
    table = Table("case", "method", "seed", "median °", "p90 °", "< 15°", *(f"CC {r}" for r in RADII), "CPU s", "note")
    for r in sorted(rows, key=lambda r: (r.case, r.method, r.seed)):
        table.add_row(r.case, r.method, str(r.seed), f"{r.median_deg:.1f}", f"{r.p90_deg:.0f}", f"{r.within_15:.0%}",
                      *(f"{c:.3f}" for c in r.shell_cc), f"{r.cpu_s:.0f}", r.note)  # fmt: skip
    Console(width=200).print(table)
    if chosen.json:
        chosen.json.write_text(json.dumps([asdict(r) for r in rows], indent=1))


if __name__ == "__main__":
    main()
