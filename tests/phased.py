"""A small particle whose density is known, its intensity behind a beam stop, and a run folder that holds it."""

from dataclasses import replace

import numpy as np

from napari_xrai.core.frames import Counters, Poses, Progress, Snapshot, Volume
from napari_xrai.run import RunFolder
from napari_xrai.settings import Settings

N, DQ, EDGE = 33, 0.003, 14


def particle():
    """Lobes of unequal size within 110 Å of a 336 Å box, without any symmetry; the first, at +x, is the brightest."""
    axis = (np.arange(N) - N // 2) / (N * DQ)
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    data = np.zeros((N, N, N))
    for (cx, cy, cz), width, height in [((40, 0, 0), 14, 2), ((-20, 30, 5), 16, 1), ((-10, -20, 30), 12, 0.8)]:
        data += height * np.exp(-0.5 * ((x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2) / width**2)
    return Volume(data.astype(np.float32), 1 / (N * DQ), "angstrom")


def radius():
    return np.linalg.norm(np.indices((N, N, N)) - N // 2, axis=0)


def snapshot_of(data=None, weight=None, **changes):
    """A finished run whose intensity is `data` (default: the particle's), with poses spread evenly at random."""
    if data is None:
        data = np.abs(np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(particle().data)))) ** 2
    if weight is None:
        weight = (radius() >= 2) & (radius() <= EDGE)
    quaternion = np.random.default_rng(1).normal(size=(600, 4)).astype(np.float32)
    quaternion /= np.linalg.norm(quaternion, axis=1, keepdims=True)
    ones = np.ones(600, np.float32)
    q = np.arange(N // 2 + 1) * DQ
    made = Snapshot(
        intensity=Volume((data * (weight > 0)).astype(np.float32), DQ, "1/angstrom"),
        weight=Volume(weight.astype(np.float32), DQ, "1/angstrom"),
        density=None, poses=Poses(np.arange(600), quaternion, ones, ones, np.linspace(0, 1, 600, dtype=np.float32)),
        status=np.zeros(1000, np.uint8),
        history={
            "frames_seen": np.array([600.0, 1200, 1800]), "log_likelihood": np.array([10.0, 14, 15]),
            "resolution_q": np.array([np.nan, 0.02, 0.032]),
        },
        shells={"q": q, "half_cc": np.clip(1.4 - q / 0.036, -0.1, 1), "weight": np.ones(len(q))},
        counters=Counters(received=1000, not_hit=300, junk=100, used=600),
        progress=Progress("done", 1.0, 1800, float(EDGE)), resolution_A=1 / 0.032, verdict="converged",
        reason="two starts agree to 0.93", facts={"diameter": "118 Å", "frames": "CXI 1.6, 512 photons each"},
    )  # fmt: skip
    return replace(made, **changes)


def write_run(path, snapshot, *, settings=None):
    """The run folder a session leaves, as far as phasing and reports look at it."""
    folder = RunFolder(path)
    folder.start(settings or Settings())
    folder.append_metrics({"time_s": 3725.0, "cpu_s": 7000.0})
    folder.write_result(snapshot, "/data/frames.cxi", poses=True)
    folder.write_maps(snapshot)
    return path
