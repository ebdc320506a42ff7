"""What can be done with a run that is there: a page about it, and phasing from more starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qtpy.QtCore import QUrl, Signal
from qtpy.QtGui import QDesktopServices
from qtpy.QtWidgets import QHBoxLayout, QPushButton, QWidget
from superqt.utils import create_worker

from ..io.source import InputError

FIRST_STARTS = 20
"""By the first press of "Phase again"; twice as many by each further one."""


class AfterRun(QWidget):
    """Two buttons, each alive only where it can do something; its tooltip says why it cannot.

    Signals
    -------
    phase_asked : int
        Phase the run again, from so many starts.
    said : (str, str)
        Words for the status line, and their tone.
    """

    phase_asked = Signal(int)
    said = Signal(str, str)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName("xrai-after-run")
        self._run: Path | None = None
        self._starts = FIRST_STARTS
        self._writing = False
        self.phase_button = QPushButton("Phase again", self)
        self.phase_button.setObjectName("xrai-phase")
        self.phase_button.clicked.connect(lambda: self.phase_asked.emit(self._starts))
        self.report_button = QPushButton("Report", self)
        self.report_button.setObjectName("xrai-report")
        self.report_button.clicked.connect(self._write)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(6)
        layout.addWidget(self.phase_button, 1)
        layout.addWidget(self.report_button, 1)
        self.show_run(None)

    def show_run(self, run: Path | None, *, busy: bool = False, tried: int = 0) -> None:
        """Offer what can be done with this run.

        Parameters
        ----------
        run : Path or None
            None while there is none with a result.
        busy : bool
            Whether it is being reconstructed or phased just now.
        tried : int
            Phasing starts compared so far.
        """
        self._run = run
        self._starts = max(FIRST_STARTS, 2 * tried)
        self.report_button.setEnabled(run is not None and not self._writing)
        self.phase_button.setEnabled(run is not None and not busy)
        nothing = "Nothing yet: this run folder holds no result"
        page = "Write one page about this run, for the logbook, and show it in the browser"
        again = f"Phase this run's intensity from {self._starts} starts, and keep what they agree on"
        if busy:
            again = "Not while this run is at work: press Stop first, or wait"
        self.report_button.setToolTip(nothing if run is None else page)
        self.phase_button.setToolTip(nothing if run is None else again)

    def _write(self) -> None:
        if self._run is None or self._writing:
            return
        self._writing = True
        self.report_button.setEnabled(False)
        worker = create_worker(_write_report, self._run, _start_thread=False, _ignore_errors=True)
        worker.returned.connect(self._on_written)
        worker.errored.connect(self._on_not_written)
        worker.start()

    def _on_written(self, page: Path) -> None:
        self._writing = False
        self.report_button.setEnabled(True)
        shown = QDesktopServices.openUrl(QUrl.fromLocalFile(str(page.resolve())))
        self.said.emit(f"Report written: {page}" + ("" if shown else " (no browser could be opened)"), "info")

    def _on_not_written(self, error: Exception) -> None:
        self._writing = False
        self.report_button.setEnabled(True)
        known = isinstance(error, InputError)
        self.said.emit(str(error) if known else f"{type(error).__name__}: {error}", "error")


def _write_report(run: Path) -> Any:
    from ..report import write_report

    return write_report(run)
