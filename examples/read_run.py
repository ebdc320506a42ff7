"""Read a run folder, finished or still being written, and print its figures.

python examples/read_run.py RUN
"""

import sys
from pathlib import Path

import numpy as np

from napari_xrai.run import read_run

run = read_run(Path(sys.argv[1]))
snapshot = run.snapshot
if snapshot is None:
    sys.exit(f"{run.path} has made no report yet: try again in a few seconds")

volume, poses, counters = snapshot.intensity, snapshot.poses, snapshot.counters
print(f"{snapshot.verdict}: {snapshot.reason}")
print(f"frames      {counters.used:,} used of {counters.received:,} received")
print(f"intensity   {volume.data.shape[0]}³ voxels of {volume.voxel_size:.4g} {volume.units}")
print(f"poses       {len(poses.frame):,}, median confidence {np.median(poses.confidence):.2f}")
if snapshot.density is not None:
    density = snapshot.density
    print(f"density     {density.data.shape[0]}³ voxels of {density.voxel_size:.4g} {density.units}")
if snapshot.resolution_A is not None:
    print(f"half-sets   agree to 0.5 at {snapshot.resolution_A:.1f} Å (optimistic: they share poses)")
if run.metrics:
    print(f"time        {run.metrics[-1]['time_s']:.0f} s, {run.metrics[-1]['cpu_s']:.0f} CPU s")
for name, value in snapshot.facts.items():
    print(f"{name:<11} {value}")
