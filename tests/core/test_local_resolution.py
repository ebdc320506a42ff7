"""Detail is found lost where it was lost, and only there."""

import numpy as np
from scipy.ndimage import gaussian_filter

from napari_xrai.core.frames import Volume
from napari_xrai.core.half_densities import half_densities
from napari_xrai.core.local_resolution import local_resolution
from napari_xrai.core.phasing import phase

N = 48


def volume(data: np.ndarray) -> Volume:
    return Volume(data.astype(np.float32), 2.0, "angstrom")


def test_noise_on_one_side_lowers_the_resolution_of_that_side():
    rng = np.random.default_rng(0)
    signal = rng.normal(size=(N, N, N))
    white = rng.normal(size=(2, N, N, N))
    rough = 4 * (
        white - gaussian_filter(white, (0, 1, 1, 1), mode="wrap")
    )  # fine detail only: a window has waves of it
    far = np.arange(N) > N // 2
    maps = [volume(signal + noise * far[:, None, None]) for noise in rough]
    inside = np.zeros((N, N, N), bool)
    inside[6:-6, 6:-6, 6:-6] = True
    found = local_resolution(*maps, inside, N // 2 - 1).data
    # the middles of both halves: the box is periodic
    near, far_off = found[10:14][inside[10:14]], found[34:38][inside[34:38]]
    assert np.median(near) < 2 * N * 2.0 / (N // 2 - 1)
    assert np.median(far_off) > 2 * np.median(near)
    assert (found[~inside] == 0).all()


def test_equal_maps_are_resolved_to_the_last_shell_everywhere():
    data = volume(np.random.default_rng(1).normal(size=(N, N, N)))
    found = local_resolution(data, data, np.ones((N, N, N), bool), 20).data
    np.testing.assert_allclose(found, N * 2.0 / 20)


def test_nothing_inside_is_no_error():
    data = volume(np.ones((16, 16, 16)))
    assert not local_resolution(data, data, np.zeros((16, 16, 16), bool), 6).data.any()


def blobs() -> np.ndarray:
    """Beads inside a third of the box."""
    rng = np.random.default_rng(2)
    axis = np.arange(32) - 16.0
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    centres = rng.uniform(-5, 5, (9, 3))
    return sum(np.exp(-((z - a) ** 2 + (y - b) ** 2 + (x - c) ** 2) / 3) for a, b, c in centres)


def test_noisier_halves_agree_less():
    power = np.abs(np.fft.fftshift(np.fft.fftn(blobs()))) ** 2
    power = power[1:, 1:, 1:]  # odd, q = 0 in the middle
    whole, weight = Volume(power.astype(np.float32), 0.01, "1/angstrom"), None
    weight = Volume(np.ones_like(whole.data), 0.01, "1/angstrom")
    result = phase(whole, weight, 3, radius=14)
    rng = np.random.default_rng(3)
    mean = []
    for noise in (0.05, 0.8):
        halves = []
        for _ in "01":
            half = power * rng.gamma(1 / noise**2, noise**2, power.shape)
            halves.append(Volume(((half + half[::-1, ::-1, ::-1]) / 2).astype(np.float32), 0.01, "1/angstrom"))
        found = half_densities((halves[0], halves[1]), weight, result.density, result.support, 14)
        mean.append(np.nanmean(found.fsc.value[8:15]))
        assert np.isnan(found.fsc.value[15:]).all()
        assert found.local.data.shape == result.density.data.shape
    assert mean[0] > mean[1] + 0.1
