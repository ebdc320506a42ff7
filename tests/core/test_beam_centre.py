"""The beam is where photons mirror, wherever the geometry has it."""

import re

import numpy as np
import pytest
from conftest import bench, lopsided_detector, sparse

from napari_xrai.core.beam_centre import Beam, find_beam
from napari_xrai.core.detector import square_detector, through_beam
from napari_xrai.core.pixels import SparsePhotons, pixels_of
from napari_xrai.core.settled_pixels import settle_pixels, used_geometry

SPECKLE = 4.0
FLAT = square_detector((48, 48), 1e-3, 0.2, None, stop_radius_px=2.5)
CURVED = square_detector((48, 48), 1e-3, 0.04, None, stop_radius_px=2.5)  # q_z/q of 0.27 at the corner
PITCH = 1e-3 / 0.2


def seen_from(detector, given, n=400, photons=300.0, seed=3):
    """Frames of `detector` as if its geometry were `given`: pixels, and frames on them."""
    true = bench(detector, photons=photons)
    frames, _ = true.frames(n, seed)
    pixels = pixels_of(given)
    return pixels, frames.at(true.pixels.on_detector.astype(np.int32)).at(pixels.rank)


@pytest.mark.parametrize("detector", [FLAT, CURVED, lopsided_detector(48)], ids=["flat", "curved", "lopsided"])
@pytest.mark.parametrize("beam", [(0.0, 0.0), (0.4, -0.3), (2.3, 1.2), (-4.0, 3.5)])
def test_a_wrong_beam_is_found_to_a_tenth_of_a_pixel(detector, beam):
    pitch = 1 / detector.ewald_radius  # q is in units of a pixel here
    given = through_beam(detector, -np.array(beam) * pitch)
    pixels, frames = seen_from(detector, given)
    found = find_beam(given, pixels, frames, SPECKLE, move=True)
    off = np.array(found.tangent) / pitch - beam
    assert np.hypot(*off) < (0.1 if np.hypot(*beam) > 0.25 else 0.25)
    assert found.off == 0 and ("moved" in found.sentence) == (np.hypot(*beam) > 0.25)


def test_faint_frames_say_it_too_if_there_are_many():
    beam = np.array([1.5, -1.0]) * PITCH
    given = through_beam(FLAT, -beam)
    pixels, frames = seen_from(FLAT, given, n=4000, photons=25.0)
    found = find_beam(given, pixels, frames, SPECKLE, move=True)
    assert np.array(found.tangent) / PITCH == pytest.approx(beam / PITCH, abs=0.3)


def test_a_beam_that_is_to_stay_is_left_and_its_error_told():
    given = through_beam(FLAT, np.array([-2.0, 0.0]) * PITCH)
    pixels, frames = seen_from(FLAT, given)
    found = find_beam(given, pixels, frames, SPECKLE, move=False)
    assert found.tangent == (0, 0) and found.off == pytest.approx(2.0 / SPECKLE, abs=0.05)
    assert re.search(r"left as given.*\(\+(1\.9|2\.0)", found.sentence)


def test_frames_that_do_not_mirror_move_nothing():
    pixels = pixels_of(FLAT)
    rng = np.random.default_rng(1)
    count = bench(FLAT).frames(400, 3)[0]
    place = rng.permutation(len(pixels.rho)).astype(np.int32)  # speckles of pixels that are no neighbours, nor opposite
    found = find_beam(FLAT, pixels, count.at(place), SPECKLE, move=True)
    assert found.tangent == (0, 0) and found.off == 0 and "do not show it" in found.sentence


def test_light_that_flickers_beside_the_beam_does_not_draw_it_there():
    pixels, frames = seen_from(FLAT, FLAT, n=1000)
    rng = np.random.default_rng(4)
    halo = 6 * np.exp(-np.square(pixels.q[:, :2] - [7, 4]).sum(1) / 2 / 6**2)  # in every second frame or so
    light = rng.poisson(halo * rng.integers(0, 2, (len(frames), 1)))
    lit = sparse(frames.dense(len(pixels.rho)).astype(int) + light)
    assert find_beam(FLAT, pixels, lit, SPECKLE, move=True).tangent == (0, 0)


def test_one_bright_frame_does_not_speak_for_all():
    pixels, frames = seen_from(FLAT, FLAT)
    flash = np.zeros(len(pixels.rho))
    q = pixels.q[:, :2]
    flash[np.square(q - [9, 0]).sum(1) < 9] = flash[np.square(q - [1, 6]).sum(1) < 9] = 300.0
    lit = np.flatnonzero(flash).astype(np.int32)
    one = SparsePhotons(np.array([0, len(lit)]), lit, flash[lit].astype(np.float32), np.array([len(frames)]))
    found = find_beam(FLAT, pixels, SparsePhotons.concatenate([frames, one]), SPECKLE, move=True)
    assert found.tangent == (0, 0)


def test_frames_lie_on_the_moved_pixels_and_faulty_pixels_stay_out():
    given = through_beam(FLAT, np.array([-2.0, 1.0]) * PITCH)
    pixels, frames = seen_from(FLAT, given)
    hot, counts = int(pixels.on_detector[200]), frames.dense(len(pixels.rho))
    counts[:, 200] += 9
    settled = settle_pixels(given, pixels, sparse(counts.astype(int)), None, move=True)
    assert settled.pixels.rank[hot] == -1 and "1 hot" in settled.facts["odd pixels"]
    counted = counts.sum(0)
    counted[200] = 0
    on_detector = np.bincount(settled.pixels.on_detector[settled.frames.pixel], settled.frames.count, FLAT.n_pixels)
    assert on_detector[pixels.on_detector] == pytest.approx(counted)
    for start, stop in zip(settled.frames.start[:20], settled.frames.start[1:21], strict=True):
        assert (np.diff(settled.frames.pixel[start:stop]) >= 0).all()


def test_geometry_and_mask_as_used_make_the_pixels_that_were_worked_with():
    given = through_beam(FLAT, np.array([-2.0, 1.0]) * PITCH)
    pixels, frames = seen_from(FLAT, given)
    hot, counts = int(pixels.on_detector[200]), frames.dense(len(pixels.rho))
    counts[:, 200] += 9
    settled = settle_pixels(given, pixels, sparse(counts.astype(int)), None, move=True)
    used = used_geometry(given, settled.pixels, settled.beam)
    assert used.moved == pytest.approx((2.0, -1.0), abs=0.1)
    assert used.mask.shape == used.left_out.shape == (48, 48) and np.flatnonzero(used.left_out).tolist() == [hot]
    again = pixels_of(through_beam(given, np.array(used.tangent)).with_mask(used.mask))
    assert np.array_equal(again.rank, settled.pixels.rank) and again.n_orient == settled.pixels.n_orient
    np.testing.assert_allclose(again.q, settled.pixels.q, rtol=1e-6)


def test_a_beam_known_before_is_taken_up_without_looking():
    pixels, frames = seen_from(FLAT, FLAT)
    beam = Beam((2 * PITCH, 0.0), 0.0, "moved before")
    settled = settle_pixels(FLAT, pixels, frames, beam, move=True)
    assert settled.beam is beam and settled.facts["beam centre"] == "moved before"
    shift = pixels.q[pixels.rank[settled.pixels.on_detector], 0] - settled.pixels.q[:, 0]
    assert shift == pytest.approx(2.0, abs=0.1)  # a little less at the edge, where the Ewald sphere falls away
