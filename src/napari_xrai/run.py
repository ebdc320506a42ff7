"""The run folder: what a reconstruction leaves on disk, written so that a reader never sees half of anything.

::

    settings.json        everything needed to run it again
    metrics.jsonl        one line per report
    checkpoint/          enough to continue: safetensors, and state.json that names them
    reconstruction.h5    the result, replaced whole
    intensity.mrc        header voxel size in 10⁻⁴ Å⁻¹ (or 10⁻⁴ detector voxels), said in its label
    density.mrc          Å
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from . import __version__
from .core.frames import STATUS_NAMES, Counters, Phasing, Poses, Progress, Snapshot, Volume
from .io.atomic import replacing, unwritable
from .io.mrc import write_mrc
from .io.source import InputError
from .run_trust import get_phasing, get_trust, put_trust
from .settings import Settings

FORMAT_VERSION = 1
RESULT, SETTINGS, METRICS, CHECKPOINT = "reconstruction.h5", "settings.json", "metrics.jsonl", "checkpoint"
MAPS = ("intensity.mrc", "density.mrc")

ROWS_PER_BLOCK = 2**20
"""Per-frame arrays go to the checkpoint in blocks of so many rows; an unchanged block is not written again."""

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class SavedRun:
    """A run read back from disk.

    Parameters
    ----------
    path : Path
        The run folder, or the lone result file.
    snapshot : Snapshot or None
        None while the run has not made its first report.
    settings : Settings or None
        None where only the result file is there.
    metrics : list of dict
        One per report so far.
    sources : list of str
        The files the frames came from.
    created_by : str
        Program and version.
    """

    path: Path
    snapshot: Snapshot | None
    settings: Settings | None
    metrics: list[dict[str, Any]]
    sources: list[str] = field(default_factory=list)
    created_by: str = ""


class RunFolder:
    """Writes one run folder. Every file in it is complete or absent at every moment, also after a kill."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def check(self, *, resume: bool = False, overwrite: bool = False) -> None:
        """Say now, before any work, whether a run can be written here.

        Raises
        ------
        InputError
            If the path is a file, holds a run already (without `resume` or `overwrite`), or nothing to resume.
        """
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is a file: choose a folder for the run")
        if resume and not is_run(self.path):
            raise InputError(f"{self.path} holds no run to resume: leave out --resume to start one")
        if is_run(self.path) and not (resume or overwrite):
            raise InputError(
                f"{self.path} holds a run already: continue it with --resume or replace it with --overwrite"
            )

    def start(self, settings: Settings, *, resume: bool = False, overwrite: bool = False) -> None:
        """Make the folder, free of an old run unless that is resumed, and write settings.json."""
        self.check(resume=resume, overwrite=overwrite)
        if not resume:
            self.clear()
        elif (self.path / METRICS).exists():
            _drop_torn_line(self.path / METRICS)
        try:
            _write_file(self.path / SETTINGS, settings.model_dump_json(indent=1).encode())
        except InputError:
            with suppress(OSError):  # not empty: it was the user's before
                self.path.rmdir()
            raise

    def clear(self) -> None:
        """Make the folder if need be, and remove the files of a run from it, nothing else."""
        with _in_words(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            for name in (RESULT, METRICS, SETTINGS, *MAPS):
                (self.path / name).unlink(missing_ok=True)
            if (self.path / CHECKPOINT).exists():
                shutil.rmtree(self.path / CHECKPOINT)

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Append one report to metrics.jsonl; NaN becomes null."""
        values = {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in line.items()}
        path = self.path / METRICS
        text = (json.dumps(values, allow_nan=False) + "\n").encode()
        with _in_words(path), path.open("ab", buffering=0) as file:
            size = file.tell()
            if file.write(text) < len(text):  # the disk filled up in the middle of the line
                file.truncate(size)
                raise OSError(errno.ENOSPC, "short write")

    def write_result(
        self, snapshot: Snapshot, source: str, *, poses: bool, identity: Mapping[str, NDArray[Any]] | None = None
    ) -> None:
        """Replace reconstruction.h5. Without `poses` the ones already in the file are carried over.

        With `identity` (see `BatchedSource.identity`) each pose says which file and frame it is of.

        The file is put together in memory: HDF5 does not survive a full disk, a plain write does.
        """
        image = io.BytesIO()
        with h5py.File(image, "w") as file:
            _put_snapshot(file, snapshot, source)
            if poses or not self._carry_poses(file):
                _put_poses(file, snapshot.poses, identity or {}, source)
        _write_file(self.path / RESULT, image.getbuffer())

    def write_maps(self, snapshot: Snapshot) -> None:
        """Write intensity.mrc and, once phased, density.mrc."""
        write_intensity(snapshot.intensity, self.path / "intensity.mrc")
        write_density(snapshot.density, self.path / "density.mrc")

    def write_checkpoint(self, arrays: Arrays, rest: Mapping[str, Any]) -> None:
        """Save what it takes to continue.

        Array files are named by their content, state.json names the files: replacing state.json replaces the
        checkpoint, and what did not change is not written again.
        """
        folder = self.path / CHECKPOINT
        target = folder if folder.exists() else self.path / f".{CHECKPOINT}.part"
        with _in_words(folder):
            if target != folder:
                shutil.rmtree(target, ignore_errors=True)
                target.mkdir()
            files: list[str] = []
            for part in _blocks(arrays):
                files.append(_write_tensors(target, part))
            state = {"format_version": FORMAT_VERSION, "files": files, "rest": dict(rest)}
            _write_file(target / "state.json", json.dumps(state).encode())
            for stray in target.iterdir():
                if stray.name not in {*files, "state.json"}:
                    stray.unlink()
            if target != folder:
                target.rename(folder)

    def read_checkpoint(self) -> tuple[Arrays, dict[str, Any]] | None:
        """The arrays and the rest given to `write_checkpoint`; None if there is no checkpoint yet.

        Raises
        ------
        InputError
            If its files cannot be read.
        """
        from safetensors.numpy import load_file

        folder = self.path / CHECKPOINT
        if not folder.exists():
            return None
        try:
            state = json.loads((folder / "state.json").read_text())
            pieces: dict[str, list[NDArray[Any]]] = {}
            for name in state["files"]:
                for key, array in load_file(folder / name).items():
                    pieces.setdefault(key, []).append(array)
        except Exception as error:  # OSError, JSON, safetensors' own
            raise InputError(f"{folder} cannot be read ({error}): start again with --overwrite") from error
        return {k: v[0] if len(v) == 1 else np.concatenate(v) for k, v in pieces.items()}, state["rest"]

    def _carry_poses(self, file: h5py.File) -> bool:
        try:
            with h5py.File(self.path / RESULT, "r", locking=False) as old:
                old.copy("poses", file)
        except (OSError, KeyError):
            return False
        return True


def is_run(path: Path) -> bool:
    """Whether this folder holds a run: not one that failed before its first report, of which only settings are left."""
    return any((path / name).exists() for name in (RESULT, METRICS, CHECKPOINT))


def has_result(path: Path) -> bool:
    """Whether there is something to show: a folder with a result, or a result file."""
    return (path / RESULT).is_file() or (path.is_file() and path.suffix == ".h5")


def read_run(path: Path) -> SavedRun:
    """Read a run folder, or a lone reconstruction.h5; also while another process is writing it.

    Raises
    ------
    InputError
        If there is no run, or it cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        if not is_run(path):
            raise InputError(f"{path} is no run folder: it holds no {RESULT}")
        snapshot, about = _read_result(path / RESULT)
        return SavedRun(path, snapshot, _read_settings(path / SETTINGS), read_metrics(path), **about)
    if not path.exists():
        raise InputError(f"no such file or folder: {path}")
    snapshot, about = _read_result(path)
    return SavedRun(path, snapshot, None, [], **about)


def beside_result(run: Path, name: str) -> Path:
    """Where a file called `name` goes that is made from a run: into its folder, or beside its lone result file."""
    if run.is_dir():
        return run / name
    return run.with_name(name if run.name == RESULT else f"{run.stem}_{name}")


def write_phasing(run: SavedRun, density: Volume | None, phasing: Phasing) -> None:
    """Replace the density of a saved run, and what is known of it; all else in its result file stays.

    Parameters
    ----------
    run : SavedRun
        The intensity that was phased.
    density : Volume or None
        None where phasing failed: the density there was is taken away, density.mrc too.

    Raises
    ------
    InputError
        If the run was written meanwhile, or cannot be written.
    """
    path = run.path / RESULT if run.path.is_dir() else run.path
    image = io.BytesIO()
    with _opened(path) as old, h5py.File(image, "w") as file:
        if run.snapshot is None or not np.array_equal(old["intensity/volume"][()], run.snapshot.intensity.data):
            raise InputError(f"{path} was written while it was phased: stop the run that writes it, and phase it then")
        file.attrs.update(old.attrs)
        for name in old:
            if name not in ("density", "resolution"):
                old.copy(name, file)
        curves = file.create_group("resolution")
        for name in old["resolution"]:
            if name != "phasing":
                old.copy(f"resolution/{name}", curves)
        _put_density(file, density, phasing)
    _write_file(path, image.getbuffer())
    write_density(density, beside_result(run.path, "density.mrc"))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The reports of a run folder so far; a last line still being written is left out."""
    try:
        lines = (path / METRICS).read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise InputError(f"{path / METRICS} is damaged: line {len(lines)} or before is no JSON") from error


# ---- reconstruction.h5


def _put_snapshot(file: h5py.File, snapshot: Snapshot, source: str) -> None:
    file.attrs.update(format_version=FORMAT_VERSION, created_by=f"napari-xrai {__version__}", source=source)
    _put_volume(file, "intensity/volume", snapshot.intensity)
    file["intensity/weight"] = snapshot.weight.data.astype(np.float32)
    _put_density(file, snapshot.density, snapshot.phasing)
    if snapshot.trust is not None:
        put_trust(file, snapshot.trust)
    status = file.create_dataset("frames/status", data=snapshot.status.astype(np.uint8))
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


def _put_density(file: h5py.File, density: Volume | None, phasing: Phasing | None) -> None:
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


def _put_poses(file: h5py.File, poses: Poses, identity: Mapping[str, NDArray[Any]], source: str) -> None:
    for name, column in vars(poses).items():
        file[f"poses/{name}"] = column.astype({"frame": np.int64, "modes": np.uint8}.get(name, np.float32))
    for name, column in identity.items():
        if name == "frame":  # where it was before a selection
            file["poses/frame"][:] = column
        else:
            file[f"poses/{name}"] = column
    if "file" in identity:
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
    except (OSError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"{path} holds no poses: let the run finish, or give another") from error
    if not n or "quaternion" not in columns:
        raise InputError(f"{path} holds no poses: let the run finish, or give another")
    return columns, [str(name) for name in names]


def _read_result(path: Path) -> tuple[Snapshot | None, dict[str, Any]]:
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
            raise InputError(f"{path} is no result of napari-xrai: {error.args[0]}") from error
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
        trust=get_trust(file, intensity),
        **about,
    )


def _get_volume(file: h5py.File, name: str) -> Volume:
    dataset = file[name]
    return Volume(dataset[()], float(dataset.attrs["voxel_size"]), str(dataset.attrs["units"]))


def _read_settings(path: Path) -> Settings | None:
    try:
        return Settings.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise InputError(f"{path} holds no settings of napari-xrai: {error.errors()[0]['msg']}") from error


# ---- plain files


def write_intensity(intensity: Volume, path: Path) -> None:
    """Write an intensity as MRC: header voxel size in 10⁻⁴ of its unit, as its label says."""
    unit = {"1/angstrom": "1e-4 1/A", "detector_voxel": "1e-4 detector voxels"}[intensity.units]
    scaled = Volume(intensity.data, intensity.voxel_size * 1e4, intensity.units)
    write_mrc(scaled, path, f"X-RAI intensity, (z,y,x), q=0 at n//2; cell in {unit}")


def write_density(density: Volume | None, path: Path) -> None:
    """density.mrc, or none: an older one must not pass for this run's."""
    if density is None:
        with _in_words(path):
            path.unlink(missing_ok=True)
    else:
        write_mrc(density, path, f"X-RAI density, (z,y,x), origin at n//2; cell in {density.units}")


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    try:
        with h5py.File(io.BytesIO(path.read_bytes()), "r") as file:
            yield file
    except OSError as error:
        raise InputError(f"{path} cannot be read: give the run folder again") from error


def _write_file(path: Path, content: bytes | memoryview) -> None:
    with replacing(path) as part:
        part.write_bytes(content)


def _drop_torn_line(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(file.read().rfind(b"\n") + 1)


def _blocks(arrays: Arrays) -> Iterator[Arrays]:
    """The arrays in parts for one file each: the short ones together, the long ones block by block."""
    yield {name: array for name, array in arrays.items() if not _is_long(array)}
    for name, array in arrays.items():
        if _is_long(array):
            for start in range(0, len(array), ROWS_PER_BLOCK):
                yield {name: array[start : start + ROWS_PER_BLOCK]}


def _is_long(array: NDArray[Any]) -> bool:
    return array.ndim > 0 and len(array) > ROWS_PER_BLOCK


def _write_tensors(folder: Path, arrays: Arrays) -> str:
    """Write arrays into a file named by what is in it, unless it is there already; return its name."""
    from safetensors.numpy import save

    content = save({name: np.asarray(array, order="C") for name, array in arrays.items()})
    name = f"{hashlib.blake2b(content, digest_size=12).hexdigest()}.safetensors"
    if not (folder / name).exists():
        _write_file(folder / name, content)
    return name


@contextmanager
def _in_words(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise unwritable(path, error) from error
