"""What is known of every frame: little, and enough."""

import tracemalloc

import numpy as np
import pytest

from napari_xrai.core import blocks
from napari_xrai.core.blocks import BLOCK_ROWS
from napari_xrai.core.frame_table import FrameTable
from napari_xrai.core.frames import DROPPED, NOT_HIT, USED, Counters
from napari_xrai.core.rotations import random_rotations
from napari_xrai.core.symmetry import point_group


def filled(n):
    table = FrameTable()
    rng = np.random.default_rng(0)
    rotation = random_rotations(n, rng).astype(np.float32)
    for first in range(0, n, 200):
        index = np.arange(first, min(first + 200, n))
        table.receive(index, np.zeros(len(index), bool))
        table.put(index, rotation[index], np.ones(len(index)), -index.astype(float), np.full(len(index), 0.5))
    return table, rotation


def size(table):
    return table.fate.nbytes + sum(column.nbytes for column in table.column.values())


def test_a_frame_costs_42_bytes_but_for_a_block():
    table, _ = filled(100_000)
    assert size(table) <= 42 * (100_000 + BLOCK_ROWS)


def test_a_frame_without_a_pose_costs_one_byte():
    table, _ = filled(1000)
    table.note(np.arange(1000, 1_000_000), DROPPED)
    assert size(table) <= 42 * BLOCK_ROWS + 1_000_000
    assert table.counters() == Counters(received=1_000_000, dropped=999_000, used=1000)


def test_growing_over_blocks_loses_nothing():
    n = 2 * BLOCK_ROWS + 50
    table, rotation = filled(n)
    found, known = table.rotation(np.arange(n))
    assert known.all()
    np.testing.assert_allclose(found, rotation, atol=1e-5)
    poses = table.poses(None)
    np.testing.assert_array_equal(poses.frame, np.arange(n))
    np.testing.assert_array_equal(poses.log_likelihood, -np.arange(n, dtype=np.float32))


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


def test_late_frames_take_their_places_over_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_ROWS", 16)
    table, rng = FrameTable(), np.random.default_rng(0)
    position = rng.permutation(1000)[:500]
    rotation = random_rotations(500, rng).astype(np.float32)
    for part in np.arange(500).reshape(25, 20):
        table.put(position[part], rotation[part], part.astype(float), np.zeros(20), np.ones(20))
    order = np.argsort(position)
    np.testing.assert_array_equal(table.poses(None).frame, position[order])
    np.testing.assert_array_equal(table.poses(None).fluence, order)
    np.testing.assert_allclose(table.rotation(position)[0], rotation, atol=1e-5)
    assert np.isnan(table.poses(None).radius68).all()


def test_a_table_comes_back_from_its_state_and_from_an_older_one():
    table, rotation = filled(300)
    arrays = {name: np.array(column) for name, column in table.state().items()} | {"other": np.zeros(3)}
    del arrays["frame_modes"]
    again = FrameTable.of(arrays)
    assert again.counters() == table.counters()
    again.put(np.array([300]), rotation[:1], np.ones(1), np.zeros(1), np.ones(1))
    again.put_modes(np.array([300]), np.ones(1, np.uint8))
    poses = again.poses(None)
    np.testing.assert_array_equal(poses.quaternion[:300], table.poses(None).quaternion)
    assert poses.modes.tolist() == [0] * 300 + [1]


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
