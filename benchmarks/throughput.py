"""How many frames per second: sleep, encoder, search, refinement, the whole step on real frames, against the floor.

    python benchmarks/throughput.py --data DIR [--device cpu torch cuda] [--pixels 64 128 256] [--threads 1]

DIR as for benchmarks/convergence.py. klh1 at 64 × 64 pixels, and 4BED by our simulator on 64², 128² and 256² pixels of
the same detector, once with 500 photons per frame and once with as many per pixel. Everything runs under the true
intensity at full resolution, the dearest moment of a reconstruction.

Devices: `cpu` is what runs where there is no GPU; `torch` is what runs on a GPU, but on the CPU, to see what the
compiled kernels are worth; `cuda` (or `cuda:1`) is a GPU, whose name is printed. Left out, all that there are but
`torch`. On the CPU the cost is the process's CPU time, so other work on the machine matters little; on a GPU it is the
time on the wall clock until the GPU has finished, with all that the CPU does meanwhile. Batches are as large as in a
run, frames repeated to fill them.

The floor is what the same sums would cost at the speed of a matrix product and of a copy, measured just before: every
FLOP of the algorithm as it is, and the bytes that must come from memory at least once. What is looked up at random in
the volume is counted at 32 bytes a look-up.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from convergence import Case, load, true_field
from napari_xrai.core import kernels
from napari_xrai.core.amortised import SIGHT, AmortisedPoses
from napari_xrai.core.backend import Backend
from napari_xrai.core.encoder import PolarImage, PoseEncoder, propose, sleep
from napari_xrai.core.engine import FRAMES_PER_UPDATE, SEARCH_RADIUS, SEARCH_SAMPLING
from napari_xrai.core.evidence import Evidence
from napari_xrai.core.field import DARKEST
from napari_xrai.core.frames import Detector, Frames
from napari_xrai.core.inference import CANDIDATES_REFINED, DIRECTIONS_KEPT, SAMPLES_PER_MODE, infer_poses
from napari_xrai.core.likelihood import NEWTON_STEPS
from napari_xrai.core.pixels import SparsePhotons
from napari_xrai.core.reconstruction import Reconstruction
from napari_xrai.core.reconstruction_settings import ReconstructionSettings
from napari_xrai.core.search import PolarSearch
from napari_xrai.core.simulate import Truth
from napari_xrai.core.torch_backend import backend_of, torch_backend

DREAMS = 128
LOOK_UP_FLOP, GRADIENT_FLOP, LOOK_UP_BYTES = 45, 120, 32
"""Of one trilinear look-up at a turned point, with its place; of one with its gradient's outer product."""


@dataclass
class Part:
    """One part of the work, per frame: seconds on the CPU (on a GPU: until it has finished) and wall, FLOP, bytes."""

    cpu: float
    wall: float
    flop: float = 0.0
    bytes: float = 0.0


@dataclass
class Speed:
    """FLOP/s of a matrix product in float32 (1024³; 4096³ on a GPU) and bytes/s of a copy, read and written."""

    flop: float
    bytes: float

    def floor(self, part: Part) -> float:
        """Seconds per frame."""
        return max(part.flop / self.flop, part.bytes / self.bytes)


def timed(work: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Seconds of CPU, or on a GPU until it has finished, and of wall, that work takes."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    if cuda:
        torch.cuda.synchronize(device)
    wall = time.perf_counter() - wall
    return wall if cuda else time.process_time() - cpu, wall


def clocked(work: Callable[[], object], frames: int, device: torch.device, least: float = 0.4) -> tuple[float, float]:
    """CPU and wall seconds per frame, least of three; work is repeated to last for `least` seconds."""

    def once(times: int) -> tuple[float, float]:
        return timed(lambda: [work() for _ in range(times)], device)

    once(1)
    times = max(1, int(least / 3 / max(once(1)[0], 1e-6)))
    tries = [once(times) for _ in range(3)]
    return min(t[0] for t in tries) / times / frames, min(t[1] for t in tries) / times / frames


def speed_of(device: torch.device) -> Speed:
    n, length = (4096, 1 << 28) if device.type == "cuda" else (1024, 1 << 25)
    a = torch.rand(n, n, device=device)
    big, other = (torch.rand(length, device=device) for _ in range(2))
    product, copy = clocked(lambda: a @ a, 1, device), clocked(lambda: other.copy_(big), 1, device)
    return Speed(2 * n**3 / product[0], 2 * big.numel() * 4 / copy[0])


class Workload:
    """An engine under the true intensity on one backend, and batches of frames."""

    def __init__(self, loaded: tuple[Detector, Frames, Truth], threads: int, backend: Backend) -> None:
        detector, frames, truth = loaded
        self.engine = Reconstruction(detector, ReconstructionSettings(threads=threads), None)
        self.engine.backend, self.device = backend, backend.device
        engine = self.engine
        whole = engine._settle(engine.pixels.sparse(frames))
        engine._measure(whole)
        engine.field, engine.radius = true_field(engine, truth, Case("")), engine.pixels.orient_radius
        engine.begun, engine.band_radius = True, engine.radius
        size = backend.batch_size
        n = max(2, min(len(frames), 1000) // size)
        self.batches = [
            replace(whole.take(np.arange(i * size, (i + 1) * size) % len(whole)), index=np.arange(size) + i * size)
            for i in range(n)
        ]
        engine.table.receive(np.arange(n * size), np.zeros(n * size, bool))
        self.frames = n * size
        self.lit = sum(len(b.pixel) for b in self.batches) / self.frames

    def encoder_parts(self) -> dict[str, Part]:
        """Sleep and inference."""
        engine = self.engine
        assert engine.field is not None
        polar = PolarImage(engine.pixels, engine.brightness, min(engine.radius, SIGHT * engine.speckle.size),
                           engine.fluence_shape, device=self.device)  # fmt: skip
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
            "sleep: dream and learn": Part(*clocked(dream_and_learn, 10 * DREAMS, self.device), 3 * layers + dreams,
                                           fresh * bins * 4 * (1 + 2 + 2)),
        }  # fmt: skip
        inference = self._each(lambda batch: propose(encoder, batch))
        parts["encoder: propose"] = Part(*inference, layers + 2 * near * cells, 12 * near + encoder.hypotheses * 40)
        return parts

    def wake_parts(self) -> dict[str, Part]:
        """Search, refinement, and the update of the field."""
        engine = self.engine
        assert engine.field is not None
        self._prepared("search")  # the first time it lays the lattice of directions, and a GPU plans its transforms
        likelihood, (search,) = self._prepared("search").result
        found = {id(b): search(b) for b in self.batches}
        parts = {"search: propose": Part(*self._each(search), *self._search_work())}

        def refine(batch: SparsePhotons) -> None:
            infer_poses(batch, likelihood, [lambda b: found[id(b)]], engine.table, 1.0, engine.rng)

        evidence = engine.light.evidence(np.inf)
        for batch in self.batches:  # from now on, last poses are known
            tally = engine._merge(batch, likelihood, [lambda b: found[id(b)]], evidence)
        candidates = 2 * (DIRECTIONS_KEPT + 1)
        samples = CANDIDATES_REFINED * SAMPLES_PER_MODE
        climbs = CANDIDATES_REFINED * (1 + NEWTON_STEPS)
        looks = candidates + samples + climbs
        flop = self.lit * ((candidates + samples) * LOOK_UP_FLOP + climbs * GRADIENT_FLOP)
        parts["score, refine, sample"] = Part(*self._each(refine), flop, self.lit * looks * LOOK_UP_BYTES)
        field = engine.field.state()
        for _ in range(4):  # the last of these asks what look-ups flatten, which later updates do ever more seldom
            self._update(evidence, tally)
        spent = [[*self._prepared("search").spent, *self._update(evidence, tally)] for _ in range(3)]
        update = [p + u for p, u in zip(*np.reshape(np.min(spent, axis=0), (2, 2)).tolist(), strict=True)]
        engine.field.restore(field)
        return parts | {f"update, a {FRAMES_PER_UPDATE}th of it": Part(*(x / FRAMES_PER_UPDATE for x in update))}

    def whole_steps(self, parts: dict[str, Part]) -> dict[str, Part]:
        """A batch's whole way from photons to evidence, and the share of an update, with either proposer."""
        engine = self.engine
        assert engine.field is not None
        likelihood, (search,) = self._prepared("search").result
        amortised = AmortisedPoses(
            engine.pixels, engine.brightness, engine.speckle.size, engine.fluence_shape, self.device
        )
        sleeping = amortised.sleep(engine.field.ratio, engine.radius, engine.rng)
        for _ in range(20):
            next(sleeping)
        refined, update = parts["score, refine, sample"], parts[f"update, a {FRAMES_PER_UPDATE}th of it"]
        laid = self.lit * CANDIDATES_REFINED * SAMPLES_PER_MODE * 2 * LOOK_UP_BYTES
        whole = {}
        for name, proposer in {"search": search, "encoder": amortised.propose}.items():
            evidence = engine.light.evidence(np.inf)
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
        return flop, search.template.numel() * 4 / search.frames_together + search.n_pixels * 4

    def _search(self) -> PolarSearch:
        engine = self.engine
        assert engine.field is not None
        radius = max(min(SEARCH_RADIUS * engine.speckle.size, engine.radius), engine.start_radius)
        sampling = SEARCH_SAMPLING * engine.speckle.diameter
        search = PolarSearch(engine.pixels, engine.brightness, radius, sampling, backend=engine.backend)
        search.set_field(engine.field.ratio, engine.field.edge, engine.fluence_shape, engine.rng, DARKEST)
        return search

    def _each(self, work: Callable[[SparsePhotons], object]) -> tuple[float, float]:
        def all_of_them() -> None:
            for batch in self.batches:
                work(batch)

        return clocked(all_of_them, self.frames, self.device)

    def _prepared(self, proposals: str) -> _Spent:
        return _Spent(self.engine._prepare(proposals), self.device)

    def _update(self, evidence: Evidence, tally: NDArray[np.float64]) -> tuple[float, float]:
        return _Spent(self.engine._update(evidence, None, 0.0, tally), self.device).spent


class _Spent:
    """The result of a generator of steps, and the seconds it took, as `timed` counts them."""

    def __init__(self, work, device: torch.device) -> None:  # type: ignore[no-untyped-def]
        self.work = work
        self.spent = timed(self._run, device)

    def _run(self) -> None:
        while True:
            try:
                next(self.work)
            except StopIteration as end:
                self.result = end.value
                return


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


def backend_named(name: str) -> Backend:
    return torch_backend(torch.device("cpu")) if name == "torch" else backend_of(name)


def rows(workload: Workload, name: str, device: str, speed: Speed) -> list[list[str]]:
    """Figures of one workload on one device, as words."""
    parts = workload.encoder_parts() | workload.wake_parts()
    parts |= workload.whole_steps(parts)
    return [_words(name, device, part_name, part, speed) for part_name, part in parts.items()]


def _words(frames: str, device: str, name: str, part: Part, speed: Speed) -> list[str]:
    words = [frames, device, name, f"{1e6 * part.cpu:.4g}", f"{1 / part.cpu:,.0f}", f"{1 / part.wall:,.0f}"]
    if not part.flop:
        return [*words, "", "", ""]
    bound = "FLOP" if part.flop / speed.flop > part.bytes / speed.bytes else "bytes"
    return [*words, f"{1e6 * speed.floor(part):.3g}", bound, f"{part.cpu / speed.floor(part):.1f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pixels", type=int, nargs="+", default=[64, 128, 256], choices=[64, 128, 256])
    parser.add_argument("--device", nargs="+", default=["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    threadpool_limits(1, "blas")  # as in a run
    for _ in kernels.compile_kernels():
        pass
    try:
        backends = {device: backend_named(device) for device in chosen.device}
    except ValueError as error:
        parser.error(str(error))
    speeds = {device: speed_of(backend.device) for device, backend in backends.items()}
    for device, speed in speeds.items():
        print(f"{device} is {backends[device].name}: product {speed.flop / 1e9:.0f} GFLOP/s, copy "
              f"{speed.bytes / 1e9:.1f} GB/s, batches of {backends[device].batch_size} frames", flush=True)  # fmt: skip
    table = Table("frames", "device", "part", "µs/frame", "frames/s", "frames/s, wall", "floor µs", "bound by",
                  "× floor")  # fmt: skip
    for name, case in workloads(chosen.pixels).items():
        loaded = load(case, name, chosen.data, 0)
        for device, backend in backends.items():
            workload = Workload(loaded, chosen.threads, backend)
            for row in rows(workload, name, device, speeds[device]):
                table.add_row(*row)
                print(" | ".join(row), flush=True)
    Console(width=180).print(table)


if __name__ == "__main__":
    main()
