"""How far each voxel of the intensity may be from the truth: counting noise, blur by pose errors, and distortion.

With v the ratio that the field holds, E the exposure behind a voxel, and Ī the radial mean,

    σ² = Ī² ( g v/E + C [1 − 2/(1 + x) + 1/(1 + 2x)] + 2C [1 − exp(−θ²/2a²)] ).

- Noise: photons alone would make Var v = v/E. Interpolation spreads a photon over eight voxels and the field's filter
  takes noise away: the half-sets differ by g times as much, (v₀ − v₁)²/4 against v/E, shell by shell.
- Blur: C = Var v in truth and H² C in common between half-sets (`contrast`). For speckles of Gaussian correlation, of
  width a, under Gaussian pose errors of width s, x = s²/a²: H² = 1/(1 + 2x), and what is missing from v is the bracket.
- Distortion: where frames crowd (`coverage`), points of the sphere have turned by θ.

The last two are the same all over a shell. They are errors of the map, not noise: they do not average out.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .contrast import FEWEST_PHOTONS, Contrast, common_contrast, response
from .coverage import ViewDensity
from .field import UNMEASURED, IntensityField, friedel_sum, grid_radius
from .rotations import direction_to_rotation, fibonacci_directions

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

CORRELATION_WIDTH = 0.49
"""Standard deviation of a uniform sphere's speckle, in speckles (1/diameter): its half-width 0.576 over √(2 ln 2)."""

POINTS, TURNS = 60, 12


def standard_error(
    field: IntensityField, halves: tuple[F32, F32], exposure: list[F32], contrast: Contrast, views: ViewDensity,
    speckle: float,
) -> F32:  # fmt: skip
    """(edge, edge, edge) standard error of V(q), in its unit; 0 where nothing was measured.

    Parameters
    ----------
    field : IntensityField
    halves : two of (edge³) float32
        Ratios of the half-set fields.
    exposure : two of (edge³) float32
        Behind them.
    contrast : Contrast
        Of the speckles in truth.
    views : ViewDensity
    speckle : float
        Width of a speckle, voxels.
    """
    edge = field.edge
    shell = np.minimum(np.rint(grid_radius(edge)).astype(int), edge // 2)
    behind = [np.maximum(friedel_sum(e), 0) for e in exposure]
    seen = np.minimum(*behind) > FEWEST_PHOTONS
    poisson = np.maximum(field.ratio, 0.0) / np.maximum(field.exposure, FEWEST_PHOTONS)
    found = np.bincount(shell[seen], np.square(halves[0] - halves[1])[seen] / 4, edge // 2 + 1)
    expected = np.bincount(shell[seen], poisson[seen], edge // 2 + 1)
    gain = found / np.maximum(expected, 1e-30)
    known = np.flatnonzero(expected > 0)
    if len(known):
        gain = np.interp(np.arange(edge // 2 + 1), known, gain[known])
    systematic = missing_variance(contrast, common_contrast(halves, seen, edge), views, speckle)
    systematic = systematic[np.minimum(np.arange(edge // 2 + 1), len(systematic) - 1)]
    value = field.profile_grid * np.sqrt(gain[shell] * poisson + systematic[shell])
    value[field.exposure <= UNMEASURED] = 0
    return np.asarray(value.reshape(edge, edge, edge), np.float32)


def missing_variance(contrast: Contrast, common: F64, views: ViewDensity, speckle: float) -> F64:
    """Var (v − its expectation) by shell: blur and distortion."""
    blur = response(contrast, common)
    x = (1 / np.square(blur) - 1) / 2
    true = np.maximum(common[: len(blur)], 0) / np.square(blur)
    radius = np.arange(len(blur))
    distortion = 1 - np.exp(-mean_square_turn(views) * np.square(radius / (CORRELATION_WIDTH * speckle)) / 2)
    value = true * (1 - 2 / (1 + x) + 1 / (1 + 2 * x) + 2 * distortion)
    known = np.flatnonzero(np.isfinite(value))
    return np.interp(radius, known, value[known]) if len(known) else np.zeros(len(blur))


def mean_square_turn(views: ViewDensity) -> float:
    """How far points of the sphere lie from where they should, rad², were all views alike in truth.

    A point n is seen by all frames that look across it, d · n = 0. What they have in common moves it; in what they
    differ they blur it, which is counted as blur.
    """
    point = fibonacci_directions(2 * POINTS)[:POINTS]  # V(q) = V(−q)
    across = direction_to_rotation(point)[:, :, :2]
    angle = np.arange(TURNS) * np.pi / TURNS  # d and −d are one view
    direction = np.einsum("nij,jk->nki", across, np.stack([np.cos(angle), np.sin(angle)]))
    turn = views.displacement(direction.reshape(-1, 3)).reshape(POINTS, TURNS, 3).mean(1)
    return float(np.square(np.cross(turn, point)).sum(1).mean())
