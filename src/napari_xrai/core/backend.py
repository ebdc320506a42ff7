"""Where the engine's heavy sums run: one table of parts and functions, chosen once by the device."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from . import kernels
from .band_limit import filtered_ratio
from .evidence import Evidence
from .exposure import ExposureTable
from .junk import JunkGate, Law
from .likelihood import PoseLikelihood
from .pixels import Pixels, SparsePhotons
from .workers import chunks, in_threads

F32 = NDArray[np.float32]

DIRECTIONS_PER_JOB = 128


@dataclass(frozen=True, eq=False)
class Backend:
    """Everything that is done differently on a CPU and on a GPU.

    Attributes
    ----------
    name : str
        For the user.
    device : torch.device
        Of the search's and the encoder's tensors.
    batch_size : int
        Frames inferred together: few on a CPU, so that progress shows; enough to fill a GPU.
    frames_at_a_time : int
        Searched together: on a CPU their scores stay in the cache, and every split is the same whatever the threads.
    largest_scores : int
        Log-likelihoods held at a time: frames × directions × angles.
    exposure_table, likelihood, evidence, junk_gate
        The engine's parts, made as the classes of these names are.
    gather : (rotation (J, 3, 3), point (P, 3), grid (edge³), edge, threads) → (J, P) Tensor on `device`
        A volume at rotation · point.
    scatter : (rotation (J, 3, 3), point (P, 3), value (J, P), edge) → (edge³)
        Its adjoint.
    dense : (photons, n_pixels) → (N, n_pixels) Tensor on `device`
    band_filter : (photons (edge, edge, edge), exposure, smoothing, band, base or None) → (edge, edge, edge)
        As `band_limit.filtered_ratio`.
    coarse_products : () → context
        In it matrix products may be rounded to ten bits before they are summed: enough to name candidates.
    """

    name: str
    device: torch.device
    batch_size: int
    frames_at_a_time: int
    largest_scores: int
    exposure_table: Callable[[Pixels, F32, float], ExposureTable]
    likelihood: Callable[[Pixels, F32, ExposureTable, F32, F32, float, float, int, F32 | None], PoseLikelihood]
    evidence: Callable[[Pixels, ExposureTable, float, int, ExposureTable | None], Evidence]
    junk_gate: Callable[[Pixels, F32, float, Law | None], JunkGate]
    gather: Callable[[F32, F32, F32, int, int], torch.Tensor]
    scatter: Callable[[F32, F32, F32, int], F32]
    dense: Callable[[SparsePhotons, int], torch.Tensor]
    band_filter: Callable[[F32, F32, float, float, F32 | None], F32]
    coarse_products: Callable[[], AbstractContextManager[None]]


def _gather(rotation: F32, point: F32, grid: F32, edge: int, threads: int) -> torch.Tensor:
    value = np.empty((len(rotation), len(point)), np.float32)
    in_threads(
        lambda part: kernels.gather(rotation[part], point, grid, edge, value[part]),
        chunks(len(value), DIRECTIONS_PER_JOB), threads,
    )  # fmt: skip
    return torch.from_numpy(value)


def _scatter(rotation: F32, point: F32, value: F32, edge: int) -> F32:
    grid = np.zeros(edge**3, np.float32)
    kernels.scatter(rotation, point, value, grid, edge)
    return grid


COMPILED = Backend(
    name="the CPU",
    device=torch.device("cpu"),
    batch_size=200,
    frames_at_a_time=50,
    largest_scores=16_000_000,
    exposure_table=ExposureTable,
    likelihood=PoseLikelihood,
    evidence=Evidence,
    junk_gate=JunkGate,
    gather=_gather,
    scatter=_scatter,
    dense=lambda photons, n_pixels: torch.from_numpy(photons.dense(n_pixels)),
    band_filter=filtered_ratio,
    coarse_products=nullcontext,
)
"""numba's kernels, and torch's products, on the CPU: the same bits whatever the threads."""
