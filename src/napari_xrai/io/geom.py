"""Panels of a CrystFEL geometry file, placed in the lab frame and in the frames' array.

CrystFEL's lab frame is ours: +z along the beam, +y up, right-handed. `geom_text` reads the file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..core.detector import detector_from_positions
from ..core.frames import BAD, GOOD, Detector
from .geom_mask import BadBox, DetectorMask, masked_by_boxes, read_detector_mask
from .hdf5_value import read_number
from .source import UNKNOWN_BEAM, Beam, InputError
from .units import check_distance_m, check_energy_eV, in_base_unit


@dataclass(frozen=True, eq=False)
class Panel:
    """One flat panel: where it lies in the frame, and where in the lab.

    Parameters
    ----------
    name : str
    axes : tuple of "ss", "fs" or int
        What each axis of one frame is: slow scan, fast scan, or the position along it that the panel has.
    span : (min_ss, max_ss, min_fs, max_fs)
        Pixels in the frame, both ends included.
    corner_m : (3,) float64
        Outer corner of its first pixel, metres; z without the detector distance.
    step_m : (2, 3) float64
        One pixel along slow and along fast scan.
    ignored : bool
        ``no_index``.
    edge : int
        Rows of pixels along the panel's edges that are bad.
    """

    name: str
    axes: tuple[str | int, ...]
    span: tuple[int, int, int, int]
    corner_m: NDArray[np.float64]
    step_m: NDArray[np.float64]
    ignored: bool
    edge: int

    def centres_m(self) -> NDArray[np.float64]:
        """(ss, fs, 3) pixel centres, metres; z without the detector distance."""
        min_ss, max_ss, min_fs, max_fs = self.span
        slow, fast = np.arange(max_ss - min_ss + 1) + 0.5, np.arange(max_fs - min_fs + 1) + 0.5
        return np.asarray(
            self.corner_m + slow[:, None, None] * self.step_m[0] + fast[None, :, None] * self.step_m[1], np.float64
        )

    def region(self) -> tuple[int | slice, ...]:
        """Its pixels as an index into one frame."""
        min_ss, max_ss, min_fs, max_fs = self.span
        slices = {"ss": slice(min_ss, max_ss + 1), "fs": slice(min_fs, max_fs + 1)}
        return tuple(axis if isinstance(axis, int) else slices[axis] for axis in self.axes)


@dataclass(frozen=True, eq=False)
class GeomFile:
    """A geometry file, read.

    Parameters
    ----------
    path : Path
    panels : tuple of Panel
    boxes : tuple of BadBox
        Bad regions.
    masks : tuple of DetectorMask
        Masks in other files, or in the frames' own.
    distance, energy : float, str or None
        ``clen`` in metres and photon energy in eV, or the HDF5 path and its unit, as ``"path unit"``.
    shift_m : (2,) float64
        Of the whole detector in x and y.
    """

    path: Path
    panels: tuple[Panel, ...]
    boxes: tuple[BadBox, ...]
    masks: tuple[DetectorMask, ...]
    distance: float | str | None
    energy: float | str | None
    shift_m: NDArray[np.float64]

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """The smallest frame that holds all panels."""
        tops = [
            [axis + 1 if isinstance(axis, int) else panel.span[1 if axis == "ss" else 3] + 1 for axis in panel.axes]
            for panel in self.panels
        ]
        return tuple(int(n) for n in np.max(tops, axis=0))

    def placed(self, shape: tuple[int, ...]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
        """Where the pixels of a frame of `shape` are.

        Parameters
        ----------
        shape : tuple of int
            Of one frame; stacked modules may be given as one tall image or the other way round.

        Returns
        -------
        centre_m : (P, 3) float64
            z without the detector distance.
        area_m2 : (P, 3) float64
            Slow step × fast step.
        bad : (P,) bool
            On no panel, on an ignored one, or in a bad region.

        Raises
        ------
        InputError
            If the panels do not fit such a frame.
        """
        layout = self._layout(shape)
        centre, area = np.zeros((*layout, 3)), np.zeros((*layout, 3))
        bad = np.ones(layout, np.bool_)
        shift = np.array([*self.shift_m, 0.0])
        for panel in self.panels:
            at = panel.region()
            centre[at] = panel.centres_m() + shift
            area[at] = np.cross(panel.step_m[0], panel.step_m[1])
            here = np.full(bad[at].shape, panel.ignored)
            if panel.edge:
                inner = slice(panel.edge, -panel.edge)
                here |= ~np.pad(np.ones_like(here[inner, inner]), panel.edge)
            bad[at] = here
        for box in self.boxes:
            bad |= masked_by_boxes(box, self.panels, centre, layout)
        return centre.reshape(-1, 3), area.reshape(-1, 3), bad.ravel()

    def _layout(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The frame as the geometry's axes see it."""
        own = self.frame_shape
        if len(own) == len(shape) and all(a <= b for a, b in zip(own, shape, strict=True)):
            return shape
        if math.prod(own) == math.prod(shape) and own[-1] in (shape[-1], math.prod(shape)):
            return own
        if len(shape) == 1 and math.prod(own) == shape[0]:
            return own
        raise InputError(
            f"{self.path} describes frames of shape {own} but these have shape {shape}: "
            "give the geometry file of this detector"
        )

    def detector(
        self, shape: tuple[int, ...], beam: Beam = UNKNOWN_BEAM, frames: Path | None = None
    ) -> tuple[Detector, tuple[str, ...], tuple[str, ...]]:
        """The detector for frames of `shape`.

        Parameters
        ----------
        beam : Beam
            Energy and distance win over the file's.
        frames : Path, optional
            The frames' HDF5 file, where distance, energy and masks may lie.

        Returns
        -------
        detector : Detector
        notes, missing : tuple of str
            What was assumed, and what the user could still say.

        Raises
        ------
        InputError
            If the frames do not fit, the distance is missing, or a number is in another unit than it says.
        """
        centre, area, bad = self.placed(shape)
        distance = beam.distance_m if beam.distance_m is not None else self._number(self.distance, frames, "clen")
        if distance is None:
            raise InputError(f"{self.path} does not say how far the detector is (clen): give --distance in metres")
        centre[:, 2] += check_distance_m(distance, f"{self.path}: clen" if beam.distance_m is None else "--distance")
        energy = beam.energy_eV if beam.energy_eV is not None else self._number(self.energy, frames, "photon_energy")
        if energy is not None:
            check_energy_eV(energy, f"{self.path}: photon energy" if beam.energy_eV is None else "--energy")
        notes: list[str] = []
        for mask in self.masks:
            found = read_detector_mask(mask, self.path, frames, len(bad))
            if isinstance(found, str):
                notes.append(found)
            else:
                bad |= found
        detector = detector_from_positions(
            centre, area, shape, energy_eV=energy, polarization=beam.polarization or "none",
            mask=np.where(bad, BAD, GOOD).astype(np.uint8),
        )  # fmt: skip
        unsaid = {"polarisation": beam.polarization, "wavelength": energy}
        return detector, tuple(notes), tuple(name for name, value in unsaid.items() if value is None)

    def _number(self, value: float | str | None, frames: Path | None, what: str) -> float | None:
        """A literal number, or the one at an HDF5 path in the frames' file, in m or eV; None if it is not there."""
        if not isinstance(value, str):
            return value
        location, unit = value.rsplit(" ", 1)
        number = read_number(frames, location) if frames is not None else None
        return None if number is None else in_base_unit(number, unit, f"{self.path}: {what}")
