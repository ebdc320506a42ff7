"""What a run's intensity is worth, as its reconstruction.h5 holds it: errors, half-sets, views, forecast."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .core.frames import Volume

if TYPE_CHECKING:
    from .core.trust import Trust

GROUPS = {"coverage": "coverage", "forecast": "resolution/forecast"}
"""Fields of `Trust` that are figures and arrays, and where they go: numbers and words as attributes."""


def put_trust(file: Any, trust: Trust) -> None:
    """Write it into an open file: /intensity/standard_error, /intensity/halves, /coverage, /resolution/forecast."""
    file["intensity/standard_error"] = trust.standard_error.data.astype(np.float32)
    file["intensity/halves"] = np.stack([half.data for half in trust.halves]).astype(np.float32)
    file["intensity/halves"].attrs["about"] = "frames of even and odd position; they share their poses"
    for name, path in GROUPS.items():
        group = file.create_group(path)
        for key, value in vars(getattr(trust, name)).items():
            if isinstance(value, np.ndarray):
                group[key] = value
            else:
                group.attrs[key] = value


def get_trust(file: Any, intensity: Volume) -> Trust | None:
    """Read it back; None where a file has none."""
    from .core.coverage import Coverage
    from .core.forecast import Forecast
    from .core.trust import Trust

    if "standard_error" not in file["intensity"] or not all(path in file for path in GROUPS.values()):
        return None

    def fields(path: str) -> dict[str, Any]:
        group = file[path]
        plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in group.attrs.items()}
        return plain | {k: v[()] for k, v in group.items()}

    one, other = (Volume(half, intensity.voxel_size, intensity.units) for half in file["intensity/halves"][()])
    return Trust(
        Volume(file["intensity/standard_error"][()], intensity.voxel_size, intensity.units), (one, other),
        Coverage(**fields(GROUPS["coverage"])), Forecast(**fields(GROUPS["forecast"])),
    )  # fmt: skip
