"""What is in reconstruction.h5: a snapshot put in, and read back."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from . import __version__
from .core.blocks import BLOCK_ROWS, Column
from .core.frames import STATUS_NAMES, Counters, Phasing, Poses, Progress, Snapshot, Volume
from .core.workers import chunks
from .io.source import InputError
from .run_geometry import get_geometry, put_geometry
from .run_trust import get_phasing, get_trust, put_trust

FORMAT_VERSION = 1
RESULT = "reconstruction.h5"

Identify = Callable[[NDArray[np.int64]], Mapping[str, NDArray[Any]]]
"""What the frames at these positions are called elsewhere."""


def put_snapshot(file: h5py.File, snapshot: Snapshot, source: str) -> None:
    """Put in everything but the poses; `source` names the frames' files, one per line."""
    file.attrs.update(format_version=FORMAT_VERSION, created_by=f"napari-xrai {__version__}", source=source)
    _put_volume(file, "intensity/volume", snapshot.intensity)
    file["intensity/weight"] = snapshot.weight.data.astype(np.float32)
    put_density(file, snapshot.density, snapshot.phasing)
    if snapshot.geometry is not None:
        put_geometry(file, snapshot.geometry)
    if snapshot.trust is not None:
        put_trust(file, snapshot.trust)
    status = file.create_dataset("frames/status", data=np.asarray(snapshot.status, np.uint8))
    status.attrs.update({name: value for value, name in STATUS_NAMES.items()})
    for kind, curves in (("history", snapshot.history), ("shells", snapshot.shells)):
        group = file.create_group(f"resolution/{kind}")
        for name, curve in curves.items():
            group[name] = curve
    progress = file.create_group("progress")
    progress.attrs.update(vars(snapshot.progress))
    progress.attrs.update(verdict=snapshot.verdict, reason=snapshot.reason)
    if snapshot.resolution_A is not None:
        progress.attrs["resolution_A"] = snapshot.resolution_A
    file.create_group("counters").attrs.update(vars(snapshot.counters))
    file.create_group("facts").attrs.update(snapshot.facts)


def _put_volume(file: h5py.File, name: str, volume: Volume) -> None:
    dataset = file.create_dataset(name, data=volume.data.astype(np.float32))
    dataset.attrs.update(voxel_size=volume.voxel_size, units=volume.units)


def put_density(file: h5py.File, density: Volume | None, phasing: Phasing | None) -> None:
    """Put in the density, and how it was found."""
    if density is not None:
        _put_volume(file, "density/volume", density)
    if phasing is not None:
        group = file.create_group("resolution/phasing")
        for name, value in vars(phasing).items():
            if name not in ("curves", "local_resolution"):
                group.attrs[name] = value
        if phasing.local_resolution is not None:
            _put_volume(file, "density/local_resolution", phasing.local_resolution)
        for name, curve in phasing.curves.items():
            group[name] = curve


def put_poses(file: h5py.File, poses: Mapping[str, Column], identity: Identify | None, source: str) -> None:
    """Put in the poses, part by part, for those of a long stream are many; and which file and frame each is of."""
    n = len(poses["frame"])
    for name, column in poses.items():
        kind = {"frame": np.int64, "modes": np.uint8}.get(name, np.float32)
        file.create_dataset(f"poses/{name}", column.shape, kind)
    for part in chunks(max(n, 1), BLOCK_ROWS):
        columns = {name: column[part] for name, column in poses.items() if len(column) == n}
        named = {} if identity is None else identity(columns["frame"])
        for name, values in {**columns, **named}.items():  # ``frame`` is where it was before a selection
            if name not in file["poses"]:
                file.create_dataset(f"poses/{name}", (n, *values.shape[1:]), values.dtype)
            file[f"poses/{name}"][part] = values
    if "file" in file["poses"]:
        file["poses/file"].attrs["names"] = source.split("\n")


def read_pose_columns(path: Path) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """Every column of /poses of a run folder or result file, and the names that its column `file` counts.

    Raises
    ------
    InputError
        If there are no poses.
    """
    path = path / RESULT if path.is_dir() else path
    try:
        with h5py.File(path, "r", locking=False) as file:
            n = len(file["poses/frame"])
            # a column that the engine did not fill is empty
            columns = {name: column[()] for name, column in file["poses"].items() if len(column) == n}
            names = file["poses/file"].attrs["names"] if "file" in columns else []
    except FileNotFoundError as error:
        raise InputError(f"{path} is not there yet: wait for the run's first report") from error
    except (OSError, RuntimeError) as error:
        raise InputError(f"{path} cannot be read as HDF5: it is damaged or no result of napari-xrai") from error
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} holds no poses: let the run finish, or give another") from error
    if not n or "quaternion" not in columns:
        raise InputError(f"{path} holds no poses: let the run finish, or give another")
    return columns, [str(name) for name in names]


def read_result(path: Path) -> tuple[Snapshot | None, dict[str, Any]]:
    """The snapshot in a result file, and where it came from; None while there is none.

    A file replaced under the reader is read again.
    """
    for attempt in range(5):
        try:
            with h5py.File(path, "r", locking=False) as file:
                about = {"sources": str(file.attrs["source"]).splitlines(), "created_by": str(file.attrs["created_by"])}
                return _get_snapshot(file), about
        except FileNotFoundError:
            return None, {}
        except (OSError, RuntimeError) as error:  # a shared file system may lose the replaced file mid-read
            failure: Exception = error
            time.sleep(0.1 * attempt)
        except (KeyError, TypeError) as error:
            raise InputError(f"{path} is no result of napari-xrai: give a run folder, or its {RESULT}") from error
    raise InputError(f"{path} cannot be read as HDF5: it is damaged or no result of napari-xrai") from failure


def _get_snapshot(file: h5py.File) -> Snapshot:
    def plain(name: str) -> dict[str, Any]:
        return {k: v.item() if isinstance(v, np.generic) else v for k, v in file[name].attrs.items()}

    intensity = _get_volume(file, "intensity/volume")
    progress = plain("progress")
    about = {name: progress.pop(name, None) for name in ("verdict", "reason", "resolution_A")}
    return Snapshot(
        intensity=intensity,
        weight=Volume(file["intensity/weight"][()], intensity.voxel_size, intensity.units),
        density=_get_volume(file, "density/volume") if "density/volume" in file else None,
        poses=Poses(**{f.name: file["poses"][f.name][()] for f in fields(Poses) if f.name in file["poses"]}),
        status=file["frames/status"][()],
        history={name: curve[()] for name, curve in file["resolution/history"].items()},
        shells={name: curve[()] for name, curve in file["resolution/shells"].items()},
        counters=Counters(**plain("counters")),
        progress=Progress(**progress),
        facts=plain("facts"),
        phasing=get_phasing(
            file, _get_volume(file, "density/local_resolution") if "density/local_resolution" in file else None
        ),
        geometry=get_geometry(file),
        trust=get_trust(file, intensity),
        **about,
    )


def _get_volume(file: h5py.File, name: str) -> Volume:
    dataset = file[name]
    return Volume(dataset[()], float(dataset.attrs["voxel_size"]), str(dataset.attrs["units"]))
