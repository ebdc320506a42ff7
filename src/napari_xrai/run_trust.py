"""What a run's result is worth, as its reconstruction.h5 holds it: errors, half-sets, views, forecast, phasing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .core.frames import Phasing, Volume

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

    one, other = (Volume(half, intensity.voxel_size, intensity.units) for half in file["intensity/halves"][()])
    return Trust(
        Volume(file["intensity/standard_error"][()], intensity.voxel_size, intensity.units), (one, other),
        Coverage(**_plain(file[GROUPS["coverage"]]), **_arrays(file[GROUPS["coverage"]])),
        Forecast(**_plain(file[GROUPS["forecast"]]), **_arrays(file[GROUPS["forecast"]])),
    )  # fmt: skip


def get_phasing(file: Any, local_resolution: Volume | None) -> Phasing | None:
    """How the density was found; None where several starts were not compared."""
    group = file.get("resolution/phasing")
    return None if group is None else Phasing(**_plain(group), curves=_arrays(group), local_resolution=local_resolution)


def _plain(group: Any) -> dict[str, Any]:
    return {key: value.item() if isinstance(value, np.generic) else value for key, value in group.attrs.items()}


def _arrays(group: Any) -> dict[str, Any]:
    return {key: dataset[()] for key, dataset in group.items()}
