"""A session: frames in, run folder out, and the newest snapshot for whoever watches.

A plain generator, so that the command line iterates it and the panel runs it in a thread; it knows neither.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from .core.frames import GOOD, Detector, Frames, Progress, Snapshot, UsedGeometry
from .io.source import FrameSource, InputError
from .live_density import FINAL_STARTS, LiveDensity
from .remembered import remember
from .run import RunFolder, read_metrics, read_run
from .run_lock import only_writer
from .settings import EngineSettings, Settings

if TYPE_CHECKING:
    from .core.online import OnlineReconstruction
    from .core.reconstruction import Reconstruction
    from .io.live import LiveSource

# Idle OpenMP threads must sleep, not spin: on busy cores spinning costs a factor of ten. Read once, at torch's import.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

SNAPSHOT_EVERY_S = 1.0
REPORT_EVERY_S = 5.0
POSES_EVERY_S = 60.0
PAUSE_TICK_S = 0.05
WRITING_SHARE = 0.05
"""Part of the time that writing may take: reports come less often where the disk is slow or the run is large."""

State = Literal["idle", "running", "paused", "stopping", "done", "failed"]


class ReconstructionError(Exception):
    """The engine failed. One sentence with a remedy.

    Not a RuntimeError: Qt worker threads of superqt swallow those.
    """


class Session:
    """One reconstruction, from its frames to its run folder.

    Parameters
    ----------
    source : FrameSource
        With a detector.
    settings : Settings
        Written to the run folder; `settings.engine` drives the engine.
    out : Path
        The run folder.
    resume, overwrite : bool
        Continue the run that is there, or replace it.

    Attributes
    ----------
    state : str
        ``idle``, ``running``, ``paused``, ``stopping``, ``done`` or ``failed``.
    frames_per_s : float
        Frame visits per second over the last seconds.
    time_left_s : float or None
        None where it cannot be told yet.
    last_snapshot : Snapshot or None
        The newest; unlike `take_snapshot` it can be looked at again.

    Raises
    ------
    InputError
        If the geometry is missing, or `out` cannot take this run.
    """

    def __init__(
        self, source: FrameSource, settings: Settings, out: Path, *, resume: bool = False, overwrite: bool = False
    ) -> None:
        self.source, self.settings, self.out = source, settings, Path(out)
        self.state: State = "idle"
        self.frames_per_s = 0.0
        self.time_left_s: float | None = None
        self.last_snapshot: Snapshot | None = None
        self._detector = _require_detector(source)
        self._resume, self._overwrite = resume, overwrite
        self._folder = RunFolder(self.out)
        self._folder.check(resume=resume, overwrite=overwrite)
        if resume:
            self._require_same_frames()
        self._pausing, self._stopping = threading.Event(), threading.Event()
        self._slot_lock = threading.Lock()
        self._slot: Snapshot | None = None
        self._pace: deque[tuple[float, Progress]] = deque()
        self._first: tuple[float, float] | None = None
        self._photons = self._counted = 0

    def run(self) -> Iterator[Progress]:
        """Reconstruct. Yields at every step of the engine; closing the generator stops, keeping the best result.

        Raises
        ------
        InputError
            If the frames or the run folder turn out unusable: every frame empty, the disk full.
        ReconstructionError
            If the engine fails: out of memory, no such device.
        """
        self.state = "running"
        try:
            with _in_words(self.out):
                live = self.settings.stream.live
                engine = make_reconstruction(self._detector, self.settings.engine, self._n_frames(), live)
                self._phasing = LiveDensity()
                with only_writer(self.out):
                    self._begin(engine)
                    yield from self._steps(engine)
            self.state = "done"
        except GeneratorExit:
            self.state = "done"
            raise
        except BaseException:
            self.state = "failed"
            raise

    def stop(self) -> None:
        """Stop after the current step; what was found is saved. From any thread."""
        self._stopping.set()
        if self.state in ("running", "paused"):
            self.state = "stopping"

    def pause(self) -> None:
        """Rest after the current step. From any thread."""
        self._pausing.set()

    def resume(self) -> None:
        """Go on after `pause`. From any thread."""
        self._pausing.clear()

    def take_snapshot(self) -> Snapshot | None:
        """The newest snapshot, if it was not taken yet. From any thread."""
        with self._slot_lock:
            snapshot, self._slot = self._slot, None
            return snapshot

    def _require_same_frames(self) -> None:
        """A run goes on with the frames it began with: poses of others would be mixed in."""
        before = read_run(self.out).settings
        if before is None:
            return
        began, now = ([path.name for path in s.input.sources] for s in (before, self.settings))
        if (before.input.select, before.input.binning) != (self.settings.input.select, self.settings.input.binning):
            raise InputError(f"{self.out} was made with another selection or binning: choose another folder")
        for name in ("symmetry", "field", "beam_centre", "uneven_background"):
            first, then = (getattr(s.engine, name) for s in (before, self.settings))
            if first != then:
                said = name.replace("_", " ")
                raise InputError(f"{self.out} was made with {said} {first}, not {then}: choose another folder")
        if began != now:
            raise InputError(
                f"{self.out} was made from {', '.join(began)}, not {', '.join(now)}: resume it with those, or choose "
                "another folder"
            )

    def _begin(self, engine: Reconstruction) -> None:
        self._folder.start(self.settings, resume=self._resume, overwrite=self._overwrite)
        self._time_before = self._cpu_before = 0.0
        if self._resume and (checkpoint := self._folder.read_checkpoint()):
            engine.restore(*checkpoint)
            if self.settings.stream.live:
                cast("LiveSource", self.source).names.restore(checkpoint[0])
            reports = read_metrics(self.out)
            if reports:
                self._time_before, self._cpu_before = reports[-1]["time_s"], reports[-1]["cpu_s"]
        self._began, self._cpu_began = time.monotonic(), time.process_time()
        self._next_snapshot = self._began
        self._next_report = self._began + REPORT_EVERY_S
        self._next_poses = self._began + POSES_EVERY_S

    def _steps(self, engine: Reconstruction) -> Iterator[Progress]:
        """The engine's steps, with snapshots, reports and pauses between them, and everything saved at the end."""
        # a generator, whatever its type says: closing it is how the engine stops
        steps = cast("Generator[Progress, None, None]", self._engine_steps(engine))
        started = False
        try:
            for progress in steps:
                started = True
                self._keep_pace(progress)
                self._look(engine)
                yield progress
                yield from self._rest(progress)
                if self._stopping.is_set():
                    break
            else:
                yield from self._phase_well(engine)
        finally:
            steps.close()
            if started:
                self._finish(engine)

    def _engine_steps(self, engine: Reconstruction) -> Iterator[Progress]:
        if not self.settings.stream.live:
            yield from engine.run(self._batches)
            return
        source, online = cast("LiveSource", self.source), cast("OnlineReconstruction", engine)
        with source.inlet(online.table.length, self.settings.engine.max_frames) as inlet:
            yield from online.follow(inlet)

    def _phase_well(self, engine: Reconstruction) -> Iterator[Progress]:
        """Phase a finished intensity from several starts: the live density is good to watch, not to keep."""
        snapshot = engine.snapshot()
        if snapshot is not None:
            snapshot = replace(snapshot, trust=engine.trust())
            self._phasing.update(snapshot)
            pace, self.frames_per_s, self.time_left_s = self.frames_per_s, 0.0, None
            with ThreadPoolExecutor(1) as pool:
                phased = pool.submit(self._phasing.finish, snapshot, self._stopping)
                while True:
                    of = f"start {min(self._phasing.starts + 1, FINAL_STARTS)} of {FINAL_STARTS}"
                    yield replace(snapshot.progress, phase=f"phasing the density: {of}")
                    if phased.done():
                        break
                    time.sleep(PAUSE_TICK_S)
                    self._look(engine)
                phased.result()
            self.frames_per_s = pace

    def _look(self, engine: Reconstruction) -> None:
        """Take a snapshot and make a report, when they are due."""
        now = time.monotonic()
        if now < min(self._next_snapshot, self._next_report):
            return
        poses = now >= max(self._next_report, self._next_poses)
        snapshot = engine.snapshot()
        self._next_snapshot = time.monotonic() + SNAPSHOT_EVERY_S
        if snapshot is None:
            return
        snapshot = self._show(replace(snapshot, trust=engine.trust()) if poses else snapshot)
        if self._phasing.is_due(now - self._began):
            self._phasing.update(snapshot)
        if now >= self._next_report:
            self._report(engine, snapshot, poses=poses)

    def _show(self, snapshot: Snapshot) -> Snapshot:
        """Put a snapshot, with the newest density, into the slot."""
        snapshot = replace(
            snapshot, density=self._phasing.density, phasing=self._phasing.outcome,
            facts={**self._input_facts(snapshot.geometry), **snapshot.facts},
        )  # fmt: skip
        with self._slot_lock:
            self._slot = self.last_snapshot = snapshot
        return snapshot

    def _input_facts(self, used: UsedGeometry | None) -> dict[str, str]:
        """What went in, in words: it is kept with the result, which may be all that is left one day."""
        detector, energy = self._detector, self._detector.energy_eV
        photons = f", {self._photons / self._counted:,.4g} photons each" if self._counted else ""
        pixels = " × ".join(f"{side:,}" for side in detector.shape)
        mask = detector.mask if used is None else used.mask
        faults = ", ".join(f"{n:,} × {what}" for what, n in getattr(self.source, "faults", {}).items())
        return {
            **({"faults": faults} if faults else {}),
            "frames": f"{self.source.format}{photons}",
            "detector": f"{pixels} pixels, {int((mask == GOOD).sum()):,} used for poses",
            "photon energy": f"{energy:,.6g} eV" if energy else "not known: lengths are in detector voxels",
        }

    def _report(self, engine: Reconstruction, snapshot: Snapshot, *, poses: bool) -> None:
        began = time.monotonic()
        self._folder.append_metrics(self._metrics(snapshot))
        identity = getattr(self.source, "identity", None)
        if snapshot.geometry is not None and hasattr(self.source, "on_pixels"):  # of the frames, not of summed ones
            snapshot = replace(snapshot, geometry=self.source.on_pixels(snapshot.geometry))
        paths = "\n".join(map(str, self.source.paths))
        self._folder.write_result(snapshot, paths, poses=poses and engine.pose_columns(), identity=identity)
        arrays, rest = engine.state()
        if arrays:
            names = cast("LiveSource", self.source).names.state() if self.settings.stream.live else {}
            self._folder.write_checkpoint(arrays | names, rest)
        now = time.monotonic()
        self._next_report = now + max(REPORT_EVERY_S, (now - began) / WRITING_SHARE)
        if poses:
            self._next_poses = now + POSES_EVERY_S

    def _finish(self, engine: Reconstruction) -> None:
        """Save the final state, phased once more so that the density is of the same moment as the intensity."""
        snapshot = engine.snapshot(all_poses=True)
        if snapshot is None:
            return
        if not self._phasing.finished:
            self._phasing.update(snapshot)
        snapshot = self._show(snapshot)
        self._report(engine, snapshot, poses=True)
        self._folder.write_maps(snapshot)

    def _metrics(self, snapshot: Snapshot) -> dict[str, Any]:
        likelihoods = snapshot.history.get("log_likelihood", np.empty(0))
        return {
            "time_s": round(self._time_before + time.monotonic() - self._began, 3),
            "cpu_s": round(self._cpu_before + time.process_time() - self._cpu_began, 3),
            "frames_per_s": round(self.frames_per_s, 2),
            "log_likelihood": float(likelihoods[-1]) if len(likelihoods) else math.nan,
            "resolution_A": snapshot.resolution_A,
            "verdict": snapshot.verdict,
            **vars(snapshot.counters),
            "hits": snapshot.counters.hits,
            **snapshot.live,
            **({"alerts": snapshot.alerts, "faults": cast("LiveSource", self.source).faults} if snapshot.live else {}),
        }

    def _rest(self, progress: Progress) -> Iterator[Progress]:
        while self._pausing.is_set() and not self._stopping.is_set():
            self.state = "paused"
            time.sleep(PAUSE_TICK_S)
            self._pace.clear()
            self._first = None
            yield progress
        if not self._stopping.is_set():
            self.state = "running"

    def _keep_pace(self, progress: Progress) -> None:
        """Frames per second over the last ten seconds; time left from the whole run, whose phases differ in pace."""
        now = time.monotonic()
        self._pace.append((now, progress))
        while self._pace[0][0] < now - 10:
            self._pace.popleft()
        then, earlier = self._pace[0]
        if now > then:
            self.frames_per_s = (progress.frames_seen - earlier.frames_seen) / (now - then)
        if self._first is None:
            self._first = now, progress.fraction
        began, fraction = self._first
        gained = progress.fraction - fraction
        self.time_left_s = (1 - progress.fraction) * (now - began) / gained if gained > 0.01 else None

    def _batches(self, size: int, start: int = 0) -> Iterator[Frames]:
        """The stream from frame `start` on, up to `max_frames`."""
        end = self.settings.engine.max_frames
        for frames in self.source.batches(size, start):
            start += len(frames)
            if start > self._counted:
                self._photons, self._counted = self._photons + int(frames.count.sum()), self._counted + len(frames)
            if end is not None and start >= end:
                yield frames.take(slice(0, len(frames) - (start - end)))
                return
            yield frames

    def _n_frames(self) -> int | None:
        limits = [n for n in (self.source.n_frames, self.settings.engine.max_frames) if n is not None]
        return min(limits, default=None)


def open_session(settings: Settings, out: Path, *, resume: bool = False, overwrite: bool = False) -> Session:
    """A session on the files that `settings.input` names.

    Raises
    ------
    InputError
        If the files, or the run folder, cannot be used.
    """
    from .io.open import open_source

    given = settings.input
    if settings.stream.live:
        return Session(_open_live(settings), settings, out, resume=resume, overwrite=overwrite)
    source = open_source(
        given.sources, detector=given.detector, mask=given.mask, energy_eV=given.energy_eV,
        distance_m=given.distance_m, pixel_size_m=given.pixel_size_m, polarization=given.polarization,
        select=given.select, binning=given.binning or "auto",
    )  # fmt: skip
    remember(source, given)
    return Session(source, settings, out, resume=resume, overwrite=overwrite)


def _open_live(settings: Settings) -> LiveSource:
    from .io.live import StreamOptions, open_live
    from .io.source import Beam

    given = settings.input
    if given.select is not None:
        raise InputError("frames of a stream cannot be selected: leave out --select")
    options = StreamOptions(**settings.stream.model_dump(exclude={"follow"}))
    beam = Beam(given.energy_eV, given.distance_m, given.pixel_size_m, given.polarization)
    return open_live(given.sources, options, detector=given.detector, mask=given.mask, beam=beam)


def make_reconstruction(
    detector: Detector, settings: EngineSettings, n_frames: int | None, live: bool = False
) -> Reconstruction:
    """The engine for these settings, for a stream if it is `live`; torch is imported here and not before.

    Raises
    ------
    ValueError
        If there is no such device.
    """
    from .core.online import OnlineReconstruction
    from .core.reconstruction import Reconstruction
    from .core.reconstruction_settings import ReconstructionSettings

    chosen = ReconstructionSettings(
        passes=settings.passes,
        seed=settings.seed,
        fluence=settings.fluence,
        field=settings.field,
        symmetry=settings.symmetry,
        proposals=settings.proposals,
        beam_centre=settings.beam_centre,
        uneven_background=settings.uneven_background,
        threads=settings.threads or usable_cores(),
        device=settings.device,
    )
    return (OnlineReconstruction if live else Reconstruction)(detector, chosen, n_frames)


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _require_detector(source: FrameSource) -> Detector:
    if source.detector is None:
        name = source.paths[0] if source.paths else source.format
        numbers = ""
        if len(source.shape) == 2:
            numbers = (
                "; or, for a flat one, --distance, --pixel-size and --energy (in the panel: distance, pixel, energy)"
            )
        raise InputError(
            f"{name} has no geometry: give its detector or .geom file (--detector, or drop it on the panel){numbers}"
        )
    return source.detector


@contextmanager
def _in_words(out: Path) -> Iterator[None]:
    """Turn what the engine raises into one sentence with a remedy."""
    saved = f"what was found so far is in {out}"
    try:
        yield
    except InputError:
        raise
    except ValueError as error:
        raise InputError(str(error)) from error
    except (MemoryError, RuntimeError) as error:
        said = (str(error) or type(error).__name__).splitlines()[0]
        if isinstance(error, MemoryError) or "out of memory" in said or "allocate memory" in said:
            remedy = "close other programs, or give it --device cpu if it ran on a GPU"
            raise ReconstructionError(f"out of memory: {remedy}; {saved}") from error
        raise ReconstructionError(f"the reconstruction failed ({said}); {saved}") from error
