"""The figures of merit, on reconstructions whose errors are known."""

import json
from dataclasses import replace

import numpy as np
import pytest

from napari_xrai.compare import SHELLS, compare_with_truth, comparison_table
from napari_xrai.core import rotations as rot
from napari_xrai.core.frames import Counters, Poses, Volume
from napari_xrai.core.simulate import Truth
from napari_xrai.core.symmetry import point_group
from napari_xrai.io.source import InputError
from napari_xrai.run import SavedRun
from napari_xrai.settings import InputSettings, Settings
from toy import ToyReconstruction, ToySource

N, SIDE = 300, 67
VOXEL = 0.002


def smooth_intensity(side, voxel, turn=None, seed=1):
    """V(turn q): a sum of waves, so that it can be had on any grid and in any orientation without interpolation."""
    wave = np.random.default_rng(seed).normal(scale=15.0, size=(40, 3))
    axis = (np.arange(side) - side // 2) * voxel
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    q = np.stack([x, y, z], axis=-1) @ (np.eye(3) if turn is None else turn).T
    return Volume(sum(np.cos(2 * np.pi * q @ w) for w in wave).astype(np.float32), voxel, "1/angstrom")


@pytest.fixture(scope="module")
def truth():
    rotation = rot.random_rotations(N, np.random.default_rng(0)).astype(np.float32)
    return Truth(rotation, smooth_intensity(SIDE, VOXEL))


def run_with(intensity, rotation, frame=None, poses=True):
    engine = ToyReconstruction(passes=1, step_s=0)
    list(engine.run(ToySource().batches))
    column = np.ones(len(rotation), np.float32)
    frame = np.arange(len(rotation)) if frame is None else frame
    quaternion = rot.matrix_to_quaternion(rotation).astype(np.float32)
    snapshot = replace(engine.snapshot(), intensity=intensity, poses=Poses(frame, quaternion, column, column, column))
    return SavedRun("run", snapshot if poses else None, None, [])


def turned(truth, degrees, rng):
    """The same experiment in a particle frame turned by a global rotation, each pose wrong by so many degrees."""
    g = rot.random_rotations(1, rng)[0]
    axis = rng.normal(size=(N, 3))
    error = rot.exp_map(np.radians(degrees) * axis / np.linalg.norm(axis, axis=1, keepdims=True))
    return g, g.T @ truth.rotation @ error


def test_a_perfect_reconstruction_in_another_frame_is_perfect(truth):
    g, poses = turned(truth, 0.0, np.random.default_rng(5))
    poses[::3] = poses[::3] @ rot.RZ_PI
    result = compare_with_truth(run_with(smooth_intensity(SIDE, VOXEL, turn=g), poses), truth, "truth.h5")
    assert result.pose_error_deg.max() < 0.1
    assert set(result.shell_cc) == set(SHELLS)
    assert min(result.shell_cc.values()) > 0.97  # what is left is trilinear interpolation
    assert np.degrees(rot.geodesic_angle(result.rotation, g)) < 0.05


def test_pose_errors_are_measured_in_degrees(truth):
    g, poses = turned(truth, 7.0, np.random.default_rng(5))
    result = compare_with_truth(run_with(smooth_intensity(SIDE, VOXEL, turn=g), poses), truth, "truth.h5")
    figures = result.as_json()["pose_error_deg"]
    assert figures["median"] == pytest.approx(7.0, abs=0.4)
    assert figures["mean"] == pytest.approx(7.0, abs=0.4)
    assert figures["p90"] == pytest.approx(7.0, abs=1.0)


def test_poses_are_matched_by_frame_not_by_order(truth):
    frame = np.random.default_rng(2).permutation(N)[:200]
    result = compare_with_truth(run_with(truth.intensity, truth.rotation[frame], frame), truth, "truth.h5")
    assert result.frames == 200
    assert result.pose_error_deg.max() < 0.1


def test_the_point_group_counts(truth):
    ops = point_group("D5")
    rng = np.random.default_rng(3)
    poses = ops[rng.integers(10, size=N)] @ truth.rotation
    without = compare_with_truth(run_with(truth.intensity, poses), truth, "truth.h5")
    with_group = compare_with_truth(run_with(truth.intensity, poses), replace(truth, point_group=ops), "truth.h5")
    assert np.median(without.pose_error_deg) > 20
    assert with_group.pose_error_deg.max() < 0.1


def test_voxel_sizes_and_units_of_both_are_respected(truth):
    fine = smooth_intensity(131, VOXEL / 2)
    same_unit = compare_with_truth(run_with(fine, truth.rotation), truth, "truth.h5")
    own_unit = compare_with_truth(run_with(Volume(fine.data, 0.5, "detector_voxel"), truth.rotation), truth, "truth.h5")
    assert min(same_unit.shell_cc.values()) > 0.98
    assert own_unit.shell_cc == pytest.approx(same_unit.shell_cc)
    wrong = compare_with_truth(run_with(replace(fine, voxel_size=VOXEL * 0.75), truth.rotation), truth, "truth.h5")
    assert wrong.shell_cc[22] < 0.5


def test_shells_out_of_range_are_left_out(truth):
    small = Volume(truth.intensity.data[13:-13, 13:-13, 13:-13], VOXEL, "1/angstrom")
    result = compare_with_truth(run_with(small, truth.rotation), truth, "truth.h5")
    assert set(result.shell_cc) == {4, 7, 10, 13, 16, 19}


def test_an_unrelated_intensity_does_not_correlate(truth):
    other = smooth_intensity(SIDE, VOXEL, seed=2)
    result = compare_with_truth(run_with(other, truth.rotation), truth, "truth.h5")
    assert max(abs(cc) for r, cc in result.shell_cc.items() if r >= 16) < 0.4


def test_what_cannot_be_compared_is_said(truth):
    with pytest.raises(InputError, match="no poses yet"):
        compare_with_truth(run_with(truth.intensity, truth.rotation, poses=False), truth, "truth.h5")
    with pytest.raises(InputError, match=r"up to frame 299, truth.h5 only 100 frames"):
        few = replace(truth, rotation=truth.rotation[:100])
        compare_with_truth(run_with(truth.intensity, truth.rotation), few, "truth.h5")


def blob_density(side, voxel_A, turn, shift_A, hand):
    """A few Gaussian blobs, turned, shifted and perhaps inverted."""
    rng = np.random.default_rng(4)
    centre, width = rng.normal(scale=25.0, size=(12, 3)), rng.uniform(6, 14, 12)
    axis = (np.arange(side) - side // 2) * voxel_A
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    r = hand * np.stack([x, y, z], axis=-1) @ turn.T + shift_A
    blobs = (np.exp(-((r - c) ** 2).sum(-1) / (2 * w**2)) for c, w in zip(centre, width, strict=True))
    return Volume(sum(blobs).astype(np.float32), voxel_A, "angstrom")


@pytest.mark.parametrize("units", ["angstrom", "1/detector_voxel"])
def test_densities_are_compared_whatever_their_pose_place_and_hand(truth, units):
    turn = rot.random_rotations(1, np.random.default_rng(6))[0]
    known = replace(truth, density=blob_density(48, 6.0, np.eye(3), np.zeros(3), 1))
    found = blob_density(48, 6.0, turn, np.array([8.0, -5.0, 3.0]), -1)
    if units == "1/detector_voxel":
        found = Volume(found.data, 6.0 * VOXEL, units)
    run = run_with(truth.intensity, truth.rotation)
    run = replace(run, snapshot=replace(run.snapshot, density=found))
    result = compare_with_truth(run, known, "truth.h5")
    at = np.searchsorted(result.fsc.q, 1 / 30)
    assert result.fsc.value[:at].min() > 0.97
    assert result.fsc_resolution_A < 25
    assert result.as_json()["fsc"]["resolution_A"] == pytest.approx(result.fsc_resolution_A, abs=0.01)

    other = Volume(np.random.default_rng(0).normal(size=(48, 48, 48)).astype(np.float32), 6.0, "angstrom")
    run = replace(run, snapshot=replace(run.snapshot, density=other))
    assert np.nanmean(compare_with_truth(run, known, "truth.h5").fsc.value[3:]) < 0.3


def test_figures_are_plain_json_and_a_table(truth):
    result = compare_with_truth(run_with(truth.intensity, truth.rotation), truth, "truth.h5")
    figures = json.loads(json.dumps(result.as_json()))
    assert figures["shell_cc"]["22"] == pytest.approx(1.0, abs=1e-3)
    assert comparison_table(result).row_count == 3 + len(SHELLS)


def test_frames_that_another_program_left_out_do_not_count(truth):
    poses = truth.rotation.astype(np.float64)
    theirs = replace(truth, rotation=np.where(np.arange(N)[:, None, None] % 4, truth.rotation, np.nan))
    result = compare_with_truth(run_with(truth.intensity, poses), theirs, "output_030.h5")
    assert result.frames == 3 * N // 4 and result.pose_error_deg.max() < 0.1
    nothing = replace(truth, rotation=np.full_like(truth.rotation, np.nan))
    with pytest.raises(InputError, match=r"output_030\.h5 has no pose of any frame"):
        compare_with_truth(run_with(truth.intensity, poses), nothing, "output_030.h5")
    voxels = replace(truth, intensity=replace(truth.intensity, units="detector_voxel"))
    with pytest.raises(InputError, match="compare a run without photon energy"):
        compare_with_truth(run_with(truth.intensity, poses), voxels, "output_030.h5")


def test_the_truth_of_another_experiment_is_refused_or_doubted(truth):
    rng = np.random.default_rng(3)
    wrong = run_with(truth.intensity, rot.random_rotations(N, rng))
    result = compare_with_truth(wrong, truth, "truth.h5")
    assert "no better than chance" in result.note and "truth.h5 is of other frames" in result.as_json()["note"]
    right = compare_with_truth(run_with(truth.intensity, truth.rotation), truth, "truth.h5")
    assert right.note == "" and "note" not in right.as_json()
    near = replace(truth, intensity=replace(truth.intensity, voxel_size=VOXEL / 10))
    with pytest.raises(InputError, match=r"run reaches to \|q\| = .*truth\.h5 to .* different experiments"):
        compare_with_truth(run_with(truth.intensity, truth.rotation), near, "truth.h5")
    run = run_with(truth.intensity, truth.rotation[:200], np.arange(200))
    done = replace(run.snapshot, progress=replace(run.snapshot.progress, fraction=1.0))
    whole = replace(run, snapshot=replace(done, counters=Counters(received=200, used=200)), settings=Settings())
    with pytest.raises(InputError, match=r"run is of 200 frames, truth\.h5 of 300: give the truth of these frames"):
        compare_with_truth(whole, truth, "truth.h5")
    part = replace(whole, settings=Settings(input=InputSettings(select="0:200")))
    assert compare_with_truth(part, truth, "truth.h5").frames == 200
