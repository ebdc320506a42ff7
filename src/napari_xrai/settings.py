"""Everything a user can set, in one tree: the command line, the panel's forms and settings.json are made from it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def _point_group(name: str) -> str:
    if not re.fullmatch(r"[CD][1-9]\d?|[TOI]", name.strip().upper()):
        raise ValueError("give a point group: C1, C2, … C99, D2, D3, …, T, O or I")
    return name.strip().upper()


def _device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise ValueError("give auto, cpu, cuda, or one card as cuda:0")
    return name


def _address(name: str) -> str:
    if not re.fullmatch(r"tcp://[^\s/]+:\d+", name):
        raise ValueError("a stream's address has a host and a port, tcp://host:45454")
    return name


class InputSettings(BaseModel):
    """Where the frames come from, and what their files do not say."""

    model_config = ConfigDict(extra="forbid")

    sources: list[Path] = Field(default_factory=list, description="Files or folders of frames")
    detector: Path | None = Field(default=None, description="Detector file, where the frames' file has no geometry")
    mask: Path | None = Field(default=None, description="Extra mask, laid over the detector's own")
    energy_eV: Annotated[float, Field(gt=0)] | None = Field(default=None, description="Photon energy (eV)")
    distance_m: Annotated[float, Field(gt=0)] | None = Field(default=None, description="Sample to detector (m)")
    pixel_size_m: Annotated[float, Field(gt=0)] | None = Field(default=None, description="Pixel size (m)")
    polarization: Literal["x", "y", "none"] | None = Field(default=None, description="Polarisation of the beam")
    select: str | None = Field(default=None, description="Frames to use: a file, odd, even or start:stop:step")
    binning: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Pixels summed along each edge on reading; by default what the engine resolves"
    )


class StreamSettings(BaseModel):
    """How frames arrive, where they are reconstructed while they do."""

    model_config = ConfigDict(extra="forbid")

    follow: bool = Field(default=False, description="Go on with the frames that are added to the file or folder")
    address: Annotated[str, AfterValidator(_address)] | None = Field(
        default=None, description="tcp://host:port of a server; tcp://*:port waits for one"
    )
    socket: Literal["REQ", "SUB", "PULL"] = Field(default="REQ", description="Kind of the server's socket")
    data: str | None = Field(default=None, description="SOURCE:KEY of the frames in a message")
    axes: str | None = Field(default=None, description="Of that array: p pulse, m module, s slow, f fast scan")
    adu_per_photon: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="Where values are detector units"
    )
    replay_hz: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="Play files back at so many frames per second"
    )
    idle_timeout_s: Annotated[float, Field(gt=0)] = Field(
        default=60.0, description="The stream has ended after so long without a frame"
    )
    find_hits: bool = Field(default=True, description="Tell hits from blanks by their lit pixels")

    @property
    def live(self) -> bool:
        """Whether frames arrive while they are used."""
        return self.follow or self.address is not None or self.replay_hz is not None


class EngineSettings(BaseModel):
    """How the reconstruction runs. What None means, `unset_words` tells."""

    model_config = ConfigDict(extra="forbid")

    passes: Annotated[int, Field(ge=1)] | None = Field(default=None, description="Passes over the frames")
    max_frames: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Stop after this many received frames"
    )
    seed: Annotated[int, Field(ge=0)] = Field(default=0, description="Equal seeds give equal results on the same CPU")
    device: Annotated[str, AfterValidator(_device)] = Field(default="auto", description="auto, cpu, cuda or cuda:i")
    threads: Annotated[int, Field(ge=1)] | None = Field(default=None, description="CPU threads")
    field: Literal["auto", "voxel", "hash", "siren"] = Field(
        default="auto", description="What holds the 3D intensity: a grid of voxels, a hash grid, a neural network"
    )
    symmetry: Annotated[str, AfterValidator(_point_group)] = Field(
        default="C1", description="Point group of the particle, if known: C1, C2, D5, T, O, I, …"
    )
    proposals: Literal["auto", "search", "encoder", "both"] = Field(
        default="auto", description="Who names candidate poses: the exact low-resolution search, the trained encoder"
    )
    beam_centre: Literal["auto", "given"] = Field(
        default="auto", description="The beam: moved to where photons mirror, or where the geometry has it"
    )
    uneven_background: Literal["auto", "left"] = Field(
        default="auto", description="What all frames share and is not even about the beam: taken out, or left in"
    )
    fluence: Literal["auto", "profiled", "fixed"] = Field(
        default="auto", description="Pulse energy on each particle: fitted per frame, or equal for all"
    )


class Settings(BaseModel):
    """One run, whole: with this and the frames it can be run again."""

    model_config = ConfigDict(extra="forbid")

    input: InputSettings = Field(default_factory=InputSettings)
    engine: EngineSettings = Field(default_factory=EngineSettings)
    stream: StreamSettings = Field(default_factory=StreamSettings)


UNSET = {"max_frames": "all", "threads": "one per core"}


def unset_words(name: str) -> str:
    """What a setting of this name means that was left open."""
    return UNSET.get(name, "chosen from the data")
