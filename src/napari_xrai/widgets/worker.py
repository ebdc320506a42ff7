"""What runs beside the window: a reconstruction, or a look at one that another process is writing.

The worker never pushes pictures into Qt: it leaves the newest in a slot, and the panel takes it when it has time.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QObject
from superqt.utils import GeneratorWorker, create_worker

from ..layers import DEFAULT_LEVEL, Picture
from ..session import ReconstructionError, open_session, usable_cores

if TYPE_CHECKING:
    from ..core.frames import Progress, Snapshot
    from ..session import Session
    from ..settings import Settings

POLL_S = 1.0
TICK_S = 0.1
SWITCH_S = 0.001


ErrorSlot = Callable[["Job", Exception], None]
EndSlot = Callable[["Job"], None]


class Job:
    """Work in the background, and the one slot through which the panel looks at it.

    Attributes
    ----------
    level : float
        Where the density's surface is drawn; the panel may change it at any time.
    finished : threading.Event
        Set once the work, its clean-up included, is over.
    progress : Progress or None
    busy : bool
        Whether it writes a run: the panel does nothing else meanwhile.
    """

    busy = False

    def __init__(self, level: float = DEFAULT_LEVEL) -> None:
        self.level = level
        self.finished = threading.Event()
        self.progress: Progress | None = None
        self._lock = threading.Lock()
        self._picture: Picture | None = None
        self._stopping = threading.Event()

    def run(self) -> Iterator[None]:
        """Do the work, yielding often."""
        raise NotImplementedError

    def stop(self) -> None:
        """End after the current step, everything saved. From any thread."""
        self._stopping.set()

    def take_picture(self) -> Picture | None:
        """The newest picture, if it was not taken yet."""
        with self._lock:
            picture, self._picture = self._picture, None
            return picture

    def _draw(self, snapshot: Snapshot) -> None:
        picture = Picture.of(snapshot, self.level)
        with self._lock:
            self._picture = picture


class ReconstructionJob(Job):
    """One reconstruction: the files are opened, torch imported and the engine run off the GUI thread.

    Parameters
    ----------
    settings : Settings
        Its `input` names the files.
    out : Path
        The run folder.
    resume : bool
        Continue the run that is there.
    """

    busy = True

    def __init__(self, settings: Settings, out: Path, *, resume: bool = False, level: float = DEFAULT_LEVEL) -> None:
        super().__init__(level)
        self.settings, self.out, self.resume_run = settings, out, resume
        self.session: Session | None = None
        self._pausing = False

    def run(self) -> Iterator[None]:
        """Reconstruct; closing the generator stops and saves."""
        interval = sys.getswitchinterval()
        # drawing takes Python's lock hundreds of times a frame, and each time waits for the worker to give it up
        sys.setswitchinterval(min(interval, SWITCH_S))
        try:
            yield from self._reconstruct()
        finally:
            sys.setswitchinterval(interval)

    def _reconstruct(self) -> Iterator[None]:
        engine = self.settings.engine
        if engine.threads is None:  # one core is the window's
            engine = engine.model_copy(update={"threads": max(1, usable_cores() - 1)})
        settings = self.settings.model_copy(update={"engine": engine})
        session = self.session = open_session(settings, self.out, resume=self.resume_run)
        if self._pausing:
            session.pause()
        steps = session.run()
        try:
            for progress in steps:
                self.progress = progress
                self._look(session)
                if self._stopping.is_set():
                    session.stop()
                yield
        finally:
            steps.close()  # type: ignore[attr-defined]
            self._look(session)

    def stop(self) -> None:
        """End after the current step, everything saved. From any thread."""
        super().stop()
        if self.session is not None:
            self.session.stop()

    def pause(self, pausing: bool) -> None:
        """Rest after the current step, or go on. From any thread."""
        self._pausing = pausing
        if self.session is not None:
            (self.session.pause if pausing else self.session.resume)()

    def _look(self, session: Session) -> None:
        snapshot = session.take_snapshot()
        if snapshot is not None:
            self._draw(snapshot)


class FollowJob(Job):
    """Looks at a run folder, read-only, for as long as asked: each time its result was replaced, a new picture."""

    def __init__(self, path: Path, level: float = DEFAULT_LEVEL) -> None:
        super().__init__(level)
        self.path = path
        self.written: float | None = None
        """When the run was last written, in seconds since the epoch."""

    def run(self) -> Iterator[None]:
        """Poll the run folder until stopped."""
        from ..run import read_run

        level, next_look = self.level, 0.0
        while not self._stopping.is_set():
            if time.monotonic() >= next_look or level != self.level:
                next_look, written = time.monotonic() + POLL_S, self._last_written()
                if written != self.written or level != self.level:
                    self.written, level = written, self.level
                    snapshot = read_run(self.path).snapshot
                    if snapshot is not None:
                        self.progress = snapshot.progress
                        self._draw(snapshot)
            time.sleep(TICK_S)
            yield

    def _last_written(self) -> float | None:
        names = ("reconstruction.h5", "metrics.jsonl") if self.path.is_dir() else ("",)
        times = []
        for name in names:
            with suppress(FileNotFoundError):
                times.append((self.path / name).stat().st_mtime)
        return max(times, default=None)


class PhasingJob(Job):
    """Phases a saved run again, from several starts, and draws what came of it.

    Parameters
    ----------
    out : Path
        The run folder, or its result file.
    starts : int
        Random phase sets.
    """

    busy = True

    def __init__(self, out: Path, starts: int, level: float = DEFAULT_LEVEL) -> None:
        super().__init__(level)
        self.out, self.starts = out, starts
        self.done = 0
        self.summary = ""

    def run(self) -> Iterator[None]:
        """Phase; stopped or closed before the last start is done, it leaves the run as it was."""
        from ..phase import RunPhasing
        from ..run import read_run

        phasing = RunPhasing(self.out, self.starts, threads=max(1, usable_cores() - 1))  # one core is the window's
        steps = phasing.steps()
        try:
            for self.done, _ in steps:
                if self._stopping.is_set():
                    return
                yield
        finally:
            steps.close()  # type: ignore[attr-defined]
        self.summary = phasing.summary
        snapshot = read_run(self.out).snapshot
        if snapshot is not None:
            self._draw(snapshot)


class JobWorker(GeneratorWorker):
    """Runs a job in Qt's thread pool and tells of every end.

    superqt swallows a generator's RuntimeError (out of memory, shape errors) and leaves it open on ``quit``; here
    the generator is always closed, so that what was found is saved, and every error reaches ``errored``.
    """

    job: Job

    def work(self) -> Any:
        """Iterate the job to its end."""
        try:
            try:
                result = super().work()
            finally:
                self._gen.close()
        except RuntimeError as error:
            raise ReconstructionError(str(error)) from error
        finally:
            self.job.finished.set()
        if isinstance(result, RuntimeError):
            raise ReconstructionError(str(result)) from result
        return result


class _Ears(QObject):
    """Hears a worker's end on the GUI thread; goes with its parent, so that nothing reaches a closed panel."""

    def __init__(self, parent: QObject, job: Job, errored: ErrorSlot, ended: EndSlot) -> None:
        super().__init__(parent)
        self._job, self._errored, self._ended = job, errored, ended

    def hear_error(self, error: Exception) -> None:
        self._errored(self._job, error)

    def hear_end(self) -> None:
        self._ended(self._job)
        self.deleteLater()


def start_worker(parent: QObject, job: Job, errored: ErrorSlot, ended: EndSlot) -> JobWorker:
    """Start `job` in a thread; `errored` and `ended` are called on `parent`'s thread, while it lives.

    Made by superqt and not by ``napari.qt.threading``: napari would ask before its window may close and show its
    own error box, while the panel ends the run by itself and says what went wrong.
    """
    worker: JobWorker = create_worker(job.run, _start_thread=False, _worker_class=JobWorker, _ignore_errors=True)
    worker.job = job
    ears = _Ears(parent, job, errored, ended)
    worker.errored.connect(ears.hear_error)
    worker.finished.connect(ears.hear_end)
    worker.start()
    return worker
