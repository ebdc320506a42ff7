"""Beam, panels and background of a CXI file, as the standard and as those who write it have them."""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ..core.detector import Panels, Polarization, square_panel
from .cxi_mask import DETECTOR
from .source import CENTRE_ASSUMED, Beam, InputError
from .units import JOULE_PER_EV, check_distance_m, check_energy_eV, check_pixel_size_m

SOURCE = "entry_1/instrument_1/source_1"
SPREAD_WORTH_SAYING = 1e-5
"""Of a quantity, from shot to shot, relative: below it writers only round."""


class CxiExperiment:
    """What a CXI file says besides its frames; what had to be assumed is in `notes`.

    Parameters
    ----------
    file : h5py.File
    n_frames : int
    shape : tuple of int
        Of a frame: (y, x) or (module, y, x).
    beam : Beam
        What the user said: it wins.

    Raises
    ------
    InputError
        If a length or an energy makes no sense.
    """

    def __init__(self, file: h5py.File, n_frames: int, shape: tuple[int, ...], beam: Beam) -> None:
        self.notes: list[str] = []
        self._file, self._n_frames, self._shape = file, n_frames, shape
        self._given_distance = beam.distance_m is not None
        own = Beam(
            self._energy_eV(),
            self._checked("distance", check_distance_m),
            self._checked("x_pixel_size", check_pixel_size_m),
            self._polarization(),
        )
        self.beam = beam.over(own)

    def panels(self) -> Panels | None:
        """The detector's panels; None where the file does not say enough.

        Raises
        ------
        InputError
            If it describes another number of modules than the frames have.
        """
        modules = self._shape[0] if len(self._shape) == 3 else 1
        corner = self._per_module(("corner_position", "corner_positions"), (modules, 3))
        step = self._per_module(("basis_vectors",), (modules, 2, 3))
        if corner is not None and step is not None:
            return self._placed(corner, step)
        distance, pixel = self.beam.distance_m, self.beam.pixel_size_m
        if len(self._shape) == 2 and distance and pixel:
            self.notes.append(CENTRE_ASSUMED)
            return square_panel((self._shape[0], self._shape[1]), pixel, distance)
        return None

    def positions_m(self) -> NDArray[np.float64] | None:
        """(P, 3) where every pixel is, for modules that are not flat; None where the file does not say, in metres.

        Only in double precision, as we write it, and with its unit: the map of this name that SPI groups write is a
        legacy in single precision, its z one value for all, and their panels say more.
        """
        node = self._file.get(f"{DETECTOR}/xyz_map")
        if not isinstance(node, h5py.Dataset) or node.shape != (3, *self._shape) or node.dtype != "f8":
            return None
        if self._given_distance or node.attrs.get("units") != "m":
            return None
        return np.asarray(np.moveaxis(node[()], 0, -1).reshape(-1, 3), np.float64)

    def background(self) -> NDArray[np.float64] | None:
        """(P,) Background photons per frame: ``data_white``, times the shots' mean ``background_weighting``.

        Raises
        ------
        InputError
            If it has another shape than the frames.
        """
        node = self._file.get(f"{DETECTOR}/data_white")
        if not isinstance(node, h5py.Dataset) or node.dtype.kind not in "iuf":
            return None
        if node.size != int(np.prod(self._shape)):
            raise InputError(
                f"{self._file.filename}: {node.name} has {node.size:,} pixels but a frame has "
                f"{int(np.prod(self._shape)):,}: correct it, or take it out"
            )
        weight = self._values(f"{DETECTOR}/background_weighting")
        mean = float(weight.mean()) if len(weight) else 1.0
        return np.clip(np.nan_to_num(np.asarray(node[()], np.float64).ravel()), 0, None) * mean

    def _energy_eV(self) -> float | None:
        """Median over the shots."""
        values = self._values(f"{SOURCE}/energy")
        if not len(values):
            return None
        what = f"{self._file.filename}: {SOURCE}/energy"
        energies = values / JOULE_PER_EV
        if np.median(values) > 1:  # no photon has a joule: the writer forgot to convert
            self.notes.append("the photon energy is not in joule: taken as eV")
            energies = values
        energy = check_energy_eV(float(np.median(energies)), what)
        self._say_spread("photon energy", energies)
        return energy

    def _say_spread(self, what: str, values: NDArray[np.float64]) -> None:
        """All frames are read with one number; it is said where it is not the same for all."""
        spread = float(np.subtract(*np.percentile(values, [95, 5])) / np.median(values))
        if spread > SPREAD_WORTH_SAYING:
            self.notes.append(f"the {what} varies by {100 * spread:.2g}% from shot to shot: its median is used")

    def _polarization(self) -> Polarization | None:
        node = self._file.get(f"{SOURCE}/polarization")
        value = node[()] if isinstance(node, h5py.Dataset) and node.shape == () else None
        text = value.decode(errors="replace") if isinstance(value, bytes) else value
        known: dict[Any, Polarization] = {"x": "x", "y": "y", "none": "none"}
        return known.get(text)

    def _checked(self, name: str, check: Any) -> float | None:
        values = self._values(f"{DETECTOR}/{name}")
        if not len(values):
            return None
        value: float = check(float(np.median(values)), f"{self._file.filename}: {DETECTOR}/{name}")
        self._say_spread(name.replace("_", " "), values)
        return value

    def _values(self, name: str) -> NDArray[np.float64]:
        """Positive values of a scalar, or of a quantity with one value per shot."""
        node = self._file.get(name)
        if not isinstance(node, h5py.Dataset) or node.dtype.kind not in "iuf" or node.shape is None:
            return np.zeros(0)
        if node.ndim > 1 or node.size > max(self._n_frames, 1) * 2:
            return np.zeros(0)
        values = np.asarray(node[()], np.float64).ravel()[: self._n_frames]
        return values[np.isfinite(values) & (values > 0)]

    def _per_module(self, names: tuple[str, ...], shape: tuple[int, ...]) -> NDArray[np.float64] | None:
        """A quantity of every module; of files that repeat it for every shot, the first shot's."""
        node = next((n for n in map(self._file.get, [f"{DETECTOR}/{n}" for n in names]) if n is not None), None)
        if not isinstance(node, h5py.Dataset) or node.dtype.kind not in "iuf":
            return None
        size = int(np.prod(shape))
        repeated = node.ndim > 1 and node.shape[0] >= self._n_frames and int(np.prod(node.shape[1:])) == size
        once = node[()] if node.size == size else node[0] if repeated else None
        if once is None:
            raise InputError(
                f"{self._file.filename}: {node.name} has shape {node.shape}, which does not describe {shape[0]} "
                f"module{'s' * (shape[0] != 1)}: correct it"
            )
        return np.asarray(once, np.float64).reshape(shape)

    def _placed(self, corner: NDArray[np.float64], step: NDArray[np.float64]) -> Panels | None:
        """Panels with z from the sample: writers give z either so, or from the detector's own plane."""
        corner = corner.copy()
        plane = float(np.median(corner[:, 2]))
        distance = self.beam.distance_m
        if distance is None:
            return Panels(corner, step, self._shape) if plane > 0 else None
        if self._given_distance:
            corner[:, 2] += distance - plane
        elif abs(plane) < distance / 2:
            corner[:, 2] += distance
        return Panels(corner, step, self._shape)
