"""CrystFEL geometry files, as the manual page crystfel_geometry(5) of CrystFEL describes them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .geom import GeomFile, Panel
from .geom_mask import BadBox, DetectorMask
from .source import InputError
from .units import check_pixel_size_m, in_base_unit

MOST_BYTES, MOST_PANELS, MOST_AXES = 2**25, 10_000, 8
"""More than any detector has: beyond these the file is no geometry."""

RESERVED = ("bad", "group", "rigid_group")
TERM = re.compile(r"([+-]?)\s*((?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)?\s*\*?\s*([xyz])", re.IGNORECASE)
REQUIRED = ("min_fs", "max_fs", "min_ss", "max_ss", "corner_x", "corner_y", "res")

Values = dict[str, str]


def is_geom(head: bytes) -> bool:
    """Whether a file begins as a CrystFEL geometry does: lines ``key = value``, two of them in its own words."""
    if b"\0" in head:
        return False
    lines = [line.split(";")[0].strip() for line in head.decode("utf-8", "replace").split("\n")[:-1]]
    filled = [line for line in lines if line]
    words = {line.split("=")[0].strip().rsplit("/", 1)[-1] for line in filled}
    known = {"res", "clen", "corner_x", "min_fs", "max_fs", "min_ss", "fs", "ss", "photon_energy", "adu_per_eV", "dim0"}
    return bool(filled) and all("=" in line for line in filled) and len(words & known) >= 2


def read_geom(path: Path) -> GeomFile:
    """Read a CrystFEL geometry file.

    Raises
    ------
    InputError
        If it is no geometry file, or a panel lacks something: one sentence with the line or the panel.
    """
    if path.stat().st_size > MOST_BYTES:
        raise InputError(f"{path} is too large for a geometry file: give the .geom file of the detector")
    try:
        text = path.read_text("utf-8")
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path} is no text file: give the .geom file of the detector") from error
    top: Values = {}
    defaults: Values = {}
    panels: dict[str, Values] = {}
    boxes: dict[str, Values] = {}
    for owner, key, value in _entries(path, text):
        if owner is None:
            top[key] = defaults[key] = value
        elif owner.startswith("bad"):
            boxes.setdefault(owner, {})[key] = value
        else:
            # a default counts for panels first mentioned after it
            panels.setdefault(owner, dict(defaults))[key] = value
    if not panels:
        raise InputError(f"{path} describes no panel: give the .geom file of the detector")
    if len(panels) > MOST_PANELS:
        raise InputError(f"{path} describes {len(panels):,} panels: it is no detector's geometry")
    placed = tuple(_panel(path, name, values) for name, values in panels.items())
    if len({len(panel.axes) for panel in placed}) > 1:
        raise InputError(f"{path}: its panels lie in arrays of different dimensions: correct dim0, dim1, …")
    first = next(iter(panels.values()))
    scale = {name: _scaled(path, top, f"detector_shift_{name}", "m") for name in "xy"}
    return GeomFile(
        path, placed, tuple(BadBox.parse(path, n, v, {p.name for p in placed}) for n, v in boxes.items()),
        DetectorMask.parse_all(path, {**top, **first}),
        _scaled(path, {**first, **top}, "clen", "m"), _energy(path, top),
        np.array([0.0 if not isinstance(scale[n], float) else scale[n] for n in "xy"]),
    )  # fmt: skip


def _entries(path: Path, text: str) -> Iterator[tuple[str | None, str, str]]:
    """(panel or None, key, value) of each line."""
    for number, line in enumerate(text.splitlines(), 1):
        content = line.split(";")[0].strip()
        if not content:
            continue
        left, equals, value = (part.strip() for part in content.partition("="))
        if not equals or not left or not value:
            raise InputError(f"{path}, line {number}: {content[:40]!r} is not of the form key = value: correct it")
        owner, slash, key = left.rpartition("/")
        if not slash and left.startswith(RESERVED[1:]):
            continue
        yield (owner if slash else None), key, value


def _panel(path: Path, name: str, values: Values) -> Panel:
    what = f"{path}, panel {name}"
    for key in REQUIRED:
        if key not in values:
            raise InputError(f"{what} has no {key}: complete the geometry file")
    min_ss, max_ss, min_fs, max_fs = (_integer(what, values, k) for k in ("min_ss", "max_ss", "min_fs", "max_fs"))
    if not (0 <= min_ss <= max_ss < 2**20 and 0 <= min_fs <= max_fs < 2**20):
        raise InputError(f"{what} spans ss {min_ss}…{max_ss}, fs {min_fs}…{max_fs}: correct min and max")
    resolution = _number(what, values, "res")
    pixel = check_pixel_size_m(1 / resolution if resolution else math.inf, f"{what}: 1/res")
    slow, fast = (_vector(what, values, key) for key in ("ss", "fs"))
    if np.linalg.norm(np.cross(slow, fast)) < 1e-3:
        raise InputError(f"{what}: fs and ss are parallel or zero: correct them")
    corner = [_number(what, values, "corner_x") * pixel, _number(what, values, "corner_y") * pixel]
    offset = _scaled(path, values, "coffset", "m") or 0.0
    if isinstance(offset, str):
        raise InputError(f"{what}: coffset must be a number of metres, not a place in a file")
    return Panel(
        name, _axes(what, values), (min_ss, max_ss, min_fs, max_fs), np.array([*corner, offset]),
        np.stack([slow, fast]) * pixel, values.get("no_index", "0").lower() not in ("0", "false"),
        min(_integer(what, values, "mask_edge_pixels", 0), 1 + min(max_ss - min_ss, max_fs - min_fs) // 2),
    )  # fmt: skip


def _axes(what: str, values: Values) -> tuple[str | int, ...]:
    """The axes of one frame: dim0, dim1, … without those that count frames; slow and fast scan by default."""
    numbered = {}
    for key, value in values.items():
        if key.startswith("dim") and key[3:].isdigit():
            if int(key[3:]) >= MOST_AXES:
                raise InputError(f"{what}: {key} = {value} asks for an array of too many dimensions: correct it")
            numbered[int(key[3:])] = value
    if not numbered:
        return ("ss", "fs")
    axes: list[str | int] = []
    for n in range(max(numbered) + 1):
        value = numbered.get(n, "")
        if value == "%":
            continue
        if value not in ("ss", "fs") and not (value.isdigit() and int(value) < 2**16):
            raise InputError(f"{what}: dim{n} = {value or 'nothing'}: it must be %, ss, fs or a number")
        axes.append(value if value in ("ss", "fs") else int(value))
    if axes.count("ss") != 1 or axes.count("fs") != 1 or axes.index("fs") < axes.index("ss"):
        raise InputError(f"{what}: its dimensions must hold ss once and fs once after it: correct dim0, dim1, …")
    return tuple(axes)


def _vector(what: str, values: Values, key: str) -> NDArray[np.float64]:
    """A direction such as ``-0.0019x -1.y +z``, in pixels."""
    text = values.get(key, {"fs": "x", "ss": "y"}[key])
    vector, rest = np.zeros(3), text
    for sign, size, axis in TERM.findall(text):
        vector["xyz".index(axis.lower())] += float(f"{sign}{size or '1'}")
    rest = TERM.sub("", text).strip()
    if rest or not np.isfinite(vector).all():
        raise InputError(f"{what}: {key} = {text[:40]} is no direction: write it as -0.5x +1.0y")
    return vector


def _number(what: str, values: Values, key: str) -> float:
    try:
        number = float(values[key])
    except ValueError:
        number = math.nan
    if not abs(number) < 1e12:
        raise InputError(f"{what}: {key} = {values[key][:40]} is no number: correct it")
    return number


def _integer(what: str, values: Values, key: str, default: int | None = None) -> int:
    if default is not None and key not in values:
        return default
    number = _number(what, values, key)
    if number != int(number):
        raise InputError(f"{what}: {key} = {values[key]} is no whole number: correct it")
    return int(number)


def _scaled(path: Path, values: Values, key: str, unit: str) -> float | str | None:
    """A length in metres, or ``"HDF5 path unit"``; None if the file does not say."""
    if key not in values:
        return None
    text, given = _split_unit(values[key], ("mm", "m"))
    if text.startswith("/"):
        return f"{text} {given or 'mm'}"  # in the files that such paths lead to, millimetres are the rule
    return in_base_unit(_number(str(path), {key: text}, key), given or unit, f"{path}: {key}")


def _energy(path: Path, values: Values) -> float | str | None:
    """Photon energy in eV, or where it is; from ``photon_energy`` or ``wavelength``."""
    if "photon_energy" in values:
        text, unit = _split_unit(values["photon_energy"], ("keV", "eV"))
        if text.startswith("/"):
            return f"{text} {unit or 'eV'}"
        return in_base_unit(_number(str(path), {"photon_energy": text}, "photon_energy"), unit or "eV", str(path))
    if "wavelength" in values:
        text, unit = _split_unit(values["wavelength"], ("m", "A"))
        if text.startswith("/"):
            return f"{text} wave-{unit or 'm'}"
        return in_base_unit(_number(str(path), {"wavelength": text}, "wavelength"), f"wave-{unit or 'm'}", str(path))
    if "electron_voltage" in values:
        raise InputError(f"{path} is for an electron microscope (electron_voltage): give the geometry of an X-ray beam")
    return None


def _split_unit(text: str, units: tuple[str, ...]) -> tuple[str, str]:
    """A value and its unit, empty if it names none."""
    for unit in units:
        if text.endswith(unit) and not text[: -len(unit)].strip().endswith(("/", "_")):
            head = text[: -len(unit)]
            if head != head.rstrip() or not text.startswith("/"):
                return head.strip(), unit
    return text, ""
