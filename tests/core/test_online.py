"""Following a stream: every frame has one fate, old evidence fades, nothing counts twice, and it finds the particle."""

import time
from dataclasses import replace

import numpy as np
import pytest

from napari_xrai.core import bootstrap, online, reconstruction, starts
from napari_xrai.core.arrivals import Arrivals
from napari_xrai.core.blank_background import BlankBackground
from napari_xrai.core.detector import through_beam
from napari_xrai.core.field import grid_radius
from napari_xrai.core.frames import BAD, HC_EV_A, USED, Frames
from napari_xrai.core.online import OnlineReconstruction
from napari_xrai.core.particle import builtin_particle
from napari_xrai.core.pixels import pixel_step, pixels_of
from napari_xrai.core.reconstruction_settings import ReconstructionSettings
from napari_xrai.core.rotations import align_poses, quaternion_to_matrix
from napari_xrai.core.simulate import Preset, simulate

N = 800
PRESET = Preset((24, 24), 3.2e-3, 0.3, HC_EV_A / 4.0, stop_radius_px=1.5, photons=3000, fluence_shape=float("inf"))
NONE = np.zeros(0, np.int64)


@pytest.fixture(scope="module")
def data():
    detector, truth, batches = simulate(builtin_particle("demo"), PRESET, n_frames=N, seed=3)
    return detector, truth, Frames.concatenate(list(batches))


@pytest.fixture
def small(monkeypatch):
    """Small blocks, so that few frames show what many do."""
    monkeypatch.setattr(online, "RESERVOIR_FRAMES", 300)
    monkeypatch.setattr(online, "BLOCK_FRAMES", 100)
    monkeypatch.setattr(online, "BLOCKS", 2)
    monkeypatch.setattr(online, "WAIT_S", 0.01)
    monkeypatch.setattr(starts, "MOST_STARTS", 1)


class ToyInlet:
    """Hands out frames of a list; every tenth was no hit and every eleventh is dropped. Rests before some of them."""

    def __init__(self, frames, first=0, rest_at=None, rests=0, detectors=None):
        self.frames, self.next, self.rest_at, self.rests = frames, first, rest_at, rests
        self.detectors, self.silent_s = detectors or {}, None

    @property
    def ended(self):
        return self.next >= len(self.frames)

    @property
    def waiting(self):
        return len(self.frames) - self.next

    def take(self, size, wait_s):
        if self.rest_at is not None and self.next >= self.rest_at and self.rests:
            self.rests -= bool(size)
            size = 0
        index = np.arange(self.next, min(self.next + size, len(self.frames)))
        changes = [at for at in self.detectors if index.size and index[0] < at <= index[-1]]
        index = index[: changes[0] - index[0]] if changes else index
        detector = self.detectors.pop(self.next, None) if len(index) else None
        self.next += len(index)
        lost, blank = index % 11 == 0, (index % 10 == 0) & (index % 11 != 0)
        frames = self.frames.take(index[~(lost | blank)])
        return Arrivals(frames, np.full(len(frames), time.time() - 1), index[blank], index[lost], detector)


def followed(data, inlet, engine=None, **settings):
    engine = engine or OnlineReconstruction(data[0], ReconstructionSettings(threads=1, seed=3, **settings), N)
    sums = set()
    for _ in engine.follow(inlet):
        counters = engine.table.counters()
        sums.add(counters.received - counters.dropped - counters.not_hit - counters.junk - counters.used)
    assert sums == {0}
    return engine


@pytest.fixture
def one_start(monkeypatch):
    """For promises that hold whether or not the particle is found."""
    monkeypatch.setattr(bootstrap, "STEPS", 2)
    monkeypatch.setattr(starts, "MOST_STARTS", 1)
    monkeypatch.setattr(reconstruction, "PASSES_PER_START", 1)


def photons_of(volumes):
    return sum(float(grid.sum()) for grid in volumes[0])


def test_it_finds_the_particle_and_every_frame_has_one_fate(data, small):
    engine = followed(data, ToyInlet(data[2], rest_at=700, rests=4), passes=2)
    snapshot = engine.snapshot(all_poses=True)
    index = np.arange(N)
    counters = snapshot.counters
    assert counters.received == N
    assert counters.dropped == (index % 11 == 0).sum()
    assert counters.not_hit == ((index % 10 == 0) & (index % 11 != 0)).sum()
    assert len(snapshot.poses.frame) == counters.hits
    _, error = align_poses(quaternion_to_matrix(snapshot.poses.quaternion), data[1].rotation[snapshot.poses.frame])
    assert np.median(error[snapshot.poses.frame > 500]) < 8
    assert 0.9 < snapshot.live["latency_s"] < 60
    assert snapshot.progress.phase == "done"


def test_a_run_goes_on_where_it_was_saved_and_places_go_on(data, small, one_start):
    engine = OnlineReconstruction(data[0], ReconstructionSettings(threads=1, passes=1), None)
    for _ in engine.follow(ToyInlet(data[2].take(slice(0, 700)))):
        if len(engine.blocks) > 1 and engine.table.length >= 600:
            break
    arrays, rest = engine.state()
    again = OnlineReconstruction(data[0], ReconstructionSettings(threads=1, passes=1), None)
    again.restore({name: array.copy() for name, array in arrays.items()}, rest)
    length, updates = again.table.length, len(again.history["log_likelihood"])
    assert length == engine.table.length
    before = again.table.poses(None).quaternion
    followed(data, ToyInlet(data[2], first=length), again)
    snapshot = again.snapshot(all_poses=True)
    assert snapshot.counters.received == N
    assert len(snapshot.poses.frame) == snapshot.counters.hits
    assert (again.table.poses(None).quaternion[: len(before)] == before).all()
    assert len(snapshot.history["log_likelihood"]) > updates


def test_another_mask_is_gone_on_with_and_one_that_leaves_nothing_costs_its_frames(data, small):
    detector = data[0]
    column = np.arange(detector.n_pixels) % detector.shape[1]
    other = detector.with_mask(np.where((column > 9) & (column < 12), BAD, 0))
    blind = detector.with_mask(np.full(detector.n_pixels, BAD))
    inlet = ToyInlet(data[2], detectors={500: other, 600: blind, 620: other})
    engine = followed(data, inlet, passes=1)
    snapshot = engine.snapshot(all_poses=True)
    index = np.arange(N)
    lost = (index % 11 == 0) | ((index >= 600) & (index < 620) & (index % 10 != 0))
    assert snapshot.counters.received == N
    assert snapshot.counters.dropped == lost.sum()
    assert engine.pixels.rank[other.mask == BAD].max() == -1
    said = [alert.words.partition(":")[0] for alert in engine.watch.alerts]
    assert [words for words in said if "detector" in words or "mask" in words] == [
        "mask or geometry changed", "frames under the new detector are dropped", "mask or geometry changed",
    ]  # fmt: skip
    _, error = align_poses(quaternion_to_matrix(snapshot.poses.quaternion), data[1].rotation[snapshot.poses.frame])
    assert np.median(error[snapshot.poses.frame > 640]) < 12
    arrays, _ = engine.state()
    assert len(arrays["stored_index"]) and arrays["stored_index"].min() >= 620


def test_a_moved_beam_stays_there_under_another_mask_and_after_a_break(data, small, one_start):
    true = data[0]
    given = through_beam(true, np.array([-2.0, 1.0]) / true.ewald_radius * pixel_step(true.q))
    column = np.arange(true.n_pixels) % true.shape[1]
    other = given.with_mask(np.where(column == 9, BAD, given.mask))

    def beam_is_right(engine):
        pixels = engine.pixels
        where = true.q[pixels.on_detector, :2] / pixels.voxel_size
        assert np.abs(np.median(pixels.q[:, :2] - where, axis=0)).max() < 0.25

    engine = OnlineReconstruction(given, ReconstructionSettings(threads=1, passes=1), None)
    for _ in engine.follow(ToyInlet(data[2].take(slice(0, 700)), detectors={500: other})):
        if engine.table.length >= 650 and engine.first is not None:
            break
    beam_is_right(engine)
    assert (engine.pixels.rank[column == 9] == -1).all() and "moved" in engine.facts["beam centre"]
    arrays, rest = engine.state()
    again = OnlineReconstruction(given, ReconstructionSettings(threads=1, passes=1), None)
    again.restore({name: array.copy() for name, array in arrays.items()}, rest)
    followed(data, ToyInlet(data[2], first=again.table.length), again)
    beam_is_right(again)
    assert again.beam == engine.beam


def test_a_stream_that_is_cut_during_the_starts_is_told_at_once_and_taken_back(data, small, one_start):
    engine = OnlineReconstruction(data[0], ReconstructionSettings(threads=1, passes=1), None)
    inlet = ToyInlet(data[2].take(slice(0, 400)))
    steps = engine.follow(inlet)

    def told(silent_s):
        inlet.silent_s = silent_s
        next(steps)
        assert engine.phase == "start 1"
        return [alert.partition(" ")[2] for alert in engine.snapshot().alerts]

    while engine.phase != "start 1":
        next(steps)
    gone, back = "no frame for 5 s: the beam is off, or the stream is cut", "frames again, after 7 s without"
    assert told(4.9) == []
    assert told(5.1) == told(7.0) == [gone]
    assert told(0.1) == told(0.2) == [gone, back]


def test_after_the_starts_silence_is_counted_from_the_last_frame_that_came(data, small, one_start):
    inlet = ToyInlet(data[2], rest_at=600, rests=10**6)
    engine = OnlineReconstruction(data[0], ReconstructionSettings(threads=1, passes=1), None)
    steps = engine.follow(inlet)
    while not engine.phase.startswith("following"):
        next(steps)
    while inlet.next < 600:
        next(steps)
    inlet.silent_s = 4.2
    while "no frames" not in engine.phase:
        next(steps)
    assert engine.phase.startswith("no frames for 4 s: ")


def test_silence_before_there_is_enough_to_start_from_is_in_the_phase(data):
    inlet = ToyInlet(data[2], rest_at=300, rests=10**6)
    engine = OnlineReconstruction(data[0], ReconstructionSettings(threads=1), None)
    steps = engine.follow(inlet)
    while engine.table.length < 300:
        next(steps)
    assert engine.phase == "waiting for the first frames"
    inlet.silent_s = 12.3
    next(steps)
    assert engine.phase == "no frames for 12 s: waiting for the first frames"


def test_light_that_is_in_blanks_too_is_taken_off_the_intensity(data):
    detector = data[0]
    rng = np.random.default_rng(0)
    radius = np.linalg.norm(detector.q, axis=1)
    light = 3 * np.exp(-radius / radius.max()) * detector.response * (detector.mask < BAD)
    background = BlankBackground()
    pixels = pixels_of(detector)
    seen = grid_radius(pixels.edge) < pixels.orient_radius
    volume = np.full(pixels.edge**3, 100, np.float32)
    np.testing.assert_array_equal(background.taken_off(volume, np.ones_like(volume), pixels), volume)
    background.note(Frames.from_dense(rng.poisson(light, (2000, detector.n_pixels))))
    scale = detector.response[pixels.rank >= 0][0] / pixels.response[pixels.rank[pixels.rank >= 0][0]]
    expected = 3 * scale * np.exp(-grid_radius(pixels.edge) * pixels.voxel_size / radius.max())
    off = volume - background.taken_off(volume, np.ones_like(volume), pixels)
    inner = grid_radius(pixels.edge) >= pixels.inner_radius + 1
    np.testing.assert_allclose(off[seen & inner], expected[seen & inner], rtol=0.1)
    assert "2,000 without a particle" in background.sentence


def test_a_moved_detector_is_laid_on_the_same_volume(data):
    detector = data[0]
    before = pixels_of(detector)
    moved = replace(detector, q=detector.q * 1.04, response=detector.response * 3)
    after = pixels_of(moved, before)
    assert (after.voxel_size, after.edge) == (before.voxel_size, before.edge)
    both = (before.rank >= 0) & (after.rank >= 0)
    np.testing.assert_allclose(after.q[after.rank[both]], 1.04 * before.q[before.rank[both]], rtol=1e-5)
    np.testing.assert_allclose(after.response[after.rank[both]], before.response[before.rank[both]], rtol=1e-5)
    assert np.linalg.norm(after.q, axis=1).max() <= (before.edge - 5) / 2
    with pytest.raises(ValueError, match="detector_voxel"):
        pixels_of(replace(detector, units="detector_voxel"), before)


@pytest.mark.parametrize("half_life", [1.0, 1e9])
def test_old_evidence_fades_as_told_and_no_frame_counts_twice(data, small, one_start, monkeypatch, half_life):
    monkeypatch.setattr(online, "SHORTEST_HALF_LIFE", half_life)
    monkeypatch.setattr(online, "LONGEST_HALF_LIFE", half_life)
    monkeypatch.setattr(online, "MARCHES", 100)  # no photon is left out for being far from the beam
    engine = followed(data, ToyInlet(data[2], rest_at=700, rests=12), passes=1)
    used = engine.pixels.sparse(data[2].take(engine.table.status == USED)).count.sum()
    held = sum(float(block.photons.count.sum()) for block in engine.blocks)
    assert engine.rounds > 0
    if half_life == 1e9:
        assert 0.85 * used < photons_of(engine.carried) < 1.01 * used
    else:  # of what left the reservoir only the last block counts
        assert held * 0.9 < photons_of(engine.carried) < 0.95 * used


def test_a_stream_without_a_photon_is_said(data):
    dark = Frames.from_dense(np.zeros((50, data[0].n_pixels), np.int32))
    with pytest.raises(ValueError, match="no frame with a photon"):
        followed(data, ToyInlet(dark))
