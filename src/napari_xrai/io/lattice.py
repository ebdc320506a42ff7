"""What a flat list of pixels does not say, found from where its pixels look: rows and columns, and the polarisation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..core.detector import Polarization, panels_from_detector, solid_angle_polarization
from ..core.frames import BAD, Detector
from .source import InputError

POLARIZATIONS: tuple[Polarization, ...] = ("x", "y", "none")
TELLING = 1e-3
"""Relative; two polarisations that differ by less on every pixel are alike."""


def in_rows(detector: Detector, what: str) -> Detector:
    """The same detector with frames of shape (rows, columns), where it was a flat list of pixels.

    Parameters
    ----------
    what : str
        File, for the message.

    Raises
    ------
    InputError
        If the pixels are not listed row by row.
    """
    if len(detector.shape) > 1:
        return detector
    direction = detector.q / detector.ewald_radius + np.array([0.0, 0.0, 1.0])
    place = direction[:, :2] / direction[:, 2:]
    step = np.diff(place, axis=0)
    turns = np.flatnonzero(np.linalg.norm(step - step[0], axis=1) > 0.5 * np.linalg.norm(step[0]))
    length = int(turns[0]) + 1 if len(turns) else detector.n_pixels
    if length < 2 or detector.n_pixels % length or detector.n_pixels == length:
        raise InputError(f"{what}: its pixels are not listed row by row, as CXI needs them: write .emc instead")
    return replace(detector, shape=(detector.n_pixels // length, length))


def polarization_of(detector: Detector, distance_m: float) -> Polarization | None:
    """The polarisation that a detector's response implies; None where its response is another one.

    Parameters
    ----------
    detector : Detector
        With rows and columns.
    """
    panels = panels_from_detector(detector, distance_m, tolerance=None)
    good = detector.mask != BAD
    for polarization in POLARIZATIONS:
        expected = solid_angle_polarization(panels.centres_m(), panels.areas_m2(), polarization)[good]
        ratio = detector.response[good] / expected
        if np.ptp(ratio) < TELLING * ratio.mean():
            return polarization
    return None
