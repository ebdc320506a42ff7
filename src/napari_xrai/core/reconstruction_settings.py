"""How a reconstruction is to run, where the data do not decide it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ReconstructionSettings:
    """How to run; None and "auto" mean: from the data.

    Parameters
    ----------
    passes : int or None
        Passes over the frames after the starts.
    seed : int
        Equal seeds give equal results on the same CPU.
    fluence : "auto", "profiled" or "fixed"
        Fluence per frame: its spread measured and integrated over, fitted freely, or equal for all.
    field : "auto", "voxel", "hash" or "siren"
        What holds the 3D intensity, as in `fields`.
    symmetry : str
        Point group of the intensity in Schoenflies notation: every frame counts for all poses that it makes equal.
    proposals : "auto", "search", "encoder" or "both"
        Where candidate poses come from once the particle is found: the exact low-resolution search, or the encoder;
        "auto": the cheaper one, as `proposals.choose_proposals` reckons.
    beam_centre : "auto" or "given"
        The beam as the geometry has it, moved to where photons mirror if that is elsewhere; or left there.
    uneven_background : "auto" or "left"
        What all frames share and is not even about the beam is found and taken out; or left in, where it is the
        particle's: one that comes in few orientations.
    threads : int
        CPU threads.
    device : "auto", "cpu", "cuda" or "cuda:i"
        Where the heavy sums run; "auto": on a GPU where torch sees one, which is not asked for by default.
    """

    passes: int | None = None
    seed: int = 0
    fluence: str = "auto"
    field: str = "auto"
    symmetry: str = "C1"
    proposals: str = "auto"
    beam_centre: str = "auto"
    uneven_background: str = "auto"
    threads: int = 1
    device: str = "cpu"
