"""What the whole house speaks: frames, the detector that took them, and a snapshot of the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .trust import Trust

Units = Literal["1/angstrom", "detector_voxel"]
Verdict = Literal["converged", "improving", "failed"]
PhasingVerdict = Literal["agreed", "doubtful", "failed"]

GOOD, MERGE_ONLY, BAD = 0, 1, 2
"""Mask values: good · merged but not used for orientation · bad."""

USED, JUNK, NOT_HIT, DROPPED = 0, 1, 2, 3
"""Frame status values."""

STATUS_NAMES = {USED: "used", JUNK: "junk", NOT_HIT: "not_hit", DROPPED: "dropped"}

HC_EV_A = 12398.419843320026
"""Photon energy times wavelength, eV Å (CODATA 2018)."""


@dataclass(frozen=True, eq=False)
class Detector:
    """Where each pixel looks in reciprocal space, and how brightly.

    Parameters
    ----------
    q : (P, 3) float64
        Scattering vector of each pixel in the lab frame, ``(r̂ − ẑ)/λ`` (no 2π): beam along +z, y up,
        right-handed, q_z ≤ 0. In `units`.
    response : (P,) float64
        Solid angle × polarisation of each pixel, up to one common factor.
    mask : (P,) uint8
        0 good · 1 merged but not used for orientation · 2 bad.
    shape : tuple of int
        Shape of one frame as the file stores it; its product is P.
    ewald_radius : float
        1/λ in `units`.
    units : "1/angstrom" or "detector_voxel"
        The unit of q. Files without a wavelength keep their own unit.
    background : (P,) float64 or None
        Expected background photons per frame and pixel, where a file gives it.
    """

    q: NDArray[np.float64]
    response: NDArray[np.float64]
    mask: NDArray[np.uint8]
    shape: tuple[int, ...]
    ewald_radius: float
    units: Units = "1/angstrom"
    background: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        n = self.n_pixels
        if self.q.shape != (n, 3):
            raise ValueError(f"q has shape {self.q.shape}, expected ({n}, 3) for frames of shape {self.shape}")
        for name in ("response", "mask"):
            if getattr(self, name).shape != (n,):
                raise ValueError(f"{name} has shape {getattr(self, name).shape}, expected ({n},)")

    @property
    def n_pixels(self) -> int:
        """Pixels per frame, P."""
        return int(np.prod(self.shape))

    @property
    def wavelength_A(self) -> float | None:
        """Wavelength in Å, or None while q is in the detector file's own unit."""
        return 1.0 / self.ewald_radius if self.units == "1/angstrom" else None

    @property
    def energy_eV(self) -> float | None:
        """Photon energy, or None while q is in the detector file's own unit."""
        return HC_EV_A * self.ewald_radius if self.units == "1/angstrom" else None

    def with_energy(self, energy_eV: float) -> Detector:
        """Return the same detector with q in Å⁻¹ for photons of `energy_eV`."""
        if not 10 <= energy_eV <= 1e6:
            raise ValueError(f"photon energy must lie between 10 eV and 1 MeV, not {energy_eV} eV")
        radius = energy_eV / HC_EV_A
        return Detector(
            q=self.q * (radius / self.ewald_radius), response=self.response, mask=self.mask, shape=self.shape,
            ewald_radius=radius, units="1/angstrom", background=self.background,
        )  # fmt: skip

    def with_mask(self, mask: NDArray[Any]) -> Detector:
        """Return the same detector with `mask` (P pixels in any shape, 0/1/2) laid over its own: the worse wins."""
        flat = np.asarray(mask).reshape(-1)
        if flat.size != self.n_pixels:
            raise ValueError(f"the mask has {flat.size} pixels, the detector {self.n_pixels}")
        return Detector(
            q=self.q, response=self.response, mask=np.maximum(self.mask, flat.astype(np.uint8)), shape=self.shape,
            ewald_radius=self.ewald_radius, units=self.units, background=self.background,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Frames:
    """A batch of frames as sparse photon counts (compressed rows).

    Parameters
    ----------
    start : (N+1,) int64
        Frame n owns entries ``start[n]:start[n+1]`` of `pixel` and `count`.
    pixel : (L,) int32
        Index of each lit pixel, ascending within a frame.
    count : (L,) int32
        Its photons, ≥ 1.
    index : (N,) int64
        Position of each frame in its source: its identity.
    n_pixels : int
        Pixels per frame, P.
    """

    start: NDArray[np.int64]
    pixel: NDArray[np.int32]
    count: NDArray[np.int32]
    index: NDArray[np.int64]
    n_pixels: int

    def __len__(self) -> int:
        return len(self.index)

    @classmethod
    def from_dense(cls, counts: NDArray[Any], first_index: int = 0) -> Frames:
        """Frames from an (N, …) array of counts; `first_index` is the source position of the first."""
        flat = np.ascontiguousarray(counts).reshape(len(counts), -1)
        width = flat.shape[1]
        at = np.flatnonzero(flat.ravel() != 0)  # five times as fast as np.nonzero in two dimensions
        return cls(
            start=np.searchsorted(at, np.arange(len(flat) + 1) * width).astype(np.int64),
            pixel=(at % max(width, 1)).astype(np.int32), count=flat.ravel()[at].astype(np.int32),
            index=np.arange(first_index, first_index + len(flat), dtype=np.int64), n_pixels=width,
        )  # fmt: skip

    @classmethod
    def concatenate(cls, batches: Sequence[Frames]) -> Frames:
        """One batch out of several of the same detector."""
        lengths = np.concatenate([np.diff(b.start) for b in batches])
        return cls(
            start=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            pixel=np.concatenate([b.pixel for b in batches]), count=np.concatenate([b.count for b in batches]),
            index=np.concatenate([b.index for b in batches]), n_pixels=batches[0].n_pixels,
        )  # fmt: skip

    def take(self, rows: NDArray[Any] | slice) -> Frames:
        """The chosen frames (integer positions, a boolean mask or a slice), in that order."""
        rows = np.arange(len(self))[rows]
        lengths = (self.start[1:] - self.start[:-1])[rows]
        start = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        entry = np.arange(start[-1]) + np.repeat(self.start[:-1][rows] - start[:-1], lengths)
        return Frames(start, self.pixel[entry], self.count[entry], self.index[rows], self.n_pixels)

    def dense(self) -> NDArray[np.int32]:
        """(N, P) photon counts."""
        out = np.zeros((len(self), self.n_pixels), np.int32)
        out[np.repeat(np.arange(len(self)), np.diff(self.start)), self.pixel] = self.count
        return out

    @property
    def photons(self) -> NDArray[np.int64]:
        """(N,) photons of each frame over all pixels."""
        total: NDArray[np.int64] = np.concatenate([[0], np.cumsum(self.count, dtype=np.int64)])
        return total[self.start[1:]] - total[self.start[:-1]]


@dataclass(frozen=True)
class Counters:
    """Frames by fate, cumulative: ``received = dropped + not_hit + junk + used``."""

    received: int = 0
    dropped: int = 0
    not_hit: int = 0
    junk: int = 0
    used: int = 0

    @property
    def hits(self) -> int:
        """Frames with a particle in them, usable or not."""
        return self.junk + self.used

    @property
    def junk_share(self) -> float:
        """Part of them that is not usable."""
        return self.junk / max(1, self.hits)


@dataclass(frozen=True)
class Progress:
    """Where a reconstruction stands, cheap enough to give at every step.

    Parameters
    ----------
    phase : str
        In words, for a person: ``"bootstrap 2 of 4"``, ``"pass 3 of 10"``.
    fraction : float
        Of the whole run, 0…1; NaN when the end is not known.
    frames_seen : int
        Frame visits so far, re-visits counted.
    radius : float
        Resolution radius in use now, in voxels of the volume.
    """

    phase: str
    fraction: float
    frames_seen: int
    radius: float


@dataclass(frozen=True, eq=False)
class Poses:
    """One row per received frame that has a pose; quaternions are scalar-last (x, y, z, w), lab → particle.

    `radius68` is the geodesic radius in degrees that holds the true pose with probability 0.68, modulo Rz(π); NaN
    before the last pass. `modes` counts the poses that a frame's posterior cannot tell apart, 0 where nobody looked.
    Both are empty in files that do not have them.
    """

    frame: NDArray[np.int64]
    quaternion: NDArray[np.float32]
    fluence: NDArray[np.float32]
    log_likelihood: NDArray[np.float32]
    confidence: NDArray[np.float32]
    radius68: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    modes: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))


@dataclass(frozen=True, eq=False)
class Volume:
    """A 3D map, (z, y, x); its origin (q = 0, or the particle's centre) at index n//2."""

    data: NDArray[np.float32]
    voxel_size: float
    units: str


@dataclass(frozen=True, eq=False)
class Phasing:
    """How a density was found from its intensity by several starts, and how far to believe it.

    Parameters
    ----------
    verdict : "agreed", "doubtful" or "failed"
    reason : str
        Why, in words.
    starts, kept, seed : int
        Random phase sets tried, those that agree, and what they were drawn from.
    curves : dict of str to (S,) float64
        Over |q|: ``q`` (in the intensity's units), ``prtf``, ``agreement``, ``background``, and ``half_fsc`` where
        half-sets were phased; empty where there was nothing to phase.
    local_resolution : Volume or None
        Where half-sets were phased: length to which they agree about each voxel of the density; 0 outside the particle.
    """

    verdict: PhasingVerdict
    reason: str
    starts: int
    kept: int
    seed: int
    curves: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    local_resolution: Volume | None = None

    def of_intensity(self, verdict: Verdict, reason: str) -> Phasing:
        """The same, no better than the intensity: starts may well agree on the density of a wrong one."""
        if verdict != "failed" or self.verdict == "failed":
            return self
        return replace(
            self, verdict="doubtful", reason=f"the intensity is not to be believed ({reason}); {self.reason}"
        )


@dataclass(frozen=True, eq=False)
class UsedGeometry:
    """What became of a detector's geometry and mask: poses are of frames on these pixels.

    Parameters
    ----------
    tangent : (x, y)
        Where the beam goes, over z, from where the detector has it, in the lab frame; 0, 0 where it was left there.
    moved : (x, y)
        The same in pixels beside the beam.
    mask : (…frame shape) uint8
        0 used for poses · 1 merged only · 2 not used.
    left_out : (…frame shape) bool
        Not used though the detector's mask lets them through: hot, dead, in a beam stop's shadow, without a response.
    """

    tangent: tuple[float, float]
    moved: tuple[float, float]
    mask: NDArray[np.uint8]
    left_out: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The whole result at one moment. Arrays are its own: nobody writes to them afterwards.

    Parameters
    ----------
    intensity, weight : Volume
        V(q), and the photons' worth of exposure behind each voxel; 0 where nothing was measured.
    density : Volume or None
        The phased particle, once there is one.
    poses : Poses
    status : (received,) uint8
        Fate of every received frame: `USED`, `JUNK`, `NOT_HIT`, `DROPPED`.
    history : dict of str to (T,) float64
        Curves over the run, all of one length: ``frames_seen``, ``log_likelihood`` (mean per frame, over
        that of a structureless particle), ``resolution_q`` (NaN until halves exist; in the intensity's units).
    shells : dict of str to (S,) float64
        Curves over |q|: ``q`` (in the intensity's units), ``half_cc``, ``weight``.
    resolution_A : float or None
        1/q where the half-set shell CC first falls below 0.5; None until halves and a wavelength exist.
    verdict, reason : str
        One look, and why, in words.
    facts : dict of str to str
        What the engine chose from the data, for the user to see: diameter, resolution, batch size, schedule.
    phasing : Phasing or None
        How the density was found, once several starts were compared; None for a live density.
    geometry : UsedGeometry or None
        None in files that do not have it.
    trust : Trust or None
        Errors, half-sets, views and forecast; None where nobody asked, for it takes a moment.
    live : dict of str to float
        Of a stream: ``latency_s`` and ``latency_max_s`` from acquisition to use over the last seconds, ``reservoir``,
        the frames held to be seen again. Empty for files.
    alerts : tuple of str
        Of a stream: when beam, hit rate or convergence changed, in words, the latest last.
    """

    intensity: Volume
    weight: Volume
    density: Volume | None
    poses: Poses
    status: NDArray[np.uint8]
    history: dict[str, NDArray[np.float64]]
    shells: dict[str, NDArray[np.float64]]
    counters: Counters
    progress: Progress
    resolution_A: float | None
    verdict: Verdict
    reason: str
    facts: dict[str, str] = field(default_factory=dict)
    phasing: Phasing | None = None
    geometry: UsedGeometry | None = None
    trust: Trust | None = None
    live: dict[str, float] = field(default_factory=dict)
    alerts: tuple[str, ...] = ()
