"""The inner loops on a torch device: what `kernels` does frame by frame, for whole batches at once.

Same physics, same grids, tested against `kernels` on the CPU. Look-ups are float32, sums over photons float64.
A sum into a volume is made by `index_add_`: on a GPU its addends come in any order, so equal seeds give equal results
only to rounding there. Everything else gives the same bits every time. Frames are padded to the longest of those that
are worked on together (`LitPixels`), photons that do not exist count zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .kernels import CONVERGED, NEGLIGIBLE_WEIGHT, PRIOR, TURN

CORNERS = ((0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1), (1, 0, 0), (1, 0, 1), (1, 1, 0), (1, 1, 1))
"""Of a voxel cell: (z, y, x)."""


@dataclass(frozen=True, eq=False)
class LitPixels:
    """Photons of B frames side by side, padded with zeros to the L lit pixels of the fullest.

    Parameters
    ----------
    q : (B, L, 3) float32
        Voxels.
    count : (B, L) float32
        Photons as they count: times the share of each pixel.
    share : (B, L) float32
        That share.
    total : (B,) float64
        Photons of each frame, as they count.
    """

    q: Tensor
    count: Tensor
    share: Tensor
    total: Tensor

    def of(self, frame: Tensor) -> LitPixels:
        """Photons of frames `frame` (J,), one row for each pose."""
        return LitPixels(self.q[frame], self.count[frame], self.share[frame], self.total[frame])


@dataclass(frozen=True, eq=False)
class Directions:
    """A lattice of viewing directions on the faces of a cube, as `exposure.ExposureTable` lays it.

    Parameters
    ----------
    rotation : (6·m², 3, 3) float32
        Of the nodes.
    m : int
        Nodes along an edge of a face.
    """

    rotation: Tensor
    m: int


@dataclass(frozen=True, eq=False)
class ScoredField:
    """What poses are scored against.

    Parameters
    ----------
    log_grid : (edge³) float32
        log ratio.
    cell : (edge³, 8) float32
        Its `cell_coefficients`.
    edge : int
    table : (nodes, 1 + 2K)
        Photons expected, by direction.
    directions : Directions
    shape : float
        Of the fluences' Gamma distribution.
    light : (nodes, 1 + 2K) or None
        What an uneven background adds to Σ K log V, by direction.
    """

    log_grid: Tensor
    cell: Tensor
    edge: int
    table: Tensor
    directions: Directions
    shape: float
    light: Tensor | None = None


# -------------------------------------------------------------------------------------------------- volumes


def gather(rotation: Tensor, point: Tensor, grid: Tensor, edge: int) -> Tensor:
    """(J, P) grid (edge³, flat) at rotation (J, 3, 3) · point (P, 3), trilinear."""
    place = point @ rotation.mT / ((edge - 1) / 2)
    volume = grid.view(1, 1, edge, edge, edge)
    return F.grid_sample(volume, place[None, :, :, None], align_corners=True)[0, 0, :, :, 0]


def scatter(place: Tensor, value: Tensor, grid: Tensor, edge: int) -> None:
    """The adjoint of trilinear interpolation: grid (edge³, …) += value (P, …) at `place` (P, 3), voxels from q = 0."""
    base, (fx, fy, fz) = _cell(place, edge)
    wide = (-1,) + (1,) * (value.ndim - 1)
    for dz, dy, dx in CORNERS:
        share = (fx if dx else 1 - fx) * (fy if dy else 1 - fy) * (fz if dz else 1 - fz)
        grid.index_add_(0, base + (dz * edge + dy) * edge + dx, value * share.view(wide))


def _cell(place: Tensor, edge: int) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Flat index (…) of the lowest corner of each cell that `place` (…, 3) lies in, and the place in it."""
    place = place + (edge - 1) / 2
    corner = place.to(torch.int64)  # truncation: places are positive
    fx, fy, fz = (place - corner).unbind(-1)
    return (corner[..., 2] * edge + corner[..., 1]) * edge + corner[..., 0], (fx, fy, fz)


def cell_coefficients(grid: Tensor, edge: int) -> Tensor:
    """(edge³, 8) coefficients of 1, x, y, xy, z, xz, yz, xyz in the cell above each voxel: one look-up where there were
    eight, side by side in memory.
    """
    cube = grid.view(edge, edge, edge)
    coefficient = torch.stack([torch.roll(cube, (-z, -y, -x), (0, 1, 2)) for z, y, x in CORNERS], -1)
    for axis in (1, 2, 4):  # differences along x, y, z in turn: corners (0, 1) become (value, slope)
        paired = coefficient.view(edge, edge, edge, 4 // axis, 2, axis)
        paired[..., 1, :] -= paired[..., 0, :].clone()
    return coefficient.view(-1, 8)


# -------------------------------------------------------------------------------------------------- directions


def direction_basis(rotation: Tensor, directions: Directions, harmonics: int) -> tuple[Tensor, Tensor, Tensor]:
    """The four nodes around each pose's direction.

    Returns
    -------
    node, share : (J, 4)
        Their numbers, and how much each counts: bilinear.
    basis : (J, 4, 1 + 2K)
        1, cos α, sin α, cos 2α, … of the pose's in-plane angle to each.
    """
    rotation, m = rotation.double(), directions.m
    x, y, z = rotation[:, :, 2].unbind(-1)
    ax, ay, az = x.abs(), y.abs(), z.abs()
    along_z = (az >= ax) & (az >= ay)
    along_y = ~along_z & (ay >= ax)
    main = torch.where(along_z, z, torch.where(along_y, y, x))
    face = torch.where(along_z, 4, torch.where(along_y, 2, 0)) + (main <= 0)
    u = torch.where(along_z | along_y, x, y) / main.abs()
    v = torch.where(along_z, y, z) / main.abs()
    u, v = ((torch.atan(side) * (2 / math.pi) + 0.5) * (m - 1) for side in (u, v))
    iu, iv = (side.long().clamp(0, m - 2) for side in (u, v))
    fu, fv = u - iu, v - iv
    first = (face * m + iv) * m + iu
    node = torch.stack([first, first + 1, first + m, first + m + 1], -1)
    share = torch.stack([(1 - fu) * (1 - fv), fu * (1 - fv), (1 - fu) * fv, fu * fv], -1)
    if harmonics == 0:
        return node, share, torch.ones_like(share)[..., None]
    d, r = directions.rotation[node].double(), rotation[:, None]
    cosine = (d[..., 0] * r[..., 0] + d[..., 1] * r[..., 1]).sum(-1)  # of α in r ≈ d · Rz(α)
    sine = (d[..., 1] * r[..., 0] - d[..., 0] * r[..., 1]).sum(-1)
    angle = torch.atan2(sine, cosine)[..., None] * torch.arange(1, harmonics + 1, device=rotation.device)
    waves = torch.stack([angle.cos(), angle.sin()], -1).flatten(-2)
    return node, share, torch.cat([torch.ones_like(share)[..., None], waves], -1)


def expected_total(rotation: Tensor, table: Tensor, directions: Directions) -> Tensor:
    """(J,) float64 photons expected at poses (J, 3, 3): a table (nodes, 1 + 2K) interpolated over directions."""
    node, share, basis = direction_basis(rotation, directions, (table.shape[1] - 1) // 2)
    return (share * (basis * table[node]).sum(-1)).sum(-1)


def deposit(rotation: Tensor, weight: Tensor, directions: Directions, amplitude: Tensor, first: Tensor) -> None:
    """The adjoint of `expected_total`: amplitude (rows, 1 + 2K), from row `first` (J,) on, += weights (J,) of poses."""
    node, share, basis = direction_basis(rotation, directions, (amplitude.shape[1] - 1) // 2)
    row = node + first[:, None]
    amplitude.index_add_(0, row.flatten(), ((share * weight[:, None])[..., None] * basis).flatten(0, 1))


# -------------------------------------------------------------------------------------------------- likelihood


def fluence_term(total: Tensor, photons: Tensor, shape: float) -> Tensor:
    """−log of what the fluence costs: fixed (shape = inf), or marginalised over Gamma(shape, mean 1)."""
    total = total.clamp(min=1e-3)  # a truncated series of harmonics can fall below zero
    if math.isinf(shape):
        return -total
    return -(photons + shape) * torch.log((total + shape) / (1 + shape))


def photon_term(rotation: Tensor, lit: LitPixels, field: ScoredField) -> Tensor:
    """(J,) Σ k log V(r q) over the photons (J rows) of each pose (J, 3, 3)."""
    base, (x, y, z) = _cell(lit.q @ rotation.mT, field.edge)
    c = field.cell[base]
    low = c[..., 0] + c[..., 1] * x + (c[..., 2] + c[..., 3] * x) * y
    high = c[..., 4] + c[..., 5] * x + (c[..., 6] + c[..., 7] * x) * y
    total: Tensor = (lit.count * (low + high * z)).sum(-1, dtype=torch.float64)
    return total


def photon_slopes(rotation: Tensor, lit: LitPixels, field: ScoredField) -> tuple[Tensor, Tensor, Tensor]:
    """`photon_term` (J,), its gradient (J, 3) and its empirical Fisher matrix (J, 3, 3) for exp(ω)·r, float64."""
    turned = lit.q @ rotation.mT
    base, (x, y, z) = _cell(turned, field.edge)
    c = field.cell[base]
    gz = c[..., 4] + c[..., 5] * x + (c[..., 6] + c[..., 7] * x) * y
    gy = c[..., 2] + c[..., 3] * x + (c[..., 6] + c[..., 7] * x) * z
    gx = c[..., 1] + c[..., 3] * y + (c[..., 5] + c[..., 7] * y) * z
    value = c[..., 0] + c[..., 1] * x + (c[..., 2] + c[..., 3] * x) * y + gz * z
    slope = torch.linalg.cross(turned, torch.stack([gx, gy, gz], -1))
    weighted = lit.count[..., None] * slope
    total = (lit.count * value).sum(-1, dtype=torch.float64)
    return total, weighted.sum(1, dtype=torch.float64), ((weighted * lit.share[..., None]).mT @ slope).double()


def dark_term(rotation: Tensor, photons: Tensor, field: ScoredField) -> Tensor:
    """(J,) what pixels cost at poses (J, 3, 3), lit or not: the fluence's cost, and Σ s d log V of a background."""
    value = fluence_term(expected_total(rotation, field.table, field.directions), photons, field.shape)
    if field.light is not None:
        value = value - expected_total(rotation, field.light, field.directions)
    return value


def pose_score(rotation: Tensor, lit: LitPixels, field: ScoredField) -> Tensor:
    """(J,) log-likelihood of frames (J rows) at poses (J, 3, 3)."""
    return photon_term(rotation.float(), lit, field) + dark_term(rotation, lit.total, field)


def pose_slopes(rotation: Tensor, lit: LitPixels, field: ScoredField) -> tuple[Tensor, Tensor, Tensor]:
    """`pose_score` (J,), its gradient (J, 3) and Fisher matrix (J, 3, 3) for exp(ω)·r."""
    value, gradient, fisher = photon_slopes(rotation.float(), lit, field)
    # what dark pixels cost varies slowly: central differences are exact enough and need no second table
    step = TURN * torch.eye(3, dtype=torch.float64, device=rotation.device)
    omega = torch.cat([torch.zeros_like(step[:1]), step, -step])
    turned = rotate(omega, torch.eye(3, dtype=torch.float64, device=rotation.device))[:, None] @ rotation.double()
    cost = dark_term(turned.flatten(0, 1), lit.total.repeat(7), field).view(7, -1)
    return value + cost[0], gradient + (cost[1:4] - cost[4:]).T / (2 * TURN), fisher


def rank(candidate: Tensor, lit: LitPixels, field: ScoredField) -> Tensor:
    """(B, C) ≈ log-likelihood of each frame at its candidates (B, C, 3, 3), each photon at its nearest voxel."""
    turned = lit.q[:, None] @ candidate.mT
    x, y, z = (turned + field.edge / 2).to(torch.int64).unbind(-1)  # half a voxel beyond q = 0: truncation rounds
    value = field.log_grid[(z * field.edge + y) * field.edge + x]
    photons = (lit.count[:, None] * value).sum(-1, dtype=torch.float64)
    cost = dark_term(candidate.flatten(0, 1), lit.total.repeat_interleave(candidate.shape[1]), field)
    return photons + cost.view_as(photons)


# -------------------------------------------------------------------------------------------------- refinement


def rotate(omega: Tensor, rotation: Tensor) -> Tensor:
    """exp(omega) · rotation, for ω (…, 3) and rotations (…, 3, 3) (Rodrigues)."""
    square = omega.square().sum(-1)[..., None]
    angle = square.sqrt()
    small = angle < 1e-6
    s = torch.where(small, 1.0, angle.sin() / angle.clamp(min=1e-12))[..., None]
    k = torch.where(small, 0.5, (1 - angle.cos()) / square.clamp(min=1e-24))[..., None]
    axis = omega[..., None].expand(*omega.shape, 3)
    cross = torch.linalg.cross(axis, torch.eye(3, dtype=omega.dtype, device=omega.device).expand_as(axis), dim=-2)
    turned: Tensor = rotation + s * (cross @ rotation) + k * (cross @ (cross @ rotation))
    return turned


def cholesky(h: Tensor, damping: Tensor | float) -> tuple[Tensor, ...]:
    """The lower triangle (six of (J,): 00, 10, 11, 20, 21, 22) of h (J, 3, 3) + damping·1, kept positive."""
    c00 = (h[:, 0, 0] + damping).clamp(min=1e-6).sqrt()
    c10, c20 = h[:, 1, 0] / c00, h[:, 2, 0] / c00
    c11 = (h[:, 1, 1] + damping - c10**2).clamp(min=1e-6).sqrt()
    c21 = (h[:, 2, 1] - c20 * c10) / c11
    c22 = (h[:, 2, 2] + damping - c20**2 - c21**2).clamp(min=1e-6).sqrt()
    return c00, c10, c11, c20, c21, c22


def back_substitute(c: tuple[Tensor, ...], y: Tensor) -> Tensor:
    """(J, 3) solution of cᵀ x = y (J, 3)."""
    c00, c10, c11, c20, c21, c22 = c
    x2 = y[:, 2] / c22
    x1 = (y[:, 1] - c21 * x2) / c11
    x0 = (y[:, 0] - c10 * x1 - c20 * x2) / c00
    return torch.stack([x0, x1, x2], -1)


def newton_step(c: tuple[Tensor, ...], gradient: Tensor, longest: float) -> tuple[Tensor, Tensor]:
    """(c cᵀ)⁻¹ gradient (J, 3), no longer than `longest`, and its length (J,) before; 0 where that is no number."""
    c00, c10, c11, c20, c21, c22 = c
    y0 = gradient[:, 0] / c00
    y1 = (gradient[:, 1] - c10 * y0) / c11
    y2 = (gradient[:, 2] - c20 * y0 - c21 * y1) / c22
    step = back_substitute(c, torch.stack([y0, y1, y2], -1))
    length = step.square().sum(-1).sqrt()
    sane = length < 1e6  # nothing unchecked may index the grid
    step = torch.where(sane[:, None], step * (longest / length.clamp(min=longest))[:, None], 0.0)
    return step, torch.where(sane, length, 0.0)


def refine(
    candidate: Tensor, lit: LitPixels, field: ScoredField, steps: int, longest: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Levenberg–Marquardt on SO(3) from every candidate (B, C, 3, 3), all at once; those that have converged rest.

    Returns
    -------
    mode : (B, C, 3, 3) float32
    fisher : (B, C, 3, 3) float64
    value : (B, C) float64
        Log-likelihood reached.
    """
    many = candidate.shape[:2]
    pose = candidate.flatten(0, 1).double()
    frame = torch.arange(many[0], device=pose.device).repeat_interleave(many[1])
    value, gradient, fisher = pose_slopes(pose, lit.of(frame), field)
    damping = torch.full_like(value, PRIOR)
    climbing = torch.arange(len(pose), device=pose.device)
    for _ in range(steps):
        omega, length = newton_step(cholesky(fisher[climbing], damping[climbing]), gradient[climbing], longest)
        moving = length >= CONVERGED
        climbing, omega = climbing[moving], omega[moving]
        if len(climbing) == 0:
            break
        trial = rotate(omega, pose[climbing])
        found = pose_slopes(trial, lit.of(frame[climbing]), field)
        better = found[0] > value[climbing]
        damped, curvature = damping[climbing], fisher[climbing].diagonal(dim1=1, dim2=2).sum(-1)
        damping[climbing] = torch.where(
            better, (damped * 0.3).clamp(min=PRIOR), 4 * torch.maximum(damped, 0.1 * curvature)
        )
        won = climbing[better]
        pose[won] = trial[better]
        for kept, new in zip((value, gradient, fisher), found, strict=True):
            kept[won] = new[better]
    return pose.float().view(*many, 3, 3), fisher.view(*many, 3, 3), value.view(many)


def sample_modes(
    mode: Tensor, fisher: Tensor, lit: LitPixels, field: ScoredField, beta: float, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Samples of each mode's Laplace posterior at inverse temperature `beta`, from `noise` (B, C, J, 3).

    Returns
    -------
    sample : (B, C·J, 3, 3) float32
    weight : (B, C·J) float64
        Sums to 1 per frame.
    """
    frames, modes, each, _ = noise.shape
    triangle = cholesky(fisher.flatten(0, 1), PRIOR)
    log_volume = (triangle[0] * triangle[2] * triangle[5]).log()
    z = noise.flatten(0, 1)
    spread = tuple(c.repeat_interleave(each) for c in triangle)
    omega = back_substitute(spread, z.flatten(0, 1)) / math.sqrt(beta)
    sample = rotate(omega, mode.flatten(0, 1).double().repeat_interleave(each, 0)).float()
    frame = torch.arange(frames, device=mode.device).repeat_interleave(modes * each)
    value = beta * pose_score(sample, lit.of(frame), field).view(frames, -1)
    value = value + (0.5 * z.square().sum(-1) - log_volume[:, None]).view(frames, -1)
    weight = (value - value.amax(1, keepdim=True)).exp()
    weight = torch.where(weight > NEGLIGIBLE_WEIGHT, weight, 0.0)
    return sample.view(frames, -1, 3, 3), weight / weight.sum(1, keepdim=True)
