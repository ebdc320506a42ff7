"""Hot and dead pixels, known by their neighbours, are left out before they draw speckles onto themselves."""

import numpy as np
import pytest
from conftest import bench, sparse

from napari_xrai.core.detector import square_detector
from napari_xrai.core.odd_pixels import find_odd_pixels, leave_out_odd_pixels


@pytest.fixture(scope="module")
def case():
    return bench(square_detector((32, 32), 1e-3, 0.2, None, stop_radius_px=2.5))


@pytest.fixture(scope="module")
def counts(case):
    photons, _ = case.frames(1500, seed=1)
    return photons.dense(len(case.pixels.rho)).astype(int)


def test_a_sound_detector_has_no_odd_pixel_though_fluence_and_poses_vary(case):
    for n, seed in ((120, 2), (1500, 3)):
        photons, _ = case.frames(n, seed, fluence=np.random.default_rng(seed).gamma(2, 0.5, n))
        assert not np.any(find_odd_pixels(case.pixels, photons))


def test_hot_dead_and_clustered_pixels_are_found_and_no_other(case, counts):
    rng, spoiled, rho = np.random.default_rng(4), counts.copy(), case.pixels.rho
    hot, dead = (rng.permutation(np.flatnonzero((rho > lo) & (rho < hi)))[:3] for lo, hi in ((8, 15), (4, 8)))
    first = np.linalg.norm(case.pixels.q - case.pixels.q[hot[0]], axis=1)
    hot = np.union1d(hot, np.argsort(first)[:3])  # three side by side
    dead = np.setdiff1d(dead, hot)
    spoiled[:, hot] += rng.poisson(1.5, (len(spoiled), len(hot)))
    spoiled[:, dead] = 0
    found_hot, found_dead = find_odd_pixels(case.pixels, sparse(spoiled))
    assert set(np.flatnonzero(found_hot)) == set(hot)
    assert set(np.flatnonzero(found_dead)) == set(dead)


def test_the_shadow_of_a_beam_stop_that_is_in_no_mask_is_found_and_no_more():
    bare = bench(square_detector((32, 32), 1e-3, 0.2, None))
    photons, _ = bare.frames(1500, seed=1)
    dark = photons.dense(len(bare.pixels.rho)).astype(int)
    behind = bare.pixels.rho < 3.5
    dark[:, behind] = 0
    hot, dead = find_odd_pixels(bare.pixels, sparse(dark))
    assert not hot.any() and set(np.flatnonzero(dead)) == set(np.flatnonzero(behind))
    assert not np.any(find_odd_pixels(bare.pixels, photons))
    said = leave_out_odd_pixels(bare.pixels, sparse(dark))[2]["odd pixels"]
    assert said == f"0 hot, 0 dead, {behind.sum()} in the beam stop's shadow: left out"


def test_one_flash_in_a_single_frame_is_no_hot_pixel(case, counts):
    flash = counts.copy()
    flash[7, len(case.pixels.rho) // 2] += 2000
    assert not np.any(find_odd_pixels(case.pixels, sparse(flash)))


def test_what_is_left_are_the_frames_of_a_detector_without_those_pixels(case, counts):
    spoiled = counts.copy()
    spoiled[:, 300] += 3
    pixels, photons, facts = leave_out_odd_pixels(case.pixels, sparse(spoiled))
    assert facts == {"odd pixels": "1 hot, 0 dead: left out"}
    np.testing.assert_array_equal(photons.dense(len(pixels.rho)), np.delete(counts, 300, axis=1))
    np.testing.assert_array_equal(pixels.q, np.delete(case.pixels.q, 300, axis=0))
    assert pixels.n_orient == case.pixels.n_orient - 1
    lost = case.pixels.rank == 300
    assert (pixels.rank[lost] == -1).all()
    shift = case.pixels.rank - (case.pixels.rank > 300)
    np.testing.assert_array_equal(pixels.rank[~lost], shift[~lost])
