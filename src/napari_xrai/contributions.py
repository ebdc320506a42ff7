"""What napari.yaml calls: readers, writers, sample data, and the command that opens the panel.

Light to import: files are opened, and arithmetic is imported, only when napari asks for it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .layers import KEY

if TYPE_CHECKING:
    from napari.viewer import Viewer

PANEL, LOOK = "X-RAI Reconstruct", "X-RAI First look"
NOTHING: list[tuple[None]] = [(None,)]
"""What a napari reader returns for a file that it took and that is no layer."""

Reader = Callable[[str | list[str]], list[Any]]


def get_reader(path: str | list[str]) -> Reader | None:
    """Napari's reader hook: ours where the content is ours, whatever the name; not pictures and plain arrays."""
    from .io.open import classify, is_ours

    paths = [Path(p) for p in ([path] if isinstance(path, str) else path)]
    kinds = {classify(p) for p in paths if p.exists()}
    if not kinds <= {"frames", "detector", "mask", "run"}:
        return None
    return _read if any(is_ours(p) for p in paths if p.exists()) else None


def _read(path: str | list[str]) -> list[Any]:
    """Layers of frames (their first patterns) or of a run folder; a detector or mask goes to the panel."""
    from .io.open import classify, open_source
    from .layers import Picture, patterns_layer, picture_layers
    from .run import read_run

    paths = [Path(p) for p in ([path] if isinstance(path, str) else path)]
    kinds = {p: classify(p) for p in paths}
    if "run" in kinds.values():
        snapshot = read_run(paths[0]).snapshot
        _give_to_panel(paths, only_if_open=True)
        return picture_layers(Picture.of(snapshot)) if snapshot is not None else NOTHING
    frames = [p for p in paths if kinds[p] == "frames"]
    if not frames:
        _give_to_panel(paths)
        return NOTHING
    layer = patterns_layer(open_source(paths))
    if layer is None:  # a flat list of pixels has no shape before its detector comes
        _give_to_panel(paths)
        return NOTHING
    layer[1]["metadata"]["companions"] = [str(p) for p in paths if kinds[p] != "frames"]
    return [layer]


def _give_to_panel(paths: Sequence[Path], *, only_if_open: bool = False) -> None:
    """What is no layer by itself belongs into the panel: that of the current viewer, opened if need be."""
    import napari

    viewer = napari.current_viewer()
    if viewer is None:
        return
    panel = open_panel(viewer)
    if panel is None and not only_if_open:
        panel = show_panel(viewer)
    if panel is not None:
        panel.load(paths)


def open_panel(viewer: Viewer) -> Any:
    """The viewer's panel, or None while it is not open."""
    from .widgets.panel import ReconstructPanel

    return next((w for w in viewer.window.dock_widgets.values() if isinstance(w, ReconstructPanel)), None)


def open_look(viewer: Viewer) -> Any:
    """The viewer's first look, or None while it is not open."""
    from .widgets.look import LookPanel

    return next((w for w in viewer.window.dock_widgets.values() if isinstance(w, LookPanel)), None)


def show_panel(viewer: Viewer | None = None) -> Any:
    """Open the panel "X-RAI Reconstruct" in this viewer (the current one by default), and return it."""
    return _show(PANEL, viewer)


def show_look(viewer: Viewer | None = None) -> Any:
    """Open "X-RAI First look" in this viewer (the current one by default), and return it."""
    return _show(LOOK, viewer)


def _show(name: str, viewer: Viewer | None) -> Any:
    """Side by side with what else is docked there, in tabs: the canvas keeps its room."""
    import napari

    viewer = viewer or napari.current_viewer()
    if viewer is None:
        raise RuntimeError("there is no viewer to put the panel into: open napari first")
    dock, widget = viewer.window.add_plugin_dock_widget("napari-xrai", name, tabify=True)
    dock.show()
    dock.raise_()
    return widget


def write_mrc(path: str, data: Any, meta: dict[str, Any]) -> list[str]:
    """Write the map behind a layer as MRC, with its voxel size: Å for a density, 10⁻⁴ Å⁻¹ for an intensity."""
    import numpy as np

    from .core.frames import Volume
    from .io.mrc import write_mrc as write
    from .io.source import InputError

    metadata = meta.get("metadata", {})
    volume = metadata.get("volume")
    if volume is None:
        array = np.asarray(data) if not isinstance(data, tuple) else np.zeros(0)
        if array.ndim != 3 or metadata.get(KEY) == "patterns":
            raise InputError("an MRC map needs a 3D volume: choose an intensity or density layer")
        volume = Volume(array.astype(np.float32), float(meta.get("scale", (1.0,))[-1]), "angstrom")
    if volume.units in ("1/angstrom", "detector_voxel"):
        unit = "1e-4 1/angstrom" if volume.units == "1/angstrom" else "1e-4 detector voxel"
        volume = Volume(volume.data, volume.voxel_size * 1e4, volume.units)
        label = f"napari-xrai intensity, voxel size in {unit}"
    else:
        label = f"napari-xrai density, voxel size in {volume.units}"
    write(volume, Path(path), label)
    return [path]


def few_frames() -> list[Any]:
    """Sample data: 50 such patterns, in a small CXI file, for a first look; it opens beside the canvas."""
    import napari

    layers = small_particle(50)
    viewer = napari.current_viewer()
    if viewer is not None:
        show_look(viewer)
    return layers


def small_particle(frames: int = 500) -> list[Any]:
    """Sample data: simulated patterns of a small particle, written to a temporary CXI file."""
    from .io.open import open_source
    from .layers import patterns_layer
    from .simulation import write_simulation

    path = Path(tempfile.mkdtemp(prefix="napari-xrai-")) / "small-particle.cxi"
    for _ in write_simulation("demo", path, "demo", frames=frames):
        pass
    layer = patterns_layer(open_source([path]))
    return [layer] if layer is not None else NOTHING
