"""The digital twin against direct sums and its own promises."""

from dataclasses import replace

import gemmi
import numpy as np
import pytest
from scipy.ndimage import map_coordinates, spline_filter
from scipy.spatial.transform import Rotation

from napari_xrai.core.detector import polarization_factor
from napari_xrai.core.frames import BAD, Frames
from napari_xrai.core.particle import (
    BUILTIN_PARTICLES,
    Particle,
    Scatterers,
    amplitude_grid,
    builtin_particle,
    gaussian_form,
)
from napari_xrai.core.simulate import PRESETS, AmplitudeSlices, simulate


def direct_intensity(particle, q):
    """|F|² by the defining sum over scatterers, nothing shared with the code under test."""
    total = np.zeros(len(q), complex)
    for group in particle.groups:
        form = group.form(q[:, 0], q[:, 1], q[:, 2])
        for position, weight in zip(group.position_A, group.weight, strict=True):
            total += form * weight * np.exp(2j * np.pi * (q @ position))
    return np.abs(total) ** 2


def atoms(positions, elements, names):
    groups = []
    for code, name in enumerate(names):
        own = positions[elements == code]
        table = gemmi.Element(str(name)).it92
        form = gaussian_form(np.array(table.a), np.array(table.b), table.c)
        groups.append(Scatterers(own, np.ones(len(own)), form))
    return Particle("atoms", tuple(groups), 2 * np.linalg.norm(positions, axis=1).max() + 3)


def test_atoms_agree_with_a_direct_sum_to_1e4():
    rng = np.random.default_rng(1)
    particle = atoms(rng.uniform(-60, 60, (300, 3)), rng.integers(0, 3, 300), ["C", "N", "Cu"])
    spacing, n = 1 / 500, 49
    grid = np.abs(amplitude_grid(particle, spacing, n)) ** 2
    index = np.concatenate([rng.integers(0, n, (500, 3)), [[0, 0, 0], [n - 1, 0, n // 2], [n // 2] * 3]])
    exact = direct_intensity(particle, (index[:, ::-1] - n // 2) * spacing)
    np.testing.assert_allclose(grid[tuple(index.T)], exact, rtol=1e-4)


def test_position_off_centre_and_anisotropic_form_keep_their_axes():
    form = builtin_particle("ellipsoid").groups[0].form
    particle = Particle("off", (Scatterers(np.array([[30.0, -10.0, 55.0]]), np.ones(1), form),), 400.0)
    rng = np.random.default_rng(0)
    index = rng.integers(0, 31, (200, 3))
    q = (index[:, ::-1] - 15) / 900
    got = amplitude_grid(particle, 1 / 900, 31)[tuple(index.T)]
    exact = form(*q.T) * np.exp(2j * np.pi * q @ [30.0, -10.0, 55.0])
    np.testing.assert_allclose(got, exact, atol=1e-5 * abs(exact).max())


@pytest.mark.parametrize("name", BUILTIN_PARTICLES)
def test_slices_agree_with_a_direct_sum(name):
    particle = builtin_particle(name)
    rng = np.random.default_rng(2)
    direction = rng.normal(size=(4000, 3))
    q = direction / np.linalg.norm(direction, axis=1)[:, None] * rng.uniform(0, 8 / particle.diameter_A, 4000)[:, None]
    rotation = Rotation.from_quat(rng.normal(size=4)).as_matrix()
    got = AmplitudeSlices(particle, 8 / particle.diameter_A).intensity(rotation[None], q)[0]
    exact = direct_intensity(particle, q @ rotation.T)
    for low in range(8):
        shell = np.floor(np.linalg.norm(q, axis=1) * particle.diameter_A) == low
        assert np.sqrt(np.mean((got - exact)[shell] ** 2)) < 1e-3 * exact[shell].mean()


def test_forward_scattering_counts_the_electrons():
    particle = builtin_particle("cube")
    assert amplitude_grid(particle, 1e-3, 3)[1, 1, 1] == pytest.approx(0.43 * 170**3, rel=1e-6)
    for name in BUILTIN_PARTICLES:
        _, truth, _ = simulate(builtin_particle(name), PRESETS["demo"], n_frames=1)
        electrons = truth.density.data.sum(dtype=float) * truth.density.voxel_size**3
        forward = amplitude_grid(builtin_particle(name), 1e-3, 3)[1, 1, 1].real
        assert electrons == pytest.approx(forward, rel=1e-4)


def test_truth_intensity_is_the_transform_of_its_density():
    _, truth, _ = simulate(builtin_particle("demo"), PRESETS["demo"], n_frames=1)
    again = np.abs(np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(truth.density.data.astype(float))))) ** 2
    ratio = truth.intensity.data / truth.intensity.data.max()
    np.testing.assert_allclose(again / again.max(), ratio, atol=1e-6)
    n = truth.intensity.data.shape[0]
    assert truth.density.voxel_size == pytest.approx(1 / (n * truth.intensity.voxel_size))


def test_cube_group_leaves_the_cube_and_no_more():
    cube = builtin_particle("cube")
    q = np.random.default_rng(0).normal(size=(50, 3)) / 100
    assert len(cube.point_group) == 24
    for operation in cube.point_group:
        assert np.linalg.det(operation) == pytest.approx(1)
        np.testing.assert_allclose(direct_intensity(cube, q @ operation.T), direct_intensity(cube, q))
    demo = builtin_particle("demo")
    turned = Rotation.from_euler("z", 180, degrees=True).as_matrix()
    q = q / np.linalg.norm(q, axis=1)[:, None] / 60
    there, here = direct_intensity(demo, q @ turned.T), direct_intensity(demo, q)
    assert np.corrcoef(there, here)[0, 1] < 0.9


def test_mean_photons_is_what_was_asked_for():
    _, truth, frames = simulate(builtin_particle("demo"), PRESETS["demo"], n_frames=1500, photons=200, seed=3)
    photons = np.concatenate([batch.photons for batch in frames])
    assert photons.mean() / truth.fluence.mean() == pytest.approx(200, rel=0.02)


def test_frames_are_poisson_about_the_truth():
    detector, truth, frames = simulate(builtin_particle("demo"), PRESETS["demo"], n_frames=300, seed=1)
    counts = Frames.concatenate(list(frames)).dense()
    good = detector.mask != BAD
    voxel = truth.intensity.voxel_size
    centre = truth.intensity.data.shape[0] // 2
    spline = spline_filter(truth.intensity.data)
    expected = np.array([
        f * map_coordinates(spline, (detector.q[good] @ r.T)[:, ::-1].T / voxel + centre, order=3, prefilter=False)
        for f, r in zip(truth.fluence, truth.rotation.astype(float), strict=True)
    ]) * detector.response[good]  # fmt: skip
    bright = expected > 0.05
    pull = (counts[:, good] - expected)[bright] / np.sqrt(expected[bright])
    assert abs(pull.mean()) < 5 / np.sqrt(pull.size)
    assert pull.var() == pytest.approx(1, abs=0.03)
    assert counts[:, ~good].sum() == 0


def test_fluence_is_gamma_with_mean_one_or_constant():
    _, truth, _ = simulate(builtin_particle("sphere"), replace(PRESETS["demo"], fluence_shape=2.0), n_frames=20_000)
    assert truth.fluence.mean() == pytest.approx(1, abs=0.02)
    assert truth.fluence.var() == pytest.approx(0.5, abs=0.03)
    _, truth, _ = simulate(builtin_particle("sphere"), PRESETS["dragonfly-64"], n_frames=10)
    assert (truth.fluence == 1).all()


def test_poses_are_uniform():
    _, truth, _ = simulate(builtin_particle("sphere"), PRESETS["demo"], n_frames=20_000)
    rotation = truth.rotation.astype(float)
    np.testing.assert_allclose(
        rotation @ rotation.transpose(0, 2, 1), np.broadcast_to(np.eye(3), (20_000, 3, 3)), atol=1e-6
    )
    # Haar measure: every entry has mean 0 and mean square 1/3; the angle has mean π/2 + 2/π
    np.testing.assert_allclose(rotation.mean(axis=0), 0, atol=0.02)
    np.testing.assert_allclose((rotation**2).mean(axis=0), 1 / 3, atol=0.02)
    angle = np.arccos(np.clip((np.trace(rotation, axis1=1, axis2=2) - 1) / 2, -1, 1))
    assert angle.mean() == pytest.approx(np.pi / 2 + 2 / np.pi, abs=0.03)


def test_physical_fluence_gives_thomson_photons():
    # far forward, one pixel sees fluence · r_e² · Z² · solid angle · polarisation
    preset = replace(PRESETS["xrai-50S-128"], shape=(3, 3), pixel_size_m=1e-4, fluence_shape=float("inf"))
    particle = builtin_particle("cube")
    detector, truth, _ = simulate(particle, preset, n_frames=1)
    electrons = 0.43 * 170**3
    per_area = preset.fluence_per_um2 * 1e12  # photons/m²
    expected = per_area * (2.8179403e-15) ** 2 * electrons**2 * (1e-4 / 0.2) ** 2
    centre = truth.intensity.data.shape[0] // 2
    assert truth.intensity.data[centre, centre, centre] == pytest.approx(expected, rel=1e-4)
    assert polarization_factor(np.array([0.0, 0.0, 1.0]), "x") == 1
    assert detector.response[4] == pytest.approx(1, rel=1e-4)


def test_equal_seeds_give_equal_frames_and_others_do_not():
    def run(seed):
        return Frames.concatenate(list(simulate(builtin_particle("demo"), PRESETS["demo"], n_frames=5, seed=seed)[2]))

    first, second, other = run(7), run(7), run(8)
    assert np.array_equal(first.pixel, second.pixel) and np.array_equal(first.count, second.count)
    assert not np.array_equal(first.dense(), other.dense())


def test_demo_is_well_sampled():
    preset, particle = PRESETS["demo"], builtin_particle("demo")
    assert 200 <= particle.diameter_A <= 300
    assert 1 / preset.pixel_invA / particle.diameter_A >= 3  # pixels per speckle
    edge = 31.5 * preset.pixel_invA
    assert 6.5 <= edge * particle.diameter_A <= 9


@pytest.mark.parametrize(("change", "word"), [({"n_frames": 0}, "frames"), ({"photons": -1.0}, "photons")])
def test_senseless_numbers_are_refused(change, word):
    with pytest.raises(ValueError, match=word):
        simulate(builtin_particle("demo"), PRESETS["demo"], **change)


def test_grids_beyond_memory_are_refused_before_they_are_made():
    huge = replace(builtin_particle("sphere"), diameter_A=20_000.0)
    with pytest.raises(ValueError, match="less resolution"):
        simulate(huge, PRESETS["demo"], n_frames=1)
