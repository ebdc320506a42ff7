"""The first look by its definitions: where pixels are drawn, what rings and averages mean, what is a hit."""

import time
import tracemalloc

import h5py
import numpy as np
import pytest

from napari_xrai import first_look_centre
from napari_xrai.core.detector import Panels, detector_from_panels, square_detector
from napari_xrai.core.frames import BAD, HC_EV_A, Frames
from napari_xrai.core.particle import builtin_particle
from napari_xrai.core.simulate import Preset, simulate
from napari_xrai.first_look import histogram, spread_slices, suggest_threshold, take_first_look
from napari_xrai.first_look_centre import find_centre
from napari_xrai.first_look_files import save_array, save_geometry
from napari_xrai.first_look_geometry import radial_average, resolution_rings, with_centre
from napari_xrai.first_look_layout import MAX_STACK_BYTES, FrameStack, lay_out
from napari_xrai.io.open import open_source
from napari_xrai.io.source import InputError

DISTANCE, PIXEL, ENERGY = 0.2, 1e-3, 6000.0
LAMBDA = HC_EV_A / ENERGY


class Memory:
    """Frames in memory that remember what was read of them."""

    def __init__(self, counts, detector=None):
        self.counts, self.detector = counts, detector
        self.n_frames, self.shape = len(counts), counts.shape[1:]
        self.n_pixels, self.asked = int(np.prod(self.shape)), []

    def read(self, frames):
        self.asked += list(frames)
        found = Frames.from_dense(self.counts[frames])
        return Frames(found.start, found.pixel, found.count, np.asarray(frames), found.n_pixels)


def quadrants(gap_px=4):
    """Four panels of 8 × 8 about a gap, each turned by another quarter: none lies as it is stored."""
    half = gap_px / 2 * PIXEL
    corner, step = [], []
    for turn in range(4):
        c, s = np.cos(turn * np.pi / 2), np.sin(turn * np.pi / 2)
        rotation = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
        corner.append(rotation @ [half, half, 0] + [0, 0, DISTANCE])
        step.append([rotation @ [0, PIXEL, 0], rotation @ [PIXEL, 0, 0]])
    return Panels(np.array(corner), np.array(step), (4, 8, 8))


def test_every_pixel_is_drawn_where_it_lies_looking_along_the_beam():
    panels = quadrants()
    layout = lay_out(panels.shape, detector_from_panels(panels, energy_eV=ENERGY))
    assert layout.shape == (20, 20)
    assert layout.centre == pytest.approx((9.5, 9.5))
    row, column = np.divmod(layout.cell, 20)
    place = panels.centres_m() / PIXEL
    np.testing.assert_allclose(row, 9.5 - place[:, 1], atol=1e-6)  # +y is up
    np.testing.assert_allclose(column, 9.5 - place[:, 0], atol=1e-6)  # and +x is left: z points away
    rng = np.random.default_rng(0)
    counts = rng.poisson(0.3, (3, 4, 8, 8))
    pictures = layout.photons(Frames.from_dense(counts))
    np.testing.assert_array_equal(np.nansum(pictures, axis=(1, 2)), counts.sum(axis=(1, 2, 3)))
    assert np.isnan(pictures[:, 8:12]).all()  # the gap is no detector
    assert np.isnan(pictures[0]).sum() == 20 * 20 - 4 * 64
    values = np.arange(256)
    np.testing.assert_array_equal(layout.of_pixels(layout.picture(values)), values)


def test_panels_turned_by_a_little_lose_no_photon_and_have_no_holes():
    c, s = np.cos(0.03), np.sin(0.03)
    step = PIXEL * np.array([[[-s, -c, 0], [-c, s, 0]]])
    corner = np.array([[0.03, 0.03, DISTANCE]])
    detector = detector_from_panels(Panels(corner, step, (64, 64)), energy_eV=ENERGY)
    layout = lay_out((64, 64), detector)
    picture = layout.photons(Frames.from_dense(np.ones((1, 64, 64), int)))[0]
    assert np.nansum(picture) == 64 * 64
    inside = ~np.isnan(picture)
    for line in inside:  # from the first to the last cell of a row there is detector
        lit = np.flatnonzero(line)
        assert len(lit) == np.ptp(lit) + 1
    assert np.nanmax(layout.picture(np.ones(64 * 64), 0)) == 1


def test_without_a_geometry_frames_are_as_stored_and_a_list_is_no_picture():
    assert lay_out((100,), None) is None
    modules = lay_out((2, 3, 4), None)
    assert (modules.shape, modules.centre) == ((6, 4), None)
    counts = np.arange(24).reshape(1, 2, 3, 4)
    np.testing.assert_array_equal(modules.photons(Frames.from_dense(counts))[0], counts.reshape(6, 4))


def test_the_stack_reads_what_is_shown_and_nothing_else():
    counts = np.random.default_rng(1).poisson(0.2, (5000, 64, 64))
    source = Memory(counts)
    stack = FrameStack(source, lay_out((64, 64), None))
    assert (stack.shape, stack.ndim, stack.size) == (counts.shape, 3, counts.size)
    np.testing.assert_array_equal(stack[7], counts[7])
    np.testing.assert_array_equal(stack[-1, 3:5, ::2], counts[-1, 3:5, ::2])
    np.testing.assert_array_equal(np.asarray(stack[10:13]), counts[10:13])
    assert source.asked == [7, 4999, 10, 11, 12]
    with pytest.raises(IndexError):
        stack[5000]
    assert 4 * stack.size > MAX_STACK_BYTES
    assert np.isnan(stack[:, 3]).all()  # a whole volume at once is more than a look can hold
    assert len(source.asked) == 5


def test_a_hundred_thousand_frames_open_at_their_first_one(tmp_path):
    path = tmp_path / "many.h5"
    with h5py.File(path, "w") as file:  # 1.6 GB of zeros that are nowhere on the disk, but for one photon a chunk
        data = file.create_dataset("frames", (100_000, 64, 64), "u4", chunks=(100, 64, 64))
        data[0, 5, 6] = data[50_000, 1, 2] = 3
    begin = time.process_time()
    tracemalloc.start()
    source = open_source([path])
    stack = FrameStack(source, lay_out(source.shape, source.detector))
    first = stack[0]
    middle = stack[50_000]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert time.process_time() - begin < 1
    assert peak < 100e6  # a sixteenth of the file
    assert (stack.shape, first[5, 6], middle[1, 2]) == ((100_000, 64, 64), 3, 3)


def test_the_look_sums_exactly_what_it_read():
    counts = np.random.default_rng(2).poisson(0.2, (1000, 8, 8))
    bad = np.zeros(64, bool)
    bad[5] = True
    counts.reshape(1000, 64)[:, 5] = 100
    source = Memory(counts)
    looks = list(take_first_look(source, 100, bad))
    assert [len(look) for look in looks] == sorted({len(look) for look in looks})
    look, seen = looks[-1], counts.reshape(1000, 64)[looks[-1].frame]
    seen = np.where(bad, 0, seen)
    assert len(look) == len(set(look.frame)) == 100
    assert look.frame[0] == 0
    assert look.frame[-1] > 950  # spread over the whole
    np.testing.assert_array_equal(look.powder, seen.sum(axis=0))
    np.testing.assert_array_equal(look.photons, seen.sum(axis=1))
    np.testing.assert_array_equal(look.lit, (seen > 0).sum(axis=1))
    np.testing.assert_array_equal(look.hits(15), look.frame[(seen > 0).sum(axis=1) >= 15])
    assert sorted(source.asked) == list(look.frame)
    assert len(list(take_first_look(Memory(counts), 5000, bad))[-1]) == 1000


@pytest.mark.parametrize(("n", "wanted"), [(10, 3), (1000, 999), (7, 100), (100_000, 1000)])
def test_slices_do_not_overlap_and_add_up(n, wanted):
    slices = spread_slices(n, wanted)
    frames = np.concatenate([np.arange(a, b) for a, b in slices])
    assert len(frames) == min(n, wanted)
    assert (np.diff(frames) > 0).all()
    assert frames.max() < n


def test_a_histogram_holds_every_frame_once():
    values = np.random.default_rng(3).integers(17, 900, 500)
    edges, counts = histogram(values)
    np.testing.assert_array_equal(counts, np.histogram(values, edges)[0])
    assert counts.sum() == 500
    assert len(counts) <= 60
    assert len(np.unique(np.diff(edges))) == 1
    assert histogram(np.array([4]))[1].tolist() == [1]


def test_hits_stand_out_of_poisson_background_however_rare():
    rng = np.random.default_rng(4)
    background = rng.poisson(40, 2000)
    for hits in (rng.integers(120, 600, 6), rng.integers(120, 600, 900)):
        threshold = suggest_threshold(np.concatenate([background, hits]))
        assert background.max() < threshold <= hits.min()
    # two kinds of frames, of which neither is background
    bright, dim = rng.normal(3000, 200, 500).astype(int), rng.normal(1000, 200, 700).astype(int)
    assert dim.max() < suggest_threshold(np.concatenate([bright, dim])) <= bright.min()
    # one kind: all are hits
    for one in (rng.poisson(300, 2000), (300 * rng.exponential(1, 2000) + 5).astype(int)):
        assert suggest_threshold(one) == one.min()


def test_rings_are_where_that_resolution_is_measured():
    detector = square_detector((201, 201), PIXEL, DISTANCE, ENERGY)
    layout = lay_out(detector.shape, detector)
    rings = resolution_rings(detector, layout)
    assert len(rings) == 3
    for ring in rings:
        two_theta = np.arctan(ring.radius * PIXEL / DISTANCE)
        assert 1 / ring.q == pytest.approx(LAMBDA / (2 * np.sin(two_theta / 2)), rel=1e-6)
        assert ring.label == f"{1 / ring.q:.3g} Å"
    own = square_detector((201, 201), PIXEL, DISTANCE, None)
    voxels = resolution_rings(own, lay_out(own.shape, own))
    assert all(ring.label.endswith("voxels") for ring in voxels)
    assert voxels[0].radius == pytest.approx(voxels[0].q, rel=0.02)  # beside the beam a voxel is a pixel
    assert resolution_rings(own, lay_out(own.shape, None)) == []


def test_a_moved_beam_gives_the_detector_that_was_built_there():
    panels = quadrants()
    detector = detector_from_panels(panels, energy_eV=ENERGY)
    layout = lay_out(panels.shape, detector)
    moved, moved_layout = with_centre(detector, layout, (layout.centre[0] - 3, layout.centre[1] + 2))
    # the beam is 3 pixels further up and 2 further right, so all pixels are 3 further down and 2 further left
    shift = np.array([2 * PIXEL, -3 * PIXEL, 0])
    built_panels = Panels(panels.corner_m + shift, panels.step_m, panels.shape)
    built = detector_from_panels(built_panels, energy_eV=ENERGY)
    np.testing.assert_allclose(moved.q, built.q, atol=1e-12)
    before, after = ((c := p.centres_m())[:, 2] / np.linalg.norm(c, axis=1) for p in (panels, built_panels))
    ratio = moved.response / detector.response / (after / before) ** 3  # solid angle; polarisation is left as it was
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-9)
    assert moved.response.mean() == pytest.approx(1)
    assert moved_layout.centre == (layout.centre[0] - 3, layout.centre[1] + 2)
    back, _ = with_centre(moved, moved_layout, layout.centre)
    np.testing.assert_allclose(back.q, detector.q, atol=1e-15)


class Held:
    """Frames in memory, as a source gives them."""

    def __init__(self, frames):
        self.frames, self.n_frames, self.n_pixels = frames, len(frames), frames.n_pixels

    def read(self, index):
        return self.frames.take(index)


@pytest.mark.parametrize("large", [False, True], ids=["as it is", "binned"])
def test_the_beam_is_found_where_photons_mirror_and_drawn_there(monkeypatch, large):
    preset = Preset((48, 48), 1.6e-3, 0.3, HC_EV_A / 4.0, stop_radius_px=3.0, photons=2000)
    true, _, batches = simulate(builtin_particle("demo"), preset, n_frames=600, seed=3)
    source = Held(Frames.concatenate(list(batches)))
    if large:
        monkeypatch.setattr(first_look_centre, "working_binning", lambda _: 2)
    beam = lay_out(true.shape, true).centre
    wrong = (beam[0] - 2.3, beam[1] + 1.2)
    given, layout = with_centre(true, lay_out(true.shape, true), wrong)
    found, _ = find_centre(source, np.arange(600), given, layout)
    assert found == pytest.approx(beam, abs=0.3)
    given, layout = with_centre(true, lay_out(true.shape, true), found)
    centre, sentence = find_centre(source, np.arange(600), given, layout)
    assert centre is None or np.hypot(*np.subtract(centre, found)) < 0.2
    centre, sentence = find_centre(source, np.arange(3), given, layout)
    assert centre is None and sentence.startswith("left where the cross is: photons do not show it")
    with pytest.raises(InputError, match="no photon is on a usable pixel of these hits"):
        find_centre(source, np.arange(0), given, layout)


def test_the_radial_average_is_the_mean_of_each_ring():
    detector = square_detector((41, 41), PIXEL, DISTANCE, ENERGY, stop_radius_px=3)
    magnitude = np.linalg.norm(detector.q, axis=1)
    powder = np.where(detector.mask == BAD, 1e6, 500 * np.exp(-((magnitude / magnitude.max()) ** 2)))
    q, mean = radial_average(detector, powder, 50)
    assert q.min() > 2 * PIXEL / DISTANCE / LAMBDA  # nothing behind the beam stop
    np.testing.assert_allclose(mean, 10 * np.exp(-((q / magnitude.max()) ** 2)), rtol=0.02)


def test_a_run_takes_mask_geometry_and_hits_as_they_were_saved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frames = tmp_path / "frames.h5"
    with h5py.File(frames, "w") as file:
        file["data"] = np.random.default_rng(5).poisson(0.3, (40, 41, 41)).astype(np.uint16)
    detector = square_detector((41, 41), PIXEL, DISTANCE, ENERGY)
    moved, _ = with_centre(detector, lay_out(detector.shape, detector), (18.5, 22.25))
    mask = np.zeros((41, 41), np.uint8)
    mask[3:6] = BAD
    source = open_source(
        [frames], detector=save_geometry(moved, frames), mask=save_array(mask, frames, "mask"), energy_eV=ENERGY,
        select=str(save_array(np.array([3, 5, 8]), frames, "hits")),
    )  # fmt: skip
    assert source.n_frames == 3
    np.testing.assert_allclose(source.detector.q, moved.q, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(source.detector.mask, np.maximum(moved.mask, mask.ravel()))
    assert lay_out(source.shape, source.detector).centre == pytest.approx((18.5, 22.25))
