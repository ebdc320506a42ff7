"""The curves of a run: resolution, half-set correlation and log-likelihood."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyqtgraph as pg
from qtpy.QtCore import QSize
from qtpy.QtWidgets import QHeaderView, QTableWidget, QTableWidgetItem, QTabWidget, QWidget

from ..layers import Curves

HALF_SET_CUT = 0.5
ROW_HEIGHT = 20


def still_plot(parent: QWidget) -> pg.PlotWidget:
    """A small plot that stays as it is drawn: no menu, no zoom."""
    plot = pg.PlotWidget(parent)
    plot.setMenuEnabled(False)
    plot.hideButtons()
    plot.setMouseEnabled(x=False, y=False)
    plot.getPlotItem().setContentsMargins(2, 6, 10, 2)
    return plot


def color_axes(plot: pg.PlotWidget, background: str, text: str) -> None:
    """Follow the theme."""
    plot.setBackground(background)
    for side in ("left", "bottom"):
        axis = plot.getAxis(side)
        axis.setPen(text)
        axis.setTextPen(text)


class CurvesView(QTabWidget):
    """Three plots and a table in tabs; it computes nothing."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName("xrai-curves")
        self.setDocumentMode(True)
        self.tabBar().setDrawBase(False)
        self._plots: dict[str, pg.PlotWidget] = {}
        self._lines: dict[str, pg.PlotDataItem] = {}
        for name, title, tip in (
            ("resolution", "Resolution", "Where two half-sets of the frames still agree (correlation 0.5)"),
            ("half_cc", "Half-sets", "Correlation of two half-sets of the frames on shells of |q|"),
            ("likelihood", "Likelihood", "Mean per frame: how well the volume explains the frames"),
        ):
            plot = still_plot(self)
            self._lines[name] = plot.plot([], [], connect="finite")
            self._plots[name] = plot
            self.setTabToolTip(self.addTab(plot, title), tip)
        self._cut = pg.InfiniteLine(
            HALF_SET_CUT, angle=0, label="0.5", labelOpts={"position": 0.04, "anchors": [(0, 1), (0, 1)]}
        )
        self._plots["half_cc"].addItem(self._cut)
        self._plots["half_cc"].setYRange(-0.05, 1.05, padding=0)
        self._facts = QTableWidget(0, 2, self)
        self._facts.setObjectName("xrai-chosen")
        self._facts.horizontalHeader().hide()
        self._facts.horizontalHeader().setStretchLastSection(True)
        self._facts.verticalHeader().hide()
        self._facts.verticalHeader().setMinimumSectionSize(ROW_HEIGHT)
        self._facts.verticalHeader().setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)  # long words wrap
        self._facts.setEditTriggers(QTableWidget.EditTrigger.NoEditTriggers)
        self._facts.setShowGrid(False)
        self.setTabToolTip(self.addTab(self._facts, "Chosen"), "What was chosen from the data")
        self._label_axes(calibrated=True)
        self.clear_curves()

    def sizeHint(self) -> QSize:  # noqa: D102
        return QSize(340, 165)

    def minimumSizeHint(self) -> QSize:  # noqa: D102
        return QSize(200, 150)

    def clear_curves(self) -> None:
        """Empty plots, for a new run."""
        for name in self._lines:
            self._draw(name, np.zeros(0), np.zeros(0))
        self.show_facts({})

    def show_curves(self, curves: Curves) -> None:
        """Draw the newest curves."""
        self._label_axes(curves.calibrated)
        seen = curves.frames_seen
        self._draw("resolution", seen, curves.resolution)
        self._draw("likelihood", seen, curves.log_likelihood)
        self._draw("half_cc", curves.q, curves.half_cc)

    def show_facts(self, facts: Mapping[str, str]) -> None:
        """What the engine chose from the data, a row each."""
        self._facts.setRowCount(len(facts))
        for row, fact in enumerate(facts.items()):
            for column, text in enumerate(fact):
                item = self._facts.item(row, column)
                if item is None:
                    self._facts.setItem(row, column, QTableWidgetItem(text))
                elif item.text() != text:
                    item.setText(text)
        self._facts.resizeColumnToContents(0)

    def set_colors(self, background: str, text: str, line: str) -> None:
        """Follow the theme."""
        for name, plot in self._plots.items():
            color_axes(plot, background, text)
            self._lines[name].setPen(pg.mkPen(line, width=2))
        self._cut.setPen(pg.mkPen(text, width=1, style=pg.QtCore.Qt.PenStyle.DashLine))
        self._cut.label.setColor(text)

    def _draw(self, name: str, x: np.ndarray, y: np.ndarray) -> None:
        there = int(np.isfinite(y).sum())
        # one point draws no line: mark it; without any, an axis from 0 to 1 would say something untrue
        self._lines[name].setData(x, y, symbol="o" if there == 1 else None, symbolSize=5)
        for side in ("left", "bottom"):
            self._plots[name].getAxis(side).setStyle(showValues=there > 0)

    def _label_axes(self, calibrated: bool) -> None:
        labels = {
            "resolution": ("resolution (Å)" if calibrated else "|q| (voxels)", "frames seen"),
            "half_cc": ("half-set CC", "q = 1/d (Å⁻¹)" if calibrated else "|q| (voxels)"),
            "likelihood": ("log-likelihood / frame", "frames seen"),
        }
        for name, (left, bottom) in labels.items():
            self._plots[name].setLabel("left", left)
            self._plots[name].setLabel("bottom", bottom)
            for side in ("left", "bottom"):
                self._plots[name].getAxis(side).enableAutoSIPrefix(False)
