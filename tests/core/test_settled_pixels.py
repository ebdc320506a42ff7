"""The voxel that speckles ask for; what is known in voxels goes with it."""

import numpy as np
import pytest
from conftest import bench

from napari_xrai.core.beam_centre import Beam
from napari_xrai.core.detector import square_detector
from napari_xrai.core.settled_pixels import settle_pixels
from napari_xrai.core.speckle import measure_speckle

DETECTOR = square_detector((48, 48), 1e-3, 0.4, None, stop_radius_px=2)


def seen(diameter, n=500):
    """Pixels, and frames on them, of atoms in a sphere of this diameter, 1/pixel."""
    point = np.random.default_rng(0).uniform(-1, 1, (600, 3))
    atoms = point[(point**2).sum(1) < 1][:100] * diameter / 2
    case = bench(DETECTOR, photons=600, atoms=atoms, weight=np.where(np.arange(100) % 2, 1.0, -1.0))
    return case.pixels, case.frames(n, seed=1)[0]


@pytest.mark.parametrize(("diameter", "finer"), [(0.2, 1.0), (0.36, 1.5)])
def test_voxels_are_finer_where_speckles_are_narrow_and_everything_stays_where_it_is(diameter, finer):
    pixels, frames = seen(diameter)
    settled = settle_pixels(DETECTOR, pixels, frames, Beam(), move=False)
    assert settled.finer == finer and ("voxels" in settled.facts) == (finer > 1)
    now = settled.pixels
    assert now.voxel_size == pytest.approx(pixels.voxel_size / finer)
    for length in ("q", "rho", "ewald_radius"):
        before, after = getattr(pixels, length), getattr(now, length)
        np.testing.assert_allclose(
            np.multiply(after, now.voxel_size), np.multiply(before, pixels.voxel_size), rtol=1e-5
        )
    size = measure_speckle(pixels, frames).size * pixels.voxel_size
    assert settled.speckle.size * now.voxel_size == pytest.approx(size)
    assert now.edge % 2 == 1 and np.linalg.norm(now.q, axis=1).max() < now.edge // 2 - 1


def test_what_a_run_has_begun_with_stays():
    pixels, frames = seen(0.36)
    settled = settle_pixels(DETECTOR, pixels, frames, Beam(), move=False, finer=1.0)
    assert settled.pixels.edge == pixels.edge and "voxels" not in settled.facts
