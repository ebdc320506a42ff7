"""Dragonfly's config.ini: photons and detector in one file; without a detector file, its numbers make one.

Keys and their units: Dragonfly's docs/user-guides/config.rst; paths are relative to the file.
"""

from __future__ import annotations

import configparser
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.detector import Panels, Polarization, detector_from_panels
from ..core.frames import BAD, GOOD, HC_EV_A, MERGE_ONLY, Detector
from .batched import BatchedSource, Rows
from .dragonfly import BinaryPhotons, Hdf5Photons, is_binary_emc, read_detector
from .experiment import join
from .glance import HDF5_MAGIC, Glance
from .source import CENTRE_ASSUMED, UNKNOWN_BEAM, Beam, InputError
from .units import check_distance_m, check_energy_eV, check_pixel_size_m

SECTION = re.compile(rb"^\s*\[(emc|make_data|make_detector|parameters)\]", re.MULTILINE)
PHOTONS = re.compile(rb"^\s*(in_photons_file|in_photons_list|out_photons_file)\s*[=:]", re.MULTILINE)
LONGEST_CHAIN = 10
MOST_BYTES = 2**20


class ConfiguredSource(BatchedSource):
    """The photons that a config.ini names, with its detector.

    Parameters
    ----------
    path : Path
    beam : Beam
        Wins over the file's wavelength, distance and pixel size.

    Raises
    ------
    InputError
        If a file that it names is gone, or it names no photons.
    """

    def __init__(self, path: Path, beam: Beam = UNKNOWN_BEAM) -> None:
        config = _Config(path)
        inner = join([_open_photons(photons) for photons in config.photons()])
        super().__init__(f"{inner.format}, by config.ini", inner.paths, inner.n_frames, inner.shape, ids=inner.ids)
        self._inner = inner
        self.beam = beam.over(config.beam())
        file = config.detector_file()
        if file is not None and file.is_file():
            detector, notes = read_detector(file)
            energy = self.beam.energy_eV
            detector = detector if energy is None else detector.with_energy(energy)
        else:
            detector, notes = config.detector(self.beam), ("the detector is made from the numbers in config.ini",)
            notes += () if config.has_centre() else (CENTRE_ASSUMED,)
        if detector.n_pixels != inner.n_pixels:
            raise InputError(
                f"{path}: its detector has {detector.n_pixels:,} pixels but its photons {inner.n_pixels:,}: correct it"
            )
        if len(detector.shape) == 2:
            self.shape = detector.shape
        self.detector, self.notes = detector, (*inner.notes, *notes, *config.ignored())
        self.missing = () if self.beam.energy_eV is not None else ("wavelength",)

    @contextmanager
    def _rows(self) -> Iterator[Rows]:
        with self._inner._rows() as rows:
            yield rows

    def _block(self) -> int:
        return self._inner._block()

    def identity(self, frames: NDArray[np.integer]) -> dict[str, NDArray[Any]]:
        """As of the photons' own files; see `BatchedSource.identity`."""
        return self._inner.identity(frames)


class _Config:
    """The file, its cross-references followed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._config = configparser.ConfigParser(strict=False, interpolation=None, inline_comment_prefixes=("#", ";"))
        try:
            if path.stat().st_size > MOST_BYTES:
                raise InputError(f"{path} is too large for a config.ini: give the photons themselves")
            self._config.read_string(path.read_text(errors="replace"))
        except configparser.Error as error:
            raise InputError(
                f"{path} cannot be read as config.ini ({str(error).splitlines()[0]}): correct it"
            ) from error

    def photons(self) -> list[Path]:
        for section, key in (("emc", "in_photons_file"), ("emc", "in_photons_list"), ("make_data", "out_photons_file")):
            named = self._file(section, key)
            if named is None:
                continue
            found = self._list(named) if key.endswith("list") else [named]
            for photons in found:
                if not photons.is_file():
                    raise InputError(
                        f"{self._path} names {photons} in [{section}] {key}, which is not there: bring it back"
                    )
            if found:
                return found
        raise InputError(f"{self._path} names no photons: it needs in_photons_file in [emc]")

    def detector_file(self) -> Path | None:
        for section, key in (
            ("emc", "in_detector_file"), ("emc", "in_detector_list"), ("make_data", "in_detector_file"),
            ("make_detector", "out_detector_file"),
        ):  # fmt: skip
            named = self._file(section, key)
            if named is None:
                continue
            found = sorted(set(self._list(named))) if key.endswith("list") else [named]
            if len(found) > 1:
                raise InputError(f"{self._path} names {len(found)} detectors: open the photons of one at a time")
            return found[0] if found else None
        return None

    def beam(self) -> Beam:
        wavelength, distance, pixel = (self._number(name) for name in ("lambda", "detd", "pixsize"))
        return Beam(
            None if wavelength is None else check_energy_eV(HC_EV_A / wavelength, f"{self._path}: lambda"),
            None if distance is None else check_distance_m(distance * 1e-3, f"{self._path}: detd"),
            None if pixel is None else check_pixel_size_m(pixel * 1e-3, f"{self._path}: pixsize"),
            self._polarization(),
        )

    def detector(self, beam: Beam) -> Detector:
        """As Dragonfly's make_detector would: rows along x, columns along y, counted from the beam."""
        size = self._numbers("parameters", "detsize")
        if not size or beam.distance_m is None or beam.pixel_size_m is None or beam.energy_eV is None:
            raise InputError(
                f"{self._path} names no detector file that is there, and lacks detd, lambda, detsize or pixsize to "
                "make one: add them, or bring the file back"
            )
        rows, columns = int(size[0]), int(size[-1])
        centre = self._centre() or [(rows - 1) / 2, (columns - 1) / 2]
        pixel = beam.pixel_size_m
        corner = np.array([[-(centre[0] + 0.5) * pixel, -(centre[-1] + 0.5) * pixel, beam.distance_m]])
        step = np.array([[[pixel, 0.0, 0.0], [0.0, pixel, 0.0]]])
        panels = Panels(corner, step, (rows, columns))
        mask = self._mask(panels, pixel, min(centre[0], centre[-1]))
        return detector_from_panels(
            panels, energy_eV=beam.energy_eV, polarization=beam.polarization or "none", mask=mask
        )

    def has_centre(self) -> bool:
        """Whether it says where the beam goes."""
        return bool(self._centre())

    def _centre(self) -> list[float]:
        return self._numbers("make_detector", "center")

    def ignored(self) -> tuple[str, ...]:
        """Choices of frames that are made elsewhere here."""
        found = [key for key in ("selection", "blacklist_file", "sel_file") if self._get("emc", key)]
        return tuple(f"[emc] {key} is not applied: choose frames by --select" for key in found)

    def _mask(self, panels: Panels, pixel: float, inner: float) -> NDArray[np.uint8]:
        radius = np.hypot(*panels.centres_m()[:, :2].T) / pixel
        file = self._file("make_detector", "in_mask_file")
        mask = np.where(radius < (self._number("stoprad") or 0.0), BAD, GOOD)
        if file is not None:
            mask = np.fromfile(file, np.uint8) if file.is_file() else np.zeros(0, np.uint8)
            if mask.size != radius.size:
                raise InputError(f"{self._path}: its mask {file} does not have {radius.size:,} pixels: bring it back")
        return np.where((radius > inner) & (mask == GOOD), MERGE_ONLY, np.minimum(mask, BAD)).astype(np.uint8)

    def _polarization(self) -> Polarization | None:
        known: dict[str, Polarization] = {"x": "x", "y": "y", "none": "none"}
        return known.get((self._get("parameters", "polarization") or "").lower())

    def _get(self, section: str, key: str) -> str | None:
        for _ in range(LONGEST_CHAIN):
            value = self._config.get(section, key, fallback=None)
            if value is None or ":::" not in value:
                return value.strip() if value else None
            section, _, key = (part.strip() for part in value.partition(":::"))
        raise InputError(f"{self._path}: {key} in [{section}] refers to itself: correct it")

    def _file(self, section: str, key: str) -> Path | None:
        value = self._get(section, key)
        return self._path.parent / value if value else None

    def _list(self, path: Path) -> list[Path]:
        if not path.is_file() or path.stat().st_size > MOST_BYTES:
            raise InputError(f"{self._path} names the list {path}, which is not there: bring it back")
        return [
            self._path.parent / line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()
        ]

    def _numbers(self, section: str, key: str) -> list[float]:
        try:
            return [float(word) for word in (self._get(section, key) or "").split()]
        except ValueError as error:
            raise InputError(f"{self._path}: {key} in [{section}] is no number: correct it") from error

    def _number(self, key: str) -> float | None:
        found = self._numbers("parameters", key)
        if found and not (np.isfinite(found[0]) and found[0] > 0):
            raise InputError(f"{self._path}: {key} is {found[0]}: give a positive number")
        return found[0] if found else None


def is_config(look: Glance) -> bool:
    """Whether this is a Dragonfly config.ini."""
    return look.hdf5 is None and bool(SECTION.search(look.head)) and bool(PHOTONS.search(look.head))


def _open_photons(path: Path) -> BatchedSource:
    with path.open("rb") as file:
        head = file.read(1024)
    if head.startswith(HDF5_MAGIC):
        return Hdf5Photons(path)
    if not is_binary_emc(head):
        raise InputError(f"{path} is no photons file: give .emc, binary or HDF5")
    return BinaryPhotons(path)
