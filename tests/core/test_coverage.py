"""Views: even ones are called even, uneven ones are not, and frames that were drawn together are traced back."""

import numpy as np
import pytest

from napari_xrai.core.coverage import ViewDensity
from napari_xrai.core.rotations import random_rotations


def directions(n: int, seed: int) -> np.ndarray:
    return random_rotations(n, np.random.default_rng(seed))[:, :, 2]


@pytest.mark.parametrize("n", [100, 4000])
def test_even_views_are_as_uneven_as_chance_makes_them(n):
    found = [ViewDensity([directions(n, seed)]).coverage() for seed in range(20)]
    assert sum(c.sentence.startswith("views are even") for c in found) >= 19
    assert np.mean([c.anisotropy / c.expected for c in found]) == pytest.approx(1, abs=0.1)
    assert np.mean([c.power for c in found], 0) == pytest.approx([1, 1, 1], abs=0.35)


def test_missing_views_are_found_where_they_are_missing():
    d = directions(6000, 1)
    kept = d[np.abs(d[:, 2]) < 0.7]  # nothing along ±z
    coverage = ViewDensity([kept]).coverage()
    assert coverage.sentence.startswith("few views")
    assert abs(coverage.direction[coverage.density.argmin()][2]) > 0.7
    along_z = np.abs(coverage.direction[:, 2]) > 0.95
    across = np.abs(coverage.direction[:, 2]) < 0.3
    assert coverage.density[along_z].mean() < 0.3 < 1 < coverage.density[across].mean()
    assert coverage.probability < 1e-6


def test_opposite_directions_are_one_view():
    d = directions(2000, 2)
    turned = d * np.random.default_rng(0).choice([-1, 1], (2000, 1))
    np.testing.assert_allclose(ViewDensity([turned]).power, ViewDensity([d]).power, rtol=1e-6)


def test_it_does_not_matter_in_which_parts_directions_come():
    d = directions(2000, 3)
    whole, parts = ViewDensity([d]), ViewDensity([d[:1], d[1:1], d[1:700], d[700:]])
    assert parts.frames == whole.frames == 2000
    np.testing.assert_array_equal(parts.views, whole.views)


def test_no_frames_are_no_error():
    coverage = ViewDensity([np.zeros((0, 3))]).coverage()
    assert coverage.frames == 0
    assert "too few" in coverage.sentence
