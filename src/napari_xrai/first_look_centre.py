"""Where the frames themselves have the beam, before any reconstruction."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .core.frames import Detector
from .core.pixels import Pixels, SparsePhotons, pixels_of
from .first_look import PIXELS_AT_ONCE
from .first_look_layout import Layout
from .io.binning import bin_detector, bin_frames, working_binning
from .io.source import InputError

if TYPE_CHECKING:
    from .io.source import FrameSource

MOST_FRAMES, MOST_PHOTONS = 4000, 8_000_000
"""That are asked: as many as a run asks."""


def find_centre(
    source: FrameSource, frames: NDArray[np.int64], detector: Detector, layout: Layout
) -> tuple[tuple[float, float] | None, str]:
    """Find the beam as a run does, by where photons mirror.

    Parameters
    ----------
    source : FrameSource
    frames : (N,) int64
        Positions of hits.
    detector : Detector
        With mask and beam as they are now.
    layout : Layout
        Its picture, with a centre.

    Returns
    -------
    centre : (row, column) or None
        In cells; None where photons mirror about the present one, or do not say.
    sentence : str
        What was found, where that is no other centre.

    Raises
    ------
    InputError
        If no photon is there to be asked.
    """
    from .core.settled_pixels import settle_pixels

    assert layout.centre is not None
    try:
        factor, cell = working_binning(detector), None
        if factor > 1:
            cell, detector = bin_detector(detector, factor)
        pixels = pixels_of(detector)
        photons = _photons(source, frames, cell, pixels)
        beam = settle_pixels(detector, pixels, photons, None, move=True).beam
    except ValueError as error:
        raise InputError(f"the beam cannot be found: {error}") from error
    if not any(beam.tangent):
        return None, beam.sentence.replace("the geometry has it", "the cross is")
    # to the left and up are +x and +y, rows and columns run the other way
    row, column = np.array(layout.centre) - np.array(beam.tangent)[::-1] / layout.pitch
    return (float(row), float(column)), beam.sentence


def _photons(
    source: FrameSource, frames: NDArray[np.int64], cell: NDArray[np.int32] | None, pixels: Pixels
) -> SparsePhotons:
    """Those of `frames`, evenly chosen if they are too many, on `pixels`."""
    chosen = frames[np.linspace(0, len(frames) - 1, min(len(frames), MOST_FRAMES)).astype(np.int64)]
    at_once = max(1, PIXELS_AT_ONCE // source.n_pixels)
    parts: list[SparsePhotons] = []
    for start in range(0, len(chosen), at_once):
        read = source.read(chosen[start : start + at_once])
        parts.append(pixels.sparse(read if cell is None else bin_frames(read, cell, len(pixels.rank))))
        if sum(len(part.pixel) for part in parts) > MOST_PHOTONS:
            break
    if not any(len(part.pixel) for part in parts):
        raise ValueError("no photon is on a usable pixel of these hits: look at more frames, or mend the mask")
    return SparsePhotons.concatenate(parts)
