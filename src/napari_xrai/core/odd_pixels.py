"""Pixels that lie: hot ones, lit in frame after frame whatever the particle does, and dead ones, never lit.

Over many frames at all poses the mean pattern is smooth. A pixel far above or far below what its neighbours measure has
a fault; left in, it draws every frame's bright (or dark) speckles onto itself. So does the shadow of a beam stop
that is in no mask.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from .pixels import Pixels, SparsePhotons

F64 = NDArray[np.float64]
Mask = NDArray[np.bool_]

FEWEST_FRAMES = 100
"""Fewer share too few poses for a smooth mean."""

NEIGHBOURS = 12
"""Pixels compared with, about two rings around: a cluster of up to five faulty ones is still seen."""

HOT, DEAD = 2.5, 0.15
"""Photons over those the neighbours lead to expect."""

DEVIATIONS = 8.0
"""Poisson standard deviations that a hot pixel lies above as well."""

FLASH = 3.0
"""Times a pixel's mean photons: all that one frame may add to its sum, but for two photons more."""

FEWEST_EXPECTED = 40.0
"""Photons expected in all, below which a dark pixel may be dark by chance."""


def find_odd_pixels(pixels: Pixels, photons: SparsePhotons) -> tuple[Mask, Mask]:
    """(U,) which pixels are hot and which are dead, by their photons beside their neighbours'.

    Parameters
    ----------
    pixels : Pixels
    photons : SparsePhotons
        Frames at many poses; none is odd where there are fewer than `FEWEST_FRAMES`.
    """
    n = len(pixels.rho)
    hot, dead = np.zeros(n, bool), np.zeros(n, bool)
    if len(photons) < FEWEST_FRAMES:
        return hot, dead
    counted = _without_flashes(pixels, photons)
    _, near = cKDTree(pixels.q).query(pixels.q, min(n, NEIGHBOURS + 1))
    shadow = _shadow(pixels, counted)
    for _ in range(3):  # what is odd spoils what is expected elsewhere
        good = ~(hot | dead | shadow)
        ring = _ring_means(pixels, counted, good)
        relative = np.where(good, counted / np.maximum(ring, 1e-9), np.nan)
        local = np.nan_to_num(np.nanmedian(np.where(good[near[:, 1:]], relative[near[:, 1:]], 1.0), 1), nan=1.0)
        expected = local * ring
        hot = counted > HOT * expected + DEVIATIONS * np.sqrt(expected + 1)
        dead = (expected > FEWEST_EXPECTED) & (counted < DEAD * expected)
        dead |= (ring > FEWEST_EXPECTED) & (counted == 0)
    return hot & ~shadow, dead | shadow


def _shadow(pixels: Pixels, counted: F64) -> Mask:
    """(U,) pixels within the innermost ring that is lit, and brightly: a beam stop that no mask tells of."""
    radius = np.rint(np.linalg.norm(pixels.q, axis=1)).astype(int)
    photons = np.bincount(radius, counted)
    lit = np.flatnonzero(photons)
    if not len(lit) or photons[lit[0]] / (radius == lit[0]).sum() < FEWEST_EXPECTED:
        return np.zeros(len(counted), bool)
    return np.asarray(radius < lit[0])


def _without_flashes(pixels: Pixels, photons: SparsePhotons) -> F64:
    """(U,) photons of every pixel, a frame counting for at most `FLASH` times the mean there and two more: the streak
    of a crystal's face, seen in one frame of a thousand, says nothing of a pixel.
    """
    counted = np.bincount(photons.pixel, photons.count, len(pixels.rho)).astype(np.float64)
    most = 2 + FLASH * _ring_means(pixels, counted, np.ones(len(counted), bool)) / len(photons)
    return np.asarray(np.bincount(photons.pixel, np.minimum(photons.count, most[photons.pixel]), len(most)), np.float64)


def _ring_means(pixels: Pixels, counted: F64, good: Mask) -> F64:
    """(U,) photons that each pixel's response and the good pixels at its |q| lead to expect."""
    radius = np.linalg.norm(pixels.q, axis=1)
    shell = np.rint(radius[good]).astype(int)
    photons, response = np.bincount(shell, counted[good]), np.bincount(shell, pixels.response[good])
    seen = np.flatnonzero(response > 0)
    return np.asarray(np.interp(radius, seen, photons[seen] / response[seen]) * pixels.response)


def leave_out_odd_pixels(pixels: Pixels, photons: SparsePhotons) -> tuple[Pixels, SparsePhotons, dict[str, str]]:
    """Pixels and frames as if odd pixels had been masked, and how many there were, to be shown."""
    hot, dead = find_odd_pixels(pixels, photons)
    kept = ~(hot | dead)
    if kept.all():
        return pixels, photons, {}
    shadow = dead & _shadow(pixels, np.bincount(photons.pixel, photons.count, len(dead)).astype(np.float64))
    said = f"{hot.sum()} hot, {(dead & ~shadow).sum()} dead"
    said += f", {shadow.sum()} in the beam stop's shadow" if shadow.any() else ""
    return pixels.only(kept), photons.on(kept), {"odd pixels": f"{said}: left out"}
