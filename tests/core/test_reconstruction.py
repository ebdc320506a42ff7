"""From noise to the particle: that it gets there, that it can be watched, stopped, continued and repeated."""

import json
import weakref
from collections import deque
from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
import pytest

from napari_xrai.core import bootstrap, reconstruction, starts
from napari_xrai.core.detector import through_beam
from napari_xrai.core.exposure import POINTS_PER_SPECKLE
from napari_xrai.core.frames import HC_EV_A, JUNK, NOT_HIT, USED, Frames
from napari_xrai.core.particle import builtin_particle
from napari_xrai.core.pixels import pixels_of
from napari_xrai.core.reconstruction import Reconstruction
from napari_xrai.core.reconstruction_settings import ReconstructionSettings
from napari_xrai.core.rotations import align_poses, quaternion_to_matrix
from napari_xrai.core.simulate import Preset, simulate

N = 1000
EMPTY = (5, 500, 998)


@dataclass(frozen=True, eq=False)
class Case:
    detector: object
    frames: Frames
    rotation: np.ndarray
    """True poses."""

    def batches(self, size, start=0):
        for first in range(start, len(self.frames), size):
            yield self.frames.take(slice(first, first + size))

    def run(self, n_frames=N, **settings):
        engine = Reconstruction(self.detector, ReconstructionSettings(**{"seed": 1, **settings}), n_frames)
        return engine, engine.run(self.batches)

    def error(self, snapshot):
        """Median pose error, degrees."""
        estimated = quaternion_to_matrix(snapshot.poses.quaternion)
        return float(np.median(align_poses(estimated, self.rotation[snapshot.poses.frame])[1]))


@pytest.fixture(scope="module")
def case():
    """1,000 bright frames of the demo particle on 32 × 32 pixels, pulses unequal, three frames empty."""
    preset = Preset((32, 32), 1.8e-3, 0.3, HC_EV_A / 4.0, stop_radius_px=2, fluence_shape=4)
    detector, truth, batches = simulate(builtin_particle("demo"), preset, n_frames=N, photons=2000, seed=1)
    counts = Frames.concatenate(list(batches)).dense()
    counts[list(EMPTY)] = 0
    return Case(detector, Frames.from_dense(counts), truth.rotation)


@pytest.fixture(scope="module", autouse=True)
def short_starts():
    """Fewer frames per step of a start, and at most three starts: bright frames need no more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(starts, "MOST_STARTS", 3)
        yield


@pytest.fixture
def one_start(monkeypatch):
    """For promises that hold whether or not the particle is found."""
    monkeypatch.setattr(bootstrap, "STEPS", 4)
    monkeypatch.setattr(starts, "MOST_STARTS", 1)
    monkeypatch.setattr(reconstruction, "PASSES_PER_START", 1)


@pytest.fixture(scope="module")
def whole(case):
    """A run to its end: engine, progress, and snapshots on the way with copies of them."""
    engine, steps = case.run()
    progress, looks, state = [], [], None
    for step in steps:
        progress.append(step)
        if len(progress) % 100 == 0 and (look := engine.snapshot()) is not None:
            looks.append((look, look.intensity.data.copy(), look.poses.quaternion.copy(), look.status.copy()))
        if state is None and engine.passes_done == 3:
            arrays, rest = engine.state()
            state = {name: array.copy() for name, array in arrays.items()}, rest
    return engine, progress, looks, state


def test_from_noise_to_the_true_poses(case, whole):
    engine, *_ = whole
    snapshot = engine.snapshot(all_poses=True)
    assert case.error(snapshot) < 3.0
    assert snapshot.verdict == "converged"
    assert "agree" in snapshot.reason
    assert snapshot.resolution_A is not None and snapshot.resolution_A < 60
    assert 2.5 < engine.fluence_shape < 6
    assert set(snapshot.poses.frame) == set(range(N)) - set(EMPTY)
    assert snapshot.facts["symmetry seen"] == "none seen" and "looks like" not in snapshot.reason
    assert engine.light.exposure.point_spacing <= engine.speckle.size / POINTS_PER_SPECKLE


def test_frames_of_two_particles_are_never_called_one(case):
    # the other is the same, a quarter smaller
    preset = Preset((32, 32), 1.8e-3, 0.4, HC_EV_A / 4.0, stop_radius_px=2)
    _, _, batches = simulate(builtin_particle("demo"), preset, n_frames=N // 2, photons=2000, seed=2)
    both = Frames.concatenate([case.frames.take(slice(0, N // 2)), *batches])
    engine, steps = replace(case, frames=both).run()
    deque(steps, maxlen=0)
    verdict, reason = engine.verdict()
    assert verdict == "improving" and "several particles" in reason


def test_frames_without_speckles_take_one_pass_and_have_failed(case, one_start):
    rng = np.random.default_rng(0)
    mean = case.frames.dense().mean(0)
    blank = replace(case, frames=Frames.from_dense(rng.poisson(mean, (300, *mean.shape))))
    engine, steps = blank.run(300)
    deque(steps, maxlen=0)
    verdict, reason = engine.verdict()
    assert verdict == "failed" and "no speckles" in reason
    assert engine.passes_done == 1


def test_a_stuck_detector_is_said(case):
    stuck = case.frames.take(np.full(300, 1))
    _, steps = replace(case, frames=stuck).run(300)
    with pytest.raises(ValueError, match="the first 300 frames have the same photons: the detector was stuck"):
        deque(steps, maxlen=0)


def two_pixels_off(case):
    return replace(case, detector=through_beam(case.detector, np.array([-2.0, 0.0]) * 1.8e-3 / 0.3))


def test_a_beam_two_pixels_off_is_put_right(case):
    off = two_pixels_off(case)
    engine, steps = off.run()
    deque(steps, maxlen=0)
    snapshot = engine.snapshot(all_poses=True)
    assert case.error(snapshot) < 3.0 and snapshot.verdict == "converged"
    assert "moved to where photons mirror" in snapshot.facts["beam centre"]
    arrays, rest = engine.state()
    again = Reconstruction(off.detector, engine.settings, N)
    again.restore(arrays, json.loads(json.dumps(rest)))
    assert again.beam == engine.beam


def test_a_beam_that_must_stay_beside_is_never_converged(case, one_start):
    engine, steps = two_pixels_off(case).run(passes=1, beam_centre="given")
    seen = {(look.verdict, look.reason) for _ in steps if (look := engine.snapshot()) is not None}
    assert len(seen) == 1  # said from the first look to the last
    assert engine.snapshot().verdict == "failed" and "mirror" in engine.snapshot().reason


def test_a_moved_beam_and_a_point_group_go_together(case, one_start):
    off = replace(case, detector=through_beam(case.detector, np.array([-3.0, 0.0]) * 1.8e-3 / 0.3))
    engine, steps = off.run(passes=1, symmetry="C2")
    deque(steps, maxlen=0)
    right, moved = (pixels_of(d).on_finer_voxels(engine.finer) for d in (case.detector, off.detector))
    assert engine.pixels.edge == right.edge < moved.edge
    inner = np.s_[8:-8, 8:-8, 8:-8]
    intensity = engine.snapshot().intensity.data
    assert intensity[:, ::-1, ::-1][inner] == pytest.approx(intensity[inner], rel=1e-3)


def test_empty_frames_are_no_hits_and_the_counters_add_up(whole):
    counters = whole[0].snapshot().counters
    assert (counters.received, counters.not_hit, counters.used + counters.junk) == (N, len(EMPTY), N - len(EMPTY))
    assert counters.junk == 0
    assert counters.received == counters.dropped + counters.not_hit + counters.junk + counters.used
    status = whole[0].snapshot().status
    assert set(np.flatnonzero(status == NOT_HIT)) == set(EMPTY)
    assert np.isin(np.delete(status, EMPTY), (USED, JUNK)).all()


def test_progress_only_rises_and_ends_at_one(whole):
    _, progress, _, _ = whole
    fraction = np.array([step.fraction for step in progress])
    assert (np.diff(fraction) >= -1e-9).all() and fraction[-1] == 1 and progress[-1].phase == "done"
    assert (np.diff([step.frames_seen for step in progress]) >= 0).all()


def test_every_look_on_the_way_is_whole_and_stays_as_it_was(whole):
    _, _, looks, _ = whole
    assert len(looks) >= 3
    for look, intensity, quaternion, status in looks:
        np.testing.assert_array_equal(look.intensity.data, intensity)
        np.testing.assert_array_equal(look.poses.quaternion, quaternion)
        np.testing.assert_array_equal(look.status, status)
        assert np.isfinite(intensity).all() and (intensity >= 0).all()
        np.testing.assert_allclose(intensity, intensity[::-1, ::-1, ::-1], rtol=1e-4, atol=1e-9)
        assert not intensity[look.weight.data == 0].any()
        assert len({len(values) for values in look.history.values()}) == 1
    assert not np.array_equal(looks[0][1], looks[-1][1])  # there was something to change


def test_frames_are_known_from_the_first_look_on(whole):
    for look, *_ in whole[2]:
        assert look.counters.received == N == len(look.status)


def test_a_run_goes_on_from_its_state_as_well(case, whole):
    arrays, rest = whole[3]
    engine = Reconstruction(case.detector, ReconstructionSettings(seed=1), N)
    engine.restore(arrays, rest)
    phases = {step.phase for step in engine.run(case.batches)}
    assert any(p.startswith("pass 4 of") for p in phases)
    assert not any(p.startswith(("start", "pass 3 of")) for p in phases)
    snapshot = engine.snapshot(all_poses=True)
    assert snapshot.verdict == "converged"
    assert case.error(snapshot) == pytest.approx(case.error(whole[0].snapshot(all_poses=True)), abs=0.3)
    assert len(snapshot.history["log_likelihood"]) == len(whole[0].snapshot().history["log_likelihood"])


def test_a_finished_run_taken_up_again_keeps_what_it_is_worth(case, whole):
    engine = Reconstruction(case.detector, ReconstructionSettings(seed=1), N)
    engine.restore(*deepcopy(whole[0].state()))
    phases = {step.phase for step in engine.run(case.batches)}
    assert not any(p.startswith(("start", "pass")) for p in phases)
    before, after = (run.snapshot(all_poses=True) for run in (whole[0], engine))
    np.testing.assert_allclose(after.shells["half_cc"], before.shells["half_cc"], atol=1e-6)
    assert after.verdict == before.verdict
    assert after.trust.forecast.sentence == before.trust.forecast.sentence
    np.testing.assert_allclose(after.trust.standard_error.data, before.trust.standard_error.data, rtol=1e-4)


def test_equal_seeds_give_equal_results_on_one_thread_or_two(case, one_start):
    few = Case(case.detector, case.frames.take(slice(0, 300)), case.rotation[:300])
    results = []
    for settings in ({"threads": 1}, {"threads": 2}, {"seed": 2}):
        engine, steps = few.run(300, passes=1, **settings)
        assert len(list(steps)) > 5
        results.append(engine.snapshot(all_poses=True))
    one, two, other = results
    np.testing.assert_array_equal(two.intensity.data, one.intensity.data)
    np.testing.assert_array_equal(two.poses.quaternion, one.poses.quaternion)
    assert not np.allclose(other.intensity.data, one.intensity.data, rtol=0.1)


def test_closing_on_the_way_keeps_what_there_is(case, one_start):
    engine, steps = case.run()
    assert engine.snapshot() is None  # nothing yet
    for step in steps:
        if step.phase.startswith("pass 2"):
            break
    steps.close()
    snapshot = engine.snapshot(all_poses=True)
    assert snapshot.verdict == "improving" and "pass 2" in snapshot.reason
    assert len(snapshot.poses.frame) == N - len(EMPTY)
    assert snapshot.intensity.data.any() and np.isfinite(snapshot.intensity.data).all()


def test_a_stream_without_a_photon_is_one_clear_error(case):
    dark = Frames.from_dense(np.zeros((30, case.frames.n_pixels), int))
    engine = Reconstruction(case.detector, ReconstructionSettings(), None)
    with pytest.raises(ValueError, match="no frame has a photon on a usable pixel"):
        list(engine.run(lambda size, start: iter([dark])))


def test_a_long_stream_of_unknown_length_is_used_to_its_end_and_not_held(case, one_start, monkeypatch):
    monkeypatch.setattr(reconstruction, "RESERVOIR_FRAMES", 300)
    engine = Reconstruction(case.detector, ReconstructionSettings(passes=1, seed=1), None)
    alive = held = 0

    def batches(size, start):
        nonlocal alive, held

        def gone():
            nonlocal alive
            alive -= 1

        for batch in case.batches(size, start):
            alive, held = alive + 1, max(held, alive + 1)
            weakref.finalize(batch, gone)
            yield batch

    assert len(list(engine.run(batches))) > 5
    snapshot = engine.snapshot(all_poses=True)
    assert snapshot.counters.received == N
    assert set(snapshot.poses.frame) == set(range(N)) - set(EMPTY)
    assert held <= 3  # of the five batches that the stream has
