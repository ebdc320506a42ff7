"""How far one pass gets with how many frames, for two fluences; and the same frames read until convergence.

    python benchmarks/online_convergence.py --data DIR [--photons 500 200] [--frames 20000] [--chart FILE.svg]

DIR holds klh1/. Frames of the klh1 particle, drawn from its true intensity at random poses, are handed to the engine
as a stream that it always keeps up with. After every update: frames used, where the half-sets correlate ½, where the
shells correlate .9 with the truth (both in voxels; the detector orients to 31), and the median error of the poses used
since the update before. Then the offline engine on the same frames, until further passes bring nothing.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
from rich.console import Console
from rich.table import Table

from drawn_frames import AT_ONCE, Klh1
from napari_xrai.core.arrivals import Arrivals
from napari_xrai.core.frames import Frames, Snapshot, Volume
from napari_xrai.core.online import OnlineReconstruction
from napari_xrai.core.reconstruction import Reconstruction
from napari_xrai.core.reconstruction_settings import ReconstructionSettings
from napari_xrai.core.resolution import ShellCurve, crossing, sphere_correlation
from napari_xrai.core.rotations import align_poses, quaternion_to_matrix, random_rotations
from napari_xrai.report_curves import Axis, Level, Series, plot

RADII = tuple(range(4, 32))
STYLE = (
    "text{font:10px sans-serif;fill:#333}.grid{stroke:#e6e6e6}.axis{stroke:#777;fill:none}.line,.dots{fill:none;"
    "stroke-width:2}.dots{stroke-width:4;stroke-linecap:round}.s0,.s1{stroke:#2f57d0}.s2,.s3{stroke:#c8501e}"
    ".line.s1,.line.s3{stroke-dasharray:5 3}line.level{stroke:#777;stroke-dasharray:2 3}"
)
NONE = np.zeros(0, np.int64)
EDGE = 31.0
TRUE = 0.9


@dataclass
class Drawn:
    """An `Inlet` of frames in memory: nobody waits."""

    batches: list[Frames]
    waiting: int = 0

    @property
    def ended(self) -> bool:
        """Whether all were given."""
        return not self.batches

    @property
    def silent_s(self) -> None:
        """No frame is missed."""

    def take(self, size: int, wait_s: float) -> Arrivals:
        """The next batch."""
        if not size or not self.batches:
            empty = Frames(np.zeros(1, np.int64), NONE.astype(np.int32), NONE.astype(np.int32), NONE, 0)
            return Arrivals(empty, np.zeros(0), NONE, NONE)
        frames = self.batches.pop(0)
        return Arrivals(frames, np.full(len(frames), time.time()), NONE, NONE)


@dataclass
class Curve:
    """One pass: a row after every update of frames used, half-set radius, true radius, median pose error."""

    photons: float
    rows: list[tuple[float, float, float, float]] = field(default_factory=list)
    cpu_s: float = 0.0


def standing(snapshot: Snapshot, half_q: float, rotation: np.ndarray, truth: Volume, since: int) -> tuple[float, ...]:
    """Radii to which the half-sets and the truth agree, and the median error of the poses from frame `since` on."""
    poses = snapshot.poses
    fresh = poses.frame >= since if (poses.frame >= since).any() else poses.frame >= 0  # the reservoir was seen again
    align, error = align_poses(quaternion_to_matrix(poses.quaternion[fresh]), rotation[poses.frame[fresh]])
    cc = sphere_correlation(snapshot.intensity, truth, RADII, rotation=align.T).value
    true = crossing(ShellCurve(np.array(RADII, float), cc, np.ones(len(RADII))), TRUE)
    reached = (min(float(np.nan_to_num(q)), EDGE) for q in (half_q, true))  # NaN: nowhere
    return (*reached, float(np.median(error)))


def draw(particle: Klh1, photons: float, n: int) -> tuple[list[Frames], np.ndarray]:
    rotation = random_rotations(n, np.random.default_rng(7)).astype(np.float32)
    batches = [
        Frames.from_dense(counts, AT_ONCE * k) for k, counts in enumerate(particle.frames(rotation, photons, seed=7))
    ]
    return batches, rotation


def online(particle: Klh1, photons: float, n: int) -> Iterator[Curve]:
    """Yield the curve as it grows."""
    batches, rotation = draw(particle, photons, n)
    engine = OnlineReconstruction(particle.detector, ReconstructionSettings(threads=1, passes=1), None)
    curve, updates, since = Curve(photons), 0, 0
    began = time.process_time()
    for _ in engine.follow(Drawn(batches)):
        if not engine.begun or len(engine.history["log_likelihood"]) == updates:
            continue
        updates = len(engine.history["log_likelihood"])
        snapshot = engine.snapshot(all_poses=True)
        assert snapshot is not None
        curve.rows.append((engine.used, *standing(snapshot, engine.resolution_q(), rotation, particle.volume, since)))
        since = engine.table.length
        curve.cpu_s = time.process_time() - began
        yield curve


def offline(particle: Klh1, photons: float, n: int) -> tuple[tuple[float, ...], float, str]:
    batches, rotation = draw(particle, photons, n)
    engine = Reconstruction(particle.detector, ReconstructionSettings(threads=1), n)
    began = time.process_time()
    for _ in engine.run(lambda size, start: iter(batches[start // AT_ONCE :])):
        pass
    snapshot = engine.snapshot(all_poses=True)
    assert snapshot is not None
    result = standing(snapshot, engine.resolution_q(), rotation, particle.volume, 0)
    return result, time.process_time() - began, f"{engine.passes_done} passes, {snapshot.verdict}"


def chart(curves: list[Curve], out: Path) -> None:
    lines = [
        Series(f"{c.photons:g} photons, {kind}", [r[0] for r in c.rows], [r[column] for r in c.rows])
        for c in curves for column, kind in ((1, "half-sets"), (2, "truth"))
    ]  # fmt: skip
    drawing = plot(
        lines, Axis("frames used", low=0), Axis("agreement out to, voxels", low=0, high=EDGE + 3),
        [Level(EDGE, "detector's edge")],
    )  # fmt: skip
    head = '<svg xmlns="http://www.w3.org/2000/svg" width="690" height="375" '
    style = f'<style>{STYLE}</style><rect width="100%" height="100%" fill="white"/>'
    opening, closing = str(drawing).split(">", 1)
    out.write_text(head + opening.removeprefix("<svg ") + ">" + style + closing + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--photons", type=float, nargs="+", default=[500.0, 200.0])
    parser.add_argument("--frames", type=int, default=20_000)
    parser.add_argument("--no-offline", action="store_true")
    parser.add_argument("--chart", type=Path)
    chosen = parser.parse_args()
    particle = Klh1.read(chosen.data)
    out = Table("photons", "", "frames", "half-sets ½ to", "truth .9 to", "median °", "CPU s", "")
    curves = []
    for photons in chosen.photons:
        for curve in online(particle, photons, chosen.frames):
            print(photons, curve.rows[-1], round(curve.cpu_s), flush=True)
        curves.append(curve)
        for row in curve.rows[:: max(1, len(curve.rows) // 8)] + curve.rows[-1:]:
            out.add_row(f"{photons:g}", "one pass", f"{row[0]:,.0f}", *(f"{x:.1f}" for x in row[1:]), "")
        out.add_row(f"{photons:g}", "one pass, in all", "", "", "", "", f"{curve.cpu_s:.0f}")
        if not chosen.no_offline:
            result, cpu_s, words = offline(particle, photons, chosen.frames)
            print(photons, "offline", result, round(cpu_s), words, flush=True)
            n = f"{chosen.frames:,}"
            out.add_row(f"{photons:g}", "offline", n, *(f"{x:.1f}" for x in result), f"{cpu_s:.0f}", words)
    Console(width=160).print(out)
    if chosen.chart:
        chart(curves, chosen.chart)


if __name__ == "__main__":
    main()
