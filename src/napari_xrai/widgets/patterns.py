"""The first patterns of dropped files on napari's canvas."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..layers import KEY

if TYPE_CHECKING:
    from napari.viewer import Viewer

FRAME_AXES = ("#", "y", "x")
"""Napari leaves room for one letter beside the slider."""


def show_patterns(viewer: Viewer, patterns: tuple[Any, dict[str, Any], str], *, hidden: bool) -> None:
    """Put patterns on the canvas, in place of those of other files.

    Parameters
    ----------
    viewer : napari.viewer.Viewer
    patterns : (data, keywords, layer type)
        As a reader gives them.
    hidden : bool
        A result is being looked at: the patterns come as a layer that is switched off.
    """
    from napari.layers import Layer

    data, kwargs, kind = patterns
    for layer in [layer for layer in viewer.layers if layer.metadata.get(KEY) == "patterns"]:
        if layer.metadata.get("paths") == kwargs["metadata"]["paths"] and layer.data.shape == data.shape:
            return
        viewer.layers.remove(layer)
    layer = Layer.create(data, {**kwargs, "visible": not hidden}, kind)
    if not hidden:
        viewer.dims.ndisplay = 2
    viewer.add_layer(layer)
    if layer.visible:
        viewer.dims.axis_labels = FRAME_AXES[-viewer.dims.ndim :]
        viewer.dims.set_current_step(0, 0)  # napari begins in the middle
