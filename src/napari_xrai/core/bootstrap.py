"""From noise to a low-resolution intensity: stochastic expectation–maximisation with an annealed posterior."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from .backend import COMPILED, Backend
from .field import DARKEST, NEIGHBOURS, IntensityField, friedel_sum
from .pixels import Pixels, SparsePhotons
from .search import PolarSearch
from .symmetry import IDENTITY, Orbit

F32 = NDArray[np.float32]

STEPS = 120
ANNEALED_STEPS = 108
BATCH = 80
"""Frames a step. Many small steps with a short memory anneal best; 40 of 250 frames see as many, and often go wrong."""
FIRST_SHARE = 0.1
"""Part of all orientations that the first posteriors spread over."""

SAMPLING = 2.84
"""Orientations per speckle: 4.73 give the same, at twice the cost."""

NEGLIGIBLE = -40.0
"""Log of a posterior too small to matter: below it, exp and its square would fall into slow denormal numbers."""

PROBED = 48
"""Frames of a batch whose posteriors tell the temperature."""
HOTTEST, FLATTEST = 1e-3, -0.1
"""Smallest inverse temperature, and smallest steepness believed of a secant."""
SIZE_KNOWN, TRIALS = 0.01, 20
"""ln of the sample size is to be known so well; about three trials do, and more than this are never made."""

MEMORY, PHOTONS_REMEMBERED = 12, 100_000
"""Batches whose evidence the field rests on, and photons where that is more: what earlier, vaguer posteriors laid down
is soon forgotten, but dim frames need many.
"""


def bootstrap(
    field: IntensityField, pixels: Pixels, brightness: F32, photons: SparsePhotons, radius: float, diameter: float,
    fluence_shape: float, rng: np.random.Generator, threads: int, orbit: Orbit | None = None,
    backend: Backend = COMPILED,
) -> Iterator[float]:  # fmt: skip
    """Bring `field` from noise to the particle at low resolution; yield the share of the work done after every batch.

    Each step takes a batch of frames, finds the exact posterior over SO(3) with pixels within `radius`, widens it until
    its effective sample size meets a target that falls geometrically from `FIRST_SHARE` of all orientations to one, and
    merges photons and exposure by the adjoint. A fixed temperature schedule fails more often on the same data.

    Parameters
    ----------
    field : IntensityField
        Updated in place.
    radius : float
        Voxels.
    diameter : float
        Of the particle, 1/voxel: sets how finely orientations are sampled.
    orbit : Orbit or None
        Of the particle's point group, where it is named.
    backend : Backend
        Where the search and the merging run.
    """
    near, edge = surroundings(field.edge, radius + NEIGHBOURS)  # a hundredth of all voxels
    photon_sum = field.ratio.reshape((field.edge,) * 3)[near].reshape(-1)
    ratio, exposure_sum = photon_sum, np.ones_like(photon_sum)
    field.ratio, field.exposure = np.ones_like(field.ratio), np.zeros_like(field.ratio)
    shown = [grid.reshape((field.edge,) * 3)[near] for grid in (field.ratio, field.exposure)]
    prior = np.float32(1)  # the starting noise counts as one photon a voxel, and is forgotten
    order = rng.permutation(len(photons))
    orbit = None if orbit is None else Orbit(orbit.group, edge)
    group = IDENTITY if orbit is None else orbit.group
    search = PolarSearch(pixels, brightness, radius, diameter * SAMPLING, group, backend)
    low = search.dense(photons)
    size = max(1, min(BATCH, backend.largest_scores // (len(search.base) * search.n_angles)))
    photons_per_batch = size * photons.count.sum() / len(photons)
    keep = np.float32(1 - 1 / max(MEMORY, PHOTONS_REMEMBERED / photons_per_batch))
    beta = 1.0
    for step in range(STEPS):
        search.set_field(ratio, edge, fluence_shape, rng, DARKEST, threads)
        batch = low[order[np.arange(step * size, (step + 1) * size) % len(order)]]
        score = search.log_likelihood(batch)
        score -= score.amax((1, 2), keepdim=True)
        share = FIRST_SHARE * score[0].numel()
        beta = inverse_temperature(score[:PROBED].flatten(1), max(1.0, share ** (1 - step / ANNEALED_STEPS)), beta)
        posterior = score.mul_(beta).clamp_(min=NEGLIGIBLE).exp_()
        posterior /= posterior.flatten(1).sum(1)[:, None, None]
        photon_map, exposure_map = search.back_project(posterior, batch)
        laid = (photon_map, exposure_map)
        new = [backend.scatter(search.rotation, search.point, value, edge) for value in laid]
        if orbit is not None:
            new = [orbit.sum(grid, radius + NEIGHBOURS) for grid in new]
        photon_sum = photon_sum * keep + friedel_sum(new[0])
        exposure_sum = exposure_sum * keep + friedel_sum(new[1])
        ratio = (np.maximum(photon_sum, 0) + np.float32(0.5)) / (exposure_sum + np.float32(0.5))
        prior *= keep
        for grid, value in zip(shown, (ratio, np.maximum(exposure_sum - prior, 0)), strict=True):
            grid[...] = value.reshape((edge,) * 3)
        yield (step + 1) / STEPS


def surroundings(edge: int, radius: float) -> tuple[tuple[slice, slice, slice], int]:
    """A cube about the middle of a grid (edge³), a voxel farther than `radius` where the grid is; and its edge."""
    reach = min(math.ceil(radius) + 1, edge // 2)
    near = slice(edge // 2 - reach, edge // 2 + reach + 1)
    return (near, near, near), 2 * reach + 1


def inverse_temperature(score: torch.Tensor, effective: float, guess: float) -> float:
    """β ≤ 1 at which posteriors ∝ exp(β · score) have a median effective sample size ``(Σp)²/Σp²`` of `effective`.

    Parameters
    ----------
    score : (B, orientations) float32
        Log-likelihoods, largest 0.
    effective : float
    guess : float
        Where to look first: the β of the step before is near.
    """
    low, high = math.log(HOTTEST), 0.0
    x, steepness = math.log(guess), -1.5  # the size falls as β^(−3/2) where posteriors are Gaussian on SO(3)
    probed: dict[float, float] = {}
    for _ in range(TRIALS):
        p = (math.exp(x) * score).clamp_(min=NEGLIGIBLE).exp_()
        excess = math.log(float((p.sum(1).square() / p.square().sum(1)).median()) / effective)
        low, high = (x, high) if excess > 0 else (low, x)
        if abs(excess) < SIZE_KNOWN or high - low < SIZE_KNOWN:
            break
        if probed:
            last, its_excess = next(reversed(probed.items()))
            steepness = min((excess - its_excess) / (x - last), FLATTEST)
        probed[x] = excess
        x = min(max(x - excess / steepness, low), high)
        if x in probed:  # beyond what is known to be too cold or too hot
            x = (low + high) / 2
    return math.exp(x)
