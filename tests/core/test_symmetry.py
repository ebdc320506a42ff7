"""A named point group: evidence is shared over it, and equal views are searched once."""

import numpy as np
import pytest
import torch
from conftest import atoms_of, bench

from napari_xrai.core.detector import square_detector
from napari_xrai.core.inference import same_mode
from napari_xrai.core.rotations import align_poses, fibonacci_directions, random_rotations
from napari_xrai.core.search import PolarSearch
from napari_xrai.core.symmetry import Orbit, asymmetric_unit, point_group

GROUPS = ["C3", "D5", "T", "O", "I"]


@pytest.mark.parametrize("name", GROUPS)
def test_evidence_summed_over_a_group_is_the_same_from_every_equal_pose(name):
    edge, group = 33, point_group(name)
    axis = np.arange(edge) - edge // 2
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    blob = np.exp(-((x - 5) ** 2 + (y - 3) ** 2 + (z - 7) ** 2) / 8).astype(np.float32).reshape(-1)
    total = Orbit(group, edge).sum(blob, edge)
    again = Orbit(group, edge).sum(total, edge) / len(group)
    assert np.corrcoef(total, again)[0, 1] > 0.97  # two interpolations apart
    assert total.sum() == pytest.approx(len(group) * blob.sum(), rel=1e-2)


def test_beyond_its_radius_evidence_is_left_alone():
    grid = np.random.default_rng(0).random(21**3, np.float32)
    axis = np.arange(21) - 10
    far = np.sqrt((axis**2)[:, None, None] + (axis**2)[:, None] + axis**2).reshape(-1) >= 6
    np.testing.assert_array_equal(Orbit(point_group("D2"), 21).sum(grid, 6)[far], grid[far])


@pytest.mark.parametrize("name", GROUPS)
def test_one_view_of_every_kind_is_looked_for(name):
    group, direction = point_group(name), fibonacci_directions(4000)
    unit = direction[asymmetric_unit(direction, group)]
    assert len(direction) / len(group) <= len(unit) < 1.3 * len(direction) / len(group) + 100
    orbit = np.einsum("gij,nj->gni", group, unit).reshape(-1, 3)
    assert (direction @ orbit.T).max(1).min() > np.cos(np.radians(2.5))  # every view has its like in the unit


def test_poses_that_the_group_makes_equal_are_one_mode():
    group = point_group("D3")
    pose = random_rotations(20, np.random.default_rng(1))
    assert same_mode(pose, group[1] @ pose, group).all() and not same_mode(pose, group[1] @ pose).any()


def test_a_search_in_the_asymmetric_unit_finds_the_pose_modulo_the_group():
    group = point_group("D2")
    atoms = np.concatenate([atoms_of(7, 6) @ g.T for g in group])
    known = bench(square_detector((32, 32), 1e-3, 0.2, None, stop_radius_px=2.5), photons=5000, atoms=atoms)
    photons, rotation = known.frames(60, 2)
    search = PolarSearch(known.pixels, known.brightness, 10.0, 1.5, group)
    assert len(search.base) < 0.35 * 4 * np.pi * 15**2
    search.set_field(known.ratio, known.pixels.edge, float("inf"), np.random.default_rng(3), 0.02, 1)
    found = search.best(torch.from_numpy(photons.dense(search.n_pixels)), 1)[:, 0]
    assert np.median(align_poses(found, rotation, group)[1]) < 6
