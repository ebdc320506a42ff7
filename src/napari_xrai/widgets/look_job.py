"""What the first look does beside the window: files are opened and frames summed in a worker."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..core.frames import Detector
from ..first_look import FirstLook, take_first_look
from ..first_look_layout import Layout, lay_out
from ..layers import LayerData, patterns_layer
from .inputs import Inputs, sorted_in
from .worker import Job

if TYPE_CHECKING:
    from ..io.source import FrameSource


@dataclass(frozen=True, eq=False)
class Opened:
    """Frames that were opened to be looked at.

    Parameters
    ----------
    source : FrameSource or None
        None while only a detector or a mask was given.
    layout, patterns : optional
        None where nobody can say how a list of pixels lies.
    mask : (P,) uint8
        0/1/2, as the files have it.
    """

    inputs: Inputs
    source: FrameSource | None = None
    detector: Detector | None = None
    layout: Layout | None = None
    patterns: LayerData | None = None
    mask: NDArray[np.uint8] | None = None
    missing: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """What the files hold and what they do not say."""
        if self.source is None:
            return "Now drop the frames that go with it." if self.inputs.detector or self.inputs.mask else ""
        said = f"{self.source.n_frames or 0:,} frames · {self.source.n_pixels:,} pixels"
        return f"{said} · {' and '.join(self.missing)} not in these files" if self.missing else said


def open_inputs(before: Inputs, paths: Sequence[Path]) -> Opened:
    """Open what was given before, and `paths`; the frames are not read but for their first few.

    Raises
    ------
    InputError
        If they cannot be used.
    """
    from ..io.open import open_source

    inputs = sorted_in(before, paths) if paths else before
    if not inputs.frames:
        return Opened(inputs)
    given = inputs.as_settings()
    # the selection is what comes out of a look; a look is at all frames
    source = open_source(
        given.sources, detector=given.detector, mask=given.mask, energy_eV=given.energy_eV,
        distance_m=given.distance_m, pixel_size_m=given.pixel_size_m, polarization=given.polarization,
    )  # fmt: skip
    detector = source.detector
    mask = getattr(source, "mask", None) if detector is None else detector.mask
    mask = np.zeros(source.n_pixels, np.uint8) if mask is None else np.asarray(mask, np.uint8).ravel()
    missing = tuple(getattr(source, "missing", ()))
    return Opened(
        inputs, source, detector, lay_out(source.shape, detector), patterns_layer(source), mask, missing
    )  # fmt: skip


class LookJob(Job):
    """Sums frames, slice by slice.

    Parameters
    ----------
    source : FrameSource
    wanted : int
        Frames to look at.
    bad : (P,) bool
        Pixels to leave out.

    Attributes
    ----------
    look : FirstLook or None
        The newest sums; replaced whole, never written to.
    """

    busy = True

    def __init__(self, source: FrameSource, wanted: int, bad: NDArray[np.bool_]) -> None:
        super().__init__()
        self.source, self.bad = source, bad
        self.wanted = min(wanted, source.n_frames or 0)
        self.look: FirstLook | None = None

    def run(self) -> Iterator[None]:
        """Look until all are seen, or until stopped."""
        for look in take_first_look(self.source, self.wanted, self.bad):
            self.look = look
            if self._stopping.is_set():
                return
            yield
