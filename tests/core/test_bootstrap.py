"""Annealing: posteriors as wide as they are meant to be, wherever the search for their temperature begins."""

import numpy as np
import pytest
import torch

from napari_xrai.core.bootstrap import inverse_temperature, surroundings
from napari_xrai.core.field import grid_radius


def effective(score: torch.Tensor, beta: float) -> float:
    """Median over frames of the posterior's effective sample size."""
    p = torch.exp(beta * score.double())
    return float((p.sum(1) ** 2 / (p**2).sum(1)).median())


@pytest.fixture
def score() -> torch.Tensor:
    """(48, 4000) log-likelihoods of frames that tell their pose well, about 20 nats."""
    value = torch.from_numpy(np.random.default_rng(0).normal(scale=6, size=(48, 4000)).astype(np.float32))
    return value - value.amax(1, keepdim=True)


@pytest.mark.parametrize("target", [400, 40, 6])
@pytest.mark.parametrize("guess", [1.0, 0.3, 1e-3])
def test_the_temperature_gives_the_width_asked_for(score, target, guess):
    beta = inverse_temperature(score, target, guess)
    assert effective(score, beta) == pytest.approx(target, rel=0.03)


def test_a_posterior_is_never_colder_than_the_likelihood(score):
    wide = score / 100
    assert inverse_temperature(wide, 2.0, 0.1) == pytest.approx(1.0, abs=0.01)
    assert effective(wide, 1.0) > 100


def test_frames_that_tell_nothing_leave_every_orientation_open():
    assert inverse_temperature(torch.zeros(48, 500), 50.0, 0.2) == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize(("edge", "radius"), [(63, 8.2), (21, 9.0), (15, 30.0)])
def test_surroundings_hold_all_within_the_radius(edge, radius):
    near, small = surroundings(edge, radius)
    inside = (grid_radius(edge) <= min(radius, edge // 2)).reshape((edge,) * 3)
    assert inside[near].shape == (small,) * 3
    assert inside[near].sum() == inside.sum()
    assert small <= min(edge, 2 * radius + 5)
