"""Amortised poses: a network that looks at a frame once and names a few poses, taught on dreams of the current field.

A frame becomes a polar image, whitened by the radial mean. Turning the particle about the beam by α, R → R·Rz(α), only
shifts that image along its angles. So the network is a circular convolution over the angle, and every place on the
circle names the pose *relative to itself*, P = R·Rz(φ): the viewing direction and one reference angle are learned once,
all in-plane angles come for free. Angles half a turn apart are laid on one another, because R and R·Rz(π) see the same
frame (exactly on a flat Ewald sphere): every pose here is meant modulo Rz(π).

Dreams are frames of the current field at random poses with Poisson noise: unlimited labelled data (the sleep phase of
wake–sleep: Hinton, Dayan, Frey & Neal, Science 268, 1995). Winner takes all over the hypotheses, as in multiple-choice
learning (Guzmán-Rivera, Batra & Kohli, NIPS 2012); the scores learn which hypothesis wins.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from . import kernels, torch_kernels
from .pixels import Pixels, SparsePhotons
from .rotations import RZ_PI, random_rotations, rotation_from_6d, super_fibonacci
from .search import polar_spread

F32 = NDArray[np.float32]

FINEST_PIXELS = 1.5
"""Pixels per voxel area above which dreams are dreamt on pixels binned to one voxel."""

SHAPE_OF_UNKNOWN_FLUENCE = 4.0
"""Gamma shape of the dreams' fluence (50 % spread) where the frames' fluence is profiled."""

TIE = 0.05
"""Two hypotheses whose squared distances from the truth differ by this (about 11°) share the win when scores learn."""

SCORE_WEIGHT, MEAN_WEIGHT = 0.3, 0.02
"""Weights in the loss of the scores' cross-entropy, and of the mean distance that keeps losing hypotheses alive."""

DEAD = 0.1
"""A hypothesis that wins less than this part of its fair share of dreams is dead."""


class PolarImage:
    """Frames as whitened polar images: (K − f·Ī)/√(f·Ī) on rings × angles, with K spread bilinearly.

    f is the fluence expected of a structureless particle given the frame's photons and a Gamma(shape) distribution.

    Parameters
    ----------
    pixels : Pixels
    brightness : (U,) float32
        Mean photons per frame and pixel of a structureless particle: response × radial profile.
    radius : float
        Of the outermost ring, voxels: not beyond what the field has resolved, or dreams teach its noise.
    fluence_shape : float
        As in `likelihood`: inf fixed, 0 profiled.
    n_rings, n_angles : int
    turn : float
        The part of a turn that the angles cover: π (facing pixels laid on one another) or 2π.
    device : torch.device or str

    Attributes
    ----------
    mirror : bool
        Whether the image of a mirrored frame is the mirrored image: no mask or panel speaks against it.

    Raises
    ------
    ValueError
        Where `radius` leaves no ring outside the beam stop.
    """

    def __init__(
        self, pixels: Pixels, brightness: F32, radius: float, fluence_shape: float = np.inf,
        n_rings: int = 12, n_angles: int = 24, turn: float = np.pi, device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        if radius <= pixels.inner_radius + 1:
            raise ValueError(f"a radius of {radius} voxels leaves no ring outside {pixels.inner_radius}")
        self.radius, self.shape, self.device = radius, fluence_shape, torch.device(device)
        self.n_rings, self.n_angles, self.turn, self.edge = n_rings, n_angles, turn, pixels.edge
        self.n_pixels = pixels.within(radius)
        bin_of_pixel, self.q, self.brightness = _binned(pixels, brightness, self.n_pixels)
        light = np.zeros_like(self.brightness)
        if pixels.background is not None:
            light = np.bincount(bin_of_pixel, pixels.background.light[: self.n_pixels], len(light)).astype(np.float32)
        azimuth = np.arctan2(self.q[:, 1], self.q[:, 0]).astype(np.float64) % (2 * np.pi)
        rho = np.hypot(self.q[:, 0], self.q[:, 1]).astype(np.float64)
        spread = polar_spread(rho, azimuth, (pixels.inner_radius, radius), n_rings, n_angles, turn)
        bright, lit = torch.from_numpy(self.brightness), torch.from_numpy(light)
        mean = bright @ spread
        variance = (bright + lit) @ spread**2  # of a cell: Σ Ī w² over its pixels' bilinear shares w
        precision = torch.rsqrt(variance + 0.01 * variance.mean())
        self.place, self.expected, self.light = (x.to(self.device) for x in (torch.from_numpy(self.q), bright, lit))
        both = mean + lit @ spread
        self.mirror = bool((both - mirrored(both.view(n_rings, n_angles)).flatten()).abs().sum() < 0.05 * both.sum())
        self.total, self.lit = float(bright.sum()), float(lit.sum())
        self.mean, self.mean_light = ((x * precision).to(self.device) for x in (mean, lit @ spread))
        self.spread = (spread * precision).to(self.device)
        self.spread_of_pixel = self.spread[torch.from_numpy(bin_of_pixel).to(self.device)]

    def __call__(self, photons: SparsePhotons | Tensor) -> Tensor:
        """(B, rings, angles) images of sparse frames, or of dense ones (B, n_pixels) within the radius."""
        if isinstance(photons, SparsePhotons):
            near = photons.pixel < self.n_pixels
            first = np.concatenate([[0], np.cumsum(near)])[photons.start[:-1]]
            entries = (photons.pixel[near].astype(np.int64), photons.count[near], first)
            pixel, count, offset = (torch.from_numpy(x).to(self.device) for x in entries)
            laid = F.embedding_bag(pixel, self.spread_of_pixel, offset, mode="sum", per_sample_weights=count)
            return self._whiten(laid, torch.from_numpy(photons.totals(self.n_pixels)).to(self.device))
        dense = photons.to(self.device)
        return self._whiten(dense @ self.spread_of_pixel, dense.sum(1))

    def of_bins(self, photons: Tensor) -> Tensor:
        """(B, rings, angles) images of photons (B, bins) on the bins where dreams are dreamt."""
        return self._whiten(photons @ self.spread, photons.sum(1))

    def _whiten(self, laid: Tensor, total: Tensor) -> Tensor:
        if np.isinf(self.shape):
            image = laid - self.mean - self.mean_light
        else:
            fluence = ((total - self.lit + self.shape) / (self.total + self.shape)).clamp(min=1e-3)[:, None]
            image = (laid - fluence * self.mean - self.mean_light) / fluence.sqrt()
        return image.view(-1, self.n_rings, self.n_angles)


def _binned(pixels: Pixels, brightness: F32, n: int) -> tuple[NDArray[np.int64], F32, F32]:
    """Bin of each of the first n pixels, and the bins' q and brightness: sums of Poisson pixels stay Poisson.

    Pixels much finer than a voxel are binned to one voxel, all others are bins of their own.
    """
    q = pixels.q[:n]
    if n < FINEST_PIXELS * np.pi * float(pixels.rho[n - 1]) ** 2:
        return np.arange(n), np.ascontiguousarray(q), brightness[:n]
    cell = np.floor(q[:, :2] + 1e-4).astype(np.int64)
    _, inverse = np.unique(cell, axis=0, return_inverse=True)
    inverse = inverse.reshape(-1)
    total = np.bincount(inverse, brightness[:n])
    middle = np.stack([np.bincount(inverse, brightness[:n] * q[:, i]) for i in range(3)], -1) / total[:, None]
    return inverse, middle.astype(np.float32), total.astype(np.float32)


def mirrored(image: Tensor) -> Tensor:
    """Images (…, angles) seen in a mirror: angle φ goes to −φ. Exact: I(u, −v; R) = I(u, v; R·Ry(π)), by Friedel."""
    return torch.roll(image.flip(-1), 1, -1)


def expected_ratio(rotation: Tensor, q: F32 | Tensor, ratio: F32 | Tensor, edge: int) -> Tensor:
    """(B, pixels) V/Ī at R·q, trilinear: compiled on the CPU, by torch elsewhere.

    Parameters
    ----------
    rotation : (B, 3, 3) float32
    q : (pixels, 3) float32
        Voxels.
    ratio : (edge³) float32
        Flat (z, y, x) grid.
    """
    if rotation.device.type == "cpu":
        out = np.empty((len(rotation), len(q)), np.float32)
        kernels.gather(rotation.numpy(), np.asarray(q), np.asarray(ratio), edge, out)
        return torch.from_numpy(out)
    point, grid = (torch.as_tensor(array, device=rotation.device) for array in (q, ratio))
    return torch_kernels.gather(rotation, point, grid, edge)


def dream(polar: PolarImage, ratio: F32 | Tensor, n: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Frames of a field at random poses, with Poisson noise and the frames' spread of fluence.

    Parameters
    ----------
    polar : PolarImage
    ratio : (edge³) float32
        V/Ī of the field.
    n : int
        Frames; where the detector has mirror symmetry every second one is its predecessor's mirror image.

    Returns
    -------
    rotation : (n, 3, 3) float32
    image : (n, rings, angles) float32
    """
    fresh = (n + 1) // 2 if polar.mirror else n
    rotation = torch.from_numpy(random_rotations(fresh, rng).astype(np.float32)).to(polar.device)
    rate = expected_ratio(rotation, polar.place, ratio, polar.edge)
    rate *= polar.expected
    if not np.isinf(polar.shape):
        shape = polar.shape or SHAPE_OF_UNKNOWN_FLUENCE
        rate *= torch.from_numpy(rng.gamma(shape, 1 / shape, (fresh, 1)).astype(np.float32)).to(polar.device)
    rate = (rate + polar.light).clamp(min=0)
    noise = torch.Generator(polar.device).manual_seed(int(rng.integers(2**62)))
    image = polar.of_bins(torch.poisson(rate, generator=noise))
    if polar.mirror:
        half_turn = torch.tensor([-1.0, 1.0, -1.0], device=polar.device)
        rotation = torch.stack([rotation, rotation * half_turn], 1).flatten(0, 1)[:n]
        image = torch.stack([image, mirrored(image)], 1).flatten(0, 1)[:n]
    return rotation, image


class PoseEncoder(nn.Module):
    """Polar image → M poses with scores; equivariant to in-plane rotation.

    One circular convolution whose kernels span the whole circle (learned templates, matched at every angle), then two
    layers at each place on the circle with the circle's mean as context.

    Parameters
    ----------
    polar : PolarImage
        May be exchanged for one of the same shape as the resolution grows.
    hypotheses : int
        M.
    width : tuple of int
        Channels of the three layers.
    stride : int
        Angles per place: places are turn·stride/n_angles apart.
    seed : int

    Attributes
    ----------
    won : (M,) Tensor
        Part of recent dreams that each hypothesis won: a dead one is near 0.
    """

    won: Tensor
    place: Tensor

    def __init__(
        self, polar: PolarImage, hypotheses: int = 8, width: tuple[int, int, int] = (192, 128, 128),
        stride: int = 3, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.polar, self.hypotheses = polar, hypotheses
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._build(width, stride)
        self.register_buffer("won", torch.full((hypotheses,), 1 / hypotheses))
        self.to(polar.device)

    def _build(self, width: tuple[int, int, int], stride: int) -> None:
        first, second, third = width
        n = self.polar.n_angles
        self.templates = nn.Conv1d(self.polar.n_rings, first, n, stride=stride)
        self.inner = nn.Conv1d(first, second, 1)
        self.context = nn.Linear(first, second)
        self.outer = nn.Conv1d(second, third, 1)
        self.head = nn.Conv1d(third, self.hypotheses * 7, 1)
        with torch.no_grad():
            self.head.weight *= 0.5
            apart = 0.3 * torch.randn(self.hypotheses, 7)  # hypotheses begin apart, with equal scores
            apart[:, 6] = 0
            self.head.bias = nn.Parameter(apart.flatten())
        angle = torch.arange(0, n, stride) * (self.polar.turn / n)
        self.register_buffer("place", torch.stack([angle.cos(), angle.sin()], -1))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(B, places, M, 6) first two columns of each relative pose, and (B, places, M) logits."""
        around = F.pad(image, (0, self.polar.n_angles - 1), mode="circular")
        match = F.silu(self.templates(around))
        hidden = F.silu(self.inner(match) + self.context(match.mean(2))[:, :, None])
        out = self.head(F.silu(self.outer(hidden))).unflatten(1, (self.hypotheses, 7)).permute(0, 3, 1, 2)
        return out[..., :6], out[..., 6]

    def relative(self, rotation: Tensor) -> Tensor:
        """(B, places, 6) what each place should say of poses (B, 3, 3): the first two columns of R·Rz(φ)."""
        c, s = self.place[:, :1], self.place[:, 1:]
        first, second = rotation[:, None, :, 0], rotation[:, None, :, 1]
        return torch.cat([c * first + s * second, c * second - s * first], -1)

    def absolute(self, relative: Tensor, place: Tensor) -> Tensor:
        """(…, 3, 3) poses P·Rz(−φ) from what `place` (…) said (…, 6)."""
        first, second, third = rotation_from_6d(relative).unbind(-1)
        c, s = self.place[place].chunk(2, -1)
        return torch.stack([c * first - s * second, c * second + s * first, third], -1)

    def state(self) -> dict[str, NDArray[np.float32]]:
        """Everything learned, for a checkpoint."""
        return {name: value.detach().cpu().numpy().copy() for name, value in self.state_dict().items()}

    def restore(self, arrays: dict[str, NDArray[np.float32]]) -> None:
        """Take up where `state` was saved; the encoder must be built alike."""
        self.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in arrays.items()})

    @torch.no_grad()
    def revive(self, rng: np.random.Generator) -> int:
        """Let dead hypotheses start again from the one that wins most, with noise; how many were dead."""
        dead = torch.nonzero(self.won < DEAD / self.hypotheses).flatten().tolist()
        best = int(self.won.argmax())
        for m in dead:
            for parameter in self.head.parameters():
                rows = parameter.view(self.hypotheses, 7, -1)
                noise = torch.from_numpy(rng.normal(size=rows[best].shape).astype(np.float32)).to(rows.device)
                rows[m] = rows[best] + 0.3 * rows[best].std() * noise
            self.won[m] = self.won[best] = self.won[best] / 2
        return len(dead)


def loss_and_winners(encoder: PoseEncoder, rotation: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """Winner-takes-all loss of a batch of dreams, and the hypothesis (B,) that came nearest.

    Squared distance between the first two columns of two poses, sign taken as it suits: columns change sign by Rz(π).
    """
    said, logit = encoder(image)
    agreement = (said * encoder.relative(rotation)[:, :, None]).sum(-1).abs()
    distance = ((said * said).sum(-1) + 2 - 2 * agreement).flatten(1)
    nearest, winner = distance.min(1)
    share = torch.softmax(-distance.detach() / TIE, 1)
    surprise = -(share * F.log_softmax(logit.flatten(1), 1)).sum(1)
    loss = nearest.mean() + SCORE_WEIGHT * surprise.mean() + MEAN_WEIGHT * distance.mean()
    return loss, winner % encoder.hypotheses


def sleep(
    encoder: PoseEncoder, ratio: F32, steps: int, rng: np.random.Generator, batch: int = 128, rate: float = 4e-3
) -> Iterator[float]:
    """Teach the encoder on dreams of a field; yields the loss after every step (about 20 ms on a CPU).

    AdamW, with a warm-up and a linear decay over `steps`; call it again whenever the field has sharpened.

    Parameters
    ----------
    ratio : (edge³) float32
        V/Ī of the field.
    steps, batch : int
    rate : float
        Learning rate at its highest: the default learns from nothing; half of it follows a field that sharpens.
    """
    field = torch.from_numpy(ratio).to(encoder.polar.device)
    optimiser = torch.optim.AdamW(encoder.parameters(), lr=rate, weight_decay=1e-3)
    warm = min(50, max(1, steps // 5))
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * min((step + 1) / warm, 1.0) * max(1 - step / steps, 0.02)
        loss, winner = loss_and_winners(encoder, *dream(encoder.polar, field, batch, rng))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        encoder.won.lerp_(torch.bincount(winner, minlength=encoder.hypotheses) / batch, 0.02)
        if step % 100 == 0 and step < 0.7 * steps:
            encoder.revive(rng)
        yield float(loss.detach())


@torch.no_grad()
def propose(encoder: PoseEncoder, photons: SparsePhotons | Tensor) -> tuple[F32, F32]:
    """Poses that the encoder holds possible for each frame, each meant modulo Rz(π).

    Returns
    -------
    rotation : (B, M, 3, 3) float32
        Lab → particle; of each hypothesis, what its most confident place says.
    score : (B, M) float32
        Log-probability that this hypothesis comes nearest; sums to 1 over M.
    """
    said, logit = encoder(encoder.polar(photons))
    place = logit.argmax(1)
    chosen = said.gather(1, place[:, None, :, None].expand(-1, 1, -1, 6))[:, 0]
    score = torch.logsumexp(F.log_softmax(logit.flatten(1), 1).view_as(logit), 1)
    return encoder.absolute(chosen, place).cpu().numpy(), score.cpu().numpy()


def coverage(rotation: NDArray[np.floating], cells: int = 128) -> float:
    """How evenly poses (N, 3, 3), modulo Rz(π), cover SO(3): 1 as uniform random poses do, towards 0 as they collapse.

    The perplexity of their counts in equal cells, over that of uniform random poses, as many.
    """
    grid = np.concatenate([super_fibonacci(cells), super_fibonacci(cells) @ RZ_PI]).reshape(-1, 9)

    def perplexity(poses: NDArray[np.floating]) -> float:
        cell = (poses.reshape(-1, 9) @ grid.T).argmax(1) % cells
        share = np.bincount(cell, minlength=cells) / len(cell)
        return float(np.exp(-(share * np.log(np.maximum(share, 1e-300))).sum()))

    return perplexity(rotation) / perplexity(random_rotations(len(rotation), np.random.default_rng(0)))
