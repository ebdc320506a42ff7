"""The common motion of neighbouring frames is found among their own, and poses are laid a part of it ahead."""

import numpy as np
import pytest

from napari_xrai.core.pose_drift import MOMENTUM, PoseDrift
from napari_xrai.core.rotations import RZ_PI, exp_map, geodesic_angle, random_rotations


def warp(rotation: np.ndarray) -> np.ndarray:
    """Rotation vectors that differ from region to region, up to 2°; the same for d and −d."""
    x, y, z = rotation[:, :, 2].T
    return np.radians(2) * np.stack([x * y, z * z - 0.3, x * z], 1)


def settled(now: np.ndarray, before: np.ndarray, updates: int = 1, arrived: bool = False) -> PoseDrift:
    drift = PoseDrift()
    drift.add(before.astype(np.float32), now.astype(np.float32))
    drift.settle(updates, arrived)
    return drift


@pytest.fixture
def rotation():
    return random_rotations(3000, np.random.default_rng(0))


def test_a_warp_is_found_among_motions_of_single_frames(rotation):
    own = np.radians(1.0) * np.random.default_rng(1).normal(size=(3000, 3))
    now = exp_map(warp(rotation) + own) @ rotation @ np.where(np.arange(3000)[:, None, None] % 2, RZ_PI, np.eye(3))
    step = settled(now, rotation).ahead(now.astype(np.float32))
    wanted = exp_map(MOMENTUM * warp(rotation)) @ now
    moved = np.degrees(geodesic_angle(wanted, now))
    assert np.median(np.degrees(geodesic_angle(wanted, step))) < 0.15 * np.median(moved)


def test_frames_that_jump_do_not_count(rotation):
    now = exp_map(warp(rotation)) @ rotation
    now[::3] = random_rotations(1000, np.random.default_rng(2))
    step = settled(now, rotation).ahead(rotation.astype(np.float32))
    wanted = exp_map(MOMENTUM * warp(rotation)) @ rotation
    assert np.median(np.degrees(geodesic_angle(wanted, step))) < 0.1


def test_several_updates_share_a_pass(rotation):
    now = exp_map(warp(rotation)) @ rotation
    whole, third = (settled(now, rotation, n).coefficient for n in (1, 3))
    np.testing.assert_allclose(third, whole / 3)


def test_few_frames_none_or_the_last_step_of_the_resolution_move_nothing(rotation):
    few = rotation[:100]
    now = exp_map(warp(rotation)) @ rotation
    for drift in (PoseDrift(), settled(exp_map(warp(few)) @ few, few), settled(now, rotation, arrived=True)):
        np.testing.assert_array_equal(drift.ahead(rotation.astype(np.float32)), rotation.astype(np.float32))
