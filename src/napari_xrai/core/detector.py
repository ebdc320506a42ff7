"""From where the pixels are to where they look in reciprocal space, and how brightly."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .frames import BAD, GOOD, HC_EV_A, MERGE_ONLY, Detector

Polarization = Literal["x", "y", "none"]


@dataclass(frozen=True, eq=False)
class Panels:
    """Flat panels of equal pixels on a regular grid, in the lab frame: what CXI files store.

    Parameters
    ----------
    corner_m : (M, 3) float64
        Outer corner of each panel's first pixel, metres from the sample; z includes the detector distance.
    step_m : (M, 2, 3) float64
        Step from one pixel to the next along the slow (first) and the fast (last) axis of the panel.
    shape : tuple of int
        Shape of one frame: (ss, fs) for one panel, (M, ss, fs) for several.
    """

    corner_m: NDArray[np.float64]
    step_m: NDArray[np.float64]
    shape: tuple[int, ...]

    def centres_m(self) -> NDArray[np.float64]:
        """Return the (P, 3) pixel centres in frame order: corner + (i+½)·slow + (j+½)·fast."""
        slow = np.arange(self.shape[-2]) + 0.5
        fast = np.arange(self.shape[-1]) + 0.5
        centres = (
            self.corner_m[:, None, None, :]
            + slow[None, :, None, None] * self.step_m[:, None, None, 0]
            + fast[None, None, :, None] * self.step_m[:, None, None, 1]
        )
        return centres.reshape(-1, 3)

    def areas_m2(self) -> NDArray[np.float64]:
        """Return the (P, 3) oriented pixel areas: slow step × fast step."""
        area = np.cross(self.step_m[:, 0], self.step_m[:, 1])
        return np.repeat(area, int(np.prod(self.shape[-2:])), axis=0)


def square_panel(shape: tuple[int, int], pixel_size_m: float, distance_m: float) -> Panels:
    """One flat panel centred on the beam, rows downwards and columns along −x: the image seen looking downstream.

    Parameters
    ----------
    shape : (rows, columns)
    pixel_size_m, distance_m : float

    Raises
    ------
    ValueError
        If a length is not positive.
    """
    for name, value in (("pixel size", pixel_size_m), ("distance", distance_m)):
        if not (np.isfinite(value) and value > 0):
            raise ValueError(f"the {name} must be a positive number of metres, not {value}")
    rows, columns = shape
    corner = np.array([[columns / 2 * pixel_size_m, rows / 2 * pixel_size_m, distance_m]])
    step = np.array([[[0.0, -pixel_size_m, 0.0], [-pixel_size_m, 0.0, 0.0]]])
    return Panels(corner, step, (rows, columns))


def polarization_factor(direction: NDArray[np.float64], polarization: Polarization) -> NDArray[np.float64]:
    """Share of the scattered light that leaves along each unit `direction`, (…, 3) → (…).

    Thomson scattering: 1 − (r̂·ê)² for light polarised along ê; the mean of both for ``"none"`` (unpolarised).

    Raises
    ------
    ValueError
        If `polarization` is none of x, y, none.
    """
    x2, y2 = direction[..., 0] ** 2, direction[..., 1] ** 2
    factors: dict[str, NDArray[np.float64]] = {"x": 1 - x2, "y": 1 - y2, "none": 1 - (x2 + y2) / 2}
    if polarization not in factors:
        raise ValueError(f"polarisation must be x, y or none, not {polarization!r}")
    return factors[polarization]


def solid_angle_polarization(
    centre_m: NDArray[np.float64], area_m2: NDArray[np.float64], polarization: Polarization
) -> NDArray[np.float64]:
    """Solid angle × polarisation of each pixel, in steradians: |A·r̂|/r² × P.

    Parameters
    ----------
    centre_m : (P, 3)
        Pixel centres, metres from the sample.
    area_m2 : (P, 3)
        Oriented pixel areas.
    """
    distance = np.linalg.norm(centre_m, axis=-1)
    direction = centre_m / distance[..., None]
    facing = np.abs(np.einsum("...i,...i->...", area_m2, direction))
    product: NDArray[np.float64] = facing / distance**2 * polarization_factor(direction, polarization)
    return product


def detector_from_positions(
    centre_m: NDArray[Any],
    area_m2: NDArray[Any],
    shape: tuple[int, ...],
    *,
    energy_eV: float | None,
    polarization: Polarization = "none",
    mask: ArrayLike | None = None,
) -> Detector:
    """Detector out of pixel positions: q = (r̂ − ẑ)/λ, response = solid angle × polarisation.

    Parameters
    ----------
    centre_m : (P, 3)
        Pixel centres in the lab frame, metres from the sample (beam along +z, y up, right-handed).
    area_m2 : (P, 3)
        Oriented pixel areas (slow step × fast step).
    shape : tuple of int
        Shape of one frame; its product is P.
    energy_eV : float or None
        Photon energy. None: q in units of one pixel at the beam (1/λ = distance / pixel size), ``"detector_voxel"``.
    mask : (P,) or `shape`, values 0/1/2, optional

    Returns
    -------
    Detector
        `response` is scaled to a mean of 1 over the pixels that are not bad.

    Raises
    ------
    ValueError
        If a position is not finite, a pixel sits at the sample, or shapes disagree.
    """
    centre = np.asarray(centre_m, np.float64).reshape(-1, 3)
    distance = np.linalg.norm(centre, axis=1)
    if not (np.isfinite(centre).all() and (distance > 0).all()):
        raise ValueError("pixel positions must be finite and away from the sample")
    area = np.asarray(area_m2, np.float64).reshape(-1, 3)
    if energy_eV is None:
        radius = float(np.median(np.abs(centre[:, 2])) / np.sqrt(np.median(np.linalg.norm(area, axis=1))))
    elif np.isfinite(energy_eV) and energy_eV > 0:
        radius = energy_eV / HC_EV_A
    else:
        raise ValueError(f"photon energy must be a positive number of eV, not {energy_eV}")
    flat_mask = np.zeros(len(centre), np.uint8) if mask is None else np.asarray(mask, np.uint8).reshape(-1)
    q = (centre / distance[:, None] - [0.0, 0.0, 1.0]) * radius
    # r̂z − 1 loses digits near the beam; −(x²+y²)/(r(r+z)) does not
    q[:, 2] = -radius * (centre[:, 0] ** 2 + centre[:, 1] ** 2) / (distance * (distance + centre[:, 2]))
    response = solid_angle_polarization(centre, area, polarization)
    good = flat_mask != BAD
    if good.any():
        response = response / response[good].mean()
    return Detector(
        q=q, response=response, mask=flat_mask, shape=shape, ewald_radius=radius,
        units="detector_voxel" if energy_eV is None else "1/angstrom",
    )  # fmt: skip


def detector_from_panels(
    panels: Panels, *, energy_eV: float | None, polarization: Polarization = "none", mask: ArrayLike | None = None
) -> Detector:
    """Detector out of flat panels; see `detector_from_positions`."""
    return detector_from_positions(
        panels.centres_m(), panels.areas_m2(), panels.shape,
        energy_eV=energy_eV, polarization=polarization, mask=mask,
    )  # fmt: skip


def beam_stop_mask(panels: Panels, stop_radius_px: float) -> NDArray[np.uint8]:
    """Mask of a centred panel: bad within the beam stop, merge-only beyond the inscribed circle.

    The corners see only part of their resolution ring, so they do not vote on orientation.

    Returns
    -------
    (P,) uint8
    """
    centre = panels.centres_m()
    pixel = np.linalg.norm(panels.step_m[0, 0])
    radius = np.hypot(centre[:, 0], centre[:, 1]) / pixel
    mask = np.where(radius > (min(panels.shape[-2:]) - 1) / 2, MERGE_ONLY, GOOD)
    return np.where(radius < stop_radius_px, BAD, mask).astype(np.uint8)


def square_detector(
    shape: tuple[int, int],
    pixel_size_m: float,
    distance_m: float,
    energy_eV: float | None,
    *,
    polarization: Polarization = "none",
    stop_radius_px: float = 0.0,
) -> Detector:
    """Flat detector centred on the beam, with a round beam stop.

    Parameters
    ----------
    shape : (rows, columns)
        Rows run downwards (−y), columns along −x: the image seen looking downstream.
    energy_eV : float or None
        None leaves q in units of one pixel at the beam.
    stop_radius_px : float
        Pixels whose centre is nearer to the beam are bad.

    Raises
    ------
    ValueError
        If a length or the energy is not positive.
    """
    panels = square_panel(shape, pixel_size_m, distance_m)
    return detector_from_panels(
        panels, energy_eV=energy_eV, polarization=polarization, mask=beam_stop_mask(panels, stop_radius_px)
    )


def through_beam(detector: Detector, beam: NDArray[np.float64]) -> Detector:
    """The same pixels with the beam through another point of their plane.

    Pixels move together in the plane across the beam, as if all were equally far: exact for a flat detector. Their
    response follows as the solid angle of a pixel facing the sample's plane does, cos³ of its angle.

    Parameters
    ----------
    beam : (2,) float
        Where the beam goes now: x and y over the distance, from where the detector has it.
    """
    direction = detector.q / detector.ewald_radius + [0.0, 0.0, 1.0]
    across = direction[:, :2] / direction[:, 2:] - beam
    squared = (across**2).sum(axis=1)
    cosine = 1 / np.sqrt(1 + squared)
    # cos − 1 loses digits near the beam
    q = np.column_stack([across * cosine[:, None], -squared * cosine**2 / (1 + cosine)]) * detector.ewald_radius
    response = detector.response * (cosine / direction[:, 2]) ** 3
    good = detector.mask != BAD
    return replace(detector, q=q, response=response / response[good].mean() if good.any() else response)


def panels_from_detector(detector: Detector, distance_m: float, tolerance: float | None = 0.01) -> Panels:
    """Find the flat panels on which a detector's pixels lie, at `distance_m` downstream: what a CXI file stores.

    Parameters
    ----------
    detector : Detector
        With frames of shape (ss, fs) or (M, ss, fs), at least 2×2 pixels per panel.
    distance_m : float
        The plane on which directions are projected. Panels that are tilted come out as the equivalent flat ones.
    tolerance : float or None
        Pixels by which the detector may differ from its panels. None: by any; they are the nearest.

    Raises
    ------
    ValueError
        If the pixels are not on a regular grid to within `tolerance`.
    """
    if len(detector.shape) not in (2, 3) or min(detector.shape[-2:]) < 2:
        raise ValueError(f"frames of shape {detector.shape} are not flat panels; give a detector with rows and columns")
    direction = detector.q / detector.ewald_radius + [0.0, 0.0, 1.0]
    centre = (direction * (distance_m / direction[:, 2:])).reshape(-1, *detector.shape[-2:], 3)
    rows, columns = detector.shape[-2:]
    slow = (centre[:, -1] - centre[:, 0]).mean(axis=1) / (rows - 1)
    fast = (centre[:, :, -1] - centre[:, :, 0]).mean(axis=1) / (columns - 1)
    middle = centre.mean(axis=(1, 2))
    panels = Panels(middle - rows / 2 * slow - columns / 2 * fast, np.stack([slow, fast], axis=1), detector.shape)
    error = np.abs(panels.centres_m() - centre.reshape(-1, 3)).max()
    if tolerance is not None and error > tolerance * float(np.linalg.norm(slow, axis=1).min()):
        raise ValueError("the detector's pixels are not on a regular grid, so its panels cannot be written")
    return panels
