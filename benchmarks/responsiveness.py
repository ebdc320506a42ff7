"""How well the window answers while a real run goes on, and what the run finds.

Drags the photons and the detector of DIR/klh1 into the panel by real events, clicks Start, and until the run ends
measures the gaps between 10 ms ticks (weighted by their length: what a click at a random moment waits), and the age
of the volume on the screen. Needs a display:

    xvfb-run -a -s "-screen 0 1366x768x24" python benchmarks/responsiveness.py --data DIR
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

TICK_MS = 10
WARM_UP_S = 3.0
LIMITS = {"gap, 95 % of the time": 100.0, "gap, longest": 400.0, "age of the volume, oldest": 2000.0}


class Meter:
    """Ticks, and the birth of every picture."""

    def __init__(self) -> None:
        from qtpy.QtCore import Qt, QTimer

        self.ticks: list[float] = []
        self.ages: list[float] = []
        self.born: dict[int, float] = {}
        self.layer = None
        self.timer = QTimer()
        self.timer.setTimerType(Qt.TimerType.PreciseTimer)
        self.timer.setInterval(TICK_MS)
        self.timer.timeout.connect(self.tick)

    def note_births(self) -> None:
        """A picture is as old as its snapshot, which the worker draws in the step that made it."""
        from napari_xrai.layers import Picture

        draw = Picture.of.__func__

        def noting(cls, snapshot, *args, **kwargs):
            self.born[id(snapshot.intensity.data)] = time.perf_counter()
            self.keep = snapshot  # so that ids stay unique while it is shown
            return draw(cls, snapshot, *args, **kwargs)

        Picture.of = classmethod(noting)

    def tick(self) -> None:
        """Note the time, and how old the volume is."""
        now = time.perf_counter()
        self.ticks.append(now)
        if self.layer is not None and id(self.layer.data) in self.born:
            self.ages.append(now - self.born[id(self.layer.data)])

    def figures(self, started: float) -> dict[str, float]:
        """In ms; gaps weighted by their length."""
        ticks = np.array([t for t in self.ticks if t >= started + WARM_UP_S])
        gaps = np.sort(np.diff(ticks)) * 1e3
        share = np.cumsum(gaps) / gaps.sum()
        return {
            "gap, half of the time": float(gaps[np.searchsorted(share, 0.5)]),
            "gap, 95 % of the time": float(gaps[np.searchsorted(share, 0.95)]),
            "gap, 99 % of the time": float(gaps[np.searchsorted(share, 0.99)]),
            "gap, longest": float(gaps[-1]),
            "age of the volume, middle": float(np.median(self.ages) * 1e3),
            "age of the volume, oldest": float(max(self.ages) * 1e3),
        }


def drop(widget, paths):
    from qtpy.QtCore import QMimeData, QPoint, QPointF, Qt, QUrl
    from qtpy.QtGui import QDragEnterEvent, QDropEvent
    from qtpy.QtWidgets import QApplication

    mime = QMimeData()
    mime.setUrls([QUrl.fromLocalFile(str(path)) for path in paths])
    how = (Qt.DropAction.CopyAction, mime, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier)
    center = widget.rect().center()
    QApplication.sendEvent(widget, QDragEnterEvent(QPoint(center), *how))
    QApplication.sendEvent(widget, QDropEvent(QPointF(center), *how))


def wait(condition, seconds):
    from qtpy.QtCore import QEventLoop, QTimer

    loop, end = QEventLoop(), time.monotonic() + seconds
    poll = QTimer()
    poll.timeout.connect(lambda: loop.quit() if condition() or time.monotonic() > end else None)
    poll.start(50)
    loop.exec()
    if not condition():
        raise SystemExit(f"still waiting after {seconds:.0f} s")


def measure(data: Path, out: Path, screenshot: Path | None, limit_s: float) -> tuple[dict[str, float], float]:
    import napari
    from qtpy.QtCore import Qt, QTimer
    from qtpy.QtTest import QTest

    from napari_xrai.layers import KEY

    viewer = napari.Viewer()
    viewer.window.resize(1366, 740)
    _, panel = viewer.window.add_plugin_dock_widget("napari-xrai", "X-RAI Reconstruct")
    meter = Meter()
    meter.note_births()
    drop(panel.drop_zone, [data / "klh1" / "photons.emc", data / "klh1" / "det_sim.h5"])
    wait(panel.run_button.isEnabled, 60)
    panel.out.setText(str(out))
    panel.out.textEdited.emit(str(out))
    meter.timer.start()
    started = time.perf_counter()
    QTest.mouseClick(panel.run_button, Qt.MouseButton.LeftButton)

    def find_layer():
        meter.layer = next((x for x in viewer.layers if x.metadata.get(KEY) == "intensity"), None)

    finder = QTimer()
    finder.timeout.connect(find_layer)
    finder.start(20)
    wait(lambda: panel.state == "idle", limit_s)
    took = time.perf_counter() - started
    meter.timer.stop()
    finder.stop()
    print(panel.status.text(), flush=True)
    if screenshot:
        wait(lambda: time.perf_counter() > started + took + 1, 5)
        viewer.window.screenshot(str(screenshot), canvas_only=False, flash=False)
    viewer.close()
    return meter.figures(started), took


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with klh1/photons.emc, det_sim.h5, truth.h5")
    parser.add_argument("--out", type=Path, help="run folder; default: a temporary one")
    parser.add_argument("--screenshot", type=Path, help="PNG of the window at the end")
    parser.add_argument("--limit", type=float, default=900, help="give up after so many seconds")
    given = parser.parse_args()
    out = given.out or Path(tempfile.mkdtemp()) / "klh1"
    figures, took = measure(given.data, out, given.screenshot, given.limit)
    print(f"run of {took:.0f} s, from the click to the saved result")
    kept = True
    for name, value in figures.items():
        limit = LIMITS.get(name)
        verdict = "" if limit is None else f"   at most {limit:.0f} ms: {'yes' if value <= limit else 'NO'}"
        kept &= limit is None or value <= limit
        print(f"{name:28} {value:8.1f} ms{verdict}")

    from rich.console import Console

    from napari_xrai.compare import compare, comparison_table

    Console().print(comparison_table(compare(out, given.data / "klh1" / "truth.h5")))
    return 0 if kept else 1


if __name__ == "__main__":
    raise SystemExit(main())
