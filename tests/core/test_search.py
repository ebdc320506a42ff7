"""The exact posterior over SO(3) at low resolution, against sums over every pixel."""

import numpy as np
import pytest
import torch
from conftest import bench

from napari_xrai.core import kernels
from napari_xrai.core.detector import square_detector
from napari_xrai.core.rotations import RZ_PI, geodesic_angle
from napari_xrai.core.search import PolarSearch, polar_spread

RADIUS, SAMPLING, DARKEST = 8.0, 0.6, 0.02


def search_of(case, shape, ratio=None, sampling=SAMPLING):
    search = PolarSearch(case.pixels, case.brightness, RADIUS, sampling)
    ratio = case.ratio if ratio is None else ratio
    search.set_field(ratio.astype(np.float32), case.pixels.edge, shape, np.random.default_rng(0), DARKEST)
    return search


def all_poses(search):
    """(directions, angles, 3, 3)"""
    direction, angle = np.indices((len(search.rotation), search.n_angles))
    return search.pose(direction, angle)


@pytest.fixture(scope="module")
def lit(lopsided):
    photons, rotation = lopsided.frames(40, seed=1, photons=1500)
    return torch.from_numpy(photons.dense(lopsided.pixels.within(RADIUS))), rotation


def test_a_photon_is_shared_out_whole_among_polar_cells(lopsided):
    n = lopsided.pixels.within(RADIUS)
    share = polar_spread(lopsided.pixels.rho[:n], lopsided.pixels.azimuth[:n], (2.0, RADIUS), 7, 32)
    np.testing.assert_allclose(share.sum(1), 1, rtol=1e-5)
    assert (share >= 0).all()
    assert ((share > 0).sum(1) <= 4).all()


@pytest.mark.parametrize("shape", [float("inf"), 4.0, 0.0])
def test_log_likelihoods_are_those_of_the_pixels(lopsided, lit, shape):
    frames, _ = lit
    frames = frames[:6]
    search = search_of(lopsided, shape)
    poses = all_poses(search)
    n = lopsided.pixels.within(RADIUS)
    rate = lopsided.expected(poses.reshape(-1, 3, 3))[:, :n]
    log_ratio = np.log(rate / lopsided.brightness[:n])
    total, k = rate.sum(1), frames.numpy()
    if np.isinf(shape):
        true = k @ log_ratio.T - total
    else:
        true = k @ log_ratio.T - (k.sum(1, keepdims=True) + shape) * np.log((total + shape) / (1 + shape))
    found = search.log_likelihood(frames).flatten(1).numpy()
    true, found = (value - value.mean(1, keepdims=True) for value in (true, found))
    # photons are spread bilinearly over polar cells a voxel wide: it blurs, and it does not mislead
    assert np.corrcoef(found.ravel(), true.ravel())[0, 1] > 0.99
    assert np.sqrt(np.mean(np.square(found - true))) < 0.2 * true.std()
    # and so where frames differ: without what they all share
    true, found = (value - value.mean(0) for value in (true, found))
    assert np.corrcoef(found.ravel(), true.ravel())[0, 1] > 0.98
    assert np.corrcoef(found[::-1].ravel(), true.ravel())[0, 1] < 0.5


def test_expected_totals_follow_the_mask_without_ring_symmetry(lopsided):
    search = search_of(lopsided, float("inf"))
    rate = lopsided.expected(all_poses(search).reshape(-1, 3, 3))[:, : lopsided.pixels.within(RADIUS)].sum(1)
    error = search.total.numpy().ravel() / rate - 1
    assert np.sqrt(np.mean(error**2)) < 0.03
    within_direction = rate.reshape(search.total.shape)
    assert (np.ptp(within_direction, axis=1) > 0.05 * within_direction.mean()).any()


def test_bright_frames_are_found_within_a_grid_step(lopsided):
    photons, true = lopsided.frames(40, seed=1, photons=6000)
    frames = torch.from_numpy(photons.dense(lopsided.pixels.within(RADIUS)))
    search = search_of(lopsided, 0.0, sampling=0.7)
    best = search.best(frames, 3)
    assert best.shape == (40, 3, 3, 3)
    either = np.minimum(geodesic_angle(best[:, 0], true), geodesic_angle(best[:, 0] @ RZ_PI, true))
    step = np.degrees(1 / (RADIUS * 0.7))  # between neighbouring directions; the in-plane step is no wider
    assert np.median(np.degrees(either)) < step
    assert (np.degrees(either) < 1.5 * step).mean() > 0.85


@pytest.mark.parametrize("shape", [float("inf"), 4.0, 0.0])
def test_back_projection_is_the_gradient_of_the_expected_log_likelihood(lopsided, lit, shape):
    # d⟨log L⟩/dV = photons/V − exposure for the posterior's photons and exposure, whatever the change of V
    frames, _ = lit
    frames = frames[:5]
    edge, rng = lopsided.pixels.edge, np.random.default_rng(3)
    search = search_of(lopsided, shape)
    score = search.log_likelihood(frames)
    posterior = torch.softmax(score.flatten(1) / 50, 1).view_as(score)
    photon_map, exposure_map = search.back_project(posterior, frames)
    change = lopsided.ratio * (1 + rng.random(edge**3))
    template, slope = (np.empty((len(search.rotation), len(search.point)), np.float32) for _ in range(2))
    kernels.gather(search.rotation, search.point, lopsided.ratio, edge, template)
    kernels.gather(search.rotation, search.point, change.astype(np.float32), edge, slope)
    predicted = float(((photon_map / template - exposure_map) * slope).sum(dtype=np.float64))
    value = []
    for sign in (1, -1):
        moved = search_of(lopsided, shape, lopsided.ratio + sign * 0.02 * change)
        assert np.array_equal(moved.rotation, search.rotation)
        value.append(float((moved.log_likelihood(frames).double() * posterior.double()).sum()))
    found = (value[0] - value[1]) / 0.04
    size = float((photon_map / template * slope).sum(dtype=np.float64))
    assert predicted == pytest.approx(found, abs=2e-3 * size)
    assert photon_map.sum() == pytest.approx(float(frames.sum()), rel=1e-3)


def test_a_flat_field_makes_every_pose_alike():
    case = bench(square_detector((32, 32), 1e-3, 0.2, None, stop_radius_px=2.5))
    photons, _ = case.frames(3, seed=0)
    search = search_of(case, 4.0, np.ones_like(case.ratio))
    score = search.log_likelihood(torch.from_numpy(photons.dense(search.n_pixels)))
    assert float((score.amax((1, 2)) - score.amin((1, 2))).max()) < 0.05
