"""Where in the density detail is to be believed: Fourier shell correlation in a window that slides over two halves.

Both maps are passed through one band of |q| after the other; in each band their correlation is taken under a Gaussian
window about every voxel. Local resolution is 1/q where it first falls below a threshold: windowed FSC (Cardone, Heymann
& Steven 2013, J. Struct. Biol. 184, 226), all windows at once.
"""

from __future__ import annotations

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from .frames import Volume
from .resolution import RESOLVED, fourier_shells

F32 = NDArray[np.float32]

BAND = 2
"""Shells to a band."""

WINDOW = 2.5
"""Standard deviation of the window in wavelengths of the finest band: fewer waves say nothing, more are not local."""

WIDEST = 0.5
"""But at least so much of the band's own longest wavelength."""


def local_resolution(
    one: Volume, other: Volume, inside: NDArray[np.bool_], radius: int, threshold: float = RESOLVED
) -> Volume:
    """Local resolution of two densities on one grid.

    Parameters
    ----------
    one, other : Volume
        Densities (z, y, x) of two half-sets.
    inside : (n, n, n) bool
        Where there is anything to be resolved.
    radius : int
        Last shell to look at.
    threshold : float
        Correlation that counts as resolved.

    Returns
    -------
    Volume
        1/q in the unit of the densities; 0 outside.

    Raises
    ------
    ValueError
        If the grids differ.
    """
    if one.data.shape != other.data.shape:
        raise ValueError(f"the two densities are on different grids: {one.data.shape} and {other.data.shape}")
    n = one.data.shape[0]
    shell, _ = fourier_shells(n)
    transforms = [scipy.fft.rfftn(volume.data.astype(np.float32)) for volume in (one, other)]
    found = np.full(one.data.shape, float(max(radius, 1)), np.float32)
    open_ = inside.copy()
    before: F32 = np.ones(one.data.shape, np.float32)
    for low in range(1, radius + 1, BAND):
        if not open_.any():
            break
        band = (shell >= low) & (shell < low + BAND)
        width = max(WINDOW / radius, WIDEST / low)
        window = np.exp(-2 * np.square(np.pi * width * shell)).astype(np.float32)
        a, b = (scipy.fft.irfftn(t * band, s=one.data.shape) for t in transforms)
        ab, aa, bb = (scipy.fft.irfftn(scipy.fft.rfftn(x) * window, s=one.data.shape) for x in (a * b, a * a, b * b))
        value = (ab / np.sqrt(np.maximum(aa * bb, 1e-30))).astype(np.float32)
        ends = open_ & (value < threshold)
        middle = low + (BAND - 1) / 2
        step = (before - threshold) / np.maximum(before - value, 1e-6)
        found[ends] = np.maximum(middle - BAND + BAND * step[ends], 1.0)
        open_ &= ~ends
        before = value
    return Volume(np.where(inside, n * one.voxel_size / found, 0).astype(np.float32), one.voxel_size, one.units)
