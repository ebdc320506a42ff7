"""How well a pose explains a frame: compiled and sparse, against the definition over every pixel."""

import numpy as np
import pytest
import torch
from conftest import exhaust, sparse
from scipy.spatial.transform import Rotation

from napari_xrai.core import kernels
from napari_xrai.core.exposure import ExposureTable
from napari_xrai.core.likelihood import PoseLikelihood, dense_log_likelihood, gamma_shape
from napari_xrai.core.rotations import exp_map, geodesic_angle, random_rotations

SHAPES = [float("inf"), 4.0, 0.0]
RADIUS = 14.0


def likelihood_of(bench, ratio=None, shape=float("inf"), radius=RADIUS, threads=1):
    ratio = bench.ratio if ratio is None else ratio
    exposure = ExposureTable(bench.pixels, bench.brightness)
    table = exhaust(exposure.totals(np.log(ratio), bench.pixels.edge, radius, 1, of_logarithm=True))
    return PoseLikelihood(bench.pixels, bench.brightness, exposure, np.log(ratio), table, radius, shape, threads)


@pytest.fixture(scope="module")
def lit(lopsided):
    """300 frames of about 400 photons, and their poses."""
    return lopsided.frames(300, seed=1)


@pytest.fixture(scope="module")
def likelihood(lopsided):
    return likelihood_of(lopsided)


def by_definition(bench, photons, rotation, shape, radius=RADIUS):
    """(N,) by torch over every pixel within the radius."""
    n, edge = bench.pixels.within(radius), bench.pixels.edge
    return dense_log_likelihood(
        torch.from_numpy(photons.dense(n)).double(), torch.from_numpy(np.asarray(rotation, np.float64)),
        torch.from_numpy(bench.pixels.q[:n]).double(), torch.from_numpy(bench.brightness[:n]).double(),
        torch.from_numpy(bench.ratio.reshape(edge, edge, edge)).double(), shape,
    ).numpy()  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_differences_between_poses_are_those_of_the_definition(lopsided, lit, shape):
    photons, true = lit
    likelihood = likelihood_of(lopsided, shape=shape)
    other = random_rotations(len(photons), np.random.default_rng(2))
    near = exp_map(np.full((len(photons), 3), np.radians(4.0))) @ true
    candidate = np.stack([true, near, other], 1).astype(np.float32)
    score = likelihood.score(photons, candidate)
    expected = np.stack([by_definition(lopsided, photons, candidate[:, c], shape) for c in range(3)], 1)
    error = (score - score[:, :1]) - (expected - expected[:, :1])
    # the tabulated total is good to 0.5 % rms, of about 320 photons; poses differ by far more
    assert np.sqrt(np.mean(np.square(error[:, 1:]))) < 2.0
    assert np.abs(error).max() < 8.0
    assert np.std(expected[:, 2] - expected[:, 0]) > 15


def test_ranking_prefers_the_true_pose_as_the_likelihood_does(lopsided, lit, likelihood):
    # candidates as a search leaves them: some degrees from the truth, or anywhere
    photons, true = lit
    rng = np.random.default_rng(5)
    off = exp_map(np.radians(3.0) * rng.normal(size=(300, 3))) @ true
    wrong = random_rotations(300 * 8, rng).reshape(300, 8, 3, 3)
    candidate = np.concatenate([off[:, None], wrong], 1).astype(np.float32)
    exact, ranked = likelihood.score(photons, candidate), likelihood.rank(photons, candidate)
    assert (exact.argmax(1) == 0).mean() > 0.95
    among_best_three = (np.argsort(-ranked, 1)[:, :3] == 0).any(1)
    assert among_best_three[exact.argmax(1) == 0].all()


def test_a_field_without_structure_prefers_no_pose(lopsided, lit):
    flat = likelihood_of(lopsided, ratio=np.ones_like(lopsided.ratio), shape=4.0)
    candidate = random_rotations(300 * 5, np.random.default_rng(0)).reshape(300, 5, 3, 3).astype(np.float32)
    score = flat.score(lit[0], candidate)
    assert np.abs(score - score[:, :1]).max() < 0.5


def test_photons_beyond_the_radius_do_not_count(lopsided, lit):
    photons, true = lit
    near = likelihood_of(lopsided, radius=8.0)
    n = lopsided.pixels.within(8.0)
    cut = photons.dense(len(lopsided.pixels.rho))
    cut[:, n:] = 0
    pose = true[:, None].astype(np.float32)
    np.testing.assert_allclose(near.score(photons, pose), near.score(sparse(cut.astype(int)), pose), rtol=1e-6)


def test_brighter_poses_cost_nothing_where_the_fluence_is_profiled(lopsided, lit):
    # the same frames under twice the intensity: profiled fluence cannot tell, a fixed one must
    photons, true = lit
    pose = np.stack([true, random_rotations(300, np.random.default_rng(3))], 1).astype(np.float32)
    gain = {}
    for shape in (0.0, float("inf")):
        one, two = likelihood_of(lopsided, shape=shape), likelihood_of(lopsided, 2 * lopsided.ratio, shape)
        gain[shape] = np.ptp(two.score(photons, pose) - one.score(photons, pose), axis=1)
    assert gain[0.0].max() < 1e-2
    assert gain[float("inf")].mean() > 5


@pytest.mark.parametrize("shape", SHAPES)
def test_refinement_climbs_and_finds_the_true_pose_to_the_fisher_width(lopsided, lit, shape):
    photons, true = lit
    likelihood = likelihood_of(lopsided, shape=shape)
    rng = np.random.default_rng(4)
    axis = rng.normal(size=true.shape[:2])
    axis *= np.radians(5.0) / np.linalg.norm(axis, axis=1, keepdims=True)
    begin = (exp_map(axis) @ true)[:, None].astype(np.float32)
    mode, fisher, value = likelihood.refine(photons, begin)
    assert (value >= likelihood.score(photons, begin) - 1e-3).all()
    np.testing.assert_allclose(value, likelihood.score(photons, mode), atol=1e-3)
    left = Rotation.from_matrix(mode[:, 0] @ true.mT).as_rotvec()
    width = np.sqrt(np.trace(np.linalg.inv(fisher[:, 0]), axis1=1, axis2=2))
    error = np.linalg.norm(left, axis=1)
    assert np.median(error / width) < 1.3
    assert np.degrees(np.median(error)) < 4.0


def test_refined_poses_rest_on_a_maximum(lopsided, lit, likelihood):
    photons, true = lit
    mode, fisher, value = likelihood.refine(photons, true[:, None].astype(np.float32))
    # half a width to either side along every eigenvector of the Fisher matrix: downhill, for nearly all
    scale, axis = np.linalg.eigh(fisher[:, 0])
    step = 0.5 * axis / np.sqrt(scale)[:, None]  # columns
    around = np.concatenate([exp_map(step.mT), exp_map(-step.mT)], 1) @ mode
    drop = value - likelihood.score(photons, around.astype(np.float32))
    assert (drop > -0.05).mean() > 0.95
    assert 0.06 < np.median(drop) < 0.25  # ½·(½)² = 0.125 where the posterior is Gaussian


def test_gradient_and_fisher_matrix_are_those_of_autograd(lopsided, lit):
    photons, true = lit
    edge, row = lopsided.pixels.edge, 3
    cube = torch.from_numpy(np.log(lopsided.ratio).reshape(edge, edge, edge)).double()
    a, b = photons.start[row : row + 2]
    q = torch.from_numpy(lopsided.pixels.q[photons.pixel[a:b]]).double()
    count = torch.from_numpy(photons.count[a:b]).double()
    pose = torch.from_numpy(true[row])

    def log_ratio(omega):
        """(lit pixels,) at exp(ω)·R, to first order in ω."""
        cross = torch.linalg.cross(omega.expand(len(q), 3), q @ pose.T)
        point = ((q @ pose.T + cross) / ((edge - 1) / 2))[None, None, None]
        return torch.nn.functional.grid_sample(cube[None, None], point, align_corners=True)[0, 0, 0, 0]

    slope = torch.autograd.functional.jacobian(log_ratio, torch.zeros(3, dtype=torch.float64))
    gradient, fisher = np.zeros(3), np.zeros((3, 3))
    kernels.photon_term(
        true[row], lopsided.pixels.q, a, b, photons.pixel, photons.count, lopsided.pixels.share,
        np.log(lopsided.ratio), edge,
        gradient, fisher, True,
    )  # fmt: skip
    np.testing.assert_allclose(gradient, (count @ slope).numpy(), rtol=1e-3, atol=1e-3 * np.abs(fisher).max() ** 0.5)
    np.testing.assert_allclose(fisher, (slope.T @ (count[:, None] * slope)).numpy(), rtol=1e-3, atol=1e-2)


def test_a_turned_particle_is_found_in_the_turned_pose(round_bench):
    # a quarter turn about z maps the grid onto itself: no interpolation comes between
    photons, true = round_bench.frames(100, seed=6)
    turn = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    edge = round_bench.pixels.edge
    turned = np.ascontiguousarray(np.rot90(round_bench.ratio.reshape(edge, edge, edge), axes=(2, 1))).ravel()
    begin = true[:, None].astype(np.float32)
    as_was, _, value = likelihood_of(round_bench).refine(photons, begin)
    as_is, _, same = likelihood_of(round_bench, turned).refine(photons, (turn @ begin).astype(np.float32))
    angle = np.degrees(geodesic_angle(as_is[:, 0], turn @ as_was[:, 0]))
    assert np.median(angle) < 0.1 and np.quantile(angle, 0.95) < 1.0
    assert np.abs(same - value).max() < 1.0


def test_samples_spread_as_the_fisher_information_says(lopsided):
    photons, true = lopsided.frames(60, seed=7, photons=20_000)
    bright = likelihood_of(lopsided, shape=0.0)  # the fluence is free: frames are 50 times brighter than the model
    mode, fisher, _ = bright.refine(photons, true[:, None].astype(np.float32))
    noise = np.random.default_rng(0).normal(size=(60, 1, 200, 3))
    sample, weight = bright.sample(photons, mode, fisher, 1.0, noise)
    np.testing.assert_allclose(weight.sum(1), 1, rtol=1e-9)
    assert (weight >= 0).all()
    apart = sample.astype(np.float64) @ mode[:, :1].mT
    omega = Rotation.from_matrix(apart.reshape(-1, 3, 3)).as_rotvec().reshape(60, 200, 3)
    distance = np.einsum("nja,nab,njb->nj", omega, fisher[:, 0], omega)  # Mahalanobis², 3 on average
    assert np.median((weight * distance).sum(1)) == pytest.approx(3, rel=0.25)
    wider, weight = bright.sample(photons, mode, fisher, 0.25, noise)
    angle = geodesic_angle(wider, mode[:, :1])
    assert np.median((weight * angle).sum(1)) > 1.6 * np.median(geodesic_angle(sample, mode[:, :1]).mean(1))


def test_a_frame_without_photons_stays_where_it_is(round_bench):
    flat = likelihood_of(round_bench, np.ones_like(round_bench.ratio))
    begin = random_rotations(1, np.random.default_rng(0))[None].astype(np.float32)
    mode, _, _ = flat.refine(sparse(np.zeros((1, len(round_bench.pixels.rho)), int)), begin)
    assert np.degrees(geodesic_angle(mode, begin)).max() < 0.5


def test_threads_do_not_change_the_result(lopsided, lit, likelihood):
    photons, true = lit
    pose = true[:, None].astype(np.float32)
    two = likelihood_of(lopsided, threads=2)
    for one, other in zip(likelihood.refine(photons, pose), two.refine(photons, pose), strict=True):
        np.testing.assert_array_equal(one, other)


def test_fluence_is_the_posterior_mean(lopsided, likelihood):
    pose = random_rotations(5, np.random.default_rng(0)).astype(np.float32)
    expected = likelihood.expected(pose)
    n = lopsided.pixels.within(RADIUS)
    np.testing.assert_allclose(expected, lopsided.as_scored(pose)[:, :n].sum(1), rtol=0.015)
    np.testing.assert_allclose(likelihood_of(lopsided, shape=0.0).fluence(pose, 3 * expected), 3, rtol=1e-5)
    np.testing.assert_array_equal(likelihood.fluence(pose, 3 * expected), 1)
    gamma = likelihood_of(lopsided, shape=4.0).fluence(pose, 3 * expected)
    np.testing.assert_allclose(gamma, (3 * expected + 4) / (expected + 4), rtol=1e-5)


@pytest.mark.parametrize(("shape", "fluence"), [(4.0, "gamma"), (float("inf"), "equal")])
def test_the_spread_of_fluences_is_told_from_counts_and_expectations(shape, fluence):
    rng = np.random.default_rng(0)
    s = 300 * np.exp(0.2 * rng.normal(size=6000))  # poses differ in brightness
    f = rng.gamma(4.0, 0.25, 6000) if fluence == "gamma" else np.ones(6000)
    k = rng.poisson(1.7 * f * s)  # and the scale of the model is off
    found = gamma_shape(k.sum(), s.sum(), k @ k, k @ s, s @ s)
    assert found == (float("inf") if fluence == "equal" else pytest.approx(shape, rel=0.1))
