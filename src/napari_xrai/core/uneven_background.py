"""Light that is the same in every frame and not even about the beam: slits, windows, a bright edge.

Particles come in all orientations, so their mean pattern is c(p) Ī(|q|): the same all around the beam. What the mean of
many frames has beyond that is no particle's. Left in, frames turn until their bright speckles lie on it: a streak with
three tenths of the particle's photons led every start to the same wrong particle. It needs no pose to be known, and
what of a background is even about the beam needs not be told apart: it is part of the intensity (`blank_background`).

With d photons per frame expected in a pixel beside the w of a structureless particle, a photon there counts
s = w / (w + d), and s·d is taken off again:

    Σ_p s (K − d) log v(R q) − f Σ_p s w v(R q)

is as great as it can be, on average, at the true pose whatever d is, and as sharp as it says where v is near 1
(a quasi-likelihood; Wedderburn 1974, Biometrika 61, 439). The photons and the exposure that are merged are s (K − d)
and f s w: their quotient is the intensity, and two half-sets still share nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.interpolate import BSpline

from .pixels import Background, Pixels, SparsePhotons

F64 = NDArray[np.float64]

FEWEST_FRAMES = 200
"""Fewer share too few poses for an even mean."""

FEWEST_PIXELS = 32
"""As many as any reconstruction asks for: where light falls on fewer, what is wrong is not its unevenness."""

LEAST_EVEN = 0.01
"""Part of the photons that is even where there is a particle: less is a fault of the frames, and not taken out."""

BLOCKS = 8
"""Independent means: what they have in common is no accident of which poses and photons came."""

DEVIATIONS = 5.0
"""Standard errors that what they have in common lies above nothing."""

LEAST_UNEVEN = 0.03
"""Of the mean pattern, rms over photons: below it poses suffer less than the remedy may cost."""

ROUNDS, CLOSE = 30, 0.02
"""Of the fit to what most pixels of a ring have; nearer than so much of it, distances no longer count."""

STIFF = 1e-9
"""Keeps the fit defined where no pixel looks."""

FAINTEST = 1e-9
"""Photons per frame and pixel: no logarithm of nothing."""

DARKEST = 0.2
"""Part of what is even: darker pixels lie in a shadow and tell nothing; they are left out."""

FEWEST_EXPECTED = 40.0
"""Photons expected in all, below which a dark pixel may be dark by chance."""


@dataclass(frozen=True)
class Unevenness:
    """How far the mean pattern is from even.

    Parameters
    ----------
    relative : float
        Root mean square over photons, of what independent means have in common.
    error : float
        Standard error of its square.
    """

    relative: float
    error: float

    @property
    def is_there(self) -> bool:
        """Whether it is more than chance, and enough to matter."""
        return self.relative > LEAST_UNEVEN and self.relative**2 > DEVIATIONS * self.error


def find_uneven_background(pixels: Pixels, photons: SparsePhotons) -> tuple[Pixels, SparsePhotons, str]:
    """Pixels with their uneven background and frames on them, and what was found, in words; unchanged, and nothing,
    where there is none.

    Parameters
    ----------
    pixels : Pixels
    photons : SparsePhotons
        A few thousand frames on them, at all poses.
    """
    if len(photons) < FEWEST_FRAMES or not unevenness(pixels, photons).is_there:
        return pixels, photons, ""
    mean = np.bincount(photons.pixel, photons.count, len(pixels.rho)) / len(photons)
    even = even_pattern(pixels, mean, ROUNDS)
    lit = (mean > DARKEST * even) | (even * len(photons) < FEWEST_EXPECTED)
    light = mean - even
    if lit.sum() < FEWEST_PIXELS or even.sum() < LEAST_EVEN * mean.sum():
        return pixels, photons, ""
    part = np.maximum(light, 0).sum() / max(mean.sum(), FAINTEST)
    share = even / (even + np.maximum(light, 0))
    found = Background(light.astype(np.float32), share.astype(np.float32))
    return (
        replace(pixels, background=found).only(lit),
        photons.on(lit),
        (f"{part:.0%} of the photons, alike in all frames, lie unevenly"),
    )


def unevenness(pixels: Pixels, photons: SparsePhotons) -> Unevenness:
    """How far the mean of frames at all poses is from even about the beam.

    Blocks of frames make independent means. Over pairs of blocks the products of their deviations are, on average, the
    square of what all frames have in common; photons and poses drop out.
    """
    frame = np.repeat(np.arange(len(photons)) % BLOCKS, np.diff(photons.start))
    n = len(pixels.rho)
    sums = np.bincount(frame * n + photons.pixel, photons.count, BLOCKS * n).reshape(BLOCKS, n)
    means = sums / np.bincount(np.arange(len(photons)) % BLOCKS, minlength=BLOCKS)[:, None]
    even = even_pattern(pixels, means.mean(0), 2)
    deviation = means - means.mean(1, keepdims=True) / max(means.mean(), FAINTEST) * even
    products = (deviation / even) @ deviation.T / even.sum()
    pairs = products[np.triu_indices(BLOCKS, 1)]
    return Unevenness(float(np.sqrt(max(pairs.mean(), 0.0))), float(pairs.std(ddof=1) / np.sqrt(len(pairs))))


def even_pattern(pixels: Pixels, mean: F64, rounds: int) -> F64:
    """(U,) what each pixel would have, were the `mean` pattern (U,) the same all around the beam.

    A cubic spline over |q|, times the response, fitted by least squares; after many `rounds`, in which pixels count the
    less the further they lie from it, by least distances: what most pixels of a ring have.
    """
    radius = np.linalg.norm(pixels.q.astype(np.float64), axis=1)
    inner, outer = radius.min(), radius.max() + 1e-6
    knots = np.linspace(inner, outer, max(2, int(outer - inner) + 1))
    basis = BSpline.design_matrix(radius, np.pad(knots, 3, mode="edge"), 3).tocsc().multiply(pixels.response[:, None])
    stiff = STIFF * sparse.eye_array(basis.shape[1])
    even = np.full(len(mean), max(mean.mean(), FAINTEST))
    weight = np.ones(len(mean))
    for _ in range(rounds):
        weighted = basis.multiply((weight / even)[:, None]).T.tocsc()
        even = np.maximum(basis @ sparse.linalg.spsolve(weighted @ basis + stiff, weighted @ mean), FAINTEST)
        weight = 1 / (np.abs(mean - even) / even + CLOSE)
    return np.asarray(even)
