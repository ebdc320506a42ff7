"""How far a pose may be from the truth: a 68 % radius for every frame, calibrated on the frames themselves.

The Fisher matrix F of a frame under a noisy field is no measure of its error: noise makes a field steeper than the
truth is, and likelihoods sharper than errors. So poses scatter about the truth by

    C = ν² κ² s F⁻¹

- ν²: the field v is to a worse one as the truth is to v. Frames drawn from v, at poses as found, have a known truth.
  They are found under H v + α (v₀ − v₁)/2, with v₀ and v₁ of the half-sets: noise once more, as much and of the same
  kind, and speckles once more as much fainter as v's are than the truth's (`contrast.response`): errors grow with
  their faintness, and stated radii too. ν is the factor by which the radii that their Fisher matrices state must grow
  to hold 68 % of them (parametric bootstrap; Efron 1985, Biometrika 72, 45). It also has what a likelihood is not
  quadratic by: voxels are rough, and the best of several maxima is farther off than the nearest; so they are found
  from as many poses as merged frames are.
- α: both half-sets were merged at poses found under their mean, and frames turn towards its noise. So noise comes back,
  pass by pass, and halves have that part of it in common. An EM iteration keeps the part of an error that is missing
  information, m: α = 1 + m + m² + … = 1/(1 − m). The posterior's samples tell it: m is the variance over them of the
  slope of log L along the noise, over log L's curvature along it (Louis 1982, J. R. Stat. Soc. B 44, 226), for drawn
  frames: the noise where a merged one lies is partly its own photons, which turn no other frame.
- κ²: what is wrong with v stays wrong over a whole speckle, so residuals of neighbouring pixels go together. Scores
  summed over patches larger than a speckle scatter by κ² more than photons alone make them (cluster-robust variance;
  Liang & Zeger 1986, Biometrika 73, 13), measured on a few hundred frames.
- s: a frame's own photons have raised the field where they lie; at a peak of their own making they see no slope. So the
  F of a merged frame, Σ K t tᵀ, is less than the field expects of photons, Σ λ t tᵀ, by a factor s. Drawn frames, which
  no field has merged, tell what that ratio is without: s is that of merged frames over that of drawn ones.
And a pose may be the wrong one of several modes. The posterior tells how much the others hold, but too little: a
frame's own photons lie in the field where its pose put them, and make that mode likelier by e^g. Under the half-set
that a frame is in they count twice, under the other not at all: g is half the mean difference of log-likelihoods.
What frames of one region have in common, a warp of the map, is no part of it: the loop heals most of it (`pose_drift`).
None of these needs the truth, and none is a constant chosen on one data set.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.special import gammaincinv

from . import drawn_frames
from .contrast import FEWEST_PHOTONS, Contrast, common_contrast, half_ratios, response
from .drawn_frames import draw_frames, look
from .field import DARKEST, IntensityField, friedel_sum, grid_radius
from .inference import CANDIDATES_WEIGHED
from .light_tables import Tables
from .likelihood import PoseLikelihood
from .pixels import Pixels, SparsePhotons
from .rotations import RZ_PI, exp_map, geodesic_angle

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Tabulating = Callable[[F32, F32 | None], Generator[None, None, Tables]]
"""`LightTables.of`, within the radius."""
Scoring = Callable[[F32, Tables], PoseLikelihood]
"""`LightTables.likelihood`, within the radius."""

LEVEL = 0.68
PRIOR = 1.0
"""Added to information matrices, rad⁻²: as in refinement."""

PATCH = 2.0
"""Side of a patch of pixels, speckles."""

FRAMES_TESTED = 400
"""Frames whose residuals are looked at, and at whose poses frames are drawn."""

DRAWS = 4
"""Frames drawn at each of these poses: they make ν² known to 4 %."""

SAMPLES = 4
"""Of the posterior of each frame tested, for the missing information."""

MOST_MISSING = 0.75
"""Part of the information that is believed to be missing at most: where more is, the field is noise."""

FURTHEST = np.pi / 2
"""No pose is further from another than this, modulo Rz(π), in more than a few cases: radii end here."""

_njit: Any = njit(nogil=True, fastmath={"reassoc", "contract", "arcp", "nsz"}, error_model="numpy", cache=True)


class NoisierField:
    """Likelihoods under a field, with more of the noise of the reconstruction.

    Parameters
    ----------
    scoring : Scoring
    scored, noise : (edge³) float32
        The ratio that photons are scored against, and half the difference of the half-sets.
    tables, added : Tables
        Of the field, and what noise once more adds to them.
    """

    def __init__(self, scoring: Scoring, scored: F32, noise: F32, tables: Tables, added: Tables) -> None:
        self.scoring, self.scored, self.noise, self.tables, self.added = scoring, scored, noise, tables, added

    def __call__(self, amount: float) -> PoseLikelihood:
        """The likelihood with `amount` times the noise added; what tables hold is as good as linear in it."""
        return self.scoring(noisier(self.scored, self.noise, amount), plus(self.tables, self.added, amount))


def noisier(scored: F32, noise: F32, amount: float) -> F32:
    """(edge³) log ratio with `amount` times the noise added."""
    return np.log(np.maximum(scored + np.float32(amount) * noise, np.float32(DARKEST)))


def plus(tables: Tables, added: Tables, amount: float) -> Tables:
    """`tables` and `amount` times `added`."""
    (photons, light), (more_photons, more_light) = tables, added
    step = np.float32(amount)
    return photons + step * more_photons, None if light is None or more_light is None else light + step * more_light


class PoseUncertainty:
    """The 68 % radius of poses found under one field.

    Parameters
    ----------
    pixels : Pixels
    brightness : (U,) float32
        Mean photons per frame and pixel of a structureless particle.
    log_grid : (edge³) float32
        log ratio that poses are found under.
    ratio : (edge³) float32
        The field itself.
    noisier_field, fainter_field : NoisierField
        What photons are scored against, and the same with the speckles fainter by H.
    response : (S,) float64
        H by shell, from `contrast.response`.
    radius : float
        Photons farther from the beam are not scored, voxels.
    speckle : float
        Width of a speckle, voxels.
    """

    def __init__(
        self, pixels: Pixels, brightness: F32, log_grid: F32, ratio: F32, noisier_field: NoisierField,
        fainter_field: NoisierField, response: F64, radius: float, speckle: float,
    ) -> None:  # fmt: skip
        self.pixels, self.brightness, self.log_grid = pixels, brightness, log_grid
        self.ratio, self.noisier_field, self.fainter_field = ratio, noisier_field, fainter_field
        self.n_pixels, self.response = pixels.within(radius), response
        self.light = np.zeros_like(brightness) if pixels.background is None else pixels.background.light
        shell = np.rint(np.linalg.norm(pixels.q, axis=1)).astype(np.int64)
        self.shell = np.asarray(np.minimum(shell, len(response) - 1), np.int64)
        self.patch = patches(pixels, self.n_pixels, PATCH * speckle)
        self._tested = 0
        self._scatter, self._missing = np.zeros(2), np.zeros(2)
        self._merged, self._drawn = np.zeros(2), np.zeros(2)
        self._own: F64 = np.zeros(0)
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
    def bootstrap(self) -> float:
        """ν²: of drawn frames, the error over the radius that Fisher information states, squared; 68 % have less."""
        return float(max(1.0, np.quantile(self._beyond, LEVEL) ** 2)) if len(self._beyond) else 1.0

    @property
    def missing(self) -> float:
        """m: part of what frames would say of others' noise, were their poses known, that they do not."""
        spread, curvature = self._missing
        return float(np.clip(spread / curvature, 0, MOST_MISSING)) if curvature > 0 else 0.0

    @property
    def self_evidence(self) -> float:
        """s: the Fisher information of frames that the field has merged, over that of frames it has not; at most 1."""
        (own, expected), (fresh, fresh_expected) = self._merged, self._drawn
        return float(min(1.0, own / expected * fresh_expected / fresh)) if expected * fresh > 0 else 1.0

    @property
    def own_gain(self) -> float:
        """g: log-likelihood that a frame gains at its pose because its own photons are in the field, at least 0."""
        return float(max(0.0, self._own.mean() / 2)) if len(self._own) else 0.0

    def test(
        self, likelihood: PoseLikelihood, photons: SparsePhotons, rotation: F32, fisher: F64, fluence: F64
    ) -> None:  # fmt: skip
        """Look at some frames until enough were seen: at their residuals, and at how well frames like them are found.

        Parameters
        ----------
        likelihood : PoseLikelihood
            Under which the poses were found.
        photons : SparsePhotons
            N frames.
        rotation : (N, 3, 3) float32
            Their poses.
        fisher : (N, 3, 3) float64
            As from refinement.
        fluence : (N,) float64
        """
        n = min(len(photons), FRAMES_TESTED - self._tested)
        if n <= 0:
            return
        few, pose = photons.take(np.arange(n)), np.ascontiguousarray(rotation[:n], np.float32)
        self._scatter += self._patch_scatter(few, pose, fluence[:n])
        self._merged += self._information(few, pose, fluence[:n])
        self._own = np.append(self._own, self._gained(likelihood, few, pose, fisher[:n]))
        self._draw(likelihood, pose, fisher[:n], fluence[:n])
        self._tested += n

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

    def _along_noise(
        self, likelihood: PoseLikelihood, few: SparsePhotons, rotation: F32, fisher: F64
    ) -> tuple[F64, F64, F64]:  # fmt: skip
        """(N, SAMPLES) weights of posterior samples, and there log L's slope along the field's noise, and curvature."""
        normal = self._rng.normal(size=(len(few), 1, SAMPLES, 3))
        sample, weight = likelihood.sample(few, rotation[:, None], fisher[:, None], 1.0, normal)
        less, now, more = (
            scored.score(few, sample) for scored in (self.noisier_field(-1.0), likelihood, self.noisier_field(1.0))
        )
        return weight, (more - less) / 2, 2 * now - more - less

    def _gained(self, likelihood: PoseLikelihood, few: SparsePhotons, rotation: F32, fisher: F64) -> F64:
        """(N,) log L under the half-set that each frame is in, over that under the other."""
        weight, slope, _ = self._along_noise(likelihood, few, rotation, fisher)
        own_half = np.where(few.index % 2 == 0, 1.0, -1.0)  # more of the noise is more of the even half
        return np.asarray(own_half * 2 * (weight * slope).sum(1))

    def _missing_information(
        self, likelihood: PoseLikelihood, few: SparsePhotons, rotation: F32, fisher: F64
    ) -> F64:  # fmt: skip
        """(2,) variance over the posterior of log L's slope along the field's noise, and its curvature along it."""
        weight, slope, curvature = self._along_noise(likelihood, few, rotation, fisher)
        spread = weight * np.square(slope - (weight * slope).sum(1, keepdims=True))
        unbiased = len(few) / max(float((1 - np.square(weight).sum(1)).sum()), 1e-9)
        return np.array([spread.sum() * unbiased, (weight * curvature).sum()])

    def _information(self, few: SparsePhotons, rotation: F32, fluence: F64) -> F64:
        """(2,) Σ K t·t of the frames' photons, and Σ λ t·t of those expected."""
        out = np.zeros(2)
        information(
            rotation, few.dense(self.n_pixels), fluence, self.pixels.q, self.brightness, self.light, self.pixels.share,
            self.log_grid, self.pixels.edge, out,
        )  # fmt: skip
        return out

    def _draw(self, likelihood: PoseLikelihood, pose: F32, fisher: F64, fluence: F64) -> None:
        """Draw frames from the field: note how steep they see it and what they miss of its noise, and how far off they
        are when found under one that is fainter and noisier.
        """
        drawn = draw_frames(self.pixels, self.brightness, self.n_pixels, self.ratio, pose, fluence, DRAWS, self._rng)
        truth = np.repeat(pose, DRAWS, 0)
        aside = np.repeat(np.linalg.cholesky(np.linalg.inv(fisher + PRIOR * np.eye(3))), DRAWS, 0)
        step = np.einsum("nij,nsj->nsi", aside, self._rng.normal(size=(len(truth), CANDIDATES_WEIGHED, 3)))
        start = np.asarray(exp_map(step) @ truth[:, None], np.float32)  # at the truth, the nearest maximum is too near
        some = np.arange(0, len(truth), DRAWS)
        fresh = drawn.take(some)
        fitted, stated, _ = likelihood.refine(fresh, start[some, :1])
        found = np.ascontiguousarray(fitted[:, 0])
        self._drawn += self._information(fresh, found, fluence)
        self._missing += self._missing_information(likelihood, fresh, found, stated[:, 0])
        end, stated, value = self.fainter_field(1 / (1 - self.missing)).refine(drawn, start)
        best = np.arange(len(truth)), value.argmax(1)
        self._beyond = np.append(self._beyond, strayed(end[best], truth, stated[best]))

    def covariance(self, fisher: F64) -> F64:
        """(N, 3, 3) of the rotation vector ω in exp(ω)·rotation, rad²; `fisher` (N, 3, 3) as from refinement."""
        widening = self.bootstrap * self.misfit * self.self_evidence
        return np.asarray(widening * np.linalg.inv(fisher + PRIOR * np.eye(3)))

    def radius_deg(self, fisher: F64, rivals: F64) -> F64:
        """(N,) geodesic radius in degrees about each pose that holds the truth with probability 0.68, modulo Rz(π).

        `fisher` (N, 3, 3) is as from refinement. `rivals` (N,) is the part of the posterior that other modes hold: if
        one of them is right, the truth is elsewhere, and the radius must make up for it.
        """
        others = rivals * np.exp(self.own_gain)
        return radius_of(self.covariance(fisher), (1 - rivals) / (1 - rivals + others))


def strayed(end: F32, truth: F32, fisher: F64) -> F64:
    """(N,) error of poses (N, 3, 3) over the 68 % radius that their Fisher matrices state."""
    error = np.minimum(geodesic_angle(end, truth), geodesic_angle(end @ RZ_PI, truth))
    stated = radius_of(np.asarray(np.linalg.inv(fisher + PRIOR * np.eye(3))), np.ones(len(truth)))
    return np.asarray(np.degrees(error) / stated)


def measure_uncertainty(
    field: IntensityField, photons: list[F32], exposed: list[F32], contrast: Contrast, pixels: Pixels, brightness: F32,
    tables: Tables, tabulating: Tabulating, scoring: Scoring, radius: float, speckle: float,
) -> Generator[None, None, PoseUncertainty]:  # fmt: skip
    """Return what poses found under `field` are worth; yields between steps of work.

    Parameters
    ----------
    field : IntensityField
    photons, exposed : two of (edge³) float32
        The half-sets behind it.
    contrast : Contrast
        From `photon_contrast`, for fluences as they are.
    pixels, brightness, radius, speckle
        As in `PoseUncertainty`.
    tables : Tables
        Of the field.
    tabulating : Tabulating
    scoring : Scoring
    """
    one, other = half_ratios(field, photons, exposed)
    yield
    seen = np.minimum(*(friedel_sum(e) for e in exposed)) > FEWEST_PHOTONS
    kept = response(contrast, common_contrast((one, other), seen, field.edge))
    log_grid = field.log_grid()
    scored, noise = np.asarray(np.exp(log_grid), np.float32), np.asarray((one - other) / 2, np.float32)

    def tables_of(log: F32) -> Generator[None, None, Tables]:
        return tabulating(log, np.exp(log) if field.overshoot is None else None)

    added = plus((yield from tables_of(noisier(scored, noise, 1.0))), tables, -1.0)
    faint = fainter(scored, kept, field.edge)
    of_faint = yield from tables_of(noisier(faint, noise, 0.0))
    return PoseUncertainty(
        pixels, brightness, log_grid, field.ratio, NoisierField(scoring, scored, noise, tables, added),
        NoisierField(scoring, faint, noise, of_faint, added), kept, radius, speckle,
    )  # fmt: skip


def fainter(ratio: F32, response: F64, edge: int) -> F32:
    """(edge³) ratio with its speckles fainter by the response (S,) of their shell; beyond the last shell, of that."""
    shell = np.minimum(np.rint(grid_radius(edge)).astype(int), len(response) - 1).reshape(-1)
    return np.asarray(1 + response[shell] * (ratio - 1), np.float32)


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
def patch_scores(rotation, counts, fluence, q, brightness, light, share, patch, grid, n, score, fisher):  # type: ignore[no-untyped-def]
    """score[f, b] += Σ s (k − d − f w v) t over a patch's pixels, lit or not; fisher[f, b] += Σ s² k t tᵀ."""
    t = np.zeros(3)
    for f in range(len(rotation)):
        for p in range(counts.shape[1]):
            k = counts[f, p]
            expected = fluence[f] * brightness[p] * math.exp(look(rotation[f], q[p], grid, n, t))
            s = share[p]
            for u in range(3):
                score[f, patch[p], u] += s * (k - light[p] - expected) * t[u]
                if k > 0:
                    for v in range(3):
                        fisher[f, patch[p], u, v] += s * s * k * t[u] * t[v]


@_njit
def information(rotation, counts, fluence, q, brightness, light, share, grid, n, out):  # type: ignore[no-untyped-def]
    """out[0] += Σ s² k t·t over pixels, and out[1] += Σ s² (f w v + d) t·t."""
    t = np.zeros(3)
    for f in range(len(rotation)):
        for p in range(counts.shape[1]):
            expected = fluence[f] * brightness[p] * math.exp(look(rotation[f], q[p], grid, n, t))
            square = share[p] * share[p] * (t[0] * t[0] + t[1] * t[1] + t[2] * t[2])
            out[0] += counts[f, p] * square
            out[1] += (expected + light[p]) * square


def compile_kernels() -> Iterator[None]:
    """Compile the kernels, or load them from numba's cache; yields after each."""
    edge = 5
    rotation, point = np.eye(3, dtype=np.float32)[None], np.zeros((1, 3), np.float32)
    one, patch, grid = np.ones(1, np.float32), np.zeros(1, np.int64), np.zeros(edge**3, np.float32)
    frame = (rotation, one[None], np.ones(1), point, one, one, one)
    patch_scores(*frame, patch, grid, edge, np.zeros((1, 1, 3)), np.zeros((1, 1, 3, 3)))
    yield
    information(*frame, grid, edge, np.zeros(2))
    yield
    drawn_frames.compile_kernels()
    yield
