"""Diameters of particles whose size is known, from photons alone."""

from dataclasses import replace

import numpy as np
import pytest

from napari_xrai.core.frames import Frames
from napari_xrai.core.particle import builtin_particle
from napari_xrai.core.pixels import pixels_of
from napari_xrai.core.simulate import PRESETS, simulate
from napari_xrai.core.sizing import measure_size, spheroid_form
from napari_xrai.core.speckle import measure_speckle

PRESET = replace(PRESETS["demo"], fluence_shape=float("inf"))

# diameter of the sphere with the same radius of gyration: 2 √(5/3) Rg
CASES = {"sphere": 240.0, "cube": 170 * np.sqrt(5 / 3), "spheroid": 2 * np.sqrt((2 * 80**2 + 130**2) / 3)}


@pytest.mark.parametrize("name", CASES)
def test_round_particles_are_sized_to_within_6_percent(name):
    detector, _, batches = simulate(builtin_particle(name), PRESET, n_frames=600, photons=500, seed=1)
    pixels = pixels_of(detector)
    photons = pixels.sparse(Frames.concatenate(list(batches)))
    size = measure_size(pixels, photons, measure_speckle(pixels, photons))
    assert size.source == "mean pattern"
    assert size.diameter / pixels.voxel_size == pytest.approx(CASES[name], rel=0.06)


def test_irregular_particles_are_sized_by_their_speckles():
    detector, _, batches = simulate(builtin_particle("demo"), PRESET, n_frames=600, photons=500, seed=1)
    pixels = pixels_of(detector)
    photons = pixels.sparse(Frames.concatenate(list(batches)))
    speckle = measure_speckle(pixels, photons)
    size = measure_size(pixels, photons, speckle)
    assert (size.diameter, size.source) == (speckle.diameter, "speckles")


def test_the_form_of_a_sphere_is_the_textbooks():
    q = np.array([1e-6, 0.01, 0.02])
    x = 2 * np.pi * q[1:] * 50
    np.testing.assert_allclose(spheroid_form(q, 50, 50)[1:], (3 * (np.sin(x) - x * np.cos(x)) / x**3) ** 2, rtol=1e-9)
    assert spheroid_form(q, 50, 80)[0] == pytest.approx(1, abs=1e-4)
