"""Photons out of detector units."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

ROUNDING = 0.3
"""Added before rounding down: a pixel has a photon from 0.7 of one on, as charge shared with neighbours is lost."""


def photons_from_adu(values: NDArray[Any], adu_per_photon: float) -> NDArray[np.int32]:
    """``floor(value / adu_per_photon + 0.3)``; negative values and what is no number are no photons."""
    known = np.where(np.isfinite(values), values, 0)
    photons = np.floor(known / np.float32(adu_per_photon) + np.float32(ROUNDING))
    return np.clip(photons, 0, np.iinfo(np.int32).max // 2).astype(np.int32)
