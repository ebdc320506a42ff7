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
import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from .core.blocks import Column
from .core.frames import Phasing, Snapshot, Volume
from .core.workers import chunks
from .io.atomic import replacing, unwritable
from .io.hdf5_file import new_hdf5
from .io.mrc import write_mrc
from .io.source import InputError
from .run_result import FORMAT_VERSION, RESULT, Identify, put_density, put_poses, put_snapshot, read_result
from .settings import Settings

SETTINGS, METRICS, CHECKPOINT = "settings.json", "metrics.jsonl", "checkpoint"
MAPS = ("intensity.mrc", "density.mrc")

BYTES_PER_FILE = 2**20
"""Long arrays go to the checkpoint in blocks of so much; an unchanged block is not written again, and putting one
together takes little memory."""

Arrays = dict[str, NDArray[Any]]
Columns = Mapping[str, Column]


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
        if resume and overwrite:
            raise InputError("--resume and --overwrite contradict each other: give one of them")
        if resume and not is_run(self.path):
            raise InputError(f"{self.path} holds no run to resume: leave out --resume to start one")
        if resume and (self.path / RESULT).exists() and not (self.path / CHECKPOINT).exists():
            raise InputError(
                f"{self.path} holds a result but no checkpoint to go on from: replace it with --overwrite, or choose "
                "another folder"
            )
        if is_run(self.path) and not (resume or overwrite):
            raise InputError(
                f"{self.path} holds a run already: continue it with --resume or replace it with --overwrite"
            )

    def start(self, settings: Settings, *, resume: bool = False, overwrite: bool = False) -> None:
        """Free the folder of an old run unless that is resumed, and write settings.json.

        To be done by its `only_writer`.
        """
        self.check(resume=resume, overwrite=overwrite)
        if not resume:
            self.clear()
        elif (self.path / METRICS).exists():
            _drop_torn_line(self.path / METRICS)
        _write_file(self.path / SETTINGS, settings.model_dump_json(indent=1).encode())

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
        self, snapshot: Snapshot, source: str, *, poses: bool | Columns, identity: Identify | None = None
    ) -> None:
        """Replace reconstruction.h5.

        Parameters
        ----------
        snapshot : Snapshot
        source : str
            Names the frames' files, one per line.
        poses : bool or mapping of str to columns
            True: those of the snapshot; or other ones, by the names of `Poses`, written part by part. False: those
            that are in the file are carried over.
        identity : callable or None
            Says which file and frame each pose is of: see `BatchedSource.identity`.
        """
        with new_hdf5(self.path / RESULT) as file:
            put_snapshot(file, snapshot, source)
            if poses or not self._carry_poses(file):
                put_poses(file, poses if isinstance(poses, Mapping) else vars(snapshot.poses), identity, source)

    def write_maps(self, snapshot: Snapshot) -> None:
        """Write intensity.mrc and, once phased, density.mrc."""
        write_intensity(snapshot.intensity, self.path / "intensity.mrc")
        write_density(snapshot.density, self.path / "density.mrc")

    def write_checkpoint(self, arrays: Columns, rest: Mapping[str, Any]) -> None:
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
        snapshot, about = read_result(path / RESULT)
        return SavedRun(path, snapshot, _read_settings(path / SETTINGS), read_metrics(path), **about)
    if not path.exists():
        raise InputError(f"no such file or folder: {path}")
    snapshot, about = read_result(path)
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
    with _opened(path) as old, new_hdf5(path) as file:
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
        put_density(file, density, phasing)
    write_density(density, beside_result(run.path, "density.mrc"))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The reports of a run folder so far; a line still being written, or torn by a crash, is left out."""
    try:
        lines = (path / METRICS).read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    return [report for line in lines if (report := _report_in(line)) is not None]


def _report_in(line: bytes) -> dict[str, Any] | None:
    try:
        report = json.loads(line)
    except ValueError:
        return None
    return report if isinstance(report, dict) else None


# ---- plain files


def _read_settings(path: Path) -> Settings | None:
    try:
        return Settings.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise InputError(f"{path} holds no settings of napari-xrai: {error.errors()[0]['msg']}") from error


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


def _write_file(path: Path, content: bytes) -> None:
    with replacing(path) as part:
        part.write_bytes(content)


def _drop_torn_line(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(file.read().rfind(b"\n") + 1)


def _blocks(arrays: Columns) -> Iterator[Columns]:
    """The arrays in parts for one file each: the short ones together, the long ones block by block."""
    yield {name: array for name, array in arrays.items() if len(_parts(array)) <= 1}
    for name, array in arrays.items():
        if len(_parts(array)) > 1:
            yield from ({name: array[part]} for part in _parts(array))


def _parts(array: Column) -> list[slice]:
    """Rows that go into one file each; none of a number."""
    row_bytes = array.dtype.itemsize * max(1, math.prod(array.shape[1:]))
    return chunks(len(array), max(1, BYTES_PER_FILE // row_bytes)) if array.ndim else []


def _write_tensors(folder: Path, arrays: Columns) -> str:
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
