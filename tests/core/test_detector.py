"""Geometry → reciprocal space: the Ewald sphere, solid angles, polarisation, masks."""

import numpy as np
import pytest

from napari_xrai.core.detector import (
    Panels,
    detector_from_panels,
    panels_from_detector,
    polarization_factor,
    solid_angle_polarization,
    square_detector,
    square_panel,
)
from napari_xrai.core.frames import BAD, GOOD, HC_EV_A, MERGE_ONLY

ENERGY = HC_EV_A / 4.4


def klh1(**changes):
    return square_detector((64, 64), 1.2e-3, 0.3, ENERGY, **{"polarization": "x", "stop_radius_px": 4.0, **changes})


def test_q_lies_on_the_ewald_sphere_and_points_upstream():
    detector = klh1()
    radius = detector.ewald_radius
    assert radius == pytest.approx(1 / 4.4)
    from_centre = np.linalg.norm(detector.q + np.array([0, 0, radius]), axis=1)
    np.testing.assert_allclose(from_centre, radius, rtol=1e-12)
    assert (detector.q[:, 2] < 0).all()


def test_length_of_q_is_two_sine_theta_over_lambda():
    detector = klh1()
    centre = square_panel((64, 64), 1.2e-3, 0.3).centres_m()
    two_theta = np.arctan2(np.hypot(centre[:, 0], centre[:, 1]), centre[:, 2])
    np.testing.assert_allclose(np.linalg.norm(detector.q, axis=1), 2 * np.sin(two_theta / 2) / 4.4, rtol=1e-12)


def test_first_pixel_is_up_and_left_seen_looking_downstream():
    q = klh1().q.reshape(64, 64, 3)
    assert q[0, 0, 1] > 0 and q[0, 0, 0] > 0  # y up; +x is on the left of who looks along +z
    assert q[-1, -1, 1] < 0 and q[-1, -1, 0] < 0


def test_solid_angles_add_up_to_the_pyramid_they_cover():
    # a square panel of half-width a at distance d subtends 4 asin(a²/(a²+d²)), exactly
    a, d, n = 0.06, 0.1, 400
    panel = square_panel((n, n), 2 * a / n, d)
    pixels = solid_angle_polarization(panel.centres_m(), panel.areas_m2(), "none")
    direction = panel.centres_m() / np.linalg.norm(panel.centres_m(), axis=1)[:, None]
    solid = pixels / polarization_factor(direction, "none")
    assert solid.sum() == pytest.approx(4 * np.arcsin(a**2 / (a**2 + d**2)), rel=1e-5)


def test_light_polarised_along_x_does_not_scatter_along_x():
    along = np.eye(3)
    np.testing.assert_allclose(polarization_factor(along, "x"), [0, 1, 1])
    np.testing.assert_allclose(polarization_factor(along, "y"), [1, 0, 1])
    np.testing.assert_allclose(polarization_factor(along, "none"), [0.5, 0.5, 1])
    with pytest.raises(ValueError, match="polarisation must be"):
        polarization_factor(along, "circular")


def test_beam_stop_is_bad_and_corners_do_not_vote():
    mask = klh1().mask
    # as Dragonfly's own detector of this experiment: 3,044 good, 1,000 merge-only, 52 bad
    assert np.bincount(mask).tolist() == [3044, 1000, 52]
    assert mask.reshape(64, 64)[32, 32] == BAD
    assert mask.reshape(64, 64)[0, 0] == MERGE_ONLY
    assert mask.reshape(64, 64)[1, 32] == GOOD


def test_response_has_mean_one_outside_the_beam_stop():
    detector = klh1()
    assert detector.response[detector.mask != BAD].mean() == pytest.approx(1, rel=1e-12)


def test_without_energy_q_is_in_pixels_at_the_beam():
    detector = square_detector((64, 64), 1.2e-3, 0.3, None)
    assert detector.units == "detector_voxel" and detector.wavelength_A is None
    assert detector.ewald_radius == pytest.approx(250)
    q = detector.q.reshape(64, 64, 3)
    assert q[31, 31, 0] - q[31, 32, 0] == pytest.approx(1, rel=1e-3)


def test_panels_survive_the_way_over_q():
    rng = np.random.default_rng(0)
    corner = np.array([[0.02, 0.01, 0.7], [-0.01, 0.03, 0.7]])
    turn = np.radians(rng.uniform(-5, 5, 2))
    fast = 2e-4 * np.stack([-np.cos(turn), np.sin(turn), 0 * turn], axis=1)
    slow = 2e-4 * np.stack([-np.sin(turn), -np.cos(turn), 0 * turn], axis=1)
    panels = Panels(corner, np.stack([slow, fast], axis=1), (2, 8, 16))
    found = panels_from_detector(detector_from_panels(panels, energy_eV=6000.0), 0.7)
    np.testing.assert_allclose(found.corner_m, panels.corner_m, atol=1e-12)
    np.testing.assert_allclose(found.step_m, panels.step_m, atol=1e-12)


def test_scattered_pixels_are_not_panels():
    detector = klh1()
    order = np.random.default_rng(0).permutation(4096)
    shuffled = type(detector)(detector.q[order], detector.response, detector.mask, (64, 64), detector.ewald_radius)
    with pytest.raises(ValueError, match="regular grid"):
        panels_from_detector(shuffled, 0.3)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan")])
def test_impossible_lengths_and_energies_are_refused(bad):
    with pytest.raises(ValueError, match="positive"):
        square_detector((8, 8), bad, 0.3, ENERGY)
    with pytest.raises(ValueError, match="positive"):
        square_detector((8, 8), 1e-3, 0.3, bad)
