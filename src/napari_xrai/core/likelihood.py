"""How well a pose explains a frame: Poisson photons, the particle's fluence fitted, integrated over, or fixed.

With fluence f, K_p ~ Poisson(f · w_p · ratio(R q_p)), its logarithm linear between voxels, and
S(R) = Σ_p w_p ratio(R q_p):

- fixed (f = 1):              log L = Σ K log ratio − S          the photon count itself tells about the pose
- Gamma(shape a, mean 1):     log L = Σ K log ratio − (ΣK + a) log((S + a)/(1 + a)),   ⟨f⟩ = (ΣK + a)/(S + a)
- profiled (a = 0):           log L = Σ K log ratio − ΣK log S,                        f = ΣK / S

up to constants of the frame; the first is the limit a → ∞ of the second. Where pixels have an uneven background,
photons count by their share of it, and what it adds is taken off again (`uneven_background`): K → s (K − d), w → s w.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from . import kernels
from .exposure import ExposureTable
from .pixels import Pixels, SparsePhotons
from .workers import in_threads

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

NEWTON_STEPS = 6
LONGEST_STEP = 0.2
"""Radians: about a quarter of the way to the next local maximum at the resolution where refinement begins."""


class PoseLikelihood:
    """The log-likelihood of sparse frames as a function of pose, for one field at one resolution.

    Parameters
    ----------
    pixels : Pixels
    brightness : (U,) float32
        Mean photons per frame and pixel of a structureless particle, as they count.
    exposure : ExposureTable
    log_grid : (edge³) float32
        log ratio of the field.
    table : (nodes, 1 + 2K) float32
        Photons expected within `radius`, from `ExposureTable.totals`.
    radius : float
        Photons farther from the beam are not scored, voxels.
    fluence_shape : float
        Shape of the Gamma distribution of fluences; inf: all equal, 0: profiled per frame.
    threads : int
    light : (M nodes, 1 + 2K) float32 or None
        What an uneven background adds to Σ K log ratio, from the `fine` lattice of its own table.
    """

    def __init__(
        self, pixels: Pixels, brightness: F32, exposure: ExposureTable, log_grid: F32, table: F32,
        radius: float, fluence_shape: float, threads: int, light: F32 | None = None,
    ) -> None:  # fmt: skip
        self.n_pixels, self.pixels = pixels.within(radius), pixels
        self.shape, self.threads = fluence_shape, threads
        fine = exposure.fine
        self.lattice, self.table = (fine.rotation, fine.m), fine.table(table)
        self.light = np.zeros((0, 1), np.float32) if light is None else light
        self.field = (log_grid, pixels.edge)
        self.structureless = float(brightness[: self.n_pixels].sum())

    def _frames(self, photons: SparsePhotons) -> list[tuple[slice, tuple[object, ...]]]:
        """Split the frames over threads: rows, and what every kernel needs of them."""
        stop, total = photons.stops(self.n_pixels), self.counted(photons)
        bounds = np.linspace(0, len(photons), self.threads + 1).astype(int)
        return [
            (
                slice(a, b),
                (photons.start[a:b], stop[a:b], total[a:b], self.pixels.q, photons.pixel, photons.count,
                 self.pixels.share, *self.field, self.table, self.light, *self.lattice, self.shape),
            )
            for a, b in pairwise(bounds) if b > a
        ]  # fmt: skip

    def counted(self, photons: SparsePhotons) -> F32:
        """(N,) photons of each frame within the radius, as they count: those that an uneven background adds are not in.

        At least a thousandth: of a frame that has fewer than its background nothing is to be learned.
        """
        background, total = self.pixels.background, photons.totals(self.n_pixels, self.pixels.share)
        if background is None:
            return total
        light = (background.share * background.light)[: self.n_pixels].sum(dtype=np.float64)
        return np.asarray(np.maximum(total - np.float32(light), np.float32(1e-3)))

    def rank(self, photons: SparsePhotons, candidate: F32) -> F64:
        """(N, C) log-likelihood of each frame at its candidates (N, C, 3, 3), to within what a voxel's edge hides.

        A photon counts what its nearest voxel says: one look-up for eight, and enough to choose among candidates that
        lie voxels away from any mode.
        """
        out = np.empty(candidate.shape[:2])
        in_threads(
            lambda job: kernels.rank(candidate[job[0]], *job[1], out[job[0]]), self._frames(photons), self.threads
        )
        return out

    def score(self, photons: SparsePhotons, pose: F32) -> F64:
        """(N, C) log-likelihood of each frame at its poses (N, C, 3, 3)."""
        return self._climb(photons, pose, 0)[2]

    def refine(self, photons: SparsePhotons, candidate: F32) -> tuple[F32, F64, F64]:
        """Climb from every candidate (N, C, 3, 3) by Levenberg–Marquardt on SO(3).

        Returns
        -------
        mode : (N, C, 3, 3) float32
        fisher : (N, C, 3, 3) float64
            Empirical Fisher information of the rotation vector ω in exp(ω)·mode.
        value : (N, C) float64
            Log-likelihood reached.
        """
        return self._climb(photons, candidate, NEWTON_STEPS)

    def _climb(self, photons: SparsePhotons, candidate: F32, steps: int) -> tuple[F32, F64, F64]:
        mode = candidate.copy()
        fisher, value = np.empty((*mode.shape[:2], 3, 3)), np.empty(mode.shape[:2])
        in_threads(
            lambda job: kernels.refine(
                mode[job[0]], *job[1], steps, LONGEST_STEP, fisher[job[0]], value[job[0]]
            ),
            self._frames(photons), self.threads,
        )  # fmt: skip
        return mode, fisher, value

    def sample(self, photons: SparsePhotons, mode: F32, fisher: F64, beta: float, noise: F64) -> tuple[F32, F64]:
        """Importance-weighted samples of the posterior at inverse temperature `beta`, from each mode's Laplace form.

        Parameters
        ----------
        mode, fisher
            As from `refine`.
        noise : (N, C, J, 3) float64
            Standard normal: J samples per mode.

        Returns
        -------
        sample : (N, C·J, 3, 3) float32
        weight : (N, C·J) float64
            Sums to 1 per frame; negligible samples have 0.
        """
        n, c, j, _ = noise.shape
        out, weight = np.empty((n, c * j, 3, 3), np.float32), np.empty((n, c * j))
        in_threads(
            lambda job: kernels.sample_modes(
                mode[job[0]], fisher[job[0]], *job[1], beta, noise[job[0]], out[job[0]], weight[job[0]]
            ),
            self._frames(photons), self.threads,
        )  # fmt: skip
        return out, weight

    def gain(self, value: F64, total: NDArray[np.floating]) -> F64:
        """Log-likelihood `value` (N,) over that of a structureless particle, for frames of which `total` (N,) count.

        Comparable between resolutions, unlike the likelihood itself: 0 says that the pose explains nothing.
        """
        if np.isinf(self.shape):
            return np.asarray(value + self.structureless)
        cost = (total + self.shape) * np.log((self.structureless + self.shape) / (1 + self.shape))
        return np.asarray(value + cost)

    def fluence(self, rotation: F32, total: NDArray[np.floating]) -> F64:
        """(J,) mean fluence of frames of which `total` (J,) photons count, at poses `rotation` (J, 3, 3)."""
        if np.isinf(self.shape):
            return np.ones(len(rotation))
        return np.asarray((total + self.shape) / np.maximum(self.expected(rotation) + self.shape, 1e-6))

    def expected(self, rotation: F32) -> F64:
        """(J,) photons expected within the radius at poses `rotation` (J, 3, 3), at fluence 1."""
        out = np.empty(len(rotation))
        kernels.expected_totals(rotation, self.table, *self.lattice, out)
        return out


def gamma_shape(k: float, s: float, kk: float, ks: float, ss: float) -> float:
    """Shape of the fluences' Gamma distribution, by moments of photon counts K about their expectation S.

    ``Var K = S + S²/a`` (negative binomial). Below 0.1 % of relative variance the fluences are called equal (inf).

    Parameters
    ----------
    k, s, kk, ks, ss : float
        Sums over frames of K, S, K², KS and S².
    """
    scale = k / s
    relative = (kk - 2 * scale * ks + scale**2 * ss - k) / (scale**2 * ss)
    return float("inf") if relative < 1e-3 else float(1 / relative)


def dense_log_likelihood(
    photons: torch.Tensor, rotation: torch.Tensor, q: torch.Tensor, brightness: torch.Tensor, ratio: torch.Tensor,
    fluence_shape: float,
) -> torch.Tensor:  # fmt: skip
    """Log-likelihood by the definition, over every pixel: what the tables and kernels are tested against.

    Parameters
    ----------
    photons : (N, U)
    rotation : (N, 3, 3)
    q : (U, 3)
        Voxels.
    brightness : (U,)
        Photons expected at ratio 1 and fluence 1.
    ratio : (edge, edge, edge)
        (z, y, x), q = 0 in the middle.
    fluence_shape : float

    Returns
    -------
    (N,) differentiable in `rotation` and `ratio`.
    """
    half = (ratio.shape[0] - 1) / 2
    point = torch.einsum("nij,uj->nui", rotation, q) / half
    log_ratio = torch.nn.functional.grid_sample(
        ratio.log()[None, None], point[None, :, :, None], align_corners=True, padding_mode="border"
    )[0, 0, :, :, 0]
    total = (log_ratio.exp() * brightness).sum(-1)
    value = (photons * log_ratio).sum(-1)
    if np.isinf(fluence_shape):
        return value - total
    return value - (photons.sum(-1) + fluence_shape) * torch.log((total + fluence_shape) / (1 + fluence_shape))
