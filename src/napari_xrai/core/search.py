"""Exact posterior over SO(3) at low resolution: every in-plane angle of every viewing direction, by FFT.

On a polar grid an in-plane rotation is a shift, so Σ K log V over all in-plane angles is a circular correlation of a
frame's rings with a template's rings; one template per viewing *direction* is rendered. The photons expected in all,
Σ c V, depend on the in-plane angle too unless response × mask is ring-symmetric: one more correlation, shared by all
frames, carried here as one more ring. The M-step is the adjoint of the same correlation.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from .backend import COMPILED, Backend
from .pixels import Pixels, SparsePhotons
from .rotations import direction_to_rotation, exp_map, fibonacci_directions, random_rotations, rotation_z
from .symmetry import IDENTITY, asymmetric_unit
from .workers import in_threads

F32 = NDArray[np.float32]


def polar_spread(
    rho: NDArray[np.float64], azimuth: NDArray[np.float64], radii: tuple[float, float], n_rings: int, n_angles: int,
    turn: float = 2 * np.pi,
) -> torch.Tensor:  # fmt: skip
    """(pixels, rings × angles) bilinear shares of each pixel in a polar grid's cells; rows sum to 1.

    Parameters
    ----------
    rho, azimuth : (pixels,)
        Polar coordinates of the pixels; azimuth ≥ 0, radians.
    radii : (inner, outer)
        Of the first and the last ring, in the unit of `rho`.
    turn : float
        The part of a turn that the angles cover: π lays pixels that face each other across the beam on one another.
    """
    inner, outer = radii
    ring = np.clip((rho - inner) / (outer - inner) * (n_rings - 1), 0, n_rings - 1.0001)
    angle = azimuth % turn / turn * n_angles
    r0, a0 = ring.astype(int), angle.astype(int)
    share = torch.zeros(len(rho), n_rings * n_angles)
    row = np.arange(len(rho))
    for dr in (0, 1):
        for da in (0, 1):
            w = np.abs(1 - dr - (ring - r0)) * np.abs(1 - da - (angle - a0))
            share[row, (r0 + dr) * n_angles + (a0 + da) % n_angles] += torch.from_numpy(w).float()
    return share


class PolarSearch:
    """Search over SO(3) with the pixels within `radius` voxels of the beam.

    Parameters
    ----------
    pixels : Pixels
    brightness : (U,) float32
        Mean photons per frame and pixel of a structureless particle, as they count.
    radius : float
        Voxels.
    sampling : float
        Directions and in-plane angles per speckle-limited step: 1 puts neighbours one voxel apart at `radius`.
    group : (n, 3, 3) float64
        The particle's point group: views that it makes equal are searched once.
    backend : Backend
        Where it runs.
    """

    def __init__(
        self, pixels: Pixels, brightness: F32, radius: float, sampling: float, group: NDArray[np.float64] = IDENTITY,
        backend: Backend = COMPILED,
    ) -> None:  # fmt: skip
        self.radius, self.sampling, self.backend = radius, sampling, backend
        self.n_pixels = pixels.within(radius)
        inner = pixels.inner_radius
        self.n_rings = max(3, int(radius - inner + 0.5) + 1)
        self.n_angles = max(16, int(np.ceil(2 * np.pi * radius * sampling / 8)) * 8)
        direction = fibonacci_directions(int(4 * np.pi * (radius * sampling) ** 2))
        self.symmetric = len(group) > 1
        self.base = direction_to_rotation(direction[asymmetric_unit(direction, group)] if self.symmetric else direction)
        self.rotation: F32 = self.base.astype(np.float32)
        n = self.n_pixels
        spread = polar_spread(pixels.rho[:n], pixels.azimuth[:n], (inner, radius), self.n_rings, self.n_angles)
        self.brightness = (torch.from_numpy(brightness[: self.n_pixels]) @ spread).to(backend.device)
        self.spread = spread.to(backend.device)
        self.share = self.light = None
        if (found := pixels.background) is not None:
            weighted = (found.share, found.share * found.light)
            self.share, self.light = (torch.from_numpy(x[:n]).to(backend.device) for x in weighted)
        rho = np.repeat(np.linspace(inner, radius, self.n_rings), self.n_angles)
        phi = np.tile(np.arange(self.n_angles) * 2 * np.pi / self.n_angles, self.n_rings)
        depth = np.sqrt(pixels.ewald_radius**2 - rho**2) - pixels.ewald_radius
        self.point = np.stack([rho * np.cos(phi), rho * np.sin(phi), depth], -1).astype(np.float32)
        self._fourier_matrices()

    def _fourier_matrices(self) -> None:
        """Real DFT over the in-plane angle, and back, as matrices: at these sizes a GEMM beats an FFT."""
        n = self.n_angles
        self.n_freq = n // 2 + 1
        phase = 2 * np.pi * np.arange(self.n_freq)[:, None] * np.arange(n)[None] / n
        twice = np.full((self.n_freq, 1), 2.0)
        twice[0] = twice[-1] = 1
        cos, sin = np.cos(phase), np.sin(phase)
        inverse, forward = np.stack([twice * cos, -twice * sin], 1) / n, np.stack([cos, -sin], 1)
        self.inverse, self.forward = (
            torch.tensor(matrix.reshape(-1, n), dtype=torch.float32, device=self.backend.device)
            for matrix in (inverse, forward)
        )

    def set_field(
        self, ratio: F32, edge: int, fluence_shape: float, rng: np.random.Generator, darkest: float, threads: int = 1
    ) -> None:
        """Render the templates of a field; viewing directions are turned at random, so that none is special."""
        step = 1 / (self.radius * self.sampling)
        turn = exp_map(step * rng.uniform(-0.5, 0.5, 3)) if self.symmetric else random_rotations(1, rng)[0]
        self.rotation = np.asarray(turn @ self.base, np.float32)
        template = self.backend.gather(self.rotation, self.point, ratio, edge, threads).clamp_(min=darkest)
        self.shape = fluence_shape
        self.total = self._expected_totals(template)
        cost = self.total if np.isinf(fluence_shape) else torch.log((self.total + fluence_shape) / (1 + fluence_shape))
        log_template = torch.fft.rfft(template.log_().view(-1, self.n_rings, self.n_angles), dim=-1)
        # the fluence's cost is one more ring: its "photons" are the same at every frequency, −1 or −(K + shape)
        ring = torch.cat([log_template, torch.fft.rfft(cost, dim=-1).conj()[:, None]], 1).permute(2, 1, 0)
        re, im = ring.real, ring.imag
        self.template = torch.stack([torch.cat([re, im], 1), torch.cat([-im, re], 1)], 1).contiguous()

    def _expected_totals(self, template: torch.Tensor) -> torch.Tensor:
        """(directions, angles) photons expected in all: the correlation of the template with the brightness."""
        rings = torch.fft.rfft(template.view(-1, self.n_rings, self.n_angles), dim=-1)
        bright = torch.fft.rfft(self.brightness.view(self.n_rings, self.n_angles), dim=-1)
        total: torch.Tensor = torch.fft.irfft((rings.conj() * bright).sum(1), n=self.n_angles, dim=-1)
        return total.clamp(min=1e-6)

    def dense(self, photons: SparsePhotons) -> torch.Tensor:
        """(N, n_pixels) photons as they count: without those that an uneven background adds on average."""
        frames = self.backend.dense(photons, self.n_pixels)
        return frames if self.share is None or self.light is None else frames * self.share - self.light

    def _charge(self, photons: torch.Tensor) -> torch.Tensor:
        """(B,) what the fluence's cost is counted by; a frame may have fewer photons than its background."""
        return photons.sum(1).clamp(min=1e-3) + self.shape

    def log_likelihood(self, photons: torch.Tensor) -> torch.Tensor:
        """(B, directions, angles) log-likelihood of frames `photons` (B, n_pixels), up to a constant per frame."""
        rings = self._rings(photons)
        charge = photons.new_ones(len(photons)) if np.isinf(self.shape) else self._charge(photons)
        extra = (-charge).expand(self.n_freq, len(photons))[..., None]
        frame = torch.cat([rings.real, extra, rings.imag, torch.zeros_like(extra)], 2)
        product = torch.matmul(frame[:, None], self.template).view(2 * self.n_freq, len(photons) * len(self.base))
        return (product.T @ self.inverse).view(len(photons), len(self.base), self.n_angles)

    def _rings(self, photons: torch.Tensor) -> torch.Tensor:
        """(frequencies, B, rings) transform over the in-plane angle of frames (B, n_pixels) on the polar grid."""
        polar = (photons @ self.spread).view(len(photons), self.n_rings, self.n_angles)
        rings: torch.Tensor = torch.fft.rfft(polar, dim=-1)
        return rings.permute(2, 0, 1)

    def back_project(self, posterior: torch.Tensor, photons: torch.Tensor) -> tuple[F32, F32]:
        """Photons and exposure that a posterior (B, directions, angles) lays on the templates (directions, cells)."""
        batch, directions = posterior.shape[:2]
        n = self.n_rings
        wave = (self.forward @ posterior.view(-1, self.n_angles).T).view(self.n_freq, 2, batch, directions)
        rings = self._rings(photons)
        laid = torch.matmul(wave.transpose(2, 3), torch.cat([rings.real, rings.imag], 2)[:, None])
        re = laid[:, 0, :, :n] + laid[:, 1, :, n:]
        im = laid[:, 0, :, n:] - laid[:, 1, :, :n]
        photon_map = torch.fft.irfft(torch.complex(re, im).permute(1, 2, 0), n=self.n_angles, dim=-1)
        if self.light is None:  # else there may be fewer than the background adds
            photon_map = photon_map.clamp(min=0)
        return photon_map.flatten(1).cpu().numpy(), self._exposure(posterior, photons).cpu().numpy()

    def _exposure(self, posterior: torch.Tensor, photons: torch.Tensor) -> torch.Tensor:
        """(directions, cells): the brightness, turned by the posterior's in-plane angles and scaled by the fluence."""
        if np.isinf(self.shape):
            turned = posterior.sum(0)
        else:
            turned = torch.einsum("b,bda->da", self._charge(photons), posterior) / (self.total + self.shape)
        bright = torch.fft.rfft(self.brightness.view(self.n_rings, self.n_angles), dim=-1)
        wave = torch.fft.rfft(turned, dim=-1).conj()[:, None] * bright
        exposure: torch.Tensor = torch.fft.irfft(wave, n=self.n_angles, dim=-1)
        return exposure.clamp(min=0).flatten(1)

    def pose(self, direction: NDArray[np.int64], angle: NDArray[np.int64]) -> F32:
        """(…, 3, 3) rotations lab → particle of template `direction` seen at in-plane step `angle`."""
        return np.asarray(self.rotation[direction] @ rotation_z(-2 * np.pi * angle / self.n_angles), np.float32)

    def best(self, photons: torch.Tensor, top: int, threads: int = 1) -> F32:
        """(B, top, 3, 3) most likely poses of frames (B, n_pixels), one per direction; all, where they are fewer."""
        top = min(top, len(self.base))

        def search(part: torch.Tensor) -> F32:
            score, angle = self.log_likelihood(part).max(2)
            direction = score.topk(top, 1).indices
            return self.pose(direction.cpu().numpy(), angle.gather(1, direction).cpu().numpy())

        with self.backend.coarse_products():
            return np.concatenate(in_threads(search, torch.split(photons, self.frames_together), threads))

    @property
    def frames_together(self) -> int:
        """How many are searched at a time."""
        fit = self.backend.largest_scores // (len(self.base) * self.n_angles)
        return max(1, min(self.backend.frames_at_a_time, fit))
