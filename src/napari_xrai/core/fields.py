"""Which field: by name, or by what pays on the device."""

from __future__ import annotations

import numpy as np

from .backend import COMPILED, Backend
from .field import IntensityField, RadialProfile, VoxelField
from .neural_field import NeuralField
from .pixels import Pixels

SMOOTHING = 0.11
"""Width of the closed form's Gaussian, speckles."""


def make_field(
    kind: str, pixels: Pixels, profile: RadialProfile, speckle: float, rng: np.random.Generator,
    backend: Backend = COMPILED,
) -> IntensityField:  # fmt: skip
    """A new field, from noise.

    Parameters
    ----------
    kind : "auto", "voxel", "hash" or "siren"
    speckle : float
        Size of a speckle, voxels.
    backend : Backend
        Where the networks live, and the filter runs.
    """
    smoothing = SMOOTHING * speckle
    if kind in ("auto", "voxel"):
        return VoxelField(pixels, profile, rng, smoothing, backend.band_filter)
    return NeuralField(kind, pixels, profile, rng, speckle, smoothing, backend.device, backend.band_filter)
