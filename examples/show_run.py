"""Show a saved run in napari: intensity, its three sections, and the density's surface.

    python examples/show_run.py RUN [SCREENSHOT.png]

With a second argument the window is photographed and closed. To watch a run that is still being written, drop its
folder on the panel instead: there the picture is renewed.
"""

import sys
from pathlib import Path

import napari

from napari_xrai.layers import Picture, ResultLayers
from napari_xrai.run import read_run

snapshot = read_run(Path(sys.argv[1])).snapshot
if snapshot is None:
    sys.exit(f"{sys.argv[1]} has made no report yet")

viewer = napari.Viewer(title=snapshot.reason)
ResultLayers(viewer, view="slices").show(Picture.of(snapshot, level=0.3))
if len(sys.argv) > 2:
    viewer.screenshot(path=sys.argv[2], canvas_only=False, flash=False)
    viewer.close()
else:
    napari.run()
