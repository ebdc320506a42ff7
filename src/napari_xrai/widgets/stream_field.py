"""Where a stream's address is typed, and files are said to grow."""

from __future__ import annotations

from pydantic import ValidationError
from qtpy.QtCore import Signal
from qtpy.QtWidgets import QCheckBox, QHBoxLayout, QLineEdit, QWidget

from ..io.source import InputError
from ..settings import StreamSettings


class StreamField(QWidget):
    """One line: an address, or a tick for files and folders that are still being written.

    Signals
    -------
    edited
        What is here has changed.
    connect_asked
        Return was pressed behind an address.
    """

    edited = Signal()
    connect_asked = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._address = QLineEdit(self)
        self._address.setObjectName("xrai-stream")
        self._address.setPlaceholderText("or a stream: tcp://host:port")
        self._address.setToolTip("Address of a karabo-bridge server (others: see the guide); press Return to connect")
        self._follow = QCheckBox("files still grow", self)
        self._follow.setObjectName("xrai-follow")
        self._follow.setToolTip("Reconstruct while another program writes: one growing HDF5 file, or one folder")
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self._address, 1)
        row.addWidget(self._follow)
        self._address.textEdited.connect(lambda _: self.edited.emit())
        self._address.returnPressed.connect(self.connect_asked.emit)
        self._follow.toggled.connect(lambda _: self.edited.emit())

    @property
    def address(self) -> str | None:
        """What was typed, or None."""
        return self._address.text().strip() or None

    def settings(self) -> StreamSettings:
        """As the command line would give them.

        Raises
        ------
        InputError
            If the address makes no sense.
        """
        try:
            return StreamSettings(address=self.address, follow=self._follow.isChecked() and self.address is None)
        except ValidationError as error:
            raise InputError(f"{self.address} is no address of a stream: give tcp://host:port") from error
