"""Simulate a small particle, reconstruct it from noise, and score it: the engine alone, no files and no window.

python examples/reconstruct_in_memory.py
"""

import os
from collections.abc import Iterator

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # idle threads sleep instead of spinning; read at torch's import

import numpy as np

from napari_xrai.core.frames import Frames
from napari_xrai.core.particle import builtin_particle
from napari_xrai.core.reconstruction import Reconstruction
from napari_xrai.core.reconstruction_settings import ReconstructionSettings
from napari_xrai.core.resolution import sphere_correlation
from napari_xrai.core.rotations import align_poses, quaternion_to_matrix
from napari_xrai.core.simulate import PRESETS, simulate

FRAMES, PHOTONS, SEED = 2500, 500, 0

detector, truth, stream = simulate(builtin_particle("demo"), PRESETS["demo"], n_frames=FRAMES, photons=PHOTONS, seed=1)
frames = Frames.concatenate(list(stream))


def batches(size: int, start: int) -> Iterator[Frames]:
    """Give the stream from frame `start` on; the engine calls this once for every time it reads the stream."""
    for first in range(start, len(frames), size):
        yield frames.take(slice(first, first + size))


engine = Reconstruction(detector, ReconstructionSettings(seed=SEED), len(frames))
phase = ""
for progress in engine.run(batches):  # leave the loop whenever you like: snapshot() holds the best so far
    if progress.phase != phase:
        phase = progress.phase
        print(f"{progress.fraction:4.0%}  {phase}", flush=True)

result = engine.snapshot(all_poses=True)
assert result is not None  # there is a snapshot as soon as the first start has begun
print(f"{result.verdict}: {result.reason}")
for name, value in result.facts.items():
    print(f"  {name}: {value}")

poses = quaternion_to_matrix(result.poses.quaternion)
rotation, error_deg = align_poses(poses, truth.rotation[result.poses.frame], truth.point_group)
print(f"pose error, median {np.median(error_deg):.2f}°, 90th percentile {np.percentile(error_deg, 90):.2f}°")
curve = sphere_correlation(result.intensity, truth.intensity, (8, 16, 24, 30), rotation=rotation.T)
for q, correlation in zip(curve.q, curve.value, strict=True):
    print(f"shell CC at {1 / q:5.1f} Å: {correlation:.3f}")
