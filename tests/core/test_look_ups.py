"""Look-ups between voxels flatten speckles; what they are made in is steeper, so that photons and look-ups agree."""

from dataclasses import dataclass

import numpy as np
import pytest
from conftest import exhaust
from scipy.ndimage import gaussian_filter

from napari_xrai.core.detector import square_detector
from napari_xrai.core.evidence import Evidence
from napari_xrai.core.exposure import ExposureTable
from napari_xrai.core.field import DARKEST, RadialProfile, VoxelField
from napari_xrai.core.likelihood import PoseLikelihood
from napari_xrai.core.pixels import Pixels, SparsePhotons, pixels_of
from napari_xrai.core.rotations import random_rotations
from napari_xrai.core.symmetry import Orbit, point_group

FRAMES = 700


@dataclass
class Merged:
    """Frames without noise, merged at their true poses."""

    pixels: Pixels
    brightness: np.ndarray
    photons: SparsePhotons
    rotation: np.ndarray
    exposure: ExposureTable
    evidence: Evidence
    field: VoxelField

    def fitted(self, rounds: int) -> None:
        """Explain the evidence, and fit the look-ups again and again."""
        laid, exposed = exhaust(self.evidence.volumes())
        list(self.field.choose_band(laid, exposed, self.pixels.orient_radius))
        list(self.field.update(laid, exposed))
        for _ in range(rounds):
            flattening = exhaust(self.evidence.flattening(self.field.log_grid(), exposed))
            self.field.fit_look_ups(laid, exposed, flattening)

    def turned_deg(self) -> np.ndarray:
        """(N, 3) how far the likeliest poses are from the true ones, a rotation vector."""
        pixels, log_grid = self.pixels, self.field.log_grid()
        table = exhaust(self.exposure.totals(log_grid, pixels.edge, pixels.orient_radius, 1, of_logarithm=True))
        likelihood = PoseLikelihood(
            pixels, self.brightness, self.exposure, log_grid, table, pixels.orient_radius, float("inf"), 1
        )
        found = likelihood.refine(self.photons, self.rotation[:, None])[0][:, 0]
        turn = found.astype(np.float64) @ np.swapaxes(self.rotation, 1, 2)
        return np.degrees(np.stack([turn[:, 2, 1] - turn[:, 1, 2], turn[:, 0, 2] - turn[:, 2, 0],
                                    turn[:, 1, 0] - turn[:, 0, 1]], 1) / 2)  # fmt: skip


def intensity(point: np.ndarray) -> np.ndarray:
    """(…) of a few atoms, at any point (…, 3), voxels: a speckle is four or five of them wide."""
    atoms = np.random.default_rng(8).normal(size=(12, 3))
    atoms *= np.random.default_rng(9).random((12, 1)) ** (1 / 3) / 9 / np.linalg.norm(atoms, axis=1, keepdims=True)
    return np.square(np.abs(np.exp(2j * np.pi * point @ atoms.T).sum(-1)))


@pytest.fixture
def merged() -> Merged:
    pixels = pixels_of(square_detector((32, 32), 1e-3, 0.2, None, stop_radius_px=2.5))
    rotation = random_rotations(FRAMES, np.random.default_rng(5)).astype(np.float32)
    rate = intensity(np.einsum("nij,uj->nui", rotation, pixels.q)) * pixels.response
    n = len(pixels.q)
    photons = SparsePhotons(
        np.arange(FRAMES + 1, dtype=np.int64) * n, np.tile(np.arange(n, dtype=np.int32), FRAMES),
        rate.astype(np.float32).reshape(-1), np.arange(FRAMES),
    )  # fmt: skip
    profile = RadialProfile(pixels, rate.sum(0), FRAMES)
    brightness = (pixels.response * profile(np.linalg.norm(pixels.q, axis=1))).astype(np.float32)
    exposure = ExposureTable(pixels, brightness)
    evidence = Evidence(pixels, exposure, np.inf, 1)
    evidence.add(photons, np.arange(FRAMES), rotation, np.ones(FRAMES), np.ones(FRAMES))
    field = VoxelField(pixels, profile, np.random.default_rng(0), 0.4)
    return Merged(pixels, brightness, photons, rotation, exposure, evidence, field)


def speckles(edge: int) -> np.ndarray:
    """(edge, edge, edge) ln of a ratio of mean about 1."""
    axis = np.arange(edge) - edge // 2
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    return np.log(np.maximum(intensity(np.stack([x, y, z], -1)) / 12, DARKEST)).astype(np.float32)


def test_poses_found_under_a_merged_field_stay_where_they_were_merged(merged):
    merged.fitted(0)
    before = merged.turned_deg()
    merged.fitted(3)
    after = merged.turned_deg()
    assert np.median(np.linalg.norm(after, axis=1)) < 0.8 * np.median(np.linalg.norm(before, axis=1))


def test_photons_looked_up_are_those_laid_down(merged):
    def missed() -> float:
        even, odd = merged.evidence.amplitude
        expected = merged.evidence.exposure.look_ups(even + odd, np.inf, merged.field.log_grid(), merged.pixels.edge, 1)
        laid, found = merged.evidence.photons, exhaust(expected)
        total = laid[0] + laid[1]
        seen = total > 5
        return float(np.std((found - total)[seen] / total[seen]))

    merged.fitted(0)
    before = missed()
    merged.fitted(3)
    assert missed() < 0.9 * before


def test_a_field_that_is_the_same_everywhere_is_not_flattened(merged):
    _, exposed = exhaust(merged.evidence.volumes())
    flat = np.full_like(merged.field.ratio, np.log(0.7))
    seen = exposed[0] + exposed[1] > 5
    np.testing.assert_allclose(exhaust(merged.evidence.flattening(flat, exposed))[seen], 1, atol=5e-3)


def test_peaks_are_flattened_and_hollows_are_filled(merged):
    _, exposed = exhaust(merged.evidence.volumes())
    cube = (merged.field.edge,) * 3
    log_grid = speckles(merged.field.edge).reshape(-1)
    curved = gaussian_filter(log_grid.reshape(cube), 1).reshape(-1) - log_grid
    flattening = np.log(exhaust(merged.evidence.flattening(log_grid, exposed)))
    seen = exposed[0] + exposed[1] > 5
    assert np.corrcoef(curved[seen], flattening[seen])[0, 1] > 0.7


def test_under_a_point_group_equal_voxels_are_flattened_alike(merged):
    orbit = Orbit(point_group("C2"), merged.field.edge)
    cube = (merged.field.edge,) * 3
    once = speckles(merged.field.edge)
    log_grid = (once + once[:, ::-1, ::-1]).reshape(-1) / 2  # C2 about z
    _, exposed = exhaust(merged.evidence.volumes(orbit))
    flattening = exhaust(merged.evidence.flattening(log_grid, exposed, orbit)).reshape(cube)
    inner = slice(4, -4)
    np.testing.assert_allclose(
        flattening[inner, inner, inner], flattening[:, ::-1, ::-1][inner, inner, inner], atol=2e-2
    )


def test_what_is_scored_survives_a_break(merged):
    merged.fitted(1)
    pixels = merged.pixels
    again = VoxelField(pixels, RadialProfile(pixels, np.ones(len(pixels.q)), 1), np.random.default_rng(1))
    again.restore(merged.field.state())
    np.testing.assert_array_equal(again.log_grid(), merged.field.log_grid())
    older = merged.field.state()
    del older["overshoot"]
    again.restore(older)
    np.testing.assert_array_equal(again.log_grid(), np.log(np.maximum(merged.field.ratio, DARKEST)))


def test_peaks_too_narrow_for_look_ups_are_left_alone(merged):
    merged.fitted(1)
    assert merged.field.overshoot is not None
    laid, exposed = exhaust(merged.evidence.volumes())
    list(merged.field.update(laid, exposed))
    peaks = np.random.default_rng(3).random(merged.field.edge**3) > 0.9
    merged.field.fit_look_ups(laid, exposed, np.where(peaks | peaks[::-1], np.float32(0.3), np.float32(1)))
    assert merged.field.overshoot is None
