"""Two starts that found the same particle are told from two that did not."""

import numpy as np
import pytest
from conftest import atoms_of, intensity_ratio
from scipy.spatial.transform import Rotation

from napari_xrai.core.agreement import intensity_agreement

EDGE, INNER, OUTER = 33, 3.0, 12.0
TURN = Rotation.from_euler("zyx", [40, 75, -110], degrees=True).as_matrix()


def agreement(a, b):
    return intensity_agreement(intensity_ratio(a, EDGE), intensity_ratio(b, EDGE), EDGE, INNER, OUTER)


def cube_corners():
    """The corners of a cube, with a smaller cube inside: 24 rotations leave it as it is."""
    corner = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
    return np.concatenate([0.06 * corner, 0.025 * corner])


@pytest.mark.parametrize("seed", [5, 6])
def test_a_turned_copy_is_the_same_particle(seed):
    assert agreement(atoms_of(seed, spread=0.06), atoms_of(seed, spread=0.06) @ TURN.T) > 0.95


@pytest.mark.parametrize("pair", [(5, 6), (5, 7), (6, 7)])
def test_different_particles_disagree(pair):
    assert agreement(*(atoms_of(seed, spread=0.06) for seed in pair)) < 0.6


def test_the_other_hand_has_the_same_intensity():
    assert agreement(atoms_of(5), -atoms_of(5) @ TURN.T) > 0.95


def test_a_symmetric_particle_agrees_with_its_turned_copy_and_with_no_other():
    assert agreement(cube_corners(), cube_corners() @ TURN.T) > 0.95
    assert agreement(cube_corners(), atoms_of(5)) < 0.6


def test_brightness_does_not_count():
    ratio = intensity_ratio(atoms_of(5), EDGE)
    assert intensity_agreement(ratio, 3 * ratio + 1, EDGE, INNER, OUTER) > 0.95
