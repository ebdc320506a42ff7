"""The inner loops on the CPU, compiled: trilinear gather and scatter, and the likelihood of sparse frames.

Every kernel is serial and releases the GIL; callers split frames over threads. The physics is stated, and tested,
where the kernels are called (`exposure`, `likelihood`). Volumes are flat (z, y, x) grids of odd edge `n`, with q = 0 in
the middle.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numba import njit

# no "nnan", no "ninf": an infinite fluence shape means a fixed fluence
_njit: Any = njit(nogil=True, fastmath={"reassoc", "contract", "arcp", "nsz"}, error_model="numpy", cache=True)

PRIOR = 1.0
"""Damping of the Fisher matrix in rad⁻²: a frame without photons stays where it is."""

CONVERGED = 0.003
"""Radians: a shorter step ends the climb."""

NEGLIGIBLE_WEIGHT = 0.02
"""Samples below this part of a frame's heaviest are dropped."""

POINTS_AT_HAND = 128
"""Points of a plane laid down together: two in five of the time of all at once."""

TURN = 0.01
"""Radians to either side, for differences of the expected total."""


@_njit
def gather(rotation, point, grid, n, out):  # type: ignore[no-untyped-def]
    """out[j, p] = grid at rotation[j] · point[p]."""
    half = (n - 1) * 0.5
    n2 = n * n
    for j in range(len(rotation)):
        r = rotation[j]
        for p in range(len(point)):
            qx, qy, qz = point[p, 0], point[p, 1], point[p, 2]
            x = r[0, 0] * qx + r[0, 1] * qy + r[0, 2] * qz + half
            y = r[1, 0] * qx + r[1, 1] * qy + r[1, 2] * qz + half
            z = r[2, 0] * qx + r[2, 1] * qy + r[2, 2] * qz + half
            ix, iy, iz = int(x), int(y), int(z)
            fx, fy, fz = x - ix, y - iy, z - iz
            b = (iz * n + iy) * n + ix
            v00 = grid[b] + (grid[b + 1] - grid[b]) * fx
            v01 = grid[b + n] + (grid[b + n + 1] - grid[b + n]) * fx
            b += n2
            v10 = grid[b] + (grid[b + 1] - grid[b]) * fx
            v11 = grid[b + n] + (grid[b + n + 1] - grid[b + n]) * fx
            low = v00 + (v01 - v00) * fy
            high = v10 + (v11 - v10) * fy
            out[j, p] = low + (high - low) * fz


@_njit
def _scatter(grid, x, y, z, value, n):  # type: ignore[no-untyped-def]
    ix, iy, iz = int(x), int(y), int(z)
    fx, fy, fz = x - ix, y - iy, z - iz
    b = (iz * n + iy) * n + ix
    low, high = value * (1 - fz), value * fz
    a00, a01 = low * (1 - fy), low * fy
    a10, a11 = high * (1 - fy), high * fy
    grid[b] += a00 * (1 - fx)
    grid[b + 1] += a00 * fx
    grid[b + n] += a01 * (1 - fx)
    grid[b + n + 1] += a01 * fx
    b += n * n
    grid[b] += a10 * (1 - fx)
    grid[b + 1] += a10 * fx
    grid[b + n] += a11 * (1 - fx)
    grid[b + n + 1] += a11 * fx


@_njit
def scatter(rotation, point, value, grid, n):  # type: ignore[no-untyped-def]
    """The adjoint of `gather`: grid += value[j, p] at rotation[j] · point[p]."""
    half = (n - 1) * 0.5
    for j in range(len(rotation)):
        r = rotation[j]
        for p in range(len(point)):
            v = value[j, p]
            if v == 0.0:
                continue
            qx, qy, qz = point[p, 0], point[p, 1], point[p, 2]
            x = r[0, 0] * qx + r[0, 1] * qy + r[0, 2] * qz + half
            y = r[1, 0] * qx + r[1, 1] * qy + r[1, 2] * qz + half
            z = r[2, 0] * qx + r[2, 1] * qy + r[2, 2] * qz + half
            _scatter(grid, x, y, z, v, n)


@_njit
def _lay_row(grid, b, weight, low_even, low_odd, high_even, high_odd):  # type: ignore[no-untyped-def]
    # loaded and stored as four neighbours at once
    v0, v1 = grid[b] + weight * low_even, grid[b + 1] + weight * low_odd
    v2, v3 = grid[b + 2] + weight * high_even, grid[b + 3] + weight * high_odd
    grid[b], grid[b + 1], grid[b + 2], grid[b + 3] = v0, v1, v2, v3


@_njit
def scatter_halves(rotation, point, value, grid, n):  # type: ignore[no-untyped-def]
    """`scatter` of two values at once, value[h, j, p], into an interleaved grid[voxel, h]: half the memory traffic.

    A few points are laid for all rotations before the next: where rotations are neighbours, their voxels are at hand.
    """
    half, one = np.float32((n - 1) * 0.5), np.float32(1)
    flat = grid.reshape(-1)
    for first in range(0, len(point), POINTS_AT_HAND):
        for j in range(len(rotation)):
            r = rotation[j]
            for p in range(first, min(first + POINTS_AT_HAND, len(point))):
                even, odd = value[0, j, p], value[1, j, p]
                qx, qy, qz = point[p, 0], point[p, 1], point[p, 2]
                x = r[0, 0] * qx + r[0, 1] * qy + r[0, 2] * qz + half
                y = r[1, 0] * qx + r[1, 1] * qy + r[1, 2] * qz + half
                z = r[2, 0] * qx + r[2, 1] * qy + r[2, 2] * qz + half
                ix, iy, iz = np.int32(x), np.int32(y), np.int32(z)
                fx, fy, fz = x - np.float32(ix), y - np.float32(iy), z - np.float32(iz)
                gx, gy, gz = one - fx, one - fy, one - fz
                laid = (gx * even, gx * odd, fx * even, fx * odd)
                b = 2 * ((iz * n + iy) * n + ix)
                _lay_row(flat, b, gz * gy, *laid)
                _lay_row(flat, b + 2 * n, gz * fy, *laid)
                b += 2 * n * n
                _lay_row(flat, b, fz * gy, *laid)
                _lay_row(flat, b + 2 * n, fz * fy, *laid)


@_njit
def scatter_photons(rotation, frame, weight, q, start, stop, pixel, count, share, grid, n):  # type: ignore[no-untyped-def]
    """Grid += photons of frame[j] at rotation[j], times weight[j] and the share of each pixel."""
    half = (n - 1) * 0.5
    for j in range(len(frame)):
        w = weight[j]
        if w <= 0.0:
            continue
        f = frame[j]
        r = rotation[j]
        for i in range(start[f], stop[f]):
            p = pixel[i]
            qx, qy, qz = q[p, 0], q[p, 1], q[p, 2]
            x = r[0, 0] * qx + r[0, 1] * qy + r[0, 2] * qz + half
            y = r[1, 0] * qx + r[1, 1] * qy + r[1, 2] * qz + half
            z = r[2, 0] * qx + r[2, 1] * qy + r[2, 2] * qz + half
            _scatter(grid, x, y, z, count[i] * share[p] * w, n)


@_njit
def rotate(omega, r, out):  # type: ignore[no-untyped-def]
    """Out = exp(omega) · r (Rodrigues)."""
    a, b, c = omega[0], omega[1], omega[2]
    t2 = a * a + b * b + c * c
    t = math.sqrt(t2)
    if t < 1e-6:
        s, k = 1.0, 0.5
    else:
        s, k = math.sin(t) / t, (1 - math.cos(t)) / t2
    e00, e01, e02 = 1 - k * (b * b + c * c), k * a * b - s * c, k * a * c + s * b
    e10, e11, e12 = k * a * b + s * c, 1 - k * (a * a + c * c), k * b * c - s * a
    e20, e21, e22 = k * a * c - s * b, k * b * c + s * a, 1 - k * (a * a + b * b)
    for j in range(3):
        x, y, z = r[0, j], r[1, j], r[2, j]
        out[0, j] = e00 * x + e01 * y + e02 * z
        out[1, j] = e10 * x + e11 * y + e12 * z
        out[2, j] = e20 * x + e21 * y + e22 * z


@_njit
def photon_term(r, q, start, stop, pixel, count, share, log_grid, n, gradient, fisher, derive):  # type: ignore[no-untyped-def]
    """Σ s k log V(r q) over one frame's photons, s the share of a pixel; its gradient and empirical Fisher matrix,
    Σ s² k t tᵀ, for exp(ω)·r where `derive`.
    """
    half = (n - 1) * 0.5
    n2 = n * n
    total = 0.0
    g0 = g1 = g2 = 0.0
    h00 = h01 = h02 = h11 = h12 = h22 = 0.0
    r00, r01, r02 = r[0, 0], r[0, 1], r[0, 2]
    r10, r11, r12 = r[1, 0], r[1, 1], r[1, 2]
    r20, r21, r22 = r[2, 0], r[2, 1], r[2, 2]
    for i in range(start, stop):
        p = pixel[i]
        qx, qy, qz, k = q[p, 0], q[p, 1], q[p, 2], count[i] * share[p]
        sx = r00 * qx + r01 * qy + r02 * qz
        sy = r10 * qx + r11 * qy + r12 * qz
        sz = r20 * qx + r21 * qy + r22 * qz
        x, y, z = sx + half, sy + half, sz + half
        ix, iy, iz = int(x), int(y), int(z)
        fx, fy, fz = x - ix, y - iy, z - iz
        b = (iz * n + iy) * n + ix
        d00, d01 = log_grid[b + 1] - log_grid[b], log_grid[b + n + 1] - log_grid[b + n]
        v00, v01 = log_grid[b] + d00 * fx, log_grid[b + n] + d01 * fx
        b += n2
        d10, d11 = log_grid[b + 1] - log_grid[b], log_grid[b + n + 1] - log_grid[b + n]
        v10, v11 = log_grid[b] + d10 * fx, log_grid[b + n] + d11 * fx
        low, high = v00 + (v01 - v00) * fy, v10 + (v11 - v10) * fy
        total += k * (low + (high - low) * fz)
        if derive:
            gz = high - low
            gy = (v01 - v00) + ((v11 - v10) - (v01 - v00)) * fz
            dl, dh = d00 + (d01 - d00) * fy, d10 + (d11 - d10) * fy
            gx = dl + (dh - dl) * fz
            t0, t1, t2 = sy * gz - sz * gy, sz * gx - sx * gz, sx * gy - sy * gx
            g0 += k * t0
            g1 += k * t1
            g2 += k * t2
            k *= share[p]
            h00 += k * t0 * t0
            h01 += k * t0 * t1
            h02 += k * t0 * t2
            h11 += k * t1 * t1
            h12 += k * t1 * t2
            h22 += k * t2 * t2
    if derive:
        gradient[0], gradient[1], gradient[2] = g0, g1, g2
        fisher[0, 0], fisher[1, 1], fisher[2, 2] = h00, h11, h22
        fisher[0, 1] = fisher[1, 0] = h01
        fisher[0, 2] = fisher[2, 0] = h02
        fisher[1, 2] = fisher[2, 1] = h12
    return total


@_njit
def in_plane(d, r):  # type: ignore[no-untyped-def]
    """Cosine and sine of α in r ≈ d · Rz(α), for two rotations that look nearly the same way."""
    c = d[0, 0] * r[0, 0] + d[1, 0] * r[1, 0] + d[2, 0] * r[2, 0]
    c += d[0, 1] * r[0, 1] + d[1, 1] * r[1, 1] + d[2, 1] * r[2, 1]
    s = d[0, 1] * r[0, 0] + d[1, 1] * r[1, 0] + d[2, 1] * r[2, 0]
    s -= d[0, 0] * r[0, 1] + d[1, 0] * r[1, 1] + d[2, 0] * r[2, 1]
    length = math.sqrt(c * c + s * s) + 1e-12
    return c / length, s / length


@_njit
def node_of(r, m):  # type: ignore[no-untyped-def]
    """Node and place (fu, fv) in its cell of the direction that r looks along, on a cube of m × m nodes a face."""
    x, y, z = r[0, 2], r[1, 2], r[2, 2]
    ax, ay, az = abs(x), abs(y), abs(z)
    if az >= ax and az >= ay:
        face, u, v = (4 if z > 0 else 5), x / az, y / az
    elif ay >= ax:
        face, u, v = (2 if y > 0 else 3), x / ay, z / ay
    else:
        face, u, v = (0 if x > 0 else 1), y / ax, z / ax
    u, v = (math.atan(u) * (2 / math.pi) + 0.5) * (m - 1), (math.atan(v) * (2 / math.pi) + 0.5) * (m - 1)
    iu, iv = min(max(int(u), 0), m - 2), min(max(int(v), 0), m - 2)
    return (face * m + iv) * m + iu, u - iu, v - iv


@_njit
def expected_total(r, table, node_rotation, m):  # type: ignore[no-untyped-def]
    """Expected photons at pose r: an `ExposureTable` interpolated over directions, in-plane harmonics included."""
    first, fu, fv = node_of(r, m)
    harmonics = (table.shape[1] - 1) // 2
    total = 0.0
    for corner in range(4):
        du, dv = corner & 1, corner >> 1
        j = first + dv * m + du
        value = table[j, 0]
        if harmonics > 0:
            c, s = in_plane(node_rotation[j], r)
            ck, sk = 1.0, 0.0
            for k in range(harmonics):
                ck, sk = ck * c - sk * s, ck * s + sk * c
                value += table[j, 1 + 2 * k] * ck + table[j, 2 + 2 * k] * sk
        total += (fu if du else 1 - fu) * (fv if dv else 1 - fv) * value
    return total


@_njit
def expected_totals(rotation, table, node_rotation, m, out):  # type: ignore[no-untyped-def]
    """`expected_total` of many poses."""
    for i in range(len(rotation)):
        out[i] = expected_total(rotation[i], table, node_rotation, m)


@_njit
def deposit(rotation, weight, node_rotation, m, amplitude):  # type: ignore[no-untyped-def]
    """The adjoint of `expected_total`: amplitude (nodes, 1 + 2K) += poses with their weights."""
    harmonics = (amplitude.shape[1] - 1) // 2
    for i in range(len(rotation)):
        r = rotation[i]
        first, fu, fv = node_of(r, m)
        for corner in range(4):
            du, dv = corner & 1, corner >> 1
            w = (fu if du else 1 - fu) * (fv if dv else 1 - fv) * weight[i]
            j = first + dv * m + du
            amplitude[j, 0] += w
            if harmonics > 0:
                c, s = in_plane(node_rotation[j], r)
                ck, sk = 1.0, 0.0
                for k in range(harmonics):
                    ck, sk = ck * c - sk * s, ck * s + sk * c
                    amplitude[j, 1 + 2 * k] += w * ck
                    amplitude[j, 2 + 2 * k] += w * sk


@_njit
def fluence_term(total, photons, shape):  # type: ignore[no-untyped-def]
    """−log of what the fluence costs: fixed fluence (shape = inf), or marginalised over Gamma(shape, mean 1)."""
    total = max(total, 1e-3)  # a truncated series of harmonics can fall below zero
    if math.isinf(shape):
        return -total
    return -(photons + shape) * math.log((total + shape) / (1.0 + shape))


@_njit
def dark_term(r, photons, tab, light, fon, m, shape):  # type: ignore[no-untyped-def]
    """What pixels cost, lit or not: the fluence's cost, and Σ s d log V of an uneven background, where there is one."""
    value = fluence_term(expected_total(r, tab, fon, m), photons, shape)
    if len(light) > 0:
        value -= expected_total(r, light, fon, m)
    return value


@_njit
def pose_score(r, s, e, photons, q, pixel, count, share, log_grid, n, tab, light, fon, m, shape, g, h, derive):  # type: ignore[no-untyped-def]
    """Log-likelihood of one frame at pose r, with gradient and Fisher matrix for exp(ω)·r where `derive`."""
    value = photon_term(r, q, s, e, pixel, count, share, log_grid, n, g, h, derive)
    value += dark_term(r, photons, tab, light, fon, m, shape)
    if derive:
        # what dark pixels cost varies slowly: central differences are exact enough and need no second table
        turned = np.empty((3, 3))
        omega = np.zeros(3)
        for a in range(3):
            omega[a] = TURN
            rotate(omega, r, turned)
            up = dark_term(turned, photons, tab, light, fon, m, shape)
            omega[a] = -TURN
            rotate(omega, r, turned)
            down = dark_term(turned, photons, tab, light, fon, m, shape)
            omega[a] = 0.0
            g[a] += (up - down) / (2 * TURN)
    return value


@_njit
def rank(candidate, start, stop, photons, q, pixel, count, share, log_grid, n, tab, light, fon, m, shape, out):  # type: ignore[no-untyped-def]
    """out[f, c] ≈ log-likelihood of frame f at candidate[f, c], each photon taken at its nearest voxel."""
    middle = n * 0.5  # half a voxel beyond q = 0: truncation rounds
    for f in range(candidate.shape[0]):
        for c in range(candidate.shape[1]):
            r = candidate[f, c]
            r00, r01, r02 = r[0, 0], r[0, 1], r[0, 2]
            r10, r11, r12 = r[1, 0], r[1, 1], r[1, 2]
            r20, r21, r22 = r[2, 0], r[2, 1], r[2, 2]
            value = 0.0
            for i in range(start[f], stop[f]):
                p = pixel[i]
                qx, qy, qz = q[p, 0], q[p, 1], q[p, 2]
                ix = int(r00 * qx + r01 * qy + r02 * qz + middle)
                iy = int(r10 * qx + r11 * qy + r12 * qz + middle)
                iz = int(r20 * qx + r21 * qy + r22 * qz + middle)
                value += count[i] * share[p] * log_grid[(iz * n + iy) * n + ix]
            out[f, c] = value + dark_term(r, photons[f], tab, light, fon, m, shape)


@_njit
def cholesky(h, damping, c):  # type: ignore[no-untyped-def]
    """Lower triangle c of h + damping·1, kept positive."""
    c[0, 0] = math.sqrt(max(h[0, 0] + damping, 1e-6))
    c[1, 0] = h[1, 0] / c[0, 0]
    c[2, 0] = h[2, 0] / c[0, 0]
    c[1, 1] = math.sqrt(max(h[1, 1] + damping - c[1, 0] ** 2, 1e-6))
    c[2, 1] = (h[2, 1] - c[2, 0] * c[1, 0]) / c[1, 1]
    c[2, 2] = math.sqrt(max(h[2, 2] + damping - c[2, 0] ** 2 - c[2, 1] ** 2, 1e-6))


@_njit
def back_substitute(c, y, out):  # type: ignore[no-untyped-def]
    """Solve cᵀ out = y."""
    out[2] = y[2] / c[2, 2]
    out[1] = (y[1] - c[2, 1] * out[2]) / c[1, 1]
    out[0] = (y[0] - c[1, 0] * out[1] - c[2, 0] * out[2]) / c[0, 0]


@_njit
def newton_step(c, g, longest, out):  # type: ignore[no-untyped-def]
    """Out = (c cᵀ)⁻¹ g, no longer than `longest`; its length is returned."""
    y = np.empty(3)
    y[0] = g[0] / c[0, 0]
    y[1] = (g[1] - c[1, 0] * y[0]) / c[1, 1]
    y[2] = (g[2] - c[2, 0] * y[0] - c[2, 1] * y[1]) / c[2, 2]
    back_substitute(c, y, out)
    length = math.sqrt(out[0] ** 2 + out[1] ** 2 + out[2] ** 2)
    if not length < 1e6:  # not a number: nothing unchecked may index the grid with it
        out[:] = 0.0
        return 0.0
    if length > longest:
        for a in range(3):
            out[a] *= longest / length
    return length


@_njit
def refine(  # type: ignore[no-untyped-def]
    candidate, start, stop, photons, q, pixel, count, share, log_grid, n, tab, light, fon, m, shape,
    steps, longest, fisher_out, out,
):  # fmt: skip
    """Levenberg–Marquardt on SO(3) from every candidate, in place; out[f, c] = log-likelihood reached."""
    g, g_new, omega = np.zeros(3), np.zeros(3), np.zeros(3)
    h, h_new, chol, trial, r = np.zeros((3, 3)), np.zeros((3, 3)), np.zeros((3, 3)), np.zeros((3, 3)), np.zeros((3, 3))
    for f in range(candidate.shape[0]):
        for c in range(candidate.shape[1]):
            r[:] = candidate[f, c]
            value = pose_score(
                r, start[f], stop[f], photons[f], q, pixel, count, share, log_grid, n,
                tab, light, fon, m, shape, g, h, True,
            )  # fmt: skip
            damping = PRIOR
            for _ in range(steps):
                cholesky(h, damping, chol)
                if not newton_step(chol, g, longest, omega) >= CONVERGED:
                    break
                rotate(omega, r, trial)
                new = pose_score(
                    trial, start[f], stop[f], photons[f], q, pixel, count, share, log_grid, n,
                    tab, light, fon, m, shape, g_new, h_new, True,
                )  # fmt: skip
                if new > value:
                    r[:] = trial
                    h[:] = h_new
                    g[:] = g_new
                    value = new
                    damping = max(damping * 0.3, PRIOR)
                else:
                    damping = 4 * max(damping, 0.1 * (h[0, 0] + h[1, 1] + h[2, 2]))
            candidate[f, c] = r
            fisher_out[f, c] = h
            out[f, c] = value


@_njit
def sample_modes(  # type: ignore[no-untyped-def]
    mode, fisher, start, stop, photons, q, pixel, count, share, log_grid, n, tab, light, fon, m, shape,
    beta, noise, sample, weight,
):  # fmt: skip
    """Samples of each mode's Laplace posterior at inverse temperature `beta`; a frame's weights sum to 1."""
    g, omega = np.zeros(3), np.zeros(3)
    h, chol = np.zeros((3, 3)), np.zeros((3, 3))
    per_mode = noise.shape[2]
    spread = 1.0 / math.sqrt(beta)
    for f in range(mode.shape[0]):
        best = -1e300
        for c in range(mode.shape[1]):
            cholesky(fisher[f, c], PRIOR, chol)
            log_volume = math.log(chol[0, 0] * chol[1, 1] * chol[2, 2])
            for j in range(per_mode):
                z = noise[f, c, j]
                back_substitute(chol, z, omega)
                for a in range(3):
                    omega[a] *= spread
                i = c * per_mode + j
                rotate(omega, mode[f, c], sample[f, i])
                value = pose_score(
                    sample[f, i], start[f], stop[f], photons[f], q, pixel, count, share, log_grid, n,
                    tab, light, fon, m, shape, g, h, False,
                )  # fmt: skip
                value = beta * value + 0.5 * (z[0] ** 2 + z[1] ** 2 + z[2] ** 2) - log_volume
                weight[f, i] = value
                best = max(best, value)
        total = 0.0
        for i in range(weight.shape[1]):
            w = math.exp(weight[f, i] - best)
            weight[f, i] = w if w > NEGLIGIBLE_WEIGHT else 0.0
            total += weight[f, i]
        for i in range(weight.shape[1]):
            weight[f, i] /= total


def compile_kernels() -> Iterator[None]:
    """Compile every kernel, or load it from numba's cache; yields after each. Minutes of nothing would worry a user."""
    edge, m = 5, 2
    rotation, point = np.eye(3, dtype=np.float32)[None], np.zeros((1, 3), np.float32)
    grid, halves = np.ones(edge**3, np.float32), np.zeros((edge**3, 2), np.float32)
    nodes, table = np.tile(rotation, (6 * m * m, 1, 1)), np.ones((6 * m * m, 1), np.float32)
    photons = (np.zeros(1, np.int64), np.ones(1, np.int64), np.ones(1, np.float32), point, np.zeros(1, np.int32))
    whole = np.ones(1, np.float32)
    frame = (*photons, whole, whole, grid, edge, table, table[:0], nodes, m, math.inf)
    mode, fisher, value = rotation[None].copy(), np.zeros((1, 1, 3, 3)), np.zeros((1, 1))
    one, lit = np.ones(1), (photons[0], photons[1], photons[4], whole, whole)
    for kernel, arguments in (
        (gather, (rotation, point, grid, edge, np.zeros((1, 1), np.float32))),
        (scatter, (rotation, point, np.ones((1, 1), np.float32), grid.copy(), edge)),
        (scatter_halves, (rotation, point, np.ones((2, 1, 1), np.float32), halves, edge)),
        (scatter_photons, (rotation, photons[0], one, point, *lit, grid.copy(), edge)),
        (expected_totals, (rotation, table, nodes, m, one)),
        (deposit, (rotation, one, nodes, m, np.zeros((6 * m * m, 1)))),
        (rank, (mode, *frame, value)),
        (refine, (mode, *frame, 1, 0.2, fisher, value)),
        (sample_modes, (mode, fisher, *frame, 1.0, np.zeros((1, 1, 1, 3)), mode.copy(), value)),
    ):
        kernel(*arguments)
        yield
