"""The voxel grid that explains the frames: symmetric, positive, and silent where nothing was measured."""

import numpy as np
import pytest

from napari_xrai.core.field import RadialProfile, VoxelField, grid_radius


@pytest.fixture(scope="module")
def profile(round_bench):
    return RadialProfile(round_bench.pixels, 1000 * round_bench.brightness, 1000)


@pytest.fixture
def field(round_bench, profile):
    return VoxelField(round_bench.pixels, profile, np.random.default_rng(0))


@pytest.fixture
def measured(field):
    """Photons and exposure in one slab only, as few frames give them."""
    rng = np.random.default_rng(1)
    exposure = np.zeros((field.edge,) * 3, np.float32)
    exposure[field.edge // 2 : field.edge // 2 + 3] = 5 * rng.random((3, field.edge, field.edge))
    exposure = exposure.ravel()
    return rng.poisson(1.5 * exposure).astype(np.float32), exposure


def explain(field, photons, exposure):
    """Update the field by photons that fell into halves alike."""
    for _ in field.update([photons / 2] * 2, [exposure / 2] * 2):
        pass


def assert_friedel(volume):
    np.testing.assert_allclose(volume, volume[::-1, ::-1, ::-1], rtol=1e-5)


def test_the_start_is_symmetric_positive_noise(field):
    assert_friedel(field.ratio.reshape((field.edge,) * 3))
    assert (field.ratio > 0).all()
    assert 0.1 < field.ratio.std() < 0.5


def test_friedel_mates_share_their_photons(field, measured):
    explain(field, *measured)
    assert_friedel(field.volume())
    assert_friedel(field.weight())
    assert (field.ratio > 0).all() and np.isfinite(field.log_grid()).all()


def test_unmeasured_voxels_are_zero_with_weight_zero_never_nan(field, measured):
    assert not field.volume().any() and not field.weight().any()  # before any frame
    explain(field, *measured)
    volume, weight = field.volume(), field.weight()
    seen = measured[1] + measured[1][::-1] > 1e-6
    assert np.isfinite(volume).all() and np.isfinite(weight).all()
    np.testing.assert_array_equal(weight.ravel() > 0, seen)
    assert not volume.ravel()[~seen].any()
    assert (volume.ravel()[seen] > 0).all()


def _speckled(field, band, rng):
    """A ratio that varies no faster than `band`, cycles per voxel: even, positive, of mean 1."""
    noise = rng.normal(size=(field.edge,) * 3)
    frequency = [
        np.fft.fftfreq(field.edge)[:, None, None],
        np.fft.fftfreq(field.edge)[:, None],
        np.fft.fftfreq(field.edge),
    ]
    near = sum(f**2 for f in frequency) < band**2
    wave = np.fft.ifftn(np.fft.fftn(noise) * near).real
    wave = wave + wave[::-1, ::-1, ::-1]
    return np.exp(0.6 * wave / wave.std()).astype(np.float32).reshape(-1)


def test_what_a_particle_can_show_is_kept_and_noise_beyond_is_not(field):
    rng = np.random.default_rng(2)
    true = _speckled(field, 0.12, rng)
    field.band = 0.25  # twice the wave's: its exponential is sharper
    bright, dim = np.full_like(true, 1e4), np.full_like(true, 2.0)
    assert np.corrcoef(field.estimate(true * bright, bright), true)[0, 1] > 0.995
    noisy = rng.poisson(true * dim).astype(np.float32)
    raw = (noisy + noisy[::-1] + 0.5) / (2 * dim + 0.5)
    field.band = 0.125
    assert np.mean((field.estimate(noisy, dim) - true) ** 2) < 0.2 * np.mean((raw - true) ** 2)


@pytest.mark.parametrize("band", [0.08, 0.2])
def test_the_band_is_found_by_what_one_half_says_of_the_other(field, band):
    rng = np.random.default_rng(3)
    exposure = [np.full(field.edge**3, 3.0, np.float32)] * 2
    true = _speckled(field, band, rng)
    photons = [rng.poisson(true * e).astype(np.float32) for e in exposure]
    for _ in field.choose_band(photons, exposure, field.edge / 2 - 3):
        pass
    assert band / 1.3 < field.band < 1.7 * band


def test_noise_that_both_halves_share_chooses_no_band_wider_than_the_particle_is_long(field):
    rng = np.random.default_rng(4)
    exposure = [np.full(field.edge**3, 3.0, np.float32)] * 2
    shared = rng.poisson(_speckled(field, 0.08, rng) * exposure[0]).astype(np.float32)
    list(field.choose_band([shared, shared], exposure, field.edge / 2 - 3))
    assert field.band > 0.3
    list(field.choose_band([shared, shared], exposure, field.edge / 2 - 3, diameter=0.1))
    assert 0.1 < field.band <= 0.15


def test_negative_exposure_does_no_harm(field, measured):
    photons, exposure = measured
    explain(field, photons, exposure - 1e-2)
    assert np.isfinite(field.log_grid()).all() and (field.weight() >= 0).all()


def test_the_radial_profile_is_the_mean_photons_of_a_pixel(round_bench, profile):
    pixels = round_bench.pixels
    expected = profile(np.linalg.norm(pixels.q, axis=1)) * pixels.response
    assert expected.sum() == pytest.approx(round_bench.brightness.sum(), rel=0.02)
    np.testing.assert_allclose(expected, round_bench.brightness, rtol=0.1)
    assert (profile(grid_radius(pixels.edge)) > 0).all()  # everywhere on the grid, measured or not
