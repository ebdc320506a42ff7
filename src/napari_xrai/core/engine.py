"""What is known of the particle, and how frames change it: inferred in batches, merged, explained by a field.

What loops over files and over streams have in common; `reconstruction` and `online` say in which order frames are seen.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .amortised import AmortisedPoses
from .beam_centre import Beam
from .blocks import Column
from .contrast import photon_contrast
from .evidence import Evidence
from .field import DARKEST, IntensityField, RadialProfile
from .fields import make_field
from .frame_table import FrameTable
from .frames import Detector, Frames, Progress, Snapshot, Verdict, Volume
from .inference import CANDIDATES_REFINED, CANDIDATES_WEIGHED, Proposer, by_search, infer_poses, same_mode
from .junk import Law
from .light_tables import LightTables
from .likelihood import PoseLikelihood, gamma_shape
from .pixels import SparsePhotons, pixels_of
from .pose_drift import PoseDrift
from .pose_uncertainty import PoseUncertainty, measure_uncertainty
from .proposals import choose_proposals
from .reconstruction_settings import ReconstructionSettings
from .reservoir import Volumes
from .resolution import ShellCurve, crossing, half_set_correlation
from .search import PolarSearch
from .settled_pixels import settle_pixels, used_geometry
from .sizing import measure_size
from .symmetry import Orbit, point_group
from .torch_backend import backend_of
from .trust import Trust, assess
from .verdict import Signs, hopeless, judge, so_far

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

# Lengths in speckles (1/diameter), sampling in orientations per speckle: where klh1 (a 270 Å particle simulated at 497
# photons/frame) converges most often. A start at 2.2 speckles gets stuck, one at 1.3 mostly too.
START_RADIUS = 1.585
FEWEST_RINGS = 0.95
MARCH = 0.5
SEARCH_RADIUS = 1.9
SEARCH_SAMPLING = 3.2
MARCHING_UPDATES, FRAMES_PER_UPDATE = 6, 4000
FIRST_BETA = 0.5
"""Inverse temperature of the march's first posteriors; it rises to 1."""
BAND_AGAIN = 1.3
"""Growth of the resolution after which the field's band is measured again."""

SUPPORTED = 0.15
"""Half-set shell correlation that lets the resolution grow past a shell."""

LIVE_POSES, RESOLVED = 5000, 0.5


class Engine:
    """A field and the poses of the frames seen so far.

    Parameters
    ----------
    detector : Detector
    settings : ReconstructionSettings

    Raises
    ------
    ValueError
        Where the mask leaves too few pixels, or there is no such device.
    """

    def __init__(self, detector: Detector, settings: ReconstructionSettings) -> None:
        self.settings, self.backend = settings, backend_of(settings.device)
        self.detector, self.pixels = detector, pixels_of(detector)
        self.group, self.rng = point_group(settings.symmetry), np.random.default_rng(settings.seed)
        self.orbit: Orbit | None = None
        self.table, self.drift, self.proposals = FrameTable(), PoseDrift(), settings.proposals
        self.facts: dict[str, str] = {}
        self.history: dict[str, list[float]] = {name: [] for name in HISTORY}
        self.field: IntensityField | None = None
        self.uncertainty: PoseUncertainty | None = None
        self.carried: tuple[list[F32], list[F32]] | None = None
        self.halves: ShellCurve | None = None
        self.phase, self.fraction, self.seen = "getting ready (slow the first time)", 0.0, 0
        self.passes_done = self.updates = self.starts = self.coarse_updates = 0
        self.begun, self.weighing, self.gaining = False, False, True
        self.restored: dict[str, NDArray[Any]] | None = None
        self.beam: Beam | None = None
        self.finer: float | None = None
        self.radius = self.agreement = self.settled = self.band_radius = 0.0
        self.fluence_shape, self.contrast_kept, self.gain = float("inf"), 1.0, 0.0
        self.junk_law: Law | None = None
        self.looks_like, self.asymmetric, self.crowding = "", False, 0.0

    def _receive(self, frames: Frames) -> SparsePhotons:
        """Note a batch's arrival; its hits, as sparse photons on usable pixels."""
        photons = self.pixels.sparse(frames)
        empty = photons.totals(self.pixels.n_orient) == 0
        self.table.receive(photons.index, empty)
        return photons.take(np.flatnonzero(~empty)) if empty.any() else photons

    def _settle(self, frames: SparsePhotons) -> SparsePhotons:
        """Take the pixels for what frames show them to be; the frames on those."""
        if frames.repeat:
            raise ValueError(
                f"the first {len(frames):,} frames have the same photons: the detector was stuck, or one frame was "
                "written again and again"
            )
        move, take_out = self.settings.beam_centre == "auto", self.settings.uneven_background == "auto"
        found = settle_pixels(self.detector, self.pixels, frames, self.beam, move, take_out, self.finer)
        self.pixels, self.speckle, self.beam, self.finer = found.pixels, found.speckle, found.beam, found.finer
        self.facts |= found.facts
        self.orbit = Orbit(self.group, self.pixels.edge) if len(self.group) > 1 else None
        return found.frames

    def _measure(self, reservoir: SparsePhotons) -> None:
        """Choose everything that comes from the data, and say what was chosen."""
        pixels = self.pixels
        light = 0 if pixels.background is None else len(reservoir) * pixels.background.light
        counts = np.bincount(reservoir.pixel, reservoir.count, len(pixels.rho)) - light
        self.profile = RadialProfile(pixels, counts, len(reservoir))
        self.contrast = photon_contrast(pixels, reservoir)
        size, inner = self.speckle.size, pixels.inner_radius
        self.start_radius = min(max(START_RADIUS * size, inner + FEWEST_RINGS * size), pixels.orient_radius)
        if not self.begun:
            given = {"fixed": float("inf"), "profiled": 0.0}
            self.fluence_shape = given.get(self.settings.fluence, self.speckle.fluence_shape)
        self._lay_out()
        unit, particle = pixels.voxel_size, measure_size(pixels, reservoir, self.speckle)
        self.diameter = max(particle.diameter, self.speckle.diameter)
        length = "Å" if pixels.units == "1/angstrom" else "/voxel"
        self.facts.update({
            "diameter": f"{particle.diameter / unit:.3g} {length}, from the {particle.source}",
            "start": f"{1 / (self.start_radius * unit):.3g} {length}",
            "edge resolution": f"{1 / (pixels.orient_radius * unit):.3g} {length}",
            "volume": f"{pixels.edge}³ voxels",
            "batch": f"{self.backend.batch_size} frames, on {self.backend.name}",
        })  # fmt: skip
        if self.settings.proposals == "auto":
            photons, interval = reservoir.count.sum() / len(reservoir), min(len(reservoir), FRAMES_PER_UPDATE)
            self.proposals, self.facts["poses named by"] = choose_proposals(len(pixels.rho), photons, interval)

    def _lay_out(self) -> None:
        """Make what goes with these pixels."""
        self.used_geometry = used_geometry(self.detector, self.pixels, self.beam or Beam())
        pixels, size = self.pixels, self.speckle.size
        self.brightness = (pixels.response * self.profile(np.linalg.norm(pixels.q, axis=1))).astype(np.float32)
        self.light = LightTables(self.backend, pixels, self.brightness, size, self.settings.threads)
        self.gate = self.backend.junk_gate(pixels, self.brightness, size, self.junk_law)
        self.flattening: F32 | None = None
        self.amortised = AmortisedPoses(pixels, self.brightness, size, self.fluence_shape, self.backend.device)

    def _new_field(self, kind: str, rng: np.random.Generator) -> IntensityField:
        return make_field(kind, self.pixels, self.profile, self.speckle.size, rng, self.backend)

    def _prepare(self, proposals: str) -> Generator[Progress, None, tuple[PoseLikelihood, list[Proposer]]]:
        """The likelihood under the present field and resolution, and who proposes poses."""
        field, threads = self.field, self.settings.threads
        assert field is not None
        log_grid, radius = field.log_grid(), self.radius
        ratio = field.ratio if field.overshoot is None else None
        tables = yield from self._with_progress(self.light.of(log_grid, ratio, radius))
        scoring = partial(self.light.likelihood, radius=radius, fluence_shape=self.fluence_shape)
        proposers: list[Proposer] = []
        if proposals in ("search", "both"):
            near = max(min(SEARCH_RADIUS * self.speckle.size, radius), self.start_radius)
            sampling = SEARCH_SAMPLING * self.speckle.diameter
            search = PolarSearch(self.pixels, self.light.brightness, near, sampling, self.group, self.backend)
            search.set_field(field.ratio, field.edge, self.fluence_shape, self.rng, DARKEST, threads)
            proposers.append(by_search(search, threads))
        if proposals in ("encoder", "both"):
            yield from self._with_progress(self.amortised.sleep(field.ratio, self.radius, self.rng))
            proposers.append(self.amortised.propose)
        self.uncertainty = None
        if self.weighing and self.carried is not None:
            contrast, tabulating = self.contrast.with_fluence(self.fluence_shape), partial(self.light.of, radius=radius)
            self.uncertainty = yield from self._with_progress(measure_uncertainty(
                field, *self.carried, contrast, self.pixels, self.brightness, tables, tabulating, scoring, radius,
                self.speckle.size,
            ))  # fmt: skip
            self.contrast_kept = self.uncertainty.contrast_kept
        return scoring(log_grid, tables), proposers

    def _with_progress(self, work: Iterator[None]) -> Generator[Progress, None, Any]:
        """Run work that yields nothing of interest, yielding the present progress instead."""
        while True:
            try:
                next(work)
            except StopIteration as end:
                return end.value
            yield self.progress()

    def _merge(
        self, photons: SparsePhotons, likelihood: PoseLikelihood, proposers: list[Proposer], evidence: Evidence
    ) -> F64:
        """Infer a batch and lay it into the evidence.

        Returns sums over frames that fit: number, log-likelihood gained, poses that stayed, and the moments K, S, K²,
        KS, S² of photons K counted and S expected.
        """
        last, known = self.table.rotation(photons.index)
        beta = FIRST_BETA ** max(0.0, 1 - self.updates / MARCHING_UPDATES)
        refined = CANDIDATES_REFINED if self.uncertainty is None else CANDIDATES_WEIGHED
        found = infer_poses(photons, likelihood, proposers, self.table, beta, self.rng, self.group, refined)
        totals = likelihood.counted(photons)
        fits = np.ones(len(photons), bool)
        if self.radius == self.pixels.orient_radius and self.field is not None:  # sooner the field is too coarse
            fits = ~self.gate.junk(photons, found.rotation, self.field.ratio)
            self.table.judge(photons.index, ~fits)
        kept = fits[found.row]
        row, sample = found.row[kept], found.sample[kept]
        evidence.add(
            photons, row, self.drift.ahead(sample), found.weight[kept], likelihood.fluence(sample, totals[row])
        )
        gain = likelihood.gain(found.log_likelihood, totals)
        fluence = likelihood.fluence(found.rotation, totals)
        self.table.put(photons.index, found.rotation, fluence, gain, found.confidence)
        self.table.put_modes(photons.index, found.modes)
        if self.uncertainty is not None:
            self.uncertainty.test(likelihood, photons, found.rotation, found.fisher, fluence)
            self.table.put_radius(photons.index, self.uncertainty.radius_deg(found.fisher, found.rivals))
        stayed = same_mode(last, found.rotation, self.group) & known & fits
        if self.begun and self.orbit is None:
            self.drift.add(last[stayed], found.rotation[stayed])
        k, s = totals[fits].astype(np.float64), likelihood.expected(found.rotation[fits])
        return np.array([len(k), gain[fits].sum(), stayed.sum(), k.sum(), s.sum(), k @ k, k @ s, s @ s])

    def _volumes(self, evidence: Evidence) -> Generator[None, None, Volumes]:
        """What `evidence` says about each voxel, and what look-ups in the present field make of it."""
        assert self.field is not None
        photons, exposure = yield from evidence.volumes(self.orbit)
        if not self.begun or np.isfinite(evidence.radius):  # much else is missing from the field
            self.flattening, self.coarse_updates = None, self.updates + 1
        elif self.flattening is None or (fine := self.updates - self.coarse_updates) & (fine + 1) == 0:  # 1, 3, 7, …
            self.flattening = yield from evidence.flattening(self.field.log_grid(), exposure, self.orbit)
        return photons, exposure

    def _explain(self, photons: list[F32], exposure: list[F32], tally: F64) -> Generator[Progress, None, None]:
        """Fit the field to evidence of both halves, and look at what came of it."""
        assert self.field is not None
        self.carried = photons, exposure
        if self.begun and self.radius > BAND_AGAIN * self.band_radius:
            yield from self._with_progress(self.field.choose_band(photons, exposure, self.radius, self.diameter))
            self.band_radius = self.radius
        yield from self._with_progress(self.field.update(photons, exposure))
        self.field.fit_look_ups(photons, exposure, self.flattening)
        self.halves = half_set_correlation(self.field, photons, exposure, self.pixels)
        self.updates += 1
        self.junk_law = self.gate.settle()
        frames, likelihood, stayed, *moments = tally
        self.settled = stayed / frames
        for name, value in zip(HISTORY, (float(self.seen), likelihood / frames, self.resolution_q()), strict=True):
            self.history[name].append(value)
        if self.settings.fluence == "auto" and self.begun:
            self.fluence_shape = gamma_shape(*moments)
            self.facts["fluence spread"] = f"{100 / np.sqrt(self.fluence_shape):.0f} %"
        self._march()

    def _march(self) -> None:
        """Let the resolution grow by half a speckle, if the halves agree where it stands now."""
        assert self.halves is not None
        if self.halves.value[min(int(self.radius), len(self.halves.value) - 1)] > SUPPORTED:
            self.radius = min(self.radius + MARCH * self.speckle.size, self.pixels.orient_radius)

    def progress(self) -> Progress:
        """Where the loop stands."""
        return Progress(self.phase, self.fraction, self.seen, self.radius)

    def resolution_q(self) -> float:
        """|q| to which the halves agree to better than one half; NaN while the particle is not found."""
        return crossing(self.halves, RESOLVED) if self.begun and self.halves is not None else float("nan")

    def snapshot(self, all_poses: bool = False) -> Snapshot | None:
        """The result so far, or None before there is any.

        Parameters
        ----------
        all_poses : bool
            Every frame's pose, not an even sample of at most `LIVE_POSES`; and what the intensity is worth.
        """
        if self.field is None:
            return None
        pixels, resolved, (verdict, reason) = self.pixels, self.resolution_q(), self.verdict()
        curve = (self.halves.q, self.halves.value) if self.halves is not None else (np.zeros(0), np.zeros(0))
        return Snapshot(
            intensity=Volume(self.field.volume(), pixels.voxel_size, pixels.units),
            weight=Volume(self.field.weight(), pixels.voxel_size, pixels.units),
            density=None,
            poses=self.table.poses(None if all_poses else LIVE_POSES),
            status=self.table.status,
            history={name: np.array(values) for name, values in self.history.items()},
            shells=dict(zip(("q", "half_cc"), curve, strict=True)),
            counters=self.table.counters(),
            progress=self.progress(),
            resolution_A=1 / resolved if np.isfinite(resolved) and pixels.units == "1/angstrom" else None,
            verdict=verdict,
            reason=reason,
            facts=dict(self.facts),
            geometry=self.used_geometry,
            trust=self.trust() if all_poses else None,
        )

    def trust(self) -> Trust | None:
        """What the intensity is worth, or None while the particle is not found; it takes a moment."""
        if not self.begun or self.field is None or self.halves is None or self.carried is None:
            return None
        contrast, views = self.contrast.with_fluence(self.fluence_shape), self.table.directions(self.group)
        return assess(self.field, *self.carried, self.halves, views, self.table.counters().used, contrast, self.pixels)

    def pose_columns(self) -> Mapping[str, Column]:
        """Every frame's pose, by the names of `Poses`, to be written before the engine goes on: nothing is copied."""
        return self.table.pose_columns()

    @property
    def off_centre(self) -> float:
        """Speckles from the beam, as it was settled, to where photons mirror."""
        return self.beam.off if self.beam else 0.0

    @property
    def hopeless(self) -> str:
        """Why no pass will find anything, as the frames show; nothing where there is hope."""
        return hopeless(self.speckle.sampled, self.off_centre)

    def verdict(self) -> tuple[Verdict, str]:
        """One look, with the reason in words."""
        if self.phase != "done":
            return so_far(self.phase, self.settled if self.begun else None, self.speckle.sampled, self.off_centre)
        count = self.table.counters()
        return judge(Signs(
            sampled=self.speckle.sampled, used=count.used, junk=count.junk, starts=self.starts,
            agreement=self.agreement, settled=self.settled, gaining=self.gaining, contrast=self.contrast_kept,
            off_centre=self.off_centre, crowding=self.crowding, group_named=self.orbit is not None,
            asymmetric=self.asymmetric, looks_like=self.looks_like,
        ))  # fmt: skip

    def state(self) -> tuple[dict[str, Column], dict[str, Any]]:
        """Arrays, the table's own too, and a JSON-able rest, from which `restore` goes on; empty before a full pass."""
        if self.field is None or self.carried is None or not self.begun:
            return {}, {}
        arrays = self.field.state() | {"drift": self.drift.coefficient.copy()}
        for half in range(2):
            arrays[f"photons_{half}"], arrays[f"exposure_{half}"] = self.carried[0][half], self.carried[1][half]
        rest = {name: getattr(self, name) for name in CONTINUED}
        rest |= {"rng": self.rng.bit_generator.state, "beam": vars(self.beam or Beam())}
        return arrays | self.table.state(), rest

    def restore(self, arrays: dict[str, NDArray[Any]], rest: dict[str, Any]) -> None:
        """Take up a `state`; an empty one starts anew."""
        if not arrays:
            return
        for name in CONTINUED:
            setattr(self, name, rest.get(name, getattr(self, name)))  # older checkpoints lack some
        self.beam = Beam.of(rest.get("beam", {}))  # older checkpoints have it where the geometry does
        self.finer = self.finer or 1.0  # older checkpoints have voxels as wide as pixels
        self.rng.bit_generator.state = rest["rng"]
        self.carried = [arrays[f"photons_{h}"] for h in range(2)], [arrays[f"exposure_{h}"] for h in range(2)]
        self.table = FrameTable.of(arrays)
        self.drift.coefficient[:] = arrays.get("drift", 0)  # older checkpoints have none
        self.restored = arrays

    def _take_up(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Go on from restored arrays, once the data have said what the field is to be like."""
        assert self.carried is not None
        self.field = self._new_field(self.settings.field, np.random.default_rng(0))
        self.field.restore(arrays)
        self.halves = half_set_correlation(self.field, *self.carried, self.pixels)  # there may be no update to come
        self.restored = None


HISTORY = ("frames_seen", "log_likelihood", "resolution_q")

CONTINUED = (
    "history", "facts", "passes_done", "updates", "radius", "agreement", "settled", "band_radius", "contrast_kept",
    "junk_law", "gaining", "gain", "seen", "fluence_shape", "begun", "starts", "looks_like",
    "asymmetric", "finer",
)  # fmt: skip
"""Plain values of a `Reconstruction` that a state carries."""
