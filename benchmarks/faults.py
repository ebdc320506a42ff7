"""What a stream survives: each fault is made on purpose, by other processes; the counters afterwards.

    python benchmarks/faults.py --data DIR [--cases dies truncated restarted cut messages] [--rate 200]

DIR holds klh1/. Every case is ``napari-xrai reconstruct`` on frames of klh1 while something goes wrong:

dies       the process that appends to an HDF5 file (SWMR) is killed in the middle, and nobody goes on
truncated  the growing file is cut to half its bytes in mid-run, and written anew from its first frame after 5 s
restarted  the karabo-bridge server is killed, and a new one starts on its port after 8 s
cut        the server is in a network namespace of its own, whose link is down for 30 s (needs root and iproute2)
messages   every tenth message comes twice, every seventh pair in the wrong order, every ninth has frames of another
           shape, every eleventh is noise
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, cycle
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from rich.console import Console
from rich.table import Table

from drawn_frames import Klh1
from streaming import PHOTONS, reconstruct

FRAMES = 20_000
PORT = 45881
NAMESPACE, HERE, THERE = "xrai-cut", "10.231.7.1", "10.231.7.2"
CUT_S = 30.0


@dataclass
class Outcome:
    """How a run ended, what it counted, and what it said."""

    case: str
    status: int
    counters: dict[str, int]
    faults: str
    before: int
    """Frames used when the fault was made."""
    sum_held: bool


class Watched:
    """A reconstruction in a process of its own."""

    def __init__(self, source: str, data: Path, out: Path, *options: str) -> None:
        self.out = out
        self.process = subprocess.Popen(reconstruct(source, data, out, *options), stdout=subprocess.DEVNULL)

    def lines(self) -> list[dict[str, Any]]:
        """The reports so far."""
        path = self.out / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def wait_for(self, used: int, timeout_s: float = 500.0) -> int:
        """Wait until so many frames were used; returns how many were."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until and self.process.poll() is None:
            lines = self.lines()
            if lines and lines[-1]["used"] >= used:
                return int(lines[-1]["used"])
            time.sleep(0.5)
        raise RuntimeError(f"{self.out.name}: {used} frames were not used")

    def outcome(self, case: str, before: int, *, stop: bool = False) -> Outcome:
        """What came of it; with `stop` it is interrupted first, as by Ctrl-C."""
        if stop:
            self.process.send_signal(signal.SIGINT)
        status = self.process.wait(300)
        lines = self.lines()
        names = ("dropped", "not_hit", "junk", "used")
        held = all(line["received"] == sum(line[name] for name in names) for line in lines)
        with h5py.File(self.out / "reconstruction.h5") as file:
            faults = str(file["facts"].attrs.get("faults", "none"))
        return Outcome(case, status, {name: lines[-1][name] for name in ("received", *names)}, faults, before, held)


@contextmanager
def running(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


def this(*arguments: object) -> list[str]:
    return [sys.executable, __file__, *map(str, arguments)]


# ---- files


def append(source: Path, out: Path, rate: float) -> None:
    """Append frames to a file at a rate, over and over: a facility's writer."""
    with h5py.File(source) as given, h5py.File(out, "w", libver="latest") as file:
        data = file.create_dataset("frames", (0, 64, 64), "u1", maxshape=(None, 64, 64), chunks=(20, 64, 64))
        file.swmr_mode = True
        began = time.monotonic()
        for first in count(0, 20):
            time.sleep(max(0.0, began + first / rate - time.monotonic()))
            data.resize(first + 20, axis=0)
            there = first % len(given["frames"])
            data[first:] = given["frames"][there : there + 20]
            file.flush()


def dies(chosen: argparse.Namespace, folder: Path) -> Outcome:
    growing = folder / "dies.h5"
    with running(*this("--append", folder / "frames.h5", growing, "--rate", chosen.rate)) as writer:
        run = Watched(f"{growing}:/frames", chosen.data, folder / "dies", "--follow", "--idle-timeout", "10")
        before = run.wait_for(5000)
        writer.kill()
        return run.outcome("writer killed", before)


def truncated(chosen: argparse.Namespace, folder: Path) -> Outcome:
    growing = folder / "truncated.h5"
    with running(*this("--append", folder / "frames.h5", growing, "--rate", chosen.rate)) as writer:
        run = Watched(f"{growing}:/frames", chosen.data, folder / "truncated", "--follow", "--idle-timeout", "20")
        before = run.wait_for(5000)
        writer.kill()
    os.truncate(growing, growing.stat().st_size // 2)
    time.sleep(5)
    with running(*this("--append", folder / "frames.h5", growing, "--rate", 3 * chosen.rate)) as writer:
        run.wait_for(before + 1000)
        writer.kill()
        return run.outcome("file cut to half, then written anew", before)


# ---- sockets


def serve(source: Path, rate: float, port: int) -> list[str]:
    return this("--serve", source, "--rate", rate, "--port", port)


def restarted(chosen: argparse.Namespace, folder: Path) -> Outcome:
    command = serve(folder / "frames.h5", chosen.rate, PORT)
    with running(*command) as server:
        run = Watched(f"tcp://localhost:{PORT}", chosen.data, folder / "restarted")
        before = run.wait_for(5000)
        server.kill()
    time.sleep(8)
    with running(*command):
        run.wait_for(before + 1000)
        return run.outcome("server killed, another after 8 s", before, stop=True)


def cut(chosen: argparse.Namespace, folder: Path) -> Outcome:
    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True)

    ip("netns", "add", NAMESPACE)
    try:
        ip("link", "add", "xrai0", "type", "veth", "peer", "name", "xrai1", "netns", NAMESPACE)
        ip("addr", "add", f"{HERE}/24", "dev", "xrai0")
        ip("link", "set", "xrai0", "up")
        ip("-n", NAMESPACE, "addr", "add", f"{THERE}/24", "dev", "xrai1")
        ip("-n", NAMESPACE, "link", "set", "xrai1", "up")
        with running("ip", "netns", "exec", NAMESPACE, *serve(folder / "frames.h5", chosen.rate, PORT + 1)):
            run = Watched(f"tcp://{THERE}:{PORT + 1}", chosen.data, folder / "cut")
            before = run.wait_for(5000)
            ip("link", "set", "xrai0", "down")
            time.sleep(CUT_S)
            ip("link", "set", "xrai0", "up")
            run.wait_for(before + 1000)
            return run.outcome(f"network cut for {CUT_S:.0f} s", before, stop=True)
    finally:
        ip("netns", "del", NAMESPACE)  # takes the link with it


def messages(chosen: argparse.Namespace, folder: Path) -> Outcome:
    with running(*serve(folder / "frames.h5", chosen.rate, PORT + 2), "--mangle"):
        run = Watched(f"tcp://localhost:{PORT + 2}", chosen.data, folder / "messages")
        before = run.wait_for(6000)
        return run.outcome("mangled messages", before, stop=True)


def trains(source: Path, mangle: bool) -> Iterator[list[Any]]:
    """Messages as the facility's own package makes them, 20 frames each; `mangle`: not all of them sound."""
    from karabo_bridge import serialize

    with h5py.File(source) as file:
        frames = file["frames"]
        for n, first in enumerate(cycle(range(0, len(frames), 20))):
            swapped = n + 1 - 2 * (n % 2) if mangle and n // 2 % 7 == 3 else n  # 2k and 2k + 1 change places
            counts = np.ones((20, 32, 32), np.uint8) if mangle and n % 9 == 4 else frames[first : first + 20]
            now = time.time()
            about = {
                "source": "SPB", "timestamp": now, "timestamp.sec": str(int(now)), "timestamp.frac": f"{n:018d}",
                "timestamp.tid": swapped,
            }  # fmt: skip
            message = serialize({"SPB": {"image.data": counts}}, {"SPB": about})
            yield message
            if mangle and n % 10 == 5:
                yield message
            if mangle and n % 11 == 6:
                yield [b"\xc1 noise"]


def answer(source: Path, rate: float, port: int, mangle: bool) -> None:
    """A karabo-bridge server that is not ours."""
    import zmq

    socket = zmq.Context().socket(zmq.REP)
    socket.bind(f"tcp://0.0.0.0:{port}")
    due = time.monotonic()
    for message in trains(source, mangle):
        due = max(due + 20 / rate, time.monotonic() - 1)
        time.sleep(max(0.0, due - time.monotonic()))
        socket.recv()
        socket.send_multipart(message)


CASES: dict[str, Callable[[argparse.Namespace, Path], Outcome]] = {
    "dies": dies, "truncated": truncated, "restarted": restarted, "cut": cut, "messages": messages,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rate", type=float, default=200.0)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--append", nargs=2, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--mangle", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.append:
        return append(*chosen.append, chosen.rate)
    if chosen.serve:
        return answer(chosen.serve, chosen.rate, chosen.port, chosen.mangle)
    out = Table("fault", "exit", "used before", "received = dropped + not hit + junk + used", "sum held", "said")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        Klh1.read(chosen.data).write(folder / "frames.h5", FRAMES, PHOTONS, seed=0)
        for name in chosen.cases:
            it = CASES[name](chosen, folder)
            print(it, flush=True)
            c = it.counters
            out.add_row(
                it.case, str(it.status), f"{it.before:,}",
                f"{c['received']} = {c['dropped']} + {c['not_hit']} + {c['junk']} + {c['used']}", str(it.sum_held),
                it.faults,
            )  # fmt: skip
    Console(width=200).print(out)


if __name__ == "__main__":
    main()
