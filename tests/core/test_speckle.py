"""The particle's size and the fluences' spread, from coincidences: before any pose is known."""

import numpy as np
import pytest
from conftest import bench, sparse
from scipy.spatial.transform import Rotation

from napari_xrai.core.detector import square_detector
from napari_xrai.core.speckle import measure_speckle


def cloud(axes, seed=0, n=200):
    """(n, 3) atoms at random in an ellipsoid with these full axes, 1/voxel: speckle everywhere, and a known shape."""
    rng = np.random.default_rng(seed)
    point = rng.uniform(-1, 1, (6 * n, 3))
    return point[(point**2).sum(1) < 1][:n] * np.array(axes) / 2


def equal_speckle_diameter(axes):
    """Diameter of the sphere whose |s(Δq)|² halves where the ellipsoid's, averaged over poses, does."""
    direction = Rotation.random(4000, rng=0).apply([0.0, 0.0, 1.0])
    step = np.linspace(1e-3, 8, 4000)[:, None]
    x = np.pi * step * np.linalg.norm(direction * axes, axis=1)
    power = np.square(3 * (np.sin(x) - x * np.cos(x)) / x**3).mean(1)
    return 0.576 / step[np.argmax(power < 0.5), 0]


def frames_of(atoms, fluence, seed=1):
    """Frames of atoms that scatter in opposite phases: speckle at every angle, no form factor of the whole."""
    sign = np.where(np.arange(len(atoms)) % 2, 1.0, -1.0)
    detector = square_detector((32, 32), 1e-3, 0.4, None, stop_radius_px=2)
    case = bench(detector, photons=600, atoms=atoms, weight=sign)
    return case.pixels, case.frames(len(fluence), seed=seed, fluence=fluence)[0]


@pytest.mark.parametrize("axes", [(0.22, 0.22, 0.22), (0.16, 0.16, 0.3), (0.1, 0.25, 0.25)])
def test_the_diameter_is_that_of_the_sphere_with_equal_speckles(axes):
    # within 16 voxels one particle has few speckles, and they scatter by a tenth: the mean over three particles
    found = [measure_speckle(*frames_of(cloud(axes, seed), np.ones(800))) for seed in range(3)]
    assert np.mean([f.diameter for f in found]) == pytest.approx(equal_speckle_diameter(axes), rel=0.15)
    assert all(0.5 < f.contrast < 1.5 for f in found)


def test_a_sphere_is_its_own_equal():
    assert equal_speckle_diameter((0.2, 0.2, 0.2)) == pytest.approx(0.2, rel=0.01)


def test_fluences_that_vary_are_told_from_equal_ones():
    atoms = cloud((0.22, 0.22, 0.22))
    gamma = np.random.default_rng(2).gamma(4.0, 0.25, 1200)
    assert 2.5 < measure_speckle(*frames_of(atoms, gamma)).fluence_shape < 6
    assert measure_speckle(*frames_of(atoms, np.ones(1200))).fluence_shape == float("inf")


@pytest.mark.parametrize("seed", [0, 1])
def test_a_particle_brighter_from_one_side_is_not_taken_for_a_brighter_pulse(seed):
    # a rod: frames differ in photons although every pulse is equal; little of that may pass for fluence
    pixels, photons = frames_of(cloud((0.1, 0.12, 0.4), seed), np.ones(1200))
    total = photons.totals(len(pixels.rho)).astype(np.float64)
    spread = (total.var() - total.mean()) / total.mean() ** 2
    assert spread > 0.05
    assert 1 / measure_speckle(pixels, photons).fluence_shape < 0.75 * spread


def test_frames_without_structure_have_no_contrast():
    pixels, photons = frames_of(np.zeros((1, 3)), np.ones(1200))
    found = measure_speckle(pixels, photons)
    assert abs(found.contrast) < 0.1
    assert np.isfinite(found.diameter) and found.diameter > 0


def test_photons_shuffled_within_rings_are_known_to_hold_no_speckles():
    pixels, photons = frames_of(cloud((0.22, 0.22, 0.22)), np.ones(800))
    assert measure_speckle(pixels, photons).sampled
    rng, ring = np.random.default_rng(3), np.rint(pixels.rho).astype(int)
    count = photons.dense(len(pixels.rho))
    for r in np.unique(ring):
        count[:, ring == r] = rng.permuted(count[:, ring == r], axis=1)
    assert not measure_speckle(pixels, sparse(count)).sampled
