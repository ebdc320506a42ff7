"""Files of ours that are dropped on napari's canvas come to the dock that is open, without a question."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtCore import QEvent, QObject, Qt
from qtpy.QtWidgets import QWidget

from ..contributions import get_reader, open_look, open_panel
from .drop import local_paths

if TYPE_CHECKING:
    from napari.viewer import Viewer

TAKERS = ("QtViewer", "QtWelcomeWidget")
"""Napari's widgets that take drops on the canvas."""


class CanvasDrops(QObject):
    """Takes such drops before napari asks which reader to use, as it does of every ``.h5``; goes with its dock.

    Only what can only be meant for X-RAI, by content; and not with Shift or Alt, which ask napari for a choice.
    """

    def __init__(self, dock: QWidget, viewer: Viewer) -> None:
        super().__init__(dock)
        self._viewer = viewer

    def watch(self, window: QWidget) -> None:
        """Hear of drops in this window (to Qt, hearing twice is hearing once)."""
        for widget in window.findChildren(QWidget):
            if type(widget).__name__ in TAKERS:
                widget.installEventFilter(self)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:  # noqa: D102
        if event.type() != QEvent.Type.Drop or event.modifiers() != Qt.KeyboardModifier.NoModifier:
            return False
        paths = local_paths(event.mimeData())
        dock = open_panel(self._viewer) or open_look(self._viewer)
        if dock is None or not paths or get_reader([str(path) for path in paths]) is None:
            return False
        event.acceptProposedAction()
        dock.load(paths)
        return True
