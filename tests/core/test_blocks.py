"""Columns that grow by blocks behave as arrays, and never move what they hold."""

import tracemalloc

import numpy as np
import pytest

from napari_xrai.core import blocks
from napari_xrai.core.blocks import BLOCK_ROWS, Blocks


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_ROWS", 8)


def test_rows_are_given_and_taken_as_those_of_an_array(small_blocks):
    rng = np.random.default_rng(0)
    column, array = Blocks(np.float32, np.nan, (2,)), np.zeros((0, 2), np.float32)
    assert column.shape == (0, 2) and column[:].shape == (0, 2)
    for _ in range(30):
        rows = rng.normal(size=(rng.integers(0, 12), 2)).astype(np.float32)
        column.append(rows)
        array = np.concatenate([array, rows])
        index = rng.permutation(len(array))[:10]
        column[index] = array[index] = rng.normal(size=(len(index), 2))
        start, stop = np.sort(rng.integers(0, len(array) + 1, 2))
        column[start:stop] = array[start:stop] = rng.normal(size=2)
        np.testing.assert_array_equal(column[start:stop], array[start:stop])
        np.testing.assert_array_equal(column[index], array[index])
        np.testing.assert_array_equal(np.asarray(column), array)
        assert column.shape == array.shape and column.ndim == 2 and len(column) == len(array)


def test_new_rows_hold_the_fill(small_blocks):
    column = Blocks(np.uint8, 255)
    column.grow(20)
    column.grow(3)
    assert column.copy().tolist() == [255] * 20


def test_rows_handed_out_are_copies(small_blocks):
    column = Blocks.of(np.arange(20))
    for taken in (column[2:5], column[:], column[np.array([2, 3])], np.array(column)):
        taken[:] = -1
    assert column.copy().tolist() == list(range(20))


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 30])
def test_values_are_found_where_searchsorted_finds_them(small_blocks, n):
    rising = np.sort(np.random.default_rng(n).permutation(100)[:n])
    values = np.random.default_rng(1).permutation(np.arange(-2, 103))
    row, there = Blocks.of(rising).find(values)
    np.testing.assert_array_equal(row, np.searchsorted(rising, values))
    np.testing.assert_array_equal(there, np.isin(values, rising))


def test_larger_numbers_fit_too(small_blocks):
    column = Blocks.of(np.arange(10, dtype=np.int32))
    column.append(np.array([2**40]))
    assert column.copy().tolist() == [*range(10), 2**40]


def test_growing_copies_nothing_and_wastes_at_most_a_block():
    column = Blocks(np.float32)
    column.append(np.arange(BLOCK_ROWS, dtype=np.float32))
    tracemalloc.start()
    for n in range(1, 2001):
        column.grow(BLOCK_ROWS + 500 * n)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < BLOCK_ROWS  # a copy of what was there takes four times as much
    assert column.nbytes - 4 * len(column) < 4 * BLOCK_ROWS
    np.testing.assert_array_equal(column[:BLOCK_ROWS], np.arange(BLOCK_ROWS))
