"""From a detector to the engine's pixels: nothing counted twice, nothing that is masked, nothing lost."""

import numpy as np
import pytest

from napari_xrai.core.detector import square_detector
from napari_xrai.core.frames import BAD, GOOD, MERGE_ONLY, Frames
from napari_xrai.core.pixels import LARGEST_RADIUS, pixels_of


def lopsided_mask(side):
    row, column = np.indices((side, side)) - (side - 1) / 2
    return np.where((row > 0) & (column > 0), BAD, GOOD)


@pytest.fixture(scope="module")
def detector():
    plain = square_detector((32, 32), 1e-3, 0.2, 9000.0, polarization="x", stop_radius_px=2.5)
    return plain.with_mask(lopsided_mask(32))


@pytest.fixture(scope="module")
def pixels(detector):
    return pixels_of(detector)


@pytest.fixture(scope="module")
def frames():
    return Frames.from_dense(np.random.default_rng(0).poisson(0.3, (50, 32, 32)))


def detector_radius(detector, pixels):
    """(P,) distance of every detector pixel from the beam, in voxels."""
    return np.hypot(detector.q[:, 0], detector.q[:, 1]) / pixels.voxel_size


def test_a_resolution_limit_is_a_prefix_of_the_pixels_that_orient(detector, pixels):
    radius = detector_radius(detector, pixels)
    row = pixels.rank
    for limit in (3.0, 7.3, 12.0):
        chosen = (row >= 0) & (row < pixels.within(limit))
        orienting = (row >= 0) & (row < pixels.n_orient)
        np.testing.assert_array_equal(chosen, orienting & (radius <= limit))
        assert chosen.any()


def test_photons_on_usable_pixels_are_all_kept_and_no_others(detector, pixels, frames):
    counts = frames.dense()
    photons = pixels.sparse(frames)
    usable = detector.mask < BAD
    np.testing.assert_array_equal(photons.totals(len(pixels.rho)), counts[:, usable].sum(1))
    np.testing.assert_array_equal(photons.dense(len(pixels.rho))[:, pixels.rank[usable]], counts[:, usable])
    assert (counts[:, ~usable].sum(1) > 0).all()  # there was something to leave out
    np.testing.assert_array_equal(pixels.rank[~usable], -1)


def test_photons_within_a_resolution_limit_are_those_of_a_dense_count(pixels, frames):
    photons = pixels.sparse(frames)
    n = pixels.within(9.0)
    np.testing.assert_array_equal(photons.totals(n), photons.dense(len(pixels.rho))[:, :n].sum(1))
    picked = np.array([7, 3, 3])
    np.testing.assert_array_equal(photons.take(picked).dense(n), photons.dense(n)[picked])
    length = photons.stops(n) - photons.start[:-1]
    np.testing.assert_array_equal(length, (photons.dense(n) > 0).sum(1))


def test_pixels_that_are_only_merged_never_orient(detector, pixels):
    only_merged = np.flatnonzero(detector.mask == MERGE_ONLY)
    assert len(only_merged) > 0
    assert (pixels.rank[only_merged] >= pixels.n_orient).all()
    assert pixels.within(np.inf) == pixels.n_orient


def test_rings_measured_too_little_do_not_orient():
    detector = square_detector((48, 32), 1e-3, 0.2, 9000.0)  # beyond 16 pixels only two arcs are left
    pixels = pixels_of(detector.with_mask(np.zeros(48 * 32)))
    assert pixels.orient_radius < 20 < detector_radius(detector, pixels).max()


def test_q_keeps_its_length_in_the_detectors_unit(detector, pixels):
    seen = pixels.rank >= 0
    np.testing.assert_allclose(pixels.q[pixels.rank[seen]] * pixels.voxel_size, detector.q[seen], rtol=1e-5, atol=1e-9)
    assert pixels.ewald_radius * pixels.voxel_size == pytest.approx(detector.ewald_radius)
    assert pixels.response.mean() == pytest.approx(1, rel=1e-5)


def test_the_volume_holds_every_usable_pixel_at_every_pose(pixels):
    assert pixels.edge % 2 == 1
    assert np.linalg.norm(pixels.q, axis=1).max() + 1 < pixels.edge // 2


def test_a_file_in_its_own_voxels_keeps_them():
    detector = square_detector((32, 32), 1e-3, 0.2, None)
    assert pixels_of(detector).voxel_size == 1.0


@pytest.mark.parametrize(("side", "binning"), [(96, 1), (160, 2)])
def test_voxels_hold_several_pixels_where_the_edge_lies_beyond_the_largest_volume(side, binning):
    detector = square_detector((side, side), 1e-3, 0.4, None, stop_radius_px=3)
    pixels = pixels_of(detector)
    assert pixels.voxel_size == pytest.approx(binning)
    assert pixels.orient_radius <= LARGEST_RADIUS
    assert pixels.orient_radius * pixels.voxel_size == pytest.approx(side / 2, rel=0.1)


def test_a_mask_that_leaves_nothing_is_named():
    detector = square_detector((16, 16), 1e-3, 0.2, None)
    with pytest.raises(ValueError, match="0 usable pixels of 256: check the mask"):
        pixels_of(detector.with_mask(np.full(256, BAD)))
    with pytest.raises(ValueError, match="0 pixels for orientation: check the mask"):
        pixels_of(detector.with_mask(np.full(256, MERGE_ONLY)))
