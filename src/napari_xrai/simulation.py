"""Frames of a known particle on disk: the digital twin, written as a CXI file with its truth beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .core.simulate import PRESETS, simulate
from .io.batched import MOST_PHOTONS
from .io.cxi_writer import CxiWriter
from .io.source import InputError
from .io.structure import read_particle
from .io.truth import truth_path, write_truth

MOST_FRAMES = 10_000_000


def write_simulation(
    particle: str, out: Path, preset: str, *, frames: int | None = None, photons: float | None = None, seed: int = 0
) -> Iterator[tuple[int, int]]:
    """Simulate frames and write them; yields frames written and frames in all, batch by batch.

    Parameters
    ----------
    particle : str
        A structure file or the name of a built-in particle.
    out : Path
        The CXI file; its truth goes to `truth_path(out)`.
    preset : str
        A name in `PRESETS`.
    frames, photons : optional
        Default: the preset's.

    Raises
    ------
    InputError
        If a name or number makes no sense, or a file is in the way or cannot be written.
    """
    if preset not in PRESETS:
        raise InputError(f"there is no preset {preset!r}: choose one of {', '.join(PRESETS)}")
    if out.is_dir():
        raise InputError(f"{out} is a folder: name the CXI file to write")
    if frames is not None and frames > MOST_FRAMES:
        raise InputError(f"{frames} frames are too many for one file: ask for at most {MOST_FRAMES:,}")
    if photons is not None and photons > MOST_PHOTONS:
        raise InputError(f"{photons:g} photons are too many for one frame: ask for at most {MOST_PHOTONS:,}")
    if seed < 0:
        raise InputError(f"--seed: {seed} is negative, give 0 or more")
    for path in (out, truth_path(out)):
        if path.exists():
            raise InputError(f"{path} exists already: choose another name, or remove it first")
    if not out.parent.is_dir():
        raise InputError(f"{out.parent} is no folder: make it first")
    experiment = PRESETS[preset]
    wanted, written = frames or experiment.frames, 0
    scatterers = read_particle(particle)
    try:
        detector, truth, batches = simulate(scatterers, experiment, n_frames=frames, photons=photons, seed=seed)
        with CxiWriter(
            out, detector, distance_m=experiment.distance_m, polarization=experiment.polarization,
            title=f"simulated: {particle}, {preset}, seed {seed}",
        ) as file:  # fmt: skip
            for batch in batches:
                file.write(batch)
                written += len(batch)
                yield written, wanted
    except InputError:
        raise
    except ValueError as error:
        raise InputError(str(error)) from error
    write_truth(truth_path(out), truth)
