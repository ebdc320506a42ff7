"""What changes at the beamline is told once, and noise is not."""

import numpy as np
import pytest

from napari_xrai.core import stream_watch
from napari_xrai.core.stream_watch import StreamWatch


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    now = [1000.0]
    monkeypatch.setattr(stream_watch.time, "monotonic", lambda: now[0])
    return now


def words(watch):
    return [alert.words for alert in watch.alerts]


def stream(watch, rate, photons, n=20_000, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(n // 100):
        hits = rng.binomial(100, rate)
        watch.note(hits, 100 - hits, float(rng.poisson(photons, hits).sum()))


def test_a_steady_stream_says_nothing():
    for seed in range(20):
        watch = StreamWatch()
        stream(watch, 0.2, 500, seed=seed)
        assert words(watch) == []


def test_the_beam_goes_and_comes(clock):
    watch = StreamWatch()
    for _ in range(100):
        watch.note(0, 0, 0.0)  # nothing came yet: nothing to miss
        clock[0] += 1
    watch.note(50, 50, 5000.0)
    for _ in range(34):
        clock[0] += 1
        watch.note(0, 0, 0.0)
    watch.note(0, 0, 0.0, dropped=5)
    assert words(watch) == [
        "no frame for 5 s: the beam is off, or the stream is cut", "frames again, after 34 s without",
    ]  # fmt: skip


def test_hit_rate_and_brightness_are_told_when_they_change_for_good():
    watch = StreamWatch()
    stream(watch, 0.3, 500)
    stream(watch, 0.1, 500)
    stream(watch, 0.1, 250)
    assert len(watch.alerts) == watch.said == 2
    rate, brightness = words(watch)
    assert rate.startswith("hit rate fell from ")
    assert brightness.startswith("photons per hit fell from ")


def test_convergence_is_told_when_it_is_lost_and_when_more_frames_bring_nothing():
    watch = StreamWatch()
    for n in range(1, 11):
        watch.note_update(1000 * n, 100 * (1 - 1 / n), 0.01 * min(n, 8))
    assert words(watch) == []
    for n in range(11, 200):
        watch.note_update(1000 * n, 99 + 0.0001 * n, 0.08)
    assert len(watch.alerts) == 1 and words(watch)[0].startswith("more frames bring little")
    watch.note_update(200_000, 60.0, 0.05)
    watch.note_update(201_000, 60.0, 0.05)
    assert [w.partition(":")[0] for w in words(watch)] == ["more frames bring little", "convergence lost"]
