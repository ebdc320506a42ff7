"""NeXus NXmx files, Eiger's among them: frames in one dataset, or in several one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ..core.detector import detector_from_panels, detector_from_positions, square_panel
from ..core.frames import BAD, Detector
from .batched import open_hdf5
from .chunks import check_chunks
from .compression import require_readable
from .cxi_geometry import SPREAD_WORTH_SAYING
from .dense import DenseSource
from .glance import Glance
from .nexus_geometry import beam_energy_eV, energy_spread, length_m, module_groups, module_pixels, nexus_text
from .source import CENTRE_ASSUMED, UNKNOWN_BEAM, Beam, InputError
from .views import check_view

REJECT_BITS = 0xFFFF
"""NXmx: the upper half of a pixel's mask is no reason to reject it."""
MASKS_READ = 20


class NexusSource(DenseSource):
    """Frames of an NXmx file.

    Parameters
    ----------
    path : Path
    beam : Beam
        What the file does not say, or says wrongly: this wins.

    Raises
    ------
    InputError
        If there are no frames, a linked file is gone, or the geometry makes no sense.
    """

    def __init__(self, path: Path, beam: Beam = UNKNOWN_BEAM) -> None:
        with open_hdf5(path) as file:
            entry = _require_entry(path, file)
            detector = _detector_group(entry)
            blocks = _frames(path, entry, detector)
            self._names, data = list(blocks), list(blocks.values())
            shape = (sum(node.shape[0] for node in data), *data[0].shape[1:])
            own = Beam(
                beam_energy_eV(_beams(entry)), length_m(detector, "distance"), length_m(detector, "x_pixel_size")
            )
            spread = energy_spread(_beams(entry)) if beam.energy_eV is None else 0.0
            beam = beam.over(own)
            super().__init__("NeXus NXmx", path, shape, data[0].dtype, beam, f"{path}: {self._names[0]}")
            if spread > SPREAD_WORTH_SAYING:
                self.notes += (
                    f"the photon energy varies by {100 * spread:.2g}% from shot to shot: its median is used",
                )
            self.mask = self._read_mask(detector, data[0])
            geometry = self._geometry(detector, own)
        missing = [("geometry", geometry is None), ("polarisation", geometry and beam.polarization is None)]
        self.missing = tuple(name for name, lacks in [*missing, ("wavelength", beam.energy_eV is None)] if lacks)
        self.look(geometry)

    @contextmanager
    def _array(self) -> Iterator[Any]:
        with open_hdf5(self.paths[0]) as file:
            yield _Stack([file[name] for name in self._names])

    def _read_mask(self, detector: h5py.Group, data: h5py.Dataset) -> NDArray[np.uint8]:
        """The file's pixel mask; and where the largest value that its type has stands for none."""
        bad = np.zeros(self.n_pixels, bool)
        for name in detector:
            node = detector.get(name)
            if not str(name).startswith("pixel_mask") or not isinstance(node, h5py.Dataset) or node.ndim < 2:
                continue
            check_chunks(node, f"{self.what}: {node.name}")
            bits = np.asarray(node[:MASKS_READ] if node.ndim > len(self.shape) else node[()][None]).astype(np.int64)
            if bits[0].size != self.n_pixels:
                raise InputError(f"{self.what}: {node.name} has shape {node.shape}, not a frame's: correct the mask")
            bad |= (bits.reshape(len(bits), -1) & REJECT_BITS).any(axis=0)
        if data.dtype.kind == "u":
            bad |= np.asarray(data[0]).reshape(-1) == np.iinfo(data.dtype).max
        return np.where(bad, BAD, 0).astype(np.uint8)

    def _geometry(self, detector: h5py.Group, own: Beam) -> Detector | None:
        beam = self.beam
        options: dict[str, Any] = {"energy_eV": beam.energy_eV, "polarization": beam.polarization or "none"}
        placed = module_pixels(detector, self.shape)
        assert self.mask is not None
        if placed is not None:
            centre, area, outside = placed
            mask = np.maximum(self.mask, outside)
            if beam.distance_m is not None and beam.distance_m != own.distance_m:
                centre[:, 2] += beam.distance_m - np.median(centre[mask != BAD, 2])
            if np.median(centre[:, 2]) > 0:
                return detector_from_positions(centre, area, self.shape, mask=mask, **options)
        if len(self.shape) != 2 or not beam.distance_m or not beam.pixel_size_m:
            return None
        panel = square_panel((self.shape[0], self.shape[1]), beam.pixel_size_m, beam.distance_m)
        middle = [_beam_centre(detector, name, beam.pixel_size_m) for name in ("beam_center_x", "beam_center_y")]
        if None in middle:
            self.notes += (CENTRE_ASSUMED,)
        else:
            panel.corner_m[0, :2] = middle
        return detector_from_panels(panel, mask=self.mask, **options)


class _Stack:
    """Datasets one after the other, read like one."""

    def __init__(self, parts: list[h5py.Dataset]) -> None:
        self._parts = parts

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        pieces, first = [], 0
        for part in self._parts:
            lo, hi = max((rows.start or 0) - first, 0), min(rows.stop - first, part.shape[0])
            if lo < hi:
                pieces.append(part[lo:hi])
            first += part.shape[0]
        return np.concatenate(pieces)


def is_nexus(look: Glance) -> bool:
    """Whether this is a NeXus file with frames of a detector."""
    return look.hdf5 is not None and _find_entry(look.hdf5) is not None


def _find_entry(file: h5py.File) -> h5py.Group | None:
    """By its parts, not by its classes: reading text of varying length from a damaged file can end the process."""
    for node in file.values():
        if isinstance(node, h5py.Group) and isinstance(node.get("data"), h5py.Group) and _detectors(node):
            return node
    return None


def _detectors(entry: h5py.Group) -> list[h5py.Group]:
    """Groups of the instrument that describe a detector."""
    instrument = entry.get("instrument")
    groups = instrument.values() if isinstance(instrument, h5py.Group) else ()
    own = ("distance", "pixel_mask", "x_pixel_size", "beam_center_x", "data")
    return [g for g in groups if isinstance(g, h5py.Group) and (any(n in g for n in own) or module_groups(g))]


def _require_entry(path: Path, file: h5py.File) -> h5py.Group:
    entry = _find_entry(file)
    if entry is None:
        raise InputError(f"{path} has no entry/instrument: it is no complete NXmx file")
    return entry


def _detector_group(entry: h5py.Group) -> h5py.Group:
    found = _detectors(entry)
    if len(found) != 1:
        raise InputError(f"{entry.file.filename} describes {len(found)} detectors: give a file of one detector")
    return found[0]


def _frames(path: Path, entry: h5py.Group, detector: h5py.Group) -> dict[str, h5py.Dataset]:
    """The frames' datasets by name: ``data``, or ``data_000001`` and so on, which Eiger links from other files."""
    group = entry.get("data")
    for holder in (group, detector):
        node = holder.get("data") if isinstance(holder, h5py.Group) else None
        if isinstance(node, h5py.Dataset) and node.ndim in (3, 4):
            return _checked(path, {f"{holder.name}/data": node})
    names = sorted(n for n in map(str, group) if n.startswith("data_")) if isinstance(group, h5py.Group) else []
    found = {f"{group.name}/{name}": group.get(name) for name in names}
    gone = [name for name, node in found.items() if not isinstance(node, h5py.Dataset)]
    if gone:
        where = getattr(group.file.get(gone[0], getlink=True), "filename", gone[0])
        raise InputError(
            f"{path}: {len(gone)} of {len(names)} blocks of frames are links to files that are not there, {where} "
            "for one: bring them back"
        )
    if not found:
        raise InputError(f"{path} has no dataset entry/data/data: it holds no frames")
    return _checked(path, found)


def _checked(path: Path, data: dict[str, h5py.Dataset]) -> dict[str, h5py.Dataset]:
    if len({(node.shape[1:], node.dtype) for node in data.values()}) != 1:
        raise InputError(f"{path}: its blocks of frames have different shapes: give them one by one")
    require_readable(path, *data.values())
    for name, node in data.items():
        absent = check_view(path, node)
        if absent is not None:
            n = int(absent.any(axis=1).sum())
            raise InputError(f"{path}: {n:,} frames of {name} have parts that come from no file: make it again")
    return data


def _beams(entry: h5py.Group) -> list[h5py.Group]:
    found = [entry.get(name) for name in ("instrument/beam", "instrument/beam_1", "sample/beam", "beam")]
    return [node for node in found if isinstance(node, h5py.Group)]


def _beam_centre(detector: h5py.Group, name: str, pixel_m: float) -> float | None:
    """Metres from the frame's corner; given in pixels unless it says otherwise."""
    node = detector.get(name)
    if not isinstance(node, h5py.Dataset) or node.size != 1:
        return None
    if nexus_text(node.attrs.get("units")).lower() in ("", "pixel", "pixels"):
        return float(np.ravel(node[()])[0]) * pixel_m
    return length_m(detector, name)
