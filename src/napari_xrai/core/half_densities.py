"""Densities of the two half-sets, phased alike, and how far they agree: over all, and place by place."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from .frames import Phasing, Volume
from .local_resolution import local_resolution
from .phase_retrieval import POLISH, SETTLE, Iterate, Measurement, Recipe, iterate, measurement
from .resolution import ShellCurve, fourier_shell_correlation

if TYPE_CHECKING:
    from .phasing import PhasingResult

STAGES = (SETTLE, POLISH)
"""RAAR, so that each half leaves the phases it was given for its own; then error reduction."""


@dataclass(frozen=True, eq=False)
class HalfDensities:
    """Two densities that differ in their photons only.

    Parameters
    ----------
    densities : (Volume, Volume)
    fsc : ShellCurve
        Between them; NaN beyond the last shell used. The halves share poses, support and the phases they began from,
        and the support is a mask: optimistic, and never an independent resolution.
    local : Volume
        Local resolution in the density's unit of length; 0 outside the particle.
    """

    densities: tuple[Volume, Volume]
    fsc: ShellCurve
    local: Volume


def compared_by_halves(
    record: Phasing, result: PhasingResult, halves: tuple[Volume, Volume], weight: Volume, radius: int
) -> Phasing:
    """The record of a phasing with what its half-sets add: the curve ``half_fsc``, and the local resolution.

    Unchanged where phasing failed, or a half-set holds nothing to phase.
    """
    if result.verdict == "failed":
        return record
    try:
        found = half_densities(halves, weight, result.density, result.support, radius)
    except ValueError:  # a half without a photon: too few frames
        return record
    return replace(record, curves={**record.curves, "half_fsc": found.fsc.value}, local_resolution=found.local)


def half_densities(
    halves: tuple[Volume, Volume], weight: Volume, density: Volume, support: NDArray[np.bool_], radius: int
) -> HalfDensities:
    """Phase two half-set intensities from one density, inside one support, and compare them.

    Parameters
    ----------
    halves : (Volume, Volume)
        Intensities, (z, y, x).
    weight : Volume
        0 where nothing was measured.
    density : Volume
        Of all frames: where both begin.
    support : (n, n, n) bool
        Where both may be, in the frame of `density`.
    radius : int
        Last shell to use, in voxels of the intensity.

    Raises
    ------
    ValueError
        If there is nothing to phase, or the density is on another grid than these intensities' phasing.
    """
    one, other = (_phased(half, weight, density, support, radius) for half in halves)
    fsc = fourier_shell_correlation(one, other)
    fsc.value[radius + 1 :] = np.nan
    return HalfDensities((one, other), fsc, local_resolution(one, other, support, radius))


def _phased(half: Volume, weight: Volume, density: Volume, support: NDArray[np.bool_], radius: int) -> Volume:
    m: Measurement = measurement(half, weight, radius)
    if density.data.shape != (m.n,) * 3:
        raise ValueError(f"the density has {density.data.shape[0]} voxels an edge, its half-sets need {m.n}")
    inside = torch.from_numpy(np.fft.ifftshift(support).astype(np.float32))
    x = torch.from_numpy(np.fft.ifftshift(density.data).astype(np.float32)) / m.scale
    state = Iterate(x, inside, None)
    recipe = Recipe(stages=STAGES, shrink_every=0, background=False)
    for stage in recipe.stages:
        iterate(state, m, recipe, stage)
    transform = torch.fft.rfftn(state.x) * (m.shell <= m.edge)
    data = torch.fft.irfftn(transform * m.scale, s=(m.n,) * 3).numpy()
    return Volume(np.fft.fftshift(data), m.voxel_size, m.units)
