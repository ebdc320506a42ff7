"""What a correlation by shell must say of maps whose agreement is known beforehand."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from napari_xrai.core.frames import Volume
from napari_xrai.core.resolution import (
    ShellCurve,
    crossing,
    fourier_shell_correlation,
    sample,
    shell_correlation,
    shell_index,
    sphere_correlation,
)


def noise(seed: int, n: int = 33, smooth: float = 0.0) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    data = np.random.default_rng(seed).normal(size=(n, n, n)).astype(np.float32)
    return gaussian_filter(data, smooth) if smooth else data


def intensity(data: np.ndarray, voxel_size: float = 0.01) -> Volume:
    return Volume(data, voxel_size, "1/angstrom")


def test_shell_correlation_ignores_scale_and_offset_of_each_shell():
    a = noise(0)
    b = a * (1.0 + shell_index(33)) + 5.0
    curve = shell_correlation(intensity(a), intensity(b))
    np.testing.assert_allclose(curve.value[2:], 1.0, atol=1e-5)
    np.testing.assert_allclose(curve.q, np.arange(17) * 0.01)


def test_shell_correlation_is_that_of_the_mixture():
    # y = ρ·x + √(1−ρ²)·noise correlates ρ with x
    x, y = noise(0), 0.6 * noise(0) + 0.8 * noise(1)
    assert shell_correlation(intensity(x), intensity(y)).value[8:].mean() == pytest.approx(0.6, abs=0.02)


def test_shell_correlation_leaves_out_unmeasured_voxels():
    a, b = noise(0), noise(0)
    weight = (shell_index(33) >= 4).astype(np.float32)
    hidden = np.random.default_rng(1).random(b.shape) < 0.3
    b[hidden], weight[hidden] = 100.0, 0.0
    curve = shell_correlation(intensity(a), intensity(b), weight)
    assert np.isnan(curve.value[:4]).all()
    np.testing.assert_allclose(curve.value[4:], 1.0, atol=1e-6)


def test_maps_on_different_grids_are_refused():
    with pytest.raises(ValueError, match="different grids"):
        shell_correlation(intensity(noise(0)), intensity(noise(0), 0.02))


def test_sphere_correlation_undoes_a_rotation_and_a_finer_grid():
    fine, coarse = 0.005, 0.01
    rotation = Rotation.from_rotvec([0.3, -0.8, 0.5]).as_matrix()

    def field(q: np.ndarray) -> np.ndarray:
        return np.cos(40 * q[..., 0]) + np.sin(55 * q[..., 1] + 20 * q[..., 2])

    def grid(n: int, voxel: float) -> np.ndarray:
        axis = (np.arange(n) - n // 2) * voxel
        return np.stack(np.meshgrid(axis, axis, axis, indexing="ij")[::-1], -1)

    b = intensity(field(grid(33, coarse)).astype(np.float32), coarse)
    a = intensity(field(grid(75, fine) @ rotation).astype(np.float32), fine)  # a(R q) = field(q)
    right = sphere_correlation(a, b, [5, 10, 15, 30], rotation=rotation)
    assert right.value[:3].min() > 0.99
    assert np.isnan(right.value[3])  # leaves the volume
    assert sphere_correlation(a, b, [10], rotation=rotation.T).value[0] < 0.9


def test_sample_is_exact_on_voxels_and_knows_axis_order():
    data = noise(2, 9)
    volume = intensity(data, 0.5)
    assert sample(volume, np.array([[1.0, -0.5, 0.0]]))[0] == pytest.approx(data[4, 3, 6])


def test_fsc_of_a_map_with_itself_its_negative_and_noise():
    a = Volume(noise(0, 32), 2.0, "angstrom")
    same = fourier_shell_correlation(a, a)
    np.testing.assert_allclose(same.value, 1.0, atol=1e-5)
    np.testing.assert_allclose(same.q, np.arange(17) / 64)
    np.testing.assert_allclose(fourier_shell_correlation(a, Volume(-a.data, 2.0, "angstrom")).value, -1.0, atol=1e-5)
    other = fourier_shell_correlation(a, Volume(noise(1, 32), 2.0, "angstrom"))
    # independent noise: standard deviation 1/√count
    assert np.abs(other.value[5:] * np.sqrt(other.count[5:])).max() < 4


def test_fsc_follows_the_signal_to_noise_ratio_of_a_shell():
    signal = noise(0, 48)
    a, b = (Volume(signal + noise(s, 48), 1.0, "angstrom") for s in (1, 2))
    assert fourier_shell_correlation(a, b).value[10:].mean() == pytest.approx(0.5, abs=0.03)  # S/(S+N), S = N


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([1.0, 0.9, 0.6, 0.4, 0.9], 2.5),  # the first crossing counts
        ([np.nan, 0.9, 0.8, 0.7, 0.6], 4.0),  # never: where the data end
        ([1.0, np.nan, 0.8, 0.2, np.nan], 2.5),
    ],
)
def test_crossing(value: list[float], expected: float):
    curve = ShellCurve(np.arange(5.0), np.array(value), np.ones(5, np.int64))
    assert crossing(curve, 0.5) == pytest.approx(expected)


@pytest.mark.parametrize("value", [[0.3, 0.9], [np.nan, np.nan]])
def test_no_crossing_where_nothing_ever_agreed(value: list[float]):
    assert np.isnan(crossing(ShellCurve(np.arange(2.0), np.array(value), np.ones(2, np.int64)), 0.5))
