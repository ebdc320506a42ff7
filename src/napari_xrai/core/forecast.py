"""What more frames would bring: the resolution at 2, 5 and 10 times as many, from how far the half-sets agree now.

Two half-sets with the signal in common and independent noise correlate CC = S/(1 + S), S their signal-to-noise ratio in
the shell. Noise averages out, so S grows as the number of frames; with m times as many the curve is

    CC_m = m S/(1 + m S),   and crosses ½ where S = 1/m, that is, where it is 1/(1 + m) today

(for FSC: Rosenthal & Henderson 2003, J. Mol. Biol. 333, 721). Poses found against a better map are better themselves,
so S at high |q| may grow faster; blur that does not average out makes it grow more slowly. The range allows for S
growing as m^0.5 to m^1.5, and for what so few independent points in a shell leave unknown.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .resolution import ShellCurve, crossing

F64 = NDArray[np.float64]

FACTORS = (1, 2, 5, 10)
GROWTH = (0.5, 1.0, 1.5)
"""Powers of m with which S may grow: pessimistic, expected, optimistic."""

NEAR_EDGE = 0.9
"""Of the detector's radius: half-sets that end further in are limited by something else."""

DETECTOR_EDGE = "the detector's edge"


@dataclass(frozen=True, eq=False)
class Forecast:
    """Where half-sets would cease to correlate ½.

    Parameters
    ----------
    factor : (F,) float64
        Times as many frames as now.
    frames : (F,) int64
    q, low, high : (F,) float64
        |q| expected, and its range, in the unit of the curve; NaN where the half-sets do not agree at all.
    edge : float
        |q| of the last shell with a figure: there is nothing to be had beyond.
    at_edge : (F,) bool
        Whether the forecast is limited by that shell.
    sentence : str
        In words.
    """

    factor: F64
    frames: NDArray[np.int64]
    q: F64
    low: F64
    high: F64
    edge: float
    at_edge: NDArray[np.bool_]
    sentence: str


def forecast(halves: ShellCurve, frames: int, units: str, edge: float) -> Forecast:
    """Forecast the half-set resolution.

    Parameters
    ----------
    halves : ShellCurve
        Correlation of two half-sets, as reached with `frames` frames.
    frames : int
    units : "1/angstrom" or "detector_voxel"
        Of ``halves.q``.
    edge : float
        |q| up to which the detector measures whole rings.
    """
    known = np.isfinite(halves.value) & (halves.q <= edge * (1 + 1e-9))
    smooth = _falling(halves.value[known])
    curve = ShellCurve(halves.q[known], smooth, halves.count[known])
    error = (1 - smooth**2) / np.sqrt(np.maximum(curve.count, 4) - 3)
    found = np.full((len(GROWTH), len(FACTORS)), np.nan)
    for row, power in enumerate(GROWTH):
        moved = ShellCurve(curve.q, np.clip(smooth + (row - 1) * error, 0, 1), curve.count)
        for column, factor in enumerate(FACTORS):
            found[row, column] = crossing(moved, 1 / (1 + factor**power))
    last = float(curve.q[-1]) if known.any() else float("nan")
    factors = np.array(FACTORS, np.float64)
    at_edge = np.isclose(found[1], last)
    limit = DETECTOR_EDGE if last > NEAR_EDGE * edge else "the last shell in use so far"
    return Forecast(
        factors, (factors * frames).astype(np.int64), found[1], found[0], found[2], last, at_edge,
        _sentence(found, at_edge, limit, units),
    )  # fmt: skip


def _falling(value: F64) -> F64:
    """The nearest curve that never rises: noise must not end a forecast early (pool adjacent violators)."""
    if len(value) == 0:
        return value
    from scipy.optimize import isotonic_regression

    return np.clip(np.asarray(isotonic_regression(value, increasing=False).x, np.float64), 0.0, 1.0)


def _sentence(found: F64, at_edge: NDArray[np.bool_], limit: str, units: str) -> str:
    if not np.isfinite(found[1, 0]):
        return "the half-sets do not agree yet: nothing can be forecast"
    if at_edge[0]:
        if limit == DETECTOR_EDGE:
            return f"the half-sets agree to {limit}: more frames bring less noise, but no finer resolution"
        return f"the half-sets agree to {limit}: a longer run tells what is beyond"
    words = []
    for column in range(1, len(FACTORS)):
        worst, expected, best = (_length(q, units) for q in found[:, column])
        span = f" (at worst {worst}, at best {best})" if best != worst else ""
        coming = f"about {expected}{span}"
        if at_edge[column]:  # further shells may be had, or there are none
            coming = f"{limit} ({expected})" if limit == DETECTOR_EDGE else f"{expected} or finer, beyond {limit}"
        words.append(f"with {FACTORS[column]}× {'as many frames ' if column == 1 else ''}{coming}")
        if at_edge[column]:
            break
    return f"resolution now {_length(found[1, 0], units)}; forecast: " + ", ".join(words)


def _length(q: float, units: str) -> str:
    return f"{1 / q:.3g} Å" if units == "1/angstrom" else f"{q:.3g} voxels"
