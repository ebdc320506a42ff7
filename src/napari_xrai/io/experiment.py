"""Whether several files are of one experiment: frames of two would make one wrong particle, and nobody would notice."""

from __future__ import annotations

import numpy as np

from ..core.frames import BAD
from .batched import BatchedSource, JoinedSource
from .source import InputError

ENERGY_TOLERANCE = 0.01
"""Relative; a free-electron laser's pulses vary by less."""
Q_TOLERANCE = 2e-3
"""Of the largest q."""


def join(parts: list[BatchedSource]) -> BatchedSource:
    """One source out of several files of one experiment; a pixel that is bad in one of them is bad.

    Raises
    ------
    InputError
        If they differ in the shape of their frames, in photon energy or in geometry.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    for part in parts[1:]:
        difference = _difference(first, part)
        if difference:
            raise InputError(
                f"{part.paths[0]} and {first.paths[0]} are not of one experiment: {difference}; open them one by one"
            )
    joined = JoinedSource(parts)
    masks = [part.mask for part in parts if part.mask is not None]
    if masks:
        joined.mask = np.maximum.reduce(masks)
        if joined.detector is not None:
            joined.detector = joined.detector.with_mask(joined.mask)
    return joined


def _difference(one: BatchedSource, two: BatchedSource) -> str:
    """In words, or nothing."""
    if one.shape != two.shape:
        return f"frames of shape {_shape(two)} and {_shape(one)}"
    energies = (one.beam.energy_eV, two.beam.energy_eV)
    if None not in energies and abs(np.log(energies[0] / energies[1])) > ENERGY_TOLERANCE:  # type: ignore[operator]
        return f"photon energies of {energies[1]:,.1f} and {energies[0]:,.1f} eV"
    known = (one.detector, two.detector)
    if known[0] is None or known[1] is None:
        if known[0] is known[1]:
            return ""
        return f"only {(one if known[1] is None else two).paths[0].name} says where its detector was"
    good = (known[0].mask != BAD) & (known[1].mask != BAD)
    scale = float(np.abs(known[0].q).max())
    if known[0].units != known[1].units or np.abs(known[0].q - known[1].q)[good].max(initial=0) > Q_TOLERANCE * scale:
        return "their detectors were in different places"
    return ""


def _shape(source: BatchedSource) -> str:
    return "×".join(map(str, source.shape))
