"""What lengths and energies of an experiment can be: a number in the wrong unit is refused with its likely meaning."""

from __future__ import annotations

import math

from ..core.frames import HC_EV_A
from .source import Beam, InputError

JOULE_PER_EV = 1.602176634e-19

DISTANCE_M = (1e-3, 50.0)
PIXEL_SIZE_M = (1e-7, 2e-2)
ENERGY_EV = (10.0, 1e6)
"""From table-top sources to synchrotrons; widest that any detector for diffraction is built for."""


def check_beam(beam: Beam) -> None:
    """Refuse figures that no experiment has; see `check_distance_m`."""
    for value, what, check in (
        (beam.energy_eV, "the photon energy", check_energy_eV), (beam.distance_m, "the distance", check_distance_m),
        (beam.pixel_size_m, "the pixel size", check_pixel_size_m),
    ):  # fmt: skip
        if value is not None:
            check(value, what)


def check_distance_m(value: float, what: str) -> float:
    """Refuse a sample-to-detector distance that no experiment has.

    Parameters
    ----------
    value : float
        In metres.
    what : str
        File and key, or the option, for the message.

    Raises
    ------
    InputError
        With the likely meaning: 700 "m" are 700 mm.
    """
    return _check(value, what, DISTANCE_M, "m", [(1e-3, "mm"), (1e-6, "µm")])


def check_pixel_size_m(value: float, what: str) -> float:
    """Refuse a pixel size that no detector has; see `check_distance_m`."""
    return _check(value, what, PIXEL_SIZE_M, "m", [(1e-6, "µm"), (1e-3, "mm")])


def check_energy_eV(value: float, what: str) -> float:
    """Refuse a photon energy outside 10 eV … 1 MeV; see `check_distance_m`."""
    return _check(value, what, ENERGY_EV, "eV", [(1e3, "keV"), (1 / JOULE_PER_EV, "J")])


def _check(value: float, what: str, limits: tuple[float, float], unit: str, others: list[tuple[float, str]]) -> float:
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"{what} is {value}: give a positive number of {unit}")
    low, high = limits
    if low <= value <= high:
        return value
    for factor, other in others:
        if low <= value * factor <= high:
            likely = f"that looks like {value:g} {other}: give {value * factor:g} {unit}"
            raise InputError(f"{what} is {value:g} {unit}, which no experiment has; {likely}")
    raise InputError(f"{what} is {value:g} {unit}, which no experiment has: give {low:g} to {high:g} {unit}")


def in_base_unit(number: float, unit: str, what: str) -> float:
    """In metres or eV.

    Parameters
    ----------
    unit : "m", "mm", "eV", "keV", "wave-m" or "wave-A"
        The last two: a wavelength, given as photon energy.
    what : str
        File and key, for the message.

    Raises
    ------
    InputError
        If a wavelength is none.
    """
    if unit.startswith("wave-"):
        metres = number * (1e-10 if unit == "wave-A" else 1.0)
        if not 0 < metres < 1:
            raise InputError(f"{what}: a wavelength of {number:g} makes no sense: give it in m or A")
        return HC_EV_A / (metres * 1e10)
    return number * {"mm": 1e-3, "m": 1.0, "keV": 1e3, "eV": 1.0}[unit]
