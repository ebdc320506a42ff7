"""Where the pixels of a NeXus NXmx file lie: modules at the end of chains of translations and rotations.

NeXus takes the McStas frame, which is ours: +z along the beam, +y up, right-handed.
Source: the NXmx application definition, https://manual.nexusformat.org/classes/applications/NXmx.html
"""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from ..core.frames import BAD, HC_EV_A
from .source import InputError

METRES = {
    "m": 1.0, "metre": 1.0, "meter": 1.0, "cm": 1e-2, "mm": 1e-3, "um": 1e-6, "µm": 1e-6, "micron": 1e-6,
    "nm": 1e-9, "angstrom": 1e-10, "a": 1e-10, "å": 1e-10, "pm": 1e-12,
}  # fmt: skip
EV = {"ev": 1.0, "kev": 1e3, "mev": 1e6, "j": 1 / 1.602176634e-19}
LONGEST_CHAIN = 50


def module_pixels(
    detector: h5py.Group, shape: tuple[int, ...]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.uint8]] | None:
    """Centre and oriented area of every pixel, from the detector's modules; None where it describes none.

    Returns
    -------
    centre_m, area_m2 : (P, 3) float64
    mask : (P,) uint8
        Bad where no module has the pixel.

    Raises
    ------
    InputError
        If a module lies outside the frame, or a chain of axes leads nowhere.
    """
    modules = module_groups(detector)
    if not modules:
        return None
    centre, area = np.zeros((*shape, 3)), np.zeros((*shape, 3))
    mask = np.full(shape, BAD, np.uint8)
    for module in modules:
        origin, size = (_whole(module, name, shape) for name in ("data_origin", "data_size"))
        size = size or tuple(n - o for n, o in zip(shape, origin or (0,) * len(shape), strict=True))
        at = tuple(slice(o, o + n) for o, n in zip(origin or (0,) * len(shape), size, strict=True))
        if any(s.stop > n or s.start < 0 for s, n in zip(at, shape, strict=True)):
            raise InputError(f"{module.file.filename}: {module.name} lies outside frames of shape {shape}: correct it")
        centre[at], area[at] = _place(module, size)
        mask[at] = 0
    outside = mask.reshape(-1) == BAD
    flat = centre.reshape(-1, 3), area.reshape(-1, 3)
    # pixels of no module: bad, and anywhere but at the sample
    flat[0][outside], flat[1][outside] = flat[0][~outside][0], flat[1][~outside][0]
    return *flat, mask.reshape(-1)


def module_groups(detector: h5py.Group) -> list[h5py.Group]:
    """The detector's modules: groups that say where their pixels go."""
    groups = [node for node in detector.values() if isinstance(node, h5py.Group)]
    return [g for g in groups if "fast_pixel_direction" in g and "slow_pixel_direction" in g]


def _place(module: h5py.Group, size: tuple[int, ...]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    fast, slow = module["fast_pixel_direction"], module["slow_pixel_direction"]
    steps = [_vector(axis, "vector") * _number(axis) * _metres(axis) for axis in (slow, fast)]
    rows, columns = (int(n) for n in size[-2:])
    i, j = np.arange(rows)[:, None, None] + 0.5, np.arange(columns)[None, :, None] + 0.5
    points = i * steps[0] + j * steps[1] + _vector(fast, "offset") * _metres(fast, "offset_units")
    turn, shift = _chain(fast)
    area = np.cross(steps[0], steps[1]) @ turn.T
    placed = points @ turn.T + shift
    return placed.reshape(*size, 3), np.broadcast_to(area, (*size, 3))


def _chain(start: h5py.Dataset) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rotation and shift of the axes that `start` depends on, up to the lab."""
    turn, shift, axis = np.eye(3), np.zeros(3), start
    for _ in range(LONGEST_CHAIN):
        name = axis.attrs.get("depends_on", ".")
        name = name.decode() if isinstance(name, bytes) else str(name)
        if name == ".":
            return turn, shift
        below = axis.file.get(name) if name.startswith("/") else axis.parent.get(name)
        if not isinstance(below, h5py.Dataset):
            raise InputError(f"{axis.file.filename}: {axis.name} depends on {name}, which is not there: correct it")
        axis = below
        vector = _vector(axis, "vector")
        own = np.eye(3)
        if nexus_text(axis.attrs.get("transformation_type")) == "rotation":
            radians = 1.0 if nexus_text(axis.attrs.get("units")).lower().startswith("rad") else np.pi / 180
            angle = _number(axis) * radians
            own, move = Rotation.from_rotvec(vector / np.linalg.norm(vector) * angle).as_matrix(), np.zeros(3)
        else:
            move = vector * _number(axis) * _metres(axis)
        turn, shift = own @ turn, own @ shift + move + _vector(axis, "offset") * _metres(axis, "offset_units")
    raise InputError(f"{start.file.filename}: the axes that {start.name} depends on go in a circle: correct them")


def length_m(group: h5py.Group, name: str) -> float | None:
    """A length in metres, by its unit; of one value per shot, the median. None where it is not there."""
    node = group.get(name)
    if not isinstance(node, h5py.Dataset) or node.dtype.kind not in "iuf" or not node.size:
        return None
    return _number(node) * _metres(node)


def beam_energy_eV(groups: list[h5py.Group]) -> float | None:
    """Photon energy from the first beam that has one: as energy, or as wavelength (Å unless it says)."""
    for beam in groups:
        wave, energy = beam.get("incident_wavelength"), beam.get("incident_energy")
        if isinstance(wave, h5py.Dataset) and _number(wave) > 0:
            unit = nexus_text(wave.attrs.get("units")).lower() or "angstrom"
            return HC_EV_A / (_number(wave) * METRES.get(unit, METRES.get(unit.rstrip("s"), 1e-10)) * 1e10)
        if isinstance(energy, h5py.Dataset) and _number(energy) > 0:
            return _number(energy) * EV.get(nexus_text(energy.attrs.get("units")).lower(), 1.0)
    return None


def energy_spread(groups: list[h5py.Group]) -> float:
    """Relative spread of the photon energy, or wavelength, from shot to shot: between its 5th and 95th percentile."""
    for beam in groups:
        for node in (beam.get("incident_wavelength"), beam.get("incident_energy")):
            if isinstance(node, h5py.Dataset) and _number(node) > 0:
                values = np.asarray(node[()], np.float64).ravel()
                return float(np.subtract(*np.nanpercentile(values, [95, 5])) / _number(node))
    return 0.0


def nexus_text(value: Any) -> str:
    """A string or attribute as text, however it was written; nothing for None."""
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.ravel()[0]
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value) if value is not None else ""


def _number(node: h5py.Dataset) -> float:
    values = np.asarray(node[()], np.float64).ravel()
    values = values[np.isfinite(values)]
    if not len(values):
        raise InputError(f"{node.file.filename}: {node.name} holds no number: correct it")
    return float(np.median(values))


def _metres(node: h5py.Dataset, attribute: str = "units") -> float:
    unit = nexus_text(node.attrs.get(attribute)).lower()
    if not unit:
        unit = nexus_text(node.attrs.get("units")).lower() if attribute != "units" else "m"
    for name in (unit, unit.rstrip("s")):
        if name in METRES:
            return METRES[name]
    if attribute != "units":  # the unit of an angle says nothing of its offset
        return 1.0
    raise InputError(f"{node.file.filename}: {node.name} is in {unit!r}: give it in m or mm")


def _vector(node: h5py.Dataset, name: str) -> NDArray[np.float64]:
    value = np.asarray(node.attrs.get(name, (0.0, 0.0, 0.0)), np.float64).ravel()
    if value.shape != (3,) or not np.isfinite(value).all() or (name == "vector" and not value.any()):
        raise InputError(f"{node.file.filename}: {node.name} has no usable {name}: correct it")
    return value


def _whole(module: h5py.Group, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    node = module.get(name)
    if not isinstance(node, h5py.Dataset) or node.size != len(shape):
        return ()
    return tuple(int(v) for v in np.ravel(node[()]))
