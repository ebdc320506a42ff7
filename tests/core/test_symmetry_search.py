"""What symmetry an intensity looks as if it had."""

import re

import numpy as np
import pytest

from napari_xrai.core.rotations import random_rotations
from napari_xrai.core.symmetry import point_group
from napari_xrai.core.symmetry_search import look_for_symmetry

EDGE, SPECKLE, INNER = 65, 6.0, 3.0


def ratio_of(atoms, noise=0.0, seed=0):
    """Intensity over its mean on each sphere, of atoms within a sphere a speckle's inverse wide."""
    axis = np.arange(EDGE) - EDGE // 2
    wave = [np.exp(2j * np.pi * np.multiply.outer(atoms[:, i], axis)) for i in range(3)]
    intensity = np.abs(np.einsum("az,ay,ax->zyx", wave[2], wave[1], wave[0], optimize=True)) ** 2
    radius = np.sqrt((axis**2)[:, None, None] + (axis**2)[:, None] + axis**2)
    shell = np.rint(radius).astype(int)
    mean = np.bincount(shell.reshape(-1), intensity.reshape(-1)) / np.bincount(shell.reshape(-1))
    ratio = intensity / mean[shell]
    spoiled = ratio + noise * ratio.std() * np.random.default_rng(seed).normal(size=ratio.shape)
    return (0.5 * (spoiled + spoiled[::-1, ::-1, ::-1])).astype(np.float32).reshape(-1)


def particle(group, seed):
    """Copies of a lump of atoms in every equal place of a group, whose axes lie anywhere; they fill a sphere."""
    rng = np.random.default_rng(seed)
    turns = point_group(group)
    lump = rng.normal(size=(30, 3)) + np.array([0.6, 1.2, 0.8]) * len(turns) ** 0.5
    atoms = np.concatenate([lump @ g.T for g in turns]) @ random_rotations(1, rng)[0].T
    return (atoms - atoms.mean(0)) / np.linalg.norm(atoms - atoms.mean(0), axis=1).max() / (2 * SPECKLE)


def said(ratio):
    return look_for_symmetry(ratio, EDGE, INNER, 30.0, SPECKLE).words


@pytest.mark.parametrize("group", ["C2", "C3", "C4", "D2", "D3", "D5", "T", "O", "I"])
def test_a_group_is_among_those_named_whichever_way_its_axes_point_and_through_noise(group):
    words = said(ratio_of(particle(group, 2), noise=0.2)).split(":")[0]
    named = re.findall(r"[CD]\d+|[TOI]\b", words)
    assert words.startswith("looks like") and group in named
    assert named[0] == group or group == "C4"  # lumps are nearly even: four of them in a ring make nearly D4


def test_a_particle_without_symmetry_has_none():
    for seed in range(3):
        assert said(ratio_of(particle("C1", seed))) == "none seen"


def test_noise_has_none():
    noise = ratio_of(np.zeros((1, 3))) + np.random.default_rng(0).normal(size=EDGE**3).astype(np.float32)
    assert said(noise + noise[::-1]) == "none seen"


def test_of_a_disc_the_order_of_its_axis_is_not_guessed():
    angle = 2 * np.pi * np.arange(40) / 40  # a 40-fold axis, seen only far outside
    ring, layer = np.repeat([0.3, 0.7, 1.0], 80), np.tile(np.repeat([-0.15, 0.15], 40), 3)
    disc = np.stack([ring * np.cos(np.tile(angle, 6)), ring * np.sin(np.tile(angle, 6)), layer], -1)
    turned = disc @ random_rotations(1, np.random.default_rng(3))[0].T
    assert said(ratio_of(turned / (2 * SPECKLE))).startswith("round about one axis")
