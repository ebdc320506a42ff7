"""What a geometry says before any reconstruction: resolution rings, a moved beam, the radial average."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .core.detector import through_beam
from .core.frames import BAD, Detector
from .first_look_layout import Layout

RING_PLACES = (1 / 3, 2 / 3, 1.0)
"""Of the way from the beam to the edge."""

NICE = np.array([1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0])


@dataclass(frozen=True)
class Ring:
    """A circle of one resolution about the beam.

    Parameters
    ----------
    q : float
        In the detector's units.
    label : str
        ``"12 Å"`` for 1/q, or ``"20 voxels"`` for q where there is no wavelength.
    radius : float
        In cells of the picture.
    """

    q: float
    label: str
    radius: float


def resolution_rings(detector: Detector, layout: Layout) -> list[Ring]:
    """Rings at round numbers, about evenly from the beam to the edge of the picture; none without a geometry.

    A pixel at the angle α from the beam has |q| = 2 E sin(α/2) on the Ewald sphere of radius E, and lies tan α from
    the beam on a flat picture at unit distance.
    """
    if layout.centre is None:
        return []
    centre, size = np.array(layout.centre), np.array(layout.shape) - 1
    edge = max(1.0, float(np.maximum(centre, size - centre).min()))
    radius = detector.ewald_radius
    rings: dict[str, Ring] = {}
    for place in RING_PLACES:
        q = 2 * radius * np.sin(np.arctan(place * edge * layout.pitch) / 2)
        if detector.units == "1/angstrom":
            length = _round_number(1 / q)
            q, label = 1 / length, f"{length:.3g} Å"
        else:
            q = _round_number(q)
            label = f"{q:.3g} voxels"
        across = np.tan(2 * np.arcsin(min(q / (2 * radius), 0.7))) / layout.pitch
        if 0 < across < 1.2 * edge:
            rings[label] = Ring(float(q), label, float(across))
    return list(rings.values())


def _round_number(value: float) -> float:
    """The nearest number that is easily said."""
    power = 10.0 ** np.floor(np.log10(value))
    choices = power * np.append(NICE, 10.0)
    return float(choices[np.argmin(np.abs(np.log(choices / value)))])


def with_centre(detector: Detector, layout: Layout, centre: tuple[float, float]) -> tuple[Detector, Layout]:
    """The same detector with the beam through another point of its picture.

    Parameters
    ----------
    centre : (row, column)
        In cells.

    Returns
    -------
    detector, layout
        The layout's cells are where they were; its centre is the new one.
    """
    if layout.centre is None:
        raise ValueError("without a geometry there is no beam centre to move")
    # to the left and up are +x and +y, rows and columns run the other way
    beam = (np.array(layout.centre) - centre)[::-1] * layout.pitch
    return through_beam(detector, beam), replace(layout, centre=centre)


def radial_average(
    detector: Detector, powder: NDArray[np.float64], n_frames: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean photons per pixel and frame on rings one pixel wide.

    Parameters
    ----------
    detector : Detector
        Its bad pixels are left out.
    powder : (P,) float64
        Photons of each pixel, summed over `n_frames`.

    Returns
    -------
    q : (S,) float64
        Mean |q| of the pixels of each ring, in the detector's units. Rings without a pixel are left out.
    mean : (S,) float64
    """
    from .core.pixels import pixel_step

    usable = (detector.mask != BAD) & (detector.response > 0)
    if usable.sum() < 2:
        return np.zeros(0), np.zeros(0)
    q = np.linalg.norm(detector.q[usable], axis=1)
    ring = np.rint(q / pixel_step(detector.q[usable])).astype(np.int64)
    size = np.bincount(ring)
    there = size > 0
    mean_q = np.bincount(ring, q)[there] / size[there]
    return mean_q, np.bincount(ring, powder[usable])[there] / size[there] / max(n_frames, 1)
