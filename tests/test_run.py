"""The run folder: complete or absent at every moment, and readable while it is being written."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
import tracemalloc
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import h5py
import mrcfile
import numpy as np
import pytest

from napari_xrai.core.blocks import BLOCK_ROWS, Blocks
from napari_xrai.core.frames import Poses, UsedGeometry, Volume
from napari_xrai.io.source import InputError
from napari_xrai.run import RunFolder, read_run
from napari_xrai.run_lock import only_writer
from napari_xrai.run_result import read_pose_columns
from napari_xrai.settings import EngineSettings, Settings
from toy import ToyReconstruction, ToySource


@contextmanager
def files_no_larger_than(size):
    """The operating system cuts every write there, as on a full disk."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


@pytest.fixture
def snapshot():
    engine = ToyReconstruction()
    list(engine.run(ToySource().batches))
    return replace(engine.snapshot(), density=Volume(np.ones((9, 9, 9), np.float32), 5.5, "angstrom"))


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.start(Settings(engine=EngineSettings(seed=3)))
    return folder


def test_what_is_written_is_what_is_read(folder, snapshot):
    folder.append_metrics({"time_s": 1.5, "log_likelihood": float("nan"), "received": 200})
    folder.write_result(snapshot, "toy.emc", poses=True)
    run = read_run(folder.path)
    assert run.settings.engine.seed == 3
    assert run.metrics == [{"time_s": 1.5, "log_likelihood": None, "received": 200}]
    for volume in ("intensity", "weight", "density"):
        assert np.array_equal(getattr(run.snapshot, volume).data, getattr(snapshot, volume).data)
        assert getattr(run.snapshot, volume).voxel_size == pytest.approx(getattr(snapshot, volume).voxel_size)
        assert getattr(run.snapshot, volume).units == getattr(snapshot, volume).units
    for name, column in vars(snapshot.poses).items():
        assert np.array_equal(getattr(run.snapshot.poses, name), column)
    for curves in ("history", "shells"):
        for name, curve in getattr(snapshot, curves).items():
            assert np.array_equal(getattr(run.snapshot, curves)[name], curve, equal_nan=True)
    for name in ("counters", "progress", "resolution_A", "verdict", "reason", "facts"):
        assert getattr(run.snapshot, name) == getattr(snapshot, name)
    assert np.array_equal(run.snapshot.status, snapshot.status)
    assert read_run(folder.path / "reconstruction.h5").snapshot.counters == snapshot.counters


def test_geometry_and_mask_as_used_come_back_and_older_files_have_none(folder, snapshot):
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 3, (6, 6)).astype(np.uint8)
    used = UsedGeometry((0.01, -0.02), (1.5, -3.0), mask, mask > 1)
    folder.write_result(replace(snapshot, geometry=used), "toy.emc", poses=True)
    found = read_run(folder.path).snapshot.geometry
    assert (found.tangent, found.moved) == (used.tangent, used.moved)
    assert np.array_equal(found.mask, mask) and np.array_equal(found.left_out, mask > 1)
    with h5py.File(folder.path / "reconstruction.h5") as file:
        assert file["geometry/beam_moved"].attrs["units"] == "pixel" and file["geometry/mask"].attrs["not_used"] == 2
        assert file["geometry/beam_moved"][:].tolist() == [1.5, -3.0]
    folder.write_result(snapshot, "toy.emc", poses=True)
    assert read_run(folder.path).snapshot.geometry is None


def test_the_result_file_keeps_its_contract(folder, snapshot):
    folder.write_result(snapshot, "toy.emc", poses=True)
    with h5py.File(folder.path / "reconstruction.h5") as file:
        assert file["intensity/volume"].dtype == file["intensity/weight"].dtype == np.float32
        assert file["intensity/volume"].attrs["units"] == "1/angstrom"
        assert file["density/volume"].attrs["units"] == "angstrom"
        assert file["density/volume"].attrs["voxel_size"] == 5.5
        assert file["poses/frame"].dtype == np.int64
        assert file["poses/quaternion"].shape == (200, 4)
        assert all(file[f"poses/{k}"].dtype == np.float32 for k in ("fluence", "log_likelihood", "confidence"))
        assert file["frames/status"].dtype == np.uint8
        assert "resolution" in file
        assert file.attrs["format_version"] == 1
        assert file.attrs["created_by"].startswith("napari-xrai ")
        assert file.attrs["source"] == "toy.emc"


def test_reports_between_two_pose_writes_keep_the_last_poses(folder, snapshot):
    folder.write_result(snapshot, "toy.emc", poses=True)
    later = ToyReconstruction(passes=5)
    list(later.run(ToySource().batches))
    folder.write_result(later.snapshot(), "toy.emc", poses=False)
    run = read_run(folder.path)
    assert np.array_equal(run.snapshot.poses.quaternion, snapshot.poses.quaternion)
    assert run.snapshot.progress.frames_seen == 1000


def test_mrc_maps_carry_their_voxel_size(folder, snapshot):
    folder.write_maps(snapshot)
    with mrcfile.open(folder.path / "intensity.mrc") as file:
        assert file.voxel_size.x == pytest.approx(0.02e4)
        assert any("1e-4 1/A" in str(label) for label in file.get_labels())
        assert np.array_equal(file.data, snapshot.intensity.data)
    with mrcfile.open(folder.path / "density.mrc") as file:
        assert file.voxel_size.x == pytest.approx(5.5)


def test_a_run_is_not_written_over_by_accident(folder, snapshot, tmp_path):
    folder.write_result(snapshot, "toy.emc", poses=True)
    (folder.path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"--resume.*--overwrite"):
        folder.start(Settings())
    folder.start(Settings(), overwrite=True)
    assert sorted(p.name for p in folder.path.iterdir()) == ["notes.txt", "settings.json"]
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        RunFolder(tmp_path / "file").check()
    with pytest.raises(InputError, match="no run to resume"):
        RunFolder(tmp_path / "new").check(resume=True)


def test_a_torn_last_line_is_ignored_and_dropped_on_resume(folder):
    folder.append_metrics({"time_s": 1.0})
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"time_s": 2.')
    assert read_run(folder.path).metrics == [{"time_s": 1.0}]
    folder.start(Settings(), resume=True)
    folder.append_metrics({"time_s": 3.0})
    assert read_run(folder.path).metrics == [{"time_s": 1.0}, {"time_s": 3.0}]


def test_a_line_torn_in_the_middle_costs_no_other(folder):
    (folder.path / "metrics.jsonl").write_bytes(
        b'{"time_s": 1.0}\n{"time_s": 2.{"time_s": 3.0}\n\xff\n7\n{"time_s": 4.0}\n'
    )
    assert read_run(folder.path).metrics == [{"time_s": 1.0}, {"time_s": 4.0}]


def test_a_result_without_a_checkpoint_is_not_resumed_over(folder, snapshot):
    folder.write_result(snapshot, "toy.emc", poses=True)
    with pytest.raises(InputError, match=r"holds a result but no checkpoint.*--overwrite"):
        folder.check(resume=True)
    with pytest.raises(InputError, match="--resume and --overwrite contradict each other"):
        folder.check(resume=True, overwrite=True)
    folder.write_checkpoint({"a": np.zeros(3)}, {})
    folder.check(resume=True)


def test_a_folder_has_one_writer(tmp_path):
    with only_writer(tmp_path / "new" / "run"):
        refused = pytest.raises(
            InputError, match=rf"run is being written by process {os.getpid()} on .*: stop that run"
        )
        with refused, only_writer(tmp_path / "new" / "run"):
            pass
        (tmp_path / "new" / "run" / "settings.json").touch()
    assert [p.name for p in (tmp_path / "new" / "run").iterdir()] == ["settings.json"]
    with only_writer(tmp_path / "new" / "run"):
        pass
    with only_writer(tmp_path / "empty"):
        pass
    assert not (tmp_path / "empty").exists()  # as it was not before


def test_the_lock_of_a_killed_writer_is_none(tmp_path):
    script = f"""
from pathlib import Path
from napari_xrai.run_lock import only_writer
with only_writer(Path({str(tmp_path)!r})):
    print("here", flush=True)
    input()
"""
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"here\n"
        with pytest.raises(InputError, match=f"written by process {other.pid}"), only_writer(tmp_path):
            pass
        other.kill()
    assert list(tmp_path.iterdir())  # its file is left behind
    with only_writer(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_poses_of_a_table_are_written_part_by_part_with_the_names_of_their_frames(folder, snapshot):
    n = 150_000
    columns = {
        name: Blocks.of(np.resize(column, (n, *column.shape[1:]))) for name, column in vars(snapshot.poses).items()
    }
    columns["frame"] = Blocks.of(2 * np.arange(n))
    asked = []

    def identity(frame):
        asked.append(len(frame))
        return {"frame": frame + 1, "index": (frame // 2).astype(np.int32), "file": np.zeros(len(frame), np.int32)}

    folder.write_result(snapshot, "toy.emc", poses=columns, identity=identity)
    found, names = read_pose_columns(folder.path)
    assert len(asked) > 1 and max(asked) <= BLOCK_ROWS
    np.testing.assert_array_equal(found["frame"], 2 * np.arange(n) + 1)
    np.testing.assert_array_equal(found["index"], np.arange(n))
    np.testing.assert_array_equal(found["quaternion"], columns["quaternion"].copy())
    assert names == ["toy.emc"] and found["index"].dtype == np.int32


def test_a_checkpoint_comes_back_and_unchanged_blocks_are_not_written_again(folder):
    assert folder.read_checkpoint() is None
    rng = np.random.default_rng(0)
    poses = rng.normal(size=(200_000, 4)).astype(np.float32)
    field = rng.normal(size=(9, 9, 9))
    folder.write_checkpoint({"field": field, "poses": poses}, {"step": 1})
    before = {p.name: p.stat().st_mtime_ns for p in (folder.path / "checkpoint").glob("*.safetensors")}
    grown = np.concatenate([poses, poses[:50_000] + 1])
    folder.write_checkpoint({"field": field + 1, "poses": grown, "band": np.array(1.5)}, {"step": 2})
    after = {p.name: p.stat().st_mtime_ns for p in (folder.path / "checkpoint").glob("*.safetensors")}
    arrays, rest = folder.read_checkpoint()
    assert rest == {"step": 2}
    assert np.array_equal(arrays["field"], field + 1)
    assert np.array_equal(arrays["poses"], grown)
    assert arrays["band"].shape == ()
    assert len(before.items() & after.items()) == 3  # the three full blocks of old poses
    assert len(after) == 5


def test_a_damaged_checkpoint_is_named(folder):
    folder.write_checkpoint({"field": np.zeros(3)}, {})
    next((folder.path / "checkpoint").glob("*.safetensors")).write_bytes(b"\0" * 20)
    with pytest.raises(InputError, match=r"checkpoint cannot be read.*--overwrite"):
        folder.read_checkpoint()


@pytest.mark.parametrize("write", ["metrics", "result", "checkpoint", "maps"])
def test_a_full_disk_is_one_sentence_and_leaves_nothing_half_written(folder, snapshot, write):
    actions = {
        "metrics": lambda n: folder.append_metrics({"n": n}),
        "result": lambda n: folder.write_result(replace(snapshot, reason=str(n)), "toy.emc", poses=True),
        "checkpoint": lambda n: folder.write_checkpoint({"a": np.arange(n + 3)}, {"n": n}),
        "maps": lambda n: folder.write_maps(snapshot),
    }
    actions[write](1)
    before = {p: p.read_bytes() for p in folder.path.rglob("*") if p.is_file()}
    limit = 5 + (folder.path / "metrics.jsonl").stat().st_size if write == "metrics" else 20
    with files_no_larger_than(limit), pytest.raises(InputError, match=r"cannot be written .*free some space") as caught:
        actions[write](2)
    assert "\n" not in str(caught.value)
    assert {p: p.read_bytes() for p in folder.path.rglob("*") if p.is_file()} == before


def test_wherever_the_disk_fills_up_the_last_result_stays(folder, snapshot):
    result = folder.path / "reconstruction.h5"
    folder.write_result(snapshot, "toy.emc", poses=True)
    before = result.read_bytes()
    for limit in range(0, len(before), 499):
        with files_no_larger_than(limit), pytest.raises(InputError, match=r"reconstruction\.h5 cannot be written"):
            folder.write_result(snapshot, "toy.emc", poses=True)
    assert [p.name for p in folder.path.iterdir() if p.name.startswith(("recon", "."))] == ["reconstruction.h5"]
    assert result.read_bytes() == before


@pytest.mark.parametrize("poses", [True, False], ids=["new poses", "poses carried over"])
def test_writing_the_poses_of_a_long_run_takes_little_memory(folder, snapshot, poses):
    n = 200_000
    long = {name: np.resize(column, (n, *column.shape[1:])) for name, column in vars(snapshot.poses).items()}
    snapshot = replace(snapshot, poses=Poses(**long))
    folder.write_result(snapshot, "toy.emc", poses=True)
    tracemalloc.start()
    folder.write_result(snapshot, "toy.emc", poses=poses)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < sum(column.nbytes for column in long.values()) / 4


def test_a_foreign_hdf5_file_is_no_result(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["data"] = np.zeros(3)
    with pytest.raises(InputError, match="no result of napari-xrai"):
        read_run(tmp_path / "other.h5")
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(InputError, match="cannot be read as HDF5"):
        read_run(tmp_path / "text.h5")
    for path in (tmp_path / "other.h5", tmp_path / "none.h5"):
        with pytest.raises(InputError, match=r"other\.h5 holds no poses|none\.h5 is not there yet"):
            read_pose_columns(path)
    with pytest.raises(InputError, match=r"text\.h5 cannot be read as HDF5: it is damaged"):
        read_pose_columns(tmp_path / "text.h5")
    with pytest.raises(InputError, match="no such file"):
        read_run(tmp_path / "none.h5")
    with pytest.raises(InputError, match="no run folder"):
        read_run(tmp_path)


def test_a_killed_run_loses_no_more_than_one_report_interval_and_its_reader_never_sees_half(tmp_path):
    """Kill -9 at an arbitrary moment, with a reader reading all the while."""
    script = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
import numpy as np
from pathlib import Path
from toy import ToyReconstruction, ToySource
from napari_xrai import session
session.REPORT_EVERY_S = session.SNAPSHOT_EVERY_S = 0.2
session.WRITING_SHARE = 0.9
session.make_reconstruction = lambda *_: ToyReconstruction(passes=100000, step_s=0.002)
session.LiveDensity.update = lambda self, snapshot: None
run = session.Session(ToySource(), session.Settings(), Path({str(tmp_path / "run")!r})).run()
for progress in run: print(progress.frames_seen, flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    try:
        result, seen = tmp_path / "run" / "reconstruction.h5", 0
        deadline = time.monotonic() + 30
        while not result.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        until = time.monotonic() + 1.7
        while time.monotonic() < until:
            run = read_run(tmp_path / "run")
            assert run.snapshot.progress.frames_seen >= seen
            seen = run.snapshot.progress.frames_seen
    finally:
        os.kill(process.pid, signal.SIGKILL)
    lines = process.stdout.read().splitlines()
    process.wait()
    visits = int(lines[-1])
    run = read_run(tmp_path / "run")
    per_interval = 20 / 0.002 * 0.2
    assert run.snapshot.progress.frames_seen >= visits - 2 * per_interval
    arrays, rest = RunFolder(tmp_path / "run").read_checkpoint()
    assert rest["visits"] >= visits - 2 * per_interval
    assert len(arrays["photons"]) == 200
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["engine"]["seed"] == 0
    assert not list((tmp_path / "run").glob("*.mrc"))
