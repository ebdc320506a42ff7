"""What frames are called elsewhere: found again by position, for few bytes each."""

import numpy as np

from napari_xrai.core.blocks import BLOCK_ROWS
from napari_xrai.io.frame_names import FrameNames


def test_names_are_found_among_many_frames_and_after_a_break():
    names, position = FrameNames(), np.arange(0, 300_000, 3)
    for part in np.split(position, 50):
        names.add(part, {"trainId": part + 2**40, "pulseId": part % 7})
    again = FrameNames()
    again.restore({"other": np.zeros(3), **names.state()})
    again.add(np.array([300_000]), {"trainId": np.array([5]), "pulseId": np.array([6])})
    for known in (names, again):
        found = known.of(np.array([299_997, 0, 4, 150_000]))
        assert found["trainId"].tolist() == [299_997 + 2**40, 2**40, -1, 150_000 + 2**40]
        assert found["pulseId"].tolist() == [299_997 % 7, 0, -1, 150_000 % 7]
    assert again.of(np.array([300_000]))["trainId"].tolist() == [5]


def test_names_that_only_some_frames_have_are_unknown_of_the_others():
    names = FrameNames()
    names.add(np.arange(3), {"trainId": np.arange(3)})
    names.add(np.arange(3, 5), {"trainId": np.array([2**40, 2**40]), "pulseId": np.arange(2)})
    names.add(np.arange(5, 7), {"pulseId": np.arange(2)})
    found = names.of(np.arange(8))
    assert found["trainId"].tolist() == [0, 1, 2, 2**40, 2**40, -1, -1, -1]
    assert found["pulseId"].tolist() == [-1, -1, -1, 0, 1, 0, 1, -1]


def test_a_frame_costs_at_most_20_bytes_but_for_a_block():
    names, n = FrameNames(), 200_000
    for part in np.split(np.arange(n), 100):
        names.add(part, {"trainId": part + 2**40, "pulseId": part % 7})
    assert sum(column.nbytes for column in names.state().values()) <= 20 * (n + BLOCK_ROWS)


def test_nothing_is_known_of_nothing():
    names = FrameNames()
    names.add(np.arange(0), {"index": np.arange(0)})
    names.add(np.arange(5), {})
    assert names.of(np.arange(5)) == {} and names.state() == {}
