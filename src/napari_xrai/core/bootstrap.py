"""From noise to a low-resolution intensity: stochastic expectation–maximisation with an annealed posterior."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from .backend import COMPILED, Backend
from .field import DARKEST, IntensityField, friedel_sum
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
    photon_sum, exposure_sum = field.ratio.copy(), np.ones_like(field.ratio)
    prior = np.float32(1)  # the starting noise counts as one photon a voxel, and is forgotten
    order = rng.permutation(len(photons))
    group = IDENTITY if orbit is None else orbit.group
    search = PolarSearch(pixels, brightness, radius, diameter * SAMPLING, group, backend)
    low = search.dense(photons)
    size = max(1, min(BATCH, backend.largest_scores // (len(search.base) * search.n_angles)))
    photons_per_batch = size * photons.count.sum() / len(photons)
    keep = np.float32(1 - 1 / max(MEMORY, PHOTONS_REMEMBERED / photons_per_batch))
    for step in range(STEPS):
        search.set_field(field.ratio, field.edge, fluence_shape, rng, DARKEST, threads)
        batch = low[order[np.arange(step * size, (step + 1) * size) % len(order)]]
        score = search.log_likelihood(batch)
        score -= score.amax((1, 2), keepdim=True)
        share = FIRST_SHARE * score[0].numel()
        posterior = tempered(score, max(1.0, share ** (1 - step / ANNEALED_STEPS)))
        photon_map, exposure_map = search.back_project(posterior, batch)
        laid = (photon_map, exposure_map)
        new = [backend.scatter(search.rotation, search.point, value, field.edge) for value in laid]
        if orbit is not None:
            new = [orbit.sum(grid, radius + 2) for grid in new]
        photon_sum = photon_sum * keep + friedel_sum(new[0])
        exposure_sum = exposure_sum * keep + friedel_sum(new[1])
        field.ratio = (np.maximum(photon_sum, 0) + np.float32(0.5)) / (exposure_sum + np.float32(0.5))
        prior *= keep
        field.exposure = np.maximum(exposure_sum - prior, 0)
        yield (step + 1) / STEPS


def tempered(score: torch.Tensor, effective: float) -> torch.Tensor:
    """(B, …) posterior from log-likelihoods (B, …, largest 0), at the temperature where the batch's median effective
    sample size ``(Σp)²/Σp²`` is `effective`; never colder than the likelihood itself. Overwrites `score`.
    """
    probe = score[:48].flatten(1)
    low, high = math.log(1e-3), 0.0
    for _ in range(9):
        middle = (low + high) / 2
        p = (math.exp(middle) * probe).clamp_(min=NEGLIGIBLE).exp_()
        size = (p.sum(1).square() / p.square().sum(1)).median()
        low, high = (middle, high) if size > effective else (low, middle)
    posterior = score.mul_(math.exp(high)).clamp_(min=NEGLIGIBLE).exp_()
    posterior /= posterior.flatten(1).sum(1)[:, None, None]
    return posterior
