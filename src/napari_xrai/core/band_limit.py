"""The intensity of a particle no larger than D varies no faster than 1/D: noise beyond is filtered out.

V is the Fourier transform of the density's autocorrelation, which vanishes beyond the particle's diameter. Filtering
photons and exposure alike keeps their quotient unbiased; what is filtered is the photons' excess over a smooth
estimate, whose band is not limited (the hole behind the beam stop, the steep centre).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

F32 = NDArray[np.float32]

TAPER = 1.5
"""The filter passes everything up to the band, nothing beyond `TAPER` times it."""

LEAST_EXPOSURE = 0.3
"""Part of the smooth exposure that the filtered one keeps at least: the filter's kernel has negative lobes."""

PRIOR_PHOTONS = 0.5

BANDS = (0.05, 0.0625, 0.08, 0.1, 0.125, 0.16, 0.2, 0.25, 0.315, 0.4)
"""What is tried, cycles per voxel; the largest leaves all but the corners of what a grid can hold."""


FAR = 2.5
"""Widths of the Gaussian that smooths, where it ends."""


def filtered_ratio(photons: F32, exposure: F32, smoothing: float, band: float, base: F32 | None = None) -> F32:
    """(edge, edge, edge) photons over exposure without what varies faster than `band`.

    Parameters
    ----------
    photons, exposure : (edge, edge, edge) float32
        Counted, and expected at ratio 1.
    smoothing : float
        Width of the Gaussian that makes the estimate whose band is not limited, voxels.
    band : float
        Cycles per voxel.
    base : (edge, edge, edge) float32
        What the filtered excess is added to, whatever its band; by default the quotient of both, smoothed.
    """
    smooth = _smooth(exposure, smoothing)
    if base is None:
        base = (_smooth(photons, smoothing) + PRIOR_PHOTONS) / (smooth + PRIOR_PHOTONS)
    return band_limited(photons, exposure, base, smooth, band)


def _smooth(cube: F32, width: float) -> F32:
    for axis in range(3):
        cube = gaussian_filter1d(cube, width, axis=axis, mode="nearest", truncate=FAR)
    return cube


def band_limited(photons: F32, exposure: F32, base: F32, smooth_exposure: F32, band: float) -> F32:
    """(edge, edge, edge) photons over exposure, both even in q: `base`, and what of their excess over it varies no
    faster than `band`.

    Parameters
    ----------
    photons, exposure : (edge, edge, edge) float32
        Counted, and expected at ratio 1.
    base : (edge, edge, edge) float32
    smooth_exposure : (edge, edge, edge) float32
        The exposure smoothed by a positive kernel.
    band : float
        Cycles per voxel.
    """
    edge = len(base)
    size = fast_length(edge)
    keep = low_pass(size, band)
    excess, seen = (
        scipy.fft.irfftn(scipy.fft.rfftn(grid, (size,) * 3) * keep, (size,) * 3)[:edge, :edge, :edge]
        for grid in (photons - exposure * base, exposure)
    )
    seen = np.maximum(seen, np.float32(LEAST_EXPOSURE) * smooth_exposure) + np.float32(PRIOR_PHOTONS)
    ratio = base + excess / seen
    return np.asarray((ratio + ratio[::-1, ::-1, ::-1]) / 2, np.float32)  # even, whatever the transform rounded


def fast_length(edge: int) -> int:
    """The next length that a transform likes."""
    return int(scipy.fft.next_fast_len(edge, real=True))


@lru_cache(maxsize=4)
def low_pass(size: int, band: float) -> F32:
    """(size, size, size // 2 + 1) what of each frequency passes; the same array again for the same numbers."""
    one_sided, two_sided = scipy.fft.rfftfreq(size), scipy.fft.fftfreq(size)
    frequency = np.sqrt(two_sided[:, None, None] ** 2 + two_sided[:, None] ** 2 + one_sided**2)
    beyond = np.clip((frequency / band - 1) / (TAPER - 1), 0, 1)
    return np.asarray(0.5 + 0.5 * np.cos(np.pi * beyond), np.float32)
