"""Hits are told from blanks where frames come in two kinds, and nobody is turned away where they do not."""

import numpy as np
import pytest

from napari_xrai.core.hits import FEWEST, HitFinder, two_kinds


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("blank", [2, 20, 100])
@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9])
def test_hits_are_told_from_blanks_whatever_the_hit_rate(rng, blank, rate):
    is_hit = rng.random(5000) < rate
    lit = np.where(is_hit, rng.poisson(blank + 200, 5000), rng.poisson(blank, 5000))
    finder = HitFinder()
    finder.learn(lit)
    assert (finder.hits(lit) != is_hit).mean() < 2e-3


@pytest.mark.parametrize("shape", [1.0, 2.0, 4.0, 100.0])
@pytest.mark.parametrize("mean", [30, 300, 3000])
def test_frames_of_one_kind_are_all_hits_however_their_brightness_varies(rng, shape, mean):
    lit = rng.poisson(mean * rng.gamma(shape, 1 / shape, 5000))
    finder = HitFinder()
    finder.learn(lit)
    assert finder.threshold == 1
    assert finder.hits(lit[lit > 0]).all()
    assert not finder.hits(np.array([0])).any()


def test_brightness_that_is_spread_evenly_is_one_kind(rng):
    assert two_kinds(rng.uniform(0, 30, 4000) ** 2) is None
    assert two_kinds(np.full(1000, 7)) is None


def test_the_threshold_follows_the_background(rng):
    finder = HitFinder()
    for background in (10, 90):
        for _ in range(30):
            is_hit = rng.random(500) < 0.2
            finder.learn(rng.poisson(background + 250 * is_hit))
        is_hit = rng.random(2000) < 0.2
        lit = rng.poisson(background + 250 * is_hit)
        assert (finder.hits(lit) != is_hit).mean() < 5e-3
    assert finder.threshold > 110


def test_nothing_is_decided_on_a_few_frames(rng):
    finder = HitFinder()
    finder.learn(np.concatenate([rng.poisson(3, FEWEST // 2), rng.poisson(300, FEWEST // 2 - 1)]))
    assert not finder.sure
    assert finder.threshold == 1
