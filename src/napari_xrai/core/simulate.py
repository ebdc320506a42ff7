"""The digital twin: a particle, a detector and a beam in; Poisson frames and the truth behind them out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from .detector import Polarization, solid_angle_polarization, square_detector, square_panel
from .frames import BAD, HC_EV_A, Detector, Frames, Volume
from .particle import Particle, amplitude_grid

CLASSICAL_ELECTRON_RADIUS_A = 2.8179403205e-5
"""r_e in Å (CODATA 2022)."""

SLICE_OVERSAMPLING = 4.0
"""Grid points per speckle of the particle: with cubic splines, slices are good to 1e-3 of their shell's mean (rms)."""

LARGEST_GRID = 401
"""Points per axis: beyond this a grid costs gigabytes."""

BATCH_PIXELS = 2_000_000
"""Pixels rendered at once: bounds the memory of a batch."""


@dataclass(frozen=True)
class Preset:
    """An experiment in numbers.

    Parameters
    ----------
    shape : (rows, columns)
    pixel_size_m, distance_m, energy_eV : float
    polarization : "x", "y" or "none"
    stop_radius_px : float
        Radius of the beam stop in pixels.
    frames : int
        How many, where nobody says.
    photons : float or None
        Mean photons per frame outside the beam stop. None: from `fluence_per_um2` and the particle.
    fluence_per_um2 : float or None
        Photons per µm² on the particle.
    fluence_shape : float
        Fluence per frame is Gamma-distributed with this shape and mean 1; ``inf``: every pulse equal.
    """

    shape: tuple[int, int]
    pixel_size_m: float
    distance_m: float
    energy_eV: float
    polarization: Polarization = "x"
    stop_radius_px: float = 4.0
    frames: int = 4000
    photons: float | None = None
    fluence_per_um2: float | None = None
    fluence_shape: float = 2.0

    def detector(self) -> Detector:
        """Return the preset's detector."""
        return square_detector(
            self.shape, self.pixel_size_m, self.distance_m, self.energy_eV,
            polarization=self.polarization, stop_radius_px=self.stop_radius_px,
        )  # fmt: skip

    @property
    def pixel_invA(self) -> float:
        """One pixel at the beam, in Å⁻¹."""
        return self.energy_eV / HC_EV_A * self.pixel_size_m / self.distance_m


# Gamma(2, ½) is Dragonfly's fluence model; geometries and fluences are those of the named papers' and programs' own
# input files; photons per frame of the pnCCD and AGIPD presets, for which no fluence is published, are our choice.
PRESETS: dict[str, Preset] = {
    "demo": Preset((64, 64), 1.2e-3, 0.3, HC_EV_A / 4.0, stop_radius_px=3.5, frames=2500, photons=500, fluence_shape=4),
    "dragonfly-64": Preset((64, 64), 1.2e-3, 0.3, HC_EV_A / 4.4, photons=497, fluence_shape=float("inf")),
    "dragonfly-sim": Preset(
        (150, 150), 0.512e-3, 0.3, HC_EV_A / 6.2, stop_radius_px=10, frames=30_000, fluence_per_um2=1e11
    ),
    "xrai-3iyf-64": Preset((64, 64), 0.1 / 64, 0.5, 4600.0, stop_radius_px=0, frames=10_000, fluence_per_um2=1.27e17),
    "xrai-50S-128": Preset(
        (128, 128), 0.1 / 128, 0.2, 4600.0, stop_radius_px=0, frames=10_000, fluence_per_um2=1.27e13
    ),
    "amo86615-PR772": Preset((260, 257), 300e-6, 0.586, 1600.0, stop_radius_px=40, frames=2000, photons=5000),
    "agipd-square-128": Preset((128, 128), 1.6e-3, 0.7074, 6000.0, stop_radius_px=2.5, photons=1000),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Truth:
    """What really was, for scoring: as a truth file holds it.

    Parameters
    ----------
    rotation : (N, 3, 3) float32
        Pose of each frame: R takes lab q to the particle's frame, I = fluence · response · V(R q).
    intensity : Volume
        V(q) in photons per frame and pixel of response 1; (z, y, x), units ``"1/angstrom"``.
    density : Volume or None
        The particle, in electrons/Å³; (z, y, x), units ``"angstrom"``.
    fluence : (N,) float32 or None
        Of each frame, mean 1.
    point_group : (n, 3, 3) float64 or None
        Proper rotations, in (x, y, z), that leave the intensity unchanged; None: not known.
    """

    rotation: NDArray[np.float32]
    intensity: Volume
    density: Volume | None = None
    fluence: NDArray[np.float32] | None = None
    point_group: NDArray[np.float64] | None = None


class AmplitudeSlices:
    """F(q) of one particle at any q, by cubic splines on a grid of `SLICE_OVERSAMPLING` points per speckle.

    Parameters
    ----------
    particle : Particle
    q_max_invA : float
        Largest |q| that will be asked for.

    Raises
    ------
    ValueError
        If the grid would need more than `LARGEST_GRID` points per axis.
    """

    def __init__(self, particle: Particle, q_max_invA: float) -> None:
        self.spacing = 1 / (SLICE_OVERSAMPLING * particle.diameter_A)
        # a margin of 6 points: the spline filter forgets the grid's edge by a factor 0.27 per point
        n = 2 * (int(np.ceil(q_max_invA / self.spacing)) + 6) + 1
        if n > LARGEST_GRID:
            raise ValueError(
                f"a particle of {particle.diameter_A:.0f} Å at {1 / q_max_invA:.1f} Å resolution needs a grid of {n} "
                f"points per axis, more than {LARGEST_GRID}: choose a preset with less resolution"
            )
        grid = amplitude_grid(particle, self.spacing, n)
        self._real = ndimage.spline_filter(grid.real, order=3, output=np.float32)
        self._imag = ndimage.spline_filter(grid.imag, order=3, output=np.float32)

    def intensity(self, rotations: NDArray[np.float64], q_invA: NDArray[np.float64]) -> NDArray[np.float32]:
        """|F(R q)|² for every rotation (N, 3, 3) and q (P, 3): (N, P) float32, in electrons²."""
        out = np.empty((len(rotations), len(q_invA)), np.float32)
        _render(np.ascontiguousarray(rotations, np.float64), q_invA / self.spacing, self._real, self._imag, out)
        return out

    def radial_mean(self, q_invA: NDArray[np.float64]) -> NDArray[np.float64]:
        """Mean of |F|² over the sphere of each radius |q| (K,): what a pixel sees over uniformly random poses."""
        # a golden-angle spiral samples the sphere evenly enough for 1e-3 of the mean
        i = np.arange(2000) + 0.5
        z, angle = 1 - i / 1000, np.pi * (1 + 5**0.5) * i
        across = np.sqrt(1 - z**2)
        sphere = np.stack([across * np.cos(angle), across * np.sin(angle), z], axis=1)
        points = (q_invA[:, None, None] * sphere).reshape(-1, 3)
        mean: NDArray[np.float64] = (
            self.intensity(np.eye(3)[None], points).reshape(len(q_invA), -1).mean(axis=1, dtype=np.float64)
        )
        return mean


@numba.njit(fastmath=True, nogil=True, cache=True)
def _spline_weights(t, w):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Cubic B-spline at −1, 0, 1, 2 from a point a fraction t beyond grid point 0."""
    s = 1.0 - t
    w[0] = s * s * s / 6.0
    w[1] = 2.0 / 3.0 - 0.5 * t * t * (2.0 - t)
    w[2] = 2.0 / 3.0 - 0.5 * s * s * (2.0 - s)
    w[3] = t * t * t / 6.0


@numba.njit(fastmath=True, nogil=True, cache=True)
def _render(rotations, q, real, imag, out):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """out[n, p] = |F(R[n] q[p])|²; q in grid steps, spline coefficients (z, y, x) with q = 0 at n//2."""
    centre = real.shape[0] // 2
    wx, wy, wz = np.empty(4), np.empty(4), np.empty(4)
    for n in range(rotations.shape[0]):
        r = rotations[n]
        for p in range(q.shape[0]):
            x = r[0, 0] * q[p, 0] + r[0, 1] * q[p, 1] + r[0, 2] * q[p, 2] + centre
            y = r[1, 0] * q[p, 0] + r[1, 1] * q[p, 1] + r[1, 2] * q[p, 2] + centre
            z = r[2, 0] * q[p, 0] + r[2, 1] * q[p, 1] + r[2, 2] * q[p, 2] + centre
            ix, iy, iz = int(x), int(y), int(z)
            _spline_weights(x - ix, wx)
            _spline_weights(y - iy, wy)
            _spline_weights(z - iz, wz)
            a, b = 0.0, 0.0
            for k in range(4):
                for j in range(4):
                    w = wz[k] * wy[j]
                    for i in range(4):
                        v = w * wx[i]
                        a += v * real[iz + k - 1, iy + j - 1, ix + i - 1]
                        b += v * imag[iz + k - 1, iy + j - 1, ix + i - 1]
            out[n, p] = a * a + b * b


def simulate(
    particle: Particle,
    preset: Preset,
    *,
    n_frames: int | None = None,
    photons: float | None = None,
    seed: int = 0,
) -> tuple[Detector, Truth, Iterator[Frames]]:
    """Simulate frames of a particle in uniformly random poses.

    Parameters
    ----------
    particle : Particle
    preset : Preset
    n_frames : int, optional
        Default: the preset's.
    photons : float, optional
        Mean photons per frame; default: the preset's, or what its fluence gives on this particle.
    seed : int
        Equal seeds give equal frames.

    Returns
    -------
    detector : Detector
    truth : Truth
        Poses, fluences, the intensity and the density.
    frames : iterator of Frames
        In batches of bounded memory; to be read once. Nothing is recorded in bad pixels.

    Raises
    ------
    ValueError
        If a number makes no sense, or the particle is too large for the preset's resolution.
    """
    count = preset.frames if n_frames is None else n_frames
    if count < 1:
        raise ValueError(f"the number of frames must be at least 1, not {count}")
    if photons is not None and not (np.isfinite(photons) and photons > 0):
        raise ValueError(f"the mean number of photons per frame must be positive, not {photons}")
    detector = preset.detector()
    slices = AmplitudeSlices(particle, float(np.linalg.norm(detector.q, axis=1).max()))
    scale = _photons_per_electron2(slices, detector, preset, photons)
    pose_seed, fluence_seed, photon_seed = np.random.SeedSequence(seed).spawn(3)
    # normal deviates have no preferred direction in 4D: uniform unit quaternions, hence uniform rotations
    rotations = Rotation.from_quat(np.random.default_rng(pose_seed).normal(size=(count, 4))).as_matrix()
    fluence = np.ones(count)
    if np.isfinite(preset.fluence_shape):
        shape = preset.fluence_shape
        fluence = np.random.default_rng(fluence_seed).gamma(shape, 1 / shape, count)
    intensity, density = _volumes(particle, preset, detector, scale)
    truth = Truth(rotations.astype(np.float32), intensity, density, fluence.astype(np.float32), particle.point_group)
    frames = _poisson_frames(slices, detector, rotations, fluence * scale, np.random.default_rng(photon_seed))
    return detector, truth, frames


def _photons_per_electron2(slices: AmplitudeSlices, detector: Detector, preset: Preset, photons: float | None) -> float:
    """Photons per frame in a pixel of response 1 for |F|² = 1 electron²."""
    good = detector.mask != BAD
    wanted = photons
    if wanted is None:
        wanted = preset.photons
    if wanted is not None:
        radius = np.linalg.norm(detector.q, axis=1)
        table = np.linspace(0, radius.max(), 2 * max(detector.shape))
        mean = np.interp(radius, table, slices.radial_mean(table))
        return float(wanted / (detector.response * mean)[good].sum())
    if preset.fluence_per_um2 is None:
        raise ValueError("the preset has no fluence: give the mean number of photons per frame")
    panel = square_panel(preset.shape, preset.pixel_size_m, preset.distance_m)
    steradians = solid_angle_polarization(panel.centres_m(), panel.areas_m2(), preset.polarization)[good].mean()
    return float(preset.fluence_per_um2 * 1e-8 * CLASSICAL_ELECTRON_RADIUS_A**2 * steradians)


def _volumes(particle: Particle, preset: Preset, detector: Detector, scale: float) -> tuple[Volume, Volume]:
    """Intensity out to the detector's corner, one voxel per pixel at the beam, and the density it is made of."""
    voxel, reach = preset.pixel_invA, float(np.linalg.norm(detector.q, axis=1).max())
    if reach / voxel > 100:  # large detectors: a quarter of a speckle is fine enough, and does not fill the disk
        voxel = max(voxel, 1 / (4 * particle.diameter_A))
    n = 2 * int(np.ceil(reach / voxel)) + 1
    amplitude = amplitude_grid(particle, voxel, n)
    electrons = np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(amplitude))).real * voxel**3
    return (
        Volume((np.abs(amplitude) ** 2 * scale).astype(np.float32), voxel, "1/angstrom"),
        Volume(electrons.astype(np.float32), 1 / (n * voxel), "angstrom"),
    )


def _poisson_frames(
    slices: AmplitudeSlices,
    detector: Detector,
    rotations: NDArray[np.float64],
    scale: NDArray[np.float64],
    rng: np.random.Generator,
) -> Iterator[Frames]:
    seen = np.flatnonzero(detector.mask != BAD)
    q, response = detector.q[seen], detector.response[seen]
    size = max(1, min(1000, BATCH_PIXELS // max(1, len(seen))))
    for first in range(0, len(rotations), size):
        block = slice(first, first + size)
        expected = slices.intensity(rotations[block], q) * response * scale[block, None]
        sparse = Frames.from_dense(rng.poisson(expected), first)
        yield Frames(sparse.start, seen[sparse.pixel].astype(np.int32), sparse.count, sparse.index, detector.n_pixels)
