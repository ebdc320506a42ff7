"""How far to believe an intensity: what is known of its errors, its views and its future, in one place."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .contrast import Contrast, half_ratios
from .coverage import Coverage, ViewDensity
from .field import UNMEASURED, IntensityField
from .forecast import Forecast, forecast
from .frames import Volume
from .pixels import Pixels
from .resolution import ShellCurve
from .standard_error import standard_error

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Trust:
    """What an intensity is worth.

    Parameters
    ----------
    standard_error : Volume
        Of each voxel of the intensity, in its unit; 0 where nothing was measured, and beside the beam stop.
    halves : (Volume, Volume)
        Intensities from frames of even and odd position alone, filtered as that of all frames is. They share poses.
    coverage : Coverage
    forecast : Forecast
    """

    standard_error: Volume
    halves: tuple[Volume, Volume]
    coverage: Coverage
    forecast: Forecast


def assess(
    field: IntensityField, photons: list[F32], exposure: list[F32], curve: ShellCurve, views: Iterable[F64],
    frames: int, contrast: Contrast, pixels: Pixels,
) -> Trust:  # fmt: skip
    """Say what is known of a field.

    Parameters
    ----------
    field : IntensityField
    photons, exposure : two of (edge³) float32
        The half-sets behind it.
    curve : ShellCurve
        Their correlation.
    views : iterable of (M, 3) float64
        Viewing directions of the frames used, in parts.
    frames : int
        How many they are.
    contrast : Contrast
        From `photon_contrast`, for fluences as they are.
    pixels : Pixels
    """
    halves = half_ratios(field, photons, exposure)
    error = standard_error(field, photons, exposure, halves, contrast, pixels.inner_radius)

    def volume(ratio: F32) -> Volume:
        value = np.where(field.exposure > UNMEASURED, ratio * field.profile_grid, np.float32(0))
        return Volume(value.reshape((field.edge,) * 3), pixels.voxel_size, pixels.units)

    return Trust(
        Volume(error, pixels.voxel_size, pixels.units), (volume(halves[0]), volume(halves[1])),
        ViewDensity(views).coverage(),
        forecast(curve, frames, pixels.units, pixels.orient_radius * pixels.voxel_size),
    )  # fmt: skip
