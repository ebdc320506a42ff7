"""How many frames per second: sleep, encoder, search, refinement, the whole step on real frames, against the floor.

    python benchmarks/throughput.py --data DIR [--pixels 64 128 256] [--threads 1]

DIR as for benchmarks/convergence.py. klh1 at 64 × 64 pixels, and 4BED by our simulator on 64², 128² and 256² pixels of
the same detector, once with 500 photons per frame and once with as many per pixel. Everything runs under the true
intensity at full resolution, the dearest moment of a reconstruction. CPU time is the process's, so other work on the
machine matters little; frames/s on the wall clock suffer from it.

The floor is what the same sums would cost at the speed of a matrix product and of a copy, measured just before: every
FLOP of the algorithm as it is, and the bytes that must come from memory at least once. What is looked up at random in
the volume is counted at 32 bytes a look-up.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from convergence import Case, load, true_field
from napari_xrai.core import kernels
from napari_xrai.core.amortised import SIGHT, AmortisedPoses
from napari_xrai.core.encoder import PolarImage, PoseEncoder, propose, sleep
from napari_xrai.core.evidence import Evidence
from napari_xrai.core.inference import CANDIDATES_REFINED, DIRECTIONS_KEPT, SAMPLES_PER_MODE, infer_poses
from napari_xrai.core.likelihood import NEWTON_STEPS
from napari_xrai.core.pixels import SparsePhotons
from napari_xrai.core.reconstruction import (
    BATCH_SIZE,
    DARKEST,
    FRAMES_PER_UPDATE,
    SEARCH_RADIUS,
    SEARCH_SAMPLING,
    Reconstruction,
    ReconstructionSettings,
)
from napari_xrai.core.search import FRAMES_AT_A_TIME, LARGEST_SCORES, PolarSearch

DREAMS = 128
LOOK_UP_FLOP, GRADIENT_FLOP, LOOK_UP_BYTES = 45, 120, 32
"""Of one trilinear look-up at a turned point, with its place; of one with its gradient's outer product."""


@dataclass
class Part:
    """One part of the work, per frame: seconds of CPU (of the device, where it is none) and wall, FLOP, bytes."""

    cpu: float
    wall: float
    flop: float = 0.0
    bytes: float = 0.0


@dataclass
class Speed:
    """FLOP/s of a 1024³ matrix product in float32 and bytes/s of a copy, read and written."""

    flop: float
    bytes: float

    def floor(self, part: Part) -> float:
        """Seconds per frame."""
        return max(part.flop / self.flop, part.bytes / self.bytes)


def clocked(work: Callable[[], object], frames: int, device: str = "cpu", least: float = 0.4) -> tuple[float, float]:
    """CPU and wall seconds per frame, least of three; work is repeated to last for `least` seconds."""
    cuda = device == "cuda"

    def once(times: int) -> tuple[float, float]:
        if cuda:
            torch.cuda.synchronize()
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(times):
            work()
        if cuda:
            torch.cuda.synchronize()
        wall = time.perf_counter() - wall
        return wall if cuda else time.process_time() - cpu, wall

    once(1)
    times = max(1, int(least / 3 / max(once(1)[0], 1e-6)))
    tries = [once(times) for _ in range(3)]
    return min(t[0] for t in tries) / times / frames, min(t[1] for t in tries) / times / frames


def speed_of(device: str) -> Speed:
    a = torch.rand(1024, 1024, device=device)
    big, other = (torch.rand(1 << 25, device=device) for _ in range(2))
    product, copy = clocked(lambda: a @ a, 1, device), clocked(lambda: other.copy_(big), 1, device)
    return Speed(2 * 1024**3 / product[0], 2 * big.numel() * 4 / copy[0])


class Workload:
    """An engine under the true intensity, and batches of frames."""

    def __init__(self, name: str, case: Case, data: Path, threads: int) -> None:
        self.name, self.case = name, case
        detector, frames, truth = load(case, name, data, 0)
        self.truth = truth
        self.engine = Reconstruction(detector, ReconstructionSettings(threads=threads), len(frames))
        engine, whole = self.engine, self.engine.pixels.sparse(frames)
        engine._measure(whole)
        engine.field, engine.radius = true_field(engine, truth, 0.0), engine.pixels.orient_radius
        engine.begun, engine.band_radius = True, engine.radius
        n = min(len(frames), 1000) // BATCH_SIZE
        self.batches = [whole.take(np.arange(i * BATCH_SIZE, (i + 1) * BATCH_SIZE)) for i in range(n)]
        engine.table.receive(whole.index, np.zeros(len(whole), bool))
        self.frames = n * BATCH_SIZE
        self.lit = sum(len(b.pixel) for b in self.batches) / self.frames

    # ---------------------------------------------------------------- the encoder, on any device

    def encoder_parts(self, device: str) -> dict[str, Part]:
        """Sleep and inference."""
        engine = self.engine
        assert engine.field is not None
        polar = PolarImage(engine.pixels, engine.brightness, min(engine.radius, SIGHT * engine.speckle.size),
                           engine.fluence_shape, device=device)  # fmt: skip
        encoder = PoseEncoder(polar)
        rng, ratio = np.random.default_rng(0), engine.field.ratio

        def dream_and_learn() -> None:
            for _ in sleep(encoder, ratio, 10, rng, DREAMS):
                pass

        near = polar.n_pixels / len(engine.pixels.rho) * self.lit
        cells, places = polar.n_rings * polar.n_angles, len(encoder.place)
        first, second, third = (layer.out_channels for layer in (encoder.templates, encoder.inner, encoder.outer))
        layers = 2 * places * (cells * first + first * second + second * third + third * encoder.hypotheses * 7)
        bins, fresh = len(polar.brightness), 0.5 if polar.mirror else 1.0
        dreams = fresh * bins * (LOOK_UP_FLOP + 2 * cells)
        parts = {
            "sleep: dream and learn": Part(*clocked(dream_and_learn, 10 * DREAMS, device), 3 * layers + dreams,
                                           fresh * bins * 4 * (1 + 2 + 2)),
        }  # fmt: skip
        inference = self._each(lambda batch: propose(encoder, batch), device)
        parts["encoder: propose"] = Part(*inference, layers + 2 * near * cells, 12 * near + encoder.hypotheses * 40)
        return parts

    # ---------------------------------------------------------------- what runs on the CPU only

    def wake_parts(self) -> dict[str, Part]:
        """Search, refinement, and the update of the field."""
        engine = self.engine
        assert engine.field is not None
        prepared = self._prepared("search")
        likelihood, (search,) = prepared.result
        found = {id(b): search(b) for b in self.batches}
        parts = {"search: propose": Part(*self._each(search), *self._search_work())}

        def refine(batch: SparsePhotons) -> None:
            infer_poses(batch, likelihood, [lambda b: found[id(b)]], engine.table, 1.0, engine.rng)

        evidence = Evidence(engine.pixels, engine.exposure, np.inf, engine.settings.threads)
        for batch in self.batches:  # from now on, last poses are known
            tally = engine._merge(batch, likelihood, [lambda b: found[id(b)]], evidence)
        candidates = 2 * (DIRECTIONS_KEPT + 1)
        samples = CANDIDATES_REFINED * SAMPLES_PER_MODE
        climbs = CANDIDATES_REFINED * (1 + NEWTON_STEPS)
        looks = candidates + samples + climbs
        flop = self.lit * ((candidates + samples) * LOOK_UP_FLOP + climbs * GRADIENT_FLOP)
        parts["score, refine, sample"] = Part(*self._each(refine), flop, self.lit * looks * LOOK_UP_BYTES)
        field = engine.field.state()
        update = [p + u for p, u in zip(prepared.spent, self._update(evidence, tally), strict=True)]
        engine.field.restore(field)
        return parts | {f"update, a {FRAMES_PER_UPDATE}th of it": Part(*(x / FRAMES_PER_UPDATE for x in update))}

    def whole_steps(self, parts: dict[str, Part]) -> dict[str, Part]:
        """A batch's whole way from photons to evidence, and the share of an update, with either proposer."""
        engine = self.engine
        assert engine.field is not None
        likelihood, (search,) = self._prepared("search").result
        amortised = AmortisedPoses(engine.pixels, engine.brightness, engine.speckle.size, engine.fluence_shape)
        sleeping = amortised.sleep(engine.field.ratio, engine.radius, engine.rng)
        for _ in range(20):
            next(sleeping)
        refined, update = parts["score, refine, sample"], parts[f"update, a {FRAMES_PER_UPDATE}th of it"]
        laid = self.lit * CANDIDATES_REFINED * SAMPLES_PER_MODE * 2 * LOOK_UP_BYTES
        whole = {}
        for name, proposer in {"search": search, "encoder": amortised.propose}.items():
            evidence = Evidence(engine.pixels, engine.exposure, np.inf, engine.settings.threads)
            cpu, wall = self._each(lambda b, p=proposer, e=evidence: engine._merge(b, likelihood, [p], e))  # type: ignore[misc]
            named = parts[f"{name}: propose"]
            work = named.flop + refined.flop, named.bytes + refined.bytes + laid
            whole[f"whole step, {name}, no update"] = Part(cpu, wall, *work)
            whole[f"whole step, {name}, with update"] = Part(cpu + update.cpu, wall + update.wall, *work)
        return whole

    def _search_work(self) -> tuple[float, float]:
        search = self._search()
        directions, angles, freq, rings = len(search.base), search.n_angles, search.n_freq, search.n_rings + 1
        flop = directions * (2 * freq * 2 * rings * 2 + 2 * freq * angles * 2) + 2 * search.n_pixels * angles * rings
        few = max(1, min(FRAMES_AT_A_TIME, LARGEST_SCORES // (directions * angles)))
        return flop, search.template.numel() * 4 / few + search.n_pixels * 4

    def _search(self) -> PolarSearch:
        engine = self.engine
        assert engine.field is not None
        radius = max(min(SEARCH_RADIUS * engine.speckle.size, engine.radius), engine.start_radius)
        search = PolarSearch(engine.pixels, engine.brightness, radius, SEARCH_SAMPLING * engine.speckle.diameter)
        search.set_field(engine.field.ratio, engine.field.edge, engine.fluence_shape, engine.rng, DARKEST)
        return search

    def _each(self, work: Callable[[SparsePhotons], object], device: str = "cpu") -> tuple[float, float]:
        def all_of_them() -> None:
            for batch in self.batches:
                work(batch)

        return clocked(all_of_them, self.frames, device)

    def _prepared(self, proposals: str) -> _Spent:
        return _Spent(self.engine._prepare(proposals))

    def _update(self, evidence: Evidence, tally: NDArray[np.float64]) -> tuple[float, float]:
        return _Spent(self.engine._update(evidence, None, 0.0, tally)).spent


class _Spent:
    """The result of a generator of steps, and the CPU and wall seconds it took."""

    def __init__(self, work) -> None:  # type: ignore[no-untyped-def]
        cpu, wall = time.process_time(), time.perf_counter()
        while True:
            try:
                next(work)
            except StopIteration as end:
                self.result = end.value
                break
        self.spent = time.process_time() - cpu, time.perf_counter() - wall


def workloads(pixels: list[int]) -> dict[str, Case]:
    """Frames to try, by name."""
    cases = {"klh1": Case("", photons=497)} if 64 in pixels else {}
    for n in pixels:
        frames = 600 if n < 256 else 200
        cases[f"4bed {n}², 500 photons"] = Case("4bed_asu.pdb.gz", frames, 500, n)
        if n > 64:
            photons = 500 * (n // 64) ** 2
            cases[f"4bed {n}², {photons} photons"] = Case("4bed_asu.pdb.gz", frames, photons, n)
    return cases


def rows(workload: Workload, device: str, speed: Speed) -> list[list[str]]:
    """Figures of one workload on one device, as words."""
    parts = workload.encoder_parts(device)
    if device == "cpu":
        parts |= workload.wake_parts()
        parts |= workload.whole_steps(parts)
    return [_words(workload.name, device, name, part, speed) for name, part in parts.items()]


def _words(frames: str, device: str, name: str, part: Part, speed: Speed) -> list[str]:
    words = [frames, device, name, f"{1e6 * part.cpu:.0f}", f"{1 / part.cpu:,.0f}", f"{1 / part.wall:,.0f}"]
    if not part.flop:
        return [*words, "", "", ""]
    bound = "FLOP" if part.flop / speed.flop > part.bytes / speed.bytes else "bytes"
    return [*words, f"{1e6 * speed.floor(part):.1f}", bound, f"{part.cpu / speed.floor(part):.1f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pixels", type=int, nargs="+", default=[64, 128, 256], choices=[64, 128, 256])
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    for _ in kernels.compile_kernels():
        pass
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    speeds = {device: speed_of(device) for device in devices}
    for device, speed in speeds.items():
        print(f"{device}: product {speed.flop / 1e9:.0f} GFLOP/s, copy {speed.bytes / 1e9:.1f} GB/s", flush=True)
    table = Table("frames", "device", "part", "µs/frame", "frames per CPU s", "frames/s, wall", "floor µs", "bound by",
                  "× floor")  # fmt: skip
    for name, case in workloads(chosen.pixels).items():
        workload = Workload(name, case, chosen.data, chosen.threads)
        for device in devices:
            for row in rows(workload, device, speeds[device]):
                table.add_row(*row)
                print(" | ".join(row), flush=True)
    Console(width=180).print(table)


if __name__ == "__main__":
    main()
