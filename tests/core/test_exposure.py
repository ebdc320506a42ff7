"""Photons expected at every pose, from a table; and its adjoint, where in 3D a set of poses has looked."""

import numpy as np
import pytest
from conftest import bench, lopsided_detector
from test_likelihood import exhaust

from napari_xrai.core.detector import square_detector
from napari_xrai.core.evidence import Evidence
from napari_xrai.core.exposure import ExposureTable
from napari_xrai.core.field import RadialProfile, VoxelField
from napari_xrai.core.kernels import expected_totals, gather
from napari_xrai.core.pixels import pixels_of
from napari_xrai.core.rotations import direction_to_rotation, random_rotations


def tabulated(exposure, table, rotation):
    out = np.empty(len(rotation))
    expected_totals(rotation, table, exposure.rotation, exposure.m, out)
    return out


@pytest.fixture(scope="module")
def poses():
    return random_rotations(200, np.random.default_rng(0)).astype(np.float32)


@pytest.mark.parametrize("radius", [6.0, 10.0, 14.0, 17.0])
@pytest.mark.parametrize("kind", ["lopsided", "round_bench"])
def test_totals_are_the_sum_over_every_pixel_within_the_radius(kind, radius, poses, request):
    case = request.getfixturevalue(kind)
    exposure = ExposureTable(case.pixels, case.brightness)
    found = tabulated(
        exposure, exhaust(exposure.totals(np.log(case.ratio), case.pixels.edge, radius, 1, of_logarithm=True)), poses
    )
    true = case.as_scored(poses)[:, : case.pixels.within(radius)].sum(1)
    error = found / true - 1
    assert abs(error.mean()) < 1e-3  # these pixels, no more and no fewer
    assert np.sqrt(np.mean(error**2)) < 5e-3
    assert true.std() > 0.1 * true.mean()  # poses do differ in brightness


def test_totals_of_an_intensity_are_linear_between_voxels_until_its_logarithm_is_given(round_bench, poses):
    exposure, edge = ExposureTable(round_bench.pixels, round_bench.brightness), round_bench.pixels.edge
    found = tabulated(exposure, exhaust(exposure.totals(round_bench.ratio, edge, 17.0, 1)), poses)
    true, other = (f(poses)[:, : round_bench.pixels.within(17.0)].sum(1) for f in
                   (round_bench.expected, round_bench.as_scored))  # fmt: skip
    assert np.abs(found / true - 1).mean() < 0.3 * np.abs(found / other - 1).mean()


@pytest.mark.parametrize("kind", ["lopsided", "round_bench"])
def test_the_finer_lattice_is_as_exact_as_one_that_was_summed(kind, poses, request):
    case = request.getfixturevalue(kind)
    true = case.as_scored(poses)[:, : case.pixels.within(17.0)].sum(1)

    def error(exposure, table, lattice):
        out = np.empty(len(poses))
        expected_totals(poses, table, lattice.rotation, lattice.m, out)
        return np.sqrt(np.mean((out / true - 1) ** 2))

    coarse = ExposureTable(case.pixels, case.brightness)
    summed = ExposureTable(case.pixels, case.brightness, 2.3 * case.pixels.orient_radius / 36)
    summed.point_spacing = coarse.point_spacing
    table, other = (
        exhaust(e.totals(np.log(case.ratio), case.pixels.edge, 17.0, 1, of_logarithm=True)) for e in (coarse, summed)
    )
    fine = error(coarse, coarse.fine.table(table), coarse.fine)
    assert fine < 1.05 * error(summed, other, summed)
    assert fine < 0.75 * error(coarse, table, coarse)


def test_a_view_along_a_thin_sheet_has_its_whole_total_where_speckles_are_small():
    # it lies between directions of the plain lattice, where frames would gather: too small a total makes them likely
    pixels = pixels_of(square_detector((65, 65), 1e-3, 3.0, None, stop_radius_px=4))
    brightness, edge = np.ones(len(pixels.rho), np.float32), pixels.edge
    x = np.tile(np.arange(edge) - edge // 2, edge**2)
    sheet = (1 + 10 * np.exp(-np.square(x / 0.8) / 2)).astype(np.float32)
    along = direction_to_rotation(np.array([[1.0, 0.0, 0.0]])).astype(np.float32)
    inside = pixels.within(pixels.orient_radius)
    value = np.empty((1, inside), np.float32)
    gather(along, pixels.q[:inside].astype(np.float32), np.log(sheet), edge, value)

    def shortfall(speckle):
        exposure = ExposureTable(pixels, brightness, speckle)
        table = exhaust(exposure.totals(np.log(sheet), edge, pixels.orient_radius, 1, of_logarithm=True))
        return 1 - tabulated(exposure.fine, exposure.fine.table(table), along)[0] / np.exp(value).sum()

    assert shortfall(np.inf) > 0.2
    assert abs(shortfall(4.0)) < 0.08


def test_where_the_mask_has_no_ring_symmetry_turning_the_frame_changes_the_total(lopsided):
    # half a turn about the beam brings other speckles before the missing quadrant
    poses = random_rotations(50, np.random.default_rng(1))
    quarter = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    exposure = ExposureTable(lopsided.pixels, lopsided.brightness)
    table = exhaust(exposure.totals(np.log(lopsided.ratio), lopsided.pixels.edge, 12.0, 1, of_logarithm=True))
    change = tabulated(exposure, table, (poses @ quarter).astype(np.float32)) - tabulated(
        exposure, table, poses.astype(np.float32)
    )
    true = (lopsided.as_scored(poses @ quarter) - lopsided.as_scored(poses))[:, : lopsided.pixels.within(12.0)].sum(1)
    assert np.abs(true).max() > 10
    assert np.corrcoef(change, true)[0, 1] > 0.99


@pytest.mark.parametrize("radius", [9.0, 17.0])
def test_what_look_ups_expect_of_poses_is_what_their_totals_say(radius, poses):
    # laid on voxels it is the sum of the poses' totals, for any V, in-plane harmonics included
    detector = lopsided_detector()
    case = bench(detector.with_mask(np.where(detector.mask == 1, 2, 0)))  # all usable pixels orient
    edge, rng = case.pixels.edge, np.random.default_rng(2)
    exposure = ExposureTable(case.pixels, case.brightness)
    assert exposure.harmonics >= 4
    log_grid = rng.normal(0, 0.5, edge**3).astype(np.float32)
    table = exhaust(exposure.totals(log_grid, edge, radius, 1, of_logarithm=True))
    amplitude, weight = exposure.amplitudes(), rng.random(len(poses))
    exposure.deposit(poses, weight, amplitude)
    laid, again = (exhaust(exposure.look_ups(amplitude, radius, log_grid, edge, threads)) for threads in (1, 2))
    assert laid.sum(dtype=np.float64) == pytest.approx(weight @ tabulated(exposure, table, poses), rel=1e-4)
    np.testing.assert_array_equal(laid, again)


@pytest.mark.parametrize("radius", [9.0, 17.0])
def test_spread_is_the_adjoint_of_totals(radius, poses):
    # ⟨totals(V), poses⟩ = ⟨V, spread(poses)⟩ for any V, in-plane harmonics included
    detector = lopsided_detector()
    case = bench(detector.with_mask(np.where(detector.mask == 1, 2, 0)))  # all usable pixels orient
    edge, rng = case.pixels.edge, np.random.default_rng(2)
    exposure = ExposureTable(case.pixels, case.brightness)
    assert exposure.harmonics >= 4
    grid = rng.normal(size=edge**3).astype(np.float32)
    table = exhaust(exposure.totals(grid, edge, radius, 1))
    for half in (0, 1):
        amplitudes = [exposure.amplitudes(), exposure.amplitudes()]
        weight = rng.random(len(poses))
        exposure.deposit(poses, weight, amplitudes[half])
        laid = exhaust(exposure.spread(amplitudes, radius, edge, 1))
        assert np.dot(laid[half].astype(np.float64), grid) == pytest.approx(
            weight @ tabulated(exposure, table, poses), rel=1e-4, abs=1e-3
        )
        assert not laid[1 - half].any()


def test_exposure_is_conserved_and_equal_for_any_number_of_threads(lopsided, poses):
    exposure = ExposureTable(lopsided.pixels, lopsided.brightness)
    amplitudes = [exposure.amplitudes(), exposure.amplitudes()]
    exposure.deposit(poses, np.full(len(poses), 0.5), amplitudes[0])
    exposure.deposit(poses, np.full(len(poses), 2.0), amplitudes[1])
    one, two = (exhaust(exposure.spread(amplitudes, np.inf, lopsided.pixels.edge, t)) for t in (1, 2))
    for half, weight in enumerate((0.5, 2.0)):
        np.testing.assert_array_equal(one[half], two[half])
        expected = weight * len(poses) * lopsided.brightness.sum()  # merge-only pixels too
        assert one[half].sum(dtype=np.float64) == pytest.approx(expected, rel=5e-3)


def test_merging_at_the_true_poses_gives_the_true_particle():
    case = bench(square_detector((32, 32), 1e-3, 0.2, None, stop_radius_px=2.5))
    pixels, edge = case.pixels, case.pixels.edge
    fluence = np.random.default_rng(3).gamma(4.0, 0.25, 2000)
    photons, rotation = case.frames(2000, seed=4, fluence=fluence)
    exposure = ExposureTable(pixels, case.brightness)
    evidence = Evidence(pixels, exposure, np.inf, 1)
    evidence.add(photons, np.arange(2000), rotation.astype(np.float32), np.ones(2000), fluence)
    laid, exposed = exhaust(evidence.volumes())
    counts = np.bincount(photons.pixel, photons.count, len(pixels.rho))
    field = VoxelField(pixels, RadialProfile(pixels, counts, 2000), np.random.default_rng(0))
    list(field.update(laid, exposed))
    assert sum(p.sum(dtype=np.float64) for p in laid) == pytest.approx(photons.count.sum(), rel=1e-4)
    axis = np.arange(edge) - edge // 2
    radius = np.sqrt((axis**2)[:, None, None] + (axis**2)[:, None] + axis**2).ravel()
    for shell in (5, 8, 11, 14):
        here = np.abs(radius - shell) < 0.5
        assert np.corrcoef(field.ratio[here], case.ratio[here])[0, 1] > 0.93
        assert field.ratio[here].mean() == pytest.approx(case.ratio[here].mean(), rel=0.05)
    # the halves are made of different frames: equal in what is true, different in noise
    odd, even = (field.estimate(p, e) for p, e in zip(laid, exposed, strict=True))
    here = np.abs(radius - 8) < 0.5
    assert 0.8 < np.corrcoef(odd[here], even[here])[0, 1] < 0.9999
