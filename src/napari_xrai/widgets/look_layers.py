"""The first look as napari layers: frames, powder sum, mask, resolution rings, beam centre."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..first_look_geometry import Ring
from ..first_look_layout import Layout
from ..layers import FIRST_LOOK, KEY, Kind
from .look_job import Opened
from .patterns import FRAME_AXES

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Layer

Contrast = Literal["linear", "gamma", "log"]
Shown = Literal["frames", "powder sum"]
Tool = Literal["pan", "mask", "centre"]
CONTRASTS: tuple[Contrast, ...] = ("linear", "gamma", "log")
SHOWN: tuple[Shown, ...] = ("frames", "powder sum")

GAMMAS = {"linear": 1.0, "gamma": 0.5, "log": 0.25}
"""The logarithm is a colour map over a gamma: values stay photons, and one photon in ten thousand is seen."""

LINE = "#4fd8eb"
BESIDE = "#3b424d"
"""Where there is no pixel: neither dark nor lit."""
MASK_COLORS = {None: "transparent", 0: "transparent", 1: "#3b82f670", 2: "#ef4444"}
POWDER_BRIGHT = 99.9
"""Percentile of the powder sum that is drawn brightest."""


class LookLayers:
    """The layers of one viewer that show a first look; found by their metadata, made again when missing."""

    def __init__(self, viewer: ViewerModel) -> None:
        self.viewer = viewer
        self.contrast: Contrast = "gamma"
        self.shown: Shown = "frames"

    def find(self, kind: Kind) -> Layer | None:
        """The first layer of this kind that the viewer has now."""
        return next((layer for layer in self.viewer.layers if layer.metadata.get(KEY) == kind), None)

    # ---- frames and sums

    def show_frames(self, opened: Opened, *, keep_mask: bool) -> None:
        """Put the frames on the canvas, in place of those of other files; a mask that was painted for them may stay."""
        self.take_up("pan")
        for layer in list(self.viewer.layers):
            kind = layer.metadata.get(KEY)
            if kind in FIRST_LOOK and not (kind == "mask" and keep_mask):
                self.viewer.layers.remove(layer)
            elif kind in ("intensity", "density", "slices"):
                layer.visible = False
        if opened.patterns is None or opened.layout is None or opened.mask is None:
            return
        self.viewer.dims.ndisplay = 2
        data, kwargs, _ = opened.patterns
        apart = (opened.inputs.detector, opened.inputs.mask)
        kwargs["metadata"]["companions"] = [str(path) for path in apart if path is not None]
        bright = kwargs["contrast_limits"][1]
        layer = self.viewer.add_image(data, **{**kwargs, **self._colors(bright)})
        layer.contrast_limits_range = (0.0, 20 * bright)
        self.viewer.dims.axis_labels = FRAME_AXES[-self.viewer.dims.ndim :]
        self.viewer.dims.set_current_step(0, 0)
        if keep_mask:
            self.viewer.layers.move(0, len(self.viewer.layers))
        self.show(self.shown)
        self.viewer.reset_view()

    def show_mask(self, layout: Layout, mask: NDArray[np.uint8]) -> None:
        """A layer of labels 1 (merged only) and 2 (bad), to be painted on."""
        layer = self.viewer.add_labels(
            layout.picture(mask, 0).astype(np.uint8), name="Mask (2 bad, 1 merge only)", opacity=0.5,
            colormap=MASK_COLORS, metadata={KEY: "mask"},
        )  # fmt: skip
        layer.selected_label = 2
        layer.brush_size = max(1, round(min(layout.shape) / 20))

    def show_powder(self, picture: NDArray[Any], n_frames: int) -> None:
        """The sum of so many frames, below the mask."""
        name = f"Powder sum ({n_frames:,} frames)"
        limits = (0.0, max(1.0, float(np.nanpercentile(picture, POWDER_BRIGHT))))
        layer = self.find("powder")
        if layer is None:
            active = self.viewer.layers.selection.active
            layer = self.viewer.add_image(
                picture, name=name, contrast_limits=limits, metadata={KEY: "powder"}, visible=False
            )
            patterns = self.find("patterns")
            where = 0 if patterns is None else self.viewer.layers.index(patterns) + 1
            self.viewer.layers.move(self.viewer.layers.index(layer), where)
            self.viewer.layers.selection.active = active
        else:
            layer.data, layer.name = picture, name
        layer.contrast_limits_range = (0.0, max(1.0, float(np.nanmax(picture))))
        layer.contrast_limits = limits
        self._color(layer)
        self.show(self.shown)

    def show(self, shown: Shown) -> None:
        """Frames or powder sum; frames, while nothing is summed yet."""
        self.shown = shown
        powder, patterns = self.find("powder"), self.find("patterns")
        is_powder = shown == "powder sum" and powder is not None
        if patterns is not None:
            patterns.visible = not is_powder
        if powder is not None:
            powder.visible = is_powder
            if self.viewer.layers.selection.active in (patterns, powder):  # the sliders beside are for what is seen
                self.viewer.layers.selection.active = powder if is_powder else patterns

    def set_contrast(self, contrast: Contrast) -> None:
        """How photons become brightness."""
        self.contrast = contrast
        for kind in ("patterns", "powder"):
            layer = self.find(kind)
            if layer is not None:
                self._color(layer)

    def _color(self, layer: Any) -> None:
        for name, value in self._colors(float(layer.contrast_limits[1])).items():
            setattr(layer, name, value)

    def _colors(self, bright: float) -> dict[str, Any]:
        return {
            "gamma": GAMMAS[self.contrast], "colormap": _colormap(bright if self.contrast == "log" else None),
        }  # fmt: skip

    # ---- geometry

    def show_geometry(self, rings: Sequence[Ring], layout: Layout) -> None:
        """Rings, and the beam centre as a point that can be dragged; nothing without a geometry."""
        if layout.centre is None:
            return
        active = self.viewer.layers.selection.active
        self._show_rings(rings, layout)
        centre = self.find("centre")
        if centre is None:
            self.viewer.add_points(
                [layout.centre], name="Beam centre", symbol="cross", size=max(2.0, max(layout.shape) / 28),
                face_color=LINE, border_width=0, metadata={KEY: "centre"},
            )  # fmt: skip
        elif not (centre.data.shape == (1, 2) and np.allclose(centre.data[0], layout.centre)):
            centre.data = np.array([layout.centre])
        self.viewer.layers.selection.active = active

    def _show_rings(self, rings: Sequence[Ring], layout: Layout) -> None:
        assert layout.centre is not None
        row, column = layout.centre
        shapes, labels = [], []
        for ring in rings:
            r = ring.radius
            box = np.array([[row - r, column - r], [row - r, column + r], [row + r, column + r], [row + r, column - r]])
            at = np.array([[row - r, column], [row - r, column + 1e-3]])  # a line too short to be seen bears the label
            shapes += [(box, "ellipse"), (at, "line")]
            labels += ["", ring.label]
        old = self.find("rings")
        visible = old is None or old.visible
        if old is not None:
            self.viewer.layers.remove(old)
        if not shapes:
            return
        width = max(layout.shape)
        text = {"string": "{label}", "size": 10, "color": LINE, "translation": [-width / 60, 0]}
        layer = self.viewer.add_shapes(
            shapes, name="Resolution rings", features={"label": labels}, text=text, face_color="transparent",
            edge_color=LINE, edge_width=width / 350, opacity=0.8, visible=visible, metadata={KEY: "rings"},
        )  # fmt: skip
        layer.editable = False
        centre = self.find("centre")
        if centre is not None:
            self.viewer.layers.move(self.viewer.layers.index(layer), self.viewer.layers.index(centre))

    # ---- tools

    def take_up(self, tool: Tool) -> None:
        """Make the layer active that this tool works on, in the mode in which a drag does it."""
        for kind in ("mask", "centre"):
            layer = self.find(kind)
            if layer is not None:
                layer.mode = "pan_zoom"
        layer = self.find("patterns" if tool == "pan" else tool)
        if layer is None:
            return
        layer.visible = layer.visible or tool != "pan"
        self.viewer.layers.selection.active = layer
        if tool != "pan":
            layer.mode = "paint" if tool == "mask" else "select"


def _colormap(log_to: float | None) -> Any:
    """Brightness as the photons; or, up to `log_to` of them, as log(1 + photons), for the gamma of `GAMMAS`."""
    from napari.utils.colormaps import Colormap, ensure_colormap

    shade = np.linspace(0, 1, 128)
    colors = ensure_colormap("inferno").map(shade)
    if log_to is None:
        return Colormap(colors, name="xrai-frames", display_name="inferno", nan_color=BESIDE)
    photons = max(log_to, 1.0)
    controls = (np.expm1(shade * np.log1p(photons)) / photons) ** GAMMAS["log"]
    controls[[0, -1]] = 0.0, 1.0
    name = f"xrai-log-{photons:.3g}"
    return Colormap(colors, controls=controls, name=name, display_name="inferno, log", nan_color=BESIDE)
