"""What an intensity is worth comes back from the run folder as it went in, and older files without it stay readable."""

from dataclasses import replace

import h5py
import numpy as np

from napari_xrai.core.coverage import ViewDensity
from napari_xrai.core.forecast import forecast
from napari_xrai.core.frames import Phasing, Volume
from napari_xrai.core.resolution import ShellCurve
from napari_xrai.core.rotations import random_rotations
from napari_xrai.core.trust import Trust
from napari_xrai.run import RunFolder, read_run
from toy import ToyReconstruction, ToySource


def snapshot():
    engine = ToyReconstruction(passes=1, step_s=0)
    for _ in engine.run(ToySource().batches):
        pass
    now, rng = engine.snapshot(), np.random.default_rng(0)
    error, one, other = (replace(now.intensity, data=rng.random((9, 9, 9)).astype(np.float32)) for _ in range(3))
    curve = ShellCurve(np.arange(6) * 0.01, np.array([1.0, 0.9, 0.8, 0.6, 0.3, 0.1]), np.full(6, 500))
    trust = Trust(
        error, (one, other), ViewDensity([random_rotations(200, rng)[:, :, 2]]).coverage(),
        forecast(curve, 200, "1/angstrom", 0.05),
    )  # fmt: skip
    density, local = (Volume(rng.random((9, 9, 9)).astype(np.float32), 5.5, "angstrom") for _ in "01")
    phasing = Phasing("agreed", "they agree", 6, 5, 0, {"q": np.arange(5.0), "half_fsc": np.ones(5)}, local)
    poses = replace(now.poses, radius68=np.full(200, 2.5, np.float32), modes=np.tile(np.array([1, 2], np.uint8), 100))
    return replace(now, trust=trust, density=density, phasing=phasing, poses=poses)


def test_all_of_it_comes_back(tmp_path):
    now = snapshot()
    RunFolder(tmp_path).write_result(now, "toy.emc", poses=True)
    back = read_run(tmp_path / "reconstruction.h5").snapshot
    assert back is not None and back.trust is not None and back.phasing is not None
    np.testing.assert_array_equal(back.trust.standard_error.data, now.trust.standard_error.data)
    for mine, theirs in zip(back.trust.halves, now.trust.halves, strict=True):
        np.testing.assert_array_equal(mine.data, theirs.data)
    for part in ("coverage", "forecast"):
        for name, value in vars(getattr(now.trust, part)).items():
            np.testing.assert_array_equal(getattr(getattr(back.trust, part), name), value)
    np.testing.assert_array_equal(back.phasing.local_resolution.data, now.phasing.local_resolution.data)
    np.testing.assert_array_equal(back.phasing.curves["half_fsc"], 1)
    np.testing.assert_array_equal(back.poses.radius68, 2.5)
    np.testing.assert_array_equal(back.poses.modes, now.poses.modes)


def test_the_file_says_it_in_units_that_others_read(tmp_path):
    RunFolder(tmp_path).write_result(snapshot(), "toy.emc", poses=True)
    with h5py.File(tmp_path / "reconstruction.h5") as file:
        assert file["intensity/standard_error"].dtype == file["poses/radius68"].dtype == np.float32
        assert file["poses/modes"].dtype == np.uint8
        assert file["density/local_resolution"].attrs["units"] == "angstrom"
        assert file["resolution/forecast/frames"][()].tolist() == [200, 400, 1000, 2000]
        assert "share their poses" in file["intensity/halves"].attrs["about"]


def test_files_without_it_are_read_as_before(tmp_path):
    RunFolder(tmp_path).write_result(replace(snapshot(), trust=None), "toy.emc", poses=True)
    with h5py.File(tmp_path / "reconstruction.h5", "a") as file:
        del file["poses/radius68"], file["poses/modes"]
    back = read_run(tmp_path / "reconstruction.h5").snapshot
    assert back is not None and back.trust is None
    assert len(back.poses.radius68) == len(back.poses.modes) == 0
    assert len(back.poses.frame) == 200
