"""The first look under real events: what is drawn, dragged, painted and handed to the run."""

import re
import time

import h5py
import numpy as np
import pytest
from conftest import drop, said
from qtpy.QtCore import QPoint, QPointF, Qt, QTimer
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication, QComboBox, QLabel, QProgressBar, QPushButton, QSpinBox, QWidget

from napari_xrai.contributions import open_look, open_panel, show_look, show_panel
from napari_xrai.core.detector import through_beam
from napari_xrai.core.frames import BAD, HC_EV_A
from napari_xrai.core.particle import builtin_particle
from napari_xrai.core.simulate import Preset, simulate
from napari_xrai.io.cxi_writer import CxiWriter
from napari_xrai.io.open import open_source
from napari_xrai.layers import KEY
from napari_xrai.widgets import look_job

LEFT = Qt.MouseButton.LeftButton


def part(look, kind, name):
    found = look.findChild(kind, f"xrai-look-{name}")
    assert found is not None
    return found


def text(look, name):
    return look.findChild(QLabel, f"xrai-look-{name}").text()


@pytest.fixture
def look(viewer):
    look = show_look(viewer)
    QApplication.processEvents()
    return look


def wait_until_looked(qtbot, look, frames):
    qtbot.waitUntil(lambda: look._look is not None and len(look._look) == frames, timeout=60_000)
    qtbot.waitUntil(lambda: part(look, QPushButton, "measure").text() == "Measure", timeout=60_000)


def kinds(viewer):
    return [layer.metadata[KEY] for layer in viewer.layers]


def layer(viewer, kind):
    return next(layer for layer in viewer.layers if layer.metadata[KEY] == kind)


def canvas(viewer, qtbot):
    qtbot.wait(150)
    return viewer.window.screenshot(canvas_only=True, flash=False)[..., :3].astype(int)


def changed(viewer, qtbot, before, measure, least):
    """What the canvas shows once it differs from `before`: on a busy machine a frame is read a moment later."""
    now = []
    qtbot.waitUntil(
        lambda: now.append(canvas(viewer, qtbot)) or measure(np.abs(now[-1] - before)) > least, timeout=30_000
    )
    return now[-1]


def drag(qtbot, widget, start, end):
    """Press, move and let go, by the events that a real mouse makes."""
    qtbot.mouseMove(widget, start)
    QTest.mousePress(widget, LEFT, pos=start)
    for share in (0.2, 0.5, 0.8, 1.0):
        QTest.mouseMove(widget, start + QPoint(*(round(share * d) for d in ((end - start).x(), (end - start).y()))))
        qtbot.wait(30)
    QTest.mouseRelease(widget, LEFT, pos=end)
    qtbot.wait(200)


def test_an_empty_look_invites_and_offers_nothing_it_cannot_do(look, viewer):
    assert "Drop frames here" in part(look, QWidget, "drop").findChild(QLabel).text()
    for name in ("measure", "mask", "centre", "find", "pan", "use"):
        assert not part(look, QPushButton, name).isEnabled()
    assert not look.status.isVisible()
    assert not part(look, QSpinBox, "threshold").isVisible()


def test_dropped_frames_are_seen_measured_and_scrubbed(qtbot, viewer, look, tiny):
    drop(part(look, QWidget, "drop"), *tiny)
    wait_until_looked(qtbot, look, 50)
    assert "50 frames · 4,096 pixels · wavelength not in these files" in text(look, "found")
    assert kinds(viewer) == ["patterns", "powder", "mask", "rings", "centre"]
    source = open_source(list(tiny))
    frames = source.read(np.arange(50))
    good = source.detector.mask != BAD
    assert look._look.powder.sum() == frames.dense()[:, good].sum()
    labels = layer(viewer, "rings").features["label"]
    assert [label for label in labels if label]
    assert all(label.endswith("voxels") for label in labels if label)

    first = canvas(viewer, qtbot)
    slider = viewer.window._qt_viewer.dims.slider_widgets[0].slider
    qtbot.mouseClick(slider, LEFT, pos=QPoint(slider.width() * 3 // 5, slider.height() // 2))
    moved = viewer.dims.current_step[0]
    assert moved > 0
    second = changed(viewer, qtbot, first, np.max, 50)
    shown = np.asarray(layer(viewer, "patterns")._data_view)
    assert np.nansum(shown) == frames.dense()[moved].sum()

    ticks = np.log10([0.2, 0.5, 1, 2, 3])
    named = {name: plot.getAxis("left").logTickStrings(ticks, 1, 1) for name, plot in look.plots.plots.items()}
    assert named["lit"] == named["photons"] == ["", "", "1", "2", ""]  # half a frame is none
    assert named["radial"] == ["0.2", "0.5", "1", "2", ""]

    contrast = part(look, QComboBox, "contrast")
    qtbot.keyClicks(contrast, "lin")
    contrast.activated.emit(contrast.currentIndex())
    changed(viewer, qtbot, second, np.max, 20)
    what = part(look, QComboBox, "shown")
    qtbot.keyClicks(what, "powder")
    what.activated.emit(what.currentIndex())
    changed(viewer, qtbot, second, np.mean, 2)
    assert not layer(viewer, "patterns").visible


def test_the_threshold_line_is_dragged_by_the_mouse(qtbot, viewer, look, tiny):
    look.load(tiny)
    wait_until_looked(qtbot, look, 50)
    assert "A suggestion" in text(look, "hits")
    qtbot.wait(300)  # the row of the threshold has come in and taken its room from the plot
    view = look.plots.plots["lit"]
    axis = view.getPlotItem().vb
    lit = np.sort(look._look.lit)
    target = int(lit[30])

    def at(x):
        middle = axis.viewRange()[1][1] * 0.5
        return view.mapFromScene(axis.mapViewToScene(QPointF(x, middle)))

    before = view.grab().toImage()
    drag(qtbot, view.viewport(), at(look.plots.threshold.value()), at(target))
    threshold = part(look, QSpinBox, "threshold").value()
    assert abs(threshold - target) <= 2
    hits = int((lit >= threshold).sum())
    assert f"{hits} of 50 frames" in text(look, "hits")
    assert view.grab().toImage() != before
    qtbot.mouseClick(part(look, QPushButton, "next"), LEFT)
    assert viewer.dims.current_step[0] in look._look.hits(threshold)
    assert part(look, QPushButton, "use").isEnabled()
    assert f"the {hits} hits" in part(look, QPushButton, "use").toolTip()


def canvas_point(viewer, row, column):
    """Where a point of the picture is on the canvas."""
    camera, (height, width) = viewer.scene.camera, viewer.canvas.size
    _, y0, x0 = camera.center
    return QPoint(round(width / 2 + (column - x0) * camera.zoom), round(height / 2 + (row - y0) * camera.zoom))


def test_mask_and_centre_made_by_the_mouse_reach_the_run(qtbot, viewer, look, tiny, tmp_path):
    look.load(tiny)
    wait_until_looked(qtbot, look, 50)
    glass = viewer.window._qt_viewer.canvas.native
    own = open_source(list(tiny)).detector

    qtbot.mouseClick(part(look, QPushButton, "mask"), LEFT)
    drag(qtbot, glass, canvas_point(viewer, 12, 20), canvas_point(viewer, 12, 40))
    assert (layer(viewer, "mask").data[12, 20:40] == BAD).all()
    qtbot.waitUntil(lambda: part(look, QPushButton, "use").isEnabled(), timeout=30_000)

    start = layer(viewer, "centre").data[0].copy()
    rings = layer(viewer, "rings").data[0].mean(axis=0)
    qtbot.mouseClick(part(look, QPushButton, "centre"), LEFT)
    drag(qtbot, glass, canvas_point(viewer, *start), canvas_point(viewer, start[0] - 5, start[1] + 3))
    qtbot.waitUntil(lambda: "Beam centre moved" in text(look, "status"), timeout=30_000)
    end = layer(viewer, "centre").data[0]
    np.testing.assert_allclose(end - start, [-5, 3], atol=1)
    np.testing.assert_allclose(layer(viewer, "rings").data[0].mean(axis=0) - rings, end - start, atol=1e-4)
    assert "right and" in text(look, "status")

    tip = part(look, QPushButton, "use").toolTip()
    assert "the painted mask and the moved beam centre" in tip
    qtbot.mouseClick(part(look, QPushButton, "use"), LEFT)
    panel = open_panel(viewer)
    qtbot.waitUntil(lambda: said(panel) == "Ready: press Start.", timeout=30_000)
    given = panel._settings().input
    run = open_source(given.sources, detector=given.detector, mask=given.mask)
    assert ((run.detector.mask == BAD) & (own.mask != BAD)).sum() >= 20
    # one voxel is one pixel beside the beam: all q move by what the beam moved
    shift = np.median(run.detector.q[:, :2] - own.q[:, :2], axis=0)
    np.testing.assert_allclose(shift, [3, -5], atol=1.2)
    use = part(look, QPushButton, "use")  # the look follows what the panel has
    qtbot.waitUntil(lambda: look._look is not None and not use.isEnabled(), timeout=30_000)
    np.testing.assert_allclose(layer(viewer, "centre").data[0], end, atol=1e-3)
    assert f"{given.mask.name}" in part(look, QWidget, "drop").findChild(QLabel).text()


def test_the_centre_is_found_drawn_and_told_in_pixels(qtbot, viewer, look, tmp_path):
    preset = Preset((48, 48), 1.6e-3, 0.3, HC_EV_A / 4.0, stop_radius_px=3.0, photons=2000)
    true, _, batches = simulate(builtin_particle("demo"), preset, n_frames=600, seed=3)
    pitch = 1.6e-3 / 0.3
    beside = through_beam(true, np.array([2.0, -3.0]) * pitch)
    with CxiWriter(tmp_path / "beside.cxi", beside, distance_m=0.3, polarization="x") as out:
        for batch in batches:
            out.write(batch)
    find = part(look, QPushButton, "find")
    assert not find.isEnabled()
    look.load([tmp_path / "beside.cxi"])
    wait_until_looked(qtbot, look, 600)
    given = layer(viewer, "centre").data[0].copy()
    qtbot.mouseClick(find, LEFT)
    assert not find.isEnabled()
    qtbot.waitUntil(lambda: "was found" in text(look, "status"), timeout=60_000)
    right, up = re.search(r"found ([\d.]+) pixels right and ([\d.]+) up from", text(look, "status")).groups()
    assert (float(right), float(up)) == pytest.approx((2.0, 3.0), abs=0.3)
    found = layer(viewer, "centre").data[0].copy()
    np.testing.assert_allclose(found - given, [-3, 2], atol=0.3)
    np.testing.assert_allclose(layer(viewer, "rings").data[0].mean(axis=0), found, atol=1e-3)
    assert "the moved beam centre" in part(look, QPushButton, "use").toolTip()
    qtbot.waitUntil(find.isEnabled, timeout=1000)
    qtbot.wait(200)  # the cross rests where it was found, and the words stay
    assert "was found" in text(look, "status")


def test_the_panel_opens_the_look_and_hands_it_its_files(qtbot, viewer, panel, tiny):
    button = panel.findChild(QPushButton, "xrai-look-at")
    assert not button.isEnabled()
    drop(panel.findChild(QWidget, "xrai-drop"), *tiny)
    qtbot.waitUntil(lambda: said(panel) == "Ready: press Start.", timeout=30_000)
    qtbot.mouseClick(button, LEFT)
    look = open_look(viewer)
    wait_until_looked(qtbot, look, 50)
    assert kinds(viewer).count("patterns") == 1
    panel.found_view._fields["energy_eV"].setText("2817.8")
    panel.found_view.edited.emit()  # supplied once, in the panel: the look's rings are in ångström then
    qtbot.waitUntil(lambda: any("Å" in x for x in layer(viewer, "rings").features["label"]), timeout=30_000)
    assert said(panel) == "Ready: press Start."


def test_measuring_shows_progress_can_be_stopped_and_does_not_block(qtbot, viewer, look, tmp_path, monkeypatch):
    path = tmp_path / "many.h5"
    counts = np.random.default_rng(0).poisson(0.05, (2000, 32, 32)).astype(np.uint16)
    with h5py.File(path, "w") as file:
        file["data"] = counts
    slow = look_job.take_first_look

    def slowly(*given):
        for known in slow(*given):
            time.sleep(0.15)
            yield known

    monkeypatch.setattr(look_job, "take_first_look", slowly)
    look.load([path])
    qtbot.waitUntil(lambda: look._look is not None, timeout=30_000)
    beats, timer = [], QTimer()
    timer.timeout.connect(lambda: beats.append(time.monotonic()))
    timer.start(20)
    bar = part(look, QProgressBar, "progress")
    qtbot.waitUntil(lambda: bar.isVisible() and bar.value() >= 200, timeout=30_000)
    assert bar.maximum() == 1000
    qtbot.mouseClick(part(look, QPushButton, "measure"), LEFT)
    qtbot.waitUntil(lambda: part(look, QPushButton, "measure").text() == "Measure", timeout=30_000)
    timer.stop()
    looked = len(look._look)
    assert 200 <= looked < 1000
    assert f"of {looked:,} frames looked at" in text(look, "hits")
    assert "2,000 in all" in text(look, "hits")
    assert np.median(np.diff(beats)) < 0.4
    assert "Drawn as stored" in text(look, "status")
    assert "centre" not in kinds(viewer)


def test_what_cannot_be_opened_is_an_error_in_words(qtbot, look, tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    look.load([tmp_path / "notes.txt"])
    qtbot.waitUntil(lambda: text(look, "status").startswith("Error:"), timeout=30_000)
    assert "notes.txt" in text(look, "status")


@pytest.mark.parametrize("show", [show_look, show_panel])
def test_h5_dropped_on_the_canvas_comes_here_without_a_question(qtbot, viewer, tiny, tmp_path, monkeypatch, show):
    dock = show(viewer)
    QApplication.processEvents()
    asked = []
    monkeypatch.setattr(type(viewer.window._qt_viewer), "_qt_open", lambda _, paths, **__: asked.append(paths))
    renamed = tmp_path / "frames.h5"
    renamed.write_bytes(tiny[0].read_bytes())
    drop(viewer.window._qt_viewer, renamed, tiny[1])
    name = "xrai-look-found" if show is show_look else "xrai-found"
    qtbot.waitUntil(lambda: "50 frames" in dock.findChild(QLabel, name).text(), timeout=30_000)
    assert asked == []
    np.save(tmp_path / "any.npy", np.zeros((3, 4)))
    drop(viewer.window._qt_viewer, tmp_path / "any.npy", taken=False)  # could be anything: napari's
    assert len(asked) == 1


def test_sample_data_of_a_few_frames_opens_the_look(qtbot, viewer):
    viewer.open_sample("napari-xrai", "few-frames")
    wait_until_looked(qtbot, open_look(viewer), 50)
    assert any("Å" in label for label in layer(viewer, "rings").features["label"])


def test_both_themes_and_a_closed_dock(qtbot, viewer, look, tiny):
    look.load(tiny)
    wait_until_looked(qtbot, look, 50)
    viewer.theme = "light"
    qtbot.wait(100)
    image = look.plots.plots["lit"].grab().toImage()
    assert image.pixelColor(2, 2).lightness() > 150
    viewer.window.remove_dock_widget(look.parent())
    qtbot.wait(50)
    assert open_look(viewer) is None
    viewer.theme = "dark"  # nobody listens any more
