"""A visible napari with the panel docked, real input files, and an engine that has no physics."""

import gzip
from dataclasses import replace
from pathlib import Path

import pytest
from engine import GuiEngine
from qtpy.QtCore import QMimeData, QPoint, QPointF, Qt, QUrl
from qtpy.QtGui import QDragEnterEvent, QDropEvent
from qtpy.QtWidgets import QApplication, QLabel

from napari_xrai import session as session_module

DATA = Path(__file__).parents[1] / "data"


class NoPhasing:
    """The density is the intensity: no torch, no waiting."""

    density = outcome = None
    finished, starts = False, 0

    def is_due(self, elapsed_s):
        return True

    def update(self, snapshot):
        self.density = replace(snapshot.intensity, voxel_size=4.0, units="angstrom")

    def finish(self, snapshot, stopping):
        self.finished = True


@pytest.fixture
def tiny(tmp_path):
    """Fifty frames and their detector, as another program wrote them."""
    detector = tmp_path / "det_sim.h5"
    detector.write_bytes(gzip.decompress((DATA / "klh1_tiny" / "det_sim.h5.gz").read_bytes()))
    return DATA / "klh1_tiny" / "photons.emc", detector


@pytest.fixture
def engine(monkeypatch):
    """The engine that the next run gets; its density is its intensity."""
    toy = GuiEngine()
    monkeypatch.setattr(session_module, "make_reconstruction", lambda *_: toy)
    monkeypatch.setattr(session_module, "SNAPSHOT_EVERY_S", 0.1)

    monkeypatch.setattr(session_module, "LiveDensity", NoPhasing)
    return toy


@pytest.fixture
def viewer(make_napari_viewer, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    viewer = make_napari_viewer(show=True)
    viewer.window._qt_window.resize(1000, 700)
    return viewer


@pytest.fixture
def panel(viewer):
    _, panel = viewer.window.add_plugin_dock_widget("napari-xrai", "X-RAI Reconstruct")
    QApplication.processEvents()
    return panel


def drop(widget, *paths, taken=True):
    """Drag files over a widget and let them go, by the events that a real drag makes; napari does not say it took."""
    mime = QMimeData()
    mime.setUrls([QUrl.fromLocalFile(str(path)) for path in paths])
    buttons, keys, copy = Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier, Qt.DropAction.CopyAction
    center = widget.rect().center()
    enter = QDragEnterEvent(QPoint(center), copy, mime, buttons, keys)
    QApplication.sendEvent(widget, enter)
    assert enter.isAccepted()
    event = QDropEvent(QPointF(center), copy, mime, buttons, keys)
    QApplication.sendEvent(widget, event)
    assert event.isAccepted() == taken


def said(panel):
    return panel.findChild(QLabel, "xrai-status").text()
