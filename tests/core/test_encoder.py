"""The pose encoder: what it sees, what it must be blind or true to, and that it learns."""

import numpy as np
import pytest
import torch

from napari_xrai.core import encoder as enc
from napari_xrai.core import torch_kernels
from napari_xrai.core.detector import square_detector
from napari_xrai.core.frames import Frames
from napari_xrai.core.pixels import pixels_of
from napari_xrai.core.rotations import RZ_PI, geodesic_angle, random_rotations, rotation_z

ATOMS = 0.09 * np.random.default_rng(5).normal(size=(12, 3))
"""A particle without symmetry, about a third of a speckle-limited box, in 1/voxel."""


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def pixels():
    return pixels_of(square_detector((32, 32), 1e-3, 0.2, None, stop_radius_px=2.5))


@pytest.fixture(scope="module")
def ratio(pixels):
    """Intensity of the particle over its radial mean, on the engine's grid."""
    axis = np.arange(pixels.edge) - pixels.edge // 2
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    q = np.stack([x, y, z], -1).reshape(-1, 3)
    intensity = np.abs(np.exp(2j * np.pi * (q @ ATOMS.T)).sum(1)) ** 2
    shell = np.rint(np.linalg.norm(q, axis=1)).astype(int)
    mean = np.bincount(shell, intensity) / np.bincount(shell)
    return (intensity / mean[shell]).astype(np.float32)


@pytest.fixture(scope="module")
def brightness(pixels):
    return np.full(len(pixels.rho), 1.0, np.float32)


def error_deg(estimate, true):
    """Degrees modulo Rz(π)."""
    return np.degrees(np.minimum(geodesic_angle(estimate, true), geodesic_angle(estimate @ RZ_PI, true)))


def clean_image(polar, ratio, rotation):
    rate = enc.expected_ratio(torch.from_numpy(rotation.astype(np.float32)), polar.q, ratio, polar.edge)
    return polar.of_bins(rate * torch.from_numpy(polar.brightness))


def correlation(a, b):
    return np.corrcoef(a.numpy().ravel(), b.numpy().ravel())[0, 1]


def test_turning_the_particle_about_the_beam_shifts_the_image(pixels, brightness, ratio):
    polar = enc.PolarImage(pixels, brightness, 12.0)
    rotation = random_rotations(40, np.random.default_rng(0))
    image = clean_image(polar, ratio, rotation)
    turned = clean_image(polar, ratio, rotation @ rotation_z(5 * np.pi / polar.n_angles))
    assert correlation(turned, torch.roll(image, -5, -1)) > 0.95
    assert correlation(turned, torch.roll(image, 5, -1)) < 0.5


def test_mirror_image_is_the_particle_turned_half_way_about_y(pixels, brightness, ratio):
    polar = enc.PolarImage(pixels, brightness, 12.0)
    rotation = random_rotations(40, np.random.default_rng(0))
    image = clean_image(polar, ratio, rotation)
    turned = clean_image(polar, ratio, rotation @ np.diag([-1.0, 1.0, -1.0]))
    assert polar.mirror
    assert correlation(turned, enc.mirrored(image)) > 0.999
    assert correlation(turned, image) < 0.5


def test_a_mask_without_mirror_symmetry_forbids_mirror_dreams(pixels, brightness):
    covered = np.where((pixels.azimuth > 0.2) & (pixels.azimuth < 1.0), 0, brightness).astype(np.float32)
    assert not enc.PolarImage(pixels, covered, 12.0).mirror


@pytest.mark.parametrize("shape", [np.inf, 4.0, 0.0])
def test_a_structureless_particle_gives_white_noise(pixels, brightness, ratio, shape):
    polar = enc.PolarImage(pixels, brightness, 12.0, fluence_shape=shape)
    _, image = enc.dream(polar, np.ones_like(ratio), 4000, np.random.default_rng(0))
    well_lit = ((polar.spread > 0).sum(0) >= 6).view(image.shape[1:])  # by several pixels
    assert well_lit.sum() > 150
    assert abs(image.mean(0)).max() < 0.1
    assert torch.allclose(image.var(0)[well_lit], torch.tensor(1.0), atol=0.15)


def test_sparse_frames_give_the_image_of_dense_ones(pixels, brightness):
    polar = enc.PolarImage(pixels, brightness, 12.0, fluence_shape=3.0)
    counts = np.random.default_rng(0).poisson(0.3, (7, len(pixels.rank)))
    counts[3] = 0
    photons = pixels.sparse(Frames.from_dense(counts))
    dense = torch.from_numpy(photons.dense(polar.n_pixels))
    assert torch.allclose(polar(photons), polar(dense), atol=1e-4)


def test_pixels_much_finer_than_a_voxel_are_binned_and_lose_no_photon():
    fine = pixels_of(square_detector((260, 260), 1e-4, 0.2, None, stop_radius_px=6))
    brightness = np.random.default_rng(0).uniform(0.5, 1.5, len(fine.rho)).astype(np.float32)
    polar = enc.PolarImage(fine, brightness, 20.0)
    assert len(polar.q) < 0.5 * polar.n_pixels
    assert polar.brightness.sum() == pytest.approx(brightness[: polar.n_pixels].sum(), rel=1e-5)
    image = polar(torch.from_numpy(brightness[None, : polar.n_pixels]))
    assert image.abs().max() < 1e-2


def test_compiled_dreams_equal_those_of_other_devices(pixels, ratio):
    rotation = torch.from_numpy(random_rotations(5, np.random.default_rng(0)).astype(np.float32))
    q = pixels.q[:200]
    compiled = enc.expected_ratio(rotation, q, ratio, pixels.edge)
    by_torch = torch_kernels.gather(rotation, torch.from_numpy(q), torch.from_numpy(ratio), pixels.edge)
    assert torch.allclose(compiled, by_torch, atol=1e-3)


def test_dreams_repeat_with_their_seed_and_cover_all_poses(pixels, brightness, ratio):
    polar = enc.PolarImage(pixels, brightness, 12.0)
    rotation, image = enc.dream(polar, ratio, 2001, np.random.default_rng(3))
    again, same = enc.dream(polar, ratio, 2001, np.random.default_rng(3))
    assert torch.equal(rotation, again) and torch.equal(image, same) and len(image) == 2001
    assert enc.coverage(rotation.numpy()) > 0.95
    assert enc.coverage(np.repeat(rotation.numpy()[:3], 500, 0)) < 0.1


def test_a_turned_image_gives_turned_poses(pixels, brightness, ratio):
    polar = enc.PolarImage(pixels, brightness, 12.0)
    network = enc.PoseEncoder(polar, stride=3)
    _, image = enc.dream(polar, ratio, 6, np.random.default_rng(0))
    said, logit = network(image)
    turned_said, turned_logit = network(torch.roll(image, -3, -1))
    places = torch.arange(said.shape[1])
    before = network.absolute(said, places[:, None].expand(said.shape[:-1])).detach().numpy()
    after = network.absolute(turned_said, places[:, None].expand(said.shape[:-1])).detach().numpy()
    assert torch.allclose(turned_logit, logit.roll(-1, 1), atol=1e-5)
    expected = np.roll(before, -1, 1) @ rotation_z(3 * np.pi / polar.n_angles)
    assert error_deg(after, expected).max() < 0.1


@pytest.fixture(scope="module")
def learned(pixels, brightness, ratio):
    network = enc.PoseEncoder(enc.PolarImage(pixels, brightness, 12.0), seed=1)
    losses = list(enc.sleep(network, ratio, 500, np.random.default_rng(1)))
    return network, losses


def test_sleep_teaches_the_poses_of_frames_never_seen(learned, pixels, brightness, ratio):
    network, losses = learned
    assert np.mean(losses[-20:]) < 0.8 * np.mean(losses[:20])
    rng = np.random.default_rng(99)
    true = random_rotations(1000, rng)
    rate = enc.expected_ratio(torch.from_numpy(true.astype(np.float32)), pixels.q, ratio, pixels.edge).numpy()
    counts = np.zeros((1000, len(pixels.rank)), int)
    usable = pixels.rank >= 0
    counts[:, usable] = rng.poisson(rate * brightness)[:, pixels.rank[usable]]
    rotation, score = enc.propose(network, pixels.sparse(Frames.from_dense(counts)))
    error = error_deg(rotation, true[:, None])
    top = error[np.arange(len(error)), score.argmax(1)]
    assert np.median(error.min(1)) < 12
    assert np.median(top) < 20
    assert np.allclose(np.exp(score).sum(1), 1, atol=1e-4)
    sure = score.max(1) > np.median(score.max(1))
    assert np.median(top[sure]) < np.median(top[~sure])
    assert enc.coverage(rotation[np.arange(len(error)), score.argmax(1)]) > 0.8


def test_the_encoder_comes_back_from_its_checkpoint(learned, pixels):
    network, _ = learned
    copy = enc.PoseEncoder(network.polar, seed=2)
    copy.restore(network.state())
    photons = pixels.sparse(Frames.from_dense(np.random.default_rng(0).poisson(1.0, (3, len(pixels.rank)))))
    for a, b in zip(enc.propose(network, photons), enc.propose(copy, photons), strict=True):
        assert np.array_equal(a, b)


def test_equal_seeds_learn_equally(pixels, brightness, ratio):
    polar = enc.PolarImage(pixels, brightness, 12.0)
    losses = [list(enc.sleep(enc.PoseEncoder(polar, seed=4), ratio, 5, np.random.default_rng(4))) for _ in range(2)]
    assert losses[0] == losses[1]


def test_a_dead_hypothesis_restarts_beside_the_one_that_wins(pixels, brightness):
    network = enc.PoseEncoder(enc.PolarImage(pixels, brightness, 12.0))
    network.won = torch.tensor([0.9, 0.1, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    image = torch.randn(200, 12, 24)
    before = network(image)[0].detach()
    assert network.revive(np.random.default_rng(0)) == 6
    after = network(image)[0].detach()
    assert torch.equal(after[:, :, :2], before[:, :, :2])
    moved = (after[:, :, 2:] - before[:, :, :1]).norm(dim=-1).mean()
    assert 0 < moved < 0.5 * (before[:, :, 2:] - before[:, :, :1]).norm(dim=-1).mean()


def test_a_radius_inside_the_beam_stop_is_refused(pixels, brightness):
    with pytest.raises(ValueError, match="ring"):
        enc.PolarImage(pixels, brightness, 3.0)
