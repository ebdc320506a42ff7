"""The demo: simulate a small particle, reconstruct it live in napari, leave everything in one folder.

Without a display the same happens in a window of Xvfb, in a process of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .io.source import InputError

if TYPE_CHECKING:
    from napari import Viewer

    from .widgets.panel import ReconstructPanel

PARTICLE = PRESET = "demo"
INTERRUPTED = 130
FRAMES = 1500  # fewer than the preset's: the demo should not take a coffee
WINDOW = (1366, 768)
LOOK_EVERY_MS = 200


def run_demo(out: Path, *, headless: bool = False) -> int:
    """Simulate into `out`, then show; the exit status.

    Parameters
    ----------
    out : Path
        Gets ``frames.cxi``, ``frames.truth.h5``, the run folder's files and ``screenshot.png``.
    headless : bool
        Open no window on this display, and close when done.

    Raises
    ------
    InputError
        If `out` cannot be written, or there is neither a display nor Xvfb.
    """
    xvfb = sys.platform.startswith("linux") and (headless or not _has_display())
    if xvfb and not (shutil.which("xvfb-run") and shutil.which("xauth")):
        raise InputError("there is no display and no Xvfb here: apt-get install xvfb xauth")
    frames = _simulate(out)
    if not xvfb:
        return show_demo(frames, out, stay_open=not headless)
    environment = {name: value for name, value in os.environ.items() if name != "WAYLAND_DISPLAY"}
    environment["QT_QPA_PLATFORM"] = "xcb"
    screen = f"-screen 0 {WINDOW[0]}x{WINDOW[1]}x24"
    command = ["xvfb-run", "-a", "-s", screen, sys.executable, "-m", __name__, str(frames), str(out)]
    return subprocess.run(command, env=environment, check=False).returncode


def show_demo(frames: Path, out: Path, *, stay_open: bool) -> int:
    """Reconstruct `frames` in napari's window as a user would; 0 if it went well."""
    import napari
    from qtpy.QtCore import QTimer

    viewer = napari.Viewer(title="X-RAI demo")
    viewer.window.resize(*WINDOW)
    _, panel = viewer.window.add_plugin_dock_widget("napari-xrai", "X-RAI Reconstruct")
    outcome: list[bool] = []
    steps = _drive(viewer, panel, frames, out, outcome)

    def step() -> None:
        try:
            next(steps)
        except StopIteration:
            timer.stop()
            if not stay_open:
                viewer.close()
        except Exception:  # nobody may be there to close the window
            viewer.close()
            raise

    timer = QTimer()
    timer.timeout.connect(step)
    timer.start(LOOK_EVERY_MS)
    try:
        napari.run()
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0 if outcome == [True] else 1


def _drive(viewer: Viewer, panel: ReconstructPanel, frames: Path, out: Path, outcome: list[bool]) -> Iterator[None]:
    """What the user of the demo would do, a step at each tick of a timer."""
    button: Any = panel.run_button
    panel.load([frames])
    while not button.isEnabled() and not _said_error(panel):
        yield
    panel.out.setText(str(out))
    panel.out.textEdited.emit(str(out))
    button.click()
    yield
    while button.property("state") != "idle":
        yield
    for _ in range(5):  # the last picture is drawn after the run has ended
        yield
    viewer.screenshot(path=str(out / "screenshot.png"), canvas_only=False, flash=False)
    outcome.append(not _said_error(panel) and (out / "reconstruction.h5").exists())
    print(panel.status.text(), flush=True)


def _said_error(panel: ReconstructPanel) -> bool:
    return bool(panel.status.property("tone") == "error")


def _simulate(out: Path) -> Path:
    """The frames of the demo, and the folder free for a run: what an earlier demo left is removed."""
    from .io.truth import truth_path
    from .run import RunFolder, is_run
    from .run_lock import only_writer
    from .simulation import write_simulation

    frames = out / "frames.cxi"
    if (is_run(out) or frames.exists()) and not truth_path(frames).exists():
        raise InputError(f"{out} holds files that no demo made: choose another folder with --out")
    with only_writer(out):
        RunFolder(out).clear()
        for path in (frames, truth_path(frames), out / "screenshot.png"):
            path.unlink(missing_ok=True)
        print(f"simulating frames of a small particle: {frames}", flush=True)
        for _ in write_simulation(PARTICLE, frames, PRESET, frames=FRAMES):
            pass
    return frames


def _has_display() -> bool:
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


if __name__ == "__main__":
    sys.exit(show_demo(Path(sys.argv[1]), Path(sys.argv[2]), stay_open=False))
