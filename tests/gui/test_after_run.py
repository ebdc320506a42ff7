"""Report and phasing of the run in the panel, by the mouse; the window answers meanwhile."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import drop, said
from qtpy.QtCore import Qt, QTimer
from qtpy.QtGui import QDesktopServices
from qtpy.QtWidgets import QPushButton, QWidget

from napari_xrai.layers import KEY
from napari_xrai.run import RunFolder, read_run
from napari_xrai.settings import Settings

LEFT = Qt.MouseButton.LeftButton


def button(panel, name):
    return panel.findChild(QPushButton, f"xrai-{name}")


@pytest.fixture
def opened(monkeypatch):
    """What would have been shown in the browser."""
    urls = []
    monkeypatch.setattr(QDesktopServices, "openUrl", lambda url: urls.append(Path(url.toLocalFile())) or True)
    return urls


@pytest.fixture
def saved(engine, tmp_path):
    """A finished run of the engine, with a density from nowhere."""
    engine.done = engine.steps
    snapshot = engine.snapshot()
    snapshot = replace(snapshot, density=replace(snapshot.intensity, voxel_size=4.0, units="angstrom"))
    folder = RunFolder(tmp_path / "saved")
    folder.start(Settings())
    folder.write_result(snapshot, "frames.cxi", poses=True)
    folder.write_maps(snapshot)
    return folder.path


def give(qtbot, panel, run):
    drop(panel.findChild(QWidget, "xrai-drop"), run)
    qtbot.waitUntil(lambda: button(panel, "phase").isEnabled(), timeout=30_000)
    qtbot.waitUntil(lambda: panel.result_layers.find("density") is not None, timeout=30_000)


def test_nothing_to_report_is_said_where_the_mouse_rests(panel):
    for name in ("phase", "report"):
        assert not button(panel, name).isEnabled()
        assert "no result" in button(panel, name).toolTip()
        assert button(panel, name).isVisible()


def test_a_report_is_written_and_shown_while_the_run_goes_on(qtbot, panel, tiny, engine, opened, monkeypatch):
    monkeypatch.setattr("napari_xrai.session.REPORT_EVERY_S", 0.2)
    engine.steps = 10_000
    drop(panel.findChild(QWidget, "xrai-drop"), *tiny)
    qtbot.waitUntil(lambda: said(panel) == "Ready: press Start.", timeout=30_000)
    qtbot.mouseClick(button(panel, "run"), LEFT)
    qtbot.waitUntil(lambda: button(panel, "report").isEnabled(), timeout=30_000)
    assert not button(panel, "phase").isEnabled()
    assert "press Stop first" in button(panel, "phase").toolTip()
    qtbot.mouseClick(button(panel, "report"), LEFT)
    qtbot.waitUntil(lambda: len(opened) == 1, timeout=30_000)
    assert opened[0] == Path(panel.out.text()).resolve() / "report.html"
    assert "still running" in opened[0].read_text()
    assert panel.state == "running"
    qtbot.mouseClick(button(panel, "run"), LEFT)
    qtbot.waitUntil(lambda: panel.state == "idle", timeout=30_000)
    assert button(panel, "phase").isEnabled()


def test_phasing_again_renews_the_density_and_the_window_answers(qtbot, viewer, panel, saved):
    give(qtbot, panel, saved)
    before = panel.result_layers.find("density").data[0]
    beats, timer = [], QTimer()
    timer.timeout.connect(lambda: beats.append(time.monotonic()))
    timer.start(10)
    qtbot.mouseClick(button(panel, "phase"), LEFT)
    assert panel.state == "running"
    assert not button(panel, "pause").isEnabled()
    qtbot.waitUntil(lambda: panel.state == "idle", timeout=60_000)
    timer.stop()
    assert np.percentile(np.diff(beats), 95) < 0.5
    snapshot = read_run(saved).snapshot
    assert snapshot.phasing.starts == 20
    assert said(panel).startswith("Density")
    assert "of 20 starts agree" in said(panel)
    assert not np.array_equal(panel.result_layers.find("density").data[0], before)
    assert "40 starts" in button(panel, "phase").toolTip()


def test_a_density_that_is_not_determined_leaves_the_screen(qtbot, viewer, panel, saved):
    give(qtbot, panel, saved)
    snapshot = read_run(saved).snapshot
    noise = np.random.default_rng(0).exponential(size=snapshot.intensity.data.shape).astype(np.float32)
    RunFolder(saved).write_result(
        replace(snapshot, intensity=replace(snapshot.intensity, data=noise)), "frames.cxi", poses=True
    )
    qtbot.mouseClick(button(panel, "phase"), LEFT)
    qtbot.waitUntil(lambda: panel.state == "idle", timeout=60_000)
    assert said(panel).startswith("No density: no two of 20 starts agree")
    assert [layer for layer in viewer.layers if layer.metadata.get(KEY) == "density"] == []


def test_stopped_phasing_leaves_the_run_as_it_was(qtbot, panel, saved):
    give(qtbot, panel, saved)
    before = (saved / "reconstruction.h5").read_bytes()
    panel.phase(100_000)
    qtbot.waitUntil(lambda: panel._job.done > 1, timeout=30_000)
    qtbot.mouseClick(button(panel, "run"), LEFT)
    qtbot.waitUntil(lambda: panel.state == "idle", timeout=30_000)
    assert "the run is as it was" in said(panel)
    assert (saved / "reconstruction.h5").read_bytes() == before
    assert button(panel, "phase").isEnabled()


def test_what_cannot_be_phased_is_an_error_in_words(qtbot, panel, saved):
    give(qtbot, panel, saved)
    snapshot = read_run(saved).snapshot
    flat = replace(snapshot.intensity, data=np.ones_like(snapshot.intensity.data))
    RunFolder(saved).write_result(replace(snapshot, intensity=flat), "frames.cxi", poses=True)
    qtbot.mouseClick(button(panel, "phase"), LEFT)
    qtbot.waitUntil(lambda: said(panel).startswith("Error:"), timeout=30_000)
    assert "empty or constant" in said(panel)
    assert panel.state == "idle"


def test_closing_the_window_ends_phasing(qtbot, viewer, panel, saved):
    give(qtbot, panel, saved)
    panel.phase(100_000)
    job = panel._job
    qtbot.waitUntil(lambda: job.done > 1, timeout=30_000)
    viewer.close()
    assert job.finished.is_set()
    assert read_run(saved).snapshot.phasing is None
