"""A forecast made from few frames is what more frames then bring."""

import numpy as np
import pytest

from napari_xrai.core.forecast import forecast
from napari_xrai.core.frames import Volume
from napari_xrai.core.resolution import ShellCurve, crossing, shell_correlation

N = 41


def half_curve(frames: float, seed: int) -> ShellCurve:
    """Two maps with a common signal, and noise that grows steeply with |q| and falls with the number of frames."""
    rng = np.random.default_rng(seed)
    axis = np.arange(N) - N // 2
    radius = np.sqrt((axis**2)[:, None, None] + (axis**2)[:, None] + axis**2)
    signal = np.random.default_rng(99).normal(size=(N, N, N))
    noise = np.exp(radius / 3.2) / np.sqrt(frames)
    maps = [
        Volume((signal + noise * rng.normal(size=signal.shape)).astype(np.float32), 0.01, "1/angstrom") for _ in "01"
    ]
    return shell_correlation(*maps)


def test_the_forecast_comes_true():
    now = forecast(half_curve(1000, 0), 1000, "1/angstrom", 0.2)
    assert now.frames.tolist() == [1000, 2000, 5000, 10000]
    for frames, q, low, high in zip(now.frames[1:], now.q[1:], now.low[1:], now.high[1:], strict=True):
        reached = crossing(half_curve(float(frames), 1), 0.5)
        assert q == pytest.approx(reached, abs=0.006)  # under a shell
        assert low <= reached <= high
    two, five, ten = (
        f"about {1 / q:.3g} Å (at worst {1 / low:.3g} Å, at best {1 / high:.3g} Å)"
        for q, low, high in zip(now.q[1:], now.low[1:], now.high[1:], strict=True)
    )
    assert now.sentence == (
        f"resolution now {1 / now.q[0]:.3g} Å; forecast: with 2× as many frames {two}, with 5× {five}, with 10× {ten}"
    )


def test_it_says_where_the_detector_ends():
    now = forecast(half_curve(30_000, 0), 500, "1/angstrom", 0.15)
    assert now.at_edge[-1]
    assert "the detector's edge" in now.sentence
    assert now.q[-1] == pytest.approx(0.15)


def test_an_early_curve_is_not_taken_for_the_detectors_edge():
    curve = half_curve(1e6, 0)
    curve.value[9:] = np.nan
    assert "in use so far" in forecast(curve, 500, "1/angstrom", 0.2).sentence
    curve = half_curve(3000, 0)
    last = np.flatnonzero(curve.value > 0.5).max() + 1
    curve.value[last + 1 :] = np.nan
    coming = forecast(curve, 500, "1/angstrom", 0.2)
    assert coming.sentence.endswith(f"{1 / curve.q[last]:.3g} Å or finer, beyond the last shell in use so far")


def test_halves_that_do_not_agree_forecast_nothing():
    noise = ShellCurve(np.arange(20) * 0.01, np.full(20, 0.02), np.full(20, 100))
    now = forecast(noise, 100, "detector_voxel", 0.2)
    assert np.isnan(now.q).all()
    assert "nothing can be forecast" in now.sentence
    nothing = ShellCurve(np.zeros(0), np.zeros(0), np.zeros(0, np.int64))
    assert "nothing" in forecast(nothing, 0, "1/angstrom", 0.2).sentence
