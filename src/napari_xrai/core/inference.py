"""Poses of real frames: candidates, then scoring, second-order refinement and sampling of every mode kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .frame_table import FrameTable
from .likelihood import PoseLikelihood
from .pixels import SparsePhotons
from .rotations import RZ_PI
from .search import PolarSearch
from .symmetry import IDENTITY

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

Proposer = Callable[[SparsePhotons], F32]
"""Names poses (N, C, 3, 3) for a batch of N frames."""

HALF_TURN = RZ_PI.astype(np.float32)
"""Of the frame: on a flat Ewald sphere R and R·Rz(π) see the same, so both are always candidates."""

DIRECTIONS_KEPT = 20
CANDIDATES_REFINED, CANDIDATES_WEIGHED = 3, 5
"""While the field is still to be improved; and where it is asked how sure a pose is: every rival counts."""

SAMPLES_PER_MODE = 2
MODE_WEIGHT = 0.05
SAME_MODE = np.cos(np.radians(10.0))


@dataclass(frozen=True, eq=False)
class Inferred:
    """What a batch of N frames says about its poses.

    Parameters
    ----------
    rotation : (N, 3, 3) float32
        Most likely pose.
    log_likelihood, confidence : (N,) float64
        At it; and the part of the posterior within 10° of it, modulo Rz(π).
    rivals : (N,) float64
        The part of the posterior that other modes hold.
    fisher : (N, 3, 3) float64
        Empirical Fisher information at it.
    modes : (N,) uint8
        Modes that hold at least `MODE_WEIGHT` of the posterior, 10° or more from one another.
    row : (J,) int64
        Frame of each posterior sample.
    sample : (J, 3, 3) float32
    weight : (J,) float64
        Summing to 1 over the samples of a frame.
    """

    rotation: F32
    log_likelihood: F64
    confidence: F64
    rivals: F64
    fisher: F64
    modes: NDArray[np.uint8]
    row: NDArray[np.int64]
    sample: F32
    weight: F64


def infer_poses(
    photons: SparsePhotons, likelihood: PoseLikelihood, proposers: Sequence[Proposer], table: FrameTable, beta: float,
    rng: np.random.Generator, group: F64 = IDENTITY, refined: int = CANDIDATES_REFINED,
) -> Inferred:  # fmt: skip
    """Find the poses of a batch under the present field.

    Candidates are what the proposers name and the frame's last pose, each with its half-turn; the likeliest, `refined`
    of them, climb on the photons at full resolution, and the posterior is sampled about every one.
    """
    candidate = candidates(photons, proposers, table)
    if candidate.shape[1] > refined:
        best = np.argsort(-likelihood.rank(photons, candidate), 1)[:, :refined]
        candidate = np.take_along_axis(candidate, best[:, :, None, None], 1)
    mode, fisher, value = likelihood.refine(photons, np.ascontiguousarray(candidate))
    noise = rng.normal(size=(*mode.shape[:2], SAMPLES_PER_MODE, 3))
    sample, weight = likelihood.sample(photons, mode, fisher, beta, noise)
    winner = value.argmax(1)
    every = np.arange(len(photons))
    rotation = mode[every, winner]
    held = weight.reshape(*mode.shape[:2], -1).sum(2)
    kept = weight > 0
    return Inferred(
        rotation=rotation,
        log_likelihood=value.max(1),
        confidence=(weight * same_mode(sample, rotation[:, None], group)).sum(1),
        rivals=(held * ~same_mode(mode, rotation[:, None], group)).sum(1),
        fisher=fisher[every, winner],
        modes=count_modes(mode, held, group),
        row=np.repeat(every, kept.sum(1)),
        sample=sample[kept],
        weight=weight[kept],
    )


def count_modes(mode: F32, weight: F64, group: F64 = IDENTITY) -> NDArray[np.uint8]:
    """(N,) modes (N, C, 3, 3) that differ and, with all that are the same, hold at least `MODE_WEIGHT` of `weight`."""
    same = same_mode(mode[:, :, None], mode[:, None], group)
    whole = np.einsum("nij,nj->ni", same, weight)
    first = ~(same & np.tri(mode.shape[1], k=-1, dtype=bool)).any(2)
    return np.asarray(((whole >= MODE_WEIGHT) & first).sum(1), np.uint8)


def candidates(photons: SparsePhotons, proposers: Sequence[Proposer], table: FrameTable) -> F32:
    """(N, C, 3, 3) poses worth scoring."""
    last, known = table.rotation(photons.index)
    named = [propose(photons) for propose in proposers]
    if known.any() or not named:
        named.append(last[:, None])
    found = np.concatenate(named, 1)
    return np.concatenate([found, found @ HALF_TURN], 1)


def by_search(search: PolarSearch, threads: int) -> Proposer:
    """The best pose in each of the likeliest viewing directions, at low resolution."""
    return lambda photons: search.best(search.dense(photons), DIRECTIONS_KEPT, threads)


def same_mode(a: F32, b: F32, group: F64 = IDENTITY) -> NDArray[np.bool_]:
    """Whether rotations a and b (…, 3, 3) lie within 10° of each other, modulo Rz(π) on the frame's side and the
    particle's point group (n, 3, 3).
    """
    same = np.zeros(np.broadcast_shapes(a.shape, b.shape)[:-2], bool)
    for g in group.astype(np.float32):
        diagonal = np.einsum("...ij,...ij->...j", a, g @ b)
        half_turned = diagonal @ np.diagonal(HALF_TURN)
        same |= (np.maximum(diagonal.sum(-1), half_turned) - 1) / 2 > SAME_MODE
    return same
