"""What a frame costs in memory: the engine on few and on many frames from a generator that holds none of them.

Run:  OMP_NUM_THREADS=1 python benchmarks/memory.py

Every case runs in a process of its own; its peak resident memory (ru_maxrss) is compared. Frames are Poisson noise on
a 24 × 24 detector, made as they are asked for; the engine is not told how many will come. Noise has no structure to
find, and memory does not depend on whether any is found, so one start and one pass are made (`MOST_STARTS` is set to 1
for that).
"""

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np

SIDE, PHOTONS = 24, 40.0
FEW, MANY = 4_000, 400_000
TOLERANCE, BYTES_PER_FRAME = 0.10, 64


def noise(n_frames: int, size: int, start: int) -> Iterator:
    """Frames start … n_frames in batches: the same however often they are asked for."""
    from napari_xrai.core.frames import Frames

    rate = np.full(SIDE**2, PHOTONS / SIDE**2)
    for first in range(start, n_frames, size):
        count = min(size, n_frames - first)
        yield Frames.from_dense(np.random.default_rng(first).poisson(rate, (count, SIDE**2)), first)


def reconstruct(n_frames: int) -> None:
    """One run; prints its peak resident memory in bytes, and its seconds."""
    from napari_xrai.core import reconstruction, starts
    from napari_xrai.core.detector import square_detector

    starts.MOST_STARTS = 1
    detector = square_detector((SIDE, SIDE), 1e-3, 0.2, None, stop_radius_px=2)
    settings = reconstruction.ReconstructionSettings(passes=1)
    engine = reconstruction.Reconstruction(detector, settings, None)
    began, looked = time.perf_counter(), 0.0
    for _ in engine.run(lambda size, start: noise(n_frames, size, start)):
        if time.perf_counter() - looked > 1:  # as the panel looks
            engine.snapshot()
            looked = time.perf_counter()
    snapshot = engine.snapshot(all_poses=True)
    assert snapshot is not None and snapshot.counters.received == n_frames
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(peak, time.perf_counter() - began)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, help="run one case in this process")
    chosen = parser.parse_args().frames
    if chosen:
        reconstruct(chosen)
        return 0
    peak = {}
    for n in (FEW, FEW, MANY):  # twice: the first may compile
        out = subprocess.run([sys.executable, __file__, "--frames", str(n)], capture_output=True, text=True, check=True)
        peak[n], seconds = (float(word) for word in out.stdout.split()[-2:])
        print(f"{n:>8,} frames: peak {peak[n] / 1e6:.1f} MB in {seconds:.0f} s")
    extra = peak[MANY] - peak[FEW]
    allowed = TOLERANCE * peak[FEW] + BYTES_PER_FRAME * (MANY - FEW)
    print(f"{extra / 1e6:.1f} MB more, {extra / (MANY - FEW):.1f} B per extra frame; {allowed / 1e6:.1f} MB allowed")
    return int(extra > allowed)


if __name__ == "__main__":
    sys.exit(main())
