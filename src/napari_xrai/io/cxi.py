"""CXI files (cxidb.org): reading versions 1.x with their two meanings of the mask."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ..core.detector import Panels, Polarization, detector_from_panels, square_panel
from ..core.frames import BAD, GOOD, MERGE_ONLY, Frames
from .batched import BatchedSource, Rows, check_header, dense_frames, open_hdf5
from .glance import Glance
from .source import UNKNOWN_BEAM, Beam, InputError

JOULE_PER_EV = 1.602176634e-19

# CXI 1.5 and later, section "mask": any of these bits makes a pixel unusable
REJECT_BITS = 0x69F
# before 1.5 bit 0 meant *valid*, and these meant trouble
OLD_VALID_BIT, OLD_REJECT_BITS = 0x1, 0x19E
PIXEL_IS_BAD, PIXEL_IS_MERGE_ONLY = 0x80, 0x100
"""Bad; and outside the resolution limits, which rejects nothing: merged, but not used for orientation."""

DETECTOR = "entry_1/instrument_1/detector_1"
SOURCE = "entry_1/instrument_1/source_1"
MASKS_READ = 100


class CxiSource(BatchedSource):
    """Frames of a CXI file: 3D (frame, y, x) or modular 4D (frame, module, y, x).

    Parameters
    ----------
    path : Path
    beam : Beam
        What the file does not say, or says wrongly: this wins.

    Raises
    ------
    InputError
        If there is no data, or it is not frames.
    """

    def __init__(self, path: Path, beam: Beam = UNKNOWN_BEAM) -> None:
        with open_hdf5(path) as file:
            data = find_data(file)
            if data is None:
                raise InputError(f"{path} has no dataset entry_1/data_1/data: it is no CXI file of frames")
            if data.ndim not in (3, 4):
                raise InputError(f"{path}: {data.name} has shape {data.shape}; expected frames of 2 or 3 axes")
            _check_links(path, data)
            if data.dtype.kind not in "uif":
                raise InputError(f"{path}: {data.name} holds {data.dtype}, not photon counts")
            shape = tuple(int(n) for n in data.shape[1:])
            check_header(path, int(data.shape[0]), int(np.prod(shape)))
            self._dataset = data.name
            version = _version(file)
            super().__init__(f"CXI {version // 100}.{version // 10 % 10}", (path,), int(data.shape[0]), shape)
            reader = _GeometryReader(file, path, shape, beam.distance_m, beam.pixel_size_m)
            mask = _read_mask(file, data, version)
            energy = beam.energy_eV if beam.energy_eV is not None else reader.energy_eV()
            polarization = beam.polarization or reader.polarization()
            panels = reader.panels()
        self.mask, self._bad = mask, mask == BAD
        missing = []
        if panels is None:
            missing.append("geometry")
        else:
            self.detector = detector_from_panels(
                panels, energy_eV=energy, polarization=polarization or "none", mask=mask
            )
            if polarization is None:
                missing.append("polarisation")
        if energy is None:
            missing.append("wavelength")
        self.notes, self.missing = tuple(reader.notes), tuple(missing)
        self.beam = beam.over(Beam(energy, polarization=polarization))

    @contextmanager
    def _rows(self) -> Iterator[Rows]:
        path = self.paths[0]
        with open_hdf5(path) as file:
            data = file[self._dataset]

            def rows(lo: int, hi: int) -> Frames:
                return dense_frames(data[lo:hi], lo, f"{path}: {self._dataset}", self._bad)

            yield rows


def is_cxi(look: Glance) -> bool:
    """Whether this is HDF5 laid out as a CXI file."""
    return look.hdf5 is not None and ("entry_1" in look.hdf5 or find_data(look.hdf5) is not None)


def find_data(file: h5py.File) -> h5py.Dataset | None:
    """The frames' dataset, wherever the file's links lead; None if there is none."""
    for name in ("entry_1/data_1/data", f"{DETECTOR}/data", "entry_1/data_1"):
        node = file.get(name)  # None, too, where a soft link leads nowhere
        if isinstance(node, h5py.Dataset):
            return node
    return None


def _check_links(path: Path, data: h5py.Dataset) -> None:
    """HDF5 fills the place of a missing file with zeros and says nothing: so this does."""
    for part in data.virtual_sources() if data.is_virtual else ():
        if part.file_name != "." and not (path.parent / part.file_name).exists():
            raise InputError(f"{path}: {data.name} is a view of {part.file_name}, which is not there: bring it back")


def _version(file: h5py.File) -> int:
    return int(np.ravel(file["cxi_version"][()])[0]) if "cxi_version" in file else 160


def _read_mask(file: h5py.File, data: h5py.Dataset, version: int) -> NDArray[np.uint8]:
    """Mask 0/1/2 of every pixel; a mask per frame counts where it rejects a pixel in any of the first frames."""
    n_pixels = int(np.prod(data.shape[1:]))
    for name in ("mask", "mask_shared"):
        node = file.get(f"{DETECTOR}/{name}")
        if not isinstance(node, h5py.Dataset):
            continue
        raw = node[:MASKS_READ] if node.ndim == data.ndim else node[()][None]
        bits = np.asarray(raw).astype(np.int64).reshape(len(raw), -1)
        if bits.shape[1] != n_pixels:
            raise InputError(
                f"{file.filename}: {node.name} has {bits.shape[1]:,} pixels but a frame has {n_pixels:,}: "
                "correct the mask"
            )
        euxfel = "trainId" in file["entry_1"] or f"{DETECTOR}/gain" in file
        bad = mask_rejects(bits, version, any_bit=euxfel).any(axis=0)
        merge_only = (bits & PIXEL_IS_MERGE_ONLY).any(axis=0) & (version >= 150)
        return np.where(bad, BAD, np.where(merge_only, MERGE_ONLY, GOOD)).astype(np.uint8)
    return np.zeros(n_pixels, np.uint8)


def mask_rejects(bits: NDArray[np.int64], version: int, *, any_bit: bool = False) -> NDArray[np.bool_]:
    """Which pixels a CXI mask makes unusable.

    Parameters
    ----------
    bits : integer array
    version : int
        100 × the CXI version. The bits changed their meaning at 150: before, bit 0 said *valid*.
    any_bit : bool
        Every set bit rejects: masks that the European XFEL's own programs copy into CXI files.
    """
    rejected: NDArray[np.bool_] = bits != 0 if any_bit else (bits & REJECT_BITS) != 0
    # programs that wrote 1.4 with zero for good pixels (Cheetah) set no valid bit anywhere
    if version < 150 and not any_bit and (bits & OLD_VALID_BIT).any():
        rejected = ((bits & OLD_VALID_BIT) == 0) | ((bits & OLD_REJECT_BITS) != 0)
    return rejected


class _GeometryReader:
    """Beam and geometry of a CXI file; what it had to assume is in `notes`."""

    def __init__(
        self, file: h5py.File, path: Path, shape: tuple[int, ...], distance_m: float | None, pixel_size_m: float | None
    ) -> None:
        self.notes: list[str] = []
        self._file, self._path, self._shape = file, path, shape
        self._distance = distance_m if distance_m is not None else self._number("distance")
        self._given_distance = distance_m is not None
        self._pixel = pixel_size_m if pixel_size_m is not None else self._number("x_pixel_size")

    def _number(self, name: str, group: str = DETECTOR) -> float | None:
        """A scalar or per-shot quantity; per shot, its median. None if absent or not positive."""
        node = self._file.get(f"{group}/{name}")
        if not isinstance(node, h5py.Dataset) or node.dtype.kind not in "iuf" or node.size == 0:
            return None
        values = np.asarray(node[()], np.float64).ravel()
        values = values[np.isfinite(values) & (values > 0)]
        return float(np.median(values)) if len(values) else None

    def energy_eV(self) -> float | None:
        joule = self._number("energy", SOURCE)
        if joule is None:
            return None
        if joule > 1:  # no photon has a joule: the writer forgot to convert
            self.notes.append("the photon energy is not in joule: taken as eV")
            return joule
        return joule / JOULE_PER_EV

    def polarization(self) -> Polarization | None:
        node = self._file.get(f"{SOURCE}/polarization")
        value = node[()] if isinstance(node, h5py.Dataset) else None
        text = value.decode() if isinstance(value, bytes) else value
        known: dict[Any, Polarization] = {"x": "x", "y": "y", "none": "none"}
        return known.get(text)

    def panels(self) -> Panels | None:
        corner = self._array("corner_position", "corner_positions")
        step = self._array("basis_vectors")
        modules = self._shape[0] if len(self._shape) == 3 else 1
        if corner is not None and step is not None:
            # merged files repeat the geometry for every event
            corner = corner.reshape(-1, 3)[:modules]
            step = step.reshape(-1, 2, 3)[:modules]
            if len(corner) != modules or len(step) != modules:
                raise InputError(
                    f"{self._path}: corner_position and basis_vectors do not describe {modules} modules: correct them"
                )
            return self._placed(corner, step)
        if len(self._shape) == 2 and self._distance and self._pixel:
            self.notes.append("the beam centre is not in the file: taken at the middle of the frame")
            return square_panel((self._shape[0], self._shape[1]), self._pixel, self._distance)
        return None

    def _placed(self, corner: NDArray[np.float64], step: NDArray[np.float64]) -> Panels | None:
        """Panels with z from the sample: writers give z either so, or from the detector's own plane."""
        corner = corner.copy()
        plane = float(np.median(corner[:, 2]))
        if self._distance is None:
            return Panels(corner, step, self._shape) if plane > 0 else None
        if self._given_distance:
            corner[:, 2] += self._distance - plane
        elif abs(plane) < self._distance / 2:
            corner[:, 2] += self._distance
        return Panels(corner, step, self._shape)

    def _array(self, *names: str) -> NDArray[np.float64] | None:
        for name in names:
            node = self._file.get(f"{DETECTOR}/{name}")
            if isinstance(node, h5py.Dataset):
                # one event's worth is enough, and bounds the memory where every event has its own
                array = np.asarray(node[0] if node.ndim == 4 or (node.ndim == 3 and node.shape[-2] != 2) else node[()])
                return array.astype(np.float64)
        return None
