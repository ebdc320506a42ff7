"""Are stated errors true? Poses within their 68 % radius, pulls of the intensity, and forecasts against what came.

    python benchmarks/calibration.py --data DIR [--cases klh1 2cex …] [--photons 200 500] [--seeds 5 6] [--frames 4000]

DIR and the cases are those of `convergence.py`; klh1 keeps its own photons and frames. A radius is calibrated when it
holds 68 ± 5 % of the true poses, in every fifth of the frames by confidence; a fifth of 200 frames is off by 3.3 % by
chance alone, so with several `--seeds` a row *all* takes their frames together. A pull is (V − truth) / standard error
in the voxels of three shells, the scale of each shell's mean taken out; its root mean square should be 1. With several
`--frames`, compare what each run forecasts with what the longer ones reach.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.ndimage import map_coordinates

from convergence import CASES, load
from napari_xrai.core.frames import Snapshot
from napari_xrai.core.reconstruction import Reconstruction
from napari_xrai.core.reconstruction_settings import ReconstructionSettings
from napari_xrai.core.resolution import shell_index
from napari_xrai.core.rotations import align_poses, quaternion_to_matrix
from napari_xrai.core.simulate import Truth

SHELLS = (8, 12, 16, 20, 24, 28)


@dataclass
class Calibration:
    """The figures of one run."""

    case: str
    photons: float
    frames: int
    seed: int
    median_deg: float
    radius_deg: float
    covered: float
    by_confidence: list[float]
    pulls: list[float]
    resolution: list[float]
    sentence: str
    verdict: str
    cpu_s: float


def calibrate(name: str, photons: float | None, frames: int | None, seed: int, data: Path) -> Calibration:
    """Reconstruct once, and compare what is stated with the truth."""
    case = CASES[name]
    given = {k: v for k, v in (("photons", photons), ("frames", frames)) if v is not None and name != "klh1"}
    CASES[name] = replace(case, **given)
    detector, taken, truth = load(CASES[name], name, data, seed)
    cpu = time.process_time()
    engine = Reconstruction(detector, ReconstructionSettings(seed=seed), len(taken))
    for _ in engine.run(lambda size, start: (taken.take(slice(a, a + size)) for a in range(start, len(taken), size))):
        pass
    now = engine.snapshot(all_poses=True)
    assert now is not None and now.trust is not None
    cpu = time.process_time() - cpu
    poses = now.poses
    align, error = align_poses(quaternion_to_matrix(poses.quaternion), truth.rotation[poses.frame], truth.point_group)
    within = error < poses.radius68
    tie = np.random.default_rng(0).random(len(error))  # many frames are equally certain
    fifths = np.array_split(np.lexsort((tie, poses.confidence)), 5)
    return Calibration(
        name, CASES[name].photons, len(taken), seed, float(np.median(error)), float(np.median(poses.radius68)),
        float(within.mean()), [float(within[fifth].mean()) for fifth in fifths], pulls(now, truth, align),
        [float(q) for q in now.trust.forecast.q / now.intensity.voxel_size], now.trust.forecast.sentence,
        now.verdict, cpu,
    )  # fmt: skip


def pulls(now: Snapshot, truth: Truth, align: np.ndarray) -> list[float]:
    """Root mean square of (V − truth)/σ around each of `SHELLS`; NaN where nothing was measured."""
    assert now.trust is not None
    n, voxel = now.intensity.data.shape[0], now.intensity.voxel_size
    axis = (np.arange(n) - n // 2) * voxel
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    at = np.stack([z, y, x]).reshape(3, -1)
    at = (align @ at[::-1])[::-1] / truth.intensity.voxel_size + truth.intensity.data.shape[0] // 2
    true = map_coordinates(truth.intensity.data.astype(float), at, order=3, cval=np.nan).reshape(n, n, n)
    value, sigma, shell = now.intensity.data, now.trust.standard_error.data, shell_index(n)
    seen = np.isfinite(true) & (sigma > 0) & (now.weight.data > 1)
    out = []
    for radius in SHELLS:
        here = seen & (np.abs(shell - radius) <= 1)
        if here.sum() < 100:
            out.append(float("nan"))
            continue
        scale = value[here].mean() / true[here].mean()
        out.append(float(np.sqrt(np.square((value[here] - scale * true[here]) / sigma[here]).mean())))
    return out


def table(runs: list[Calibration]) -> Table:
    """One row per run, and one for all seeds of equal frames."""
    out = Table("case", "photons", "frames", "seed", "median °", "68 % radius °", "holds", "by confidence",
                f"pull at {', '.join(map(str, SHELLS))}", "q: now, 2×, 5×, 10×", "verdict", "CPU s")  # fmt: skip
    for (case, photons, frames), alike in groupby(runs, lambda r: (r.case, r.photons, r.frames)):
        seeds = list(alike)
        for r in seeds:
            out.add_row(
                case, f"{photons:.0f}", str(frames), str(r.seed), f"{r.median_deg:.2f}", f"{r.radius_deg:.2f}",
                f"{r.covered:.3f}", " ".join(f"{c:.2f}" for c in r.by_confidence),
                " ".join(f"{p:.2f}" for p in r.pulls), " ".join(f"{q:.1f}" for q in r.resolution), r.verdict,
                f"{r.cpu_s:.0f}",
            )  # fmt: skip
        if len(seeds) > 1:
            fifths = np.mean([r.by_confidence for r in seeds], axis=0)
            chance = np.sqrt(0.68 * 0.32 / (frames / 5 * len(seeds)))
            out.add_row(
                case, f"{photons:.0f}", str(frames), "all", f"{np.mean([r.median_deg for r in seeds]):.2f}",
                f"{np.mean([r.radius_deg for r in seeds]):.2f}", f"{np.mean([r.covered for r in seeds]):.3f}",
                " ".join(f"{c:.2f}" for c in fifths) + f" ± {chance:.3f}",
                " ".join(f"{p:.2f}" for p in np.mean([r.pulls for r in seeds], axis=0)), end_section=True,
            )  # fmt: skip
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cases", nargs="+", default=["klh1", "2cex", "demo", "4bed"], choices=list(CASES))
    parser.add_argument("--photons", type=float, nargs="+", default=[None])
    parser.add_argument("--frames", type=int, nargs="+", default=[None])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    chosen = parser.parse_args()
    runs: list[Calibration] = []
    context = multiprocessing.get_context("spawn")
    for name in chosen.cases:
        for photons in chosen.photons:
            for frames in chosen.frames:
                for seed in chosen.seeds:
                    with context.Pool(1) as pool:
                        runs.append(pool.apply(calibrate, (name, photons, frames, seed, chosen.data)))
                    print(runs[-1], flush=True)
    Console(width=220).print(table(runs))


if __name__ == "__main__":
    main()
