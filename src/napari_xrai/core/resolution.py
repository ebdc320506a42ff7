"""How far two maps agree, shell by shell: intensities (shell correlation), densities (FSC), and where a curve ends."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import scipy.fft
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import map_coordinates

from .field import IntensityField, grid_radius
from .frames import Volume
from .pixels import Pixels

HALF_SET_THRESHOLD = 1.0 / 7.0
"""FSC of two half-set maps where their average correlates 0.5 with the truth (Rosenthal & Henderson 2003, eq. 16)."""

RESOLVED = 0.5
"""Threshold for halves that share their poses: ½, as against a known map. They are not independent enough for 1/7."""


@dataclass(frozen=True, eq=False)
class ShellCurve:
    """One figure per shell of |q|.

    Parameters
    ----------
    q : (S,) float64
        Radius of each shell, in the unit of the volumes' reciprocal space.
    value : (S,) float64
        The figure; NaN where the shell holds too little to say.
    count : (S,) int64
        Independent voxels or points behind it.
    """

    q: NDArray[np.float64]
    value: NDArray[np.float64]
    count: NDArray[np.int64]


@lru_cache(maxsize=4)
def shell_index(n: int) -> NDArray[np.int64]:
    """(n, n, n) distance of each voxel from the origin at n//2, rounded to whole voxels; read-only."""
    axis = np.arange(n, dtype=np.float32) - n // 2
    square = axis * axis
    radius = np.sqrt(square[:, None, None] + square[None, :, None] + square[None, None, :])
    shell: NDArray[np.int64] = np.rint(radius).astype(np.int64)
    shell.setflags(write=False)
    return shell


@lru_cache(maxsize=8)
def fourier_shells(n: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Shell and multiplicity of each coefficient of a real transform (``rfftn``) of an n³ map.

    Returns
    -------
    shell : (n, n, n//2+1) int64
        |q| in reciprocal voxels, rounded; q = 0 at index 0.
    multiplicity : (n//2+1,) float32
        1 on the planes that are their own Friedel mates, 2 elsewhere.
    """
    full, half = np.fft.fftfreq(n, 1 / n).astype(np.float32), np.arange(n // 2 + 1, dtype=np.float32)
    radius = np.sqrt(full[:, None, None] ** 2 + full[None, :, None] ** 2 + half**2)
    multiplicity = np.full(n // 2 + 1, 2.0, np.float32)
    multiplicity[0] = 1.0
    if n % 2 == 0:
        multiplicity[-1] = 1.0
    return np.rint(radius).astype(np.int64), multiplicity


def shell_correlation(a: Volume, b: Volume, weight: NDArray[np.float32] | None = None) -> ShellCurve:
    """Pearson correlation of two intensities in every voxel shell of their common grid.

    Parameters
    ----------
    a, b : Volume
        Intensities on the same grid, (z, y, x).
    weight : (n, n, n) array, optional
        Voxels of weight 0 are left out; pass the product of both weights.

    Returns
    -------
    ShellCurve
        Shells 0 … n//2, one voxel thick; NaN where fewer than 3 voxels count or one map is constant.

    Raises
    ------
    ValueError
        If the grids differ.
    """
    _require_same_grid(a, b)
    n = a.data.shape[0]
    used = slice(None) if weight is None else np.asarray(weight).reshape(-1) > 0
    shell = shell_index(n).reshape(-1)[used]
    x, y = (v.data.reshape(-1)[used].astype(np.float64) for v in (a, b))
    return _pearson_by_shell(shell, x, y, n // 2 + 1, a.voxel_size)


def half_set_correlation(
    field: IntensityField, photons: list[NDArray[np.float32]], exposure: list[NDArray[np.float32]], pixels: Pixels
) -> ShellCurve:  # fmt: skip
    """Correlation of the ratios that even and odd frames make alone. They share poses: optimistic, and said so.

    Parameters
    ----------
    field : IntensityField
        Whose `estimate` makes them.
    photons, exposure : two of (edge³) float32
        The half-sets.
    pixels : Pixels
    """
    half = [field.estimate(p, e) for p, e in zip(photons, exposure, strict=True)]
    cube = (pixels.edge,) * 3
    volume = [Volume(h.reshape(cube), pixels.voxel_size, pixels.units) for h in half]
    both = (np.minimum(exposure[0], exposure[1]) > 0).astype(np.float32)
    both[grid_radius(pixels.edge) > pixels.orient_radius + 0.5] = 0  # corners: few pixels look there
    return shell_correlation(volume[0], volume[1], (both * both[::-1]).reshape(cube))


def sphere_correlation(
    a: Volume, b: Volume, radii: ArrayLike, *, rotation: ArrayLike | None = None, points: int = 6000, seed: int = 0
) -> ShellCurve:
    """Pearson correlation of two intensities at random points of spheres, trilinear in both.

    Parameters
    ----------
    a, b : Volume
        Intensities, (z, y, x), in the same unit of q; their voxel sizes may differ.
    radii : (S,) array_like
        Radii of the spheres in voxels of `b`.
    rotation : (3, 3) array_like, optional
        Takes (x, y, z) of `b` to (x, y, z) of `a`: ``a(rotation @ q)`` is compared with ``b(q)``.
    points, seed : int
        Random directions per sphere, the same for every sphere.

    Returns
    -------
    ShellCurve
        NaN for a sphere that leaves either volume.

    Raises
    ------
    ValueError
        If the units of q differ.
    """
    if a.units != b.units:
        raise ValueError(f"the intensities are in different units of q: {a.units} and {b.units}")
    direction = np.random.default_rng(seed).normal(size=(points, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    turned = direction if rotation is None else direction @ np.asarray(rotation, np.float64).T
    radii = np.atleast_1d(np.asarray(radii, np.float64))
    value = np.full(len(radii), np.nan)
    for i, radius in enumerate(radii):
        x = sample(a, turned * (radius * b.voxel_size))
        y = sample(b, direction * (radius * b.voxel_size))
        x, y = x - x.mean(), y - y.mean()
        norm = np.sqrt((x @ x) * (y @ y))
        value[i] = (x @ y) / norm if norm > 0 else np.nan
    return ShellCurve(radii * b.voxel_size, value, np.full(len(radii), points, np.int64))


def sample(volume: Volume, position: NDArray[np.float64]) -> NDArray[np.float64]:
    """Trilinear values of `volume` at positions (…, 3) = (x, y, z) from its origin, in its own unit; NaN outside."""
    n = volume.data.shape[0]
    index = np.moveaxis(position[..., ::-1], -1, 0) / volume.voxel_size + n // 2
    value = map_coordinates(volume.data, index, np.float64, order=1, mode="constant", cval=np.nan)
    return np.asarray(value, np.float64)


def fourier_shell_correlation(a: Volume, b: Volume) -> ShellCurve:
    """Fourier shell correlation of two densities (Harauz & van Heel 1986), unmasked.

    Parameters
    ----------
    a, b : Volume
        Densities on the same grid, (z, y, x), aligned.

    Returns
    -------
    ShellCurve
        ``Re Σ A·B* / √(Σ|A|² Σ|B|²)`` in shells 0 … n//2 of thickness ``1/(n·voxel_size)``.

    Raises
    ------
    ValueError
        If the grids differ.
    """
    _require_same_grid(a, b)
    n = a.data.shape[0]
    fa, fb = (scipy.fft.rfftn(v.data.astype(np.float32)) for v in (a, b))
    return fsc_of_transforms(fa, fb, 1.0 / (n * a.voxel_size))


def fsc_of_transforms(fa: NDArray[np.complex64], fb: NDArray[np.complex64], dq: float) -> ShellCurve:
    """FSC of two real transforms (n, n, n//2+1), q = 0 at index 0, `dq` wide per voxel; NaN where one is zero."""
    n = fa.shape[0]
    shell, multiplicity = fourier_shells(n)
    flat = shell.reshape(-1)

    def total(x: NDArray[np.float32]) -> NDArray[np.float64]:
        sums = np.bincount(flat, (x * multiplicity).reshape(-1), int(flat.max()) + 1)
        return np.asarray(sums[: n // 2 + 1], np.float64)

    cross = total(fa.real * fb.real + fa.imag * fb.imag)
    power = total(fa.real**2 + fa.imag**2) * total(fb.real**2 + fb.imag**2)
    value = np.divide(cross, np.sqrt(power), out=np.full(n // 2 + 1, np.nan), where=power > 0)
    count = total(np.ones(shell.shape, np.float32)) / 2
    return ShellCurve(np.arange(n // 2 + 1, dtype=np.float64) * dq, value, count.astype(np.int64))


def crossing(curve: ShellCurve, threshold: float) -> float:
    """|q| where a curve first falls below `threshold`, linear between shells.

    The last shell with a figure, if it never does: the data end there, not the agreement. NaN if the curve has no
    figure at all or starts below. NaN shells (a beam stop) are passed over.
    """
    known = np.isfinite(curve.value)
    q, value = curve.q[known], curve.value[known]
    if len(q) == 0 or value[0] < threshold:
        return float("nan")
    below = np.flatnonzero(value < threshold)
    if len(below) == 0:
        return float(q[-1])
    i = int(below[0])
    return float(q[i - 1] + (q[i] - q[i - 1]) * (value[i - 1] - threshold) / (value[i - 1] - value[i]))


def _pearson_by_shell(
    shell: NDArray[np.int64], x: NDArray[np.float64], y: NDArray[np.float64], n_shells: int, dq: float
) -> ShellCurve:
    def total(v: NDArray[np.float64] | None) -> NDArray[np.float64]:
        return np.asarray(np.bincount(shell, v, n_shells)[:n_shells], np.float64)

    count = total(None)
    mean_x, mean_y = (total(v) / np.maximum(count, 1) for v in (x, y))
    pad = max(0, int(shell.max(initial=0)) + 1 - n_shells)
    dx, dy = (v - np.pad(m, (0, pad))[shell] for v, m in ((x, mean_x), (y, mean_y)))
    norm = np.sqrt(total(dx * dx) * total(dy * dy))
    value = np.divide(total(dx * dy), norm, out=np.full(n_shells, np.nan), where=(norm > 0) & (count >= 3))
    return ShellCurve(np.arange(n_shells, dtype=np.float64) * dq, value, count.astype(np.int64))


def _require_same_grid(a: Volume, b: Volume) -> None:
    if a.data.shape != b.data.shape or a.units != b.units or not np.isclose(a.voxel_size, b.voxel_size, rtol=1e-4):
        grids = [f"{v.data.shape} voxels of {v.voxel_size:.4g} {v.units}" for v in (a, b)]
        raise ValueError(f"the two maps are on different grids: {grids[0]} and {grids[1]}")
