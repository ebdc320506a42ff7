"""Frames of the particle pass, bright or dim; two particles at once, another particle and mere background do not."""

import numpy as np
import pytest
from conftest import atoms_of, bench, lopsided_detector, sparse

from napari_xrai.core.junk import JunkGate
from napari_xrai.core.rotations import random_rotations

N = 300
SPECKLE = 4.0


@pytest.fixture(scope="module")
def scene():
    """A gate that has seen 300 frames of the particle, pulses from dim to bright, at their true poses."""
    known = bench(lopsided_detector(), photons=600)
    rng = np.random.default_rng(0)
    photons, rotation = known.frames(N, 1, fluence=rng.gamma(2, 0.5, N))
    gate = JunkGate(known.pixels, known.brightness, SPECKLE)
    assert not gate.junk(photons, rotation, known.ratio).any()  # nothing is judged before there is a measure
    gate.settle()
    return known, gate


def test_frames_of_the_particle_pass_bright_or_dim(scene):
    known, gate = scene
    photons, rotation = known.frames(N, 2, fluence=np.geomspace(0.05, 10, N))
    assert gate.junk(photons, rotation, known.ratio).mean() < 0.01


def test_its_score_has_mean_zero_and_width_one_at_the_true_poses(scene):
    known, gate = scene
    photons, rotation = known.frames(N, 3)
    gate.scores.clear()
    gate.junk(photons, rotation, known.ratio)
    score = gate.scores.pop()
    assert np.abs(score.mean(0)).max() < 0.25 and np.abs(score.std(0) - 1).max() < 0.2


def test_two_particles_another_one_and_background_do_not_pass(scene):
    known, gate = scene
    rng = np.random.default_rng(4)
    rotation = random_rotations(100, rng)
    rate = known.expected(rotation)
    two = rng.poisson(rate + known.expected(random_rotations(100, rng)))
    other = bench(lopsided_detector(), photons=600, atoms=atoms_of(9)).frames(100, 5)[0]
    background = rng.poisson(0.3, rate.shape)
    assert gate.junk(sparse(two), rotation, known.ratio).mean() > 0.9
    assert gate.junk(other, rotation, known.ratio).mean() > 0.9
    assert gate.junk(sparse(background), rotation, known.ratio).mean() > 0.8


def test_junk_is_seen_among_junk(scene):
    known, _ = scene
    rng = np.random.default_rng(6)
    rotation = random_rotations(N, rng)
    rate = known.expected(rotation)
    rate[: N // 5] = rate[: N // 5].mean(1, keepdims=True)  # a fifth of the frames hold only background
    gate = JunkGate(known.pixels, known.brightness, SPECKLE)
    photons = sparse(rng.poisson(rate))
    gate.junk(photons, rotation, known.ratio)
    gate.settle()
    found = gate.junk(photons, rotation, known.ratio)
    assert found[: N // 5].all() and not found[N // 5 :].any()


def test_a_gate_that_takes_up_a_law_judges_at_once_as_before(scene):
    known, gate = scene
    photons, rotation = known.frames(100, 8)
    wrong = rotation[::-1].copy()
    again = JunkGate(known.pixels, known.brightness, SPECKLE, gate.law)
    found = again.junk(photons, wrong, known.ratio)
    assert found.mean() > 0.5
    np.testing.assert_array_equal(found, gate.junk(photons, wrong, known.ratio))
