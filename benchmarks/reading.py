"""How fast frames of a megapixel detector come in: AGIPD-1M (16 × 512 × 128), binned to the working resolution.

Makes its own files, as SPI groups write them, and reads them three ways: by h5py alone, as plain arrays; by the
project, as lit pixels; and by the project, binned. Prints frames per second, CPU seconds per thousand frames and the
highest memory. Equal photons are checked in every row.

    python benchmarks/reading.py [--frames 400] [--folder /tmp]
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from napari_xrai.core.detector import Panels, detector_from_panels
from napari_xrai.core.frames import Detector
from napari_xrai.io.binning import BinnedSource, working_binning
from napari_xrai.io.cxi import CxiSource
from napari_xrai.io.dragonfly import BinaryPhotons

SHAPE = (16, 512, 128)
PIXEL_M, DISTANCE_M = 2e-4, 0.7
LAYOUTS = {
    "uncompressed": ({}, "u1"),
    "gzip-1+shuffle": ({"compression": "gzip", "compression_opts": 1, "shuffle": True}, "u1"),
    "gzip-1+shuffle 16 bit": ({"compression": "gzip", "compression_opts": 1, "shuffle": True}, "<u2"),
}


def agipd() -> Detector:
    """Sixteen flat modules in four quadrants about the beam."""
    corner, step = [], []
    for module in range(16):
        column, row = divmod(module, 8)
        corner.append([(column - 0.5) * 520 * PIXEL_M + 0.05, (4 - row) * 130 * PIXEL_M, DISTANCE_M])
        step.append([[-PIXEL_M, 0, 0], [0, -PIXEL_M, 0]])
    panels = Panels(np.array(corner), np.array(step), SHAPE)
    return detector_from_panels(panels, energy_eV=6000.0, polarization="x")


def frames_of(n_frames: int, detector: Detector, dtype: str) -> Iterator[np.ndarray]:
    """Poisson counts, 0.02 per pixel on average, that fall off with q; 32 distinct frames, again and again."""
    rng = np.random.default_rng(0)
    fall = 1 / (1e-3 + (np.linalg.norm(detector.q, axis=1) / np.abs(detector.q).max()) ** 2)
    mean = 0.02 * fall / fall.mean()
    some = [rng.poisson(mean).clip(0, 255).astype(dtype).reshape(SHAPE) for _ in range(32)]
    for n in range(n_frames):
        yield some[n % 32]


def write_cxi(path: Path, n_frames: int, detector: Detector, options: dict, dtype: str) -> int:
    photons = 0
    with h5py.File(path, "w") as file:
        group = file.create_group("entry_1/instrument_1/detector_1")
        data = group.create_dataset("data", (n_frames, *SHAPE), dtype, chunks=(1, *SHAPE), **options)
        for n, frame in enumerate(frames_of(n_frames, detector, dtype)):
            data[n] = frame
            photons += int(frame.sum())
        file["entry_1/data_1/data"] = h5py.SoftLink(data.name)
    return photons


def write_emc(path: Path, n_frames: int, detector: Detector) -> int:
    ones, multi, many = [], [], []
    for frame in frames_of(n_frames, detector, "u1"):
        flat = frame.ravel()
        ones.append(np.flatnonzero(flat == 1).astype("<i4"))
        multi.append(np.flatnonzero(flat > 1).astype("<i4"))
        many.append(flat[multi[-1]].astype("<i4"))
    header = np.zeros(256, "<i4")
    header[:2] = n_frames, detector.n_pixels
    with path.open("wb") as file:
        for part in (header, [len(o) for o in ones], [len(m) for m in multi], *ones, *multi, *many):
            file.write(np.asarray(part, "<i4").tobytes())
    return sum(len(o) for o in ones) + sum(int(m.sum()) for m in many)


def read_plainly(path: Path) -> int:
    with h5py.File(path) as file:
        data = file["entry_1/data_1/data"]
        return sum(int(data[n : n + 16].sum(dtype=np.int64)) for n in range(0, len(data), 16))


def timed(name: str, n_frames: int, expected: int, read) -> None:
    wall, cpu = time.perf_counter(), time.process_time()
    photons = read()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    assert photons == expected, f"{name}: {photons} photons instead of {expected}"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{name:<44} {n_frames / wall:8.0f} frames/s {1000 * cpu / n_frames:8.2f} CPU s/1000 {peak:8.0f} MiB")


def photons_of(source) -> int:
    return sum(int(batch.photons.sum()) for batch in source.batches(250))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=400)
    parser.add_argument("--folder", default=None)
    options = parser.parse_args()
    detector = agipd()
    factor = working_binning(detector)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for name, (how, dtype) in LAYOUTS.items():
            path = Path(folder) / "frames.cxi"
            photons = write_cxi(path, options.frames, detector, how, dtype)
            source = CxiSource(path)
            source.detector = detector
            timed(f"{name}: h5py alone, dense", options.frames, photons, lambda p=path: read_plainly(p))
            timed(f"{name}: lit pixels", options.frames, photons, lambda s=source: photons_of(s))
            binned = BinnedSource(source, factor)
            timed(f"{name}: binned {factor}×{factor}", options.frames, photons, lambda s=binned: photons_of(s))
            path.unlink()
        path = Path(folder) / "frames.emc"
        photons = write_emc(path, options.frames, detector)
        sparse = BinaryPhotons(path)
        sparse.detector = detector
        timed("sparse emc: lit pixels", options.frames, photons, lambda: photons_of(sparse))
        binned = BinnedSource(sparse, factor)
        timed(f"sparse emc: binned {factor}×{factor}", options.frames, photons, lambda: photons_of(binned))


if __name__ == "__main__":
    main()
