"""What every dock of ours has: one scrolling column, one voice, drops anywhere on it, and napari's colours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from qtpy.QtCore import QSize, Qt
from qtpy.QtGui import QDragEnterEvent, QDropEvent, QResizeEvent
from qtpy.QtWidgets import (
    QFrame,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QScrollArea,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from .drop import local_paths

if TYPE_CHECKING:
    from napari.viewer import Viewer

Tone = Literal["info", "good", "warning", "error"]
BREAK = "\u200b"
"""Where a long path may wrap."""


class Words(QLabel):
    """A label that wraps, long paths too, and never widens the dock."""

    def __init__(self, name: str, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName(name)
        self.setWordWrap(True)
        self.setTextFormat(Qt.TextFormat.PlainText)
        self.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Minimum)

    def sizeHint(self) -> QSize:  # noqa: D102
        hint = super().sizeHint()
        return QSize(hint.width(), self.heightForWidth(self.width())) if self.isVisible() else hint

    def minimumSizeHint(self) -> QSize:  # noqa: D102
        return QSize(0, self.sizeHint().height())

    def resizeEvent(self, event: QResizeEvent) -> None:  # noqa: D102
        super().resizeEvent(event)
        if event.size().width() != event.oldSize().width():
            self.updateGeometry()

    def setText(self, text: str) -> None:  # noqa: D102
        for sign in "/_":
            text = text.replace(sign, sign + BREAK)
        super().setText(text)

    def text(self) -> str:  # noqa: D102
        return str(super().text()).replace(BREAK, "")


class Column(QVBoxLayout):
    """Parts below each other that may shrink to their least height before they get a scroll bar.

    Words that wrap would make Qt ask for the height that all parts like best.
    """

    def hasHeightForWidth(self) -> bool:  # noqa: D102
        return False


class Dock(QWidget):
    """A dock widget; what it loads and shows is its subclasses'.

    Parameters
    ----------
    name : str
        Object name of the dock.
    status : str
        Object name of the status line.
    """

    viewer: Viewer

    def __init__(self, name: str, status: str, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName(name)
        self.setAcceptDrops(True)
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Expanding)
        self.status = Words(status, self)
        self._tone: Tone = "info"
        self._theme: Any = None

    def load(self, paths: Sequence[Path | str]) -> None:
        """Take dropped files."""
        raise NotImplementedError

    def set_theme(self, theme: Any) -> None:
        """Follow napari's theme (a ``napari.utils.theme.Theme``)."""
        self._theme = theme
        self._color_status()

    def say(self, words: str, tone: Tone = "info") -> None:
        """The one line (or few) in which the dock speaks."""
        self._tone = tone
        self.status.setText(f"Error: {words}" if tone == "error" else words)
        self.status.setProperty("tone", tone)
        self._color_status()

    def _color_status(self) -> None:
        if self._theme is None:
            return
        bad, good = ("#ff7b72", "#3fb950") if self._theme.type == "dark" else ("#c4281c", "#1a7f37")
        color = {"error": bad, "good": good, "warning": self._theme.warning.as_hex()}.get(self._tone)
        self.status.setStyleSheet(f"color: {color or self._theme.text.as_hex()};")

    def _stand_out(self, button: QPushButton, strong: bool) -> None:
        """The one thing to press is seen to be it, or no longer."""
        if self._theme is None:
            return
        accent = self._theme.current.as_hex() if self._theme.type == "dark" else "#2f57d0"
        button.setStyleSheet(f"background-color: {accent}; font-weight: bold; color: white;" if strong else "")

    def _scroll(self, content: QWidget) -> None:
        """Show `content` in a scroll area, so that it fits a small laptop."""
        scroll = QScrollArea(self)
        scroll.setFrameShape(QFrame.Shape.NoFrame)
        scroll.setWidgetResizable(True)
        scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        scroll.setWidget(content)
        whole = QVBoxLayout(self)
        whole.setContentsMargins(0, 0, 0, 0)
        whole.addWidget(scroll)
        self.setMinimumWidth(320)

    def _follow_theme(self, _event: object = None) -> None:
        from napari.utils.theme import get_theme

        self.set_theme(get_theme(self.viewer.theme))

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:  # noqa: D102
        if local_paths(event.mimeData()):
            event.acceptProposedAction()

    def dropEvent(self, event: QDropEvent) -> None:  # noqa: D102
        paths = local_paths(event.mimeData())
        if paths:
            event.acceptProposedAction()
            self.load(paths)


def row(*parts: tuple[QWidget | str, int] | str) -> QHBoxLayout:
    """Widgets (or words) side by side, each with its stretch; bare words take what they need."""
    line = QHBoxLayout()
    line.setSpacing(6)
    for part in parts:
        what, stretch = (part, 0) if isinstance(part, str) else part
        line.addWidget(QLabel(what) if isinstance(what, str) else what, stretch)
    return line
