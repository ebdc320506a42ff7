"""The command line: what it prints, what it leaves, and how it ends."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from napari_xrai import session as session_module
from napari_xrai.cli import main
from napari_xrai.core.frames import Frames
from napari_xrai.core.simulate import PRESETS
from napari_xrai.io.cxi_writer import CxiWriter
from napari_xrai.run import read_run
from toy import ToyReconstruction

COMMANDS = ["info", "convert", "simulate", "reconstruct", "phase", "compare", "report", "demo"]


@pytest.fixture
def cli(capsys, monkeypatch, tmp_path):
    """Run the command line in an empty folder; gives the exit status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["napari-xrai", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def toy(monkeypatch):
    """Let the sessions run a toy engine; returns it, for its knobs."""
    engine = ToyReconstruction(passes=2)

    def fresh(*_):
        engine.__init__(engine.passes, engine.step_s, engine.fail_at, engine.error)
        return engine

    monkeypatch.setattr(session_module, "make_reconstruction", fresh)
    monkeypatch.setattr(session_module.LiveDensity, "update", lambda self, snapshot: None)
    return engine


@pytest.fixture
def frames(tmp_path):
    """A CXI file of 200 frames."""
    preset = PRESETS["demo"]
    counts = np.random.default_rng(0).poisson(0.05, (200, *preset.shape))
    path = tmp_path / "frames.cxi"
    with CxiWriter(path, preset.detector(), distance_m=preset.distance_m, polarization="x") as file:
        file.write(Frames.from_dense(counts))
    return path


def is_one_line(err):
    return err.count("\n") == 1 and err.startswith("napari-xrai: ") and "Traceback" not in err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(cli, command):
    status, out, err = cli(command, "--help")
    assert status == 0
    assert f"Example:  napari-xrai {command}" in out
    assert err == ""


def test_help_is_quick():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "napari_xrai", "--help"], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["dance"], "No such command 'dance'"),
        (["info"], "Missing argument 'file'"),
        (["reconstruct", "x.emc", "--seed", "one"], "Invalid value for '--seed'"),
        (["reconstruct", "x.emc", "--seed", "-1"], "--seed: .*greater than or equal to 0"),
        (["reconstruct", "x.emc", "--field", "cloud"], "--field: .*'auto', 'voxel', 'hash' or 'siren'"),
        (["reconstruct", "x.emc", "--polarization", "z"], "--polarization: .*'x', 'y' or 'none'"),
        (["reconstruct", "x.emc", "--config", "none.json"], "none.json cannot be read"),
        (["reconstruct", "x.emc", "--dance"], "No such option: --dance"),
        (["reconstruct", "x.cxi", "--follow", "--idle-timeout", "0.2"], "x.cxi does not exist"),
        (["reconstruct", "tcp://nowhere"], "SOURCE: a stream's address has a host and a port.*tcp://nowhere"),
        (["reconstruct", "x.emc", "--device", "gpu"], "--device: give auto, cpu, cuda, .*not 'gpu'"),
        (["simulate", "cube", "t.cxi", "--seed", "-3"], "--seed: -3 is negative"),
        (["simulate", "cube", "t.cxi", "--photons", "1e12"], r"1e\+12 photons are too many for one frame"),
        (["reconstruct", "tcp://localhost:9", "--idle-timeout", "0.2"], "nothing came from tcp://localhost:9"),
        (["serve", "cube", "--rate", "0"], "--rate must be a positive number"),
        (["reconstruct"], "no frames given"),
        (["reconstruct", "--resume"], "--resume needs the run folder"),
        (["reconstruct", "--resume", "--out", "none"], "none holds no run to resume: check the name"),
        (["reconstruct", "x.emc", "--energy", "0"], r"--energy: .*greater than 0"),
        (["reconstruct", "x.emc", "--config", "."], r"\. cannot be read .*: give the settings\.json of a run"),
        (["reconstruct", "x.emc", "--config", sys.executable], "is no JSON: give the settings.json of a run"),
        (["info", "none.emc", "--field"], "No such option"),
        (["info", ".", "--mask", "."], "holds no frames"),
        (["compare", ".", "."], "is no run folder"),
        (["reconstruct", "none.emc"], "none.emc does not exist"),
        (["info", "none.emc"], "none.emc does not exist"),
        (["compare", "none", "none.h5"], "no such file or folder: none"),
        (["simulate", "teapot", "t.cxi"], "teapot is neither a file nor a built-in particle"),
        (["simulate", "cube", "t.cxi", "--preset", "lunch"], "no preset 'lunch': choose one of"),
        (["simulate", "cube", "t.cxi", "--frames", "0"], "frames must be at least 1"),
        (["simulate", "cube", "nowhere/t.cxi"], "nowhere is no folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_2_and_leaves_nothing(cli, tmp_path, arguments, said):
    status, _, err = cli(*arguments)
    assert status == 2
    assert is_one_line(err)
    assert re.search(said, err)
    assert list(tmp_path.iterdir()) == []


def test_unreadable_frames_are_one_line_and_exit_2(cli, frames, tmp_path):
    (tmp_path / "empty.emc").touch()
    (tmp_path / "torn.cxi").write_bytes(frames.read_bytes()[:5000])
    (tmp_path / "notes.txt").write_text("hello")
    before = sorted(tmp_path.iterdir())
    for name in ("empty.emc", "torn.cxi", "notes.txt"):
        status, _, err = cli("reconstruct", name)
        assert status == 2
        assert is_one_line(err)
        assert name in err
    assert sorted(tmp_path.iterdir()) == before


def test_a_terminal_without_the_signs_gets_the_words(frames):
    said = subprocess.run(
        [sys.executable, "-m", "napari_xrai", "info", frames], capture_output=True, text=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert said.returncode == 0 and said.stderr == ""
    assert "200 frames ? 4,096 pixels" in said.stdout


def test_looking_at_frames_remembers_nothing(cli, tmp_path):
    np.save(tmp_path / "plain.npy", np.random.default_rng(0).poisson(0.1, (50, 64, 64)))
    assert cli("info", "plain.npy", "--distance", "0.3", "--pixel-size", "0.001")[0] == 0
    status, out, _ = cli("info", "plain.npy")
    assert status == 0 and "--distance" in out and "remembered" not in out


def test_info_in_words_and_as_json(cli, frames):
    status, out, _ = cli("info", frames)
    assert status == 0
    assert "200 frames" in out
    status, out, _ = cli("info", frames, "--json")
    described = json.loads(out)
    assert described.keys() == {"format", "frames", "shape", "photons_per_frame", "missing"}
    assert described["shape"] == [64, 64]
    assert described["photons_per_frame"] == pytest.approx(0.05 * 64 * 64, rel=0.02)


def test_simulate_writes_frames_and_truth_and_never_writes_over_them(cli, tmp_path):
    status, out, _ = cli("simulate", "cube", "cube.cxi", "--frames", "20", "--photons", "300", "--seed", "1")
    assert status == 0
    assert out.split() == ["cube.cxi", "cube.truth.h5"]
    _, out, _ = cli("info", "cube.cxi", "--json")
    assert json.loads(out)["frames"] == 20
    before = (tmp_path / "cube.cxi").read_bytes()
    status, _, err = cli("simulate", "cube", "cube.cxi")
    assert status == 2
    assert "exists already" in err
    assert (tmp_path / "cube.cxi").read_bytes() == before


def test_reconstruct_names_its_folder_by_the_frames_and_the_time(cli, toy, frames, tmp_path):
    status, out, err = cli("reconstruct", frames, "--seed", "4")
    assert status == 0, err
    (folder,) = tmp_path.glob("frames_xrai_*")
    assert re.fullmatch(r"frames_xrai_\d{8}-\d{6}", folder.name)
    assert "200 frames" in out
    assert "pass 1 of 2" in out
    assert "log-likelihood" in out
    assert "improving" in out
    run = read_run(folder)
    assert run.settings.engine.seed == 4
    assert run.settings.input.sources == [frames]
    assert len(run.snapshot.poses.frame) == 200


def test_a_run_without_hope_says_so_once_while_it_runs(cli, toy, frames, monkeypatch):
    monkeypatch.setattr("napari_xrai.session.SNAPSHOT_EVERY_S", 0.0)
    toy.verdict, toy.reason = "failed", "the beam is elsewhere"
    status, out, err = cli("reconstruct", frames, "--out", "run")
    assert status == 0, err
    assert out.count("! failed: the beam is elsewhere\n") == 1
    assert out.index("! failed: the beam") < out.index("\nfailed: the beam")


def test_a_run_folder_is_kept_unless_told_otherwise(cli, toy, frames):
    assert cli("reconstruct", frames, "--out", "run", "--seed", "1")[0] == 0
    status, _, err = cli("reconstruct", frames, "--out", "run")
    assert status == 2
    assert is_one_line(err)
    assert "--resume" in err
    assert "--overwrite" in err
    assert cli("reconstruct", frames, "--out", "run", "--overwrite", "--seed", "2")[0] == 0
    assert read_run(Path("run")).settings.engine.seed == 2


def test_what_is_not_meant_for_a_command_is_said(cli, toy, frames, tmp_path):
    assert cli("reconstruct", frames, "--out", "run", "--field", "VOXEL", "--polarization", "X")[0] == 0
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["engine"]["field"] == "voxel"
    for arguments, said in (
        (("info", "run"), "run is a run, not frames: see it with napari-xrai report run"),
        (("info", frames, "--mask", "."), r"\. is a folder: give the mask file"),
        (("info", frames, "--detector", "run"), "run is a folder: give the detector file"),
        (("compare", frames, frames), r"frames\.cxi is no result of napari-xrai: give a run folder, or its"),
        (("compare", "run", "run"), "run is a folder: give the truth file"),
        (("reconstruct", frames, "--out", "run", "--resume", "--overwrite"), "contradict each other: give one"),
        (("convert", "run", "nowhere/poses.csv"), "cannot be written .*: make the folder nowhere first"),
    ):
        status, _, err = cli(*arguments)
        assert status == 2 and is_one_line(err) and re.search(said, err), err


def test_a_run_can_be_run_again_from_its_settings(cli, toy, frames):
    cli("reconstruct", frames, "--out", "one", "--seed", "5", "--max-frames", "100")
    status, _, err = cli("reconstruct", "--config", "one/settings.json", "--out", "two", "--max-frames", "60")
    assert status == 0, err
    settings = read_run(Path("two")).settings
    assert settings.engine.seed == 5
    assert settings.engine.max_frames == 60
    assert read_run(Path("two")).snapshot.counters.received == 60


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_saves_and_exits_130_and_resume_goes_on(cli, toy, frames, tmp_path, number):
    toy.passes = 200

    def interrupt():
        while not (tmp_path / "run" / "settings.json").exists():
            time.sleep(0.01)
        time.sleep(0.3)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    status, out, err = cli("reconstruct", frames, "--out", "run")
    thread.join()
    assert status == 130, err
    assert "--resume --out run" in out
    assert re.search(r"stopped at \d+%: .*\n.*what was found so far is in run/", out) and "improving:" not in out
    assert "Traceback" not in err
    run = read_run(tmp_path / "run")
    assert len(run.snapshot.poses.frame) == 200
    assert (tmp_path / "run" / "checkpoint" / "state.json").exists()

    toy.passes = run.snapshot.progress.frames_seen // 200 + 2
    status, _, err = cli("reconstruct", "--resume", "--out", "run")
    assert status == 0, err
    assert read_run(tmp_path / "run").snapshot.progress.frames_seen > run.snapshot.progress.frames_seen


def test_a_failing_engine_is_one_line_and_exit_1(cli, toy, frames):
    toy.fail_at, toy.error = 100, RuntimeError("out of memory")
    status, _, err = cli("reconstruct", frames, "--out", "run")
    assert status == 1
    assert is_one_line(err)
    assert "out of memory" in err


def test_a_full_disk_is_one_line_and_leaves_nothing(cli, toy, frames, tmp_path):
    before = sorted(tmp_path.iterdir())
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit[1]))
    try:
        status, _, err = cli("reconstruct", frames, "--out", "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert status == 2
    assert is_one_line(err)
    assert "cannot be written" in err
    assert sorted(tmp_path.iterdir()) == before


def test_compare_prints_a_table_and_json(cli, toy):
    cli("simulate", "cube", "cube.cxi", "--frames", "200")
    assert cli("reconstruct", "cube.cxi", "--out", "run")[0] == 0
    status, out, err = cli("compare", "run", "cube.truth.h5")
    assert status == 0, err
    assert "pose error, median" in out
    assert "shell CC" in out
    status, out, _ = cli("compare", "run/reconstruction.h5", "cube.truth.h5", "--json")
    figures = json.loads(out)
    assert figures["frames"] == 200
    assert figures["pose_error_deg"].keys() == {"median", "mean", "p90"}
