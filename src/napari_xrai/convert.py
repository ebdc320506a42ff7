"""Frames, detectors and results from one program's files to another's: ``napari-xrai convert``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from .core.detector import through_beam
from .core.frames import HC_EV_A, Frames, Snapshot, UsedGeometry
from .io.batched import BatchedSource
from .io.cxi_writer import CxiWriter
from .io.dragonfly_writer import EmcWriter, write_detector
from .io.geom_text import is_geom, read_geom
from .io.lattice import in_rows, polarization_of
from .io.open import binned, classify, find_format, open_source
from .io.pose_table import write_pose_table
from .io.source import CENTRE_ASSUMED, Beam, InputError
from .run import read_run, write_density, write_intensity
from .run_result import read_pose_columns
from .settings import InputSettings

BLOCK_PIXELS = 8_000_000
"""Dense pixels laid out at once."""

Steps = Iterator[tuple[int, int]]
"""Frames done, and in all."""


def convert(given: InputSettings, out: Path, notes: list[str]) -> Steps:
    """Write what is in `given` as the format that the ending of `out` names; yields as it goes.

    Frames: ``.cxi``; ``.emc`` (its detector goes beside it, ``<stem>.det.h5``). A CrystFEL geometry: ``.h5`` or
    ``.dat``, a Dragonfly detector. A run: ``.mrc`` (its intensity, where the name says so; its density otherwise),
    ``.csv`` or ``.star`` (its poses), ``.cxi`` (its frames, with poses and volumes in ``result_1``, and the geometry
    and mask that it used).

    Parameters
    ----------
    given : InputSettings
    out : Path
    notes : list of str
        What is to be said of it is added here, in words.

    Raises
    ------
    InputError
        If it cannot be read, not be written so, or `out` is there already.
    """
    path = given.sources[0]
    _must_be_new(out)
    kind = classify(path)
    writers: dict[str, dict[str, Callable[[InputSettings, Path, list[str]], Steps]]] = {
        "frames": {".cxi": _frames_to_cxi, ".emc": _frames_to_emc},
        "detector": {".h5": _geometry_to_dragonfly, ".dat": _geometry_to_dragonfly},
        "run": {".mrc": _run_to_mrc, ".csv": _run_to_table, ".star": _run_to_table, ".cxi": _run_to_cxi},
    }
    if kind not in writers:
        if kind == "unknown":
            open_source(given.sources)  # says what is wrong with it
        raise InputError(f"{path} is a {kind} file: give frames, a .geom, or a run folder")
    if out.suffix not in writers[kind]:
        if path.is_file():
            find_format(path)  # says so, where it is damaged
        raise InputError(
            f"{out}: a {kind} file can be written as {', '.join(writers[kind])}: end the name with one of these"
        )
    return writers[kind][out.suffix](given, out, notes)


def files_of(out: Path) -> list[Path]:
    """`out`, and what was written beside it."""
    beside = _detector_beside(out)
    return [out, beside] if out.suffix == ".emc" and beside.exists() else [out]


def _detector_beside(out: Path) -> Path:
    return out.with_name(f"{out.stem}.det.h5")


def _must_be_new(path: Path) -> None:
    if path.exists():
        raise InputError(f"{path} exists already: choose another name, or remove it first")


def _open(given: InputSettings) -> BatchedSource:
    source = open_source(
        given.sources, detector=given.detector, mask=given.mask, energy_eV=given.energy_eV,
        distance_m=given.distance_m, pixel_size_m=given.pixel_size_m, polarization=given.polarization,
        select=given.select, binning=given.binning or 1,
    )  # fmt: skip
    return cast("BatchedSource", source)  # as every source of files is


def _batches(source: BatchedSource) -> Iterator[Frames]:
    return source.batches(max(1, min(1000, BLOCK_PIXELS // source.n_pixels)))


def _frames_to_emc(given: InputSettings, out: Path, notes: list[str]) -> Steps:
    source = _open(given)
    beside = _detector_beside(out)
    if source.detector is not None:
        _must_be_new(beside)
    notes.extend(source.notes)
    done, total = 0, source.n_frames or 0
    with EmcWriter(out, source.n_pixels) as file:
        for frames in _batches(source):
            file.write(frames)
            done += len(frames)
            yield done, total
    if source.detector is not None:
        write_detector(beside, source.detector)


def _frames_to_cxi(given: InputSettings, out: Path, notes: list[str]) -> Steps:
    source = _open(given)
    notes.extend(source.notes)
    return _to_cxi(source, given, out, {})


def _run_to_cxi(given: InputSettings, out: Path, notes: list[str]) -> Steps:
    path = given.sources[0]
    snapshot, frames = _read_with_energy(given, {"energy_eV", "distance_m"})
    opened, result = frames(), _result(snapshot, read_pose_columns(path)[0])
    source, used = _open(opened.model_copy(update={"binning": None})), snapshot.geometry
    if CENTRE_ASSUMED in source.notes and not (used and any(used.tangent)):
        notes.append(CENTRE_ASSUMED)
    if used is not None:  # an older version did not keep it
        _lay_over(source, used, opened, path)
        notes.append(_words_of(used))
    if background := snapshot.facts.get("uneven background"):
        notes.append(f"these frames are as they were taken, uneven background and all ({background})")
    return _to_cxi(binned(source, opened.binning or 1), opened, out, result)


def _lay_over(source: BatchedSource, used: UsedGeometry, given: InputSettings, run: Path) -> None:
    """Give frames the geometry and mask that a run used.

    Raises
    ------
    InputError
        If the frames are not those of the run.
    """
    if used.mask.size != source.n_pixels:
        raise InputError(
            f"{source.paths[0]} has frames of {source.n_pixels:,} pixels, but {run} was made of frames of "
            f"{used.mask.size:,}: bring back the file that it was made from"
        )
    if source.detector is None:
        return
    given_as, distance = in_rows(source.detector, str(source.paths[0])), _distance_m(source, given)
    # told by the response about the beam as given: about another it is a little off any
    along = source.beam.polarization or polarization_of(given_as, distance)
    source.beam = replace(source.beam, polarization=along)
    moved = through_beam(source.detector, np.array(used.tangent)) if any(used.tangent) else source.detector
    source.detector = moved.with_mask(used.mask)


def _words_of(used: UsedGeometry) -> str:
    distance, n = float(np.hypot(*used.moved)), int(used.left_out.sum())
    beam = f"the beam centre {distance:.2f} pixels from where the files have it" if distance else "the beam as given"
    return f"geometry and mask are those that the run used: {beam}, {n:,} pixel{'s' * (n != 1)} more left out"


def _read_with_energy(given: InputSettings, meant: set[str]) -> tuple[Snapshot, Callable[[], InputSettings]]:
    """A run's result, its volumes in Å where only now a photon energy is given; and what to open its frames with.

    Raises
    ------
    InputError
        If it has no result, knows its energy already, or other options are given than are `meant`.
    """
    path = given.sources[0]
    saved = read_run(path)
    if saved.snapshot is None:
        raise InputError(f"{path} has no result yet: wait for its first report")
    said = {name: value for name, value in given.model_dump().items() if value is not None and name != "sources"}
    for name in said:
        if name not in meant:
            option = name.split("_")[0] if name != "pixel_size_m" else "pixel-size"
            raise InputError(f"--{option} means nothing for this conversion of a run: leave it out")

    def frames() -> InputSettings:
        if saved.settings is None:
            raise InputError(f"{path} does not say which frames it is of: give the run folder")
        return saved.settings.input.model_copy(update=said)

    snapshot = saved.snapshot
    if given.energy_eV is None:
        return snapshot, frames
    if snapshot.intensity.units != "detector_voxel":
        raise InputError(f"{path} was made with its photon energy: leave out --energy")
    detector = _open(frames().model_copy(update={"energy_eV": None})).detector
    if detector is None or detector.units != "detector_voxel":
        raise InputError(f"{path}: its frames have another geometry by now: give the detector that it was made with")
    return _in_angstrom(snapshot, given.energy_eV / HC_EV_A / detector.ewald_radius), frames


def _in_angstrom(snapshot: Snapshot, voxel_invA: float) -> Snapshot:
    """The same result with its volumes in Å, for detector voxels of `voxel_invA`."""
    intensity = replace(
        snapshot.intensity, voxel_size=snapshot.intensity.voxel_size * voxel_invA, units="1/angstrom"
    )  # fmt: skip
    density = snapshot.density
    if density is not None:
        density = replace(density, voxel_size=density.voxel_size / voxel_invA, units="angstrom")
    return replace(snapshot, intensity=intensity, density=density)


def _to_cxi(
    source: BatchedSource, given: InputSettings, out: Path, result: dict[str, tuple[NDArray[Any], dict[str, Any]]]
) -> Steps:
    name = str(source.paths[0])
    if source.detector is None:
        raise InputError(f"{name} has no geometry, which CXI needs: give its detector file with --detector")
    if source.detector.energy_eV is None:
        raise InputError(f"{name} has no photon energy, which CXI needs: give it with --energy, in eV")
    detector = in_rows(source.detector, name)
    distance = _distance_m(source, given)
    done, total = 0, source.n_frames or 0
    # how bright first, then the frames: counts take no more bits than they need
    brightest = max(int(frames.count.max(initial=0)) for frames in _batches(source))
    with CxiWriter(
        out, detector, distance_m=distance, title=", ".join(path.name for path in source.paths),
        polarization=source.beam.polarization or polarization_of(detector, distance), most_photons=brightest,
    ) as file:  # fmt: skip
        for frames in _batches(source):
            file.write(frames)
            done += len(frames)
            yield done, total
        for column, values in source.identity(np.arange(total)).items():
            if column.endswith("Id"):
                file.put(f"entry_1/data_1/{column}", values)
        for column, (values, attributes) in result.items():
            file.put(f"entry_1/result_1/{column}", values, **attributes)


def _result(
    snapshot: Snapshot, poses: dict[str, NDArray[Any]]
) -> dict[str, tuple[NDArray[Any], dict[str, Any]]]:  # fmt: skip
    """The datasets of ``result_1``: volumes, and the poses as the run folder has them."""
    found: dict[str, tuple[NDArray[Any], dict[str, Any]]] = {
        name: (values, {"axes": "pose:x,y,z,w", "meaning": "lab to particle"} if name == "quaternion" else {})
        for name, values in poses.items()
    }  # fmt: skip
    for name, volume in (("intensity", snapshot.intensity), ("density", snapshot.density)):
        if volume is not None:
            found[name] = volume.data, {"axes": "z:y:x", "voxel_size": volume.voxel_size, "units": volume.units}
    return found


def _distance_m(source: BatchedSource, given: InputSettings) -> float:
    """Sample to detector, which a CXI file must say: as given, as the frames' file has it, or as the geometry does."""
    geometry = [path for path in (given.detector, *given.sources) if path is not None and _is_geom(path)]
    said = given.distance_m or source.beam.distance_m
    if said is None and geometry and isinstance(distance := read_geom(geometry[0]).distance, float):
        said = distance
    if said is None:
        raise InputError(f"{source.paths[0]} does not say how far the detector is: give --distance in metres")
    return said


def _is_geom(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return is_geom(file.read(4096))


def _geometry_to_dragonfly(given: InputSettings, out: Path, notes: list[str]) -> Steps:
    path = given.sources[0]
    if not _is_geom(path):
        raise InputError(f"{path} is a Dragonfly detector already: give a CrystFEL .geom")
    geometry = read_geom(path)
    beam = Beam(given.energy_eV, given.distance_m, given.pixel_size_m, given.polarization)
    detector, said, _ = geometry.detector(geometry.frame_shape, beam)
    notes.extend(said)
    write_detector(out, detector)
    yield 0, 0


def _run_to_mrc(given: InputSettings, out: Path, notes: list[str]) -> Steps:
    snapshot, _ = _read_with_energy(given, {"energy_eV"})
    if "intensity" in out.name:
        write_intensity(snapshot.intensity, out)
    elif snapshot.density is None:
        raise InputError(f"{given.sources[0]} has no density yet: for its intensity, name the file intensity.mrc")
    else:
        write_density(snapshot.density, out)
    yield 0, 0


def _run_to_table(given: InputSettings, out: Path, notes: list[str]) -> Steps:
    _read_with_energy(given, set())
    write_pose_table(out, *read_pose_columns(given.sources[0]))
    yield 0, 0
