"""Intensities held by networks, fitted to the evidence by the gradient of the Poisson likelihood.

Photons A seen under exposure E in a voxel have the negative log-likelihood E·ratio − A·log ratio: summed over voxels it
is that of the pixels, up to the interpolation by which photons were laid on the grid. Two networks, one per half of the
frames, learn it on batches of measured voxels; the field is their mean. Each stops when the other half's evidence,
which it has never seen, is explained no better: how long to train is measured, not chosen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from .band_limit import filtered_ratio
from .field import F32, UNMEASURED, BandFilter, IntensityField, RadialProfile, friedel_sum, grid_radius
from .hash_grid import HashGridPair
from .pixels import Pixels
from .siren import SirenPair

STEPS_PER_ROUND = 50
WARM_UP = 10
FAST, SLOW = 0.9, 0.99
"""Adam's memories of the gradient and of its square, per step."""

MOST_ROUNDS = 12
"""Rounds of an update at most; held-out evidence mostly ends it sooner."""

SMALLEST_BATCH, LARGEST_BATCH = 512, 2048
VOXELS_PER_BATCH = 8
"""A batch is this part of the voxels, within those bounds."""

CERTAIN = 10.0
"""Photons beyond which a voxel's weight grows no more: there interpolation errs more than counting."""

FAINT = 1e-2
"""Photons below which a voxel is drawn no more seldom."""

JUDGED = 16384
"""Voxels that held-out evidence is judged on."""

RENDERED = 16384
"""Voxels rendered in one step of work."""

DIMMEST = 1e-3
"""Smallest ratio: positive by construction, and log ratio finite."""

ONE = math.log(math.e - 1)
"""softplus(ONE) = 1: a network that says 0 says that there is no structure."""


class NeuralField(IntensityField):
    """Two networks, one per half of the evidence, and their mean on the grid.

    Until the first update the grid is what the bootstrap makes of it; the networks then start from the evidence alone.

    Parameters
    ----------
    kind : "siren" or "hash"
    pixels, profile, rng, smoothing, band_filter
        As for `IntensityField`.
    speckle : float
        Size of a speckle, voxels: the networks' unit of length.
    device : torch.device or str
        Where the networks live. Equal seeds give equal results on the CPU; sums on a GPU may come in any order.
    """

    def __init__(
        self, kind: str, pixels: Pixels, profile: RadialProfile, rng: np.random.Generator, speckle: float,
        smoothing: float = 0.7, device: torch.device | str = "cpu", band_filter: BandFilter = filtered_ratio,
    ) -> None:  # fmt: skip
        super().__init__(pixels, profile, rng, smoothing, band_filter)
        self.kind, self.speckle, self.device = kind, speckle, torch.device(device)
        self.seed, self.updates = int(rng.integers(2**31)), 0
        start = torch.Generator().manual_seed(self.seed)
        network: SirenPair | HashGridPair
        if kind == "siren":
            network = SirenPair(pixels.orient_radius / speckle, start)
        else:
            network = HashGridPair((self.edge // 2) / speckle, start)
        self.network = network.to(self.device)

    def update(self, photons: list[F32], exposure: list[F32]) -> Iterator[None]:
        """Go on learning from the networks' present weights, then render; yields between steps of work."""
        photons = [friedel_sum(half) for half in photons]
        exposure = [np.maximum(friedel_sum(half), 0) for half in exposure]
        self.exposure = exposure[0] + exposure[1]
        yield
        voxel = np.flatnonzero(self.exposure[: self.edge**3 // 2] > UNMEASURED)  # one of each pair of Friedel mates
        if len(voxel):
            evidence = _Evidence(
                self._points(voxel), *(np.stack([half[voxel] for half in kind]) for kind in (photons, exposure))
            )
            yield
            yield from self._learn(evidence, np.random.default_rng([self.seed, self.updates]))
            yield from self._render(voxel)
        self.updates += 1

    def fit_look_ups(self, photons: list[F32], exposure: list[F32], flattening: F32 | None) -> None:
        """Leave them: on top of what networks learn, noise would come back that their smoothness keeps out."""

    def _learn(self, evidence: _Evidence, rng: np.random.Generator) -> Iterator[None]:
        """Rounds of training, until held-out evidence gains by it no more; the best weights of each half stay."""
        judged = evidence.draw(min(JUDGED, len(evidence.point)), rng)
        best = self._held_out(evidence, judged)
        kept = self._weights()
        for _ in range(MOST_ROUNDS):
            yield from self._round(evidence, rng)
            score = self._held_out(evidence, judged)
            better = score < best
            best = torch.where(better, score, best)
            with torch.no_grad():
                for weight, former in zip(self._halves(), kept, strict=True):
                    former[better] = weight[better]
                    weight[~better] = former[~better]
            yield
            if not better.any():
                return

    def _round(self, evidence: _Evidence, rng: np.random.Generator) -> Iterator[None]:
        """Adam at a rate that rises for a few steps and then falls to nothing, so that the weights come to rest."""
        adam = _Adam(self.network.rates())
        size = min(max(len(evidence.point) // VOXELS_PER_BATCH, SMALLEST_BATCH), LARGEST_BATCH)
        batches = evidence.draw(STEPS_PER_ROUND * size, rng).view(2, STEPS_PER_ROUND, size)
        for step in range(STEPS_PER_ROUND):
            index = batches[:, step]
            evidence.cost(self._ratio(evidence.point[index]), index, swap=False).sum().backward()  # type: ignore[no-untyped-call]
            adam.step(min(1, (step + 1) / WARM_UP) * (1 + math.cos(math.pi * step / STEPS_PER_ROUND)) / 2)
            yield

    @torch.no_grad()
    def _held_out(self, evidence: _Evidence, judged: Tensor) -> Tensor:
        """(2,) how badly each half's network explains the other half."""
        return evidence.cost(self._ratio(evidence.point[judged]), judged, swap=True)

    def _ratio(self, point: Tensor) -> Tensor:
        """(2, B) ratio by both networks at `point` (2, B, 3), speckles: positive."""
        return F.softplus(self.network(point) + ONE) + DIMMEST

    @torch.no_grad()
    def _render(self, measured: NDArray[np.int64]) -> Iterator[None]:
        """The mean of both networks on the grid, as far out as there are photons; beyond, the radial mean."""
        radius = grid_radius(self.edge)[: self.edge**3 // 2 + 1]
        voxel = np.flatnonzero(radius <= radius[measured].max(initial=0))
        ratio = np.ones(self.edge**3, np.float32)
        for part in np.array_split(voxel, math.ceil(len(voxel) / RENDERED)):
            ratio[part] = self._ratio(self._points(part).expand(2, -1, -1)).mean(0).cpu().numpy()
            yield
        ratio[::-1][voxel] = ratio[voxel]
        self.ratio = ratio

    def _points(self, voxel: NDArray[np.int64]) -> Tensor:
        """(n, 3) places of voxels in the flat grid, speckles."""
        z, y, x = np.unravel_index(voxel, (self.edge,) * 3)
        place = (np.stack([x, y, z], -1) - self.edge // 2) / self.speckle
        return torch.from_numpy(place.astype(np.float32)).to(self.device)

    # ---------------------------------------------------------------- weights

    def _halves(self) -> list[Tensor]:
        """The weights themselves, seen as (2, …): one row per half."""
        return [weight.data for weight in self.network.parameters()]

    def _weights(self) -> list[Tensor]:
        return [weight.clone() for weight in self._halves()]

    def state(self) -> dict[str, NDArray[Any]]:
        """The grid and the networks' weights."""
        weights = {f"{self.kind}_{name}": w.detach().cpu().numpy() for name, w in self.network.named_parameters()}
        return super().state() | weights | {f"{self.kind}_updates": np.array([self.updates, self.seed])}

    def restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Take up a `state`; one of another kind of field gives its grid, and the networks start anew."""
        super().restore(arrays)
        if f"{self.kind}_updates" not in arrays:
            return
        self.updates, self.seed = map(int, arrays[f"{self.kind}_updates"])
        with torch.no_grad():
            for name, weight in self.network.named_parameters():
                weight.copy_(torch.from_numpy(np.array(arrays[f"{self.kind}_{name}"])))


class _Evidence:
    """Photons and exposure (2, n) of the measured voxels at `point` (n, 3), and how voxels are drawn from them."""

    def __init__(self, point: Tensor, photons: F32, exposure: F32) -> None:
        self.point = point
        total = exposure.sum(0)
        weight = 1 / (total + CERTAIN)
        share = (
            np.sqrt(np.maximum(total, FAINT)) * weight
        )  # voxels are drawn as often as their gradient is noisy: least variance
        self.cumulative = np.cumsum(share, dtype=np.float64)
        self.photons, self.exposure = (torch.from_numpy(half).to(point.device) for half in (photons, exposure))
        self.weight = torch.from_numpy(weight / share * share.mean()).to(point.device)

    def draw(self, n: int, rng: np.random.Generator) -> Tensor:
        """(2, n) voxels for each half."""
        index = np.searchsorted(self.cumulative, rng.random((2, n)) * self.cumulative[-1])
        return torch.from_numpy(np.minimum(index, len(self.cumulative) - 1)).to(self.point.device)

    def cost(self, ratio: Tensor, index: Tensor, swap: bool) -> Tensor:
        """(2,) weighted mean of E·ratio − A·log ratio over voxels `index` (2, B); `swap`: of the other half."""
        half = torch.arange(2, device=index.device)[:, None]
        of = (1 - half if swap else half), index
        return (self.weight[index] * (self.exposure[of] * ratio - self.photons[of] * ratio.log())).mean(1)


class _Adam:
    """Adam (Kingma & Ba, ICLR 2015). torch's own imports its compiler, which halts everything for a second or more."""

    def __init__(self, rates: list[tuple[list[nn.Parameter], float]]) -> None:
        self.weights = [(w, rate, torch.zeros_like(w), torch.zeros_like(w)) for group, rate in rates for w in group]
        self.steps = 0

    @torch.no_grad()
    def step(self, pace: float) -> None:
        """Follow the gradients, at `pace` times each weight's rate, and clear them."""
        self.steps += 1
        slow, fast = 1 - SLOW**self.steps, 1 - FAST**self.steps
        for weight, rate, mean, square in self.weights:
            gradient = weight.grad
            assert gradient is not None
            mean.lerp_(gradient, 1 - FAST)
            square.lerp_(gradient.square(), 1 - SLOW)
            weight.addcdiv_(mean, square.div(slow).sqrt_().add_(1e-12), value=-pace * rate / fast)
            weight.grad = None
