"""A session: states, pause and stop, snapshots, errors in words, everything saved in the end."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from napari_xrai import session as session_module
from napari_xrai.core.frames import GOOD, HC_EV_A
from napari_xrai.core.particle import builtin_particle
from napari_xrai.core.simulate import Preset, simulate
from napari_xrai.demo import run_demo
from napari_xrai.io.source import InputError
from napari_xrai.run import read_run
from napari_xrai.session import ReconstructionError, Session
from napari_xrai.settings import EngineSettings, InputSettings, Settings
from toy import ToyReconstruction, ToySource


@pytest.fixture
def engine(monkeypatch):
    """The engine the next session gets; density is the intensity."""
    toy = ToyReconstruction()
    monkeypatch.setattr(session_module, "make_reconstruction", lambda *_: toy)

    def phase(self, snapshot):
        self.density = replace(snapshot.intensity, units="angstrom")

    monkeypatch.setattr(session_module.LiveDensity, "update", phase)
    return toy


def new_session(out, source=None, **engine_settings):
    return Session(source or ToySource(), Settings(engine=EngineSettings(**engine_settings)), out)


def test_a_run_to_the_end_leaves_the_whole_folder(engine, tmp_path):
    session = new_session(tmp_path / "run")
    assert session.state == "idle"
    steps = list(session.run())
    assert session.state == "done"
    assert ["phasing the density" in step.phase for step in steps].index(True) == 30
    assert all("phasing the density: start " in step.phase for step in steps[30:])
    names = {p.name for p in (tmp_path / "run").iterdir()}
    assert names == {
        "settings.json", "metrics.jsonl", "checkpoint", "reconstruction.h5", "intensity.mrc", "density.mrc"
    }  # fmt: skip
    run = read_run(tmp_path / "run")
    assert len(run.snapshot.poses.frame) == 200
    last = run.metrics[-1]
    assert {"time_s", "cpu_s", "frames_per_s", "log_likelihood", "resolution_A", "verdict"} <= last.keys()
    assert last["received"] == last["dropped"] + last["not_hit"] + last["junk"] + last["used"] == 200
    assert last["hits"] == last["junk"] + last["used"]
    assert last["frames_per_s"] > 0


def test_snapshots_are_pulled_once_each_and_are_never_old(engine, tmp_path, monkeypatch):
    monkeypatch.setattr(session_module, "SNAPSHOT_EVERY_S", 0.05)
    session = new_session(tmp_path / "run")
    seen = []
    for progress in session.run():
        if snapshot := session.take_snapshot():
            assert session.take_snapshot() is None
            assert progress.frames_seen - snapshot.progress.frames_seen <= 20
            seen.append(snapshot.progress.frames_seen)
    assert len(seen) >= 3
    assert seen == sorted(seen)
    last = session.take_snapshot()
    assert last.progress.frames_seen == 600
    assert last.density is not None


def test_closing_the_generator_is_stop_and_keeps_the_result(engine, tmp_path):
    session = new_session(tmp_path / "run")
    steps = session.run()
    for _ in range(12):
        next(steps)
    steps.close()
    assert session.state == "done"
    run = read_run(tmp_path / "run")
    assert run.snapshot.progress.frames_seen == 240
    assert len(run.snapshot.poses.frame) == 200
    assert (tmp_path / "run" / "checkpoint" / "state.json").exists()


def test_stop_pause_and_resume_take_effect_at_the_next_step(engine, tmp_path):
    session = new_session(tmp_path / "run")
    steps = session.run()
    next(steps)
    session.pause()
    paused = [next(steps).frames_seen for _ in range(3)]
    assert session.state == "paused"
    assert len(set(paused)) == 1
    session.resume()
    assert next(steps).frames_seen > paused[-1]
    assert session.state == "running"
    session.stop()
    assert session.state == "stopping"
    assert len(list(steps)) == 0
    assert session.state == "done"


def test_stop_ends_a_pause(engine, tmp_path):
    session = new_session(tmp_path / "run")
    steps = session.run()
    next(steps)
    session.pause()
    next(steps)
    session.stop()
    assert list(steps) == []
    assert session.state == "done"


def test_a_stopped_run_goes_on_where_it_was(engine, tmp_path, monkeypatch):
    session = new_session(tmp_path / "run")
    steps = session.run()
    for _ in range(15):
        next(steps)
    steps.close()
    first = read_run(tmp_path / "run").metrics

    fresh = ToyReconstruction()
    monkeypatch.setattr(session_module, "make_reconstruction", lambda *_: fresh)
    with pytest.raises(InputError, match="--resume"):
        new_session(tmp_path / "run")
    again = Session(ToySource(), Settings(), tmp_path / "run", resume=True)
    progress = next(steps := again.run())
    assert progress.frames_seen == 320
    list(steps)
    metrics = read_run(tmp_path / "run").metrics
    assert metrics[: len(first)] == first
    assert metrics[-1]["time_s"] > first[-1]["time_s"]
    assert metrics[-1]["cpu_s"] >= first[-1]["cpu_s"]


def test_max_frames_counts_received_frames(engine, tmp_path):
    session = new_session(tmp_path / "run", max_frames=50)
    list(session.run())
    assert read_run(tmp_path / "run").snapshot.counters.received == 50


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "out of memory.*close other programs"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "out of memory.*--device cpu"),
        (RuntimeError("shape '[2]' is invalid\nand more"), r"failed \(shape '\[2\]' is invalid\)"),
    ],
)
def test_engine_errors_come_in_words_and_keep_what_was_found(engine, tmp_path, error, message):
    engine.fail_at, engine.error = 300, error
    session = new_session(tmp_path / "run")
    with pytest.raises(ReconstructionError, match=message) as caught:
        list(session.run())
    assert "\n" not in str(caught.value)
    assert not isinstance(caught.value, RuntimeError)
    assert session.state == "failed"
    assert len(read_run(tmp_path / "run").snapshot.poses.frame) == 200


def test_what_the_engine_finds_wrong_with_the_data_is_an_input_error(engine, tmp_path):
    engine.fail_at, engine.error = 1, ValueError("no two frames look alike: give more frames")
    with pytest.raises(InputError, match="no two frames look alike"):
        list(new_session(tmp_path / "run").run())


def test_missing_geometry_is_found_before_anything_is_written(engine, tmp_path):
    source = ToySource()
    source.detector = None
    with pytest.raises(InputError, match=r"toy.emc has no geometry.*--detector"):
        new_session(tmp_path / "run", source)
    assert not (tmp_path / "run").exists()


def test_live_phasing_keeps_to_its_share(engine, tmp_path, monkeypatch):
    spent = []

    def slow(self, snapshot):
        began = time.monotonic()
        time.sleep(0.05)
        spent.append(time.monotonic() - began)
        self._spent_s += spent[-1]

    monkeypatch.setattr(session_module.LiveDensity, "update", slow)
    monkeypatch.setattr(session_module, "SNAPSHOT_EVERY_S", 0.01)
    engine.passes = 100
    steps = new_session(tmp_path / "run").run()
    began = time.monotonic()
    while time.monotonic() < began + 1.5:
        next(steps)
    live = list(spent)
    steps.close()
    assert len(live) >= 2
    assert sum(live) <= 0.1 * 1.5 + 0.1


@pytest.mark.parametrize(
    ("name", "other"), [("symmetry", "C2"), ("field", "hash"), ("beam_centre", "given"), ("uneven_background", "left")]
)
def test_what_a_run_was_begun_with_is_not_changed_under_way(engine, tmp_path, name, other):
    list(new_session(tmp_path / "run").run())
    again = Settings(engine=EngineSettings(**{name: other}))
    with pytest.raises(InputError, match=f"was made with {name.replace('_', ' ')}.*, not {other}: choose another"):
        Session(ToySource(), again, tmp_path / "run", resume=True)


def test_stopped_while_it_is_phased_it_begins_no_other_start_and_keeps_the_live_density(tmp_path, monkeypatch):
    from napari_xrai.core import phasing

    made = []

    def slow(*_):
        made.append(time.sleep(0.2))

    monkeypatch.setattr(session_module, "make_reconstruction", lambda *_: ToyReconstruction())
    monkeypatch.setattr(phasing, "_run_start", slow)
    session = new_session(tmp_path / "run")
    steps = []
    for step in session.run():
        steps.append(step)
        if "start 2" in step.phase:
            session.stop()
    assert len(made) == 2 and session.state == "done"
    assert session.time_left_s is None
    assert read_run(tmp_path / "run").snapshot.density is not None


def test_the_real_engine_can_be_stopped_early_and_leaves_a_whole_run(tmp_path):
    preset = Preset((24, 24), 3.2e-3, 0.3, HC_EV_A / 4.0, stop_radius_px=1.5, photons=1000)
    detector, _, batches = simulate(builtin_particle("demo"), preset, n_frames=120)
    source = ToySource(n_frames=120, side=24, detector=detector)
    source.counts = np.concatenate([frames.dense() for frames in batches]).reshape(-1, 24, 24)
    source.counts[:, 7, 16] += 100  # hot: of the pixels used for poses until frames are seen
    session = new_session(tmp_path / "run", source, threads=1)
    steps = session.run()
    for _ in steps:
        if (snapshot := session.take_snapshot()) is not None and snapshot.progress.fraction > 0.02:
            break
    steps.close()
    run = read_run(tmp_path / "run")
    assert run.snapshot.intensity.data.max() > 0
    assert np.isfinite(run.snapshot.intensity.data).all()
    assert run.metrics[-1]["verdict"] != "converged"
    assert (tmp_path / "run" / "intensity.mrc").exists()
    used = run.snapshot.geometry
    assert np.argwhere(used.left_out).tolist() == [[7, 16]]
    assert run.snapshot.facts["detector"] == f"24 × 24 pixels, {(used.mask == GOOD).sum()} used for poses"


def test_a_device_that_cannot_be_used_is_named(tmp_path):
    steps = new_session(tmp_path / "run", device="cuda:7").run()
    with pytest.raises(InputError, match=r"no cuda:7 here, torch sees .*: leave out --device"):
        next(steps)
    assert not (tmp_path / "run").exists()


def test_a_run_does_not_go_on_with_other_frames(engine, tmp_path):
    began = Settings(input=InputSettings(sources=[Path("one.emc")]))
    list(Session(ToySource(), began, tmp_path / "run").run())
    before = (tmp_path / "run" / "settings.json").read_bytes()
    other = Settings(input=InputSettings(sources=[Path("two.emc")]))
    with pytest.raises(InputError, match=r"one\.emc, not two\.emc"):
        Session(ToySource(), other, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "settings.json").read_bytes() == before
    Session(ToySource(), began, tmp_path / "run", resume=True)


def test_a_second_run_does_not_write_into_the_first_ones_folder(engine, tmp_path):
    first = new_session(tmp_path / "run")
    steps = first.run()
    next(steps)
    second = Session(ToySource(), Settings(), tmp_path / "run", overwrite=True)
    with pytest.raises(InputError, match="run is being written by process"):
        next(second.run())
    steps.close()
    list(second.run())


def test_the_demo_spares_what_it_did_not_make(engine, tmp_path):
    list(new_session(tmp_path / "run").run())
    before = (tmp_path / "run" / "reconstruction.h5").read_bytes()
    with pytest.raises(InputError, match="--out"):
        run_demo(tmp_path / "run", headless=True)
    assert (tmp_path / "run" / "reconstruction.h5").read_bytes() == before
