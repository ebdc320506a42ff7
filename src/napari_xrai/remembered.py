"""What the user supplied once for an instrument, kept for the next time: offered, never applied unseen."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import platformdirs

from .io.atomic import replacing
from .io.source import FrameSource, InputError
from .settings import InputSettings

FOLDER_VARIABLE = "NAPARI_XRAI_CONFIG_DIR"
KEPT = {
    "energy_eV": "--energy", "distance_m": "--distance", "pixel_size_m": "--pixel-size",
    "polarization": "--polarization", "detector": "--detector", "mask": "--mask",
}  # fmt: skip
"""Settings that belong to an instrument more than to a run, and their options."""

MOST_INSTRUMENTS = 200


def remember(source: FrameSource, given: InputSettings) -> None:
    """Keep what was given for frames like these; a folder that cannot be written is no reason to stop."""
    values = {name: getattr(given, name) for name in KEPT if getattr(given, name) is not None}
    if not values:
        return
    known = _read()
    before = known.pop(_instrument(source), {})
    before = before if isinstance(before, dict) else {}
    known[_instrument(source)] = {**before, **{k: str(v) if isinstance(v, Path) else v for k, v in values.items()}}
    newest = dict(list(known.items())[-MOST_INSTRUMENTS:])
    with suppress(OSError, InputError):
        _file().parent.mkdir(parents=True, exist_ok=True)
        with replacing(_file()) as part:
            part.write_text(json.dumps(newest, indent=1))


def recall(source: FrameSource) -> dict[str, Any]:
    """What was given the last time for frames like these and is missing now, by the name of its setting."""
    missing = set(getattr(source, "missing", ()))
    useful = {"energy_eV"} if "wavelength" in missing else set()
    useful |= {"distance_m", "pixel_size_m", "detector"} if "geometry" in missing else set()
    useful |= {"polarization"} if missing & {"polarisation", "geometry"} else set()
    known = _read().get(_instrument(source), {})
    return {name: value for name, value in known.items() if name in useful} if isinstance(known, dict) else {}


def as_options(values: dict[str, Any]) -> str:
    """As one would type them."""
    return " ".join(f"{KEPT[name]} {value}" for name, value in values.items())


def _instrument(source: FrameSource) -> str:
    """What frames of one instrument have in common: who writes them, and their shape."""
    shape = getattr(source, "detector_shape", source.shape)  # before pixels were summed
    return f"{source.format.split()[0]} {'x'.join(map(str, shape))}"


def _file() -> Path:
    folder = os.environ.get(FOLDER_VARIABLE) or platformdirs.user_config_dir("napari-xrai", appauthor=False)
    return Path(folder) / "instruments.json"


def _read() -> dict[str, Any]:
    try:
        known = json.loads(_file().read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
