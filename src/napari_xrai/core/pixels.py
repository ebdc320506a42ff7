"""The engine's view of a detector: usable pixels in voxel units, ordered so that a resolution limit is a prefix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .frames import BAD, GOOD, Detector, Frames, Units

LARGEST_RADIUS = 64.0
"""Detector edge in voxels beyond which pixels are binned into larger voxels."""

LEAST_COVERAGE = 0.6
"""A ring orients particles when at least this part of its circumference is measured."""


@dataclass(frozen=True, eq=False)
class Background:
    """Light that is the same in every frame and not even about the beam, as `uneven_background` finds it.

    Parameters
    ----------
    light : (U,) float32
        Photons per frame beside what is even; a little negative where that was taken too high.
    share : (U,) float32
        What a photon counts: the even part of the light there, 0 … 1.
    """

    light: NDArray[np.float32]
    share: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Pixels:
    """Usable pixels: first those that orient, then those that are only merged, each by rising distance from the beam.

    Parameters
    ----------
    q : (U, 3) float32
        Lab-frame scattering vectors in voxels.
    response : (U,) float32
        Solid angle × polarisation, mean 1.
    rho, azimuth : (U,) float64
        Polar coordinates of (q_x, q_y): voxels, radians.
    n_orient : int
        Pixels ``[:n_orient]`` orient.
    rank : (P,) int32
        Row of each detector pixel here, −1 where it is masked out.
    voxel_size : float
        Of the volume, in `units`.
    ewald_radius : float
        1/λ in voxels.
    edge : int
        Voxels along an edge of the volume: odd, so that q = 0 is the middle voxel.
    background : Background or None
        None: it is even about the beam, or there is none.
    """

    q: NDArray[np.float32]
    response: NDArray[np.float32]
    rho: NDArray[np.float64]
    azimuth: NDArray[np.float64]
    n_orient: int
    rank: NDArray[np.int32]
    voxel_size: float
    units: Units
    ewald_radius: float
    edge: int
    background: Background | None = None

    @cached_property
    def share(self) -> NDArray[np.float32]:
        """(U,) what a photon on each pixel counts."""
        return np.ones(len(self.rho), np.float32) if self.background is None else self.background.share

    @property
    def inner_radius(self) -> float:
        """Radius of the beam stop's edge, voxels."""
        return float(self.rho[0])

    @property
    def orient_radius(self) -> float:
        """Largest radius that orients, voxels."""
        return float(self.rho[self.n_orient - 1])

    def within(self, radius: float) -> int:
        """How many orienting pixels lie within `radius` voxels of the beam."""
        return int(np.searchsorted(self.rho[: self.n_orient], radius, side="right"))

    @property
    def on_detector(self) -> NDArray[np.int64]:
        """(U,) which detector pixel each is."""
        there = np.flatnonzero(self.rank >= 0)
        return np.asarray(there[np.argsort(self.rank[there])])

    def only(self, kept: NDArray[np.bool_]) -> Pixels:
        """These pixels without those that are not `kept` (U,)."""
        rank = np.append(np.where(kept, np.cumsum(kept) - 1, -1), -1)[self.rank]  # −1, masked out, stays so
        left = self.background and Background(self.background.light[kept], self.background.share[kept])
        return replace(
            self, q=self.q[kept], response=self.response[kept], rho=self.rho[kept], azimuth=self.azimuth[kept],
            n_orient=int(kept[: self.n_orient].sum()), rank=rank.astype(np.int32), background=left,
        )  # fmt: skip

    def on_finer_voxels(self, finer: float) -> Pixels:
        """These pixels in a volume of voxels `finer` times smaller."""
        q = self.q * np.float32(finer)
        return replace(
            self, q=q, rho=self.rho * finer, voxel_size=self.voxel_size / finer,
            ewald_radius=self.ewald_radius * finer, edge=volume_edge(q),
        )  # fmt: skip

    def lit_like(self, other: Pixels) -> Pixels:
        """These pixels under the background of `other` pixels on the same detector, none where those have none."""
        if other.background is None:
            return self
        row = other.rank[self.on_detector]
        light, share = other.background.light[row], other.background.share[row]
        known = row >= 0
        return replace(self, background=Background(np.where(known, light, 0), np.where(known, share, 1)))

    def sparse(self, frames: Frames) -> SparsePhotons:
        """Photons of `frames` on these pixels, by rising rank within each frame."""
        return SparsePhotons(frames.start, frames.pixel, frames.count.astype(np.float32), frames.index).at(self.rank)


@dataclass(frozen=True, eq=False)
class SparsePhotons:
    """Compressed rows of photons over `Pixels` (start, pixel, count), with the frames' source positions."""

    start: NDArray[np.int64]
    pixel: NDArray[np.int32]
    count: NDArray[np.float32]
    index: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.index)

    def stops(self, n_pixels: int) -> NDArray[np.int64]:
        """(N,) end of each frame's photons on the first `n_pixels` pixels."""
        below = np.concatenate([[0], np.cumsum(self.pixel < n_pixels)])
        return np.asarray(self.start[:-1] + below[self.start[1:]] - below[self.start[:-1]])

    def totals(self, n_pixels: int, share: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """(N,) photons of each frame on the first `n_pixels` pixels, each counting its pixel's `share` (U,), or 1."""
        near = self.count * (self.pixel < n_pixels)
        counted = near if share is None else near * share[self.pixel]
        photons = np.concatenate([[0.0], np.cumsum(counted, dtype=np.float64)])
        return np.asarray(photons[self.start[1:]] - photons[self.start[:-1]], np.float32)

    def dense(self, n_pixels: int) -> NDArray[np.float32]:
        """(N, n_pixels) photons on the first `n_pixels` pixels."""
        out = np.zeros((len(self), n_pixels), np.float32)
        row = np.repeat(np.arange(len(self)), np.diff(self.start))
        near = self.pixel < n_pixels
        out[row[near], self.pixel[near]] = self.count[near]
        return out

    @property
    def repeat(self) -> bool:
        """Whether there are several frames, and all have the same photons."""
        length = np.diff(self.start)
        if len(self) < 2 or (length != length[0]).any():
            return False
        pixel, count = self.pixel.reshape(len(self), -1), self.count.reshape(len(self), -1)
        return bool((pixel == pixel[0]).all() and (count == count[0]).all())

    def at(self, place: NDArray[np.int32]) -> SparsePhotons:
        """The photons at ``place[pixel]`` instead, without those where that is −1; by rising place within a frame."""
        row = np.repeat(np.arange(len(self), dtype=np.int64), np.diff(self.start))
        rank = place[self.pixel]
        kept = rank >= 0
        order = np.argsort(row[kept] * (int(place.max(initial=0)) + 1) + rank[kept])
        start = np.zeros(len(self) + 1, np.int64)
        np.cumsum(np.bincount(row[kept], minlength=len(self)), out=start[1:])
        return SparsePhotons(start, rank[kept][order], self.count[kept][order], self.index)

    def on(self, kept: NDArray[np.bool_]) -> SparsePhotons:
        """The photons on `Pixels.only` these `kept` (U,)."""
        mine = kept[self.pixel]
        start = np.concatenate([[0], np.cumsum(mine)])[self.start]
        rank = (np.cumsum(kept) - 1).astype(np.int32)
        return SparsePhotons(start, rank[self.pixel[mine]], self.count[mine], self.index)

    def take(self, rows: NDArray[np.int64]) -> SparsePhotons:
        """The frames at these positions, in this order."""
        length = np.diff(self.start)[rows]
        start = np.concatenate([[0], np.cumsum(length)])
        entry = np.arange(start[-1]) + np.repeat(self.start[:-1][rows] - start[:-1], length)
        return SparsePhotons(start, self.pixel[entry], self.count[entry], self.index[rows])

    def batches(self, size: int) -> Iterator[SparsePhotons]:
        """All frames, `size` at a time, in order."""
        for first in range(0, len(self), size):
            yield self.take(np.arange(first, min(first + size, len(self))))

    @classmethod
    def concatenate(cls, parts: list[SparsePhotons]) -> SparsePhotons:
        """One out of several over the same pixels."""
        length = np.concatenate([np.diff(p.start) for p in parts])
        return cls(
            np.concatenate([[0], np.cumsum(length)]),
            np.concatenate([p.pixel for p in parts]),
            np.concatenate([p.count for p in parts]),
            np.concatenate([p.index for p in parts]),
        )


def pixels_of(detector: Detector, like: Pixels | None = None) -> Pixels:
    """Choose the voxel from the detector and lay its usable pixels out for the engine.

    The voxel is the step of one pixel in q beside the beam, or an integer multiple of it where the detector's edge
    would lie beyond `LARGEST_RADIUS` voxels. With `like`, voxel and volume are those, pixels that look beyond are left
    out, and the response of the pixels that both have is the same on the whole.

    Raises
    ------
    ValueError
        Where the mask leaves fewer than 32 pixels, or q is in another unit than `like`.
    """
    usable = (detector.mask < BAD) & (detector.response > 0) & np.isfinite(detector.q).all(1)
    if like is not None:
        if detector.units != like.units:
            raise ValueError(f"q is in {detector.units}, not in {like.units} as before")
        usable &= np.linalg.norm(detector.q, axis=1) <= (like.edge - 5) / 2 * like.voxel_size
    if usable.sum() < 32:
        raise ValueError(f"the mask leaves {usable.sum()} usable pixels of {detector.n_pixels}: check the mask")
    step = pixel_step(detector.q[usable])
    if detector.units == "detector_voxel" and abs(step - 1) < 0.05:
        step = 1.0  # the file's own voxel: its volumes then lie on the same grid
    orienting = usable & (detector.mask == GOOD)
    if orienting.sum() < 32:
        raise ValueError(f"the mask leaves {orienting.sum()} pixels for orientation: check the mask")
    rho = np.hypot(detector.q[:, 0], detector.q[:, 1])
    limit = covered_radius(rho[orienting], step)
    voxel = step * max(1, int(np.ceil(limit / step / LARGEST_RADIUS))) if like is None else like.voxel_size
    orienting &= rho <= limit
    order = np.lexsort((rho, ~orienting))
    order = order[usable[order]]
    q = detector.q[order] / voxel
    response = detector.response[order]
    rank = np.full(detector.n_pixels, -1, np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    scale = response.mean()
    if like is not None and (both := (rank >= 0) & (like.rank >= 0)).any():
        scale = np.median(response[rank[both]] / like.response[like.rank[both]])
    return Pixels(
        q=np.ascontiguousarray(q, np.float32),
        response=(response / scale).astype(np.float32),
        rho=rho[order] / voxel,
        azimuth=np.arctan2(q[:, 1], q[:, 0]) % (2 * np.pi),
        n_orient=int(orienting.sum()),
        rank=rank,
        voxel_size=voxel,
        units=detector.units,
        ewald_radius=detector.ewald_radius / voxel,
        edge=volume_edge(q) if like is None else like.edge,
    )


def volume_edge(q: NDArray[np.floating]) -> int:
    """Voxels along an edge of the volume that all `q` (U, 3), voxels, look at, with room for look-ups between them."""
    return 2 * int(np.ceil(np.linalg.norm(q, axis=1).max())) + 5


def pixel_step(q: NDArray[np.float64]) -> float:
    """Median distance in q between neighbouring pixels, near the beam."""
    from scipy.spatial import cKDTree

    near = q[np.argsort(np.linalg.norm(q, axis=1))[:500]]
    distance, _ = cKDTree(near).query(near, k=2)
    return float(np.median(distance[:, 1]))


def covered_radius(rho: NDArray[np.float64], step: float) -> float:
    """Largest radius up to which rings are measured over `LEAST_COVERAGE` of their circumference."""
    ring = np.rint(rho / step).astype(int)
    coverage = np.bincount(ring) / np.maximum(2 * np.pi * np.arange(ring.max() + 1), 1)
    outermost = np.flatnonzero(coverage >= LEAST_COVERAGE)
    if len(outermost) == 0:
        return float(rho.max())
    return float(rho[ring <= outermost[-1]].max())
