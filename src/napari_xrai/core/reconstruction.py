"""The loop over files: starts until two agree; then all frames again and again, at a resolution that grows with the
evidence.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from . import kernels, pose_uncertainty
from .bootstrap import bootstrap
from .coverage import ViewDensity
from .engine import FRAMES_PER_UPDATE, HISTORY, MARCH, Engine
from .evidence import Evidence
from .field import NEIGHBOURS
from .frame_table import FrameTable
from .frames import Detector, Frames, Progress
from .pixels import SparsePhotons
from .reconstruction_settings import ReconstructionSettings
from .reservoir import Volumes
from .starts import Starts
from .stopping import another_pass_pays, passes_needed
from .symmetry_search import look_for_symmetry

F64 = NDArray[np.float64]
BatchReader = Callable[[int, int], Iterator[Frames]]
"""``batches(size, start)``: read the stream from frame `start` on, `size` frames at a time."""

RESERVOIR_FRAMES = 4000
RESERVOIR_PHOTONS = 8_000_000
"""What the bootstraps run on; frames beyond are only ever seen as batches."""

PASSES_PER_START = 2
SHARE_OF_STARTS = 0.5
"""Of the whole reconstruction, as progress has it."""


class Reconstruction(Engine):
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
        super().__init__(detector, settings)
        self.n_frames = n_frames

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
        self.phase, self.fraction, self.looks_like, self.asymmetric = "done", 1.0, "", False
        self.crowding = ViewDensity(self.table.directions(self.group)).crowding
        self.facts.pop("symmetry seen", None)
        if self.field is not None and self.orbit is None and self.verdict()[0] != "failed":
            seen = look_for_symmetry(
                self.field.ratio, self.pixels.edge, self.pixels.inner_radius, self.radius, self.speckle.size
            )
            self.looks_like, self.asymmetric, self.facts["symmetry seen"] = seen.group, seen.none, seen.words
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
        if self.hopeless:
            return 1
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

    def _update(
        self, evidence: Evidence, previous: Volumes | None, share: float, tally: F64
    ) -> Generator[Progress, None, None]:
        """Explain the evidence: this pass's, and `share` of the previous pass's for frames not yet seen again."""
        photons, exposure = yield from self._with_progress(self._volumes(evidence))
        if previous is not None:
            photons = [new + np.float32(share) * old for new, old in zip(photons, previous[0], strict=True)]
            exposure = [new + np.float32(share) * old for new, old in zip(exposure, previous[1], strict=True)]
        yield from self._explain(photons, exposure, tally)
