"""How far each voxel of the intensity may be from the truth: counting noise, blur by pose errors, lost detail.

With v the ratio that the field holds, E the exposure behind a voxel, and Ī the radial mean,

    σ² = Ī² ( g v/E + C [1 − 2/(1 + x) + 1/(1 + 2x)] + ⟨(w₀ − v₀)(w₁ − v₁)⟩ ).

- Noise: photons alone would make Var v = v/E. Interpolation spreads a photon over eight voxels and the field's filter
  takes noise away: the half-sets differ by g times as much, (v₀ − v₁)²/4 against v/E, shell by shell.
- Blur: C = Var v in truth and H² C in common between half-sets (`contrast`). For speckles of Gaussian correlation, of
  width a, under Gaussian pose errors of width s, x = s²/a²: H² = 1/(1 + 2x), and what is missing from v is the bracket.
- Filter: w are the half-sets with the widest band there is. Their noise is independent, so what the particle's band
  has taken from both alike is structure, not noise. Near the beam, where noise is least, this is the largest part.

The last two are the same all over a shell. They are errors of the map, not noise: they do not average out. Beside the
beam stop pixels look at voxels that are half in its shadow, and none of this holds: the error is not known there.
"""

from __future__ import annotations

from copy import copy

import numpy as np
from numpy.typing import NDArray

from .band_limit import BANDS
from .contrast import FEWEST_PHOTONS, Contrast, common_contrast, half_ratios, response
from .field import UNMEASURED, IntensityField, friedel_sum, grid_radius

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

SHADOW = 2.0
"""Voxels beyond the beam stop's edge within which the error is not known."""


def standard_error(
    field: IntensityField, photons: list[F32], exposure: list[F32], halves: tuple[F32, F32], contrast: Contrast,
    inner_radius: float,
) -> F32:  # fmt: skip
    """(edge, edge, edge) standard error of V(q), in its unit; 0 where nothing was measured, or where it is not known.

    Parameters
    ----------
    field : IntensityField
    photons, exposure : two of (edge³) float32
        The half-sets behind it.
    halves : two of (edge³) float32
        Their ratios, filtered as the field is.
    contrast : Contrast
        Of the speckles in truth.
    inner_radius : float
        Of the beam stop, voxels; 0 without one.
    """
    edge = field.edge
    radius = grid_radius(edge)
    shell = np.minimum(np.rint(radius).astype(int), edge // 2)
    seen = np.minimum(*(friedel_sum(e) for e in exposure)) > FEWEST_PHOTONS
    poisson = np.maximum(field.ratio, 0.0) / np.maximum(field.exposure, FEWEST_PHOTONS)
    gain = _by_shell(np.square(halves[0] - halves[1]) / 4, shell, seen) / _by_shell(poisson, shell, seen)
    systematic = _filtered_out(field, photons, exposure, halves, shell, seen)
    blur = missing_variance(contrast, common_contrast(halves, seen, edge))
    systematic += blur[np.minimum(np.arange(edge // 2 + 1), len(blur) - 1)]
    value = field.profile_grid * np.sqrt(gain[shell] * poisson + systematic[shell])
    known = (field.exposure > UNMEASURED) & ((radius > inner_radius + SHADOW) | (inner_radius < 1))
    return np.asarray(np.where(known, value, 0).reshape(edge, edge, edge), np.float32)


def _by_shell(value: NDArray[np.floating], shell: NDArray[np.int64], seen: NDArray[np.bool_]) -> F64:
    """Mean over each shell's `seen` voxels; between shells, and beyond the last, from their neighbours."""
    length = int(shell.max()) + 1
    count = np.bincount(shell[seen], minlength=length)
    known = np.flatnonzero(count)
    if not len(known):
        return np.ones(length)
    total = np.bincount(shell[seen], value[seen], length)
    return np.maximum(np.interp(np.arange(length), known, total[known] / count[known]), 1e-30)


def _filtered_out(
    field: IntensityField, photons: list[F32], exposure: list[F32], halves: tuple[F32, F32],
    shell: NDArray[np.int64], seen: NDArray[np.bool_],
) -> F64:  # fmt: skip
    """Variance by shell of the structure that the field's band leaves out."""
    wide = copy(field)
    wide.band = BANDS[-1]
    lost = [w - v for w, v in zip(half_ratios(wide, photons, exposure), halves, strict=True)]
    return _by_shell(lost[0] * lost[1], shell, seen)


def missing_variance(contrast: Contrast, common: F64) -> F64:
    """Var (v − its expectation) by shell: blur."""
    blur = response(contrast, common)
    x = (1 / np.square(blur) - 1) / 2
    true = np.maximum(common[: len(blur)], 0) / np.square(blur)
    value = true * (1 - 2 / (1 + x) + 1 / (1 + 2 * x))
    known = np.flatnonzero(np.isfinite(value))
    return np.interp(np.arange(len(blur)), known, value[known]) if len(known) else np.zeros(len(blur))
