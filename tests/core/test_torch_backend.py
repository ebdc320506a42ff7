"""Whatever runs on a torch device does what the compiled kernels do: on a GPU if there is one, else on torch's CPU."""

import numpy as np
import pytest
import torch
from conftest import bench, exhaust, lopsided_detector

from napari_xrai.core import bootstrap, kernels, starts, torch_kernels
from napari_xrai.core.backend import COMPILED
from napari_xrai.core.band_limit import filtered_ratio
from napari_xrai.core.detector import square_detector
from napari_xrai.core.encoder import PolarImage, PoseEncoder, expected_ratio, loss_and_winners, propose
from napari_xrai.core.frames import HC_EV_A, Frames
from napari_xrai.core.particle import builtin_particle
from napari_xrai.core.pixels import SparsePhotons
from napari_xrai.core.reconstruction import Reconstruction
from napari_xrai.core.reconstruction_settings import ReconstructionSettings
from napari_xrai.core.rotations import align_poses, exp_map, geodesic_angle, quaternion_to_matrix, random_rotations
from napari_xrai.core.search import PolarSearch
from napari_xrai.core.simulate import Preset, simulate
from napari_xrai.core.torch_backend import CACHE_SIZED, Fill, backend_of, torch_backend

DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
TORCH = torch_backend(DEVICE)
SMALL = torch_backend(DEVICE, Fill(50, 7, 100_000, 3000))
"""So little at a time that every loop over parts goes round more than once."""

RADIUS, N = 12.0, 40
SHAPES = [float("inf"), 4.0, 0.0]


def poses(*shape, seed=0):
    return random_rotations(int(np.prod(shape)), np.random.default_rng(seed)).reshape(*shape, 3, 3).astype(np.float32)


@pytest.fixture(scope="module", params=["even", "uneven"])
def case(request):
    """A mask without ring symmetry, in-plane harmonics matter; with a streak of background or without."""
    known = bench(lopsided_detector(28))
    return known if request.param == "even" else known.under(known.streak(200))


@pytest.fixture(scope="module")
def lit(case):
    """Frames of unequal brightness, one of them without a photon, and their poses."""
    fluence = np.random.default_rng(3).gamma(2.0, 0.5, N)
    fluence[5] = 0
    return case.frames(N, seed=2, photons=300, fluence=fluence)


def exposures(case, backend):
    """Tables of the particle's light as it counts, and of a background's, where there is one."""
    pixels, background = case.pixels, case.pixels.background
    light = background and backend.exposure_table(pixels, background.light * background.share)
    return backend.exposure_table(pixels, case.brightness * pixels.share), light


def likelihoods(case, shape, backend, threads=1):
    exposure, light = exposures(case, backend)
    log_grid, edge = np.log(case.ratio), case.pixels.edge
    table = exhaust(exposure.totals(log_grid, edge, RADIUS, threads, of_logarithm=True))
    added = light and light.fine.table(exhaust(light.totals(log_grid, edge, RADIUS, threads)))
    brightness = case.brightness * case.pixels.share
    return backend.likelihood(case.pixels, brightness, exposure, log_grid, table, RADIUS, shape, threads, added)


# -------------------------------------------------------------------------------------------------- volumes


@pytest.mark.parametrize("backend", [TORCH, SMALL])
def test_a_volume_is_read_and_written_as_by_the_compiled_kernels(case, backend):
    point, edge, rotation = case.pixels.q[:200], case.pixels.edge, poses(9)
    read = backend.gather(rotation, point, case.ratio, edge, 1)
    torch.testing.assert_close(read.cpu(), COMPILED.gather(rotation, point, case.ratio, edge, 1), rtol=1e-4, atol=1e-4)
    value = np.random.default_rng(0).random((9, 200)).astype(np.float32)
    written = backend.scatter(rotation, point, value, edge)
    np.testing.assert_allclose(written, COMPILED.scatter(rotation, point, value, edge), rtol=1e-3, atol=1e-4)
    assert written.sum() == pytest.approx(value.sum(), rel=1e-5)


def test_cell_coefficients_give_the_corners_of_every_cell():
    grid = torch.from_numpy(np.random.default_rng(0).random((5, 5, 5)))
    c = torch_kernels.cell_coefficients(grid.flatten(), 5).view(5, 5, 5, 8)[1, 2, 3]
    for z, y, x in torch_kernels.CORNERS:
        monomial = torch.tensor([1, x, y, x * y, z, x * z, y * z, x * y * z], dtype=grid.dtype)
        assert float(c @ monomial) == pytest.approx(float(grid[1 + z, 2 + y, 3 + x]))


@pytest.mark.parametrize("edge", [21, 24])
def test_the_band_filter_is_that_of_the_cpu(edge):
    rng = np.random.default_rng(0)
    exposure = rng.gamma(1.0, 3.0, (edge,) * 3).astype(np.float32)
    photons = rng.poisson(exposure).astype(np.float32)
    there = TORCH.band_filter(photons, exposure, 0.8, 0.2)
    np.testing.assert_allclose(there, filtered_ratio(photons, exposure, 0.8, 0.2), rtol=1e-3, atol=1e-4)
    base = rng.gamma(4.0, 0.25, (edge,) * 3).astype(np.float32)
    there, here = (f(photons, exposure, 0.8, 0.2, base) for f in (TORCH.band_filter, filtered_ratio))
    np.testing.assert_allclose(there, here, rtol=1e-3, atol=1e-4)


# -------------------------------------------------------------------------------------------------- directions


@pytest.mark.parametrize("detector", [lopsided_detector(28), square_detector((24, 24), 1e-3, 0.2, None)])
@pytest.mark.parametrize("backend", [TORCH, SMALL])
def test_expected_photons_are_tabulated_interpolated_and_spread_alike(detector, backend):
    case = bench(detector)
    pixels, edge, rotation = case.pixels, case.pixels.edge, poses(60, seed=4)
    here, there = (b.exposure_table(pixels, case.brightness) for b in (COMPILED, backend))
    tables = [exhaust(table.totals(np.log(case.ratio), edge, RADIUS, 1, of_logarithm=True)) for table in (here, there)]
    np.testing.assert_allclose(tables[1], tables[0], rtol=1e-4, atol=1e-4 * tables[0].max())
    totals = np.empty(60)
    kernels.expected_totals(rotation, tables[0], here.rotation, here.m, totals)
    by_torch = torch_kernels.expected_total(
        torch.from_numpy(rotation).to(DEVICE), torch.from_numpy(tables[0]).to(DEVICE), there.directions
    ).cpu().numpy()  # fmt: skip
    np.testing.assert_allclose(by_torch, totals, rtol=1e-5)
    amplitude = [here.amplitudes() for _ in range(2)]
    for half in range(2):
        here.deposit(rotation[half::2], np.linspace(0.5, 2, 30), amplitude[half])
    for one, other in zip(*(exhaust(table.spread(amplitude, RADIUS, edge, 1)) for table in (here, there)), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-5 * np.abs(one).max())
    one, other = (exhaust(table.look_ups(amplitude[0], RADIUS, np.log(case.ratio), edge, 1)) for table in (here, there))
    np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-5 * np.abs(one).max())


def test_directions_on_edges_and_corners_of_the_cube_lie_between_the_same_nodes(case):
    here = COMPILED.exposure_table(case.pixels, case.brightness)
    there = TORCH.exposure_table(case.pixels, case.brightness)
    table = np.random.default_rng(0).random((len(here.rotation), 1 + 2 * here.harmonics)).astype(np.float32)
    total = np.empty(len(here.rotation))
    kernels.expected_totals(here.rotation, table, here.rotation, here.m, total)  # the nodes themselves: all limits
    found = torch_kernels.expected_total(
        there.directions.rotation, torch.from_numpy(table).to(DEVICE), there.directions
    )
    # two faces share the nodes of an edge: rounding may choose either, and a random table differs between them
    same = np.isclose(found.cpu().numpy(), total, rtol=1e-4, atol=1e-4)
    inner = np.zeros((6, here.m, here.m), bool)
    inner[:, 1:-1, 1:-1] = True
    assert same[inner.ravel()].all() and same.mean() > 0.9


# -------------------------------------------------------------------------------------------------- likelihood


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backend", [TORCH, SMALL])
def test_poses_are_ranked_scored_and_expected_alike(case, lit, shape, backend):
    photons, _ = lit
    here, there = (likelihoods(case, shape, b) for b in (COMPILED, backend))
    candidate = poses(N, 6, seed=1)
    np.testing.assert_allclose(there.expected(candidate[:, 0]), here.expected(candidate[:, 0]), rtol=1e-4)
    np.testing.assert_allclose(there.score(photons, candidate), here.score(photons, candidate), rtol=1e-4, atol=2e-3)
    ranked, reference = there.rank(photons, candidate), here.rank(photons, candidate)
    # a photon on the border of two voxels may fall to either side
    close = np.isclose(ranked, reference, rtol=1e-4, atol=2e-3)
    assert close.mean() > 0.97 and np.abs(ranked - reference).max() < 5


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_and_fisher_matrices_are_those_of_the_compiled_kernel(case, lit, shape):
    photons, true = lit
    here, there = (likelihoods(case, shape, b) for b in (COMPILED, TORCH))
    (rows, part) = next(there._lit(photons, 1))
    pose = torch.from_numpy(true).to(DEVICE)[rows]
    value, gradient, fisher = (x.cpu() for x in torch_kernels.pose_slopes(pose, part, there.scored))
    for j, row in enumerate(rows.tolist()):
        g, h = np.zeros(3), np.zeros((3, 3))
        (_, frame) = here._frames(photons)[0]
        start, stop, total, *rest = frame
        score = kernels.pose_score(true[row], start[row], stop[row], total[row], *rest, g, h, True)
        assert float(value[j]) == pytest.approx(score, rel=1e-4, abs=2e-3)
        scale = np.sqrt(np.abs(h).max()) + 1
        np.testing.assert_allclose(gradient[j], g, rtol=1e-3, atol=1e-3 * scale)
        np.testing.assert_allclose(fisher[j], h, rtol=1e-3, atol=1e-3 * scale**2)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backend", [TORCH, SMALL])
def test_refinement_climbs_to_the_same_modes(case, lit, shape, backend):
    photons, true = lit
    here, there = (likelihoods(case, shape, b) for b in (COMPILED, backend))
    off = np.radians(4.0) * np.random.default_rng(5).normal(size=(N, 3, 3)) / np.sqrt(3)
    begin = (exp_map(off) @ true[:, None]).astype(np.float32)
    mode, fisher, value = there.refine(photons, begin)
    same, information, reached = here.refine(photons, begin)
    assert mode.dtype == np.float32 and fisher.dtype == value.dtype == np.float64
    np.testing.assert_allclose(mode @ mode.mT, np.broadcast_to(np.eye(3), mode.shape), atol=1e-5)
    # a rounding that turns a refused step into an accepted one sends a climb another way: one in twenty or so
    alike = geodesic_angle(mode, same) < np.radians(0.1)
    assert alike.mean() > 0.9
    np.testing.assert_allclose(value[alike], reached[alike], atol=0.1)
    scale = np.abs(information).max((2, 3), keepdims=True)
    assert (np.abs(fisher - information) < 0.02 * scale + 0.1)[alike].mean() > 0.98
    assert abs(value.mean() - reached.mean()) < 0.1


@pytest.mark.parametrize("backend", [TORCH, SMALL])
@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_samples_and_their_weights_are_the_same(case, lit, backend, beta):
    photons, true = lit
    here, there = (likelihoods(case, 4.0, b) for b in (COMPILED, backend))
    mode, fisher, _ = here.refine(photons, np.stack([true, poses(N, seed=8)], 1).astype(np.float32))
    noise = np.random.default_rng(1).normal(size=(N, 2, 3, 3))
    sample, weight = there.sample(photons, mode, fisher, beta, noise)
    same, reference = here.sample(photons, mode, fisher, beta, noise)
    np.testing.assert_allclose(sample, same, atol=1e-5)
    np.testing.assert_allclose(weight, reference, atol=5e-3)
    np.testing.assert_allclose(weight.sum(1), 1, rtol=1e-9)


# -------------------------------------------------------------------------------------------------- evidence, junk


@pytest.mark.parametrize("radius", [np.inf, 8.0])
@pytest.mark.parametrize("backend", [TORCH, SMALL])
def test_evidence_is_the_same_in_both_halves(case, lit, radius, backend):
    photons, true = lit
    row = np.repeat(np.arange(N), 2)
    rotation = np.repeat(true, 2, 0).astype(np.float32)
    rng = np.random.default_rng(0)
    weight, fluence = rng.random(2 * N), rng.random(2 * N) + 0.5
    found, flattening = [], []
    for made in (COMPILED, backend):
        exposure, light = exposures(case, made)
        evidence = made.evidence(case.pixels, exposure, radius, 1, light)
        for batch in (photons.take(np.arange(N)), photons.take(np.arange(N))):  # what was laid before stays
            evidence.add(batch, row, rotation, weight, fluence)
        found.append(exhaust(evidence.volumes()))
        flattening.append(exhaust(evidence.flattening(np.log(case.ratio), found[0][1])))
    np.testing.assert_allclose(*flattening, rtol=1e-3)
    for one, other in zip(*found, strict=True):
        for half in range(2):
            np.testing.assert_allclose(other[half], one[half], rtol=1e-3, atol=1e-5 * one[half].max())
    assert not np.allclose(found[0][0][0], found[0][0][1])


@pytest.mark.parametrize("backend", [TORCH, SMALL])
def test_the_gate_scores_frames_alike(case, lit, backend):
    photons, true = lit
    frames = photons.take(np.flatnonzero(photons.totals(case.pixels.n_orient) > 0))
    pose = true[np.isin(photons.index, frames.index)].astype(np.float32)
    law = ([0.0, 0.0], [1.0, 1.0])
    here, there = (made.junk_gate(case.pixels, case.brightness, 4.0, law) for made in (COMPILED, backend))
    assert (here.junk(frames, pose, case.ratio) == there.junk(frames, pose, case.ratio)).all()
    np.testing.assert_allclose(there.scores[0], here.scores[0], rtol=1e-3, atol=2e-3)
    np.testing.assert_allclose(there.totals[0], here.totals[0])


def test_a_batch_goes_to_the_device_once_and_a_new_one_takes_its_place(lit):
    photons, _ = lit
    transfer = TORCH.junk_gate.args[0]
    there = transfer.frames(photons)
    assert transfer.frames(photons) is there
    other = photons.take(np.arange(3))
    assert transfer.frames(other) is not there
    np.testing.assert_array_equal(transfer.frames(other).dense(90).cpu().numpy(), other.dense(90))
    nothing = SparsePhotons(np.zeros(3, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32), np.arange(2))
    np.testing.assert_array_equal(transfer.frames(nothing).dense(9).cpu(), np.zeros((2, 9)))


# -------------------------------------------------------------------------------------------------- search, whole


@pytest.fixture(scope="module")
def particle():
    """400 bright frames of the demo particle: enough to find it in seconds."""
    preset = Preset((28, 28), 2e-3, 0.3, HC_EV_A / 4.0, stop_radius_px=2, fluence_shape=4)
    detector, truth, batches = simulate(builtin_particle("demo"), preset, n_frames=400, photons=3000, seed=1)
    return detector, Frames.concatenate(list(batches)), truth.rotation


def test_a_whole_reconstruction_converges_as_on_the_cpu(particle, monkeypatch):
    detector, frames, true = particle
    monkeypatch.setattr(bootstrap, "BATCH", 100)
    monkeypatch.setattr(starts, "MOST_STARTS", 1)
    error, likelihood = [], []
    for backend in (COMPILED, TORCH):
        engine = Reconstruction(detector, ReconstructionSettings(seed=4, passes=3), len(frames))
        engine.backend = backend
        for _ in engine.run(lambda size, start: (frames.take(slice(i, i + size)) for i in range(start, 400, size))):
            pass
        snapshot = engine.snapshot(all_poses=True)
        found = quaternion_to_matrix(snapshot.poses.quaternion)
        error.append(np.median(align_poses(found, true[snapshot.poses.frame])[1]))
        likelihood.append(snapshot.history["log_likelihood"])
    assert backend.name in snapshot.facts["batch"]
    assert max(error) < 4 and abs(error[1] - error[0]) < 0.5
    np.testing.assert_allclose(likelihood[1], likelihood[0], rtol=0.01)


# -------------------------------------------------------------------------------------------------- devices


@pytest.mark.parametrize("backend", [TORCH, SMALL])
def test_the_search_names_the_same_poses(case, lit, backend):
    photons, _ = lit
    named = []
    for made in (COMPILED, backend):
        search = PolarSearch(case.pixels, case.brightness, 8.0, 0.6, backend=made)
        search.set_field(case.ratio, case.pixels.edge, 4.0, np.random.default_rng(0), 0.02)
        named.append(search.best(search.dense(photons), 3))
    assert (geodesic_angle(*named) < 1e-3).mean() > 0.98


@pytest.fixture
def valueless(monkeypatch):
    """A backend on torch's meta device: shapes without values, and tensors of other devices refused as by a GPU."""
    from torch.fx.experimental import _config

    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: torch.zeros(tensor.shape, dtype=tensor.dtype))
    with _config.patch(meta_nonzero_assume_all_nonzero=True):
        yield torch_backend(torch.device("meta"), Fill(50, 7, 100_000, 30_000))


def test_likelihood_evidence_and_gate_keep_to_their_device(case, lit, valueless):
    photons, _ = lit
    pixels, pose = case.pixels, poses(N, 2)
    likelihood = likelihoods(case, 4.0, valueless)
    mode, fisher, _ = likelihood.refine(photons, pose)
    assert likelihood.rank(photons, pose).shape == (N, 2)
    assert likelihood.sample(photons, mode, fisher, 1.0, np.zeros((N, 2, 3, 3)))[1].shape == (N, 6)
    exposure, light = exposures(case, valueless)
    evidence = valueless.evidence(pixels, exposure, np.inf, 1, light)
    evidence.add(photons, np.arange(N), pose[:, 0], np.ones(N), np.ones(N))
    assert exhaust(evidence.volumes())[0][0].shape == (pixels.edge**3,)
    assert exhaust(exposure.spread([exposure.amplitudes() + 1] * 2, RADIUS, pixels.edge, 1))[0].shape == (
        pixels.edge**3,
    )
    gate = valueless.junk_gate(pixels, case.brightness, 4.0, None)
    gate.junk(photons, pose[:, 0], case.ratio)
    assert gate.scores[0].shape == (N, 2)


def test_search_encoder_and_filter_keep_to_their_device(case, lit, valueless):
    photons, _ = lit
    edge = case.pixels.edge
    search = PolarSearch(case.pixels, case.brightness, 8.0, 0.6, backend=valueless)
    search.set_field(case.ratio, edge, 4.0, np.random.default_rng(0), 0.02)
    frames = search.dense(photons)
    assert search.best(frames, 3).shape == (N, 3, 3, 3)
    maps = search.back_project(search.log_likelihood(frames[:5]), frames[:5])
    assert valueless.scatter(search.rotation, search.point, maps[0], edge).shape == (edge**3,)
    assert valueless.band_filter(*np.ones((2, 9, 9, 9), np.float32), 0.8, 0.2).shape == (9, 9, 9)
    encoder = PoseEncoder(PolarImage(case.pixels, case.brightness, 10.0, 4.0, device=valueless.device))
    assert propose(encoder, photons)[0].shape == (N, 8, 3, 3)
    pose = torch.from_numpy(poses(N)).to("meta")
    dreams = encoder.polar.of_bins(expected_ratio(pose, encoder.polar.place, case.ratio, edge))
    assert loss_and_winners(encoder, pose, dreams)[0].device.type == "meta"


def test_auto_is_the_cpu_where_there_is_no_gpu_and_others_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert backend_of("cpu") is COMPILED and backend_of("auto") is COMPILED
    with pytest.raises(ValueError, match=r"no cuda:1 here, torch sees no GPU: leave out --device"):
        backend_of("cuda:1")


def test_auto_is_the_first_gpu_where_there_are_some(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device.index}")
    assert backend_of("auto").name == "card 0" and backend_of("cuda:1").device == torch.device("cuda", 1)
    assert backend_of("cuda").batch_size > COMPILED.batch_size == CACHE_SIZED.batch_size
    assert backend_of("cpu") is COMPILED
    with pytest.raises(ValueError, match=r"no cuda:2 here, torch sees 2 GPUs, cuda:0 to cuda:1"):
        backend_of("cuda:2")
