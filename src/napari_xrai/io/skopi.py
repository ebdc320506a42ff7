"""HDF5 files of skopi, SpiniFEL and cmtip: simulated frames with the scattering vector of every pixel.

Layout and conventions: skopi's ``examples/scripts/sim_spinifel.py``, cmtip's ``cmtip/simulate.py`` (which divides its
photons by polarisation and solid angle). Vectors are (r̂ − ẑ)/λ in 1/m, as ours are in 1/Å.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ..core.detector import polarization_factor
from ..core.frames import HC_EV_A, Detector
from .batched import open_hdf5
from .dense import Hdf5Frames
from .dragonfly import fit_ewald_radius
from .glance import Glance
from .source import UNKNOWN_BEAM, Beam, InputError

POSITIONS = "pixel_position_reciprocal"
FRAMES = ("photons", "intensities", "slices")
SPHERE_TOLERANCE = 1e-3
LARGEST_BYTES = 2**30


class SkopiSource(Hdf5Frames):
    """Frames (N, panel, row, column) with their pixels' scattering vectors.

    Parameters
    ----------
    path : Path
    beam : Beam
        Wins over what the file says; beams of free-electron lasers are polarised along x unless told otherwise.

    Raises
    ------
    InputError
        If there are no frames, they are not photons even after undoing what these programs do to them, or the vectors
        do not lie on an Ewald sphere.
    """

    def __init__(self, path: Path, beam: Beam = UNKNOWN_BEAM) -> None:
        with open_hdf5(path) as file:
            name = next((n for n in FRAMES if isinstance(file.get(n), h5py.Dataset)), None)
            if name is None:
                raise InputError(f"{path} has {POSITIONS} but no frames: it needs a dataset photons or intensities")
            shape = file[name].shape[1:]
            s = _vectors(path, file, shape)
            given = [_per_pixel(file, n, len(s)) for n in ("polarization", "solid_angle")]
        super().__init__("skopi / SpiniFEL / cmtip frames (HDF5)", path, name, beam)
        if len(shape) == 3 and shape[0] == 1:  # one panel needs no axis of its own
            self.shape = (int(shape[1]), int(shape[2]))
        radius = fit_ewald_radius(s)
        if radius is None or not _on_sphere(s, radius):
            raise InputError(f"{path}: {POSITIONS} does not lie on an Ewald sphere: write (r - z)/wavelength in 1/m")
        along = beam.polarization or "x"
        direction = s / radius + [0.0, 0.0, 1.0]
        polarization = given[0] if given[0] is not None else polarization_factor(direction, along)
        # of a flat detector, up to a factor common to all pixels
        solid_angle = given[1] if given[1] is not None else direction[:, 2] ** 3
        response = polarization * solid_angle
        self.beam = beam.over(Beam(energy_eV=radius * HC_EV_A, polarization=along))
        if beam.polarization is None and given[0] is None:
            self.notes += ("polarised along x, as these programs have it",)
        detector = Detector(s, response / response.mean(), np.zeros(len(s), np.uint8), self.shape, radius, "1/angstrom")
        if beam.energy_eV is not None:
            detector = detector.with_energy(beam.energy_eV)
        self.look(
            detector,
            {
                "polarisation and solid angle": response, "solid angle": solid_angle, "polarisation": polarization,
            },
        )  # fmt: skip


def is_skopi(look: Glance) -> bool:
    """Whether this is a file of these programs."""
    return look.has(POSITIONS)


def _vectors(path: Path, file: h5py.File, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """(P, 3) in 1/Å, from either layout: (panel, row, column, 3) or (3, panel, row, column)."""
    node = file[POSITIONS]
    n = int(np.prod(shape))
    if node.size != 3 * n or node.dtype.kind != "f" or 8 * node.size > LARGEST_BYTES:
        raise InputError(f"{path}: {POSITIONS} has shape {node.shape}, the frames {shape}: they do not belong together")
    s = np.asarray(node[()], np.float64)
    last = s.shape[-1] == 3 and (s.shape[0] != 3 or s.shape[:-1] == shape)
    return (s.reshape(n, 3) if last else s.reshape(3, n).T) * 1e-10


def _per_pixel(file: h5py.File, name: str, n_pixels: int) -> NDArray[np.float64] | None:
    node: Any = file.get(name)
    if not isinstance(node, h5py.Dataset) or node.size != n_pixels or node.dtype.kind != "f":
        return None
    values = np.asarray(node[()], np.float64).ravel()
    return values if np.isfinite(values).all() and (values > 0).all() else None


def _on_sphere(s: NDArray[np.float64], radius: float) -> bool:
    distance = np.linalg.norm(s + np.array([0.0, 0.0, radius]), axis=1)
    return bool(np.abs(distance / radius - 1).max() < SPHERE_TOLERANCE)
