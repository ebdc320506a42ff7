"""The dock widget "X-RAI Reconstruct": files in, a run watched while it converges, errors in words."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from qtpy.QtCore import QEvent, QObject, QTimer
from qtpy.QtWidgets import QDockWidget, QWidget
from superqt.utils import create_worker

from ..contributions import open_look, show_look
from ..io.source import InputError
from ..layers import KEY, Picture, ResultLayers
from ..settings import EngineSettings, Settings
from . import words
from .canvas_drop import CanvasDrops
from .dock import Tone
from .face import Face
from .inputs import Found, Inputs, look_into
from .patterns import show_patterns
from .worker import FollowJob, Job, PhasingJob, ReconstructionJob, start_worker

if TYPE_CHECKING:
    from napari.viewer import Viewer

State = Literal["idle", "running", "stopping"]

PULL_MS = 100
"""The panel looks for a new picture so long after it has dealt with the last: it can never fall behind."""

BETWEEN_STEPS_MS = 15
"""Between the pieces of showing a picture the window may answer."""

PACE_EVERY_S = 1.0

HEARD_S = 30.0
"""What a gesture led to stands so long before the run that is shown speaks again."""

CLOSE_WAIT_S = 30.0
"""Closing waits so long for the checkpoint to be complete."""


class ReconstructPanel(Face):
    """Reconstruct dropped frames, and show the result as it grows.

    What it looks like is in `Face`; here is what it does. Nothing is computed here: files are read and frames
    reconstructed in a worker, which leaves its newest picture for the panel to take.

    Parameters
    ----------
    napari_viewer : napari.viewer.Viewer
        Where the layers go.
    """

    def __init__(self, napari_viewer: Viewer, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.viewer = napari_viewer
        self.state: State = "idle"
        self.result_layers = ResultLayers(napari_viewer)
        self._found = Found(Inputs())
        self._job: Job | None = None
        self._error: Exception | None = None
        self._last: Picture | None = None
        self._steps: Iterator[Callable[[], None]] = iter(())
        self._next_pace = self._hushed_until = 0.0
        self._out_by_user = self._pausing = False
        self._canvas_drops = CanvasDrops(self, napari_viewer)
        self._queue: list[Path] = []
        self._given: Inputs | None = None
        self._reading = self._start_when_read = False
        self._view_chosen = False
        self._pull_timer = QTimer(self)
        self._pull_timer.setSingleShot(True)
        self._pull_timer.timeout.connect(self._pull)
        self._connect()
        self._follow_theme()
        self._set_state("idle")
        for layer in list(napari_viewer.layers):
            self._take_from_layer(layer)

    # ---- for the user and for scripts

    def load(self, paths: Sequence[Path | str]) -> None:
        """Take files: frames, detector and mask in any order, or one run folder. They are read in the background."""
        if self.busy:
            self._answer("The last run is still at work: press Stop before giving other files.", "warning")
            return
        self._queue += [Path(path) for path in paths]
        self._read()

    def start(self, *, resume: bool = False) -> None:
        """Start reconstructing the files that are here, or are being read; errors are shown, not raised."""
        if self.busy:
            return
        if self._reading:
            self._start_when_read = True
            return
        try:
            settings = self._settings()
            out = self._run_folder(resume)
        except InputError as error:
            self._answer(str(error), "error")
            return
        self._forget_last_run()
        self._begin(ReconstructionJob(settings, out, resume=resume, level=self.level))
        self.say("Starting: reading the frames and preparing the engine…")

    def stop(self) -> None:
        """Stop after the current step; the best result so far is kept and saved."""
        if self._job is not None:
            self._job.stop()
            if self._job.busy:
                self._set_state("stopping")

    @property
    def inputs(self) -> Inputs:
        """The files that are here, with the numbers in the fields."""
        return self.found_view.filled(self._found.inputs) if self._found.description else self._found.inputs

    def take(self, inputs: Inputs) -> None:
        """Take these inputs, whole, in place of those that are here."""
        if self.busy:
            self._answer("The last run is still at work: press Stop before giving other files.", "warning")
            return
        self._given = inputs
        self._queue.clear()
        self._read()

    def phase(self, starts: int) -> None:
        """Phase the run in the run folder again, from so many starts; errors are shown, not raised."""
        if self.busy:
            return
        if self._job is not None:
            self._job.stop()
        self._begin(PhasingJob(self._out_path(), starts, self.level))
        self.say(f"Phasing from {starts} starts…")

    @property
    def busy(self) -> bool:
        """Whether a run is at work: nothing else can be taken meanwhile."""
        return self._job is not None and self._job.busy

    def _out_path(self) -> Path:
        return Path(self.out.text().strip()).expanduser()

    # ---- files

    def _read(self) -> None:
        """Look into what was given, off the GUI thread; what is dropped meanwhile is looked into next."""
        if self._reading:
            return
        self._reading = True
        paths, self._queue = self._queue, []
        if paths:
            self.say(f"Reading {', '.join(path.name for path in paths)}…")
        before, self._given = self._given or self.inputs, None
        worker = create_worker(look_into, before, paths, patterns=bool(paths), _start_thread=False, _ignore_errors=True)
        worker.returned.connect(self._on_found)
        worker.errored.connect(self._on_not_found)
        worker.start()

    def _on_found(self, found: Found) -> None:
        self._reading = False
        if self._given is not None:  # what was found is replaced already
            self._read()
            return
        self._found = found
        self.drop_zone.show_files(found.names)
        self.found_view.show_found(found)
        if found.description is not None and "geometry" in found.description.missing:
            self.say("Not ready: it takes a geometry.", "warning")
        else:
            self.say("Ready: press Start." if found.inputs.frames else "")
        if found.inputs.run is not None:
            self._open_run(found.inputs.run)
        else:
            self._propose_out()
            if found.patterns is not None:
                show_patterns(self.viewer, found.patterns, hidden=self.result_layers.find("intensity") is not None)
            look = open_look(self.viewer)
            if look is not None:
                look.look_at(self.inputs)
        self._set_state(self.state)
        self._go_on()

    def _on_not_found(self, error: Exception) -> None:
        self._reading = self._start_when_read = False
        self._answer(words.error_words(error), "error")
        self._go_on()

    def _go_on(self) -> None:
        """What was asked for while files were being read."""
        if self._queue or self._given is not None:
            self._read()
        elif self._start_when_read:
            self._start_when_read = False
            self.start()

    def _take_from_layer(self, event: object) -> None:
        """Frames that came in by napari's own ways (File → Open, sample data) are taken as if dropped here."""
        metadata = getattr(getattr(event, "value", event), "metadata", {})
        if metadata.get(KEY) != "patterns" or self.busy:
            return
        paths = [Path(path) for path in metadata.get("paths", ())]
        if paths and set(paths) - set(self._found.inputs.frames):
            self.load([*paths, *(Path(path) for path in metadata.get("companions", ()))])

    def _open_run(self, path: Path) -> None:
        self._forget_last_run()
        self.out.setText(str(path))
        self._out_by_user = True
        self._begin(FollowJob(path, self.level))

    def _forget_last_run(self) -> None:
        if self._job is not None:
            self._job.stop()
        self._last, self._steps = None, iter(())
        self.clear_result()
        self.result_layers.begin()

    # ---- the run

    def _settings(self) -> Settings:
        if self._found.inputs.run is not None:
            return self._settings_of_run(self._found.inputs.run)
        inputs, stream = self.found_view.filled(self._found.inputs), self.stream_field.settings()
        if stream.address is not None:
            inputs = replace(inputs, frames=(), select=None)
        elif not inputs.frames:
            raise InputError("no frames yet: drop a file of frames, with its detector, on the field above")
        return Settings(input=inputs.as_settings(), engine=self.form.values(EngineSettings), stream=stream)

    def _settings_of_run(self, run: Path) -> Settings:
        from ..run import read_run

        settings = read_run(run).settings
        if settings is None:
            raise InputError(f"{run} has no settings.json to continue from: drop its frames, and press Start")
        return settings

    def _run_folder(self, resume: bool) -> Path:
        from ..run import is_run

        if not resume and not self._out_by_user and is_run(Path(self.out.text())):
            self._propose_out()
        if not self.out.text().strip():
            self._propose_out()
        out = self._out_path()
        if is_run(out) and not resume:
            raise InputError(f"{out} holds a run already: press Continue to go on with it, or name another run folder")
        return out

    def _propose_out(self) -> None:
        """``./<stem>_xrai_<time>``, in the current folder and never beside the data."""
        frames = [Path("stream")] if self.stream_field.address else self._found.inputs.frames
        if frames and not (self._out_by_user and self.out.text().strip() and self._found.inputs.run is None):
            self._out_by_user = False
            self.out.setText(f"./{frames[0].stem}_xrai_{time.strftime('%Y%m%d-%H%M%S')}")

    def _answer(self, words: str, tone: Tone = "info") -> None:
        """Say what came of a gesture: the run that is shown, which speaks every second, is silent meanwhile."""
        self.say(words, tone)
        self._hushed_until = time.monotonic() + HEARD_S

    def _say_of_run(self, words: str) -> None:
        if time.monotonic() >= self._hushed_until:
            self.say(words)

    def _begin(self, job: Job) -> None:
        self._error, self._hushed_until = None, 0.0
        self._job = job
        start_worker(self, job, self._on_error, self._on_ended)
        self._set_state("running" if job.busy else "idle")
        self._pull_timer.start(PULL_MS)

    def _on_error(self, job: Job, error: Exception) -> None:
        if job is self._job:
            self._error = error

    def _on_ended(self, job: Job) -> None:
        """The worker is done, its clean-up included."""
        if job is not self._job:
            return
        self._show_to_the_end()
        self._job = None
        self._pull_timer.stop()
        self.show_progress(None, "")
        if self._error is not None:
            self.say(words.error_words(self._error), "error")
        elif isinstance(job, ReconstructionJob):
            self._say_outcome(job)
        elif isinstance(job, PhasingJob):
            self.say(words.phased_words(self._last.snapshot if job.summary and self._last else None, job.out))
        self._set_state("idle")

    def _say_outcome(self, job: ReconstructionJob) -> None:
        saved = f"Saved in {job.out}."
        if self._last is None:
            return self.say(f"Stopped before there was a result. {saved}")
        snapshot = self._last.snapshot
        tone: Tone = "good" if snapshot.verdict == "converged" else "info"
        self.say(words.sentences(words.verdict_words(snapshot), words.density_words(snapshot), saved), tone)

    def _pull(self) -> None:
        """Take what is new, show it piece by piece, and only then look again."""
        job = self._job
        if job is None:
            return
        step = next(self._steps, None)
        if step is None:
            self._take_picture()
        else:
            step()
        if time.monotonic() >= self._next_pace:
            self._next_pace = time.monotonic() + PACE_EVERY_S
            if isinstance(job, ReconstructionJob):
                self._show_pace(job)
            elif isinstance(job, PhasingJob):
                self.show_progress(job.done / job.starts, f"phasing: {job.done} of {job.starts} starts done")
            elif isinstance(job, FollowJob):
                self._show_written(job)
            self._offer()
        self._pull_timer.start(PULL_MS if step is None else BETWEEN_STEPS_MS)

    def _take_picture(self) -> None:
        """Begin to show the newest picture, if there is a new one."""
        picture = self._job.take_picture() if self._job else None
        if picture is not None:
            self._last = picture
            self._steps = self._show_steps(picture)

    def _show_steps(self, picture: Picture) -> Iterator[Callable[[], None]]:
        yield self._choose_view
        yield from self.result_layers.steps(picture)
        yield from self.result_steps(picture)
        if isinstance(self._job, ReconstructionJob):
            yield lambda: self._say_of_run(words.live_words(picture.snapshot))
        yield lambda: self.say_facts(words.frames_words(picture.snapshot))

    def _show_to_the_end(self) -> None:
        """The last picture, at once."""
        for _ in range(2):  # the one being shown, and the one that may wait behind it
            for step in self._steps:
                step()
            self._take_picture()

    def _show_pace(self, job: ReconstructionJob) -> None:
        session, progress = job.session, job.progress
        if session is None or progress is None:
            self.show_progress(float("nan"), "starting")
            return
        pace = words.progress_words(progress, session.frames_per_s, session.time_left_s)
        paused = session.state == "paused"
        self.show_progress(progress.fraction, f"paused · {progress.phase}" if paused else pace)

    def _show_written(self, job: FollowJob) -> None:
        if job.written is None:
            self._say_of_run(f"{job.path} has no result yet: it appears here with the run's first report.")
        elif self._last is not None:
            written = f"Read-only view, last written {words.ago_words(time.time() - job.written)}."
            snapshot = self._last.snapshot
            self._say_of_run(words.sentences(words.verdict_words(snapshot), words.density_words(snapshot), written))
        if job.progress is not None:
            done = job.progress.phase == "done"
            self.show_progress(None if done else job.progress.fraction, "" if done else job.progress.phase)

    def _choose_view(self) -> None:
        """Without a graphics card a volume takes too long to draw: sections then, until the user says otherwise."""
        if not self._view_chosen and self.pose_view.renderer:
            self._view_chosen = True
            self.set_view("slices" if self.pose_view.software_rendering else "volume")

    # ---- buttons

    def _connect(self) -> None:
        self.drop_zone.dropped.connect(self.load)
        self.found_view.edited.connect(self._read)
        self.stream_field.edited.connect(lambda: self._set_state(self.state))
        self.stream_field.connect_asked.connect(self.start)
        self.out.textEdited.connect(self._on_out_edited)
        self.run_button.clicked.connect(self._on_run)
        self.pause_button.clicked.connect(self._on_pause)
        self.after_run.phase_asked.connect(self.phase)
        self.after_run.said.connect(self._answer)
        self.look_button.clicked.connect(lambda: show_look(self.viewer).look_at(self.inputs))
        self.view_changed.connect(self._on_view)
        self.level_changed.connect(self._on_level)
        self.viewer.layers.events.inserted.connect(self._take_from_layer)
        self.viewer.events.theme.connect(self._follow_theme)

    def _on_out_edited(self) -> None:
        self._out_by_user = True
        self._set_state(self.state)

    def _on_run(self) -> None:
        if self.state == "idle":
            self.start()
        else:
            self.stop()

    def _on_pause(self) -> None:
        if isinstance(self._job, ReconstructionJob):
            self._pausing = not self._pausing
            self._job.pause(self._pausing)
            self._set_state(self.state)
        else:
            self.start(resume=True)

    def _on_view(self, view: Literal["volume", "slices"]) -> None:
        self._view_chosen = True
        self.result_layers.set_view(view)

    def _on_level(self, level: float) -> None:
        if self._job is not None:
            self._job.level = level
        if self._last is not None:
            self._last = Picture.of(self._last.snapshot, level)
            self.result_layers.show(self._last)

    def _set_state(self, state: State) -> None:
        from ..run import is_run

        if state == "idle":
            self._pausing = False
        self.state = state
        text = self.out.text().strip()
        continues = state == "idle" and bool(text) and (Path(text) / "checkpoint").is_dir() and is_run(Path(text))
        self.show_state(
            state, paused=self._pausing, can_start=bool(self._found.inputs.frames or self.stream_field.address),
            can_continue=continues, can_pause=isinstance(self._job, ReconstructionJob),
        )  # fmt: skip
        self.look_button.setEnabled(bool(self._found.inputs.frames))
        self._offer()

    def _offer(self) -> None:
        """A report, and more starts, as far as there is something to make them of."""
        from ..run import has_result

        there = bool(self.out.text().strip()) and has_result(self._out_path())
        phasing = self._last.snapshot.phasing if self._last is not None else None
        tried = phasing.starts if phasing else 0
        self.after_run.show_run(self._out_path() if there else None, busy=self.busy, tried=tried)

    def event(self, event: QEvent) -> bool:  # noqa: D102
        if event.type() == QEvent.Type.ParentChange:
            if self.parent() is None:
                self._leave()
            else:
                self._watch()
        elif event.type() == QEvent.Type.Show:
            self._watch()
        elif event.type() == QEvent.Type.Close:
            self._leave()
        return bool(super().event(event))

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """End the run when the dock or the window closes; a window may refuse a user's close until it is hidden."""
        kind, asked = event.type(), event.spontaneous()
        if watched is self._dock():
            if kind == QEvent.Type.Close:
                self.end_run()
        elif not asked and kind in (QEvent.Type.Close, QEvent.Type.Hide):
            self.end_run()
        return False

    def end_run(self) -> None:
        """Stop what runs, and wait (bounded) until its checkpoint is complete."""
        job = self._job
        if job is None:
            return
        self.stop()
        if job.busy:
            job.finished.wait(CLOSE_WAIT_S)

    def _leave(self) -> None:
        """The dock was removed: end the run and let the viewer go."""
        self.end_run()
        self._pull_timer.stop()
        self.viewer.layers.events.inserted.disconnect(self._take_from_layer)
        self.viewer.events.theme.disconnect(self._follow_theme)

    def _dock(self) -> QObject | None:
        parent = self.parent()
        while parent is not None and not isinstance(parent, QDockWidget):
            parent = parent.parent()
        return parent

    def _watch(self) -> None:
        """Hear when the dock or the window closes (to Qt, hearing twice is hearing once)."""
        for thing in (self._dock(), self.window()):
            if thing is not None and thing is not self:
                thing.installEventFilter(self)
        self._canvas_drops.watch(self.window())
