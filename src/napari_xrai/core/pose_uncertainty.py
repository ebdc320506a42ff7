"""How far a pose may be from the truth: a 68 % radius for every frame, calibrated on the frames themselves.

The Fisher matrix of a frame under a noisy, blurred field is no measure of its error. Let v be the field, v* the truth,
t and t* their gradients along rotations. At the truth the score of a frame has variance B = Σ K t tᵀ; when the pose
moves, the score's mean moves by A = Σ K t t*ᵀ. So poses scatter about the truth by

    C = ν² κ² A⁻¹ B A⁻¹                                (White 1982, Econometrica 50, 1, for a model that is not true)

- A: noise in t does not correlate with t*, and the blur does not hide from the photons' own contrast. So A = Σ K a t tᵀ
  with, shell by shell, a = ⟨t₀ · t₁⟩ / (H ⟨t' · t'⟩) · ⟨t · t'⟩ / ⟨t · t⟩: t₀ and t₁ of the half-set fields, whose
  noise is independent, H as in `contrast`; t' of the field itself, t of what is scored, with its overshoot (`field`).
  Halves are filtered exactly as the field is: filtered for their own, fewer photons they are blurred more, a comes out
  too small, and radii too large where photons are few.
- κ²: what is wrong with v stays wrong over a whole speckle, so residuals of neighbouring pixels go together. Scores
  summed over patches larger than a speckle scatter by κ² more than photons alone make them (cluster-robust variance;
  Liang & Zeger 1986, Biometrika 73, 13), measured on a few hundred frames.
- ν: a likelihood is not quadratic within an error. Voxels, and the table of expected totals, make it rough: the more
  so, the less photons leave open. Frames drawn from the field, at poses as found, have a known truth: ν is the factor
  by which the radii that their Fisher matrices state must grow to hold 68 % of them (parametric bootstrap; Efron 1985,
  Biometrika 72, 45). How an intensity runs between voxels nobody knows: half of them are drawn from v, half from ln v,
  trilinear, though it is always ln v that scores them.
What frames of one region have in common, a warp of the map, is no part of it: the loop heals most of it (`pose_drift`).
None of these needs the truth, and none is a constant chosen on one data set.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.special import gammaincinv

from .contrast import FEWEST_PHOTONS, SHELLS_TOGETHER, Contrast, common_contrast, half_ratios, response
from .field import DARKEST, IntensityField, friedel_sum
from .kernels import gather
from .likelihood import PoseLikelihood
from .pixels import Pixels, SparsePhotons
from .rotations import RZ_PI, exp_map, geodesic_angle

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

LEVEL = 0.68
PRIOR = 1.0
"""Added to information matrices, rad⁻²: as in refinement."""

PATCH = 2.0
"""Side of a patch of pixels, speckles."""

FRAMES_TESTED = 400
"""Frames whose residuals are looked at, and at whose poses frames are drawn."""

DRAWS = 4
"""Frames drawn at each of these poses, an even number: they make ν² known to 4 %."""

FURTHEST = np.pi / 2
"""No pose is further from another than this, modulo Rz(π), in more than a few cases: radii end here."""

_njit: Any = njit(nogil=True, fastmath={"reassoc", "contract", "arcp", "nsz"}, error_model="numpy", cache=True)


class PoseUncertainty:
    """The 68 % radius of poses found under one field.

    Parameters
    ----------
    pixels : Pixels
    brightness : (U,) float32
        Mean photons per frame and pixel of a structureless particle.
    log_grid : (edge³) float32
        log ratio that poses are found under.
    whole, halves : (edge³) float32, two of (edge³) float32
        log ratio of the field itself, and of the half-set fields.
    response : (S,) float64
        H by shell, from `contrast.response`.
    radius : float
        Photons farther from the beam are not scored, voxels.
    speckle : float
        Width of a speckle, voxels.
    """

    def __init__(
        self, pixels: Pixels, brightness: F32, log_grid: F32, whole: F32, halves: tuple[F32, F32], response: F64,
        radius: float, speckle: float,
    ) -> None:  # fmt: skip
        self.pixels, self.brightness, self.log_grid = pixels, brightness, log_grid
        self.whole, self.halves = whole, halves
        self.n_pixels, self.response = pixels.within(radius), response
        self.light = np.zeros_like(brightness) if pixels.background is None else pixels.background.light
        shell = np.rint(np.linalg.norm(pixels.q, axis=1)).astype(np.int64)
        self.shell = np.asarray(np.minimum(shell, len(response) - 1), np.int64)
        self.patch = patches(pixels, self.n_pixels, PATCH * speckle)
        self._slopes = np.zeros((4, len(pixels.q)))
        self._tested = 0
        self._scatter = np.zeros(2)
        self._beyond: F64 = np.zeros(0)
        self._rng = np.random.default_rng(0)  # its own: weighing poses changes none

    @property
    def contrast_kept(self) -> float:
        """Part of the speckles' amplitude that the field has, 0.2 … 1, where photons fall: little, if it is wrong."""
        shell = self.shell[: self.n_pixels]
        return float(np.average(self.response[shell], weights=self.brightness[: self.n_pixels]))

    @property
    def misfit(self) -> float:
        """κ²: scatter of the scores of patches over what photons alone make, at least 1."""
        found, expected = self._scatter
        return float(max(1.0, found / expected)) if expected > 0 else 1.0

    @property
    def nonlinearity(self) -> float:
        """ν²: of drawn frames, the error over the radius that Fisher information states, squared; 68 % have less."""
        return float(max(1.0, np.quantile(self._beyond, LEVEL) ** 2)) if len(self._beyond) else 1.0

    def test(self, likelihood: PoseLikelihood, photons: SparsePhotons, rotation: F32, fluence: F64) -> None:
        """Look at some frames until enough were seen: at their residuals, and at how well frames like them are found.

        Parameters
        ----------
        likelihood : PoseLikelihood
            Under which the poses were found.
        photons : SparsePhotons
            N frames.
        rotation : (N, 3, 3) float32
            Their poses.
        fluence : (N,) float64
        """
        n = min(len(photons), FRAMES_TESTED - self._tested)
        if n <= 0:
            return
        few, pose = photons.take(np.arange(n)), np.ascontiguousarray(rotation[:n], np.float32)
        self._look_at_slopes(few, pose)
        self._scatter += self._patch_scatter(few, pose, fluence[:n])
        drawn, truth = self.draw(pose, fluence[:n]), np.repeat(pose, DRAWS, 0)
        end, fisher, _ = likelihood.refine(drawn, self._beside(drawn, truth)[:, None])
        self._beyond = np.append(self._beyond, _strayed(end[:, 0], truth, fisher[:, 0]))
        self._tested += n

    def _look_at_slopes(self, few: SparsePhotons, rotation: F32) -> None:
        gradient_products(
            rotation, few.start[:-1], few.stops(self.n_pixels), self.pixels.q, few.pixel,
            few.count * np.square(self.pixels.share[few.pixel]),
            self.log_grid, self.whole, *self.halves, self.pixels.edge, self._slopes,
        )  # fmt: skip
        self.believed = self._belief()

    def _patch_scatter(self, few: SparsePhotons, rotation: F32, fluence: F64) -> F64:
        """(2,) squared scores of patches, in units of the pose's Fisher information: found, and expected of photons."""
        length = int(self.patch.max()) + 1
        score, fisher = np.zeros((len(few), length, 3)), np.zeros((len(few), length, 3, 3))
        patch_scores(
            rotation, few.dense(self.n_pixels), fluence, self.pixels.q, self.brightness, self.light, self.pixels.share,
            self.patch, self.log_grid, self.pixels.edge, score, fisher,
        )  # fmt: skip
        inverse = np.linalg.inv(fisher.sum(1) + PRIOR * np.eye(3))
        # at the likeliest pose the scores sum to zero: each patch has lost what it gave to the fit
        free = fisher - fisher @ inverse[:, None] @ fisher
        found = np.einsum("nbi,nij,nbj->", score, inverse, score)
        return np.array([found, np.einsum("nbij,nji->", free, inverse)])

    def _beside(self, photons: SparsePhotons, rotation: F32) -> F32:
        """(N, 3, 3) poses as far from these as photons leave open, at random."""
        inverse = np.linalg.inv(self._fisher(photons, rotation, np.ones_like(self.brightness)) + PRIOR * np.eye(3))
        aside = np.linalg.cholesky(inverse) @ self._rng.normal(size=(len(rotation), 3, 1))
        return np.asarray(exp_map(aside[:, :, 0]) @ rotation, np.float32)

    def draw(self, rotation: F32, fluence: F64) -> SparsePhotons:
        """`DRAWS` frames at each of (N, 3, 3) poses, of fluence (N,), on the pixels that are scored: every second one
        from v trilinear between voxels, the others from ln v trilinear.
        """
        q, brightness, light = (x[: self.n_pixels] for x in (self.pixels.q, self.brightness, self.light))
        ratio, log_ratio = np.empty((2, 1, self.n_pixels), np.float32)
        field = np.exp(self.log_grid)
        lit = []
        for j, f in enumerate(fluence):
            gather(rotation[j : j + 1], q, field, self.pixels.edge, ratio)
            gather(rotation[j : j + 1], q, self.log_grid, self.pixels.edge, log_ratio)
            rates = [np.maximum(f * brightness * v[0] + light, 0) for v in (ratio, np.exp(log_ratio))]
            for below in [np.cumsum(rate, dtype=np.float64) for rate in rates] * (DRAWS // 2):
                at = np.searchsorted(below, below[-1] * self._rng.random(self._rng.poisson(below[-1])), side="right")
                lit.append(np.unique(np.minimum(at, self.n_pixels - 1), return_counts=True))
        return SparsePhotons(
            start=np.cumsum([0, *(len(pixel) for pixel, _ in lit)]),
            pixel=np.concatenate([pixel for pixel, _ in lit]).astype(np.int32),
            count=np.concatenate([count for _, count in lit]).astype(np.float32),
            index=np.arange(len(lit)),
        )

    def _fisher(self, photons: SparsePhotons, rotation: F32, weight: F32) -> F64:
        """(N, 3, 3) Σ weight s² K t tᵀ at poses (N, 3, 3), `weight` (U,), s the share that photons count by."""
        out = np.zeros((len(photons), 3, 3))
        weighted_fisher(
            np.ascontiguousarray(rotation, np.float32), photons.start[:-1], photons.stops(self.n_pixels), self.pixels.q,
            photons.pixel, photons.count, weight * np.square(self.pixels.share), self.log_grid, self.pixels.edge, out,
        )  # fmt: skip
        return out

    def _belief(self) -> F32:
        """(U,) a for each pixel."""
        window = np.ones(2 * SHELLS_TOGETHER + 1)
        sums = (np.bincount(self.shell, part, len(self.response)) for part in self._slopes)
        common, whole, along, scored = (np.convolve(part, window, "same") for part in sums)
        ratio = np.clip(common * along / np.maximum(whole * scored, 1e-30), 0, 1) / self.response
        return np.asarray(ratio[self.shell], np.float32)

    def covariance(self, photons: SparsePhotons, rotation: F32, fisher: F64) -> F64:
        """(N, 3, 3) of the rotation vector ω in exp(ω)·rotation, rad²; `fisher` (N, 3, 3) as from refinement."""
        inverse = np.linalg.inv(self._fisher(photons, rotation, self.believed) + PRIOR * np.eye(3))
        scatter = inverse @ (self.misfit * fisher + PRIOR * np.eye(3)) @ inverse
        return np.asarray(self.nonlinearity * scatter)

    def radius_deg(self, photons: SparsePhotons, rotation: F32, fisher: F64, confidence: F64) -> F64:
        """(N,) geodesic radius in degrees about each pose that holds the truth with probability 0.68, modulo Rz(π).

        `confidence` (N,) is the probability that the pose's mode is the right one: where it is not, the truth is
        elsewhere, and the radius must make up for it.
        """
        return radius_of(self.covariance(photons, rotation, fisher), confidence)


def _strayed(end: F32, truth: F32, fisher: F64) -> F64:
    """(N,) error of poses (N, 3, 3) over the 68 % radius that their Fisher matrices state."""
    error = np.minimum(geodesic_angle(end, truth), geodesic_angle(end @ RZ_PI, truth))
    stated = radius_of(np.asarray(np.linalg.inv(fisher + PRIOR * np.eye(3))), np.ones(len(truth)))
    return np.asarray(np.degrees(error) / stated)


def measure_uncertainty(
    field: IntensityField, photons: list[F32], exposure: list[F32], contrast: Contrast, pixels: Pixels,
    brightness: F32, radius: float, speckle: float,
) -> PoseUncertainty:  # fmt: skip
    """What poses found under `field` are worth, from the evidence of both halves and the photons' own contrast.

    Parameters
    ----------
    field : IntensityField
    photons, exposure : two of (edge³) float32
        The half-sets behind it.
    contrast : Contrast
        From `photon_contrast`, for fluences as they are.
    pixels, brightness, radius, speckle
        As in `PoseUncertainty`.
    """
    one, other = half_ratios(field, photons, exposure)
    seen = np.minimum(*(friedel_sum(e) for e in exposure)) > FEWEST_PHOTONS
    common = common_contrast((one, other), seen, field.edge)
    whole, *logs = [np.log(np.maximum(ratio, DARKEST)) for ratio in (field.ratio, one, other)]
    return PoseUncertainty(
        pixels,
        brightness,
        field.log_grid(),
        whole,
        (logs[0], logs[1]),
        response(contrast, common),
        radius,
        speckle,
    )


def radius_of(covariance: F64, confidence: F64) -> F64:
    """(N,) degrees: the angle below which a part 0.68 of errors lies, Gaussian of `covariance` (N, 3, 3) with
    probability `confidence` (N,), larger otherwise.

    Its square is taken as Gamma-distributed with its first two moments (Satterthwaite 1946, Biometrics Bull. 2, 110).
    """
    mean = np.trace(covariance, axis1=1, axis2=2)
    variance = 2 * np.einsum("nij,nji->n", covariance, covariance)
    level = LEVEL / np.maximum(confidence, 1e-6)
    shape = np.square(mean) / np.maximum(variance, 1e-300)
    square = gammaincinv(shape, np.minimum(level, 0.999)) * variance / np.maximum(mean, 1e-300)
    return np.degrees(np.where(level < 0.999, np.minimum(np.sqrt(square), FURTHEST), FURTHEST))


def patches(pixels: Pixels, n_pixels: int, side: float) -> NDArray[np.int64]:
    """(n_pixels,) patch of each pixel, about `side` voxels wide; opposite pixels, near Friedel mates, are in one."""
    ring = np.floor(pixels.rho[:n_pixels] / side).astype(int)
    sectors = np.maximum(1, np.rint(np.pi * (ring + 0.5))).astype(int)
    sector = np.floor((pixels.azimuth[:n_pixels] % np.pi) / np.pi * sectors).astype(int)
    return np.asarray(np.unique(ring * (int(sectors.max()) + 1) + sector, return_inverse=True)[1].reshape(-1), np.int64)


@_njit
def _look(r, q, grid, n, t):  # type: ignore[no-untyped-def]
    """Trilinear value of the grid at r q; t = its gradient along rotations, (r q) × ∇."""
    half, n2 = (n - 1) * 0.5, n * n
    sx = r[0, 0] * q[0] + r[0, 1] * q[1] + r[0, 2] * q[2]
    sy = r[1, 0] * q[0] + r[1, 1] * q[1] + r[1, 2] * q[2]
    sz = r[2, 0] * q[0] + r[2, 1] * q[1] + r[2, 2] * q[2]
    x, y, z = sx + half, sy + half, sz + half
    ix, iy, iz = int(x), int(y), int(z)
    fx, fy, fz = x - ix, y - iy, z - iz
    b = (iz * n + iy) * n + ix
    d00, d01 = grid[b + 1] - grid[b], grid[b + n + 1] - grid[b + n]
    v00, v01 = grid[b] + d00 * fx, grid[b + n] + d01 * fx
    b += n2
    d10, d11 = grid[b + 1] - grid[b], grid[b + n + 1] - grid[b + n]
    v10, v11 = grid[b] + d10 * fx, grid[b + n] + d11 * fx
    low, high = v00 + (v01 - v00) * fy, v10 + (v11 - v10) * fy
    gz = high - low
    gy = (v01 - v00) + ((v11 - v10) - (v01 - v00)) * fz
    dl, dh = d00 + (d01 - d00) * fy, d10 + (d11 - d10) * fy
    gx = dl + (dh - dl) * fz
    t[0], t[1], t[2] = sy * gz - sz * gy, sz * gx - sx * gz, sx * gy - sy * gx
    return low + (high - low) * fz


@_njit
def weighted_fisher(rotation, start, stop, q, pixel, count, weight, grid, n, out):  # type: ignore[no-untyped-def]
    """out[f] += Σ weight k t tᵀ over a frame's photons."""
    t = np.zeros(3)
    for f in range(len(rotation)):
        for i in range(start[f], stop[f]):
            p = pixel[i]
            _look(rotation[f], q[p], grid, n, t)
            w = count[i] * weight[p]
            for u in range(3):
                for v in range(3):
                    out[f, u, v] += w * t[u] * t[v]


@_njit
def gradient_products(rotation, start, stop, q, pixel, count, scored, whole, one, other, n, out):  # type: ignore[no-untyped-def]
    """Over all frames' photons, by pixel: out[0] += k t₁·t₂ of two half-set log grids, out[1] += k t'·t' of the whole,
    out[2] += k t·t' and out[3] += k t·t of the one that is scored.
    """
    t, w, a, b = np.zeros(3), np.zeros(3), np.zeros(3), np.zeros(3)
    for f in range(len(rotation)):
        for i in range(start[f], stop[f]):
            p = pixel[i]
            _look(rotation[f], q[p], scored, n, t)
            _look(rotation[f], q[p], whole, n, w)
            _look(rotation[f], q[p], one, n, a)
            _look(rotation[f], q[p], other, n, b)
            for u in range(3):
                out[0, p] += count[i] * a[u] * b[u]
                out[1, p] += count[i] * w[u] * w[u]
                out[2, p] += count[i] * t[u] * w[u]
                out[3, p] += count[i] * t[u] * t[u]


@_njit
def patch_scores(rotation, counts, fluence, q, brightness, light, share, patch, grid, n, score, fisher):  # type: ignore[no-untyped-def]
    """score[f, b] += Σ s (k − d − f w v) t over a patch's pixels, lit or not; fisher[f, b] += Σ s² k t tᵀ."""
    t = np.zeros(3)
    for f in range(len(rotation)):
        for p in range(counts.shape[1]):
            k = counts[f, p]
            expected = fluence[f] * brightness[p] * math.exp(_look(rotation[f], q[p], grid, n, t))
            s = share[p]
            for u in range(3):
                score[f, patch[p], u] += s * (k - light[p] - expected) * t[u]
                if k > 0:
                    for v in range(3):
                        fisher[f, patch[p], u, v] += s * s * k * t[u] * t[v]


def compile_kernels() -> Iterator[None]:
    """Compile the kernels, or load them from numba's cache; yields after each."""
    edge = 5
    rotation, point = np.eye(3, dtype=np.float32)[None], np.zeros((1, 3), np.float32)
    grid = np.zeros(edge**3, np.float32)
    one, zero = np.ones(1, np.float32), np.zeros(1, np.int64)
    photons = (zero, zero + 1, point, np.zeros(1, np.int32), one)
    weighted_fisher(rotation, *photons, one, grid, edge, np.zeros((1, 3, 3)))
    gradient_products(rotation, *photons, grid, grid, grid, grid, edge, np.zeros((4, 1)))
    yield
    patch_scores(
        rotation, one[None], np.ones(1), point, one, one, one, zero, grid, edge,
        np.zeros((1, 1, 3)), np.zeros((1, 1, 3, 3)),
    )  # fmt: skip
    yield
