"""CXI files: writing version 1.6, in the layout that facilities write."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from ..core.detector import Panels, Polarization, panels_from_detector
from ..core.frames import BAD, GOOD, Detector, Frames
from .atomic import make_room, unwritable
from .cxi_geometry import SOURCE
from .cxi_mask import DETECTOR, PIXEL_IS_BAD, PIXEL_IS_MERGE_ONLY
from .units import JOULE_PER_EV

CHUNK_BYTES = 262_144
CACHE_BYTES, RESERVE_BYTES = 1_000_000, 4_000_000
"""HDF5 holds so much back; room for that and its tables is kept free ahead of it."""

FLAT = 1e-6
"""Pixels may be so far from their panel, in pixels, for the panel to stand for them."""


class CxiWriter:
    """Writes frames to a CXI 1.6 file as they come; the file appears under its name when it is complete.

    Parameters
    ----------
    path : Path
    detector : Detector
        With frames of shape (y, x) or (module, y, x), and q in Å⁻¹. Where modules are not flat, the position of every
        pixel is written as well (``xyz_map``).
    distance_m : float
        Sample to detector.
    polarization : "x", "y", "none" or None
        None: not known, and not written.
    title : str
    most_photons : int, optional
        On any pixel of any frame: decides between 8, 16 and 32 bits per count. By default the first batch does.

    Raises
    ------
    InputError
        If the file cannot be written.
    ValueError
        If the detector has no wavelength or is not made of flat panels.

    Examples
    --------
    ::

        with CxiWriter(path, detector, distance_m=0.3, polarization="x") as out:
            for batch in frames:
                out.write(batch)
    """

    def __init__(
        self,
        path: Path,
        detector: Detector,
        *,
        distance_m: float,
        polarization: Polarization | None,
        title: str = "",
        most_photons: int | None = None,
    ) -> None:
        if detector.energy_eV is None:
            raise ValueError("a CXI file needs the photon energy; the detector has q in its own unit")
        panels, xyz = _panels(detector, distance_m)
        self.path, self._part = path, path.with_name(f".{path.name}.part")
        self._shape = detector.shape
        try:
            self._file = h5py.File(self._part, "w", rdcc_nbytes=CACHE_BYTES)
        except OSError as error:
            raise unwritable(path, error) from error
        self._reserve(32 * detector.n_pixels)
        _lay_out(self._file, detector, detector.energy_eV, panels, distance_m, polarization, title)
        if xyz is not None:
            self._file[f"{DETECTOR}/xyz_map"] = xyz
            self._file[f"{DETECTOR}/xyz_map"].attrs["units"] = "m"
        self._data: h5py.Dataset | None = None
        if most_photons is not None:
            self._data = _make_data(self._file, self._shape, np.min_scalar_type(most_photons))

    def write(self, frames: Frames) -> None:
        """Append a batch.

        Raises
        ------
        InputError
            If the disk is full.
        ValueError
            If a later batch is far brighter than the first, which decides between 16 and 32 bits per count.
        """
        counts = frames.dense()
        if self._data is None:
            # four times what the first batch holds, for the brighter pulses to come
            wide = counts.max(initial=0) > np.iinfo(np.uint16).max // 4
            self._data = _make_data(self._file, self._shape, np.dtype(np.uint32 if wide else np.uint16))
        if counts.max(initial=0) > np.iinfo(self._data.dtype).max:
            raise ValueError(f"a pixel has {counts.max():,} photons, too many for the {self._data.dtype} of this file")
        first = self._data.shape[0]
        self._reserve(self._data.dtype.itemsize * counts.size)
        self._data.resize(first + len(frames), axis=0)
        self._data[first:] = counts.reshape(-1, *self._shape).astype(self._data.dtype)

    def put(self, name: str, values: NDArray[Any], **attributes: Any) -> None:
        """Add a dataset of one's own, such as ``entry_1/result_1/fluence``.

        Raises
        ------
        InputError
            If the disk is full.
        """
        self._reserve(values.nbytes)
        self._file[name] = values
        self._file[name].attrs.update(attributes)

    def close(self) -> None:
        """Finish the file: it takes its name now."""
        if self._data is None:
            _make_data(self._file, self._shape, np.dtype(np.uint16))
        self._file.flush()
        size = self._file.id.get_filesize()
        self._file.close()
        try:
            os.truncate(self._part, min(size, self._part.stat().st_size))
            self._part.replace(self.path)
        except OSError as error:
            self._part.unlink(missing_ok=True)
            raise unwritable(self.path, error) from error

    def discard(self) -> None:
        """Give up: nothing is left behind."""
        self._file.close()
        self._part.unlink(missing_ok=True)

    def _reserve(self, n_bytes: int) -> None:
        """Ask the file system for room before HDF5 writes: a write that fails inside HDF5 brings the process down."""
        size = self._file.id.get_filesize() + n_bytes + n_bytes // 50 + RESERVE_BYTES
        try:
            make_room(self._part, size)
        except OSError as error:
            self.discard()
            raise unwritable(self.path, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        elif self._file:
            self.discard()


def _panels(detector: Detector, distance_m: float) -> tuple[Panels, NDArray[np.float64] | None]:
    """The detector's panels; and, where its modules are not flat, all pixels: (3, module, y, x) metres."""
    panels = panels_from_detector(detector, distance_m, tolerance=None)
    direction = detector.q / detector.ewald_radius + np.array([0.0, 0.0, 1.0])
    centre = direction * (distance_m / direction[:, 2:])
    pixel = float(np.linalg.norm(panels.step_m[:, 0], axis=1).min())
    if np.abs(panels.centres_m() - centre).max() <= FLAT * pixel:
        return panels, None
    return panels, np.moveaxis(centre.reshape(*detector.shape, 3), -1, 0)


def _lay_out(
    file: h5py.File, detector: Detector, energy_eV: float, panels: Panels, distance_m: float,
    polarization: Polarization | None, title: str,
) -> None:  # fmt: skip
    """Write everything but the frames."""
    modular = len(detector.shape) == 3
    file["cxi_version"] = 160
    entry = file.create_group("entry_1")
    entry["title"] = title
    file[f"{SOURCE}/energy"] = energy_eV * JOULE_PER_EV
    file[f"{SOURCE}/energy"].attrs["units"] = "J"
    if polarization is not None:
        file[f"{SOURCE}/polarization"] = polarization
    group = file.create_group(DETECTOR)
    # CXI counts corner positions from the sample's axis in the detector's plane; the distance is apart
    corner = panels.corner_m - [0.0, 0.0, distance_m]
    steps = np.linalg.norm(panels.step_m[0], axis=1)
    values: dict[str, Any] = {
        "distance": distance_m, "y_pixel_size": steps[0], "x_pixel_size": steps[1],
        "corner_position": corner if modular else corner[0],
        "basis_vectors": panels.step_m if modular else panels.step_m[0],
    }  # fmt: skip
    for name, value in values.items():
        group[name] = value
        group[name].attrs["units"] = "m"
    bits = np.select([detector.mask == BAD, detector.mask == GOOD], [PIXEL_IS_BAD, 0], PIXEL_IS_MERGE_ONLY)
    group["mask"] = bits.astype(np.uint32).reshape(detector.shape)
    group["mask"].attrs["axes"] = "module_identifier:y:x" if modular else "y:x"
    file.create_group("entry_1/data_1")["data"] = h5py.SoftLink(f"/{DETECTOR}/data")


def _make_data(file: h5py.File, shape: tuple[int, ...], dtype: np.dtype[Any]) -> h5py.Dataset:
    """Create the frames' dataset, empty, to grow along its first axis."""
    per_chunk = max(1, CHUNK_BYTES // (dtype.itemsize * int(np.prod(shape))))
    data = file[DETECTOR].create_dataset(
        "data", (0, *shape), dtype, maxshape=(None, *shape), chunks=(per_chunk, *shape),
        compression="gzip", compression_opts=1, shuffle=True,
    )  # fmt: skip
    data.attrs["axes"] = f"experiment_identifier:{file[DETECTOR]['mask'].attrs['axes']}"
    return data
