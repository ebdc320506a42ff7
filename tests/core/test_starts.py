"""Starts from different noise: agreement counts for the likeliest, and less where views crowd."""

import numpy as np
import pytest
from conftest import atoms_of, intensity_ratio

from napari_xrai.core.starts import MOST_STARTS, MOST_STARTS_IN_A_GROUP, Starts

EDGE = 37
EVEN, CROWDED = 0.1, 0.8


@pytest.fixture(scope="module")
def particle():
    return [intensity_ratio(atoms_of(seed), EDGE) for seed in range(3)]


def starts_of(*found, named_group=False):
    starts = Starts(EDGE, 3.0, named_group)
    leads = [starts.add(ratio, 12.0, likelihood, crowding) for ratio, likelihood, crowding in found]
    return starts, leads


def test_two_that_agree_are_enough_and_two_that_differ_are_not(particle):
    assert starts_of((particle[0], 5.0, EVEN), (particle[0], 4.9, EVEN))[0].enough
    starts, leads = starts_of((particle[0], 5.0, EVEN), (particle[1], 6.0, EVEN))
    assert not starts.enough
    assert leads == [True, True]
    assert starts.agreement < 0.75


def test_two_that_crowd_and_agree_are_not_believed_before_all_starts_are_made(particle):
    crowded = (particle[0], 5.0, CROWDED)
    assert not starts_of(crowded, crowded)[0].enough
    assert starts_of(*[crowded] * MOST_STARTS)[0].enough  # a symmetric particle that nobody named


def test_what_others_agree_on_says_nothing_of_a_likelier_start(particle):
    starts, leads = starts_of((particle[0], 5.0, CROWDED), (particle[0], 5.0, CROWDED), (particle[1], 6.0, EVEN))
    assert leads[-1]
    assert starts.agreement < 0.75
    starts.add(particle[1], 12.0, 5.9, EVEN)
    assert starts.agreement > 0.9
    assert starts.enough


def test_in_a_named_group_crowded_starts_count_for_nothing(particle):
    starts, _ = starts_of(*[(particle[0], 5.0, CROWDED)] * 3, named_group=True)
    assert starts.agreement == 0
    assert not starts.enough
    starts.add(particle[1], 12.0, 6.0, EVEN)
    starts.add(particle[1], 12.0, 6.0, EVEN)
    assert starts.agreement > 0.9
    assert starts.enough
    hopeless, _ = starts_of(*[(particle[0], 5.0, CROWDED)] * MOST_STARTS_IN_A_GROUP, named_group=True)
    assert hopeless.enough
    assert hopeless.agreement == 0


def test_noise_ends_after_a_few_starts_more():
    rng = np.random.default_rng(0)
    starts = Starts(EDGE, 3.0, named_group=False)
    while not starts.enough:
        starts.add(rng.random(EDGE**3, np.float32), 12.0, rng.random(), EVEN)
    assert MOST_STARTS < starts.made <= 8
