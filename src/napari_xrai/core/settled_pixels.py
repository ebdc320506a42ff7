"""Pixels as the frames show them to be: without those that lie, about the beam where it is, with what else lights
them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .beam_centre import Beam, find_beam, moved_pixels
from .frames import BAD, GOOD, MERGE_ONLY, Detector, UsedGeometry
from .odd_pixels import leave_out_odd_pixels
from .pixels import LARGEST_RADIUS, Pixels, SparsePhotons, pixel_step
from .speckle import Speckle, measure_speckle
from .uneven_background import find_uneven_background

NARROW_SPECKLE = 4.2
"""Voxels: look-ups between voxels flatten narrower ones, so that poses are half as far off again as
they need be, and equal parts of a particle are bent against one another.
"""

FINER = 1.5
"""Then so many voxels take the place of one, along each axis."""


@dataclass(frozen=True, eq=False)
class SettledPixels:
    """What is worked with.

    Parameters
    ----------
    pixels : Pixels
    frames : SparsePhotons
        On these pixels.
    speckle : Speckle
    beam : Beam
    finer : float
        Voxels to a voxel of the pixels given.
    facts : dict
        What was found and done, to be shown.
    """

    pixels: Pixels
    frames: SparsePhotons
    speckle: Speckle
    beam: Beam
    finer: float
    facts: dict[str, str]


def settle_pixels(
    detector: Detector, pixels: Pixels, frames: SparsePhotons, beam: Beam | None, move: bool, take_out: bool = True,
    finer: float | None = None,
) -> SettledPixels:  # fmt: skip
    """Leave out odd pixels, put the beam where photons mirror, find an uneven background, and choose the voxel.

    Parameters
    ----------
    detector : Detector
        As given.
    pixels : Pixels
        All that are usable on it.
    frames : SparsePhotons
        A few thousand on `pixels`.
    beam : Beam or None
        Where it was found before; None: to be found.
    move : bool
        Whether a geometry may be corrected.
    take_out : bool
        Whether an uneven background is to be taken out.
    finer : float or None
        Voxels to a voxel of `pixels`; None: as speckles ask.
    """
    kept, on_kept, facts = leave_out_odd_pixels(pixels, frames)
    speckle = measure_speckle(kept, on_kept)
    beam = beam or find_beam(detector, kept, on_kept, speckle.size, move, take_out)
    if any(beam.tangent):  # which pixels lie is told by their neighbours at the same |q|: ask again
        kept, on_kept, facts = leave_out_odd_pixels(*moved_pixels(detector, beam, pixels, frames))
        speckle = measure_speckle(kept, on_kept)
    if beam.sentence:
        facts = facts | {"beam centre": beam.sentence}
    lit, on_lit, sentence = find_uneven_background(kept, on_kept)
    if sentence:
        shaded = len(kept.rho) - len(lit.rho)
        done = "left in, as asked" if not take_out else "taken out"
        done += f"; {shaded} pixels in a shadow left out" if take_out and shaded else ""
        facts = facts | {"uneven background": f"{sentence}: {done}"}
    if sentence and take_out:
        kept, on_kept, speckle = lit, on_lit, measure_speckle(lit, on_lit)
    finer = finer or finer_voxels(kept, speckle)
    if finer != 1:
        facts = facts | {"voxels": f"{finer:g} times finer, for speckles would be {speckle.size:.1f} voxels wide"}
        kept, speckle = kept.on_finer_voxels(finer), replace(speckle, diameter=speckle.diameter / finer)
    return SettledPixels(kept, on_kept, speckle, beam, finer, facts)


def finer_voxels(pixels: Pixels, speckle: Speckle) -> float:
    """How many voxels are to take the place of one, along each axis, for look-ups to follow the speckles."""
    narrow = speckle.sampled and speckle.size < NARROW_SPECKLE
    return FINER if narrow and FINER * pixels.orient_radius <= LARGEST_RADIUS else 1.0


def used_geometry(detector: Detector, pixels: Pixels, beam: Beam) -> UsedGeometry:
    """What was made of the `detector` as given, to be kept with the poses: they are right for nothing else."""
    kind = np.where(pixels.rank < pixels.n_orient, GOOD, MERGE_ONLY)
    mask = np.where(pixels.rank < 0, BAD, kind).astype(np.uint8)
    pitch = pixel_step(detector.q[pixels.on_detector])
    x, y = np.array(beam.tangent) * detector.ewald_radius / pitch
    left_out = (mask == BAD) & (detector.mask < BAD)
    return UsedGeometry(
        beam.tangent, (float(x), float(y)), mask.reshape(detector.shape), left_out.reshape(detector.shape)
    )
