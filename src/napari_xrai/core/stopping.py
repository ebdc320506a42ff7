"""When to stop: how many passes over the same frames are needed, and whether another pays."""

from __future__ import annotations

LAST_UPDATES = 2
"""At full resolution, at least."""

MOST_PASSES = 20

GAINING, GAINING_SHARE = 0.1, 0.002
"""Log-likelihood per frame, and part of it where that is less: a pass that brings less is the last."""

RUNAWAY = 1.5
"""A pass that brings so much more than the one before it has found something: the particle, or its own noise."""

CLEARED = 0.01
"""Part of the frames that a pass called junk, from which on its gain is theirs: they no longer count."""

AT_REST = 0.95
"""Part of the poses that stay within 10° from pass to pass once nothing is left to be found."""


def another_pass_pays(gain: float, last_gain: float, likelihood: float, settled: float, cleared: float) -> bool:
    """Whether a pass that brought `gain` is to be followed by another.

    Gains fall from pass to pass. They rise while frames change over to a likelier mode, more of them the better it is
    told from its rival; then poses are on the move. Where poses had come to rest, gains rise when frames gather where
    noise is, and deepen it: such a pass is the last.

    Parameters
    ----------
    gain, last_gain : float
        Mean log-likelihood per frame that the last pass brought, and the one before it.
    likelihood : float
        Mean log-likelihood per frame before the last pass.
    settled : float
        Part of the poses that stayed within 10° in the last pass.
    cleared : float
        Part of the frames that the last pass called junk.
    """
    least = min(GAINING, GAINING_SHARE * abs(likelihood))
    if settled >= AT_REST and cleared < CLEARED and gain > RUNAWAY * max(last_gain, least):
        return False
    return bool(gain > least)  # of a NumPy number, which JSON would not know


def passes_needed(marching: int, per_pass: int, done: int, gaining: bool) -> int:
    """Passes known to be needed.

    Parameters
    ----------
    marching : int
        Updates that take the resolution to the detector's edge.
    per_pass : int
        Updates in a pass.
    done : int
        Passes made.
    gaining : bool
        Whether another pays.
    """
    planned = max(2, -(-(marching + LAST_UPDATES) // per_pass))
    more = done >= planned and gaining and done < MOST_PASSES
    return max(planned, done + more)
