"""The loop: bootstraps until two agree; then search, refine and merge at a resolution that grows with the evidence."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from . import kernels, pose_uncertainty
from .amortised import AmortisedPoses
from .beam_centre import Beam
from .blocks import Column
from .bootstrap import bootstrap
from .contrast import photon_contrast
from .coverage import ViewDensity
from .evidence import Evidence
from .field import DARKEST, NEIGHBOURS, IntensityField, RadialProfile
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
from .starts import Starts
from .stopping import another_pass_pays, passes_needed
from .symmetry import Orbit, point_group
from .symmetry_search import look_for_symmetry
from .torch_backend import backend_of
from .trust import Trust, assess
from .verdict import judge, so_far

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
BatchReader = Callable[[int, int], Iterator[Frames]]
"""``batches(size, start)``: read the stream from frame `start` on, `size` frames at a time."""

RESERVOIR_FRAMES = 4000
RESERVOIR_PHOTONS = 8_000_000
"""What the bootstraps run on; frames beyond are only ever seen as batches."""

# Lengths in speckles (1/diameter), sampling in orientations per speckle: where klh1 (a 270 Å particle simulated at 497
# photons/frame) converges most often. A start at 2.2 speckles gets stuck, one at 1.3 mostly too.
START_RADIUS = 1.585
FEWEST_RINGS = 0.95
MARCH = 0.5
SEARCH_RADIUS = 1.9
SEARCH_SAMPLING = 3.2
PASSES_PER_START = 2
MARCHING_UPDATES, FRAMES_PER_UPDATE = 6, 4000
FIRST_BETA = 0.5
"""Inverse temperature of the march's first posteriors; it rises to 1."""
BAND_AGAIN = 1.3
"""Growth of the resolution after which the field's band is measured again."""

SUPPORTED = 0.15
"""Half-set shell correlation that lets the resolution grow past a shell."""

SHARE_OF_STARTS, LIVE_POSES, RESOLVED = 0.5, 5000, 0.5


class Reconstruction:
    """Frames in, snapshots out.

    Parameters
    ----------
    detector : Detector
    settings : ReconstructionSettings
    n_frames : int or None
        Frames in the stream, where its end is known.

    Raises
    ------
    ValueError
        Where the mask leaves too few pixels, or there is no such device.
    """

    def __init__(self, detector: Detector, settings: ReconstructionSettings, n_frames: int | None) -> None:
        self.settings, self.n_frames, self.backend = settings, n_frames, backend_of(settings.device)
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
        self.looks_like = ""

    def run(self, batches: BatchReader) -> Iterator[Progress]:
        """Reconstruct; yields about every 100 ms, and ends when done.

        Close the generator to stop: the best result so far stays in `snapshot`. Called after `restore`, it goes on.

        Raises
        ------
        ValueError
            Where the stream holds no frame with photons on usable pixels.
        """
        torch.set_num_threads(1)  # several would round differently: threads split frames instead, always alike
        threadpool_limits(1, "blas")  # and those of the small products between would only spin
        yield from self._with_progress(kernels.compile_kernels())
        yield from self._with_progress(pose_uncertainty.compile_kernels())
        self.phase = "reading frames"
        reservoir, whole = yield from self._gather(batches)
        reservoir = self._settle(reservoir)
        self._measure(reservoir)
        if not self.begun:
            yield from self._begin(reservoir)
            self.begun = True
        elif self.restored is not None:
            self._take_up(self.restored)
        n_frames, size = len(reservoir) if whole else self.n_frames, self.backend.batch_size
        while (total := self._passes(n_frames)) > self.passes_done:
            stream = reservoir.batches(size) if whole else map(self._receive, batches(size, 0))
            self.phase = f"pass {self.passes_done + 1} of {total}"
            start = max(self.fraction, SHARE_OF_STARTS)
            span = (1 - start) / (total - self.passes_done + 1)  # another may pay
            self.weighing = self.passes_done >= total - 1  # what poses are worth is asked where it may be the last time
            before, junk = self.history["log_likelihood"][-1], self.table.counters().junk_share
            yield from self._pass(stream, n_frames or len(reservoir), self.proposals, start, span)
            self.passes_done += 1
            gain = float(self.history["log_likelihood"][-1] - before)  # JSON knows no NumPy
            cleared = self.table.counters().junk_share - junk
            self.gaining, self.gain = another_pass_pays(gain, self.gain, before, self.settled, cleared), gain
        yield from self._end()

    def _end(self) -> Iterator[Progress]:
        """Say what is to be said of the result as a whole."""
        self.phase, self.fraction, self.looks_like = "done", 1.0, ""
        self.facts.pop("symmetry seen", None)
        if self.field is not None and self.orbit is None and self.verdict()[0] != "failed":
            self.looks_like, self.facts["symmetry seen"] = look_for_symmetry(
                self.field.ratio, self.pixels.edge, self.pixels.inner_radius, self.radius, self.speckle.size
            )
        yield self.progress()

    def _gather(self, batches: BatchReader) -> Generator[Progress, None, tuple[SparsePhotons, bool]]:
        """Read the first frames into the reservoir; also returns whether that was the whole stream."""
        parts: list[SparsePhotons] = []
        frames = photons = 0
        for batch in batches(self.backend.batch_size, 0):
            if frames >= RESERVOIR_FRAMES or photons >= RESERVOIR_PHOTONS:
                return SparsePhotons.concatenate(parts), False
            parts.append(self._receive(batch))
            frames, photons = frames + len(parts[-1]), photons + len(parts[-1].pixel)
            yield self.progress()
        if photons == 0:
            raise ValueError("no frame has a photon on a usable pixel: check the frames and the mask")
        return SparsePhotons.concatenate(parts), True

    def _receive(self, frames: Frames) -> SparsePhotons:
        """Note a batch's arrival; its hits, as sparse photons on usable pixels."""
        photons = self.pixels.sparse(frames)
        empty = photons.totals(self.pixels.n_orient) == 0
        self.table.receive(photons.index, empty)
        return photons.take(np.flatnonzero(~empty)) if empty.any() else photons

    def _settle(self, frames: SparsePhotons) -> SparsePhotons:
        """Take the pixels for what frames show them to be; the frames on those."""
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

    def _begin(self, reservoir: SparsePhotons) -> Generator[Progress, None, None]:
        """Start from different noise until two starts find the same particle; the likeliest goes on."""
        received, starts = self.table, Starts(self.pixels.edge, self.pixels.inner_radius, self.orbit is not None)
        while not starts.enough:
            rng = np.random.default_rng([self.settings.seed, starts.made])
            self.field, self.table, self.updates = self._new_field("voxel", rng), FrameTable(), 0
            self.table.adopt(received)
            self.history = {name: [] for name in HISTORY}
            self.phase, self.radius, self.carried = f"start {starts.made + 1}", self.start_radius, None
            span, base = SHARE_OF_STARTS / 2 * (starts.made < 2), SHARE_OF_STARTS / 2 * min(starts.made, 2)
            for share in bootstrap(
                self.field, self.pixels, self.light.brightness, reservoir, self.start_radius, self.speckle.diameter,
                self.fluence_shape, rng, self.settings.threads, self.orbit, self.backend,
            ):  # fmt: skip
                self.fraction = base + span * share * 0.6
                yield self.progress()
            for step in range(PASSES_PER_START):
                part = span * 0.4 / PASSES_PER_START
                begin = base + 0.6 * span + part * step
                frames = reservoir.batches(self.backend.batch_size)
                yield from self._pass(frames, len(reservoir), "search", begin, part)
            crowding = ViewDensity(self.table.directions(self.group)).crowding
            if starts.add(self.field.ratio, self.radius, self.history["log_likelihood"][-1], crowding):
                kept = self.field, self.table, self.carried, self.radius, self.history
        self.agreement, self.starts = starts.agreement, starts.made
        found_field, self.table, self.carried, self.radius, self.history = kept
        # starts are voxels, cheapest at low resolution: another kind of field begins from what they found
        self.field = self._new_field(self.settings.field, np.random.default_rng([self.settings.seed, self.starts]))
        self.field.restore(found_field.state())
        self.facts["starts"] = f"{self.starts}, with the likeliest of which another agrees to {self.agreement:.2f}"

    def _passes(self, n_frames: int | None) -> int:
        """Passes known to be needed: as many updates as the resolution takes to the edge, and more while they pay."""
        if self.settings.passes is not None:
            return self.settings.passes
        per_pass = max(1, round((n_frames or FRAMES_PER_UPDATE) / FRAMES_PER_UPDATE))
        marching = (self.pixels.orient_radius - self.start_radius) / (MARCH * self.speckle.size)
        return passes_needed(int(np.ceil(marching)) - PASSES_PER_START, per_pass, self.passes_done, self.gaining)

    def _pass(
        self, stream: Iterable[SparsePhotons], n_frames: int, proposals: str, start: float, span: float
    ) -> Generator[Progress, None, None]:  # fmt: skip
        """See every frame once: infer its pose, merge it; update the field at the end (often, on long streams)."""
        pixels, previous, before = self.pixels, self.carried, self.radius
        reach = before + MARCH * self.speckle.size + NEIGHBOURS  # as far as the next update may look
        evidence = self.light.evidence(reach)
        done, fresh, tally = 0, 0, np.zeros(8)
        likelihood, proposers = yield from self._prepare(proposals)
        for photons in stream:
            if fresh >= FRAMES_PER_UPDATE and n_frames - done > FRAMES_PER_UPDATE / 2:
                yield from self._update(evidence, previous, 1 - done / n_frames, tally)
                likelihood, proposers = yield from self._prepare(proposals)
                fresh, tally[:] = 0, 0
            tally += self._merge(photons, likelihood, proposers, evidence)
            done, fresh, self.seen = done + len(photons), fresh + len(photons), self.seen + len(photons)
            self.fraction = start + span * min(1.0, done / n_frames)
            yield self.progress()
        yield from self._update(evidence, None, 0.0, tally)
        self.drift.settle(max(1, round(n_frames / FRAMES_PER_UPDATE)), before < self.radius == pixels.orient_radius)

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

    def _update(
        self, evidence: Evidence, previous: Volumes | None, share: float, tally: F64
    ) -> Generator[Progress, None, None]:
        """Explain the evidence: this pass's, and `share` of the previous pass's for frames not yet seen again."""
        photons, exposure = yield from self._with_progress(self._volumes(evidence))
        if previous is not None:
            photons = [new + np.float32(share) * old for new, old in zip(photons, previous[0], strict=True)]
            exposure = [new + np.float32(share) * old for new, old in zip(exposure, previous[1], strict=True)]
        yield from self._explain(photons, exposure, tally)

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

    def verdict(self) -> tuple[Verdict, str]:
        """One look, with the reason in words."""
        off = self.beam.off if self.beam else 0.0
        if self.phase != "done":
            return so_far(self.phase, self.settled if self.begun else None, self.speckle.sampled, off)
        count = self.table.counters()
        crowding = 0.0 if self.orbit is None else ViewDensity(self.table.directions(self.group)).crowding
        return judge(
            sampled=self.speckle.sampled, used=count.used, junk=count.junk, starts=self.starts,
            agreement=self.agreement, settled=self.settled, gaining=self.gaining, contrast=self.contrast_kept,
            off_centre=off, crowding=crowding, looks_like=self.looks_like,
        )  # fmt: skip

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
    "finer",
)  # fmt: skip
"""Plain values of a `Reconstruction` that a state carries."""
