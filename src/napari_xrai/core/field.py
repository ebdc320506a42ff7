"""The 3D intensity that explains the frames: one interface, and the plainest field behind it, a voxel grid.

V(q) = Ī(|q|) · ratio(q): the radial mean Ī carries the dynamic range, the ratio (≈ 1) carries the structure.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .band_limit import BANDS, filtered_ratio
from .pixels import Pixels

F32 = NDArray[np.float32]
BandFilter = Callable[[F32, F32, float, float, F32 | None], F32]

UNMEASURED = 1e-6
"""Expected photons below which a voxel counts as never seen."""

DARKEST = 0.02
"""Smallest ratio that scoring believes: keeps log V finite where few photons have fallen."""


FIRST_BAND = 0.18
"""Times 1/smoothing: the band until it is measured, generous."""


LONGEST = 1.5
"""Times its mean diameter that a particle may be long: what its diffraction varies by has no wider band."""

NEIGHBOURS = 2.0
"""Voxels beyond a radius that look-ups and smoothing reach into."""

ROUGHEST = 0.13
"""ln of what look-ups find over what voxels hold, rms over photons, beyond which look-ups are not fitted: peaks
narrower than voxels can follow would draw frames, and grow with each pass."""

MARGIN = 4
"""Voxels beyond a sphere that its filtered values reach into."""


class RadialProfile:
    """Ī(|q|): mean photons per pixel of response 1, by shells of one voxel, linear between them."""

    def __init__(self, pixels: Pixels, photons: NDArray[Any], n_frames: int) -> None:
        radius = np.linalg.norm(pixels.q, axis=1)
        shell = np.rint(radius).astype(int)
        length = shell.max() + 4
        response = np.bincount(shell, pixels.response, length)
        seen = response > 0
        value = np.bincount(shell, photons, length) / np.maximum(n_frames * response, 1e-12)
        floor = value[seen & (value > 0)].min()
        self.value = np.interp(np.arange(length), np.flatnonzero(seen), np.maximum(value[seen], floor))

    def __call__(self, radius: NDArray[Any]) -> NDArray[np.float64]:
        """Ī at `radius` (any shape), voxels."""
        return np.asarray(np.interp(radius, np.arange(len(self.value)), self.value))


def grid_radius(edge: int) -> NDArray[np.float64]:
    """(edge³) distance of each voxel from q = 0, in voxels."""
    axis = np.arange(edge) - edge // 2
    return np.asarray(np.sqrt((axis**2)[:, None, None] + (axis**2)[:, None] + axis**2).reshape(-1))


def friedel_sum(grid: F32) -> F32:
    """Grid + its point reflection, V(q) = V(−q): a flat grid of odd edge is its own reverse."""
    return grid + grid[::-1]


class IntensityField(ABC):
    """What the loop asks of an intensity, whatever represents it: positive, V(q) = V(−q), rendered on a grid.

    Parameters
    ----------
    pixels : Pixels
    profile : RadialProfile
    rng : numpy Generator
        The start: a grid of log-normal noise, Friedel-symmetric.
    smoothing : float
        Width of the Gaussian that `estimate` starts from, voxels: about a ninth of a speckle.
    band_filter : callable
        `band_limit.filtered_ratio`, or the same on another device.

    Attributes
    ----------
    ratio : (edge³) float32
        V/Ī, flat (z, y, x). The bootstrap writes it, `update` replaces it.
    band : float
        Cycles per voxel beyond which the intensity does not vary; `choose_band` measures it.
    exposure : (edge³) float32
        Photons expected at ratio 1 behind each voxel.
    overshoot : (edge³) float32 or None
        What is added to the ratio for look-ups between voxels to find it, from `fit_look_ups`.
    """

    def __init__(
        self, pixels: Pixels, profile: RadialProfile, rng: np.random.Generator,
        smoothing: float = 0.7, band_filter: BandFilter = filtered_ratio,
    ) -> None:  # fmt: skip
        self.edge, self.band_filter = pixels.edge, band_filter
        self.smoothing, self.band = smoothing, FIRST_BAND / smoothing
        self.profile_grid = profile(grid_radius(self.edge)).astype(np.float32)
        start = np.exp(0.3 * rng.normal(size=self.edge**3)).astype(np.float32)
        self.ratio: F32 = np.float32(0.5) * friedel_sum(start)
        self.exposure: F32 = np.zeros_like(self.ratio)
        self.overshoot: F32 | None = None

    @abstractmethod
    def update(self, photons: list[F32], exposure: list[F32]) -> Iterator[None]:
        """Explain the `photons` of both halves, seen under `exposure`, each (edge³); yields between steps of work."""

    def estimate(self, photons: F32, exposure: F32) -> F32:
        """(edge³) ratio that explains `photons` under `exposure` in closed form; the field itself stays as it is.

        Photons over exposure, filtered to the particle's band.
        """
        # a truncated series of in-plane harmonics leaves a little negative exposure where there was none
        photons, exposure = friedel_sum(photons), np.maximum(friedel_sum(exposure), 0)
        return self._filtered(self._cube(photons), self._cube(exposure), self.band).reshape(-1)

    def choose_band(
        self, photons: list[F32], exposure: list[F32], radius: float, diameter: float = np.inf
    ) -> Iterator[None]:  # fmt: skip
        """Set `band` so that each half's estimate explains the other half's photons best; yields between trials.

        Halves share poses, and frames turn towards the noise of the field that they were found under: so both halves
        have it, and alone they would choose a band that lets it through, and deepen it. No band is tried that only a
        particle much longer than its mean diameter would need.

        Parameters
        ----------
        photons, exposure : list of two (edge³) float32
        radius : float
            The outer half of this sphere counts, voxels: beside the centre nothing is band-limited.
        diameter : float
            Of the particle, 1/voxel.
        """
        tried = [band for band in BANDS if band <= max(LONGEST * diameter, BANDS[0])]
        cut = slice(max(0, self.edge // 2 - int(radius) - MARGIN), self.edge // 2 + int(radius) + MARGIN + 1)
        far = np.abs(self._cube(grid_radius(self.edge))[cut, cut, cut] / radius - 0.75) < 0.25
        photons = [self._cube(friedel_sum(grid))[cut, cut, cut] for grid in photons]
        exposure = [np.maximum(self._cube(friedel_sum(grid))[cut, cut, cut], 0) for grid in exposure]
        near = tried.index(self.band) if self.band in tried else None
        best = -np.inf
        for band in tried if near is None else tried[max(0, near - 1) : near + 2]:
            value = 0.0
            for mine, other in ((0, 1), (1, 0)):
                ratio = np.maximum(self._filtered(photons[mine], exposure[mine], band)[far], DARKEST)
                value += float(photons[other][far] @ np.log(ratio) - exposure[other][far] @ ratio)
                yield
            if value > best:
                best, self.band = value, band

    def fit_look_ups(self, photons: list[F32], exposure: list[F32], flattening: F32 | None) -> None:
        """Set `overshoot` so that look-ups between voxels expect the `photons` of both halves, seen under `exposure`.

        Where it is not known how they flatten, or look-ups are too rough for that, none is set.

        Trilinear look-ups flatten speckles, and photons laid on voxels are blurred: by a few per cent, but alike for
        all frames of a region. Poses found under such a field are turned by a little, together, and so is the next
        field: in the end by more than photons leave open. So the field goes one step towards where photons laid down
        and photons looked up are equal on every voxel, which is where the scored likelihood has its maximum.

        Parameters
        ----------
        photons, exposure : list of two (edge³) float32
        flattening : (edge³) float32 or None
            What look-ups find around each voxel over what it holds, from `Evidence.flattening`.
        """
        if flattening is None:
            return
        looked_up = np.maximum(friedel_sum(exposure[0] + exposure[1]), 0) * flattening
        weight = looked_up * self.ratio
        if weight @ np.square(np.log(flattening)) > ROUGHEST**2 * weight.sum():
            return
        counted = friedel_sum(photons[0] + photons[1])
        scored = self.band_filter(
            self._cube(counted), self._cube(looked_up), self.smoothing, self.band, self._cube(self.ratio)
        )
        self.overshoot = scored.reshape(-1) - self.ratio

    def _filtered(self, photons: F32, exposure: F32, band: float) -> F32:
        return np.maximum(self.band_filter(photons, exposure, self.smoothing, band, None), np.float32(DARKEST / 2))

    def _cube(self, grid: NDArray[Any]) -> NDArray[Any]:
        return grid.reshape((self.edge,) * 3)

    def log_grid(self) -> F32:
        """(edge³) log ratio, bounded below, whose look-ups between voxels photons are scored against."""
        scored = self.ratio if self.overshoot is None else self.ratio + self.overshoot
        return np.asarray(np.log(np.maximum(scored, DARKEST)), np.float32)

    def volume(self) -> F32:
        """(edge, edge, edge) V(q): mean photons on a pixel of mean response at mean fluence; 0 where unmeasured."""
        value = np.where(self.exposure > UNMEASURED, self.ratio * self.profile_grid, np.float32(0))
        return value.reshape(self.edge, self.edge, self.edge)

    def weight(self) -> F32:
        """(edge, edge, edge) photons expected behind each voxel; 0 where nothing was measured."""
        value = np.where(self.exposure > UNMEASURED, self.exposure, np.float32(0))
        return value.reshape(self.edge, self.edge, self.edge)

    def state(self) -> dict[str, NDArray[Any]]:
        """Arrays from which `restore` goes on."""
        fitted = {} if self.overshoot is None else {"overshoot": self.overshoot}
        return {"ratio": self.ratio, "exposure": self.exposure, "band": np.array(self.band), **fitted}

    def restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Take up a `state`; arrays that are not this field's own are left alone."""
        self.ratio, self.exposure, self.band = arrays["ratio"], arrays["exposure"], float(arrays["band"])
        self.overshoot = arrays.get("overshoot")


class VoxelField(IntensityField):
    """A grid updated in closed form, without a step size."""

    def update(self, photons: list[F32], exposure: list[F32]) -> Iterator[None]:
        """Explain both halves together, by `estimate`."""
        self.ratio = self.estimate(photons[0] + photons[1], exposure[0] + exposure[1])
        self.overshoot = None
        self.exposure = np.maximum(friedel_sum(exposure[0] + exposure[1]), 0)
        yield
