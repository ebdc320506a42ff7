"""Phase the intensity of a saved run from many random starts, and write the density where they agree.

    python examples/phase_run.py RUN OUT.mrc [STARTS]

A run shows a density that follows its intensity live; this is the careful one, with a verdict of its own.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # idle threads sleep instead of spinning; read at torch's import

import numpy as np

from napari_xrai.core.phasing import phase
from napari_xrai.core.resolution import crossing
from napari_xrai.io.mrc import write_mrc
from napari_xrai.run import read_run

run, out = Path(sys.argv[1]), Path(sys.argv[2])
starts = int(sys.argv[3]) if len(sys.argv) > 3 else 10

snapshot = read_run(run).snapshot
if snapshot is None:
    sys.exit(f"{run} has made no report yet")

radius = int(snapshot.progress.radius)  # voxels: shells beyond were not used to find the poses
result = phase(snapshot.intensity, snapshot.weight, starts=starts, seed=0, radius=radius)
end = crossing(result.agreement, 0.5)
print(f"{result.verdict}: {result.reason}")
print(f"errors of the starts: {', '.join(f'{e:.3f}' for e in np.sort(result.errors))}")
if np.isfinite(end):
    print(f"kept starts agree (mean FSC 0.5) to {1 / end:.3g} {result.density.units}")
print(f"mean PRTF {np.nanmean(result.prtf.value):.2f} (optimistic: not a resolution)")
if result.verdict == "failed":
    sys.exit("nothing written: the density is not determined by this intensity")
write_mrc(result.density, out, "density; hand arbitrary")
print(out)
