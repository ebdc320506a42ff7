"""Between stream and engine: every frame gets one place and one fate, the queue is bounded, the newest win."""

import time
from collections import Counter

import numpy as np
import pytest

from napari_xrai.core.frames import Frames
from napari_xrai.io import inlet as inlet_module
from napari_xrai.io.frame_names import FrameNames
from napari_xrai.io.inlet import StreamInlet
from napari_xrai.io.source import InputError
from napari_xrai.io.stream import Batch
from toy import toy_detector


class ToyStream:
    """Gives batches as fast as they are asked for; the photons on the first pixel number the frames from 1."""

    def __init__(self, n=1000, size=20, max_age_s=None, pause_s=0.0, events=None, error=None):
        self.faults, self.max_age_s, self.ended = Counter(), max_age_s, False
        self.n, self.size, self.pause_s, self.given = n, size, pause_s, 0
        self.events, self.error, self.closed = events or {}, error, False

    def next_batch(self, wait_s):
        time.sleep(self.pause_s)
        if self.given >= self.n:
            if self.error:
                raise self.error
            self.ended = self.error is None and self.events.get("end", True)
            time.sleep(wait_s)
            return None
        if self.given in self.events:
            return self.events.pop(self.given)
        counts = np.ones((self.size, 36), np.int32)
        counts[:, 0] = self.given + np.arange(self.size) + 1
        self.given += self.size
        return Batch(Frames.from_dense(counts), time.time())

    def notice(self):
        pass

    def close(self):
        self.closed = True


def drained(inlet, size=50, pause_s=0.0):
    """Everything that came: frame numbers with their positions, and the positions of the others."""
    number, position, not_hit, dropped, acquired = [], [], [], [], []
    while not inlet.ended:
        got = inlet.take(size, 0.1)
        time.sleep(pause_s)
        number += list(got.frames.dense()[:, 0])
        position += list(got.frames.index)
        acquired += list(got.acquired)
        not_hit += list(got.not_hit)
        dropped += list(got.dropped)
    assert len(acquired) == len(position)
    return np.array(number), np.array(position), not_hit, dropped


def each_once(n, *positions):
    return sorted(np.concatenate([np.asarray(p, int) for p in positions])) == list(range(n))


def test_a_patient_stream_loses_nothing_however_slow_the_engine(monkeypatch):
    monkeypatch.setattr(inlet_module, "FEW_WAITING", 60)
    with StreamInlet(ToyStream(), toy_detector()) as inlet:
        time.sleep(0.3)
        assert inlet.waiting <= 80
        number, position, not_hit, dropped = drained(inlet)
    assert (number == position + 1).all()
    assert len(number) == 1000
    assert not_hit == dropped == []


def test_a_stream_that_cannot_wait_drops_the_oldest_and_the_queue_stays_bounded(monkeypatch):
    monkeypatch.setattr(inlet_module, "MOST_WAITING", 100)
    with StreamInlet(ToyStream(max_age_s=60.0), toy_detector()) as inlet:
        time.sleep(0.4)
        assert inlet.waiting <= 120
        number, position, not_hit, dropped = drained(inlet)
    assert (number == position + 1).all()
    assert min(position) > 800
    assert each_once(1000, position, not_hit, dropped)


@pytest.mark.parametrize("is_ready", [False, True])
def test_what_waited_too_long_for_an_engine_that_is_ready_is_dropped(is_ready):
    with StreamInlet(ToyStream(max_age_s=0.2, pause_s=0.02), toy_detector()) as inlet:
        if is_ready:
            inlet.take(1, 0.0)
        time.sleep(0.6)
        assert (len(inlet.take(0, 0.0).dropped) >= 100) == is_ready


def test_what_was_dropped_has_one_fate():
    with StreamInlet(ToyStream(max_age_s=0.2, pause_s=0.02), toy_detector()) as inlet:
        inlet._asked_at = 0.0
        time.sleep(0.6)
        number, position, not_hit, dropped = drained(inlet)
    assert len(dropped) >= 100
    assert len(number) > 0
    assert each_once(1000, position, not_hit, dropped)


def test_hits_go_on_and_blanks_are_counted():
    rng = np.random.default_rng(0)
    counts = rng.poisson(np.where(rng.random(1000) < 0.3, 3.0, 0.1)[:, None], (1000, 36))
    stream = ToyStream(n=0)
    stream.n = 20
    stream.events = {0: Batch(Frames.from_dense(counts), time.time()), "end": True}
    with StreamInlet(stream, toy_detector()) as inlet:
        _, position, not_hit, dropped = drained(inlet)
    bright = counts.sum(1) > 40
    assert (~bright[not_hit]).all()
    assert bright[[p for p in position if p < 1000]].mean() > 0.99
    assert each_once(1020, position, not_hit, dropped)


def test_lost_frames_take_places_and_are_dropped():
    stream = ToyStream(n=200, events={40: Batch(None, 0.0, lost=5), "end": True})
    with StreamInlet(stream, toy_detector(), find_hits=False) as inlet:
        number, position, not_hit, dropped = drained(inlet)
    assert len(number) == 200
    assert dropped == [*range(40, 45)]
    assert each_once(205, position, not_hit, dropped)


@pytest.mark.parametrize("is_dropped", [False, True])
def test_another_detector_is_given_with_the_first_frames_it_took_even_if_some_of_them_are_dropped(is_dropped):
    other = toy_detector()
    ones = Frames.from_dense(np.ones((7, 36), np.int32))
    stream = ToyStream(n=200, max_age_s=60.0, events={80: Batch(ones, 0.0, detector=other), "end": True})
    with StreamInlet(stream, toy_detector(), find_hits=False) as inlet:
        while inlet.received < 207:
            time.sleep(0.01)
        inlet._asked_at = 0.0
        if is_dropped:
            for part in list(inlet._queue)[:5]:
                part.came -= 100
        told = []
        while not inlet.ended:
            got = inlet.take(50, 0.1)
            if got.detector is not None:
                told.append((got.detector is other, int(got.frames.index[0])))
    assert told == [(True, 87 if is_dropped else 80)]


def test_names_go_with_the_frames_that_are_handed_on():
    names = FrameNames()
    counts = np.where(np.arange(1000)[:, None] % 4 == 0, 5, 0) * np.ones((1, 36), np.int32)
    batch = Batch(Frames.from_dense(counts), time.time(), names={"trainId": np.arange(1000) + 2**40})
    stream = ToyStream(n=20, events={0: batch, "end": True})
    with StreamInlet(stream, toy_detector(), names) as inlet:
        not_hit = drained(inlet)[2]
    assert len(not_hit) == 750
    found = names.of(np.array([0, 4, 8, 1, 996]))["trainId"]
    assert found.tolist() == [2**40, 2**40 + 4, 2**40 + 8, -1, 2**40 + 996]
    again = FrameNames()
    again.restore({"other": np.zeros(3), **names.state()})
    assert again.of(np.array([8]))["trainId"] == 2**40 + 8


@pytest.mark.parametrize("most", [1, 99, 100, 101])
def test_max_frames_counts_received_ones_and_places_go_on_after_a_break(most):
    with StreamInlet(ToyStream(), toy_detector(), start=500, most_frames=500 + most, find_hits=False) as inlet:
        _, position, _, dropped = drained(inlet)
    assert position.tolist() == list(range(500, 500 + most))
    assert dropped == []


def test_silence_ends_the_stream_and_its_end_mark_does_at_once():
    for end, least in ((False, 0.5), (True, 0.0)):
        stream = ToyStream(n=40, events={"end": end})
        began = time.monotonic()
        with StreamInlet(stream, toy_detector(), idle_timeout_s=0.5) as inlet:
            assert len(drained(inlet)[0]) == 40
        assert least <= time.monotonic() - began < least + 1.5
        assert stream.closed


def test_silence_is_measured_from_what_came_whoever_takes_it():
    stream = ToyStream(n=40, pause_s=0.02, events={"end": False})
    with StreamInlet(stream, toy_detector(), idle_timeout_s=1.5) as inlet:
        assert inlet.silent_s is None  # nothing came yet
        while inlet.received < 40:
            time.sleep(0.01)
        time.sleep(0.3)
        assert 0.3 <= inlet.silent_s < 1.0
        assert inlet.waiting == 40
        while not inlet._over:
            time.sleep(0.05)
        assert inlet.silent_s is None  # nothing will come any more


def test_a_full_queue_is_no_silence(monkeypatch):
    monkeypatch.setattr(inlet_module, "FEW_WAITING", 60)
    with StreamInlet(ToyStream(), toy_detector()) as inlet:
        time.sleep(0.8)
        assert inlet.silent_s < 0.4


def test_a_broken_stream_says_so_after_all_that_came():
    with StreamInlet(ToyStream(n=40, error=InputError("gone")), toy_detector(), find_hits=False) as inlet:
        assert len(inlet.take(100, 1.0).frames) > 0
        with pytest.raises(InputError, match="gone"):
            drained(inlet)


def test_another_clock_is_not_believed():
    for offset in (-1e6, 1e6):
        stream = ToyStream(n=20)
        stream.events = {0: Batch(Frames.from_dense(np.ones((3, 36), np.int32)), time.time() + offset), "end": True}
        with StreamInlet(stream, toy_detector(), find_hits=False) as inlet:
            time.sleep(0.1)
            assert abs(inlet.take(3, 1.0).acquired - time.time()).max() < 5
