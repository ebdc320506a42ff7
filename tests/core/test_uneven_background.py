"""Light that all frames share: found without a pose, and taken out so that it turns no frame."""

from collections import deque
from dataclasses import replace

import numpy as np
import pytest
from conftest import exhaust, sparse

from napari_xrai.core import starts
from napari_xrai.core.evidence import Evidence
from napari_xrai.core.exposure import ExposureTable
from napari_xrai.core.field import friedel_sum
from napari_xrai.core.frames import HC_EV_A, Frames
from napari_xrai.core.likelihood import PoseLikelihood
from napari_xrai.core.particle import builtin_particle
from napari_xrai.core.reconstruction import Reconstruction
from napari_xrai.core.reconstruction_settings import ReconstructionSettings
from napari_xrai.core.rotations import align_poses, exp_map, geodesic_angle, quaternion_to_matrix, random_rotations
from napari_xrai.core.search import PolarSearch
from napari_xrai.core.simulate import Preset, simulate
from napari_xrai.core.speckle import measure_speckle
from napari_xrai.core.uneven_background import even_pattern, find_uneven_background, unevenness


def blob(bench, photons):
    """(U,) a broad glow beside the beam."""
    x, y = bench.pixels.q[:, 0], bench.pixels.q[:, 1]
    glow = np.exp(-(np.square(x - 4) + np.square(y - 2)) / 2 / 5**2)
    return photons * glow / glow.sum()


@pytest.mark.parametrize("name", ["round_bench", "lopsided"])
@pytest.mark.parametrize("photons", [30, 400])
def test_frames_at_all_poses_have_no_uneven_background_whatever_their_mask(name, photons, request):
    bench = request.getfixturevalue(name)
    frames, _ = bench.frames(2000, seed=1, photons=photons)
    pixels, _, sentence = find_uneven_background(bench.pixels, frames)
    assert pixels is bench.pixels and sentence == ""


@pytest.mark.parametrize("photons", [30, 400])
def test_an_even_background_is_no_uneven_one(round_bench, photons):
    even = photons * round_bench.pixels.response / round_bench.pixels.response.sum()
    frames, _ = round_bench.under(even).frames(2000, seed=1, photons=photons)
    assert not unevenness(round_bench.pixels, frames).is_there


@pytest.mark.parametrize("name", ["round_bench", "lopsided"])
def test_a_streak_is_found_where_it_is(name, request):
    bench = request.getfixturevalue(name)
    light = bench.streak(120)
    frames, _ = bench.under(light).frames(4000, seed=1)
    pixels, _, sentence = find_uneven_background(bench.pixels, frames)
    found, share = pixels.background, bench.brightness / (bench.brightness + light)
    bright, dark = (light > 0.2 * bench.brightness) & (pixels.rho > 4), light < 0.02 * bench.brightness
    assert bright.sum() > 30
    np.testing.assert_allclose(found.light[bright].sum(), light[bright].sum(), rtol=0.1)
    np.testing.assert_allclose(found.share[bright], share[bright], atol=0.15)
    assert np.abs(found.light[dark]).sum() < 0.03 * bench.brightness.sum()
    assert "lie unevenly" in sentence


def test_pixels_in_a_shadow_are_left_out_and_no_negative_light(round_bench):
    frames, _ = round_bench.under(round_bench.streak(120)).frames(4000, seed=1)
    counts = frames.dense(len(round_bench.pixels.rho))
    dark = round_bench.pixels.azimuth < 0.3
    counts[:, dark] = 0
    pixels, on_pixels, _ = find_uneven_background(round_bench.pixels, sparse(counts))
    np.testing.assert_array_equal(pixels.q, round_bench.pixels.q[~dark])
    np.testing.assert_array_equal(on_pixels.dense(len(pixels.q)), counts[:, ~dark])


def test_no_pixel_of_few_frames_is_in_a_shadow_by_chance(round_bench):
    frames, _ = round_bench.under(round_bench.streak(120)).frames(250, seed=1)
    pixels, _, sentence = find_uneven_background(round_bench.pixels, frames)
    assert "lie unevenly" in sentence and len(pixels.q) == len(round_bench.pixels.q)


@pytest.mark.parametrize("kind", ["streak", "blob"])
def test_speckles_are_as_large_and_as_strong_under_a_background_as_without(round_bench, kind):
    light = round_bench.streak(200) if kind == "streak" else blob(round_bench, 200)
    lit = round_bench.under(light)
    with_it, without = (measure_speckle(b.pixels, b.frames(3000, seed=1)[0]) for b in (lit, round_bench))
    assert with_it.size == pytest.approx(without.size, rel=0.1)
    assert with_it.contrast == pytest.approx(without.contrast, rel=0.25)
    unknown = measure_speckle(round_bench.pixels, lit.frames(3000, seed=1)[0])
    assert unknown.contrast < 0.75 * without.contrast


def test_frames_that_are_lit_in_one_pixel_are_left_as_they_are(round_bench):
    counts = np.zeros((300, len(round_bench.pixels.q)), int)
    counts[:, 5] = 9
    frames = sparse(counts)
    assert find_uneven_background(round_bench.pixels, frames) == (round_bench.pixels, frames, "")


def test_what_is_even_is_what_most_of_a_ring_has(round_bench):
    pixels = round_bench.pixels
    smooth = pixels.response * np.exp(-pixels.rho / 6)
    spoiled = smooth * (1 + 5 * (np.abs(pixels.q[:, 1]) < 1))
    far = pixels.rho > 5  # nearer the beam the streak is most of a ring
    np.testing.assert_allclose(even_pattern(pixels, spoiled, 30)[far], smooth[far], rtol=0.05)


def likelihood_of(bench, radius=12.0, shape=np.inf):
    pixels, background, log_grid = bench.pixels, bench.pixels.background, np.log(bench.ratio)
    brightness = bench.brightness * pixels.share
    exposure, light = ExposureTable(pixels, brightness), None
    table = exhaust(exposure.totals(log_grid, pixels.edge, radius, 1, of_logarithm=True))
    if background is not None:
        lit = ExposureTable(pixels, background.light * background.share)
        light = lit.fine.table(exhaust(lit.totals(log_grid, pixels.edge, radius, 1)))
    return PoseLikelihood(pixels, brightness, exposure, log_grid, table, radius, shape, 1, light)


def pull(bench, photons, pose, shape):
    """How the score of frames at the true pose of each twelfth differs from zero, in standard errors, rms."""
    score, near = likelihood_of(bench, shape=shape), pose[:, None].astype(np.float32)
    turn = exp_map(np.radians(0.5) * np.eye(3))
    up, down = (score.score(photons, (way @ near).astype(np.float32)) for way in (turn, turn.mT))
    slope = (up - down).reshape(12, -1, 3)
    return np.sqrt(np.square(slope.mean(1) / slope.std(1)).mean() * slope.shape[1])


@pytest.mark.parametrize("kind", ["streak", "blob"])
@pytest.mark.parametrize("shape", [np.inf, 4.0])
def test_a_known_background_turns_no_frame(round_bench, kind, shape):
    """On average frames stay at their pose, as well as frames without a background do; left in, it turns them."""
    light = round_bench.streak(200) if kind == "streak" else blob(round_bench, 200)
    rng = np.random.default_rng(2)
    pose = np.repeat(random_rotations(12, rng), 400, 0)
    fluence = np.ones(len(pose)) if np.isinf(shape) else rng.gamma(shape, 1 / shape, len(pose))
    particle = round_bench.as_scored(pose) * fluence[:, None]
    lit, dark = sparse(rng.poisson(particle + light)), sparse(rng.poisson(particle))
    known = pull(round_bench.under(light), lit, pose, shape)
    assert known < pull(round_bench, dark, pose, shape) + 1
    assert pull(round_bench, lit, pose, shape) > 5 * known


def test_information_is_what_the_scores_scatter_by(round_bench):
    """The mean of Σ s² K t tᵀ is the variance of the score: radii of poses rest on it."""
    lit, rng = round_bench.under(round_bench.streak(200)), np.random.default_rng(3)
    pose = np.repeat(random_rotations(8, rng), 500, 0)
    photons = sparse(rng.poisson(round_bench.as_scored(pose) + lit.pixels.background.light))
    begin = pose[:, None].astype(np.float32)
    mode, fisher, _ = likelihood_of(lit).refine(photons, begin)
    angle = geodesic_angle(mode[:, 0], pose)
    stated = np.sqrt(np.trace(np.linalg.inv(fisher[:, 0]), axis1=1, axis2=2))
    assert 0.85 < np.sqrt(np.mean(np.square(angle[angle < 0.3]))) / np.sqrt(np.mean(np.square(stated))) < 1.2


def test_photons_less_background_over_exposure_is_the_intensity(round_bench):
    lit = round_bench.under(round_bench.streak(300))
    photons, pose = lit.frames(3000, seed=4)

    def merged(bench):
        pixels, background = bench.pixels, bench.pixels.background
        light = None if background is None else ExposureTable(pixels, background.light * background.share)
        evidence = Evidence(pixels, ExposureTable(pixels, bench.brightness * pixels.share), np.inf, 1, light)
        ones = np.ones(len(pose))
        evidence.add(photons, np.arange(len(pose)), pose.astype(np.float32), ones, ones)
        counted, exposed = exhaust(evidence.volumes())
        seen = friedel_sum(exposed[0] + exposed[1])
        known = seen > 30
        return (friedel_sum(counted[0] + counted[1])[known] / seen[known]), known

    ratio, known = merged(lit)
    assert np.median(ratio - round_bench.ratio[known]) == pytest.approx(0, abs=0.06)
    left_in, known = merged(round_bench)
    assert np.median(left_in - round_bench.ratio[known]) > 0.3


def test_the_search_finds_poses_that_a_streak_would_hide(round_bench):
    lit = round_bench.under(round_bench.streak(200))
    photons, pose = lit.frames(100, seed=5)

    def error(bench):
        search = PolarSearch(bench.pixels, bench.brightness * bench.pixels.share, 10.0, 1.2)
        search.set_field(bench.ratio, bench.pixels.edge, np.inf, np.random.default_rng(0), 0.02)
        found = search.best(search.dense(photons), 1)[:, 0]
        half_turned = found @ np.diag([-1, -1, 1])
        return np.degrees(np.minimum(geodesic_angle(found, pose), geodesic_angle(half_turned, pose)))

    assert np.median(error(lit)) < 8
    assert np.median(error(round_bench)) > 20


@pytest.fixture(scope="module")
def streaked():
    """1,000 frames of the demo particle, half as many photons again in a streak, and their poses."""
    preset = Preset((32, 32), 1.8e-3, 0.3, HC_EV_A / 4.0, stop_radius_px=2, fluence_shape=4)
    detector, truth, batches = simulate(builtin_particle("demo"), preset, n_frames=1000, photons=1500, seed=1)
    q = detector.q / detector.q.max()
    streak = np.exp(-np.square(q[:, 1] / 0.08) / 2) / (np.abs(q[:, 0]) + 0.2) * (detector.mask < 2)
    counts = Frames.concatenate(list(batches)).dense()
    rng = np.random.default_rng(1)
    return detector, Frames.from_dense(counts + rng.poisson(700 * streak / streak.sum(), counts.shape)), truth.rotation


@pytest.mark.parametrize(("how", "passes"), [("auto", None), ("left", 2)])
def test_from_noise_to_the_true_poses_under_a_streak_and_not_where_it_is_left_in(streaked, monkeypatch, how, passes):
    detector, frames, true = streaked
    monkeypatch.setattr(starts, "MOST_STARTS", 1 if how == "left" else 3)
    settings = ReconstructionSettings(seed=1, passes=passes, uneven_background=how)
    engine = Reconstruction(detector, settings, len(frames))
    deque(engine.run(lambda n, at: (frames.take(slice(a, a + n)) for a in range(at, len(frames), n))), maxlen=0)
    snapshot = engine.snapshot(all_poses=True)
    found = quaternion_to_matrix(snapshot.poses.quaternion)
    error = np.median(align_poses(found, true[snapshot.poses.frame])[1])
    if how == "left":
        assert error > 20 and "left in" in snapshot.facts["uneven background"]
        return
    assert error < 3 and snapshot.verdict == "converged"
    assert "taken out" in snapshot.facts["uneven background"]
    assert snapshot.counters.junk < 30  # within 1.9 speckles this small detector has 76 pixels: too few for some


def test_a_new_mask_keeps_the_background(round_bench):
    lit = round_bench.under(round_bench.streak(100)).pixels
    kept = lit.rho > 5
    fewer = lit.only(kept)
    np.testing.assert_array_equal(fewer.background.light, lit.background.light[kept])
    again = replace(lit, background=None).lit_like(fewer)
    np.testing.assert_array_equal(again.background.light[kept], lit.background.light[kept])
    assert (again.background.light[~kept] == 0).all() and (again.background.share[~kept] == 1).all()
