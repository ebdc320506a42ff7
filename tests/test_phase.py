"""`napari-xrai phase`: the density of a saved run is replaced by what many starts agree on, or taken away."""

import shutil
import sys

import h5py
import mrcfile
import numpy as np
import pytest

from napari_xrai.cli import main
from napari_xrai.core.density_alignment import align_density
from napari_xrai.core.frames import Volume
from napari_xrai.core.resolution import fourier_shell_correlation
from napari_xrai.io.source import InputError
from napari_xrai.phase import RunPhasing
from napari_xrai.run import RunFolder, read_run
from napari_xrai.run_lock import only_writer
from phased import EDGE, N, particle, radius, snapshot_of, write_run


@pytest.fixture
def cli(capsys, monkeypatch):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["napari-xrai", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def wrong():
    """A density that a former phasing may have left."""
    return Volume(np.ones((8, 8, 8), np.float32), 9.0, "angstrom")


def test_starts_that_agree_give_the_density_and_the_curves(cli, tmp_path, wrong):
    run = write_run(tmp_path / "run", snapshot_of(density=wrong))
    with h5py.File(run / "reconstruction.h5", "r+") as file:  # what a later version may have put there
        file["poses/from_the_future"] = np.arange(3)
        file["resolution/more"] = np.arange(4)
    status, out, err = cli("phase", run, "--starts", "6")
    assert (status, err) == (0, "")
    assert out.startswith("agreed: ")
    assert "of 6 starts agree" in out
    assert "PRTF" in out
    assert "not a resolution" in out
    found = read_run(run).snapshot
    aligned = align_density(found.density, particle())
    fsc = fourier_shell_correlation(aligned.density, aligned.reference).value
    assert np.nanmin(fsc[: EDGE - 1]) > 0.5
    assert (found.phasing.verdict, found.phasing.starts, found.phasing.seed) == ("agreed", 6, 0)
    assert 2 <= found.phasing.kept <= 6
    assert found.phasing.curves.keys() == {"q", "prtf", "agreement", "background"}
    assert np.allclose(np.diff(found.phasing.curves["q"]), found.intensity.voxel_size)
    assert np.nanmax(found.phasing.curves["prtf"]) <= 1 + 1e-6
    with h5py.File(run / "reconstruction.h5") as file:
        assert list(file["poses/from_the_future"]) == [0, 1, 2]
        assert list(file["resolution/more"]) == [0, 1, 2, 3]
        assert file.attrs["source"] == "/data/frames.cxi"
    with mrcfile.open(run / "density.mrc") as file:
        assert np.array_equal(file.data, found.density.data)
        assert file.voxel_size.x == pytest.approx(found.density.voxel_size)
    before = snapshot_of()
    for name in ("counters", "verdict", "reason", "facts", "progress"):
        assert getattr(found, name) == getattr(before, name)
    assert np.array_equal(found.poses.quaternion, before.poses.quaternion)


def test_starts_that_do_not_agree_leave_no_density_and_say_so(cli, tmp_path, wrong):
    noise = np.random.default_rng(0).exponential(size=(N, N, N)) * np.exp(-radius() / 3)
    run = write_run(tmp_path / "run", snapshot_of(noise, density=wrong))
    assert (run / "density.mrc").exists()
    status, out, _ = cli("phase", run, "--starts", "4")
    assert status == 0
    assert out.startswith("failed: ")
    assert "no density is kept" in out
    assert not (run / "density.mrc").exists()
    found = read_run(run).snapshot
    assert found.density is None
    assert found.phasing.verdict == "failed"


BAD = {
    "empty": ({"data": np.zeros((N, N, N))}, "empty or constant"),
    "constant": ({"data": np.full((N, N, N), 7.0)}, "empty or constant"),
    "constant where measured": ({"data": np.full((N, N, N), 7.0), "weight": 1.3 * (radius() < 15)}, "constant"),
    "unmeasured": ({"weight": np.zeros((N, N, N))}, "0 shells of the intensity were measured"),
    "not finite": ({"data": np.full((N, N, N), np.nan)}, "finite"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_phased_is_one_sentence_and_changes_nothing(cli, tmp_path, wrong, name):
    given, words = BAD[name]
    run = write_run(tmp_path / "run", snapshot_of(**given, density=wrong))
    before = {p.name: p.read_bytes() for p in run.iterdir() if p.is_file()}
    status, out, err = cli("phase", run, "--starts", "2")
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert words in err
    assert {p.name: p.read_bytes() for p in run.iterdir() if p.is_file()} == before


def test_options_and_paths_that_cannot_be(cli, tmp_path):
    run = write_run(tmp_path / "run", snapshot_of())
    young = RunFolder(tmp_path / "young")
    young.start(read_run(run).settings)
    young.append_metrics({"time_s": 1.0})
    for arguments, words in [
        ((run, "--starts", 1), "at least 2"), ((run, "--seed", -1), "negative"), ((tmp_path / "none",), "no such file"),
        ((tmp_path,), "no run folder"), ((young.path,), "no result yet"),
    ]:  # fmt: skip
        status, _, err = cli("phase", *arguments)
        assert status == 2
        assert words in err
        assert err.count("\n") == 1


def test_a_failed_run_is_not_whitewashed(cli, tmp_path):
    run = write_run(tmp_path / "run", snapshot_of(verdict="failed", reason="no two starts found the same particle"))
    _, out, _ = cli("phase", run, "--starts", "2")
    assert out.startswith("doubtful: the intensity is not to be believed (no two starts found the same particle)")
    assert read_run(run).snapshot.phasing.verdict == "doubtful"


def test_a_run_that_is_being_written_is_not_phased(tmp_path):
    write_run(tmp_path / "run", snapshot_of())
    work = RunPhasing(tmp_path / "run", 2, 0)
    with only_writer(tmp_path / "run"), pytest.raises(InputError, match="run is being written by process"):
        next(work.steps())


def test_a_run_written_meanwhile_is_not_touched(tmp_path):
    run = write_run(tmp_path / "run", snapshot_of())
    steps = RunPhasing(run, 2).steps()
    next(steps)
    later = snapshot_of(2 * snapshot_of().intensity.data)
    RunFolder(run).write_result(later, "/data/frames.cxi", poses=True)
    before = (run / "reconstruction.h5").read_bytes()
    with pytest.raises(InputError, match="written while it was phased: stop the run"):
        list(steps)
    assert (run / "reconstruction.h5").read_bytes() == before
    assert not (run / "density.mrc").exists()


def test_giving_up_leaves_the_run_as_it_was(tmp_path):
    run = write_run(tmp_path / "run", snapshot_of())
    before = {p.name: p.read_bytes() for p in run.iterdir() if p.is_file()}
    work = RunPhasing(run, 500)
    steps = work.steps()
    while next(steps)[0] < 1:
        pass
    steps.close()
    assert work.phasing is None
    assert {p.name: p.read_bytes() for p in run.iterdir() if p.is_file()} == before


def test_a_lone_result_file_is_enough_and_its_neighbours_are_spared(tmp_path):
    run = write_run(tmp_path / "run", snapshot_of())
    (tmp_path / "lone").mkdir()
    lone = shutil.copy(run / "reconstruction.h5", tmp_path / "lone" / "tuesday.h5")
    (tmp_path / "lone" / "density.mrc").write_text("mine")
    list(RunPhasing(lone, 2).steps())
    assert (tmp_path / "lone" / "density.mrc").read_text() == "mine"
    assert (tmp_path / "lone" / "tuesday_density.mrc").exists()
    assert read_run(lone).snapshot.phasing.starts == 2
