"""Frames drawn from a field, and look-ups between its voxels: smooth ones, as nature has it, and the scored ones."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .pixels import Pixels, SparsePhotons

F32 = NDArray[np.float32]

_njit: Any = njit(nogil=True, fastmath={"reassoc", "contract", "arcp", "nsz"}, error_model="numpy", cache=True)


def draw_frames(
    pixels: Pixels, brightness: F32, n_pixels: int, ratio: F32, rotation: F32, fluence: NDArray[np.float64], draws: int,
    rng: np.random.Generator,
) -> SparsePhotons:  # fmt: skip
    """`draws` frames at each of N poses, on the first `n_pixels` pixels, with the background that these have.

    Parameters
    ----------
    pixels : Pixels
    brightness : (U,) float32
        Mean photons per frame and pixel of a structureless particle.
    ratio : (edge³) float32
        Smooth between voxels, as an intensity is.
    rotation : (N, 3, 3) float32
    fluence : (N,) float64
    """
    value = np.empty(n_pixels, np.float32)
    light = np.float32(0) if pixels.background is None else pixels.background.light[:n_pixels]
    lit = []
    for turn, f in zip(rotation, fluence, strict=True):
        look_up_smoothly(turn, pixels.q[:n_pixels], ratio, pixels.edge, value)
        below = np.cumsum(np.maximum(f * brightness[:n_pixels] * value + light, 0), dtype=np.float64)
        for _ in range(draws):
            at = np.searchsorted(below, below[-1] * rng.random(rng.poisson(below[-1])), side="right")
            lit.append(np.unique(np.minimum(at, n_pixels - 1), return_counts=True))
    return SparsePhotons(
        start=np.cumsum([0, *(len(pixel) for pixel, _ in lit)]),
        pixel=np.concatenate([pixel for pixel, _ in lit]).astype(np.int32),
        count=np.concatenate([count for _, count in lit]).astype(np.float32),
        index=np.arange(len(lit)),
    )


@_njit
def look(r, q, grid, n, t):  # type: ignore[no-untyped-def]
    """Trilinear value of the grid at r q; t = its gradient along rotations, (r q) × ∇."""
    half, n2 = (n - 1) * 0.5, n * n
    sx = r[0, 0] * q[0] + r[0, 1] * q[1] + r[0, 2] * q[2]
    sy = r[1, 0] * q[0] + r[1, 1] * q[1] + r[1, 2] * q[2]
    sz = r[2, 0] * q[0] + r[2, 1] * q[1] + r[2, 2] * q[2]
    x, y, z = sx + half, sy + half, sz + half
    ix, iy, iz = int(x), int(y), int(z)
    fx, fy, fz = x - ix, y - iy, z - iz
    b = (iz * n + iy) * n + ix
    d00, d01 = grid[b + 1] - grid[b], grid[b + n + 1] - grid[b + n]
    v00, v01 = grid[b] + d00 * fx, grid[b + n] + d01 * fx
    b += n2
    d10, d11 = grid[b + 1] - grid[b], grid[b + n + 1] - grid[b + n]
    v10, v11 = grid[b] + d10 * fx, grid[b + n] + d11 * fx
    low, high = v00 + (v01 - v00) * fy, v10 + (v11 - v10) * fy
    gz = high - low
    gy = (v01 - v00) + ((v11 - v10) - (v01 - v00)) * fz
    dl, dh = d00 + (d01 - d00) * fy, d10 + (d11 - d10) * fy
    gx = dl + (dh - dl) * fz
    t[0], t[1], t[2] = sy * gz - sz * gy, sz * gx - sx * gz, sx * gy - sy * gx
    return low + (high - low) * fz


@_njit
def _weights(f, w):  # type: ignore[no-untyped-def]
    """Catmull–Rom weights of four neighbours, at f between the middle two."""
    w[0] = f * (f * (1 - 0.5 * f) - 0.5)
    w[1] = 1 + f * f * (1.5 * f - 2.5)
    w[2] = f * (0.5 + f * (2 - 1.5 * f))
    w[3] = f * f * (0.5 * f - 0.5)


@_njit
def look_up_smoothly(r, q, grid, n, out):  # type: ignore[no-untyped-def]
    """out[p] = tricubic value of the grid at r q[p], at least 0."""
    half = (n - 1) * 0.5
    wx, wy, wz = np.empty(4), np.empty(4), np.empty(4)
    for p in range(len(q)):
        x = r[0, 0] * q[p, 0] + r[0, 1] * q[p, 1] + r[0, 2] * q[p, 2] + half
        y = r[1, 0] * q[p, 0] + r[1, 1] * q[p, 1] + r[1, 2] * q[p, 2] + half
        z = r[2, 0] * q[p, 0] + r[2, 1] * q[p, 1] + r[2, 2] * q[p, 2] + half
        ix, iy, iz = min(max(int(x), 1), n - 3), min(max(int(y), 1), n - 3), min(max(int(z), 1), n - 3)
        _weights(x - ix, wx)
        _weights(y - iy, wy)
        _weights(z - iz, wz)
        total = 0.0
        for c in range(4):
            for b in range(4):
                first = ((iz + c - 1) * n + iy + b - 1) * n + ix - 1
                row = 0.0
                for a in range(4):
                    row += wx[a] * grid[first + a]
                total += wz[c] * wy[b] * row
        out[p] = max(total, 0.0)


def compile_kernels() -> None:
    """Compile the kernel, or load it from numba's cache."""
    one = np.zeros((1, 3), np.float32)
    look_up_smoothly(np.eye(3, dtype=np.float32), one, np.zeros(125, np.float32), 5, np.zeros(1, np.float32))
