"""What the user gave: files sorted by what is in them, and what they do not say. Reading happens in a worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..io.source import InputError
from ..layers import LayerData, patterns_layer
from ..settings import InputSettings

if TYPE_CHECKING:
    from ..io.open import Description

Polarization = Literal["x", "y", "none"]


@dataclass(frozen=True)
class Inputs:
    """Files and the numbers that go with them; `run` where a finished or running reconstruction was given instead."""

    frames: tuple[Path, ...] = ()
    detector: Path | None = None
    mask: Path | None = None
    run: Path | None = None
    energy_eV: float | None = None
    distance_m: float | None = None
    pixel_size_m: float | None = None
    polarization: Polarization | None = None
    select: str | None = None

    def as_settings(self) -> InputSettings:
        """As the command line would give them."""
        return InputSettings(
            sources=list(self.frames), detector=self.detector, mask=self.mask, energy_eV=self.energy_eV,
            distance_m=self.distance_m, pixel_size_m=self.pixel_size_m, polarization=self.polarization,
            select=self.select,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Found:
    """What was found in the inputs, in words and as patterns to look at; no description without frames."""

    inputs: Inputs
    description: Description | None = None
    patterns: LayerData | None = None
    remembered: Mapping[str, Any] = field(default_factory=dict)
    """What was supplied for frames like these the last time and is missing now."""

    @property
    def names(self) -> str:
        """The files' names, in one line."""
        given = self.inputs
        frames = [path.name for path in given.frames]
        shown = frames if len(frames) <= 2 else [frames[0], f"{len(frames) - 1} more files"]
        return " · ".join(
            shown
            + [path.name for path in (given.detector, given.mask, given.run) if path]
            + ([Path(given.select).name] if given.select else [])
        )


def look_into(before: Inputs, paths: Sequence[Path], *, patterns: bool = True) -> Found:
    """Sort `paths` by what is in them, add them to what was there `before`, and say what they hold.

    New frames replace the old ones, and so does a detector or mask; a run folder replaces everything.

    Raises
    ------
    InputError
        If a file is of no known kind, or the files cannot be used together.
    """
    from ..io.open import describe, open_source
    from ..remembered import recall

    _warm_up()
    inputs = sorted_in(before, paths)
    if inputs.run is not None or not inputs.frames:
        return Found(inputs)
    given = inputs.as_settings()
    source = open_source(
        given.sources, detector=given.detector, mask=given.mask, energy_eV=given.energy_eV,
        distance_m=given.distance_m, pixel_size_m=given.pixel_size_m, polarization=given.polarization,
        select=given.select,
    )  # fmt: skip
    return Found(inputs, describe(source), patterns_layer(source) if patterns else None, recall(source))


def _warm_up() -> None:
    """Import here, off the GUI thread, what napari imports with its first surface and its first turn to 3D.

    That is pandas, SciPy's rotations and a second's pause of the window just when the first volume comes.
    """
    import scipy.spatial.transform  # noqa: F401
    from napari.layers import Surface

    corners = np.eye(3, dtype=np.float32)
    Surface((corners, np.array([[0, 1, 2]]), np.ones(3, np.float32)))


def sorted_in(before: Inputs, paths: Sequence[Path]) -> Inputs:
    """`before` with what these files are: see `look_into`.

    Raises
    ------
    InputError
        If a file is of no known kind.
    """
    from ..io.open import classify, open_source

    kinds: dict[str, list[Path]] = {}
    for path in paths:
        kinds.setdefault(classify(path), []).append(path)
    if "unknown" in kinds:
        open_source(kinds["unknown"])  # says what is wrong with it
        raise InputError(f"{kinds['unknown'][0]} is of no known kind: drop frames, a detector, a mask or a run folder")
    if "volume" in kinds:
        raise InputError(f"{kinds['volume'][0]} is a map, not frames: drop frames or a run folder here")
    for kind in ("run", "detector", "mask"):
        if len(kinds.get(kind, ())) > 1:
            both = " and ".join(path.name for path in kinds[kind][:2])
            raise InputError(f"{both} are each a {kind}: drop one of them")
    if "run" in kinds:
        return Inputs(run=kinds["run"][0])
    new = replace(before, run=None)
    if "frames" in kinds:
        new = Inputs(frames=tuple(kinds["frames"]), detector=before.detector if _goes_on(before, kinds) else None)
    return replace(
        new,
        detector=kinds["detector"][0] if "detector" in kinds else new.detector,
        mask=kinds["mask"][0] if "mask" in kinds else new.mask,
    )


def _goes_on(before: Inputs, kinds: dict[str, list[Path]]) -> bool:
    """Whether a detector that came first was waiting for these frames."""
    return not before.frames and "detector" not in kinds
