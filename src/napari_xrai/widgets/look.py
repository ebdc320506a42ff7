"""The dock widget "X-RAI First look": frames, masks, centre and hits, before any reconstruction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import QEvent, QObject, QTimer
from qtpy.QtWidgets import QWidget
from superqt.utils import create_worker

from ..contributions import open_panel, show_panel
from ..core.frames import BAD, Detector
from ..first_look import FirstLook, suggest_threshold
from ..first_look_centre import find_centre
from ..first_look_files import save_array, save_geometry
from ..first_look_geometry import radial_average, resolution_rings, with_centre
from ..first_look_layout import Layout
from ..io.source import InputError
from ..layers import KEY
from .canvas_drop import CanvasDrops
from .inputs import Inputs
from .look_face import LookFace
from .look_job import LookJob, Opened, open_inputs
from .look_layers import CONTRASTS, SHOWN, LookLayers
from .words import centre_words, error_words, found_centre_words, handed_over_words, hits_words
from .worker import Job, start_worker

if TYPE_CHECKING:
    from napari.viewer import Viewer

PULL_MS = 100
SETTLE_MS = 60
"""A dragged cross is followed when it rests this long."""


class LookPanel(LookFace):
    """Look at frames; what it looks like is in `LookFace`.

    Nothing is computed here: files are opened and frames summed in a worker.

    Parameters
    ----------
    napari_viewer : napari.viewer.Viewer
        Where the layers go.
    """

    def __init__(self, napari_viewer: Viewer, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.viewer = napari_viewer
        self.look_layers = LookLayers(napari_viewer)
        self._opened = Opened(Inputs())
        self._detector: Detector | None = None
        self._layout: Layout | None = None
        self._job: LookJob | None = None
        self._look: FirstLook | None = None
        self._threshold: int | None = None
        self._threshold_by_user = False
        self._canvas_drops = CanvasDrops(self, napari_viewer)
        self._queue: list[tuple[Inputs | None, list[Path]]] = []
        self._opening = False
        self._finding: Opened | None = None
        self._pull_timer, self._settle_timer, self._rest_timer = QTimer(self), QTimer(self), QTimer(self)
        self._settle_timer.setSingleShot(True)
        self._rest_timer.setSingleShot(True)
        self._rest_timer.timeout.connect(self._show_the_rest)
        self._pull_timer.timeout.connect(self._pull)
        self._settle_timer.timeout.connect(self._follow_centre)
        self._connect()
        self._follow_theme()
        self.show_progress(0, 0)
        self.show_hits("", None)
        self.found.setVisible(False)
        self.say("")
        self._show_state()
        self._take_what_is_there()
        napari_viewer.layers.events.inserted.connect(self._on_layer_inserted)

    # ---- for the user and for scripts

    def load(self, paths: Sequence[Path | str]) -> None:
        """Take files: frames, detector and mask in any order. They are opened in the background."""
        panel = open_panel(self.viewer)
        if panel is not None and not panel.busy:  # it tells the look what it finds
            panel.load(paths)
        else:
            self._queue.append((None, [Path(path) for path in paths]))
            self._open()

    def look_at(self, inputs: Inputs) -> None:
        """Look at what the panel has."""
        if inputs.frames and replace(inputs, select=None) != replace(self._opened.inputs, select=None):
            self._queue.append((inputs, []))
            self._open()

    def measure(self, frames: int | None = None) -> None:
        """Sum frames, by default as many as the field says, without the pixels masked now."""
        source, mask = self._opened.source, self._mask()
        if source is None or mask is None:
            return
        self.stop()
        self._job = LookJob(source, frames or self.wanted.value(), mask == BAD)
        start_worker(self, self._job, self._on_error, self._on_ended)
        self.say(self._hint())
        self._pull_timer.start(PULL_MS)
        self._show_state()

    def stop(self) -> None:
        """Stop measuring; what was summed stays."""
        if self._job is not None:
            self._job.stop()

    def find_centre(self) -> None:
        """Put the cross where photons mirror in the hits among the frames looked at; errors are shown, not raised."""
        opened, mask = self._opened, self._mask()
        if self._finding is not None or self._look is None or self._detector is None or mask is None:
            return
        hits = self._look.hits(self._threshold or 0)
        detector = replace(self._detector, mask=mask)
        self._finding = opened
        self.say("Finding the beam centre…")
        worker = create_worker(
            find_centre, opened.source, hits, detector, self._layout, _start_thread=False, _ignore_errors=True
        )
        worker.returned.connect(self._on_centre_found)
        worker.errored.connect(self._on_centre_not_found)
        worker.start()
        self._show_state()

    def use_for_run(self) -> None:
        """Hand mask, geometry and hits, as far as they were changed here, to the panel; errors are shown."""
        inputs, frames = self._opened.inputs, self._opened.inputs.frames[0]
        mask = self._mask()
        words = self._carries()
        try:
            if mask is not None and self._is_painted():
                shape = self._opened.source.shape if self._opened.source else mask.shape
                inputs = replace(inputs, mask=save_array(mask.reshape(shape), frames, "mask"))
            if self._is_moved() and self._detector is not None:
                path = save_geometry(self._detector, frames)
                inputs = replace(inputs, detector=path, energy_eV=self._detector.energy_eV)
            hits = self._chosen_hits()
            if hits is not None:
                inputs = replace(inputs, select=str(save_array(hits, frames, "hits")))
        except InputError as error:
            self.say(str(error), "error")
            return
        panel = show_panel(self.viewer)
        panel.take(inputs)
        self.say(handed_over_words(words, Path.cwd()), "good")

    # ---- files

    def _take_what_is_there(self) -> None:
        """Frames in the panel, or on the canvas by napari's own ways."""
        panel = open_panel(self.viewer)
        if panel is not None and panel.inputs.frames:
            self.look_at(panel.inputs)
            return
        for layer in self.viewer.layers:
            self._take_from_layer(layer)

    def _take_from_layer(self, layer: object) -> None:
        """Frames that came in by File → Open or as sample data are taken as if dropped here."""
        metadata = getattr(layer, "metadata", {})
        if metadata.get(KEY) != "patterns" or open_panel(self.viewer) is not None:  # the panel tells what it takes
            return
        source = self._opened.source
        known = {*self._opened.inputs.frames, *(source.paths if source else ())}
        paths = [Path(path) for path in metadata.get("paths", ())]
        if set(paths) - known:
            self._queue.append((None, [*paths, *(Path(path) for path in metadata.get("companions", ()))]))
            self._open()

    def _on_layer_inserted(self, event: object) -> None:
        self._take_from_layer(getattr(event, "value", None))

    def _open(self) -> None:
        if self._opening or not self._queue:
            return
        self._opening = True
        inputs, paths = self._queue.pop(0)
        self.say("Opening…")
        worker = create_worker(
            open_inputs, inputs or self._opened.inputs, paths, _start_thread=False, _ignore_errors=True
        )  # fmt: skip
        worker.returned.connect(self._on_opened)
        worker.errored.connect(self._on_not_opened)
        worker.start()

    def _on_opened(self, opened: Opened) -> None:
        self._opening = False
        self.stop()
        before, self._opened = self._opened, opened
        inputs, layout = opened.inputs, opened.layout
        fits = before.layout is not None and layout is not None and before.layout.shape == layout.shape
        same = before.inputs.frames == inputs.frames and fits
        moved = self._layout.centre if self._layout and self._detector is not before.detector else None
        self._detector, self._layout, self._look = opened.detector, layout, None
        if same and before.inputs.detector == inputs.detector and moved and opened.detector and layout:
            self._detector, self._layout = with_centre(opened.detector, layout, moved)
        self._threshold_by_user = False
        names = [path.name for path in (*inputs.frames[:2], inputs.detector, inputs.mask) if path is not None]
        self.drop_zone.show_files(" · ".join(names))
        self.found.setText(opened.words)
        self.found.setVisible(bool(opened.words))
        self.plots.clear_plots()
        self.show_hits("", None)
        keep_mask = same and before.inputs.mask == inputs.mask and self._is_painted()
        was_empty = self.look_layers.find("patterns") is None
        self.look_layers.show_frames(opened, keep_mask=keep_mask)
        self.say(self._hint())
        if was_empty:
            self._rest_timer.start(SETTLE_MS)  # the first frame is seen first
        else:  # a canvas drawn between taking layers away and making new ones has crashed OpenGL beside a second view
            self._show_the_rest()
        self._show_state()

    def _show_the_rest(self) -> None:
        """With the frames come their mask, rings and centre, and then the sums."""
        opened = self._opened
        if opened.layout is not None and opened.mask is not None and self.look_layers.find("mask") is None:
            self.look_layers.show_mask(opened.layout, opened.mask)
        self._show_geometry()
        self._listen()
        self.tools["pan"].setChecked(True)
        self.look_layers.take_up("pan")
        if opened.source is not None and opened.source.n_frames:
            self.wanted.setMaximum(opened.source.n_frames)
            self.measure()
        self._show_state()
        self._open()

    def _on_not_opened(self, error: Exception) -> None:
        self._opening = False
        self.say(error_words(error), "error")
        self._open()

    def _hint(self) -> str:
        if self._opened.source is None or self._detector is not None:
            return ""
        if self._layout is None:
            return "A list of pixels is no picture yet: drop its detector file too."
        return "Drawn as stored, without rings: drop the geometry too, or give its numbers in X-RAI Reconstruct."

    # ---- measuring

    def _pull(self) -> None:
        job = self._job
        if job is None:
            self._pull_timer.stop()
        elif job.look is not None and job.look is not self._look:
            self._show_look(job.look, job.wanted)

    def _show_look(self, look: FirstLook, wanted: int) -> None:
        self._look = look
        self.show_progress(len(look), wanted)
        self.plots.show_frames(look.lit, look.photons)
        if self._layout is not None:
            self.look_layers.show_powder(self._layout.picture(look.powder), len(look))
        if not self._threshold_by_user:
            self._threshold = suggest_threshold(look.lit)
        self._show_hits()
        self._show_radial()

    def _on_error(self, job: Job, error: Exception) -> None:
        if job is self._job:
            self.say(error_words(error), "error")

    def _on_ended(self, job: Job) -> None:
        if job is not self._job:
            return
        self._pull()
        self._pull_timer.stop()
        self._job = None
        self.show_progress(0, 0)
        self._show_state()

    def _show_hits(self) -> None:
        if self._look is None or self._threshold is None:
            return
        self.plots.set_threshold(self._threshold)
        hits = len(self._look.hits(self._threshold))
        total = self._opened.source.n_frames if self._opened.source else None
        words = hits_words(hits, len(self._look), total or len(self._look))
        self.show_hits(words if self._threshold_by_user else f"{words}. A suggestion: drag the line.", self._threshold)

    def _show_radial(self) -> None:
        mask = self._mask()
        if self._look is None or self._detector is None or mask is None:
            return
        detector = replace(self._detector, mask=mask)
        q, mean = radial_average(detector, self._look.powder, len(self._look))
        self.plots.show_radial(q, mean, detector.units == "1/angstrom")

    def _on_threshold(self, lit: int) -> None:
        self._threshold, self._threshold_by_user = max(0, lit), True
        self._show_hits()
        self._show_state()

    def _go_to_hit(self, step: int) -> None:
        """To the next or the last hit among the frames that were looked at."""
        if self._look is None or self._threshold is None:
            return
        now, hits = self.viewer.dims.current_step[0], self._look.hits(self._threshold)
        ahead = hits[hits > now] if step > 0 else hits[hits < now][::-1]
        if len(ahead):
            self.shown.setCurrentText("frames")
            self.look_layers.show("frames")
            self.viewer.dims.set_current_step(0, int(ahead[0]))

    # ---- mask and centre

    def _listen(self) -> None:
        """Hear of what is painted and dragged, on layers that are new."""
        mask, centre = self.look_layers.find("mask"), self.look_layers.find("centre")
        for layer, name in ((mask, "paint"), (centre, "data")):
            if layer is not None:
                getattr(layer.events, name).disconnect(self._on_touched)
                getattr(layer.events, name).connect(self._on_touched)

    def _on_touched(self, _event: object = None) -> None:
        self._settle_timer.start(SETTLE_MS)

    def _show_geometry(self) -> None:
        if self._detector is None or self._layout is None:
            return
        self.look_layers.show_geometry(resolution_rings(self._detector, self._layout), self._layout)
        self._listen()

    def _follow_centre(self) -> None:
        """What depends on mask and centre, once they rest."""
        layer, opened = self.look_layers.find("centre"), self._opened
        if layer is not None and len(layer.data) and self._layout is not None and opened.detector and opened.layout:
            row, column = (float(v) for v in layer.data[-1])
            if self._layout.centre is not None and not np.allclose((row, column), self._layout.centre, atol=1e-3):
                self._detector, self._layout = with_centre(opened.detector, opened.layout, (row, column))
                self._show_geometry()
                assert opened.layout.centre is not None
                self.say(centre_words(opened.layout.centre, (row, column)))
        self._show_radial()
        self._show_state()

    def _on_centre_found(self, found: tuple[tuple[float, float] | None, str]) -> None:
        (centre, sentence), asked, self._finding = found, self._finding, None
        if asked is self._opened and asked.detector and asked.layout:  # other files may have come meanwhile
            if centre is None:
                self.say(f"Beam centre {sentence}.")
            else:
                self._detector, self._layout = with_centre(asked.detector, asked.layout, centre)
                self._show_geometry()
                self._show_radial()
                assert asked.layout.centre is not None
                self.say(found_centre_words(asked.layout.centre, centre))
        self._show_state()

    def _on_centre_not_found(self, error: Exception) -> None:
        self._finding = None
        self.say(error_words(error), "error")
        self._show_state()

    def _mask(self) -> NDArray[np.uint8] | None:
        """(P,) 0/1/2: that of the files, and over it what was painted."""
        own, layout, layer = self._opened.mask, self._opened.layout, self.look_layers.find("mask")
        if own is None or layout is None or layer is None or layer.data.shape != layout.shape:
            return own
        painted = layout.of_pixels(np.minimum(layer.data, BAD), BAD).astype(np.uint8)
        return np.where(layout.cell >= 0, painted, own)

    def _is_painted(self) -> bool:
        mask = self._mask()
        return mask is not None and self._opened.mask is not None and not np.array_equal(mask, self._opened.mask)

    def _is_moved(self) -> bool:
        return self._detector is not self._opened.detector

    def _chosen_hits(self) -> NDArray[np.int64] | None:
        """The hits, where the user chose them and all frames were looked at; else nobody knows them all."""
        if self._look is None or self._threshold is None or not self._threshold_by_user:
            return None
        total = self._opened.source.n_frames if self._opened.source else 0
        hits = self._look.hits(self._threshold)
        return hits if len(self._look) == total and 0 < len(hits) < total else None

    def _carries(self) -> str:
        """What the run would get, in words; empty for nothing."""
        parts = ["the painted mask"] if self._is_painted() else []
        parts += ["the moved beam centre"] if self._is_moved() else []
        hits = self._chosen_hits()
        parts += [f"the {len(hits):,} hits"] if hits is not None else []
        return " and ".join(parts)

    # ---- controls, theme, end

    def _connect(self) -> None:
        self.drop_zone.dropped.connect(self.load)
        self.shown.activated.connect(lambda index: self.look_layers.show(SHOWN[index]))
        self.contrast.activated.connect(lambda index: self.look_layers.set_contrast(CONTRASTS[index]))
        self.tool_chosen.connect(self._on_tool)
        self.measure_button.clicked.connect(self._on_measure)
        self.plots.threshold_dragged.connect(self._on_threshold)
        self.threshold.valueChanged.connect(self._on_threshold)
        self.find_button.clicked.connect(self.find_centre)
        self.previous.clicked.connect(lambda: self._go_to_hit(-1))
        self.next.clicked.connect(lambda: self._go_to_hit(1))
        self.use_button.clicked.connect(self.use_for_run)
        self.viewer.events.theme.connect(self._follow_theme)

    def _on_tool(self, tool: str) -> None:
        if tool == "mask" and self.look_layers.find("mask") is None and self._layout is not None:
            assert self._opened.mask is not None  # the user deleted the layer: it comes back as the files have it
            self.look_layers.show_mask(self._layout, self._opened.mask)
        if tool == "centre" and self.look_layers.find("centre") is None:
            self._show_geometry()
        self._listen()
        self.look_layers.take_up(tool)  # type: ignore[arg-type]

    def _on_measure(self) -> None:
        if self._job is not None:
            self.stop()
        else:
            self.measure()

    def _show_state(self) -> None:
        source = self._opened.source
        self.show_state(
            frames=(source.n_frames or 0) if source else 0, measuring=self._job is not None,
            picture=self._layout is not None, centre=self._detector is not None,
            hits=self._look is not None and self._finding is None, carries=self._carries(),
        )  # fmt: skip

    def event(self, event: QEvent) -> bool:  # noqa: D102
        kind = event.type()
        if kind == QEvent.Type.Close or (kind == QEvent.Type.ParentChange and self.parent() is None):
            self._leave()
        elif kind in (QEvent.Type.Show, QEvent.Type.ParentChange) and self.window() is not self:
            self.window().installEventFilter(self)
            self._canvas_drops.watch(self.window())
        return bool(super().event(event))

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """Stop reading when the window closes."""
        if event.type() == QEvent.Type.Close and not event.spontaneous():
            self.stop()
        return False

    def _leave(self) -> None:
        """The dock was removed: let the viewer go."""
        self.stop()
        self._pull_timer.stop()
        self._settle_timer.stop()
        self._rest_timer.stop()
        self.viewer.layers.events.inserted.disconnect(self._on_layer_inserted)
        self.viewer.events.theme.disconnect(self._follow_theme)
