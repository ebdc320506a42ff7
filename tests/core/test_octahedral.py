"""A particle whose point group is named, from noise to its poses: the gold nanocube, by search and by encoder."""

import numpy as np
import pytest

from napari_xrai.core.frames import HC_EV_A, Frames
from napari_xrai.core.particle import builtin_particle
from napari_xrai.core.reconstruction import Reconstruction
from napari_xrai.core.reconstruction_settings import ReconstructionSettings
from napari_xrai.core.resolution import sample
from napari_xrai.core.rotations import align_poses, fibonacci_directions, quaternion_to_matrix
from napari_xrai.core.simulate import Preset, simulate
from napari_xrai.core.symmetry import point_group
from napari_xrai.core.verdict import UNEVEN_VIEWS


@pytest.fixture(scope="module")
def cubes():
    """600 frames of 1,000 photons, the detector's edge at a sixth of the cube's diagonal."""
    particle = builtin_particle("cube")
    q_edge = 6 / particle.diameter_A
    distance_m = 0.05 / np.tan(2 * np.arcsin(4.0 * q_edge / 2))
    preset = Preset((36, 36), 0.1 / 36, distance_m, HC_EV_A / 4.0, stop_radius_px=2)
    detector, truth, batches = simulate(particle, preset, n_frames=600, photons=1000, seed=3)
    return detector, truth, Frames.concatenate(list(batches))


def reconstructed(cubes, **settings):
    detector, _, frames = cubes
    engine = Reconstruction(detector, ReconstructionSettings(**settings), len(frames))
    for _ in engine.run(lambda size, start: (frames.take(slice(a, a + size)) for a in range(start, len(frames), size))):
        pass
    return engine


@pytest.mark.parametrize("proposals", ["search", "encoder"])
def test_a_nanocube_named_octahedral_is_found_and_its_intensity_has_the_symmetry(cubes, proposals):
    truth = cubes[1]
    snapshot = reconstructed(cubes, seed=3, symmetry="O", proposals=proposals).snapshot(all_poses=True)
    assert snapshot.verdict == "converged", snapshot.reason
    rotation = quaternion_to_matrix(snapshot.poses.quaternion)
    _, error = align_poses(rotation, truth.rotation[snapshot.poses.frame], truth.point_group)
    assert np.median(error) < 6
    direction = fibonacci_directions(500)
    for radius in (6, 10):
        value = sample(snapshot.intensity, radius * snapshot.intensity.voxel_size * direction)
        for turn in point_group("O")[1:]:
            turned = sample(snapshot.intensity, radius * snapshot.intensity.voxel_size * direction @ turn.T)
            assert np.corrcoef(value, turned)[0, 1] > 0.97


def test_views_of_a_nanocube_that_nobody_named_may_crowd_and_its_symmetry_is_said(cubes):
    engine = reconstructed(cubes, seed=4)
    assert engine.crowding > UNEVEN_VIEWS  # frames lie in any of the equal views
    _, reason = engine.verdict()
    assert "looks like O" in reason and "several particles" not in reason
