"""The panel under real events: files dropped, buttons clicked, windows closed; what is drawn is looked at."""

import gc
import shutil
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
from conftest import drop, said
from napari.utils.theme import get_theme
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QApplication, QComboBox, QLabel, QLineEdit, QProgressBar, QPushButton, QWidget

from napari_xrai.io.open import open_source
from napari_xrai.layers import KEY
from napari_xrai.remembered import remember
from napari_xrai.run import RunFolder, read_run
from napari_xrai.settings import InputSettings, Settings
from napari_xrai.widgets import panel as panel_module

LEFT = Qt.MouseButton.LeftButton


def part(panel, kind, name):
    found = panel.findChild(kind, f"xrai-{name}")
    assert found is not None
    return found


def load(qtbot, panel, *paths):
    drop(part(panel, QWidget, "drop"), *paths)
    qtbot.waitUntil(lambda: said(panel) == "Ready: press Start.", timeout=30_000)


def start(qtbot, panel, paths):
    load(qtbot, panel, *paths)
    qtbot.mouseClick(part(panel, QPushButton, "run"), LEFT)
    assert panel.state == "running"


def wait_for_volume(qtbot, viewer):
    qtbot.waitUntil(lambda: any(x.metadata.get(KEY) == "intensity" for x in viewer.layers), timeout=60_000)


def wait_until_idle(qtbot, panel):
    qtbot.waitUntil(lambda: panel.state == "idle", timeout=60_000)


def colors_in(image):
    return len(np.unique(np.asarray(image)[..., :3].reshape(-1, 3), axis=0))


def canvas(viewer):
    return viewer.window.screenshot(canvas_only=True, flash=False)


def grab(widget):
    image = widget.grab().toImage()
    image = image.convertToFormat(image.Format.Format_RGBA8888)
    pixels = image.bits().asarray(image.sizeInBytes())
    return np.array(pixels, np.uint8).reshape(image.height(), image.bytesPerLine() // 4, 4)[:, : image.width()]


def is_complete(folder):
    folder = Path(folder)
    run = read_run(folder)
    return run.snapshot is not None and RunFolder(folder).read_checkpoint() is not None


def test_frames_and_detector_in_one_gesture(qtbot, viewer, panel, tiny):
    assert not part(panel, QPushButton, "run").isEnabled()
    load(qtbot, panel, *reversed(tiny))
    found = part(panel, QLabel, "found").text()
    assert "50 frames" in found
    assert "4,096 pixels" in found
    assert "wavelength not in these files" in found
    energy = part(panel, QLineEdit, "energy_eV")
    assert energy.isVisible()
    assert part(panel, QPushButton, "run").isEnabled()
    assert part(panel, QLineEdit, "out").text().startswith("./photons_xrai_")
    (patterns,) = viewer.layers
    assert patterns.metadata[KEY] == "patterns"
    assert patterns.data.shape == (50, 64, 64)
    qtbot.keyClicks(energy, "2817.8")
    qtbot.keyClick(energy, Qt.Key.Key_Return)
    qtbot.waitUntil(lambda: "wavelength" not in part(panel, QLabel, "found").text(), timeout=30_000)
    assert energy.text() == "2817.8"


def test_numbers_that_no_file_holds_fit_the_dock_on_a_small_laptop(qtbot, viewer, panel, tiny):
    viewer.window._qt_window.resize(1366, 768)
    drop(part(panel, QWidget, "drop"), tiny[0])
    qtbot.waitUntil(lambda: said(panel) == "Not ready: it takes a geometry.", timeout=30_000)
    for name in ("energy_eV", "distance_m", "pixel_size_m"):
        field = part(panel, QLineEdit, name)
        assert field.isVisible()
        assert field.mapTo(panel, field.rect().bottomRight()).x() < panel.width() <= 400


def test_a_run_by_mouse_is_seen_and_saved(qtbot, viewer, panel, tiny, engine):
    run, progress = part(panel, QPushButton, "run"), part(panel, QProgressBar, "progress")
    assert run.property("state") == "idle"
    poses_before = colors_in(grab(part(panel, QWidget, "poses")))
    engine.steps = 150
    away = "3.65 pixels from where the geometry has it, (left, up) = (+3.03, -2.02) along the beam"
    engine.facts = {"beam centre": f"moved to where photons mirror, {away}"}
    start(qtbot, panel, tiny)
    assert run.property("state") == "running"
    wait_for_volume(qtbot, viewer)
    qtbot.waitUntil(lambda: "pass" in progress.text() and "frames/s" in progress.text(), timeout=30_000)
    qtbot.waitUntil(lambda: colors_in(canvas(viewer)) > 50, timeout=30_000)
    first = canvas(viewer)
    wait_until_idle(qtbot, panel)
    assert {layer.metadata[KEY] for layer in viewer.layers} == {"patterns", "intensity", "slices", "density"}
    assert not next(x for x in viewer.layers if x.metadata[KEY] == "patterns").visible
    assert viewer.dims.ndisplay == 3
    qtbot.wait(300)
    assert np.abs(canvas(viewer).astype(int) - first).max() > 30
    assert colors_in(grab(part(panel, QWidget, "poses"))) > poses_before + 20
    assert said(panel).startswith("Converged at 20 Å")
    assert "beam centre moved to where photons mirror, 3.65 pixels" in panel.facts.text()
    assert is_complete(panel.out.text())
    qtbot.mouseClick(run, LEFT)  # again: another folder, nothing overwritten
    wait_until_idle(qtbot, panel)


def test_stop_keeps_the_best_and_continue_goes_on(qtbot, viewer, panel, tiny, engine):
    engine.steps, engine.step_s = 400, 0.02
    start(qtbot, panel, tiny)
    wait_for_volume(qtbot, viewer)
    pause = part(panel, QPushButton, "pause")
    qtbot.mouseClick(pause, LEFT)
    qtbot.waitUntil(lambda: "paused" in part(panel, QProgressBar, "progress").text(), timeout=30_000)
    at = engine.done
    qtbot.wait(300)
    assert engine.done == at
    qtbot.mouseClick(pause, LEFT)
    qtbot.waitUntil(lambda: engine.done > at, timeout=30_000)
    qtbot.mouseClick(part(panel, QPushButton, "run"), LEFT)
    assert panel.run_button.property("state") == "stopping"
    wait_until_idle(qtbot, panel)
    assert engine.done < engine.steps
    assert "Saved in" in said(panel)
    assert is_complete(panel.out.text())
    assert pause.text() == "Continue"
    stopped, engine.done, engine.steps = engine.done, 0, engine.done + 5
    qtbot.mouseClick(pause, LEFT)
    wait_until_idle(qtbot, panel)
    assert read_run(Path(panel.out.text())).snapshot.progress.frames_seen == 50 * (stopped + 5)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "mat1 and mat2"),
        (MemoryError(), "out of memory: close other programs"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "out of memory"),
    ],
)
def test_engine_errors_reach_the_user(qtbot, panel, tiny, engine, error, words):
    engine.fail_at, engine.error = 3, error
    start(qtbot, panel, tiny)
    wait_until_idle(qtbot, panel)
    assert said(panel).startswith("Error:")
    assert words in said(panel).lower()
    assert panel.run_button.isEnabled()


def test_a_runtime_error_before_the_first_step_is_no_silence_either(qtbot, panel, tiny, monkeypatch):
    def broken(*_args, **_kwargs):
        raise RuntimeError("no such device")

    monkeypatch.setattr("napari_xrai.widgets.worker.open_session", broken)
    start(qtbot, panel, tiny)
    wait_until_idle(qtbot, panel)
    assert "no such device" in said(panel)


@pytest.mark.parametrize("how", ["dock button", "dock close", "remove", "window"])
def test_closing_ends_the_run_and_leaves_a_complete_checkpoint(qtbot, viewer, panel, tiny, engine, how):
    engine.steps = 10_000
    start(qtbot, panel, tiny)
    wait_for_volume(qtbot, viewer)
    out, dock = panel.out.text(), panel._dock()
    if how == "dock button":
        qtbot.mouseClick(dock.title.close_button, LEFT)
    elif how == "dock close":
        dock.close()
    elif how == "remove":
        viewer.window.remove_dock_widget(panel)
    else:
        viewer.close()
    assert engine.closed
    assert is_complete(out)


def test_a_tab_in_front_of_the_panel_ends_nothing(qtbot, viewer, panel, tiny, engine):
    engine.steps = 10_000
    start(qtbot, panel, tiny)
    wait_for_volume(qtbot, viewer)
    other = viewer.window.add_dock_widget(QWidget(), name="another")
    viewer.window._qt_window.tabifyDockWidget(panel._dock(), other)
    other.raise_()
    qtbot.wait(300)
    assert engine.done < engine.steps
    assert panel.state == "running"
    panel.stop()
    wait_until_idle(qtbot, panel)


@pytest.mark.parametrize("target", ["drop", "panel"])
def test_an_h5_drop_never_blocks(qtbot, viewer, panel, tiny, target):
    began = time.monotonic()
    drop(panel if target == "panel" else part(panel, QWidget, "drop"), tiny[1])
    assert time.monotonic() - began < 0.5
    qtbot.waitUntil(lambda: "drop the frames" in part(panel, QLabel, "found").text(), timeout=30_000)
    assert QApplication.activeModalWidget() is None


BAD = {
    "missing": ("no-such-file.emc", None, "no-such-file.emc"),
    "empty": ("empty.emc", b"", "empty"),
    "text": ("notes.emc", b"dear diary", "notes.emc"),
    "truncated": ("cut.emc", "cut", "cut.emc"),
    "absurd": ("absurd.emc", "absurd", "absurd.emc"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_told_in_words_and_the_window_lives(qtbot, viewer, panel, tiny, tmp_path, name):
    file, content, words = BAD[name]
    whole = tiny[0].read_bytes()
    if content == "cut":
        content = whole[: len(whole) // 2]
    elif content == "absurd":
        content = np.array([2**31 - 1, 2**31 - 1], np.int32).tobytes() + whole[8:]
    if content is not None:
        (tmp_path / file).write_bytes(content)
    drop(part(panel, QWidget, "drop"), tmp_path / file)
    qtbot.waitUntil(lambda: said(panel).startswith("Error:"), timeout=30_000)
    assert words in said(panel)
    assert "Traceback" not in said(panel)
    load(qtbot, panel, *tiny)


def test_a_detector_of_other_frames_is_told_and_what_was_there_stays(qtbot, panel, tiny, tmp_path):
    load(qtbot, panel, *tiny)
    other = tmp_path / "other.dat"
    other.write_text("4 2000 0.01\n" + "0.1 0.1 0.01 1.0 0\n" * 4)
    drop(part(panel, QWidget, "drop"), other)
    qtbot.waitUntil(lambda: said(panel).startswith("Error:"), timeout=30_000)
    assert "pixels" in said(panel)
    assert panel.run_button.isEnabled()


@pytest.mark.parametrize("shown", ["followed", "at work"])
def test_a_bad_file_is_told_while_a_run_is_shown_and_the_run_speaks_again(
    qtbot, viewer, panel, tiny, engine, tmp_path, monkeypatch, shown
):
    monkeypatch.setattr(panel_module, "HEARD_S", 4.0)
    (tmp_path / "notes.emc").write_bytes(b"dear diary")
    if shown == "followed":
        folder = RunFolder(tmp_path / "cluster-run")
        folder.start(Settings())
        folder.write_result(engine.snapshot(), "frames.cxi", poses=True)
        drop(part(panel, QWidget, "drop"), folder.path)
        of_run, answer = "last written", "Error: "
    else:
        engine.steps = 10_000
        start(qtbot, panel, tiny)
        of_run, answer = "Improving at 20 Å", "press Stop before giving other files"
    qtbot.waitUntil(lambda: of_run in said(panel), timeout=60_000)
    panel.load([tmp_path / "notes.emc"])
    qtbot.waitUntil(lambda: answer in said(panel), timeout=30_000)
    if shown == "followed":
        assert "notes.emc" in said(panel)
    qtbot.wait(2000)  # it speaks every second
    assert answer in said(panel)
    qtbot.waitUntil(lambda: of_run in said(panel), timeout=30_000)
    assert panel.status.property("tone") == "info"
    panel.stop()


def test_what_an_open_setting_means_stands_in_it(panel):
    names = ("passes", "max_frames", "threads")
    meant = {name: part(panel, QLineEdit, f"set-{name}").placeholderText() for name in names}
    assert meant == {"passes": "chosen from the data", "max_frames": "all", "threads": "one per core"}


def test_a_setting_that_cannot_be_is_told_by_name(qtbot, panel, tiny, engine):
    load(qtbot, panel, *tiny)
    part(panel, QLineEdit, "set-passes").setText("-3")
    qtbot.mouseClick(part(panel, QPushButton, "run"), LEFT)
    assert "passes" in said(panel)
    assert panel.state == "idle"


def test_a_folder_that_cannot_be_written_is_told(qtbot, panel, tiny, engine, tmp_path):
    load(qtbot, panel, *tiny)
    (tmp_path / "file").write_text("in the way")
    part(panel, QLineEdit, "out").setText(str(tmp_path / "file"))
    qtbot.mouseClick(part(panel, QPushButton, "run"), LEFT)
    qtbot.waitUntil(lambda: said(panel).startswith("Error:"), timeout=30_000)
    assert "file" in said(panel)


def test_a_run_of_another_process_is_followed(qtbot, viewer, panel, engine, tmp_path):
    folder = RunFolder(tmp_path / "cluster-run")
    folder.start(Settings())
    drop(part(panel, QWidget, "drop"), folder.path)
    qtbot.waitUntil(lambda: "no result yet" in said(panel), timeout=30_000)
    folder.write_result(engine.snapshot(), "frames.cxi", poses=True)
    wait_for_volume(qtbot, viewer)
    layer = next(x for x in viewer.layers if x.metadata[KEY] == "intensity")
    before = layer.data.max()
    engine.done = 30
    folder.write_result(engine.snapshot(), "frames.cxi", poses=True)
    qtbot.waitUntil(lambda: layer.data.max() > 10 * before, timeout=30_000)
    assert "last written" in said(panel)
    shutil.rmtree(folder.path)  # followed runs may vanish
    qtbot.wait(1500)
    assert layer in viewer.layers


def test_closed_panels_leave_nothing_behind(qtbot, viewer):
    panels, widgets = [], []
    for _ in range(3):
        _, panel = viewer.window.add_plugin_dock_widget("napari-xrai", "X-RAI Reconstruct")
        panels.append(weakref.ref(panel))
        qtbot.wait(50)
        viewer.window.remove_dock_widget(panel)
        panel.deleteLater()
        del panel
        qtbot.wait(50)
        gc.collect()
        qtbot.wait(50)
        widgets.append(len(QApplication.topLevelWidgets()))
    # the newest may still be held by Qt's last event; those before it may not
    assert [panel() for panel in panels[:2]] == [None, None]
    assert widgets[0] == widgets[2]


def test_both_themes_are_followed(qtbot, viewer, panel):
    for theme in ("light", "dark"):
        viewer.theme = theme
        background = get_theme(theme).background.as_rgb_tuple()[:3]
        qtbot.wait(200)
        for name in ("poses", "curves"):
            corner = grab(part(panel, QWidget, name))[-4, -4, :3]
            assert np.abs(corner.astype(int) - background).max() <= 8, (theme, name)


def test_everything_fits_a_small_laptop(viewer, panel, qtbot):
    viewer.window._qt_window.resize(1366, 740)
    qtbot.wait(200)
    assert viewer.window._qt_window.height() <= 768
    for name in ("drop", "out", "run", "pause", "phase", "report", "poses", "view", "level"):
        widget = panel.findChild(QWidget, f"xrai-{name}")
        right = widget.mapTo(panel, widget.rect().topRight()).x()
        assert right <= panel.width(), name
    assert panel.findChild(QComboBox, "xrai-set-fluence") is not None
    assert panel.findChild(QComboBox, "xrai-set-fluence").visibleRegion().isEmpty()


def test_what_was_given_once_is_offered_again_and_can_be_changed(qtbot, panel, tiny):
    remember(open_source(tiny), InputSettings(energy_eV=2817.604961))
    load(qtbot, panel, *tiny)
    energy = part(panel, QLineEdit, "energy_eV")
    assert energy.isVisible() and energy.text() == "2817.604961"
    assert energy.cursorPosition() == 0  # what is seen begins with the thousands
    assert any("Remembered" in label.text() for label in panel.findChildren(QLabel) if label.isVisible())
    energy.clear()
    qtbot.keyClicks(energy, "3000")
    qtbot.keyClick(energy, Qt.Key.Key_Return)
    qtbot.waitUntil(lambda: "wavelength" not in part(panel, QLabel, "found").text(), timeout=30_000)
    assert energy.text() == "3000"
