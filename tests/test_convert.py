"""Data goes from one program's files to another's and back: counts exactly, geometry to rounding."""

import csv
import gzip
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import mrcfile
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from napari_xrai.cli import main
from napari_xrai.core.detector import Panels, detector_from_panels, through_beam
from napari_xrai.core.frames import HC_EV_A, Frames, UsedGeometry, Volume
from napari_xrai.core.rotations import quaternion_to_matrix, random_rotations
from napari_xrai.io.cxi import CxiSource
from napari_xrai.io.cxi_writer import CxiWriter
from napari_xrai.io.dragonfly import BinaryPhotons, read_detector
from napari_xrai.io.dragonfly_writer import EmcWriter, write_detector
from napari_xrai.io.open import describe, open_source
from napari_xrai.io.pose_table import relion_angles
from napari_xrai.io.source import CENTRE_ASSUMED
from napari_xrai.run import RunFolder, read_run
from napari_xrai.settings import InputSettings, Settings
from toy import ToyReconstruction, ToySource

DATA = Path(__file__).parent / "data" / "klh1_tiny"
ENERGY = HC_EV_A / 4.4


@pytest.fixture
def cli(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["napari-xrai", "convert", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code, capsys.readouterr().err

    return run


@pytest.fixture
def det(tmp_path):
    path = tmp_path / "det_sim.h5"
    path.write_bytes(gzip.decompress((DATA / "det_sim.h5.gz").read_bytes()))
    return path


def counts_of(source):
    return Frames.concatenate(list(source.batches(17))).dense()


def test_dragonfly_to_cxi_and_back_is_exact(cli, det, tmp_path):
    original = open_source([DATA / "photons.emc", det], energy_eV=ENERGY)
    options = ("--detector", det, "--energy", ENERGY, "--distance", 0.3)
    assert cli(DATA / "photons.emc", "a.cxi", *options)[0] == 0
    cxi = open_source([tmp_path / "a.cxi"])
    assert np.array_equal(counts_of(cxi), counts_of(original))
    assert cxi.shape == (64, 64) and cxi.missing == ()  # the polarisation follows from the detector's response
    np.testing.assert_allclose(cxi.detector.q, original.detector.q, atol=1e-11)
    np.testing.assert_allclose(cxi.detector.response, original.detector.response, rtol=1e-6)
    assert np.array_equal(cxi.detector.mask, original.detector.mask)
    with h5py.File(tmp_path / "a.cxi") as file:
        assert file["entry_1/data_1/data"].dtype == np.uint8  # as many bits as the brightest pixel needs
    assert cli("a.cxi", "b.emc")[0] == 0
    back = open_source([tmp_path / "b.emc", tmp_path / "b.det.h5"], energy_eV=ENERGY)
    assert np.array_equal(counts_of(back), counts_of(original))
    np.testing.assert_allclose(back.detector.q, original.detector.q, atol=1e-11)
    # the sparse layout leaves no choice but the order of pixels, which is rising
    assert (tmp_path / "b.emc").read_bytes() == (DATA / "photons.emc").read_bytes()
    theirs, ours = read_detector(det)[0], read_detector(tmp_path / "b.det.h5")[0]
    np.testing.assert_allclose(ours.q, theirs.q, atol=1e-7)
    assert ours.ewald_radius == pytest.approx(theirs.ewald_radius, rel=1e-6)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32), st.integers(1, 9), st.sampled_from([0.01, 0.5, 400]))
def test_any_counts_survive_both_writers(tmp_path, seed, n_frames, mean):
    rng = np.random.default_rng(seed)
    counts = rng.poisson(mean * rng.random((n_frames, 1, 1)), (n_frames, 4, 5))
    frames = Frames.from_dense(counts)
    for name in ("a.emc", "a.cxi"):
        (tmp_path / name).unlink(missing_ok=True)
    with EmcWriter(tmp_path / "a.emc", 20) as file:
        for first in range(0, n_frames, 4):
            file.write(frames.take(slice(first, first + 4)))
    assert np.array_equal(counts_of(BinaryPhotons(tmp_path / "a.emc")), counts.reshape(n_frames, 20))
    from napari_xrai.core.detector import square_detector

    detector = square_detector((4, 5), 1e-3, 0.1, 5000.0)
    with CxiWriter(
        tmp_path / "a.cxi", detector, distance_m=0.1, polarization=None, most_photons=int(counts.max())
    ) as file:
        file.write(frames)
    source = CxiSource(tmp_path / "a.cxi")
    assert np.array_equal(counts_of(source), counts.reshape(n_frames, 20))
    assert source.missing == ("polarisation",)


def test_tiles_that_are_not_in_one_plane_keep_their_places(tmp_path):
    step = np.array([[[0, -2e-4, 0], [-2e-4, 0, 0]]] * 2)
    flat = Panels(np.array([[0.01, 0.02, 0.5], [-0.01, -0.02, 0.5]]), step, (2, 8, 6))
    detector = detector_from_panels(flat, energy_eV=6000.0, polarization="x")
    q = detector.q.reshape(2, 8, 6, 3).copy()
    q[:, 4:] = detector_from_panels(
        Panels(flat.corner_m - [0, 4e-4, 0.0], step, (2, 8, 6)), energy_eV=6000.0
    ).q.reshape(2, 8, 6, 3)[:, 4:]  # fmt: skip
    tiled = type(detector)(q.reshape(-1, 3), detector.response, detector.mask, (2, 8, 6), detector.ewald_radius)
    with CxiWriter(tmp_path / "a.cxi", tiled, distance_m=0.5, polarization="x") as file:
        file.write(Frames.from_dense(np.ones((2, 2, 8, 6), int)))
    np.testing.assert_allclose(open_source([tmp_path / "a.cxi"]).detector.q, tiled.q, atol=1e-12)


def test_detectors_as_text_and_hdf5_are_alike(det, tmp_path):
    detector = read_detector(det)[0]
    for name in ("out.dat", "out.h5"):
        write_detector(tmp_path / name, detector)
        again, notes = read_detector(tmp_path / name)
        assert notes == () and np.array_equal(again.q, detector.q) and np.array_equal(again.mask, detector.mask)
        np.testing.assert_allclose(again.response, detector.response, rtol=1e-12)


def test_a_geometry_becomes_a_dragonfly_detector(cli, tmp_path):
    (tmp_path / "a.geom").write_text(
        "photon_energy = 6000\nclen = 0.7\nres = 5000\na/min_ss = 0\na/max_ss = 63\na/min_fs = 0\na/max_fs = 63\n"
        "a/corner_x = 32\na/corner_y = 32\na/fs = -x\na/ss = -y\n"
    )
    assert cli("a.geom", "det.h5")[0] == 0
    detector, _ = read_detector(tmp_path / "det.h5")
    assert detector.ewald_radius == pytest.approx(0.7 * 5000, rel=1e-3)  # the distance in pixels
    assert np.diff(np.sort(np.unique(detector.q[:, 0].round(3)))).max() == pytest.approx(1, abs=0.02)


def test_a_beam_centre_that_had_to_be_assumed_is_said_and_no_longer_once_a_detector_file_has_one(cli, det, tmp_path):
    np.save(tmp_path / "frames.npy", np.full((3, 64, 64), 5, np.uint8))
    figures = ("--distance", 0.3, "--pixel-size", 1.2e-3, "--energy", ENERGY)
    for out in ("a.emc", "a.cxi"):
        assert cli("frames.npy", out, *figures) == (0, f"{CENTRE_ASSUMED}\n")
    assert cli("a.cxi", "b.emc") == (0, "")  # it has one
    with h5py.File(tmp_path / "a.cxi", "a") as file:
        del file["entry_1/instrument_1/detector_1/corner_position"]
    assert cli("a.cxi", "c.emc") == (0, f"{CENTRE_ASSUMED}\n")
    assert describe(open_source([tmp_path / "a.cxi"])).as_json()["notes"][0] == CENTRE_ASSUMED
    assert CENTRE_ASSUMED not in open_source([tmp_path / "a.cxi", det]).notes


@pytest.fixture
def run_folder(tmp_path, det):
    """A run over every second of the 50 frames, in two files."""
    engine = ToyReconstruction(passes=1, step_s=0)
    list(engine.run(ToySource(50).batches))
    snapshot = engine.snapshot()
    source = open_source([DATA / "photons.emc", DATA / "photons_legacy_make_data.emc"], select="odd")
    given = InputSettings(
        sources=[DATA / "photons.emc", DATA / "photons_legacy_make_data.emc"], detector=det, energy_eV=ENERGY,
        distance_m=0.3, select="odd",
    )  # fmt: skip
    folder = RunFolder(tmp_path / "run")
    folder.start(Settings(input=given))
    paths = "\n".join(map(str, source.paths))
    folder.write_result(snapshot, paths, poses=True, identity=source.identity)
    return folder, snapshot


def test_poses_say_which_frame_of_which_file_they_are_of(run_folder):
    folder, snapshot = run_folder
    with h5py.File(folder.path / "reconstruction.h5") as file:
        assert file["poses/frame"][:3].tolist() == [1, 3, 5]
        assert file["poses/file"][[0, 24, 25, 49]].tolist() == [0, 0, 1, 1]
        assert file["poses/index"][[0, 24, 25, 49]].tolist() == [1, 49, 1, 49]
        assert Path(file["poses/file"].attrs["names"][1]).name == "photons_legacy_make_data.emc"
    again = read_run(folder.path).snapshot.poses
    assert np.array_equal(again.quaternion, snapshot.poses.quaternion)


def test_poses_as_csv_and_star(cli, run_folder, tmp_path):
    _, snapshot = run_folder
    assert cli("run", "poses.csv")[0] == 0 and cli("run", "poses.star")[0] == 0
    rows = list(csv.DictReader((tmp_path / "poses.csv").open()))
    assert len(rows) == 50 and rows[30]["frame"] == "61" and rows[30]["index"] == "11"
    assert rows[30]["file"].endswith("photons_legacy_make_data.emc")
    quaternion = [float(rows[30][name]) for name in ("qx", "qy", "qz", "qw")]
    np.testing.assert_allclose(quaternion, snapshot.poses.quaternion[30], rtol=1e-6)
    lines = (tmp_path / "poses.star").read_text().splitlines()
    start = lines.index("loop_") + 1
    tags = [line.split()[0] for line in lines[start:] if line.startswith("_")]
    assert tags[:4] == ["_rlnImageName", "_rlnAngleRot", "_rlnAngleTilt", "_rlnAnglePsi"]
    values = dict(zip(tags, lines[start + len(tags) + 30].split(), strict=True))
    assert values["_rlnImageName"].startswith("000012@")
    assert float(values["_xraiQw"]) == pytest.approx(snapshot.poses.quaternion[30, 3], rel=1e-6)


def test_relion_turns_the_particle_into_the_lab():
    poses = random_rotations(50, np.random.default_rng(0))
    poses = np.concatenate([poses, np.eye(3)[None], np.diag([1.0, -1, -1])[None], np.diag([-1.0, -1, 1])[None]])
    from napari_xrai.core.rotations import matrix_to_quaternion

    quaternion = matrix_to_quaternion(poses)
    rot, tilt, psi = np.radians(relion_angles(quaternion)).T

    def about(axis, angle):  # passive: the coordinate system turns
        c, s = np.cos(angle), np.sin(angle)
        return np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]] if axis == "z" else [[c, 0, -s], [0, 1, 0], [s, 0, c]])

    for n, matrix in enumerate(quaternion_to_matrix(quaternion)):
        euler = about("z", psi[n]) @ about("y", tilt[n]) @ about("z", rot[n])
        np.testing.assert_allclose(euler, matrix.T, atol=1e-9)


def test_maps_of_a_run_are_valid_mrc(cli, run_folder, tmp_path):
    folder, snapshot = run_folder
    assert cli("run", "intensity.mrc")[0] == 0
    assert mrcfile.validate(str(tmp_path / "intensity.mrc"))
    with mrcfile.open(tmp_path / "intensity.mrc") as file:
        assert np.array_equal(file.data, snapshot.intensity.data)
    status, err = cli("run", "density.mrc")
    assert status == 2 and "no density yet" in err
    phased = replace(snapshot, density=Volume(np.ones((9, 9, 9), np.float32), 5.5, "angstrom"))
    folder.write_result(phased, "x", poses=False)
    assert cli("run", "map.mrc")[0] == 0
    with mrcfile.open(tmp_path / "map.mrc") as file:
        assert float(file.voxel_size.x) == pytest.approx(5.5)


def test_a_run_goes_into_cxi_with_its_frames(cli, run_folder, tmp_path):
    _, snapshot = run_folder
    assert cli("run", "all.cxi") == (0, "")
    source = open_source([tmp_path / "all.cxi"])
    assert source.n_frames == 50 and source.shape == (64, 64)
    with h5py.File(tmp_path / "all.cxi") as file:
        result = file["entry_1/result_1"]
        assert np.array_equal(result["quaternion"][:], snapshot.poses.quaternion)
        assert np.array_equal(result["intensity"][:], snapshot.intensity.data)
        assert result["intensity"].attrs["units"] == "1/angstrom"


def test_a_run_goes_into_cxi_with_the_geometry_and_mask_that_it_used(cli, run_folder, det, tmp_path):
    folder, snapshot = run_folder
    mask = np.zeros((64, 64), np.uint8)
    mask[20, 30], mask[40, 40:43] = 2, 1
    used = UsedGeometry((0.006, -0.003), (1.5, -0.75), mask, mask == 2)
    folder.write_result(replace(snapshot, geometry=used), "photons.emc", poses=True)
    status, said = cli("run", "all.cxi")
    assert status == 0 and said.count("\n") == 1 and "1.68 pixels from where the files have it, 1 pixel more" in said
    moved = through_beam(open_source([DATA / "photons.emc", det], energy_eV=ENERGY).detector, np.array(used.tangent))
    found = open_source([tmp_path / "all.cxi"])
    np.testing.assert_allclose(found.detector.q, moved.q, atol=1e-9)
    assert np.array_equal(found.detector.mask, moved.with_mask(mask).mask)
    assert found.beam.polarization == "x"  # told from the response, which is that about the beam as given
    assert cli("run", "poses.csv") == (0, "")


def test_of_a_background_that_the_run_took_out_it_is_said_that_the_frames_have_it(cli, run_folder):
    folder, snapshot = run_folder
    facts = snapshot.facts | {"uneven background": "a tenth of the photons: taken out"}
    folder.write_result(replace(snapshot, facts=facts), "photons.emc", poses=True)
    status, said = cli("run", "all.cxi")
    assert status == 0 and "as they were taken, uneven background and all (a tenth of the photons: taken out)" in said


def test_frames_that_are_not_those_of_the_run_are_refused(cli, run_folder, tmp_path):
    folder, snapshot = run_folder
    used = UsedGeometry((0.0, 0.0), (0.0, 0.0), np.zeros((6, 6), np.uint8), np.zeros((6, 6), bool))
    folder.write_result(replace(snapshot, geometry=used), "photons.emc", poses=True)
    status, err = cli("run", "all.cxi")
    assert status == 2 and "bring back the file" in err and err.count("\n") == 1 and not (tmp_path / "all.cxi").exists()


def test_a_run_in_detector_voxels_comes_out_in_angstrom_once_its_energy_is_given(cli, run_folder, det, tmp_path):
    folder, snapshot = run_folder
    bare = replace(
        snapshot, intensity=replace(snapshot.intensity, voxel_size=1.0, units="detector_voxel"),
        density=Volume(np.ones((9, 9, 9), np.float32), 1 / 9, "1/detector_voxel"),
    )  # fmt: skip
    given = InputSettings(sources=[DATA / "photons.emc"], detector=det)
    folder.start(Settings(input=given), overwrite=True)
    folder.write_result(bare, "photons.emc", poses=True)
    voxel = ENERGY / HC_EV_A / read_detector(det)[0].ewald_radius
    assert cli("run", "intensity.mrc", "--energy", ENERGY)[0] == 0
    assert cli("run", "density.mrc", "--energy", ENERGY)[0] == 0
    with mrcfile.open(tmp_path / "intensity.mrc") as file:
        assert float(file.voxel_size.x) == pytest.approx(1e4 * voxel) and "1e-4 1/A" in str(file.get_labels()[0])
    with mrcfile.open(tmp_path / "density.mrc") as file:
        assert float(file.voxel_size.x) == pytest.approx(1 / 9 / voxel)
    assert cli("run", "all.cxi", "--energy", ENERGY, "--distance", 0.3)[0] == 0
    with h5py.File(tmp_path / "all.cxi") as file:
        assert file["entry_1/result_1/intensity"].attrs["voxel_size"] == pytest.approx(voxel)
    assert open_source([tmp_path / "all.cxi"]).detector.energy_eV == pytest.approx(ENERGY)


def test_options_that_a_run_has_no_use_for_are_refused(cli, run_folder, det):
    for arguments, words in (
        (("run", "map.mrc", "--energy", ENERGY), "run was made with its photon energy: leave out --energy"),
        (("run", "poses.csv", "--energy", ENERGY), "--energy means nothing for this conversion of a run"),
        (("run", "intensity.mrc", "--mask", det), "--mask means nothing for this conversion of a run"),
    ):
        status, err = cli(*arguments)
        assert status == 2 and words in err, err


def test_a_truncated_result_is_called_damaged(cli, run_folder, tmp_path):
    result = tmp_path / "run" / "reconstruction.h5"
    result.write_bytes(result.read_bytes()[:9000])
    for arguments in (("run", "a.csv"), ("run", "a.mrc"), (result, "a.csv"), (result, "a.mrc")):
        status, err = cli(*arguments)
        assert status == 2 and ("damaged" in err or "truncated" in err) and err.count("\n") == 1, err


def test_what_cannot_be_converted_is_one_line_and_leaves_nothing(cli, det, tmp_path):
    photons = DATA / "photons.emc"
    (tmp_path / "there.cxi").write_bytes(b"mine")
    cases = [
        ((photons, "there.cxi"), "exists already"),
        ((photons, "a.xyz"), "can be written as .cxi, .emc"),
        ((photons, "a.cxi"), "has no geometry, which CXI needs"),
        ((photons, "a.cxi", "--detector", det), "has no photon energy"),
        ((photons, "a.cxi", "--detector", det, "--energy", ENERGY), "how far the detector is"),
        ((photons, "a.cxi", "--detector", det, "--energy", 2.8), "looks like 2.8 keV"),
        ((det, "b.h5"), "a Dragonfly detector already"),
        (("nothing.emc", "a.cxi"), "nothing.emc does not exist"),
        ((photons, "nowhere/a.emc"), "cannot be written"),
    ]  # fmt: skip
    for arguments, words in cases:
        status, err = cli(*arguments)
        assert status == 2 and words in err and err.count("\n") == 1, (arguments, err)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["det_sim.h5", "there.cxi"]
    assert (tmp_path / "there.cxi").read_bytes() == b"mine"
