"""Snapshots as layers, on the model alone: no window is opened here."""

from dataclasses import replace

import numpy as np
import pytest
from napari.components import ViewerModel
from scipy.spatial.transform import Rotation

from napari_xrai.core.frames import Counters, Detector, Frames, Poses, Progress, Snapshot, Volume
from napari_xrai.layers import KEY, MAX_POSES, Picture, ResultLayers, patterns_layer

N, VOXEL_A = 33, 4.0


def ball(radius=5.0):
    distance = np.linalg.norm(np.indices((N, N, N)) - N // 2, axis=0)
    return np.clip(radius + 0.5 - distance, 0, 1).astype(np.float32)


def snapshot(scale=1.0, density=True, rotations=None):
    rotations = Rotation.random(10, rng=0) if rotations is None else rotations
    n = len(rotations)
    rows = np.ones(n, np.float32)
    intensity = scale * np.exp(-((np.linalg.norm(np.indices((N, N, N)) - N // 2, axis=0) / 4) ** 2))
    q_voxel = 1 / (N * VOXEL_A)
    return Snapshot(
        intensity=Volume(intensity.astype(np.float32), q_voxel, "1/angstrom"),
        weight=Volume(np.ones((N, N, N), np.float32), q_voxel, "1/angstrom"),
        density=Volume(ball(), VOXEL_A, "angstrom") if density else None,
        poses=Poses(np.arange(n), rotations.as_quat().astype(np.float32), rows, rows, rows),
        status=np.zeros(n, np.uint8),
        history={
            "frames_seen": np.array([10.0, 20.0]), "log_likelihood": np.array([-2.0, -1.0]),
            "resolution_q": np.array([np.nan, 0.05]),
        },
        shells={"q": np.array([0.01, 0.05]), "half_cc": np.array([1.0, 0.5]), "weight": np.ones(2)},
        counters=Counters(n, 0, 0, 0, n), progress=Progress("pass 1", 0.5, 20, 10.0), resolution_A=20.0,
        verdict="improving", reason="",
    )  # fmt: skip


@pytest.fixture
def viewer():
    return ViewerModel()


@pytest.fixture
def shown(viewer):
    layers = ResultLayers(viewer)
    layers.show(Picture.of(snapshot()))
    return layers


def kinds(viewer):
    return sorted(layer.metadata[KEY] for layer in viewer.layers)


def test_a_snapshot_is_shown_in_3d_side_by_side(viewer, shown):
    assert viewer.dims.ndisplay == 3
    assert kinds(viewer) == ["density", "intensity", "slices"]
    intensity, density = shown.find("intensity"), shown.find("density")
    assert intensity.extent.world[1, 2] < density.extent.world[0, 2]
    np.testing.assert_allclose(np.ptp(density.extent.world, axis=0), 2 * 5 * VOXEL_A, atol=VOXEL_A)
    for layer in (intensity, density):
        np.testing.assert_allclose(layer.extent.world.mean(axis=0)[:2], 0, atol=1e-6)
    assert 0.4 < np.ptp(intensity.extent.world[:, 0]) / (N * VOXEL_A) < 1


def test_the_data_stays_true(shown):
    np.testing.assert_array_equal(shown.find("intensity").data, snapshot().intensity.data)


def test_a_new_snapshot_renews_the_same_layers_whatever_their_names(viewer, shown):
    layer = shown.find("intensity")
    layer.name = "my best run"
    shown.show(Picture.of(snapshot(scale=3)))
    assert kinds(viewer) == ["density", "intensity", "slices"]
    assert shown.find("intensity") is layer
    assert layer.data.max() == pytest.approx(3)


def test_another_run_in_the_same_viewer_uses_the_same_layers(viewer, shown):
    again = ResultLayers(viewer)
    again.begin()
    again.show(Picture.of(snapshot()))
    assert kinds(viewer) == ["density", "intensity", "slices"]


def test_a_deleted_layer_comes_back(viewer, shown):
    viewer.layers.remove(shown.find("density"))
    shown.show(Picture.of(snapshot()))
    assert kinds(viewer) == ["density", "intensity", "slices"]


def test_contrast_follows_the_data_until_it_is_touched(shown):
    layer = shown.find("intensity")
    first = layer.contrast_limits[1]
    shown.show(Picture.of(snapshot(scale=5)))
    assert layer.contrast_limits[1] == pytest.approx(5 * first)
    layer.contrast_limits = (0, 2 * first)
    shown.show(Picture.of(snapshot(scale=9)))
    assert layer.contrast_limits[1] == pytest.approx(2 * first)


def test_the_camera_is_fitted_when_the_density_appears_unless_it_was_turned(viewer):
    layers = ResultLayers(viewer)
    layers.show(Picture.of(snapshot(density=False)))
    alone = viewer.scene.camera.center[2]
    layers.show(Picture.of(snapshot()))
    assert viewer.scene.camera.center[2] > alone
    viewer.layers.remove(layers.find("density"))
    viewer.scene.camera.angles = (1, 2, 3)
    center = viewer.scene.camera.center
    layers.show(Picture.of(snapshot()))
    assert viewer.scene.camera.center == center
    assert viewer.scene.camera.angles == pytest.approx((1, 2, 3))


def test_volume_or_sections(viewer, shown):
    assert (shown.find("intensity").visible, shown.find("slices").visible) == (True, False)
    shown.set_view("slices")
    shown.show(Picture.of(snapshot(scale=2)))
    assert (shown.find("intensity").visible, shown.find("slices").visible) == (False, True)
    vertices, _, values = shown.find("slices").data
    at = vertices.astype(int)
    np.testing.assert_array_equal(values, snapshot(scale=2).intensity.data[*at.T])
    assert (at == N // 2).any(axis=1).all()


def test_sections_end_where_nothing_was_measured():
    seen = snapshot()
    weight = seen.weight.data.copy()
    weight[:, :, : N // 2] = 0
    half = Picture.of(replace(seen, weight=replace(seen.weight, data=weight))).slices
    assert len(half[1]) < 0.7 * len(Picture.of(seen).slices[1])
    used = half[0][np.unique(half[1])]
    assert used[:, 2].min() >= N // 2
    assert Picture.of(replace(seen, weight=replace(seen.weight, data=0 * weight))).slices is None


def test_nothing_to_draw_is_no_error(viewer):
    blank = snapshot()
    zero = np.zeros((N, N, N), np.float32)
    blank = replace(
        blank,
        intensity=replace(blank.intensity, data=zero),
        weight=replace(blank.weight, data=zero),
        density=replace(blank.density, data=zero),
        poses=Poses(*(column[:0] for column in vars(blank.poses).values())),
        history={},
        shells={},
    )
    ResultLayers(viewer).show(Picture.of(blank))
    assert kinds(viewer) == ["intensity"]


def test_the_status_bar_says_how_far_from_the_centre_the_surface_is_and_in_what(viewer, shown):
    def status():
        density = shown.find("density")
        at = density.data_to_world((N // 2, N // 2, N // 2))
        said = density.get_status(at, view_direction=np.array([0, 0, 1.0]), dims_displayed=[0, 1, 2], world=True)
        return density.name, float(said["value"].partition(",")[0])

    name, value = status()
    assert name == "Density (Å from centre)"
    assert abs(value - 5 * VOXEL_A) < VOXEL_A / 2
    other = snapshot()
    shown.show(Picture.of(replace(other, density=replace(other.density, voxel_size=0.5, units="1/detector_voxel"))))
    name, value = status()
    assert name == "Density (1/voxel from centre)"
    assert abs(value - 5 * 0.5) < 0.25


def test_a_higher_level_draws_a_smaller_surface():
    soft = replace(snapshot(), density=Volume(np.exp(-((1 - ball(12)) ** 2)) * ball(12), VOXEL_A, "angstrom"))
    low, high = (Picture.of(soft, level).surface[2].max() for level in (0.2, 0.8))
    assert high < low


def test_pose_points_are_the_beam_in_the_particles_frame():
    rotations = Rotation.random(20, rng=1)
    cloud = Picture.of(snapshot(rotations=rotations)).poses
    np.testing.assert_allclose(cloud.direction, rotations.apply([0, 0, 1]), atol=1e-5)
    turns = Rotation.from_rotvec([[0, 0, turn] for turn in (0, 90, 180, 270)], degrees=True)
    np.testing.assert_allclose(Picture.of(snapshot(rotations=turns)).poses.in_plane, [0, 0.25, 0.5, 0.75], atol=1e-6)


def test_many_poses_are_thinned_and_counted():
    cloud = Picture.of(snapshot(rotations=Rotation.random(3 * MAX_POSES, rng=2))).poses
    assert len(cloud.direction) == MAX_POSES
    assert cloud.total == 3 * MAX_POSES


def test_resolution_is_in_angstrom_or_in_voxels():
    seen = snapshot()
    np.testing.assert_allclose(Picture.of(seen).curves.resolution, [np.nan, 20])
    own = replace(seen, intensity=replace(seen.intensity, units="detector_voxel"))
    np.testing.assert_allclose(Picture.of(own).curves.resolution, [np.nan, 0.05])


class FlatSource:
    """Nine pixels in a list, as Dragonfly keeps them; the fifth is the beam's."""

    format, paths, n_pixels, shape, n_frames = "flat", (), 9, (9,), 5

    def __init__(self):
        x, y = np.meshgrid([-0.1, 0.0, 0.1], [-0.1, 0.0, 0.1])
        along = np.stack([x.ravel(), y.ravel(), np.ones(9)], axis=1)
        q = along / np.linalg.norm(along, axis=1, keepdims=True) - [0, 0, 1]
        self.detector = Detector(q, np.ones(9), np.zeros(9, np.uint8), (9,), 1.0)

    def read(self, frames):
        counts = np.zeros((len(frames), 9), int)
        counts[:, 8] = 7  # x and y both positive: left and up, as one looks along z with y up
        return Frames.from_dense(counts)


def test_flat_lists_of_pixels_are_laid_out_as_the_beam_sees_them():
    data, kwargs, kind = patterns_layer(FlatSource())
    assert (kind, kwargs["metadata"][KEY], data.shape) == ("image", "patterns", (5, 3, 3))
    assert data[0, 0, 0] == 7
    assert data[0].sum() == 7


def test_a_flat_list_without_a_detector_has_no_picture():
    source = FlatSource()
    source.detector = None
    assert patterns_layer(source) is None


def test_views_that_are_missing_are_said_and_shown():
    even = Rotation.random(3000, rng=0)
    uneven = even[np.abs(even.as_matrix()[:, 2, 2]) < 0.6]  # none within 53° of ±z
    for rotations, word, most in ((even, "even", 1.2), (uneven, "few views", 2.2)):
        cloud = Picture.of(snapshot(rotations=rotations)).poses
        assert word in cloud.evenness
        across = np.abs(cloud.direction[:, 2]) < 0.2
        assert most / 1.5 < np.median(cloud.views[across]) < most
