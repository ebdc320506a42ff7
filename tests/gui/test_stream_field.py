"""Connecting to a stream from the panel: typed, watched, disconnected, connected again; the last picture stays."""

import threading
from contextlib import suppress
from types import SimpleNamespace

import pytest
import zmq
from conftest import said
from engine import GuiEngine
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QLineEdit, QPushButton

from napari_xrai import session as session_module
from napari_xrai.layers import KEY
from napari_xrai.run import RunFolder, read_run
from napari_xrai.serve import FrameServer, frames_to_serve

LEFT = Qt.MouseButton.LeftButton


class StreamEngine(GuiEngine):
    """As `GuiEngine`, on whatever comes."""

    table = SimpleNamespace(length=0)

    def restore(self, arrays, rest):
        """Goes on from where it is."""

    def follow(self, inlet):
        while not inlet.ended:
            self.done += len(inlet.take(50, 0.05).frames) > 0
            yield self.progress()


@pytest.fixture
def server():
    with FrameServer(frames_to_serve("cube"), 300.0, 0) as server:
        thread = threading.Thread(target=run_until_closed, args=(server,), daemon=True)
        thread.start()
        yield server
    thread.join(5)


def run_until_closed(server):
    with suppress(zmq.ZMQError):
        server.run()


def type_in(qtbot, panel, text):
    field = panel.findChild(QLineEdit, "xrai-stream")
    field.clear()
    qtbot.keyClicks(field, text)
    qtbot.keyClick(field, Qt.Key.Key_Return)


def wait_for_steps(qtbot, engine, n):
    qtbot.waitUntil(lambda: engine.done >= n, timeout=30_000)


def test_a_stream_is_connected_left_and_connected_again(qtbot, panel, viewer, server, monkeypatch, tmp_path):
    engine = StreamEngine()
    monkeypatch.setattr(session_module, "make_reconstruction", lambda *_: engine)
    monkeypatch.setattr(session_module, "SNAPSHOT_EVERY_S", 0.1)
    run, pause = (panel.findChild(QPushButton, f"xrai-{name}") for name in ("run", "pause"))
    assert not run.isEnabled()
    type_in(qtbot, panel, server.address)
    assert panel.state == "running"
    wait_for_steps(qtbot, engine, 3)
    qtbot.waitUntil(lambda: any(x.metadata.get(KEY) == "intensity" for x in viewer.layers), timeout=30_000)
    qtbot.mouseClick(run, LEFT)
    qtbot.waitUntil(lambda: panel.state == "idle", timeout=30_000)
    assert any(x.metadata.get(KEY) == "intensity" for x in viewer.layers)
    out = panel._out_path()
    assert read_run(out).settings.stream.address == server.address
    assert read_run(out).snapshot.facts["frames"].startswith("karabo-bridge stream")
    RunFolder(out).write_checkpoint({}, {})
    panel._set_state("idle")
    before = engine.done
    assert pause.text() == "Continue"
    qtbot.mouseClick(pause, LEFT)
    wait_for_steps(qtbot, engine, before + 3)
    panel.stop()
    qtbot.waitUntil(lambda: panel.state == "idle", timeout=30_000)
    assert not said(panel).startswith("Error")


def test_an_address_that_makes_no_sense_is_said(qtbot, panel):
    type_in(qtbot, panel, "cheetah:5")
    assert said(panel) == "Error: cheetah:5 is no address of a stream: give tcp://host:port"
    assert panel.state == "idle"
