"""Fields held by networks: positive, symmetric, true to their evidence, warm, saved, and the same again."""

import numpy as np
import pytest
import torch

from napari_xrai.core import starts
from napari_xrai.core.field import RadialProfile, VoxelField, grid_radius
from napari_xrai.core.fields import make_field
from napari_xrai.core.frames import HC_EV_A, Frames
from napari_xrai.core.neural_field import NeuralField
from napari_xrai.core.particle import builtin_particle
from napari_xrai.core.reconstruction import Reconstruction
from napari_xrai.core.reconstruction_settings import ReconstructionSettings
from napari_xrai.core.rotations import align_poses, quaternion_to_matrix
from napari_xrai.core.simulate import Preset, simulate

SPECKLE = 4.0
KINDS = pytest.mark.parametrize("kind", ["siren", "hash"])


@pytest.fixture(scope="module")
def profile(round_bench):
    return RadialProfile(round_bench.pixels, 1000 * round_bench.brightness, 1000)


@pytest.fixture
def make(round_bench, profile):
    def field(kind, seed=0):
        return make_field(kind, round_bench.pixels, profile, SPECKLE, np.random.default_rng(seed))

    return field


def evidence_of(bench, photons, seed=0, reach=13.0):
    """Two halves of Poisson photons, `photons` expected in a voxel of ratio 1 and its Friedel mate, within `reach`."""
    rng = np.random.default_rng(seed)
    exposure = np.where(grid_radius(bench.pixels.edge) <= reach, np.float32(photons / 4), np.float32(0))
    return [rng.poisson(exposure * bench.ratio).astype(np.float32) for _ in range(2)], [exposure, exposure]


def explain(field, evidence):
    return sum(1 for _ in field.update(*evidence))


def correlation(field, bench, reach=13.0):
    seen = (grid_radius(field.edge) <= reach) & (grid_radius(field.edge) > 1)
    return float(np.corrcoef(field.ratio[seen], bench.ratio[seen])[0, 1])


@KINDS
def test_the_networks_are_even_and_the_ratio_positive(make, kind):
    field = make(kind)
    with torch.no_grad():
        for weight in field.network.parameters():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))  # whatever they learn
        q = 3 * torch.randn(2, 500, 3, generator=torch.Generator().manual_seed(2))
        value, mate = field._ratio(q), field._ratio(-q)
    torch.testing.assert_close(value, mate, rtol=1e-3, atol=1e-4)
    assert value.std() > 0.1 and (value > 0).all()


@KINDS
def test_poisson_evidence_of_a_known_particle_is_explained(round_bench, make, kind):
    field = make(kind)
    steps = explain(field, evidence_of(round_bench, 30))
    assert correlation(field, round_bench) > 0.98
    assert steps > 50  # one can stop on the way
    volume = field.volume()
    np.testing.assert_array_equal(volume, volume[::-1, ::-1, ::-1])
    assert (field.ratio > 0).all() and np.isfinite(field.log_grid()).all()
    seen = field.exposure > 0
    assert not volume.ravel()[~seen].any() and not field.weight().ravel()[~seen].any()
    np.testing.assert_array_equal(
        field.ratio[grid_radius(field.edge) > 13.1], 1
    )  # the radial mean, where nobody looked


def test_where_photons_are_few_a_network_of_the_speckles_size_beats_voxels(round_bench, make):
    faint = evidence_of(round_bench, 1)
    siren, voxel = make("siren"), make("voxel")
    explain(siren, faint)
    explain(voxel, faint)
    assert isinstance(voxel, VoxelField)
    assert correlation(siren, round_bench) > correlation(voxel, round_bench) + 0.05


@KINDS
def test_a_field_goes_on_from_what_it_knows(round_bench, make, kind):
    warm = make(kind)
    first = explain(warm, evidence_of(round_bench, 30))
    good = correlation(warm, round_bench)
    assert explain(warm, evidence_of(round_bench, 30, seed=1)) < first
    assert correlation(warm, round_bench) > good - 0.002


def test_networks_that_have_learnt_do_not_learn_noise(round_bench, make):
    field, faint = make("siren"), evidence_of(round_bench, 1)
    explain(field, faint)
    good = correlation(field, round_bench)
    for _ in range(6):
        explain(field, faint)
    assert correlation(field, round_bench) > good - 0.02


@KINDS
def test_a_state_is_the_whole_field(round_bench, make, kind):
    field, other = make(kind), make(kind, seed=5)
    explain(field, evidence_of(round_bench, 30))
    other.restore({name: array.copy() for name, array in field.state().items()})
    np.testing.assert_array_equal(other.volume(), field.volume())
    for each in (field, other):
        explain(each, evidence_of(round_bench, 30, seed=2))
    np.testing.assert_array_equal(other.ratio, field.ratio)


def test_a_state_of_another_kind_gives_its_grid(round_bench, make):
    voxel, siren = make("voxel"), make("siren")
    explain(voxel, evidence_of(round_bench, 30))
    siren.restore(voxel.state())
    np.testing.assert_array_equal(siren.ratio, voxel.ratio)
    explain(siren, evidence_of(round_bench, 30))
    assert correlation(siren, round_bench) > 0.98


@KINDS
def test_equal_seeds_give_equal_fields_on_the_cpu(round_bench, make, kind):
    one, same, other = make(kind), make(kind), make(kind, seed=1)
    evidence = evidence_of(round_bench, 30)
    for field in (one, same, other):
        steps = field.update(*evidence)
        for _ in range(60):
            next(steps)
    weights, again, differ = (f.state() for f in (one, same, other))
    for name, array in weights.items():
        np.testing.assert_array_equal(again[name], array)
    assert any(not np.array_equal(differ[name], array) for name, array in weights.items())


@KINDS
def test_no_evidence_leaves_the_field_as_it_is(make, kind):
    field = make(kind)
    before = field.ratio.copy()
    nothing = [np.zeros_like(before)] * 2
    explain(field, (nothing, nothing))
    np.testing.assert_array_equal(field.ratio, before)
    assert isinstance(field, NeuralField) and not field.volume().any()


def test_a_whole_run_on_a_network_is_right_saved_and_gone_on_with(monkeypatch):
    preset = Preset((32, 32), 1.8e-3, 0.3, HC_EV_A / 4.0, stop_radius_px=2)
    detector, truth, batches = simulate(builtin_particle("demo"), preset, n_frames=600, photons=2000, seed=1)
    frames = Frames.concatenate(list(batches))
    monkeypatch.setattr(starts, "MOST_STARTS", 1)

    def read(size, start=0):
        return (frames.take(slice(first, first + size)) for first in range(start, len(frames), size))

    settings = ReconstructionSettings(seed=1, field="siren", passes=4)
    engine = Reconstruction(detector, settings, len(frames))
    for _ in engine.run(read):
        if engine.passes_done == 3:
            break
    assert isinstance(engine.field, NeuralField) and engine.field.updates == 3
    again = Reconstruction(detector, settings, len(frames))
    again.restore(*engine.state())
    for _ in again.run(read):
        pass
    assert isinstance(again.field, NeuralField) and again.field.updates == 4
    found = again.snapshot(all_poses=True).poses
    _, error = align_poses(quaternion_to_matrix(found.quaternion), truth.rotation[found.frame])
    assert np.median(error) < 3
