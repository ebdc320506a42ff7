"""Phasing and alignment of a small particle whose density is known."""

import time

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from napari_xrai.core.density_alignment import align_density, align_transform, apply_offset, transform_on_grid
from napari_xrai.core.frames import Volume
from napari_xrai.core.live_phasing import LivePhasing
from napari_xrai.core.phase_retrieval import (
    Recipe,
    Stage,
    fft_size,
    first_support,
    iterate,
    measured_radius,
    measurement,
    random_start,
    residual,
)
from napari_xrai.core.phasing import phase
from napari_xrai.core.resolution import crossing, fourier_shell_correlation, sample, shell_index

N, DQ = 49, 0.002  # intensity grid, 1/Å; the box is 500 Å


def particle(rotation: np.ndarray | None = None) -> Volume:
    """Three unequal, textured blobs within 150 Å, without any symmetry."""
    rng = np.random.default_rng(5)
    axis = (np.arange(N) - N // 2) * (1 / (N * DQ))
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    r = np.stack([x, y, z], -1)
    if rotation is not None:
        r = r @ rotation  # ρ'(r) = ρ(Rᵀ r)
    data = np.zeros((N, N, N))
    for _ in range(40):
        lobe = [([-45, 5, 0], 22), ([25, 30, -10], 26), ([20, -25, 25], 20)][rng.integers(3)]
        centre = np.array(lobe[0]) + rng.normal(size=3) * lobe[1] / 2
        data += rng.uniform(0.3, 1) * np.exp(-0.5 * ((r - centre) ** 2).sum(-1) / 8.0**2)
    return Volume(data.astype(np.float32), 1 / (N * DQ), "angstrom")


def diffract(density: Volume, hole: float = 3, edge: float = 22) -> tuple[Volume, Volume]:
    """Its intensity, and a weight with a beam stop and a round edge."""
    data = np.abs(np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(density.data)))) ** 2
    radius = shell_index(N)
    weight = ((radius >= hole) & (radius <= edge)).astype(np.float32)
    return Volume((data * weight).astype(np.float32), DQ, "1/angstrom"), Volume(weight, DQ, "1/angstrom")


@pytest.fixture(scope="module")
def truth() -> Volume:
    return particle()


@pytest.fixture(scope="module")
def measured(truth: Volume) -> tuple[Volume, Volume]:
    return diffract(truth)


def fsc_to(truth: Volume, density: Volume) -> np.ndarray:
    """FSC after shift and hand, which an intensity does not know."""
    n = density.data.shape[0]
    reference = transform_on_grid(truth, n, density.voxel_size)
    moving = torch.fft.rfftn(torch.from_numpy(np.fft.ifftshift(density.data)))
    laid = apply_offset(moving, align_transform(moving, reference, n // 2 - 2))
    maps = [np.fft.fftshift(torch.fft.irfftn(f, s=(n, n, n)).numpy()) for f in (laid, reference)]
    return fourier_shell_correlation(*(Volume(m, density.voxel_size, density.units) for m in maps)).value


def test_phasing_recovers_the_particle_behind_a_beam_stop(truth, measured):
    result = phase(*measured, starts=6, seed=1)
    assert result.verdict == "agreed", result.reason
    assert result.kept.sum() >= 5
    assert result.failed == 6 - result.kept.sum()
    assert f"{result.kept.sum()} of 6 starts agree" in result.reason
    fsc = fsc_to(truth, result.density)
    assert fsc[1:22].min() > 0.9
    assert result.density.units == "angstrom"
    assert result.density.voxel_size * result.density.data.shape[0] == pytest.approx(500)  # 1/dq
    assert np.isnan(result.prtf.value[0])
    assert np.nanmax(result.prtf.value) <= 1 + 1e-5
    centre = np.array([np.average(np.arange(48) - 24, weights=np.clip(result.density.data, 0, None).sum(a)) for a in
                       ((1, 2), (0, 2), (0, 1))])  # fmt: skip
    assert np.abs(centre).max() < 1


def test_transform_of_the_density_is_the_root_of_the_intensity(measured):
    result = phase(*measured, starts=2, seed=1)
    amplitude = np.abs(np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(result.density.data))))[1:, 1:, 1:]
    expected = np.sqrt(measured[0].data)[1:-1, 1:-1, 1:-1]
    ring = shell_index(47) == 8
    assert np.corrcoef(amplitude[ring], expected[ring])[0, 1] > 0.99
    assert amplitude[ring].mean() == pytest.approx(expected[ring].mean(), rel=0.05)


def test_equal_seeds_give_equal_results_whatever_the_threads(measured):
    a, b = (phase(*measured, starts=2, seed=3, threads=t) for t in (1, 2))
    np.testing.assert_array_equal(a.density.data, b.density.data)


def test_units_and_scale_of_the_intensity_do_not_matter(truth, measured):
    intensity, weight = measured
    plain = Volume(intensity.data * 1e-9, 1.0, "detector_voxel")
    result = phase(plain, Volume(weight.data * 1e6, 1.0, "detector_voxel"), starts=3, seed=1)
    assert result.density.units == "1/detector_voxel"
    assert result.density.voxel_size == pytest.approx(1 / 48)
    in_angstrom = Volume(result.density.data, result.density.voxel_size / DQ, "angstrom")
    assert fsc_to(truth, in_angstrom)[1:22].min() > 0.9


def test_noise_without_a_particle_is_never_called_agreed():
    rng = np.random.default_rng(0)
    radius = shell_index(N)
    weight = (radius >= 3).astype(np.float32)
    speckle = gaussian_filter(rng.exponential(size=(N, N, N)), 0.3) * np.exp(-radius / 6)
    result = phase(Volume(speckle.astype(np.float32), DQ, "1/angstrom"), Volume(weight, DQ, "1/angstrom"), starts=4)
    assert result.verdict != "agreed"
    if result.kept.sum() < 2:
        assert "no two of 4 starts agree" in result.reason


def test_starts_that_agree_on_noise_are_not_kept():
    noise = np.random.default_rng(0).exponential(size=(33, 33, 33)).astype(np.float32)
    weight = (shell_index(33) <= 14).astype(np.float32)
    result = phase(
        Volume(noise * weight, 0.003, "1/angstrom"), Volume(weight, 0.003, "1/angstrom"), starts=6, diameter=110
    )
    assert result.verdict == "failed"
    assert "no two of 6 starts agree" in result.reason


def test_a_sphere_whose_intensity_has_no_speckles_is_phased(truth):
    radius = np.linalg.norm(np.indices((N, N, N)) - N // 2, axis=0) * truth.voxel_size
    sphere = Volume((radius < 60).astype(np.float32), truth.voxel_size, truth.units)
    result = phase(*diffract(sphere), starts=4, seed=0)
    assert result.verdict == "agreed", result.reason
    assert fsc_to(sphere, result.density)[1:10].min() > 0.8


def test_a_large_hole_is_said(truth):
    result = phase(*diffract(truth, hole=10), starts=2, seed=0)
    assert result.verdict != "agreed"
    assert "within 10 voxels of q = 0" in result.reason


def test_an_incoherent_background_is_solved_for_and_said(truth, measured):
    intensity, weight = measured
    radius = shell_index(N)
    level = 2.0 * intensity.data[radius == 15].mean() * np.exp(-((radius / 20.0) ** 2)).astype(np.float32)
    dirty = Volume((intensity.data + level) * (weight.data > 0), DQ, "1/angstrom")
    with_fit = phase(dirty, weight, starts=6, seed=0)  # as many as it takes to try both ways
    without = phase(dirty, weight, starts=4, seed=0, recipe=Recipe(background=False))
    assert "background" in with_fit.reason
    assert with_fit.background.value[15] == pytest.approx(2 * np.exp(-0.5625) / (1 + 2 * np.exp(-0.5625)), abs=0.2)
    assert fsc_to(truth, with_fit.density)[1:20].mean() > max(0.9, fsc_to(truth, without.density)[1:20].mean())


@pytest.mark.parametrize("method", ["hio", "raar", "difference map"])
def test_every_method_fits_the_amplitudes_and_error_reduction_never_gets_worse(measured, method):
    m = measurement(*measured)
    recipe = Recipe(background=False)
    state = random_start(m, first_support(m), recipe, seed=4)
    start = residual(torch.fft.rfftn(state.x * state.support), m, None)
    iterate(state, m, recipe, Stage(method, 120, beta=0.9))
    errors = []
    fixed = Recipe(shrink_every=0, background=False)
    for _ in range(8):
        iterate(state, m, fixed, Stage("er", 1))
        errors.append(residual(torch.fft.rfftn(state.x), m, None))
    assert errors[-1] < 0.3 * start
    assert (np.diff(errors) <= 1e-6).all()  # Fienup 1982, eq. 15


def test_measurement_uses_friedel_mates_and_never_lets_nan_through(measured):
    intensity, weight = (v.data.copy() for v in measured)
    weight[24, 24, 30], intensity[24, 24, 30] = 0.0, 0.0  # its mate at x = 18 remains
    intensity[24, 30, 24] = np.nan
    m = measurement(Volume(intensity, DQ, "1/angstrom"), Volume(weight, DQ, "1/angstrom"))
    whole = measurement(*measured)
    assert m.known[0, 0, 6] == 1
    torch.testing.assert_close(m.amplitude * m.scale, whole.amplitude * whole.scale, rtol=1e-5, atol=0)
    assert (whole.hole, whole.edge, whole.n) == (3.0, 22, 48)


def test_the_rim_of_the_beam_stop_is_not_believed(measured):
    intensity, weight = measured
    radius = np.linalg.norm(np.indices((N, N, N)) - N // 2, axis=0)
    exposed = weight.data * 1000 / np.maximum(radius, 1) ** 2
    exposed *= np.clip((radius - 2.5) / 2, 0.05, 1)  # the shadow's edge: full exposure from 4.5 voxels on
    wrong = np.where(radius < 4, 3 * intensity.data, intensity.data)  # pixels there look beside the voxels
    m = measurement(
        Volume(wrong.astype(np.float32), DQ, "1/angstrom"), Volume(exposed.astype(np.float32), DQ, "1/angstrom")
    )
    assert 4 <= m.hole <= 5
    assert measurement(intensity, weight).hole == 3  # a weight that says nothing of a shadow
    whole = Volume((1 / np.maximum(radius, 1)).astype(np.float32), DQ, "1/angstrom")
    assert measurement(intensity, whole).hole == 0


@pytest.mark.parametrize(("radius", "size"), [(22, 48), (31, 64), (30, 64), (44, 90), (4, 10)])
def test_fft_size_keeps_the_sphere_off_the_nyquist_planes(radius, size):
    assert fft_size(radius) == size


def test_nothing_to_phase_is_said():
    flat, weight = np.ones((33, 33, 33), np.float32), np.ones((33, 33, 33), np.float32)
    for data, seen, words in ((flat, weight, "constant"), (0 * flat, weight, "constant"), (flat, 0 * weight, "shells")):
        with pytest.raises(ValueError, match=words):
            phase(Volume(data, 1.0, "detector_voxel"), Volume(seen, 1.0, "detector_voxel"), starts=1)
    assert measured_radius(0 * weight) == 0


def test_supports_that_cannot_be_are_refused(measured):
    with pytest.raises(ValueError, match="does not fit"):
        phase(*measured, starts=1, diameter=600.0)
    with pytest.raises(ValueError, match="empty"):
        phase(*measured, starts=1, support=Volume(np.zeros((48, 48, 48), np.float32), 500 / 48, "angstrom"))


def test_a_known_support_is_kept(truth, measured):
    known = Volume((truth.data > 0.05 * truth.data.max()).astype(np.float32), truth.voxel_size, truth.units)
    result = phase(*measured, starts=3, seed=0, support=known)
    assert fsc_to(truth, result.density)[1:20].min() > 0.8
    assert result.support.mean() == pytest.approx(known.data.mean(), rel=0.15)


def test_result_can_be_laid_over_a_density_shown_before(measured):
    first = phase(*measured, starts=2, seed=1)
    mirrored = Volume(np.roll(first.density.data[::-1, ::-1, ::-1], (3, -2, 1), (0, 1, 2)), first.density.voxel_size,
                      "angstrom")  # fmt: skip
    again = phase(*measured, starts=2, seed=8, like=mirrored)
    assert np.corrcoef(again.density.data.ravel(), mirrored.data.ravel())[0, 1] > 0.95


def noisy(measured: tuple[Volume, Volume], photons: float, seed: int) -> tuple[Volume, Volume]:
    """As after so many photons per voxel at shell 15."""
    intensity, weight = measured
    gain = photons / intensity.data[shell_index(N) == 15].mean()
    counts = np.random.default_rng(seed).poisson(intensity.data.astype(np.float64) * gain) / gain
    return Volume(counts.astype(np.float32), DQ, "1/angstrom"), weight


def test_live_phasing_follows_a_growing_intensity_without_jumps(truth, measured):
    live = LivePhasing(seed=2)
    before = None
    jumps = []
    for i in range(40):
        radius = min(22, 10 + i // 2)
        shown = live.update(*noisy(measured, 0.5 * 1.2**i, i), radius=radius)
        assert shown.data.shape == (50, 50, 50)
        assert shown.units == "angstrom"
        assert np.isfinite(shown.data).all()
        if before is not None:
            jumps.append(np.corrcoef(before.ravel(), shown.data.ravel())[0, 1])
        before = shown.data
    assert np.quantile(jumps, 0.1) > 0.9
    assert min(jumps) > 0.6
    cold = phase(*noisy(measured, 0.5 * 1.2**39, 39), starts=3, seed=0)
    assert fsc_to(truth, shown)[1:21].mean() > 0.95
    assert fsc_to(truth, shown)[1:21].mean() > fsc_to(truth, cold.density)[1:21].mean() - 0.05


def test_live_phasing_notices_that_the_intensity_became_another(truth, measured):
    live = LivePhasing(seed=0)
    live.update(*measured)
    turned = particle(Rotation.from_rotvec([0.9, -0.7, 1.1]).as_matrix())
    after = live.update(*diffract(turned))
    assert fsc_to(truth, after)[4:15].mean() < 0.5
    for _ in range(25):  # one cold start may fail; its challengers do not all
        after = live.update(*diffract(turned))
    assert fsc_to(turned, after)[1:15].mean() > 0.95


def test_live_phasing_shows_nothing_of_nothing_and_recovers(truth, measured):
    live = LivePhasing()
    empty = Volume(np.zeros((N, N, N), np.float32), DQ, "1/angstrom")
    assert not live.update(empty, empty).data.any()
    shown = live.update(*measured)
    assert fsc_to(truth, shown)[1:15].mean() > 0.8
    np.testing.assert_array_equal(live.update(empty, empty).data, shown.data)


def test_starts_are_aligned_to_a_hundredth_of_a_voxel_in_little_time(truth):
    reference = transform_on_grid(truth, 64, 500 / 64)
    from napari_xrai.core.density_alignment import phase_ramp

    began = time.process_time()
    for seed in range(10):
        rng = np.random.default_rng(seed)
        shift, hand = rng.uniform(-20, 20, 3), (1, -1)[seed % 2]
        moved = reference * phase_ramp(-shift, 64)
        offset = align_transform(moved if hand > 0 else moved.conj(), reference, 24)
        assert offset.hand == hand
        np.testing.assert_allclose(offset.shift, shift, atol=0.01)
        assert offset.score == pytest.approx(1, abs=1e-3)
    assert (time.process_time() - began) / 10 < 0.2


@pytest.mark.parametrize("hand", [1, -1])
def test_density_is_aligned_over_rotation_shift_and_hand(truth, hand):
    turn = Rotation.random(random_state=hand + 5).as_matrix()
    moved = particle(turn).data[::hand, ::hand, ::hand]
    noise = 0.02 * moved.max() * np.random.default_rng(0).normal(size=moved.shape) * (moved > 0.02 * moved.max())
    moving = Volume(np.roll(moved + noise, (4, -3, 2), (0, 1, 2)).astype(np.float32), truth.voxel_size, "angstrom")
    aligned = align_density(moving, truth)
    angle = np.degrees(np.arccos(np.clip((np.trace(aligned.rotation.T @ turn) - 1) / 2, -1, 1)))
    assert angle < 1
    assert aligned.hand == hand
    assert aligned.correlation > 0.98
    assert crossing(fourier_shell_correlation(aligned.density, aligned.reference), 0.5) > 15 * DQ
    points = np.random.default_rng(1).normal(size=(500, 3)) * 40
    stated = sample(moving, hand * points @ aligned.rotation.T + aligned.shift)
    assert np.corrcoef(stated, sample(aligned.density, points))[0, 1] > 0.98


def test_transform_on_another_grid_is_that_of_the_same_density(truth):
    blob = Volume(gaussian_filter(truth.data, 2), truth.voxel_size, "angstrom")
    n, voxel = 36, 15.0
    back = torch.fft.irfftn(transform_on_grid(blob, n, voxel), s=(n, n, n)).numpy()
    axis = (np.arange(n) - n // 2) * voxel
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    expected = np.nan_to_num(sample(blob, np.stack([x, y, z], -1)))
    assert np.corrcoef(np.fft.fftshift(back).ravel(), expected.ravel())[0, 1] > 0.995


def test_alignment_refuses_what_cannot_be_compared(truth):
    with pytest.raises(ValueError, match="units"):
        align_density(truth, Volume(truth.data, 0.02, "1/detector_voxel"))
    with pytest.raises(ValueError, match="empty or constant"):
        align_density(Volume(np.zeros((16, 16, 16), np.float32), 1.0, "angstrom"), truth)
