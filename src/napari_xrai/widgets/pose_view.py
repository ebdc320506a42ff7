"""Poses on SO(3): where the beam went through the particle, as dots on a sphere."""

from __future__ import annotations

import numpy as np
from qtpy.QtCore import QSize
from qtpy.QtWidgets import QComboBox, QHBoxLayout, QLabel, QVBoxLayout, QWidget
from vispy import scene
from vispy.color import get_colormap
from vispy.gloo import gl

from ..layers import PoseCloud

COLORINGS = {"confidence": "viridis", "in-plane angle": "hsl", "views": "coolwarm"}
HINT = "Direction of the beam through the particle. Drag to turn, scroll to zoom."
SOFTWARE_RENDERERS = ("llvmpipe", "softpipe", "swiftshader", "software")


class PoseView(QWidget):
    """A small 3D view of the orientations found, with a few words beside it.

    Each dot is one pattern: the direction of its beam through the particle. The pattern's turn about the beam,
    the third angle of its pose, can be shown as colour, and so can how many patterns look alike: are views missing?

    Attributes
    ----------
    renderer : str
        Who draws, by its own name; empty until the first drawing.
    """

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName("xrai-poses")
        self.renderer = ""
        self._cloud: PoseCloud | None = None
        self._words = QLabel("beam directions", self)
        self._words.setToolTip(HINT)
        self._words.setWordWrap(True)
        self._coloring = QComboBox(self)
        self._coloring.addItems(list(COLORINGS))
        self._coloring.setToolTip("What the dots' colour shows; views: blue fewer than an even spread has, red more")
        self._coloring.currentIndexChanged.connect(self._draw)
        # the canvas is napari's kind of widget; its own hint would collapse it to a sliver
        self._canvas = scene.SceneCanvas(keys=None, show=False, parent=self, size=(320, 150))
        self._canvas.native.setMinimumSize(160, 70)
        self._canvas.events.draw.connect(self._ask_renderer)
        self._view = self._canvas.central_widget.add_view()
        self._view.camera = scene.TurntableCamera(fov=0, elevation=20, azimuth=30, distance=3, scale_factor=2.05)
        self._ball = scene.visuals.Sphere(radius=0.97, method="ico", subdivisions=3, parent=self._view.scene)
        self._dots = scene.visuals.Markers(parent=self._view.scene)
        self._dots.set_gl_state("translucent", depth_test=True)
        self._dots.visible = False
        self._lay_out()
        self._edge = "#888888"

    def _lay_out(self) -> None:
        beside = QVBoxLayout()
        beside.addWidget(self._words)
        beside.addWidget(self._coloring)
        beside.addStretch(1)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addLayout(beside)
        layout.addWidget(self._canvas.native, 1)

    def sizeHint(self) -> QSize:  # noqa: D102
        return QSize(340, 165)

    def minimumSizeHint(self) -> QSize:  # noqa: D102
        return QSize(200, 100)

    @property
    def software_rendering(self) -> bool:
        """Whether pictures are drawn by the processor; known after the first drawing."""
        return any(name in self.renderer.lower() for name in SOFTWARE_RENDERERS)

    def clear_poses(self) -> None:
        """An empty sphere, for a new run."""
        self._cloud = None
        self._dots.visible = False
        self._words.setText("beam directions")
        self._words.setToolTip(HINT)
        self._canvas.update()

    def show_poses(self, cloud: PoseCloud) -> None:
        """Draw the newest poses."""
        self._cloud = cloud
        shown = len(cloud.direction)
        self._words.setText(
            f"{shown:,} of {cloud.total:,}\nbeam directions" if shown < cloud.total else f"{shown:,}\nbeam directions"
        )
        self._words.setToolTip(f"{cloud.evenness[:1].upper()}{cloud.evenness[1:]}. {HINT}")
        self._draw()

    def set_colors(self, background: str, ball: str) -> None:
        """Follow the theme."""
        self._canvas.bgcolor = background
        self._ball.mesh.color = ball
        self._canvas.update()

    def close_canvas(self) -> None:
        """Give the GL context back; the view is not used afterwards."""
        self._canvas.close()

    def _draw(self) -> None:
        cloud = self._cloud
        self._dots.visible = cloud is not None and len(cloud.direction) > 0
        if cloud is None or not self._dots.visible:
            self._canvas.update()
            return
        chosen = self._coloring.currentText()
        shade = {
            "confidence": cloud.confidence,
            "in-plane angle": cloud.in_plane,
            "views": (cloud.views / 2).clip(0, 1),
        }
        colors = get_colormap(COLORINGS[chosen]).map(np.asarray(shade[chosen], np.float32)[:, None])
        self._dots.set_data(cloud.direction, face_color=colors, edge_width=0, size=3.5)
        self._canvas.update()

    def _ask_renderer(self, _event: object) -> None:
        if not self.renderer:
            self.renderer = str(gl.glGetParameter(gl.GL_RENDERER))
