"""Does it keep up? Frames arrive from other processes at a rate; what becomes of them, how late, at what cost.

    python benchmarks/streaming.py --data DIR [--frames 20000] [--rate 500] [--cases swmr flood] [--seconds 120]

DIR holds klh1/ (photons.emc, det_sim.h5, truth.h5). Frames of the klh1 particle are drawn from its true intensity at
random poses, 500 photons each.

swmr   another process appends them to an HDF5 file (SWMR) at the rate; ``reconstruct --follow`` reads along
flood  a karabo-bridge server offers them over and over at ten times the rate, more than can be used, for --seconds;
       ``reconstruct tcp://...`` takes what it can
offline  the same frames as a file that is complete, read until convergence
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from rich.console import Console
from rich.table import Table

from napari_xrai.core.frames import BAD, Frames
from napari_xrai.core.resolution import sample
from napari_xrai.core.rotations import align_poses, quaternion_to_matrix, random_rotations
from napari_xrai.io.open import open_source
from napari_xrai.io.truth import read_truth
from napari_xrai.serve import FrameServer, Served

LAST = 10_000
"""Pose errors are told of so many frames at the end."""
PHOTONS = 500
FLOOD = 10
PORT = 45871
AT_ONCE = 200


@dataclass
class Run:
    """The figures of one case."""

    case: str
    counters: dict[str, Any]
    median_deg: float
    resolution: list[float]
    latency_s: float
    latency_max_s: float
    rss_mb: list[float] = field(default_factory=list)
    cpu_s: float = 0.0
    wall_s: float = 0.0
    verdict: str = ""


def make_frames(data: Path, out: Path, n: int, seed: int = 0) -> np.ndarray:
    """Draw frames into a complete HDF5 file, a batch at a time; returns their true poses."""
    folder = data / "klh1"
    detector = open_source([folder / "photons.emc"], detector=folder / "det_sim.h5").detector
    assert detector is not None
    truth = read_truth(folder / "truth.h5").intensity
    truth = type(truth)(truth.data, 1.0, "detector_voxel")
    rng = np.random.default_rng(seed)
    rotation = random_rotations(n, rng)
    scale = None
    with h5py.File(out, "w") as file:
        frames = file.create_dataset("frames", (n, 64, 64), "u1", chunks=(AT_ONCE, 64, 64))
        for first in range(0, n, AT_ONCE):
            part = rotation[first : first + AT_ONCE]
            point = np.einsum("nij,pj->npi", part, detector.q).reshape(-1, 3)
            mean = np.nan_to_num(sample(truth, point)).reshape(len(part), -1) * detector.response
            mean *= detector.mask < BAD
            scale = scale or PHOTONS / mean.sum(1).mean()
            frames[first : first + len(part)] = rng.poisson(mean * scale).reshape(-1, 64, 64)
    return rotation


def write_swmr(source: Path, out: Path, rate: float) -> None:
    """Append the frames of a file to another one at a rate: what a facility's writer does."""
    with h5py.File(source) as given, h5py.File(out, "w", libver="latest") as file:
        frames = given["frames"]
        data = file.create_dataset("frames", (0, 64, 64), "u1", maxshape=(None, 64, 64), chunks=(50, 64, 64))
        file.swmr_mode = True
        began = time.monotonic()
        for first in range(0, len(frames), 50):
            time.sleep(max(0.0, began + first / rate - time.monotonic()))
            batch = frames[first : first + 50]
            data.resize(first + len(batch), axis=0)
            data[first:] = batch
            file.flush()


def offer(source: Path, rate: float, port: int) -> None:
    """Serve the frames of a file over and over."""

    def batches() -> Iterator[Frames]:
        with h5py.File(source) as file:
            frames = file["frames"]
            for first in cycle(range(0, len(frames), AT_ONCE)):
                yield Frames.from_dense(frames[first : first + AT_ONCE], first)

    with FrameServer(Served(str(source), None, "none", (64, 64), batches()), rate, port) as server:
        server.run()


def watched(command: list[str], every_s: float = 2.0, limit_s: float | None = None) -> tuple[list[float], float]:
    """Run a command to its end, or interrupt it after `limit_s`; its memory (MB) over time, and its CPU seconds."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    memory: list[float] = []
    cpu, began = 0.0, time.monotonic()
    interrupted = False
    while process.poll() is None:
        time.sleep(every_s)
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
            ticks = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        except OSError:
            continue
        memory += [int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS")]
        cpu = sum(map(int, ticks)) / 100
        if limit_s is not None and time.monotonic() - began > limit_s and not interrupted:
            process.terminate()
            interrupted = True
    return memory, cpu


def reconstruct(source: str, data: Path, out: Path, *options: str) -> list[str]:
    return [
        sys.executable, "-m", "napari_xrai", "reconstruct", source, "--detector", str(data / "klh1" / "det_sim.h5"),
        "--out", str(out), "--overwrite", *options,
    ]  # fmt: skip


def figures(case: str, out: Path, rotation: np.ndarray, memory: list[float], cpu_s: float) -> Run:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    last = lines[-1]
    names = ("received", "dropped", "not_hit", "junk", "used")
    for line in lines:
        assert line["received"] == line["dropped"] + line["not_hit"] + line["junk"] + line["used"], line
    with h5py.File(out / "reconstruction.h5") as file:
        frame, quaternion = file["poses/frame"][:], file["poses/quaternion"][:]
        resolution = 1 / file["resolution/history/resolution_q"][:]
    late = frame >= frame.max() - LAST
    _, error = align_poses(quaternion_to_matrix(quaternion[late]), rotation[frame[late] % len(rotation)])
    latency = [line["latency_s"] for line in lines if line.get("latency_s") is not None]
    latest = [line["latency_max_s"] for line in lines if line.get("latency_max_s") is not None]
    return Run(
        case, {name: last[name] for name in names}, float(np.median(error)),
        [round(float(r), 4) for r in resolution[:: max(1, len(resolution) // 12)]],
        float(np.median(latency)) if latency else float("nan"), max(latest, default=float("nan")), memory, cpu_s,
        last["time_s"], last["verdict"],
    )  # fmt: skip


def swmr(data: Path, folder: Path, rotation: np.ndarray, rate: float, _: float) -> Run:
    growing = folder / "growing.h5"
    growing.unlink(missing_ok=True)
    this = [sys.executable, __file__, "--write", str(folder / "frames.h5"), str(growing), "--rate", str(rate)]
    with subprocess.Popen(this) as writer:
        while not growing.exists() or not growing.stat().st_size:
            time.sleep(0.1)
        command = reconstruct(f"{growing}:/frames", data, folder / "swmr", "--follow", "--idle-timeout", "10")
        memory, cpu = watched([*command, "--max-frames", str(len(rotation))])
        writer.terminate()
    return figures(f"swmr, {rate:g} frames/s", folder / "swmr", rotation, memory, cpu)


def flood(data: Path, folder: Path, rotation: np.ndarray, rate: float, seconds: float) -> Run:
    port = str(PORT)
    serve = [
        sys.executable,
        __file__,
        "--offer",
        str(folder / "frames.h5"),
        "--rate",
        str(FLOOD * rate),
        "--port",
        port,
    ]
    with subprocess.Popen(serve) as server:
        command = reconstruct(f"tcp://localhost:{port}", data, folder / "flood", "--idle-timeout", "30")
        memory, cpu = watched(command, limit_s=seconds)
        server.terminate()
    run = figures(f"karabo-bridge, {FLOOD * rate:g} frames/s offered", folder / "flood", rotation, memory, cpu)
    run.median_deg = float("nan")  # the server drops, too: which frame is which is not known here
    return run


def offline(data: Path, folder: Path, rotation: np.ndarray, _: float, __: float) -> Run:
    memory, cpu = watched(reconstruct(f"{folder / 'frames.h5'}:/frames", data, folder / "offline"))
    return figures("offline, until convergence", folder / "offline", rotation, memory, cpu)


CASES = {"swmr": swmr, "flood": flood, "offline": offline}


def table(runs: list[Run]) -> Table:
    out = Table("case", "received = dropped + not hit + junk + used", "median ° (last 10,000)", "latency s, median/max",
                "RSS MB: third, middle, end", "CPU s", "wall s", "verdict")  # fmt: skip
    for run in runs:
        c = run.counters
        memory = (
            [f"{run.rss_mb[i]:.0f}" for i in (len(run.rss_mb) // 3, len(run.rss_mb) // 2, -2)] if run.rss_mb else []
        )
        out.add_row(
            run.case, f"{c['received']} = {c['dropped']} + {c['not_hit']} + {c['junk']} + {c['used']}",
            f"{run.median_deg:.2f}", f"{run.latency_s:.1f} / {run.latency_max_s:.1f}", " ".join(memory),
            f"{run.cpu_s:.0f}", f"{run.wall_s:.0f}", run.verdict,
        )  # fmt: skip
    return out


def runs_of(chosen: argparse.Namespace, folder: Path) -> Iterator[Run]:
    rotation = make_frames(chosen.data, folder / "frames.h5", chosen.frames)
    for name in chosen.cases:
        run = CASES[name](chosen.data, folder, rotation, chosen.rate, chosen.seconds)
        print(run, flush=True)
        yield run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--frames", type=int, default=20_000)
    parser.add_argument("--rate", type=float, default=500.0)
    parser.add_argument("--seconds", type=float, default=120.0, help="how long the flood lasts")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--keep", type=Path, help="folder for the frames and runs; by default a temporary one")
    parser.add_argument("--offer", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=PORT, help=argparse.SUPPRESS)
    parser.add_argument("--write", nargs=2, type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.write:
        write_swmr(*chosen.write, chosen.rate)
        return
    if chosen.offer:
        offer(chosen.offer, chosen.rate, chosen.port)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        Console(width=200).print(table(list(runs_of(chosen, folder))))


if __name__ == "__main__":
    main()
