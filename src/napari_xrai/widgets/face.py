"""What the panel looks like: its parts, their order, their words and colours. It decides nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from qtpy.QtCore import QSize, Qt, Signal
from qtpy.QtWidgets import (
    QComboBox,
    QLineEdit,
    QProgressBar,
    QPushButton,
    QSlider,
    QWidget,
)  # fmt: skip
from superqt import QCollapsible

from ..layers import DEFAULT_LEVEL, Picture, View
from ..settings import EngineSettings
from .after_run import AfterRun
from .curves import CurvesView
from .dock import Column, Dock, Words, row
from .drop import DropZone
from .form import SettingsForm
from .found import FoundView
from .pose_view import PoseView
from .stream_field import StreamField

VIEWS: tuple[View, View] = ("volume", "slices")


class Face(Dock):
    """The panel's parts.

    Signals
    -------
    view_changed : str
        ``"volume"`` or ``"slices"``.
    level_changed : float
        Where the density's surface is to be drawn.
    """

    view_changed = Signal(str)
    level_changed = Signal(float)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__("xrai-panel", "xrai-status", parent)
        self.drop_zone = DropZone(self)
        self.found_view = FoundView(self)
        self.stream_field = StreamField(self)
        self.form = SettingsForm(EngineSettings, self)
        self.after_run = AfterRun(self)
        self.pose_view = PoseView(self)
        self.curves_view = CurvesView(self)
        self._make_controls()
        self._lay_out()

    def sizeHint(self) -> QSize:  # noqa: D102
        return QSize(370, 660)

    @property
    def level(self) -> float:
        """Where the density's surface is drawn, as a fraction of its brightest voxels."""
        return int(self._level.value()) / 100

    # ---- what is shown

    def say_facts(self, words: str) -> None:
        """Where the frames went, in small."""
        self.facts.setText(words)
        self.facts.setVisible(bool(words))

    def show_progress(self, fraction: float | None, words: str) -> None:
        """How far: None for no run, NaN for an unknown end.

        Without an end the words alone move: an animated bar would redraw the window thirty times a second.
        """
        self._pace.setText(words)
        self.progress.setFormat(words)
        self.progress.setVisible(fraction is not None)
        self._pace.setVisible(bool(words))
        self.progress.setValue(0 if fraction is None or math.isnan(fraction) else round(1000 * fraction))

    def result_steps(self, picture: Picture) -> Iterator[Callable[[], None]]:
        """Renew the views beside the canvas, a piece at a time."""
        yield lambda: self.pose_view.show_poses(picture.poses)
        yield lambda: self.curves_view.show_curves(picture.curves)
        yield lambda: self.curves_view.show_facts(picture.snapshot.facts)

    def clear_result(self) -> None:
        """Empty views, for a new run."""
        self.pose_view.clear_poses()
        self.curves_view.clear_curves()
        self.say_facts("")

    def show_state(self, state: str, *, paused: bool, can_start: bool, can_continue: bool, can_pause: bool) -> None:
        """Buttons and fields for this state."""
        idle = state == "idle"
        self.run_button.setText({"idle": "Start", "running": "Stop", "stopping": "Stopping…"}[state])
        self.run_button.setEnabled(can_start if idle else state == "running")
        self.run_button.setProperty("state", state)
        self.pause_button.setText("Continue" if can_continue else "Resume" if paused else "Pause")
        self.pause_button.setEnabled(can_continue or (can_pause and state == "running"))
        self.pause_button.setToolTip(
            "Continue the run in this folder from its checkpoint" if can_continue else "Rest, and go on later"
        )
        self.look_button.setEnabled(can_start)
        for part in (self.drop_zone, self.found_view, self.stream_field, self.form, self.out):
            part.setEnabled(idle)
        self._color_run_button()

    def set_view(self, view: View) -> None:
        """Choose how the intensity is shown, as if the user had."""
        self._view.setCurrentIndex(VIEWS.index(view))
        self.view_changed.emit(view)

    def set_theme(self, theme: Any) -> None:
        """Follow napari's theme (a ``napari.utils.theme.Theme``)."""
        super().set_theme(theme)
        colors = {
            name: getattr(theme, name).as_hex() for name in ("background", "foreground", "primary", "text", "current")
        }
        link = "#7aa2ff" if theme.type == "dark" else "#1f4fd1"
        self.drop_zone.set_colors(colors["primary"], colors["current"], link)
        self.pose_view.set_colors(colors["background"], colors["foreground"])
        self.curves_view.set_colors(colors["background"], colors["text"], link)
        self._color_run_button()

    # ---- how it is made

    def _make_controls(self) -> None:
        self.out = QLineEdit(self)
        self.out.setObjectName("xrai-out")
        self.out.setPlaceholderText("named after the frames, in the current folder")
        self.out.setToolTip("Run folder: result, curves, checkpoint and maps are written here")
        self.look_button = QPushButton("Look at frames", self)
        self.look_button.setObjectName("xrai-look-at")
        self.look_button.setToolTip("Frames, mask, beam centre and hits, before any reconstruction")
        self.run_button = QPushButton("Start", self)
        self.run_button.setObjectName("xrai-run")
        self.run_button.setToolTip("Start, or stop and keep the best result so far")
        self.pause_button = QPushButton("Pause", self)
        self.pause_button.setObjectName("xrai-pause")
        self.progress = QProgressBar(self)
        self.progress.setObjectName("xrai-progress")
        self.progress.setRange(0, 1000)
        self.progress.setTextVisible(False)
        self.progress.setFixedHeight(8)
        self._pace = Words("xrai-pace", self)
        self.facts = Words("xrai-facts", self)
        self._view = QComboBox(self)
        self._view.setObjectName("xrai-view")
        self._view.addItems(["volume", "sections"])
        self._view.setToolTip("The intensity as a volume, or as three sections through q = 0 (fast without a GPU)")
        self._view.activated.connect(lambda index: self.view_changed.emit(VIEWS[index]))
        self._level = QSlider(Qt.Orientation.Horizontal, self)
        self._level.setObjectName("xrai-level")
        self._level.setRange(5, 95)
        self._level.setValue(round(100 * DEFAULT_LEVEL))
        self._level.setToolTip("Where the density's surface is drawn")
        self._level.valueChanged.connect(lambda _: self.level_changed.emit(self.level))
        self.show_progress(None, "")
        self.say_facts("")

    def _lay_out(self) -> None:
        """One column in a scroll area, so that it fits a small laptop."""
        settings = QCollapsible("Settings", expandedIcon="▾", collapsedIcon="▸")
        settings.setDuration(0)
        settings.layout().setContentsMargins(0, 0, 0, 0)
        settings.layout().setSpacing(0)
        settings.content().layout().setContentsMargins(0, 2, 0, 0)
        settings.addWidget(self.form)
        content = QWidget(self)
        column = Column(content)
        column.setContentsMargins(8, 6, 8, 6)
        column.setSpacing(5)
        for part in (
            self.drop_zone, self.stream_field, self.found_view,
            self.look_button, row(("Run folder", 0), (self.out, 1)), settings,
            row((self.run_button, 2), (self.pause_button, 1)), self._pace, self.progress, self.status, self.facts,
            self.after_run, row(("Intensity as", 0), (self._view, 0), ("Density level", 0), (self._level, 1)),
        ):  # fmt: skip
            column.addWidget(part) if isinstance(part, QWidget) else column.addLayout(part)
        column.addWidget(self.pose_view, 5)
        column.addWidget(self.curves_view, 4)
        self._scroll(content)

    def _color_run_button(self) -> None:
        strong = self.run_button.isEnabled() and self.run_button.property("state") == "idle"
        self._stand_out(self.run_button, strong)
