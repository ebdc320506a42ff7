"""Rotations and the alignment by which every pose error is measured."""

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from napari_xrai.core import rotations as rot
from napari_xrai.core.symmetry import point_group


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def is_rotation(m):
    return np.allclose(m @ np.swapaxes(m, -1, -2), np.eye(3)) and np.allclose(np.linalg.det(m), 1)


def test_quaternions_are_scalar_last_and_survive_the_round_trip(rng):
    r = rot.random_rotations(50, rng).reshape(5, 10, 3, 3)
    assert np.allclose(rot.quaternion_to_matrix(rot.matrix_to_quaternion(r)), r)
    quarter = np.sqrt(0.5)
    assert np.allclose(rot.quaternion_to_matrix([0, 0, quarter, quarter]) @ [1, 0, 0], [0, 1, 0])


def test_random_rotations_are_uniform_and_repeat_with_their_seed(rng):
    r = rot.random_rotations(20000, rng)
    assert is_rotation(r)
    assert np.abs(r.mean(0)).max() < 0.02
    # uniform on SO(3): the angle has density (1 − cos θ)/π, its mean is π/2 + 2/π
    assert rot.geodesic_angle(r, np.eye(3)).mean() == pytest.approx(np.pi / 2 + 2 / np.pi, abs=0.02)
    assert np.array_equal(rot.random_rotations(20000, np.random.default_rng(3)), r)


@pytest.mark.parametrize("n", [300, 3000])
def test_super_fibonacci_covers_so3_evenly(n, rng):
    def farthest(grid):
        q = rot.matrix_to_quaternion(grid)
        probe = rot.matrix_to_quaternion(rot.random_rotations(5000, rng))
        return 2 * np.degrees(2 * np.arcsin(cKDTree(np.concatenate([q, -q])).query(probe)[0].max() / 2))

    grid = rot.super_fibonacci(n)
    assert grid.shape == (n, 3, 3)
    assert is_rotation(grid)
    assert farthest(grid) < 0.75 * farthest(rot.random_rotations(n, rng))


def test_fibonacci_directions_are_even():
    v = rot.fibonacci_directions(500)
    nearest = cKDTree(v).query(v, k=2)[0][:, 1]
    assert np.allclose(np.linalg.norm(v, axis=1), 1)
    assert nearest.min() > 0.6 * nearest.max()


def test_direction_to_rotation_looks_along_the_direction_also_at_the_poles():
    v = np.concatenate([rot.fibonacci_directions(100), [[0, 0, 1], [0, 0, -1], [1, 0, 0]]])
    r = rot.direction_to_rotation(v)
    assert is_rotation(r)
    assert np.allclose(r[:, :, 2], v)
    assert np.allclose((r @ rot.rotation_z(0.7))[:, :, 2], v)


def test_exp_map_and_geodesic_angle_agree_down_to_tiny_angles(rng):
    r = rot.random_rotations(4, rng)
    for angle in (1e-9, 1e-3, 1.0, 3.1):
        turned = r @ rot.exp_map(angle * rot.fibonacci_directions(4))
        assert np.allclose(rot.geodesic_angle(r, turned), angle, rtol=1e-6)


def test_six_numbers_make_a_rotation_with_a_gradient():
    x = torch.randn(7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    r = rot.rotation_from_6d(x)
    assert is_rotation(r.detach().numpy())
    first = x[:, :3] / x[:, :3].norm(dim=-1, keepdim=True)
    assert torch.allclose(r[..., 0], first)
    r[..., 2, 1].sum().backward()
    assert (x.grad[:, 3:].norm(dim=-1) > 0).all()


@pytest.mark.parametrize(("name", "order"), [("C1", 1), ("C4", 4), ("D5", 10), ("T", 12), ("O", 24), ("I", 60)])
def test_point_groups_are_closed_groups_of_proper_rotations(name, order):
    ops = point_group(name)
    assert ops.shape == (order, 3, 3)
    assert is_rotation(ops)
    assert np.allclose(ops[0], np.eye(3))
    products = np.einsum("aij,bjk->abik", ops, ops).reshape(-1, 3, 3)
    distance = rot.geodesic_angle(products[:, None], ops[None]).min(1)
    assert distance.max() < 1e-6
    assert len(np.unique(np.round(ops.reshape(order, 9), 6), axis=0)) == order


@pytest.mark.parametrize("name", ["", "C0", "D", "X3", "C-1", "C2v"])
def test_an_unknown_point_group_is_named(name):
    with pytest.raises(ValueError, match="no point group"):
        point_group(name)


@pytest.mark.parametrize("group", ["C1", "D5", "O"])
@pytest.mark.parametrize("wrong", [0.0, 0.7])
def test_alignment_finds_the_global_rotation_modulo_symmetry_and_half_turns(group, wrong, rng):
    n, ops = 400, point_group(group)
    true = rot.random_rotations(n, rng)
    g = rot.random_rotations(1, rng)[0]
    error = rng.normal(scale=np.radians(4) / np.sqrt(3), size=(n, 3))
    copies = ops[rng.integers(len(ops), size=n)] @ true
    estimated = g.T @ copies @ rot.exp_map(error)
    estimated[::2] = estimated[::2] @ rot.RZ_PI
    lost = rng.random(n) < wrong
    estimated[lost] = rot.random_rotations(int(lost.sum()), rng)

    found, errors = rot.align_poses(estimated, true, ops)
    assert np.degrees(rot.geodesic_angle(ops @ found, g)).min() < 1.5
    assert np.median(errors[~lost]) == pytest.approx(np.degrees(np.median(np.linalg.norm(error, axis=1))), rel=0.15)
    assert errors.shape == (n,)


def test_alignment_does_not_invent_agreement(rng):
    true, estimated = rot.random_rotations(500, rng), rot.random_rotations(500, rng)
    assert np.median(rot.align_poses(estimated, true)[1]) > 70


def test_alignment_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="cannot be aligned"):
        rot.align_poses(np.zeros((0, 3, 3)), np.zeros((0, 3, 3)))


def test_scipy_reads_our_quaternions_the_same_way(rng):
    r = rot.random_rotations(10, rng)
    assert np.allclose(Rotation.from_quat(rot.matrix_to_quaternion(r)).as_matrix(), r)
