"""Dragonfly's files, written: sparse binary photons and detectors, so that the same data runs in EMC."""

from __future__ import annotations

import io
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from ..core.frames import BAD, Detector, Frames
from ..core.pixels import pixel_step
from .atomic import replacing, unwritable
from .dragonfly import HEADER_BYTES, SPARSE

PARTS = ("ones", "multi", "place_ones", "place_multi", "count_multi")


class EmcWriter:
    """Writes frames to a sparse binary ``.emc`` file as they come; the file appears under its name when complete.

    The format has all frames' one-photon pixels before all others: they wait in temporary files beside it.

    Parameters
    ----------
    path : Path
    n_pixels : int

    Raises
    ------
    InputError
        If the file cannot be written.
    """

    def __init__(self, path: Path, n_pixels: int) -> None:
        self._path, self._n_pixels, self._n_frames = path, n_pixels, 0
        self._parts: dict[str, IO[bytes]] = {}
        self._open = ExitStack()
        try:
            for name in PARTS:
                self._parts[name] = self._open.enter_context(tempfile.TemporaryFile(dir=path.parent))  # noqa: SIM115
        except OSError as error:
            self._open.close()
            raise unwritable(path, error) from error

    def write(self, frames: Frames) -> None:
        """Append a batch.

        Raises
        ------
        InputError
            If the disk is full.
        """
        single = frames.count == 1
        row = np.repeat(np.arange(len(frames)), np.diff(frames.start))
        values = {
            "ones": np.bincount(row[single], minlength=len(frames)),
            "multi": np.bincount(row[~single], minlength=len(frames)),
            "place_ones": frames.pixel[single], "place_multi": frames.pixel[~single],
            "count_multi": frames.count[~single],
        }  # fmt: skip
        try:
            for name, part in self._parts.items():
                part.write(values[name].astype("<i4").tobytes())
        except OSError as error:
            raise unwritable(self._path, error) from error
        self._n_frames += len(frames)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._assemble()
        finally:
            self._open.close()

    def _assemble(self) -> None:
        header = np.zeros(HEADER_BYTES // 4, "<i4")
        header[:3] = self._n_frames, self._n_pixels, SPARSE
        with replacing(self._path) as part, part.open("wb") as file:
            file.write(header.tobytes())
            for name in PARTS:
                self._parts[name].seek(0)
                shutil.copyfileobj(self._parts[name], file, 2**20)


def write_detector(path: Path, detector: Detector) -> None:
    """Write a Dragonfly detector: ASCII where the name ends in ``.dat``, HDF5 otherwise.

    Parameters
    ----------
    detector : Detector
        q in Å⁻¹ is turned into Dragonfly's voxels: one pixel beside the beam.

    Raises
    ------
    InputError
        If it cannot be written.
    """
    step = 1.0
    if detector.units != "detector_voxel":
        # in the detector's plane, where pixels are equal: on the Ewald sphere they grow narrower away from the beam
        direction = detector.q[detector.mask < BAD] / detector.ewald_radius + np.array([0.0, 0.0, 1.0])
        step = detector.ewald_radius * pixel_step(direction / direction[:, 2:])
    q, radius = detector.q / step, detector.ewald_radius / step
    with replacing(path) as part:
        if path.suffix == ".dat":
            part.write_text(_as_text(q, radius, detector))
        else:
            part.write_bytes(_as_hdf5(q, radius, detector))


def _as_text(q: NDArray[np.float64], radius: float, detector: Detector) -> str:
    lines = [f"{len(q)} {radius:.17g} {radius:.17g}"]
    rows = zip(q, detector.response, detector.mask, strict=True)
    lines += [f"{x:.17g} {y:.17g} {z:.17g} {response:.17g} {mask}" for (x, y, z), response, mask in rows]
    return "\n".join(lines) + "\n"


def _as_hdf5(q: NDArray[np.float64], radius: float, detector: Detector) -> bytes:
    image = io.BytesIO()
    with h5py.File(image, "w") as file:
        for name, column in zip(("qx", "qy", "qz"), q.T, strict=True):
            file[name] = column
        file["corr"], file["mask"] = detector.response, detector.mask
        file["detd"] = file["ewald_rad"] = radius
        if detector.background is not None:
            file["background"] = detector.background
    return image.getvalue()
