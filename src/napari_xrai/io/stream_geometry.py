"""A detector in a few numbers, small enough to go with every message of a stream."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from ..core.detector import Panels, Polarization, detector_from_positions, panels_from_detector
from ..core.frames import Detector
from .source import InputError

GEOMETRY_SOURCE = "napari-xrai/detector"
NOMINAL_DISTANCE_M = 1.0
"""Panels are sent as seen from the sample: only directions count."""


def describe_detector(detector: Detector, polarization: Polarization) -> dict[str, Any] | None:
    """What `detector_of` makes the detector from; None for one that is not flat panels, or without a wavelength."""
    if detector.energy_eV is None or len(detector.shape) not in (2, 3):
        return None
    try:
        panels = panels_from_detector(detector, NOMINAL_DISTANCE_M)
    except ValueError:
        return None
    return {
        "corner_m": panels.corner_m, "step_m": panels.step_m, "shape": list(detector.shape),
        "energy_eV": detector.energy_eV, "polarization": polarization, "mask": detector.mask,
    }  # fmt: skip


def detector_of(said: dict[str, Any]) -> Detector:
    """The detector that a stream describes.

    Raises
    ------
    InputError
        If the description makes no sense.
    """
    try:
        shape = tuple(int(n) for n in said["shape"])
        panels = Panels(np.asarray(said["corner_m"], float), np.asarray(said["step_m"], float), shape)
        return detector_from_positions(
            panels.centres_m(), panels.areas_m2(), shape, energy_eV=float(said["energy_eV"]),
            polarization=said["polarization"], mask=said["mask"],
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(f"the stream's {GEOMETRY_SOURCE} is damaged ({error}): give the detector yourself") from error


def revision_of(said: dict[str, Any] | None) -> int:
    """A number that changes with the description."""
    parts = [] if said is None else [f"{k}{np.asarray(v).tobytes().hex()}" for k, v in sorted(said.items())]
    return zlib.crc32("".join(parts).encode())
