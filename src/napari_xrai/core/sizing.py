"""The particle's diameter, from the mean pattern where that has rings, from its speckles where it has not.

Speckles of a compact, nearly round particle are not those of a sphere of its size: turning a cube changes little near
the beam, so what coincides there is the rest. But then frames all show the same rings, and the mean over all poses is
the form factor of a spheroid, |3 (sin x − x cos x)/x³|², x = 2π q √(a² (1 − t²) + c² t²), averaged over t = 0 … 1
(Guinier & Fournet 1955). Irregular particles have no rings in the mean but strong speckles. Which it is, the contrast
of the speckles says.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .pixels import Pixels, SparsePhotons
from .speckle import Speckle

F64 = NDArray[np.float64]

NEARLY_ROUND = 0.35
"""Speckle contrast near the beam below which the mean pattern tells the size: 0 for a sphere, .06 a cube, .28 a
spheroid of axes 80:80:130; .41 or more for five proteins."""

WIDTH = 1.5
"""Speckles from the beam that the spheroid is fitted to, or `RINGS` beyond the beam stop: further out, edges show."""
RINGS = 1.2

DIAMETERS = np.geomspace(0.4, 3.0, 80)
"""Longest axes tried, in diameters of the speckles' sphere."""

RATIOS = np.array([0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.15, 1.3, 1.5, 1.8, 2.2])
"""Shape: below 1 short over long axis of a cigar, above 1 long over short of a disc."""

ENOUGH = 400.0
"""Photons on a ring beyond which its weight no longer grows: there the model is what is wrong."""

STEPS = 24


@dataclass(frozen=True)
class Size:
    """How large the particle is.

    Parameters
    ----------
    diameter : float
        Of the sphere with the same radius of gyration, in 1/voxel.
    source : "mean pattern" or "speckles"
        Where it was read from.
    """

    diameter: float
    source: str


def measure_size(pixels: Pixels, photons: SparsePhotons, speckle: Speckle) -> Size:
    """Estimate the diameter from a few thousand frames; no pose is needed."""
    if speckle.contrast > NEARLY_ROUND or not len(photons):
        return Size(speckle.diameter, "speckles")
    radius, counted, response = mean_rings(pixels, photons)
    near = radius < max(WIDTH * speckle.size, radius[0] + RINGS * speckle.size)
    if near.sum() < 4:
        return Size(speckle.diameter, "speckles")
    return Size(fit_spheroid(radius[near], counted[near], response[near], speckle.diameter), "mean pattern")


def mean_rings(pixels: Pixels, photons: SparsePhotons) -> tuple[F64, F64, F64]:
    """Radius, photons and response × frames of rings half a voxel wide."""
    q = np.linalg.norm(pixels.q.astype(np.float64), axis=1)
    ring = np.rint(2 * q).astype(int)
    pixels_in = np.bincount(ring)
    present = pixels_in > 0
    light = 0 if pixels.background is None else len(photons) * pixels.background.light
    particle = np.bincount(photons.pixel, photons.count, len(q)) - light
    sums = np.maximum(np.bincount(ring, particle), 0), np.bincount(ring, pixels.response)
    counted, response = (np.asarray(total[present], np.float64) for total in sums)
    radius = np.asarray(np.bincount(ring, q)[present] / pixels_in[present], np.float64)
    return radius, counted, response * len(photons)


def fit_spheroid(radius: F64, counted: F64, response: F64, about: float) -> float:
    """Diameter of the sphere whose radius of gyration is the best spheroid's; axes are sought around `about`."""
    weight = np.minimum(counted, ENOUGH)
    best, found = np.inf, about
    for longest in DIAMETERS * about:
        for ratio in RATIOS:
            c, a = (longest / 2, ratio * longest / 2) if ratio <= 1 else (longest / 2 / ratio, longest / 2)
            form = spheroid_form(radius, a, c) + 1e-4
            expected = form * response * (counted.sum() / (form * response).sum())
            misfit = float(weight @ np.square(np.log(np.maximum(counted, 0.5) / expected)))
            if misfit < best:
                best, found = misfit, 2 * np.sqrt((2 * a * a + c * c) / 3)
    return float(found)


def spheroid_form(q: F64, a: float, c: float) -> F64:
    """(Q,) |F|² of a uniform spheroid of semi-axes a, a, c, relative to q = 0, averaged over all poses."""
    t = (np.arange(STEPS) + 0.5) / STEPS
    x = np.maximum(2 * np.pi * q[:, None] * np.sqrt(a * a * (1 - t * t) + c * c * t * t), 1e-2)
    return np.asarray(np.square(3 * (np.sin(x) - x * np.cos(x)) / x**3).mean(1))
