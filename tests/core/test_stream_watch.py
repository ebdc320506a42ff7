"""What changes at the beamline is told once, and noise is not."""

import numpy as np

from napari_xrai.core.stream_watch import StreamWatch


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


def test_the_beam_goes_and_comes():
    watch = StreamWatch()
    watch.listen(None)  # nothing came yet: nothing to miss
    for silent_s in (0.0, *range(35), 0.1, 4.0):
        watch.listen(float(silent_s))
    watch.listen(None)
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
