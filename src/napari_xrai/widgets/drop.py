"""The place where files are dropped, or picked with a click."""

from __future__ import annotations

from pathlib import Path

from qtpy.QtCore import QMimeData, QSize, Qt, Signal
from qtpy.QtGui import QDragEnterEvent, QDragLeaveEvent, QDropEvent, QKeyEvent, QMouseEvent
from qtpy.QtWidgets import QFileDialog, QFrame, QLabel, QVBoxLayout, QWidget

EMPTY = "<b>Drop frames, detector and mask here</b><br>CXI, Dragonfly, NeXus, HDF5, NumPy; or a run<br>{links}"
LOADED = "<b>{names}</b><br>drop more &nbsp;·&nbsp; {links}"
LINKS = (
    '<a style="color:{0}" href="files">Choose files…</a> &nbsp;·&nbsp; <a style="color:{0}" href="run">Run folder…</a>'
)


def local_paths(mime: QMimeData | None) -> list[Path]:
    """Files and folders of this machine in a drag."""
    if mime is None or not mime.hasUrls():
        return []
    return [Path(url.toLocalFile()) for url in mime.urls() if url.isLocalFile()]


class DropZone(QFrame):
    """Takes several files in one gesture, by drag and drop or by a click; says what it holds.

    It does not look into them: `dropped` is emitted with their paths.

    Parameters
    ----------
    name : str
        Qt object name.
    invitation, links : str
        Shown while it is empty; what can be clicked: ``files``, ``run``.
    """

    dropped = Signal(list)

    def __init__(
        self, parent: QWidget | None = None, *, name: str = "xrai-drop", invitation: str = EMPTY, links: str = LINKS
    ) -> None:
        super().__init__(parent)
        self.setObjectName(name)
        self._invitation, self._links = invitation, links
        self.setAcceptDrops(True)
        self.setCursor(Qt.CursorShape.PointingHandCursor)
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setAccessibleName("Drop frames, detector and mask here, or press Return to choose files")
        self._label = QLabel(self)
        self._label.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self._label.setWordWrap(True)
        self._label.linkActivated.connect(self._choose)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(8, 6, 8, 6)
        layout.addWidget(self._label)
        self._names = ""
        self.set_colors("#888888", "#888888", "#888888")

    def sizeHint(self) -> QSize:  # noqa: D102
        return QSize(340, 72)

    def show_files(self, names: str) -> None:
        """Say which files are here; an empty string brings the invitation back."""
        self._names = names
        links = self._links.format(self._link)
        self._label.setText(LOADED.format(names=names, links=links) if names else self._invitation.format(links=links))

    def set_colors(self, line: str, highlight: str, link: str) -> None:
        """Follow the theme: the frame's colour, at rest and while files are held over it, and that of links."""
        self._colors, self._link = (line, highlight), link
        self._hover(False)
        self.show_files(self._names)

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:  # noqa: D102
        if local_paths(event.mimeData()):
            event.acceptProposedAction()
            self._hover(True)

    def dragLeaveEvent(self, event: QDragLeaveEvent) -> None:  # noqa: D102
        self._hover(False)

    def dropEvent(self, event: QDropEvent) -> None:  # noqa: D102
        self._hover(False)
        paths = local_paths(event.mimeData())
        if paths:
            event.acceptProposedAction()
            self.dropped.emit(paths)

    def mouseReleaseEvent(self, event: QMouseEvent) -> None:  # noqa: D102
        if event.button() == Qt.MouseButton.LeftButton and self.rect().contains(event.position().toPoint()):
            self._choose("files")

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: D102
        if event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter, Qt.Key.Key_Space):
            self._choose("files")
        else:
            super().keyPressEvent(event)

    def _choose(self, what: str) -> None:
        """Open a file dialog; it does not block, and tells by `dropped`."""
        dialog = QFileDialog(self)
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        if what == "run":
            dialog.setWindowTitle("Open a run folder")
            dialog.setFileMode(QFileDialog.FileMode.Directory)
        else:
            dialog.setWindowTitle("Frames, detector, mask")
            dialog.setFileMode(QFileDialog.FileMode.ExistingFiles)
        dialog.filesSelected.connect(lambda names: self.dropped.emit([Path(name) for name in names]))
        dialog.open()

    def _hover(self, over: bool) -> None:
        line, highlight = self._colors
        style = f"2px solid {highlight}" if over else f"1px dashed {line}"
        self.setStyleSheet(f"#{self.objectName()} {{ border: {style}; border-radius: 6px; }}")
