"""Bring two densities into one frame: shift and hand (starts of one phasing), and rotation (against a reference).

A diffraction intensity knows neither where the particle sits nor its hand: ρ(r), ρ(r − t) and ρ(−r) share |F|.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import grid_sample

from .frames import Volume
from .resolution import fourier_shells, shell_index
from .rotations import exp_map, super_fibonacci


@dataclass(frozen=True, eq=False)
class AlignedDensity:
    """A density laid over a reference, both on the grid of the moving one.

    ``density(r) = moving(hand · rotation @ r + shift)``, r = (x, y, z) from the centre.

    Parameters
    ----------
    rotation : (3, 3) float64
        Takes (x, y, z) of the reference to (x, y, z) of the moving density.
    shift : (3,) float64
        (x, y, z) in the moving density's unit of length.
    hand : int
        +1, or −1 where the moving density had to be inverted.
    density, reference : Volume
        The aligned density, and the reference resampled to the same grid.
    correlation : float
        Pearson correlation of the two.
    """

    rotation: NDArray[np.float64]
    shift: NDArray[np.float64]
    hand: int
    density: Volume
    reference: Volume
    correlation: float


@dataclass(frozen=True, eq=False)
class Offset:
    """How one transform sits on another: ``aligned = (F or conj F) · ramp(shift)``; see `align_transform`."""

    hand: int
    shift: NDArray[np.float64]
    score: float


def phase_ramp(shift: NDArray[np.float64], n: int) -> Tensor:
    """(n, n, n//2+1) factor that moves a real map by `shift` voxels (z, y, x) in its transform."""
    full, half = _frequencies(n)
    z, y, x = (
        torch.polar(torch.ones_like(k), (-2 * np.pi / n * float(s)) * k)
        for k, s in zip((full, full, half), shift, strict=True)
    )
    return (z[:, None, None] * y[None, :, None]) * x


def align_transform(moving: Tensor, reference: Tensor, edge: int, hands: tuple[int, ...] = (1, -1)) -> Offset:
    """Shift and hand that lay one map over another, from their real transforms.

    Cross-correlation of the shell-whitened transforms at low resolution (the peak of the whole band is narrower than a
    voxel), then Newton steps on the phase ramp, first in that inner band, then in all of it.

    Parameters
    ----------
    moving, reference : (n, n, n//2+1) complex64
        ``rfftn`` of two n³ maps.
    edge : int
        Last shell to use.
    hands : tuple of int
        Hands to try: +1 as it is, −1 inverted.

    Returns
    -------
    Offset
        ``score`` is the whitened correlation inside `edge`, at most 1. Move with `apply_offset`.
    """
    n = moving.shape[0]
    best: Offset | None = None
    inner = max(4, min(edge, (3 * n) // 16))
    m = min(n, 4 * (inner + 2))  # twice finer than the inner band needs: its peak is then within Newton's reach
    coarse_reference = _whiten(crop_transform(reference, m), inner)
    coarse_moving = _whiten(crop_transform(moving, m), inner)
    for hand in hands:
        cross = (coarse_moving.conj() if hand > 0 else coarse_moving) * coarse_reference
        peak = int(torch.fft.irfftn(cross, s=(m, m, m)).argmax())
        shift, score = _newton(cross, np.array(np.unravel_index(peak, (m, m, m)), np.float64), steps=4)
        if best is None or score > best.score:
            best = Offset(hand, shift * (n / m), score)
    assert best is not None
    cross = _whiten(moving, edge)
    cross = (cross.conj() if best.hand > 0 else cross) * _whiten(reference, edge)
    shift, score = _newton(cross, best.shift, steps=3)
    return Offset(best.hand, shift, score)


def apply_offset(moving: Tensor, offset: Offset) -> Tensor:
    """The moved transform."""
    return (moving if offset.hand > 0 else moving.conj()) * phase_ramp(offset.shift, moving.shape[0])


def crop_transform(transform: Tensor, m: int) -> Tensor:
    """The real transform of the same map on an m³ grid (m ≤ n): the coefficients with every |k| < m/2."""
    n = transform.shape[0]
    if m == n:
        return transform
    k = (m - 1) // 2
    index = torch.cat([torch.arange(k + 1), torch.arange(n - k, n)])
    target = torch.cat([torch.arange(k + 1), torch.arange(m - k, m)])
    out = torch.zeros((m, m, m // 2 + 1), dtype=transform.dtype)
    out[target[:, None], target[None, :], : k + 1] = transform[index[:, None], index[None, :], : k + 1]
    return out


def pad_transform(transform: Tensor, m: int) -> Tensor:
    """The real transform of the same map on a finer m³ grid (m ≥ n); the Nyquist planes are dropped."""
    n = transform.shape[0]
    if m == n:
        return transform
    k = (n - 1) // 2
    index = torch.cat([torch.arange(k + 1), torch.arange(n - k, n)])
    target = torch.cat([torch.arange(k + 1), torch.arange(m - k, m)])
    out = torch.zeros((m, m, m // 2 + 1), dtype=transform.dtype)
    out[target[:, None], target[None, :], : k + 1] = transform[index[:, None], index[None, :], : k + 1]
    return out


def align_density(moving: Volume, reference: Volume, *, edge: int | None = None, seed: int = 0) -> AlignedDensity:
    """Lay a density over a reference: rotation, shift and hand.

    The shell-normalised |F| of both, blind to shift and hand, are matched over a grid of rotations at low q, the best
    few refined by halving steps out to `edge`; then shift and hand from the phases.

    Parameters
    ----------
    moving, reference : Volume
        Densities (z, y, x) in the same unit; boxes and voxels may differ.
    edge : int, optional
        Last shell of the moving density to trust; default its Nyquist shell − 1.
    seed : int
        Of the random points of comparison.

    Raises
    ------
    ValueError
        If the units differ, or one of the maps is constant.
    """
    if moving.units != reference.units:
        raise ValueError(f"the densities are in different units: {moving.units} and {reference.units}")
    for name, volume in (("density", moving), ("reference", reference)):
        if not np.ptp(volume.data) > 0:
            raise ValueError(f"the {name} is empty or constant: there is nothing to align")
    n = moving.data.shape[0]
    edge = n // 2 - 1 if edge is None else edge
    moving_f = torch.fft.rfftn(torch.from_numpy(np.fft.ifftshift(moving.data).astype(np.float32)))
    reference_f = transform_on_grid(reference, n, moving.voxel_size)
    diameter = _diameter(reference) / (n * moving.voxel_size)  # in boxes
    best: tuple[float, NDArray[np.float64], Offset, Tensor] | None = None
    for rotation in _match_amplitudes(moving_f, reference_f, diameter, edge, seed):
        turned_f = torch.fft.rfftn(_rotate(moving_f, rotation))
        offset = align_transform(turned_f, reference_f, edge)
        if best is None or offset.score > best[0]:
            best = (offset.score, rotation, offset, turned_f)
    assert best is not None
    _, rotation, offset, turned_f = best
    aligned = np.fft.fftshift(torch.fft.irfftn(apply_offset(turned_f, offset), s=(n, n, n)).numpy())
    target = np.fft.fftshift(torch.fft.irfftn(reference_f, s=(n, n, n)).numpy())
    # aligned(r) = moving(R·hand·(r − t)) = moving(hand·R r + shift)
    shift = -offset.hand * rotation @ offset.shift[::-1] * moving.voxel_size
    return AlignedDensity(
        rotation=rotation, shift=shift, hand=offset.hand,
        density=Volume(aligned, moving.voxel_size, moving.units),
        reference=Volume(target, moving.voxel_size, moving.units),
        correlation=float(np.corrcoef(aligned.reshape(-1), target.reshape(-1))[0, 1]),
    )  # fmt: skip


def transform_on_grid(volume: Volume, n: int, voxel_size: float) -> Tensor:
    """The real transform of `volume` as if sampled on an n³ grid of `voxel_size`: exact, by a DFT along each axis.

    Frequencies beyond the volume's own Nyquist are zero.
    """
    m = volume.data.shape[0]
    position = (torch.arange(m, dtype=torch.float64) - m // 2) * volume.voxel_size
    full, half = _frequencies(n)
    data = torch.from_numpy(volume.data.astype(np.float32)).to(torch.complex64)
    for axis, k in enumerate((full, full, half)):
        q = k.double() / (n * voxel_size)
        dft = torch.polar(torch.ones(len(k), m).double(), -2 * np.pi * q[:, None] * position[None, :])
        dft[q.abs() > 0.5 / volume.voxel_size] = 0
        data = torch.tensordot(dft.to(torch.complex64), data, dims=([1], [axis])).movedim(0, axis)
    if n % 2 == 0:  # a Nyquist plane has no partner: a shifted map would not be real
        data[n // 2], data[:, n // 2], data[:, :, n // 2] = 0, 0, 0
    return data.contiguous()


@lru_cache(maxsize=8)
def _frequencies(n: int) -> tuple[Tensor, Tensor]:
    return torch.fft.fftfreq(n, 1 / n), torch.arange(n // 2 + 1, dtype=torch.float32)


def _whiten(transform: Tensor, edge: int) -> Tensor:
    """Shells 1 … edge at equal power, summing to 1 over the whole (Friedel-completed) transform; 0 elsewhere."""
    n = transform.shape[0]
    shell_np, multiplicity_np = fourier_shells(n)
    shell, multiplicity = torch.from_numpy(shell_np), torch.from_numpy(multiplicity_np)
    power = transform.real.square().addcmul_(transform.imag, transform.imag).mul_(multiplicity)
    total = torch.bincount(shell.view(-1), power.view(-1)).to(torch.float32)
    count = torch.bincount(shell.view(-1)).to(torch.float32)
    gain = torch.where(total > 0, (count / total.clamp(min=1e-30)).sqrt(), torch.zeros(()))
    gain[0] = 0
    gain[edge + 1 :] = 0
    gain *= 1 / float((count * (gain > 0)).sum().clamp(min=1)) ** 0.5
    return transform * gain[shell]


def _newton(cross: Tensor, shift: NDArray[np.float64], steps: int) -> tuple[NDArray[np.float64], float]:
    """Maximise Re Σ cross · exp(2πi k·shift/n) from a shift within its basin; returns the shift and the sum."""
    n = cross.shape[0]
    full, half = (k.double() for k in _frequencies(n))
    multiplicity = torch.from_numpy(fourier_shells(n)[1])
    shift = (shift + n / 2) % n - n / 2
    score = 0.0
    for step in range(steps + 1):
        turned = cross * phase_ramp(-shift, n) * multiplicity
        score = float(turned.real.sum())
        if step == steps:
            break
        imag, real = turned.imag, turned.real
        planes = real.sum(2).double(), real.sum(1).double(), real.sum(0).double()  # zy, zx, yx
        gradient = torch.stack([imag.sum((1, 2)) @ full.float(), imag.sum((0, 2)) @ full.float(),
                                imag.sum((0, 1)) @ half.float()]).double()  # fmt: skip
        zy, zx, yx = full @ planes[0] @ full, full @ planes[1] @ half, full @ planes[2] @ half
        zz, yy, xx = planes[0].sum(1) @ full**2, planes[0].sum(0) @ full**2, planes[2].sum(0) @ half**2
        hessian = torch.stack([torch.stack([zz, zy, zx]), torch.stack([zy, yy, yx]), torch.stack([zx, yx, xx])])
        if float(torch.linalg.eigvalsh(hessian)[0]) <= 0:
            break
        move = -torch.linalg.solve(hessian, gradient).numpy() * n / (2 * np.pi)
        if np.abs(move).max() > 1:
            break
        shift = shift + move
    return shift, score


def _diameter(volume: Volume) -> float:
    """Of the sphere with the same radius of gyration, in the volume's unit of length."""
    n = volume.data.shape[0]
    mass = np.clip(volume.data, 0, None).astype(np.float64)
    mass[mass < 0.1 * mass.max()] = 0
    axis = np.arange(n) - n / 2
    spread = 0.0
    for keep in range(3):
        profile = mass.sum(tuple(a for a in range(3) if a != keep))
        profile /= profile.sum()
        spread += float(profile @ axis**2 - (profile @ axis) ** 2)
    return float(2 * np.sqrt(5 / 3 * max(spread, 0.25)) * volume.voxel_size)


def _match_amplitudes(
    moving_f: Tensor, reference_f: Tensor, diameter: float, edge: int, seed: int
) -> list[NDArray[np.float64]]:
    """Rotations reference → moving that match |F| best: up to four, mutually distinct."""
    moving, reference = _normalised_amplitude(moving_f), _normalised_amplitude(reference_f)
    rng = np.random.default_rng(seed)
    low, high = min(1.2 / diameter, 0.4 * edge), min(3.4 / diameter, 0.9 * edge)
    points = _half_ball(rng, 1500, low, high)
    grid = super_fibonacci(6000)
    order = torch.argsort(_score(moving, reference, points, grid), descending=True)
    rotations = grid[order[:16].numpy()]
    step = 8.0
    for level in range(7):
        if level == 3:
            rotations = rotations[:4]
        if level >= 3:  # close enough now for finer speckles to help
            points = _half_ball(rng, 3000, low, min(high * 2 ** (level - 2), edge - 1.0))
        nudges = exp_map(_nudges() * np.deg2rad(step))
        trial = np.einsum("aij,bjk->abik", rotations, nudges)
        score = _score(moving, reference, points, trial.reshape(-1, 3, 3)).view(len(rotations), -1)
        value, choice = score.max(1)
        rotations = trial[np.arange(len(rotations)), choice.numpy()]
        rotations = rotations[torch.argsort(value, descending=True).numpy()]
        step /= 2
    return _distinct(rotations)


def _distinct(rotations: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    kept: list[NDArray[np.float64]] = []
    for rotation in rotations:
        if all(np.trace(rotation.T @ other) < 1 + 2 * np.cos(np.deg2rad(3)) for other in kept):
            kept.append(rotation)
    return kept


@lru_cache(maxsize=1)
def _nudges() -> NDArray[np.float64]:
    """No turn, and turns of one step about 13 axes, both ways."""
    axes = np.array(list(np.ndindex(3, 3, 3)), np.float64) - 1
    length = np.linalg.norm(axes, axis=1, keepdims=True)
    return np.asarray(np.divide(axes, length, out=np.zeros_like(axes), where=length > 0), np.float64)


def _half_ball(rng: np.random.Generator, n: int, low: float, high: float) -> NDArray[np.float32]:
    """Random points (x, y, z) of the half ball x ≥ 0 between two radii, uniform in log volume."""
    point = rng.normal(size=(n, 3))
    point[:, 0] = np.abs(point[:, 0])
    radius = rng.uniform(low**2, high**2, size=(n, 1)) ** 0.5
    return np.asarray(point / np.linalg.norm(point, axis=1, keepdims=True) * radius, np.float32)


def _normalised_amplitude(transform: Tensor) -> Tensor:
    """|F| of a real map, centred at n//2 of an n³ grid, mean 0 and variance 1 on every shell."""
    n = transform.shape[0]
    amplitude = torch.fft.fftn(torch.fft.irfftn(transform, s=(n, n, n))).abs()
    amplitude = torch.fft.fftshift(amplitude).contiguous()
    shell = torch.tensor(shell_index(n)).view(-1)
    flat = amplitude.view(-1)
    count = torch.bincount(shell).clamp(min=1)
    mean = (torch.bincount(shell, flat) / count).to(torch.float32)
    flat = flat - mean[shell]
    spread = (torch.bincount(shell, flat.square()) / count).to(torch.float32).sqrt()
    normalised: Tensor = flat / (spread[shell] + 1e-3 * mean[shell] + 1e-30)
    return normalised.view(n, n, n)


def _score(moving: Tensor, reference: Tensor, points: NDArray[np.float32], rotations: NDArray[np.float64]) -> Tensor:
    """(K,) correlation of reference(q) with moving(R q) over the points."""
    at_points = _sample(reference, torch.from_numpy(points))
    at_points = at_points / at_points.norm()
    scores = []
    turns = torch.from_numpy(rotations.astype(np.float32)).transpose(1, 2)
    for first in range(0, len(turns), 256):
        value = _sample(moving, torch.from_numpy(points) @ turns[first : first + 256])
        scores.append((value @ at_points) / value.norm(dim=1).clamp(min=1e-20))
    return torch.cat(scores)


def _sample(volume: Tensor, points: Tensor) -> Tensor:
    """Trilinear values at (…, 3) = (x, y, z) voxels from the origin n//2; 0 outside."""
    n = volume.shape[0]
    grid = (points + n // 2) * (2 / (n - 1)) - 1
    flat = grid.reshape(1, 1, 1, -1, 3)
    return grid_sample(volume[None, None], flat, mode="bilinear", align_corners=True).view(points.shape[:-1])


def _rotate(transform: Tensor, rotation: NDArray[np.float64]) -> Tensor:
    """The map of a real transform as ``map(rotation @ r)``, origin at index 0; trilinear on a twice finer grid."""
    n = transform.shape[0]
    fine = torch.fft.irfftn(pad_transform(transform, 2 * n), s=(2 * n, 2 * n, 2 * n))
    fine = torch.fft.fftshift(fine).contiguous()
    axis = torch.arange(n, dtype=torch.float32) - n // 2
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    points = torch.stack([x, y, z], -1) @ torch.from_numpy(rotation.T.astype(np.float32))
    turned: Tensor = torch.fft.ifftshift(_sample(fine, points * 2)) * 8
    return turned
