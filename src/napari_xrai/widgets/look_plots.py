"""The small plots of the first look: hits, photons, radial average. They compute nothing."""

from __future__ import annotations

import numpy as np
import pyqtgraph as pg
from numpy.typing import NDArray
from qtpy.QtCore import QSize, Signal
from qtpy.QtWidgets import QTabWidget, QWidget

from ..first_look import decades, histogram
from .curves import color_axes, still_plot

LEAST = 0.5
"""An empty bin's height on a logarithmic axis of frames."""


NAMED = ("1", "2", "5")


class DecadeAxis(pg.AxisItem):
    """A logarithmic axis that says plain numbers, and not each of them; of a count none below 1."""

    def __init__(self, *, counts: bool) -> None:
        super().__init__("left")
        self._least = 1.0 if counts else 0.0
        self.setLogMode(False, True)

    def logTickStrings(self, values: list[float], scale: float, spacing: float) -> list[str]:  # noqa: D102
        numbers = (f"{10**value:,.6g}" if 10**value > 0.99 * self._least else "" for value in values)
        return [number if number.lstrip("0.,")[:1] in NAMED else "" for number in numbers]


class LookPlots(QTabWidget):
    """Three plots in tabs.

    Signals
    -------
    threshold_dragged : int
        The line that divides hits from the rest was moved there, in lit pixels.
    """

    threshold_dragged = Signal(int)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName("xrai-look-plots")
        self.setDocumentMode(True)
        self.tabBar().setDrawBase(False)
        self.plots: dict[str, pg.PlotWidget] = {}
        self._lines: dict[str, pg.PlotDataItem] = {}
        for name, title, tip in (
            ("lit", "Hits", "Lit pixels per frame: drag the line to where hits begin"),
            ("photons", "Photons", "Photons per frame, masked pixels left out"),
            ("radial", "Radial average", "Mean photons per pixel and frame on rings about the beam"),
        ):
            plot = self.plots[name] = still_plot(self)
            step = "center" if name != "radial" else None
            self._lines[name] = plot.plot([0.0, 1.0] if step else [], [0.0] if step else [], stepMode=step)
            plot.setAxisItems({"left": DecadeAxis(counts=name != "radial")})
            for side in ("left", "bottom"):
                plot.getAxis(side).enableAutoSIPrefix(False)
            self.setTabToolTip(self.addTab(plot, title), tip)
        self.threshold = pg.InfiniteLine(0, angle=90, movable=True)
        self.threshold.sigDragged.connect(lambda line: self.threshold_dragged.emit(round(line.value())))
        self.plots["lit"].addItem(self.threshold)
        self.plots["lit"].setObjectName("xrai-look-lit")
        self._label()
        self.clear_plots()

    def sizeHint(self) -> QSize:  # noqa: D102
        return QSize(340, 200)

    def minimumSizeHint(self) -> QSize:  # noqa: D102
        return QSize(200, 150)

    def clear_plots(self) -> None:
        """Empty axes: numbers on them would say something untrue."""
        for name in self._lines:
            self._set(name, np.zeros(0), np.zeros(0))
        self.threshold.setVisible(False)

    def show_frames(self, lit: NDArray[np.int64], photons: NDArray[np.int64]) -> None:
        """Histograms over the frames."""
        for name, values in (("lit", lit), ("photons", photons)):
            edges, counts = histogram(values)
            self._set(name, edges, decades(counts, LEAST))
        self.threshold.setVisible(len(lit) > 0)

    def show_radial(self, q: NDArray[np.float64], mean: NDArray[np.float64], calibrated: bool) -> None:
        """Radial average over q in Å⁻¹, or in detector voxels."""
        self._label(calibrated)
        self._set("radial", q, decades(mean))

    def set_threshold(self, lit: int) -> None:
        """Put the line there."""
        self.threshold.setValue(lit)

    def set_colors(self, background: str, text: str, line: str, accent: str) -> None:
        """Follow the theme."""
        for name, plot in self.plots.items():
            color_axes(plot, background, text)
            self._lines[name].setPen(pg.mkPen(line, width=2 if name == "radial" else 1))
            if name != "radial":
                self._lines[name].setFillLevel(float(np.log10(LEAST)))
                self._lines[name].setBrush(pg.mkBrush(line + "60"))
        self.threshold.setPen(pg.mkPen(accent, width=2))
        self.threshold.setHoverPen(pg.mkPen(accent, width=4))

    def _set(self, name: str, x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
        there = bool(np.isfinite(y).any())
        if name != "radial" and not there:
            x, y = np.array([0.0, 1.0]), np.zeros(1)  # steps have one edge more than heights
        self._lines[name].setData(x, y, connect="all" if name != "radial" else "finite")
        self._lines[name].setVisible(there)
        for side in ("left", "bottom"):
            self.plots[name].getAxis(side).setStyle(showValues=there)

    def _label(self, calibrated: bool = True) -> None:
        labels = {
            "lit": ("frames", "lit pixels"),
            "photons": ("frames", "photons"),
            "radial": ("photons / pixel / frame", "q = 1/d (Å⁻¹)" if calibrated else "|q| (detector voxels)"),
        }
        for name, (left, bottom) in labels.items():
            self.plots[name].setLabel("left", left)
            self.plots[name].setLabel("bottom", bottom)
