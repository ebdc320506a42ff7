"""Does it converge? Cases × seeds × methods: success rate, pose error, shell correlation and cost, beside the floor.

    python benchmarks/convergence.py --data DIR [--cases klh1 2cex …] [--seeds 0 1 2] [--methods engine encoder]

DIR holds klh1/ (photons.emc, det_sim.h5, truth.h5) and pdb/. All other cases are simulated here, the geometry scaled to
the particle: the detector's edge resolves an eighth of the diameter, speckles are four pixels wide. Each run is a fresh
process, so that its CPU time and peak memory are its own. A run succeeds when its median pose error is at most
`SUCCESS` times the case's floor, the error of the likeliest pose given the true volume; where the particle has a
symmetry that its file does not name (1BXR holds a 222 tetramer), when the shell correlation at 22 voxels exceeds .9;
where frames tell no pose, when the verdict says so.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
from rich.console import Console
from rich.table import Table

from napari_xrai.core import kernels
from napari_xrai.core.coverage import ViewDensity
from napari_xrai.core.detector import through_beam
from napari_xrai.core.field import VoxelField, grid_radius
from napari_xrai.core.frames import BAD, USED, Detector, Frames
from napari_xrai.core.inference import infer_poses
from napari_xrai.core.particle import Particle
from napari_xrai.core.pixels import pixel_step
from napari_xrai.core.reconstruction import Reconstruction
from napari_xrai.core.reconstruction_settings import ReconstructionSettings
from napari_xrai.core.resolution import sample, sphere_correlation
from napari_xrai.core.rotations import align_poses, quaternion_to_matrix, random_rotations
from napari_xrai.core.simulate import Preset, Truth, simulate
from napari_xrai.core.symmetry import point_group
from napari_xrai.io.open import open_source
from napari_xrai.io.structure import read_particle
from napari_xrai.io.truth import read_truth

RADII = (4, 10, 16, 22, 25, 28, 31)
SUCCESS = 2.5

VIEWS = 500
"""Random ones, over which a true intensity is made as bright as the frames are."""


@dataclass(frozen=True)
class Case:
    """One kind of data.

    Parameters
    ----------
    particle : str
        A file below DIR/pdb (``:assembly`` for its assembly), or a built-in particle.
    curvature : float
        q_z/q at the detector's corner.
    mask : str
        ``round``: a round beam stop only; ``cross``: a cross-shaped one, and gaps between panels.
    unnamed_symmetry : bool
        The particle is symmetric and its file does not say how: pose errors mean nothing.
    copies : str
        A point group: copies of the particle stand around the origin, as it asks.
    symmetry : str
        Named to the engine.
    limit_deg : float or None
        Median pose error of a success, where it is not `SUCCESS` times the floor.
    background : float
        Photons scattered evenly over solid angle, in parts of the particle's.
    uneven : (str, float) or None
        And light that is not even about the beam, in parts of the particle's: a ``streak``, as slits make it, a
        ``glow`` beside the beam, a ``slope`` from edge to edge.
    junk : float
        Part of the frames that hold two particles, another particle, or nothing but its background.
    off_centre : float
        Pixels that the geometry has the beam too far to the left, and half as many too high.
    hopeless : str
        Frames that tell no pose, never to be called converged. ``permuted``: the photons of each frame are dealt out
        anew among the pixels of the same |q|; ``dark``: photons of an even background only.
    """

    particle: str
    frames: int = 4000
    photons: float = 500
    pixels: int = 64
    fluence_shape: float = float("inf")
    curvature: float = 0.08
    mask: str = "round"
    unnamed_symmetry: bool = False
    copies: str = ""
    symmetry: str = "C1"
    limit_deg: float | None = None
    background: float = 0.0
    uneven: tuple[str, float] | None = None
    junk: float = 0.0
    hopeless: str = ""
    off_centre: float = 0.0


CASES = {
    "klh1": Case("", frames=4000, photons=497, limit_deg=5.5),
    "klh1 75 photons": Case("", frames=10_000, photons=75, limit_deg=10.5),
    "4bed": Case("4bed_asu.pdb.gz"),
    "1bxr": Case("1bxr.pdb.gz", unnamed_symmetry=True),
    "2cex": Case("2cex.pdb.gz"),
    "1ei7 assembly": Case("1ei7.pdb.gz:assembly"),
    "d5": Case("2cex.pdb.gz", copies="D5", limit_deg=5.2),
    "octahedral": Case("2cex.pdb.gz", copies="O", limit_deg=5.2),
    "cube": Case("cube"),
    "d5 named": Case("2cex.pdb.gz", copies="D5", symmetry="D5"),
    "cube named": Case("cube", symmetry="O"),
    "1ei7 named": Case("1ei7.pdb.gz:assembly", symmetry="D17"),
    "demo": Case("demo"),
    "4bed 75 photons": Case("4bed_asu.pdb.gz", frames=10_000, photons=75),
    "4bed 150 photons": Case("4bed_asu.pdb.gz", frames=8000, photons=150),
    "4bed 5000 photons": Case("4bed_asu.pdb.gz", frames=1500, photons=5000),
    "4bed jitter": Case("4bed_asu.pdb.gz", fluence_shape=4),
    "4bed 30 photons": Case("4bed_asu.pdb.gz", frames=20_000, photons=30),
    "4bed background 10": Case("4bed_asu.pdb.gz", background=0.1),
    "4bed background 100": Case("4bed_asu.pdb.gz", background=1.0),
    "4bed streak 30": Case("4bed_asu.pdb.gz", uneven=("streak", 0.3)),
    "4bed streak 100": Case("4bed_asu.pdb.gz", uneven=("streak", 1.0)),
    "4bed glow 100": Case("4bed_asu.pdb.gz", uneven=("glow", 1.0)),
    "4bed slope 100": Case("4bed_asu.pdb.gz", uneven=("slope", 1.0)),
    "2cex streak 100": Case("2cex.pdb.gz", uneven=("streak", 1.0)),
    "demo glow 100": Case("demo", uneven=("glow", 1.0)),
    "klh1 streak 30": Case("", frames=4000, photons=497, limit_deg=5.5, uneven=("streak", 0.3)),
    "4bed junk": Case("4bed_asu.pdb.gz", junk=0.1),
    "4bed 1000 frames": Case("4bed_asu.pdb.gz", frames=1000),
    "2cex 200 photons": Case("2cex.pdb.gz", photons=200),
    "demo 150 photons": Case("demo", photons=150),
    "4bed curved": Case("4bed_asu.pdb.gz", curvature=0.3),
    "4bed cross": Case("4bed_asu.pdb.gz", mask="cross"),
    "4bed off centre": Case("4bed_asu.pdb.gz", off_centre=2.5),
    "demo off centre": Case("demo", off_centre=2.5),
    "4bed 128": Case("4bed_asu.pdb.gz", pixels=128, photons=1000),
    "klh1 permuted": Case("", frames=4000, photons=497, hopeless="permuted"),
    "4bed permuted": Case("4bed_asu.pdb.gz", hopeless="permuted"),
    "4bed dark": Case("4bed_asu.pdb.gz", hopeless="dark"),
}

METHODS = {
    "engine": ReconstructionSettings(),
    "encoder": ReconstructionSettings(proposals="encoder"),
    "both": ReconstructionSettings(proposals="both"),
    "hash": ReconstructionSettings(field="hash"),
    "siren": ReconstructionSettings(field="siren"),
}


@dataclass
class Run:
    """The figures of one reconstruction."""

    case: str
    method: str
    seed: int
    floor_deg: float
    median_deg: float
    p90_deg: float
    shell_cc: list[float]
    verdict: str
    cpu_s: float
    wall_s: float
    rss_mb: float
    success: bool
    facts: dict[str, str] = field(default_factory=dict)


def load(case: Case, name: str, data: Path, seed: int) -> tuple[Detector, Frames, Truth]:
    """Read klh1, or simulate the case; the simulation's seed is the run's."""
    detector, frames, truth = load_with_poses(case, name, data, seed)
    if case.uneven:
        rng, photons = np.random.default_rng([seed, 3]), frames.dense().reshape(len(frames), -1)
        kind, part = case.uneven
        frames = Frames.from_dense(photons + rng.poisson(part * case.photons * light(detector, kind), photons.shape))
    if case.hopeless:
        frames = without_poses(frames, detector, case.hopeless, seed)
    if case.off_centre:
        pixel = pixel_step(detector.q[detector.mask < BAD]) / detector.ewald_radius
        detector = through_beam(detector, case.off_centre * pixel * np.array([1.0, 0.5]))
    return detector, frames, truth


def light(detector: Detector, kind: str) -> np.ndarray:
    """(P,) how the light of a `Case.uneven` is spread over pixels; sums to 1."""
    x, y, _ = (detector.q / np.abs(detector.q[:, 0]).max()).T
    shape = {
        "streak": np.exp(-np.square(y / 0.06) / 2) / (np.abs(x) + 0.2),
        "glow": np.exp(-(np.square(x - 0.25) + np.square(y - 0.1)) / 2 / 0.35**2),
        "slope": np.clip(1 + 0.9 * y, 0, None),
    }[kind] * (detector.mask < BAD)
    return np.asarray(shape / shape.sum())


def without_poses(frames: Frames, detector: Detector, how: str, seed: int) -> Frames:
    """Frames with as many photons, and as many on each ring, that tell nothing of the particle."""
    rng = np.random.default_rng([seed, 2])
    photons = frames.dense().reshape(len(frames), -1)
    usable = detector.mask < BAD
    if how == "dark":
        even = detector.response * usable
        return Frames.from_dense(rng.poisson(photons.sum(1, keepdims=True) * even / even.sum()))
    radius = np.linalg.norm(detector.q, axis=1)
    step = np.sort(radius)[4]  # about a pixel
    ring = np.rint(radius / step).astype(int)
    for r in np.unique(ring[usable]):
        here = np.flatnonzero(usable & (ring == r))
        photons[:, here] = rng.permuted(photons[:, here], axis=1)
    return Frames.from_dense(photons)


def load_with_poses(case: Case, name: str, data: Path, seed: int) -> tuple[Detector, Frames, Truth]:
    """The case's frames as they are taken."""
    if name.startswith("klh1"):
        folder = data / "klh1"
        source = open_source([folder / "photons.emc"], detector=folder / "det_sim.h5")
        frames = Frames.concatenate(list(source.batches(1000)))
        assert source.detector is not None
        truth = read_truth(folder / "truth.h5")
        voxels = replace(truth.intensity, voxel_size=1.0, units="detector_voxel")
        truth = replace(truth, intensity=voxels)
        if case.photons == 497:
            return source.detector, frames, truth
        return from_volume(source.detector, truth, case, seed)
    path, _, assembly = case.particle.partition(":")
    file = data / "pdb" / path
    particle = read_particle(f"{file}:{assembly}" if assembly else str(file) if file.exists() else path)
    if case.copies:
        particle = assembled(particle, case.copies)
    detector, truth, batches = simulate(
        particle, geometry(case, particle.diameter_A), n_frames=case.frames, photons=case.photons, seed=seed
    )
    frames = spoiled(Frames.concatenate(list(batches)), detector, case, path, data, seed)
    return (detector.with_mask(cross(case.pixels)) if case.mask == "cross" else detector), frames, truth


def spoiled(frames: Frames, detector: Detector, case: Case, path: str, data: Path, seed: int) -> Frames:
    """The frames with the case's background and junk; junk comes last."""
    if not case.background and not case.junk:
        return frames
    rng = np.random.default_rng([seed, 1])
    photons = frames.dense().reshape(len(frames), -1)
    junk = round(case.junk * len(frames))
    if junk:
        preset = geometry(case, read_particle(data / "pdb" / path).diameter_A)
        cube = Frames.concatenate(
            list(simulate(read_particle("cube"), preset, n_frames=junk, photons=case.photons, seed=seed)[2])
        )
        last = photons[-junk:]
        last[: junk // 3] += photons[: junk // 3]
        last[junk // 3 : 2 * junk // 3] = cube.dense().reshape(junk, -1)[junk // 3 : 2 * junk // 3]
        last[2 * junk // 3 :] = rng.poisson(0.01 * detector.response, (junk - 2 * junk // 3, photons.shape[1]))
    usable = detector.response * (detector.mask < BAD)
    photons += rng.poisson(case.background * case.photons * usable / usable.sum(), photons.shape).astype(photons.dtype)
    return Frames.from_dense(photons)


def from_volume(detector: Detector, truth: Truth, case: Case, seed: int) -> tuple[Detector, Frames, Truth]:
    """Frames of a known intensity at random poses, as bright as the case asks."""
    rng = np.random.default_rng(seed)
    rotation = random_rotations(case.frames, rng)
    batches = []
    for part in np.array_split(np.arange(case.frames), -(-case.frames // 200)):
        point = np.einsum("nij,pj->npi", rotation[part], detector.q).reshape(-1, 3)
        value = np.nan_to_num(sample(truth.intensity, point)).reshape(len(part), -1)
        batches.append(value * detector.response * (detector.mask < BAD))
    total = np.mean([b.sum(1).mean() for b in batches])
    photons = np.concatenate([rng.poisson(b * (case.photons / total)).astype(np.uint16) for b in batches])
    return detector, Frames.from_dense(photons), replace(truth, rotation=rotation)


def assembled(particle: Particle, group: str) -> Particle:
    """Copies of a particle, turned by the rotations of a point group, side by side around the origin."""
    rotation = point_group(group)
    centre = np.array([0.15, 0.3, 0.2]) * len(rotation) ** 0.5 * particle.diameter_A
    scatterers = tuple(
        replace(s, position_A=np.concatenate([(s.position_A + centre) @ g.T for g in rotation]),
                weight=np.tile(s.weight, len(rotation)))
        for s in particle.groups
    )  # fmt: skip
    reach = max(np.linalg.norm(s.position_A, axis=1).max() for s in scatterers)
    return replace(particle, groups=scatterers, diameter_A=2 * (reach + 1.5), point_group=rotation)


def geometry(case: Case, diameter_A: float) -> Preset:
    """A square detector whose edge resolves an eighth of the diameter, at the wavelength that curves it as wanted."""
    q_edge = 8 / diameter_A
    wavelength_A = 2 * case.curvature / (np.sqrt(2) * q_edge)
    two_theta = 2 * np.arcsin(wavelength_A * q_edge / 2)
    pixel_size_m = 0.1 / case.pixels
    return Preset(
        shape=(case.pixels, case.pixels), pixel_size_m=pixel_size_m, distance_m=0.05 / np.tan(two_theta),
        energy_eV=12398.42 / wavelength_A, stop_radius_px=4 * case.pixels / 64, fluence_shape=case.fluence_shape,
    )  # fmt: skip


def cross(n: int) -> np.ndarray:
    """A beam stop's two holders and the gaps between four panels."""
    mask = np.zeros((n, n), np.uint8)
    middle, width = n // 2, n // 32
    mask[:middle, middle - width : middle + width] = BAD  # the holder, from above
    mask[middle + 3 * width : middle + 4 * width] = BAD  # two gaps
    mask[:, middle + 6 * width : middle + 7 * width] = BAD
    return mask


def floor_deg(detector: Detector, frames: Frames, truth: Truth, case: Case, n: int = 500) -> float:
    """Median error of the likeliest poses given the true volume, searched for like any others."""
    engine = Reconstruction(detector, ReconstructionSettings(), n)
    engine._measure(engine._settle(engine.pixels.sparse(frames.take(slice(0, 2000)))))
    engine.field, engine.radius = true_field(engine, truth, case), engine.pixels.orient_radius
    likelihood, proposers = _finished(engine._prepare("search"))
    photons = engine.pixels.sparse(frames.take(slice(0, n)))
    found = infer_poses(photons, likelihood, proposers, engine.table, 1.0, engine.rng)
    _, error = align_poses(found.rotation, truth.rotation[:n], truth.point_group)
    return float(np.median(error))


def true_field(engine: Reconstruction, truth: Truth, case: Case) -> VoxelField:
    """The true intensity, and what of the case's background is even about the beam, as bright as the frames are."""
    pixels, background = engine.pixels, case.background
    uneven = case.uneven[1] if case.uneven else 0.0
    taken_out = 0.0 if pixels.background is None else pixels.background.light.sum()
    volume = VoxelField(pixels, engine.profile, np.random.default_rng(0))
    axis = (np.arange(pixels.edge) - pixels.edge // 2) * pixels.voxel_size
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    value = np.nan_to_num(sample(truth.intensity, np.stack([x, y, z], -1).reshape(-1, 3)), nan=0.0)
    volume.ratio = (value / np.maximum(volume.profile_grid, 1e-9)).astype(np.float32)
    turns = random_rotations(VIEWS, np.random.default_rng(0)).astype(np.float32)
    looked_up = np.empty((VIEWS, len(pixels.q)), np.float32)
    kernels.gather(turns, pixels.q, volume.ratio, pixels.edge, looked_up)
    seen = (looked_up @ engine.brightness).mean()
    volume.ratio *= (engine.brightness.sum() + taken_out) / (max(seen, 1e-9) * (1 + background + uneven))
    if uneven:
        rest = volume.profile_grid - np.interp(grid_radius(pixels.edge), *_radial_mean(volume))
        volume.ratio += (np.maximum(rest, 0) / np.maximum(volume.profile_grid, 1e-9)).astype(np.float32)
    even = engine.brightness.sum() * background / (1 + background) / pixels.response.sum()
    volume.ratio += (even / np.maximum(volume.profile_grid, 1e-9)).astype(np.float32)
    return volume


def _radial_mean(volume: VoxelField) -> tuple[np.ndarray, np.ndarray]:
    shell = np.rint(grid_radius(volume.edge)).astype(int)
    mean = np.bincount(shell, volume.ratio * volume.profile_grid) / np.bincount(shell)
    return np.arange(len(mean)), mean


def _finished(work: Iterator):  # type: ignore[type-arg, no-untyped-def]
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def reconstruct(name: str, method: str, seed: int, data: Path) -> Run:
    """One run, from noise."""
    case = CASES[name]
    detector, frames, truth = load(case, name, data, seed)
    as_taken = load_with_poses(case, name, data, seed)[0] if case.off_centre else detector
    floor = floor_deg(as_taken, frames, truth, case)
    cpu, wall = time.process_time(), time.perf_counter()
    engine = Reconstruction(detector, replace(METHODS[method], seed=seed, symmetry=case.symmetry), len(frames))
    for _ in engine.run(lambda size, start: (frames.take(slice(a, a + size)) for a in range(start, len(frames), size))):
        pass
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    snapshot = engine.snapshot(all_poses=True)
    assert snapshot is not None
    rotation = quaternion_to_matrix(snapshot.poses.quaternion)
    good = snapshot.poses.frame < (1 - case.junk) * len(frames)
    align, error = align_poses(rotation[good], truth.rotation[snapshot.poses.frame[good]], truth.point_group)
    cc = sphere_correlation(snapshot.intensity, truth.intensity, RADII, rotation=align.T).value
    median = float(np.median(error))
    success = cc[RADII.index(22)] > 0.9 if case.unnamed_symmetry else median <= (case.limit_deg or SUCCESS * floor)
    if case.hopeless:
        success = snapshot.verdict != "converged"
    views = ViewDensity(engine.table.directions(engine.group)).power.round(1)
    snapshot.facts["trust"] = (
        f"agreement {engine.agreement:.2f}, settled {engine.settled:.2f}, "
        f"confidence {snapshot.poses.confidence.mean():.2f}, radius {np.nanmedian(snapshot.poses.radius68):.1f}°, "
        f"contrast {engine.contrast_kept:.2f}, views {views}"
    )
    if case.junk:
        is_junk, said = np.arange(len(frames)) >= (1 - case.junk) * len(frames), snapshot.status != USED
        snapshot.facts["junk found"] = f"{said[is_junk].mean():.0%}, and {said[~is_junk].mean():.2%} of the good frames"
    return Run(
        name, method, seed, floor, median, float(np.percentile(error, 90)), [float(c) for c in cc], snapshot.verdict,
        cpu, wall, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, bool(success), snapshot.facts,
    )  # fmt: skip


def table(runs: list[Run]) -> Table:
    """Success rates and medians by case and method."""
    out = Table("case", "method", "success", "floor °", "median °", "p90 °", *(f"CC {r}" for r in RADII), "verdicts",
                "CPU s", "wall s", "RSS MB")  # fmt: skip
    for key in dict.fromkeys((r.case, r.method) for r in runs):
        mine = [r for r in runs if (r.case, r.method) == key]
        verdicts = ", ".join(f"{sum(r.verdict == v for r in mine)} {v}" for v in dict.fromkeys(r.verdict for r in mine))
        out.add_row(
            *key, f"{sum(r.success for r in mine)}/{len(mine)}", f"{np.median([r.floor_deg for r in mine]):.1f}",
            " ".join(f"{r.median_deg:.1f}" for r in mine), f"{np.median([r.p90_deg for r in mine]):.1f}",
            *(f"{c:.3f}" for c in np.median([r.shell_cc for r in mine], 0)), verdicts,
            *(f"{np.median([getattr(r, k) for r in mine]):.0f}" for k in ("cpu_s", "wall_s", "rss_mb")),
        )  # fmt: skip
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--methods", nargs="+", default=["engine"], choices=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    runs: list[Run] = []
    context = multiprocessing.get_context("spawn")
    for name in chosen.cases:
        for method in chosen.methods:
            for seed in chosen.seeds:
                with context.Pool(1) as pool:
                    runs.append(pool.apply(reconstruct, (name, method, seed, chosen.data)))
                print({k: v for k, v in asdict(runs[-1]).items() if k != "facts"}, runs[-1].facts, flush=True)
    Console(width=200).print(table(runs))
    if chosen.json:
        chosen.json.write_text(json.dumps([asdict(r) for r in runs], indent=1))


if __name__ == "__main__":
    main()
