"""Phasing and alignment on a known particle: how many starts are right, how far, and at what cost.

Run:  OMP_NUM_THREADS=1 python benchmarks/phasing.py --data DIR [--only own live …] [--seeds 31 32]

``own`` phases what the engine itself reconstructs from simulated frames of 500 photons, the cases of `convergence.py`.

DIR/klh1/truth.h5 holds `intensity` (x, y, z; attr voxel_size_invA) and `density` (x, y, z; its voxel is
1 / (voxels of the intensity × voxel_size_invA)). Only the intensity is phased; the density judges.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import torch
from scipy.spatial.transform import Rotation

from convergence import CASES, load
from napari_xrai.core.density_alignment import align_density, align_transform, apply_offset, transform_on_grid
from napari_xrai.core.frames import Volume
from napari_xrai.core.live_phasing import LivePhasing
from napari_xrai.core.phase_retrieval import Recipe, first_support, iterate, measurement, random_start
from napari_xrai.core.phasing import phase
from napari_xrai.core.reconstruction import Reconstruction
from napari_xrai.core.reconstruction_settings import ReconstructionSettings
from napari_xrai.core.resolution import crossing, fourier_shell_correlation, sample, shell_index, sphere_correlation
from napari_xrai.core.rotations import align_poses, quaternion_to_matrix


def read_truth(path: Path, hole: float = 4) -> tuple[Volume, Volume, Volume]:
    """Intensity and weight with a hole of `hole` voxels, and the true density."""
    with h5py.File(path) as file:
        data = file["intensity"][:].T.astype(np.float32)
        dq = float(file["intensity"].attrs["voxel_size_invA"])
        density = file["density"][:].T.astype(np.float32)
    weight = (shell_index(data.shape[0]) >= hole).astype(np.float32)
    true = Volume(np.ascontiguousarray(density), 1 / (data.shape[0] * dq), "angstrom")
    return Volume(np.ascontiguousarray(data) * weight, dq, "1/angstrom"), Volume(weight, dq, "1/angstrom"), true


def cpu(work: Callable[[], object]) -> tuple[object, float]:
    began = time.process_time()
    result = work()
    return result, time.process_time() - began


def transform(density: Volume) -> torch.Tensor:
    return torch.fft.rfftn(torch.from_numpy(np.fft.ifftshift(density.data)))


def fsc(a: torch.Tensor, b: torch.Tensor, like: Volume, edge: int):
    """FSC of two transforms once shift and hand are equal."""
    n = like.data.shape[0]
    laid = apply_offset(a, align_transform(a, b, edge))
    maps = [torch.fft.irfftn(f, s=(n, n, n)).numpy() for f in (laid, b)]
    return fourier_shell_correlation(*(Volume(m, like.voxel_size, like.units) for m in maps))


def starts_right(intensity: Volume, weight: Volume, true: Volume, edge: int, starts: int) -> int:
    """Starts whose own FSC stays above 0.5 for nine tenths of the shells."""
    m, recipe, right = measurement(intensity, weight, edge), Recipe(), 0
    support = first_support(m)
    grid = Volume(np.zeros((m.n,) * 3, np.float32), m.voxel_size, m.units)
    reference = transform_on_grid(true, m.n, m.voxel_size)
    for seed in range(starts):
        state = random_start(m, support, recipe, seed)
        for stage in recipe.stages:
            iterate(state, m, recipe, stage)
        curve = fsc(torch.fft.rfftn(state.x), reference, grid, edge)
        right += bool(crossing(curve, 0.5) >= 0.9 * curve.q[edge])
    return right


def phased(intensity: Volume, weight: Volume, true: Volume, edge: int, starts: int) -> None:
    result, spent = cpu(lambda: phase(intensity, weight, starts=starts, seed=0, radius=edge))
    aligned, aligning = cpu(lambda: align_density(result.density, true, edge=edge))
    curve = fourier_shell_correlation(aligned.density, aligned.reference)
    n = result.density.data.shape[0]
    right = starts_right(intensity, weight, true, edge, starts)
    print(f"{n}³, data to {edge}: {right} of {starts} starts right, {result.kept.sum()} kept; {spent:.1f} CPU s, "
          f"{spent / starts:.2f} per start; FSC of the average {curve.value[edge]:.2f} at shell {edge}, 0.5 at "
          f"{crossing(curve, 0.5) / curve.q[1]:.1f}; aligned in {aligning:.2f} CPU s; {result.reason}")  # fmt: skip


def holes(path: Path, starts: int) -> None:
    for hole in (0, 2, 4, 6, 8, 10):
        intensity, weight, true = read_truth(path, hole)
        result = phase(intensity, weight, starts=starts, seed=0, radius=31)
        right = starts_right(intensity, weight, true, 31, starts)
        print(f"hole {hole}: {right} of {starts} right; {result.verdict}: {result.reason}")


def counted(intensity: Volume, per_voxel: float, seed: int) -> Volume:
    """The intensity as counts, `per_voxel` on average at shell 31."""
    gain = per_voxel / intensity.data[shell_index(intensity.data.shape[0]) == 31].mean()
    counts = np.random.default_rng(seed).poisson(intensity.data.astype(np.float64) * gain) / gain
    return Volume(counts.astype(np.float32), intensity.voxel_size, intensity.units)


def live(intensity: Volume, weight: Volume, true: Volume, updates: int) -> None:
    """Counts that grow fiftyfold; every tenth update against a cold start of the same intensity."""
    following, spent, against = LivePhasing(seed=0), [], []
    for i in range(updates):
        seen = counted(intensity, 0.05 * 50 ** (i / updates), i)
        shown, seconds = cpu(lambda seen=seen: following.update(seen, weight, 31))
        spent.append(seconds)
        if i % 10 == 9:
            cold = phase(seen, weight, starts=4, seed=i, radius=31)
            curve = fsc(transform(shown), transform(cold.density), shown, 31)
            to_truth = fsc(transform(shown), transform_on_grid(true, 64, shown.voxel_size), shown, 31)
            against.append(np.nanmean(curve.value[1:32]))
            print(f"  update {i + 1}: mean FSC against cold starts {against[-1]:.3f}, "
                  f"against the truth {np.nanmean(to_truth.value[1:32]):.3f}, "
                  f"0.5 at {crossing(to_truth, 0.5) / to_truth.q[1]:.1f}")  # fmt: skip
    print(f"live, 64³: {np.mean(spent[1:]):.3f} CPU s per update (first {spent[0]:.2f}, worst after it "
          f"{max(spent[1:]):.2f}); lowest FSC against cold {min(against):.3f}")  # fmt: skip


def alignment(true: Volume, trials: int) -> None:
    errors, seconds = [], []
    n, voxel = 64, true.voxel_size * 91 / 64
    axis = (np.arange(n) - n // 2) * voxel
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij")[::-1], -1)
    fine = torch.fft.irfftn(transform_on_grid(true, 128, voxel / 2), s=(128,) * 3).numpy()
    source = Volume(np.fft.fftshift(fine), voxel / 2, true.units)
    for trial in range(trials):
        turn = Rotation.random(random_state=trial).as_matrix()
        moved = np.nan_to_num(sample(source, grid @ turn)).astype(np.float32)  # moved(R r) = true(r)
        moved = np.roll(moved[:: (-1) ** trial, :: (-1) ** trial, :: (-1) ** trial], (3, -5, 2), (0, 1, 2))
        found, spent = cpu(lambda moved=moved: align_density(Volume(moved, voxel, true.units), true))
        seconds.append(spent)
        errors.append(np.degrees(Rotation.from_matrix(found.rotation.T @ turn).magnitude()))
    print(f"alignment over SO(3) × shift × hand, 64³: worst {max(errors):.2f}°, {np.mean(seconds):.2f} CPU s each")


OWN = ("klh1", "2cex", "1bxr", "4bed", "cube named", "cube")
SHARED = 0.4
"""Correlation of intensities up to which a density is asked for."""


def own(data: Path, name: str, seed: int, starts: int) -> None:
    """Reconstruct, phase, and compare with the true density: how far does the intensity go, and how far the density?"""
    detector, frames, truth = load(CASES[name], name, data, seed)
    engine = Reconstruction(detector, ReconstructionSettings(seed=seed, symmetry=CASES[name].symmetry), len(frames))
    for _ in engine.run(lambda size, start: (frames.take(slice(a, a + size)) for a in range(start, len(frames), size))):
        pass
    now = engine.snapshot(all_poses=True)
    assert now is not None and truth.density is not None
    if name == "klh1":  # its geometry knows no wavelength, its truth does
        voxel = read_truth(data / "klh1" / "truth.h5")[0].voxel_size
        known = {"voxel_size": voxel, "units": "1/angstrom"}
        now = replace(now, intensity=replace(now.intensity, **known), weight=replace(now.weight, **known))
        truth = replace(truth, intensity=replace(truth.intensity, **known))
    edge = int(np.ceil(now.progress.radius))
    result, spent = cpu(lambda: phase(now.intensity, now.weight, starts, radius=edge))
    aligned = align_density(result.density, truth.density, edge=edge)
    curve = fourier_shell_correlation(aligned.density, aligned.reference)
    poses = quaternion_to_matrix(now.poses.quaternion)
    turn, error = align_poses(poses, truth.rotation[now.poses.frame], truth.point_group)
    # where a symmetry is not named, poses say nothing of the global rotation, but the densities do
    turn = aligned.rotation if CASES[name].unnamed_symmetry else turn.T
    shells = sphere_correlation(now.intensity, truth.intensity, np.arange(8, edge), rotation=turn, points=3000)
    print(f"{name}, seed {seed}: {now.verdict}, median pose error {np.median(error):.1f}°; intensity CC {SHARED} at "
          f"{crossing(shells, SHARED) / now.intensity.voxel_size:.1f} of {edge}, least {shells.value.min():.2f}; "
          f"density FSC ½ at {crossing(curve, 0.5) / now.intensity.voxel_size:.1f}, "
          f"{np.interp(edge, curve.q / now.intensity.voxel_size, curve.value):.2f} at {edge}; "
          f"{result.kept.sum()} of {starts} starts kept, {spent:.1f} CPU s", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--starts", type=int, default=8)
    parser.add_argument("--updates", type=int, default=40)
    parts = ("true", "alignment", "live", "holes", "own")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--cases", nargs="+", choices=OWN, default=OWN)
    parser.add_argument("--seeds", nargs="+", type=int, default=[31])
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    path = chosen.data / "klh1" / "truth.h5"
    intensity, weight, true = read_truth(path)
    if "true" in chosen.only:
        phased(intensity, weight, true, 31, chosen.starts)
        phased(intensity, weight, true, 45, max(2, chosen.starts // 2))
    if "alignment" in chosen.only:
        alignment(true, 6)
    if "live" in chosen.only:
        live(intensity, weight, true, chosen.updates)
    if "holes" in chosen.only:
        holes(path, chosen.starts)
    if "own" in chosen.only:
        for name in chosen.cases:
            for seed in chosen.seeds:
                own(chosen.data, name, seed, chosen.starts)


if __name__ == "__main__":
    main()
