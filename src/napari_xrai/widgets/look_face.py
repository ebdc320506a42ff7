"""What the first look looks like: its parts, their order, words and colours. It decides nothing."""

from __future__ import annotations

from typing import Any

from qtpy.QtCore import QSize, Signal
from qtpy.QtWidgets import (
    QButtonGroup,
    QComboBox,
    QLabel,
    QProgressBar,
    QPushButton,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)  # fmt: skip

from .dock import Dock, Tone, Words, row
from .drop import DropZone
from .look_layers import CONTRASTS, SHOWN
from .look_plots import LookPlots

INVITATION = "<b>Drop frames here to look at them</b><br>with their detector and mask, if these are apart<br>{links}"
LINKS = '<a style="color:{0}" href="files">Choose files…</a>'
TOOLS = {
    "pan": ("Pan", "Move and zoom the picture"),
    "mask": ("Paint mask", "Paint bad pixels with the mouse; label 1 is merged but not used for orientation, 0 erases"),
    "centre": ("Move centre", "Drag the cross to where the beam is: rings and radial average follow"),
}
DEFAULT_FRAMES = 1000
MOST_FRAMES = 2**31 - 1


class LookFace(Dock):
    """The parts.

    Signals
    -------
    tool_chosen : str
        ``"pan"``, ``"mask"`` or ``"centre"``.
    """

    tool_chosen = Signal(str)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__("xrai-look", "xrai-look-status", parent)
        self.drop_zone = DropZone(self, name="xrai-look-drop", invitation=INVITATION, links=LINKS)
        self.found = Words("xrai-look-found", self)
        self.plots = LookPlots(self)
        self._make_controls()
        self._lay_out()

    def sizeHint(self) -> QSize:  # noqa: D102
        return QSize(370, 560)

    # ---- what is shown

    def say(self, words: str, tone: Tone = "info") -> None:
        """The one line (or few) in which the look speaks; none while it has nothing to say."""
        super().say(words, tone)
        self.status.setVisible(bool(words))

    def show_state(
        self, *, frames: int, measuring: bool, picture: bool, centre: bool, hits: bool, carries: str
    ) -> None:
        """Controls for this state.

        Parameters
        ----------
        frames : int
            There are.
        measuring : bool
        picture, centre : bool
            Whether there is something to paint on, and a beam centre to move.
        hits : bool
            Whether there are some to find the centre from, and nobody does.
        carries : str
            What the run would get; empty for nothing.
        """
        self.wanted.setEnabled(bool(frames) and not measuring)
        self._of.setText(f"of {frames:,} frames" if frames else "frames")
        self.measure_button.setText("Stop" if measuring else "Measure")
        self.measure_button.setEnabled(bool(frames))
        for name, button in self.tools.items():
            button.setEnabled(picture and (centre or name != "centre"))
        self.find_button.setEnabled(picture and centre and hits)
        for part in (self.shown, self.contrast):
            part.setEnabled(picture)
        self.use_button.setEnabled(bool(carries))
        nothing = "Nothing to hand over yet: paint a mask, move the centre, or measure all frames and choose the hits"
        self.use_button.setToolTip(f"Reconstruct with {carries}" if carries else nothing)
        self._stand_out(self.use_button, self.use_button.isEnabled())

    def show_progress(self, done: int, of: int) -> None:
        """So many frames are read."""
        self.progress.setVisible(of > 0 and done < of)
        self.progress.setMaximum(max(of, 1))
        self.progress.setValue(done)

    def show_hits(self, words: str, threshold: int | None) -> None:
        """How many frames are hits; None hides the row."""
        for part in (self.threshold, self._from, self.previous, self.next, self.hits):
            part.setVisible(threshold is not None)
        self.hits.setText(words)
        if threshold is not None:
            self.threshold.blockSignals(True)
            self.threshold.setValue(threshold)
            self.threshold.blockSignals(False)

    def set_theme(self, theme: Any) -> None:
        """Follow napari's theme (a ``napari.utils.theme.Theme``)."""
        super().set_theme(theme)
        dark = theme.type == "dark"
        link = "#7aa2ff" if dark else "#1f4fd1"
        self.drop_zone.set_colors(theme.primary.as_hex(), theme.current.as_hex(), link)
        self.plots.set_colors(
            theme.background.as_hex(), theme.text.as_hex(), link, "#ffb454" if dark else "#c2410c"
        )  # fmt: skip
        self._stand_out(self.use_button, self.use_button.isEnabled())

    # ---- how it is made

    def _make_controls(self) -> None:
        self.shown = _choice("xrai-look-shown", SHOWN, "What is on the canvas")
        self.contrast = _choice("xrai-look-contrast", CONTRASTS, "How photons become brightness; values stay photons")
        self.contrast.setCurrentText("gamma")
        self.tools: dict[str, QPushButton] = {}
        self._tool_group = QButtonGroup(self)
        for name, (text, tip) in TOOLS.items():
            button = self.tools[name] = _button(f"xrai-look-{name}", text, tip)
            button.setCheckable(True)
            button.setChecked(name == "pan")
            button.clicked.connect(lambda _=False, name=name: self.tool_chosen.emit(name))
            self._tool_group.addButton(button)
        self.find_button = _button(
            "xrai-look-find",
            "Find centre",
            "Put the cross where photons of the hits mirror, as a run does",
        )
        self.wanted = QSpinBox(self)
        self.wanted.setObjectName("xrai-look-wanted")
        self.wanted.setRange(1, MOST_FRAMES)
        self.wanted.setValue(DEFAULT_FRAMES)
        self.wanted.setGroupSeparatorShown(True)
        self.wanted.setMinimumWidth(104)
        self.wanted.setToolTip("Frames to look at, spread over all of them")
        self._of = QLabel("frames", self)
        self.measure_button = _button("xrai-look-measure", "Measure", "Sum these frames: powder, photons, lit pixels")
        self.progress = QProgressBar(self)
        self.progress.setObjectName("xrai-look-progress")
        self.progress.setTextVisible(False)
        self.progress.setFixedHeight(8)
        self._from = QLabel("Hits have at least", self)
        self.threshold = QSpinBox(self)
        self.threshold.setObjectName("xrai-look-threshold")
        self.threshold.setRange(0, MOST_FRAMES)
        self.threshold.setSuffix(" lit pixels")
        self.threshold.setKeyboardTracking(False)
        self.previous = _button("xrai-look-previous", "◂", "Show the hit before this frame")
        self.next = _button("xrai-look-next", "▸", "Show the hit after this frame")
        for button in (self.previous, self.next):
            button.setFixedWidth(28)
        self.hits = Words("xrai-look-hits", self)
        self.use_button = _button("xrai-look-use", "Use for the run", "")

    def _lay_out(self) -> None:
        content = QWidget(self)
        column = QVBoxLayout(content)
        column.setContentsMargins(8, 6, 8, 6)
        column.setSpacing(6)
        column.addWidget(self.drop_zone)
        column.addWidget(self.found)
        column.addLayout(row("Show", (self.shown, 1), "Contrast", (self.contrast, 1)))
        column.addLayout(row(*((button, 1) for button in (*self.tools.values(), self.find_button))))
        column.addLayout(row("Look at", (self.wanted, 2), (self._of, 0), (self.measure_button, 1)))
        column.addWidget(self.progress)
        column.addWidget(self.plots, 1)
        column.addLayout(row((self._from, 0), (self.threshold, 1), (self.previous, 0), (self.next, 0)))
        column.addWidget(self.hits)
        column.addWidget(self.use_button)
        column.addWidget(self.status)
        self._scroll(content)


def _button(name: str, text: str, tip: str) -> QPushButton:
    button = QPushButton(text)
    button.setObjectName(name)
    button.setToolTip(tip)
    return button


def _choice(name: str, choices: tuple[str, ...], tip: str) -> QComboBox:
    box = QComboBox()
    box.setObjectName(name)
    box.addItems(choices)
    box.setToolTip(tip)
    return box
