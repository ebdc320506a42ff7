"""Pixels as the frames show them to be: without those that lie, about the beam where it is."""

from __future__ import annotations

from dataclasses import dataclass

from .beam_centre import Beam, find_beam, moved_pixels
from .frames import Detector
from .odd_pixels import leave_out_odd_pixels
from .pixels import Pixels, SparsePhotons
from .speckle import Speckle, measure_speckle


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
    facts : dict
        What was found and done, to be shown.
    """

    pixels: Pixels
    frames: SparsePhotons
    speckle: Speckle
    beam: Beam
    facts: dict[str, str]


def settle_pixels(
    detector: Detector, pixels: Pixels, frames: SparsePhotons, beam: Beam | None, move: bool
) -> SettledPixels:
    """Leave out odd pixels, and put the beam where photons mirror.

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
    """
    pixels, frames, facts = leave_out_odd_pixels(pixels, frames)
    speckle = measure_speckle(pixels, frames)
    beam = beam or find_beam(detector, pixels, frames, speckle.size, move)
    if beam.sentence:
        facts = facts | {"beam centre": beam.sentence}
    if any(beam.tangent):
        pixels, frames = moved_pixels(detector, beam, pixels, frames)
        speckle = measure_speckle(pixels, frames)
    return SettledPixels(pixels, frames, speckle, beam, facts)
