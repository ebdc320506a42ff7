"""Does it keep up? Frames arrive from other processes at a rate; what becomes of them, how late, at what cost.

    python benchmarks/streaming.py --data DIR [--frames 20000] [--rate 500] [--cases swmr flood] [--seconds 120]

DIR holds klh1/ (photons.emc, det_sim.h5, truth.h5). Frames of the klh1 particle are drawn from its true intensity at
random poses, 500 photons each.

swmr   another process appends them to an HDF5 file (SWMR) at the rate; ``reconstruct --follow`` reads along
flood  a karabo-bridge server offers them over and over at ten times the rate, more than can be used, for --seconds;
       ``reconstruct tcp://...`` takes what it can
folder another process fills a folder with files of frames, as fast as it can; ``--follow`` reads one after the other
       (for ``--frames 1000000``); the result after a tenth of the frames is kept and compared, too
offline  the same frames as a file that is complete, read until convergence
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from rich.console import Console
from rich.table import Table

from drawn_frames import AT_ONCE, Klh1
from napari_xrai.compare import compare
from napari_xrai.core.frames import Frames
from napari_xrai.core.rotations import align_poses, quaternion_to_matrix
from napari_xrai.serve import FrameServer, Served

LAST = 10_000
"""Pose errors are told of so many frames at the end."""
PHOTONS = 500
FLOOD = 10
PORT = 45871
PER_FILE = 20_000
WARM_UP_S = 180.0
"""The reservoir fills, and the allocator finds its size."""


@dataclass
class Run:
    """The figures of one case."""

    case: str
    counters: dict[str, Any]
    median_deg: float
    resolution: list[float]
    latency_s: float
    latency_max_s: float
    rss_mb: list[tuple[float, float]] = field(default_factory=list)
    cpu_s: float = 0.0
    wall_s: float = 0.0
    verdict: str = ""
    shell_cc: dict[int, float] = field(default_factory=dict)
    early: dict[str, float] = field(default_factory=dict)

    @property
    def warm_rss(self) -> str:
        """Median memory after the warm-up, and how far it went below and above."""
        warm = [mb for second, mb in self.rss_mb if second > WARM_UP_S] or [mb for _, mb in self.rss_mb]
        median = float(np.median(warm))
        return f"{median:.0f} {min(warm) / median - 1:+.1%} {max(warm) / median - 1:+.1%}"


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


def fill(data: Path, out: Path, n: int) -> None:
    """Draw frames into files of PER_FILE each, which appear in the folder when they are complete; then their truth."""
    particle = Klh1.read(data)
    rotation = [
        particle.write(out / f"part{part:03d}.h5", min(PER_FILE, n - first), PHOTONS, seed=1000 + part)
        for part, first in enumerate(range(0, n, PER_FILE))
    ]
    particle.write_truth(out.with_suffix(".truth.h5"), np.concatenate(rotation))


def watched(
    command: list[str], every_s: float = 1.0, limit_s: float | None = None, look: Callable[[], None] = lambda: None
) -> tuple[list[tuple[float, float]], float]:
    """Run a command to its end, or interrupt it after `limit_s`; its memory (s, MB) while it runs, its CPU seconds."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    memory: list[tuple[float, float]] = []
    cpu, began = 0.0, time.monotonic()
    interrupted = False
    while process.poll() is None:
        time.sleep(every_s)
        look()
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
            ticks = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        except OSError:
            continue
        second = time.monotonic() - began
        if not interrupted:  # what the last report takes is not of the stream
            memory += [
                (second, int(line.split()[1]) / 1024) for line in status.splitlines() if line.startswith("VmRSS")
            ]
        cpu = sum(map(int, ticks)) / 100
        if limit_s is not None and second > limit_s and not interrupted:
            process.terminate()
            interrupted = True
    return memory, cpu


def reconstruct(source: str, data: Path, out: Path, *options: str) -> list[str]:
    return [
        sys.executable, "-m", "napari_xrai", "reconstruct", source, "--detector", str(data / "klh1" / "det_sim.h5"),
        "--out", str(out), "--overwrite", *options,
    ]  # fmt: skip


def figures(case: str, out: Path, frames: Path | None, memory: list[tuple[float, float]], cpu_s: float) -> Run:
    """Read a run folder; `frames` were given in their order, or None where the server may have dropped some."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    last = lines[-1]
    names = ("received", "dropped", "not_hit", "junk", "used")
    for line in lines:
        assert line["received"] == line["dropped"] + line["not_hit"] + line["junk"] + line["used"], line
    with h5py.File(out / "reconstruction.h5") as file:
        frame, quaternion = file["poses/frame"][:], file["poses/quaternion"][:]
        resolution = 1 / file["resolution/history/resolution_q"][:]
    latency = [line["latency_s"] for line in lines if line.get("latency_s") is not None]
    latest = [line["latency_max_s"] for line in lines if line.get("latency_max_s") is not None]
    run = Run(
        case, {name: last[name] for name in names}, float("nan"),
        [round(float(r), 4) for r in resolution[:: max(1, len(resolution) // 12)]],
        float(np.median(latency)) if latency else float("nan"), max(latest, default=float("nan")), memory, cpu_s,
        last["time_s"], last["verdict"],
    )  # fmt: skip
    if frames is not None:
        with h5py.File(frames.with_suffix(".truth.h5")) as file:
            rotation = file["rot_lab_to_volume"][:]
        late = frame >= frame.max() - LAST
        run.median_deg = float(np.median(align_poses(quaternion_to_matrix(quaternion[late]), rotation[frame[late]])[1]))
        run.shell_cc = compare(out, frames.with_suffix(".truth.h5")).shell_cc
    return run


def swmr(data: Path, folder: Path, n: int, rate: float, _: float) -> Run:
    growing = folder / "growing.h5"
    growing.unlink(missing_ok=True)
    this = [sys.executable, __file__, "--write", str(folder / "frames.h5"), str(growing), "--rate", str(rate)]
    with subprocess.Popen(this) as writer:
        while not growing.exists() or not growing.stat().st_size:
            time.sleep(0.1)
        command = reconstruct(f"{growing}:/frames", data, folder / "swmr", "--follow", "--idle-timeout", "10")
        memory, cpu = watched([*command, "--max-frames", str(n)])
        writer.terminate()
    return figures(f"swmr, {rate:g} frames/s", folder / "swmr", folder / "frames.h5", memory, cpu)


def flood(data: Path, folder: Path, n: int, rate: float, seconds: float) -> Run:
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
    return figures(f"karabo-bridge, {FLOOD * rate:g} frames/s offered", folder / "flood", None, memory, cpu)


def in_folder(data: Path, folder: Path, n: int, _: float, __: float) -> Run:
    files, out, early = folder / "files", folder / "folder", folder / "early.h5"
    files.mkdir()

    def look() -> None:
        """Keep the first result after a tenth that has poses: they are written once a minute."""
        metrics, result = out / "metrics.jsonl", out / "reconstruction.h5"
        lines = metrics.read_text().splitlines() if metrics.exists() and not early.exists() else []
        if lines and json.loads(lines[-1])["received"] >= n / 10:
            with h5py.File(result) as file:
                written = "poses" in file
            if written:
                shutil.copy(result, early)

    with subprocess.Popen([sys.executable, __file__, "--fill", str(files), "--data", str(data), "--frames", str(n)]):
        while not any(files.glob("part*.h5")):
            time.sleep(0.5)
        command = reconstruct(str(files), data, out, "--follow", "--idle-timeout", "120", "--max-frames", str(n))
        memory, cpu = watched(command, look=look)
    run = figures(f"folder, {n:,} frames", out, files, memory, cpu)
    with h5py.File(out / "reconstruction.h5") as file, h5py.File(files.with_suffix(".truth.h5")) as truth:
        frame = file["poses/frame"][:]
        tenth = (frame >= n / 10 - LAST) & (frame < n / 10)
        true, found = truth["rot_lab_to_volume"][:][frame[tenth]], file["poses/quaternion"][:][tenth]
    run.early = {"frames": n / 10, "median_deg": float(np.median(align_poses(quaternion_to_matrix(found), true)[1]))}
    run.early |= {f"cc{r}": cc for r, cc in compare(early, files.with_suffix(".truth.h5")).shell_cc.items()}
    return run


def offline(data: Path, folder: Path, n: int, _: float, __: float) -> Run:
    memory, cpu = watched(reconstruct(f"{folder / 'frames.h5'}:/frames", data, folder / "offline"))
    return figures("offline, until convergence", folder / "offline", folder / "frames.h5", memory, cpu)


CASES = {"swmr": swmr, "flood": flood, "folder": in_folder, "offline": offline}


def table(runs: list[Run]) -> Table:
    out = Table("case", "received = dropped + not hit + junk + used", "median ° (last 10,000)", "latency s, median/max",
                "RSS MB after 3 min: median, least, most", "CC with truth at 16, 22, 28", "CPU s", "wall s",
                "verdict")  # fmt: skip
    for run in runs:
        c = run.counters
        out.add_row(
            run.case, f"{c['received']} = {c['dropped']} + {c['not_hit']} + {c['junk']} + {c['used']}",
            f"{run.median_deg:.2f}", f"{run.latency_s:.1f} / {run.latency_max_s:.1f}",
            run.warm_rss,
            " ".join(f"{run.shell_cc[r]:.3f}" for r in (16, 22, 28) if r in run.shell_cc),
            f"{run.cpu_s:.0f}", f"{run.wall_s:.0f}", run.verdict,
        )  # fmt: skip
    return out


def runs_of(chosen: argparse.Namespace, folder: Path) -> Iterator[Run]:
    if set(chosen.cases) - {"folder"}:
        particle = Klh1.read(chosen.data)
        particle.write_truth(
            folder / "frames.truth.h5", particle.write(folder / "frames.h5", chosen.frames, PHOTONS, seed=0)
        )
    for name in chosen.cases:
        run = CASES[name](chosen.data, folder, chosen.frames, chosen.rate, chosen.seconds)
        print(run, flush=True)
        yield run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--frames", type=int, default=20_000)
    parser.add_argument("--rate", type=float, default=500.0)
    parser.add_argument("--seconds", type=float, default=120.0, help="how long the flood lasts")
    parser.add_argument("--cases", nargs="+", default=["swmr", "flood", "offline"], choices=list(CASES))
    parser.add_argument("--keep", type=Path, help="folder for the frames and runs; by default a temporary one")
    parser.add_argument("--offer", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=PORT, help=argparse.SUPPRESS)
    parser.add_argument("--fill", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--write", nargs=2, type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.write:
        write_swmr(*chosen.write, chosen.rate)
        return
    if chosen.fill:
        fill(chosen.data, chosen.fill, chosen.frames)
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
