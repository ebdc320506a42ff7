"""What is known of every frame: little, and enough."""

import tracemalloc

import numpy as np
import pytest

from napari_xrai.core.frame_table import FrameTable
from napari_xrai.core.frames import DROPPED, NOT_HIT, USED, Counters
from napari_xrai.core.rotations import random_rotations
from napari_xrai.core.symmetry import point_group


def filled(n, capacity=0):
    table = FrameTable(capacity)
    rng = np.random.default_rng(0)
    rotation = random_rotations(n, rng).astype(np.float32)
    for first in range(0, n, 100):
        index = np.arange(first, min(first + 100, n))
        table.receive(index, np.zeros(len(index), bool))
        table.put(index, rotation[index], np.ones(len(index)), -index.astype(float), np.full(len(index), 0.5))
    return table, rotation


def size(table):
    return table._fate.nbytes + sum(column.nbytes for column in table._column.values())


def test_a_frame_costs_42_bytes():
    table, _ = filled(1000, capacity=1000)
    assert size(table) == 42 * 1000


def test_a_frame_without_a_pose_costs_one_byte():
    table, _ = filled(1000)
    table.note(np.arange(1000, 1_000_000), DROPPED)
    assert size(table) < 42 * 1000 * 1.13 + 1_000_000 * 1.13
    assert table.counters() == Counters(received=1_000_000, dropped=999_000, used=1000)


def test_growing_wastes_at_most_an_eighth_and_loses_nothing():
    table, rotation = filled(5000)
    assert size(table) <= 42 * 5000 * 1.13
    found, known = table.rotation(np.arange(5000))
    assert known.all()
    np.testing.assert_allclose(found, rotation, atol=1e-5)
    poses = table.poses(None)
    np.testing.assert_array_equal(poses.frame, np.arange(5000))
    np.testing.assert_array_equal(poses.log_likelihood, -np.arange(5000, dtype=np.float32))


def test_counters_add_up():
    table = FrameTable()
    empty = np.random.default_rng(0).random(700) < 0.3
    table.receive(np.arange(700), empty)
    table.receive(np.arange(700), empty)  # a second pass receives no new frame
    counters = table.counters()
    assert counters.received == 700
    assert counters.received == counters.dropped + counters.not_hit + counters.junk + counters.used
    assert counters.not_hit == empty.sum() and counters.hits == counters.used == (~empty).sum()
    np.testing.assert_array_equal(table.status, np.where(empty, NOT_HIT, USED))


def test_frames_without_a_pose_have_none():
    table = FrameTable()
    table.receive(np.arange(10), np.zeros(10, bool))
    turn = random_rotations(1, np.random.default_rng(0)).astype(np.float32)
    table.put(np.array([7]), turn, np.ones(1), np.zeros(1), np.ones(1))
    rotation, known = table.rotation(np.array([6, 7]))
    assert known.tolist() == [False, True]
    np.testing.assert_array_equal(rotation[0], np.eye(3))
    assert table.poses(None).frame.tolist() == [7]


def test_frames_may_come_in_any_order():
    table = FrameTable()
    rotation = random_rotations(100, np.random.default_rng(0)).astype(np.float32)
    for index in np.random.default_rng(1).permutation(100).reshape(20, 5):
        table.receive(index, np.zeros(5, bool))
        table.put(index, rotation[index], index.astype(float), np.zeros(5), np.ones(5))
    poses = table.poses(None)
    np.testing.assert_array_equal(poses.frame, np.arange(100))
    np.testing.assert_array_equal(poses.fluence, np.arange(100))
    index = np.array([50, 3, 99])
    np.testing.assert_allclose(table.rotation(index)[0], rotation[index], atol=1e-5)


def test_few_poses_are_an_even_sample():
    table, _ = filled(1000)
    frame = table.poses(at_most=100).frame
    assert len(frame) == 100 and frame[0] == 0 and frame[-1] == 999
    assert np.ptp(np.diff(frame)) <= 1


def test_poses_handed_out_are_not_changed_afterwards():
    table, rotation = filled(100)
    poses = table.poses(None)
    before = poses.quaternion.copy()
    table.put(np.arange(100), rotation[::-1], np.ones(100), np.zeros(100), np.ones(100))
    np.testing.assert_array_equal(poses.quaternion, before)
    with pytest.raises(AssertionError):
        np.testing.assert_array_equal(table.poses(None).quaternion, before)


def test_directions_are_those_of_all_poses_and_of_their_equals():
    table, rotation = filled(2500)
    direction, turn = rotation[..., 2], np.diag([-1.0, -1.0, 1.0])
    np.testing.assert_allclose(np.concatenate(list(table.directions(np.eye(3)[None]))), direction, atol=1e-6)
    found = np.concatenate(list(table.directions(np.stack([np.eye(3), turn]))))
    expected = np.concatenate([direction, direction @ turn])
    np.testing.assert_allclose(np.sort(found, 0), np.sort(expected, 0), atol=1e-6)


def test_going_through_all_directions_takes_less_room_than_the_table():
    table, _ = filled(100_000)
    group = point_group("O")
    tracemalloc.start()
    for _ in table.directions(group):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < size(table)
