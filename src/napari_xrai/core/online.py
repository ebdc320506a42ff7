"""The loop for a stream: every frame is seen once as it comes, and old evidence fades.

The starts run on the first frames, as for files. After them frames are merged as they arrive, in blocks. The last
blocks stay in memory, photons and evidence, as the *reservoir*: when the stream leaves time they are gone through
again, and a block's new evidence takes the place of its old one, so that no frame counts twice (incremental
expectation maximisation, [1]). Evidence of blocks that have left the reservoir halves every `half_life` frames: poses
found while the volume was poor are forgotten.

References
----------
1. R. M. Neal, G. E. Hinton, in *Learning in Graphical Models* (1998), 355. 10.1007/978-94-011-5014-9_12
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from . import kernels, pose_uncertainty
from .arrivals import Arrivals, Inlet
from .beam_centre import Beam
from .blank_background import BlankBackground
from .blocks import Column
from .detector import through_beam
from .engine import MARCH
from .field import NEIGHBOURS
from .frame_table import FrameTable
from .frames import DROPPED, NOT_HIT, Detector, Progress, Snapshot, Verdict
from .inference import Proposer
from .likelihood import PoseLikelihood
from .pixels import SparsePhotons, pixels_of
from .reconstruction import RESERVOIR_FRAMES, RESERVOIR_PHOTONS, Reconstruction
from .reconstruction_settings import ReconstructionSettings
from .reservoir import Block, Growing, Volumes, add_volumes, scale_volumes
from .stopping import GAINING
from .stream_watch import StreamWatch
from .workers import chunks

F64 = NDArray[np.float64]

FEWEST_FIRST = 1000
FIRST_WAIT_S = 20.0
"""The starts begin with `RESERVOIR_FRAMES`, or with so many after so long."""

BLOCK_FRAMES, LARGEST_BLOCK = 2000, 8000
BLOCKS = 4
"""Frames merged between updates, and how many such blocks the reservoir holds."""
UPDATING_SHARE, MARCHING_SHARE = 0.2, 0.5
"""Where frames come fast, blocks grow until updates take no more of the time than this; while the resolution grows."""
MARCHES = 3
"""Evidence reaches so many steps of resolution beyond the present one: a block may see several updates."""

SHORTEST_HALF_LIFE, LONGEST_HALF_LIFE = 4000, 100_000
"""Frames. Between them it is half of the frames used so far: short while poses are poor, long enough to average."""

AGREED = 0.75
"""Starts that agree less are made again once there are twice as many frames."""

WAIT_S = 0.1
QUIET_S = 3.0
BUSY_S = 0.5
"""Behind by more than this, measured in time to work off what waits: each frame gets fewer candidate poses."""
SHED_CANDIDATES = 6
LATENCY_S = 10.0
"""Latency is told over the frames of the last so many seconds."""
MOST_ROUNDS = 8
"""Over the reservoir: once the stream has ended, and blocks seen again while it rests."""

CHANGED = object()
"""Said by nobody: the work is over, and the field is new."""


class OnlineReconstruction(Reconstruction):
    """A `Reconstruction` that follows a stream.

    Parameters
    ----------
    detector : Detector
    settings : ReconstructionSettings
        `passes` is how often the reservoir is gone through once the stream has ended; None: while it pays.
    n_frames : int or None
        Frames after which it ends, where that is known.
    """

    def __init__(self, detector: Detector, settings: ReconstructionSettings, n_frames: int | None) -> None:
        super().__init__(detector, settings, None)
        self.most_frames = n_frames
        self.finer = 1.0  # the reservoir's evidence would take three times the memory
        self.first: SparsePhotons | None = None
        self.past: Volumes | None = None
        self.blocks: deque[Block] = deque()
        self.uses: deque[tuple[float, int, float, float]] = deque()
        self.used = self.rounds = 0
        self.live, self.marching, self.shedding, self.blind = True, True, False, False
        self.watch, self.background = StreamWatch(), BlankBackground()
        self.update_s = 0.0

    # ---------------------------------------------------------------- the loop

    def follow(self, inlet: Inlet) -> Iterator[Progress]:
        """Reconstruct while frames arrive; ends after the stream has ended.

        Close the generator to stop: the best result so far stays in `snapshot`. Called after `restore`, it goes on.

        Raises
        ------
        ValueError
            Where the stream held no frame with photons on usable pixels.
        """
        torch.set_num_threads(1)
        for progress in self._follow(inlet):
            self.watch.listen(inlet.silent_s)  # whatever is being done: the starts alone take many seconds
            yield progress

    def _follow(self, inlet: Inlet) -> Iterator[Progress]:
        yield from self._with_progress(kernels.compile_kernels())
        yield from self._with_progress(pose_uncertainty.compile_kernels())
        first = self.first or (yield from self._first_frames(inlet))
        self.first = self._settle(first)
        self._measure(self.first)
        if not self.begun:
            yield from self._start(self.first, inlet)
        elif self.restored is not None:
            self._take_up(self.restored)
        yield from self._live(inlet)
        self.live = False
        yield from self._rest()
        yield from self._end()

    def _first_frames(self, inlet: Inlet) -> Generator[Progress, None, SparsePhotons]:
        """Wait for enough frames to start from."""
        parts: list[SparsePhotons] = []
        frames = photons = 0
        began: float | None = None
        while frames < RESERVOIR_FRAMES and photons < RESERVOIR_PHOTONS and not inlet.ended:
            arrivals = inlet.take(self.backend.batch_size, WAIT_S)
            if arrivals.detector is not None:
                for part in parts:
                    self.table.note(part.index, DROPPED)
                self._change_detector(arrivals.detector)
                parts, frames, photons = [], 0, 0
            arrived, _ = self._accept(arrivals)
            if len(arrived):
                began = began or time.monotonic()
                parts.append(arrived)
                frames, photons = frames + len(arrived), photons + len(arrived.pixel)
            if began and frames >= FEWEST_FIRST and time.monotonic() - began > FIRST_WAIT_S:
                break
            silent_s = inlet.silent_s or 0.0
            quiet = f"no frames for {silent_s:.0f} s: " if silent_s > QUIET_S else ""
            self.phase = f"{quiet}waiting for the first frames"
            yield self.progress()
        if not parts:
            raise ValueError("no frame with a photon on a usable pixel came: check the stream and the mask")
        return SparsePhotons.concatenate(parts)

    def _start(self, frames: SparsePhotons, inlet: Inlet) -> Iterator[Progress]:
        """Find the particle on these frames, while others arrive and wait."""
        meanwhile: list[Arrivals] = []
        table, self.begun = self.table, False
        for progress in self._begin(frames):
            meanwhile.append(inlet.take(0, 0.0))
            self._note(meanwhile[-1])
            if self.table is not table:
                table = self._note_again(meanwhile)
            yield replace(progress, fraction=self.fraction)
        self._note_again(meanwhile)
        self.begun = True
        assert self.carried is not None
        self.past, self.used = None, len(frames)
        self.blocks = deque([Block(frames, self.carried)])
        self.rounds, self.gaining = 0, True

    def _note_again(self, meanwhile: list[Arrivals]) -> FrameTable:
        """Each start has a table of its own, which knows only what came before the starts."""
        for arrivals in meanwhile:
            self._note(arrivals)
        return self.table

    def _live(self, inlet: Inlet) -> Iterator[Progress]:
        """Merge frames as they come; while none do, see the reservoir again."""
        new = self._new_block()
        likelihood, proposers = yield from self._prepare(self.proposals)
        again: Iterator[None] | None = None
        while not inlet.ended:
            arrivals = inlet.take(self.backend.batch_size, 0.0 if self._again_pays() else WAIT_S)
            changed = arrivals.detector is not None
            if arrivals.detector is not None:
                if len(new):
                    yield from self._close(new)
                self._change_detector(arrivals.detector)
                new = self._new_block()
                likelihood, proposers = yield from self._prepare(self.proposals)
            took, acquired = self._accept(arrivals)
            if len(took):
                new.merge(took, self._merge(took, likelihood, self._shed(proposers, inlet), new.evidence))
                self._note_use(len(took), acquired)
            elif self._again_pays():
                again = again or self._see_again(likelihood, proposers)
                changed = next(again, CHANGED) is CHANGED
            if self._is_full(new):
                yield from self._close(new)
                new, changed = self._new_block(), True
                if self._should_start_again():
                    self.first = SparsePhotons.concatenate([block.photons for block in self.blocks])
                    yield from self._start(self.first, inlet)
            if changed:
                again = None
                likelihood, proposers = yield from self._prepare(self.proposals)
            self._say_what_it_does(inlet, len(took) > 0)
            yield self.progress()
        if len(new):
            yield from self._close(new)

    def _new_block(self) -> Growing:
        reach = self.radius + MARCHES * MARCH * self.speckle.size + NEIGHBOURS
        return Growing(self.light.evidence(reach), [], np.zeros(8))

    def _is_full(self, block: Growing) -> bool:
        """Whether it is time for an update: not so often that frames would have to wait for it."""
        if len(block) < BLOCK_FRAMES:
            return False
        share = MARCHING_SHARE if self.marching else UPDATING_SHARE
        return len(block) >= LARGEST_BLOCK or time.monotonic() - block.since > self.update_s / share

    def _close(self, new: Growing) -> Iterator[Progress]:
        """Take a block into the reservoir, let the oldest go, and update the field."""
        began, radius = time.monotonic(), self.radius
        volumes = yield from self._with_progress(self._volumes(new.evidence))
        if self.past is not None:
            scale_volumes(self.past, 0.5 ** (len(new) / self.half_life))
        self.blocks.append(Block(SparsePhotons.concatenate(new.parts), volumes))
        self.first = self.first or self.blocks[-1].photons
        while len(self.blocks) > 1 and (len(self.blocks) > BLOCKS or self._photons_held() > RESERVOIR_PHOTONS):
            gone = min(self.blocks, key=lambda block: int(block.photons.index[0]))
            self.blocks.remove(gone)
            self.past = gone.evidence if self.past is None else add_volumes(self.past, gone.evidence)
        self.rounds, self.gaining = 0, True
        yield from self._explain(*self._total(), new.tally)
        self.watch.note_update(self.used, self._likelihood(), self.resolution_q())
        self.update_s, self.marching = time.monotonic() - began, self.radius > radius

    def _total(self) -> Volumes:
        """Evidence of the reservoir, and what is left of that before it."""
        known = [block.evidence for block in self.blocks] + ([self.past] if self.past is not None else [])
        total = [grid.copy() for grid in known[0][0]], [grid.copy() for grid in known[0][1]]
        for volumes in known[1:]:
            add_volumes(total, volumes)
        return total

    @property
    def half_life(self) -> float:
        """Frames after which evidence from before the reservoir counts half."""
        return float(np.clip(self.used / 2, SHORTEST_HALF_LIFE, LONGEST_HALF_LIFE))

    def _again_pays(self) -> bool:
        return bool(self.blocks) and (self.rounds < len(self.blocks) or (self.gaining and self.rounds < MOST_ROUNDS))

    def _should_start_again(self) -> bool:
        """Whether no two starts agreed, and there are twice as many frames now to start from."""
        held = sum(len(block.photons) for block in self.blocks)
        return self.agreement < AGREED and held >= 2 * len(self.first or ())

    def _photons_held(self) -> int:
        return sum(len(block.photons.pixel) for block in self.blocks)

    def _likelihood(self) -> float:
        return self.history["log_likelihood"][-1]

    # ---------------------------------------------------------------- what comes in

    def _accept(self, arrivals: Arrivals) -> tuple[SparsePhotons, F64]:
        """The next hits and when they were acquired; takes note of all that came."""
        self._note(arrivals)
        if self.blind:
            self.table.note(arrivals.frames.index, DROPPED)
            return self.pixels.sparse(arrivals.frames.take(slice(0, 0))), arrivals.acquired[:0]
        photons = self._receive(arrivals.frames)
        kept = np.isin(arrivals.frames.index, photons.index, assume_unique=True)
        self.watch.note(len(photons), len(arrivals.not_hit), float(photons.count.sum()))
        return photons, arrivals.acquired[kept]

    def _change_detector(self, detector: Detector) -> None:
        """Go on with another mask or geometry: evidence stays, the photons of the reservoir lie on pixels that went."""
        same_geometry = np.array_equal(detector.q, self.detector.q)
        if not same_geometry:  # of another geometry the beam is not known to be elsewhere
            self.beam = Beam() if self.begun else None
        self.detector = moved = detector
        if self.beam and any(self.beam.tangent):
            moved = through_beam(detector, np.array(self.beam.tangent))
        try:
            pixels = pixels_of(moved, self.pixels if self.begun else None)
        except ValueError as error:
            self.blind = True
            self.watch.say(f"frames under the new detector are dropped: {error}")
            return
        if self.begun and same_geometry:
            pixels = pixels.lit_like(self.pixels)
        self.blind, self.pixels, self.background = False, pixels, BlankBackground()
        if not self.begun:
            return
        for block in self.blocks:
            self.past = block.evidence if self.past is None else add_volumes(self.past, block.evidence)
        self.blocks.clear()
        self.first = None
        self.radius = min(self.radius, pixels.orient_radius)
        self._lay_out()
        self.watch.say("mask or geometry changed")

    def _note(self, arrivals: Arrivals) -> None:
        self.table.note(arrivals.not_hit, NOT_HIT)
        self.table.note(arrivals.dropped, DROPPED)
        if arrivals.blanks is not None and not self.blind:
            self.background.note(arrivals.blanks)
        if self.most_frames:
            self.fraction = min(1.0, self.table.length / self.most_frames)
        else:
            self.fraction = float("nan")

    def _note_use(self, n: int, acquired: F64) -> None:
        self.seen, self.used = self.seen + n, self.used + n
        now, clock = time.monotonic(), time.time()
        self.uses.append((now, n, float(np.median(clock - acquired)), float((clock - acquired).max())))
        while self.uses[0][0] < now - LATENCY_S:
            self.uses.popleft()

    def _rate(self) -> float:
        """Fresh frames used per second, lately."""
        if len(self.uses) < 2:
            return 0.0
        return sum(use[1] for use in list(self.uses)[1:]) / max(1e-3, self.uses[-1][0] - self.uses[0][0])

    def _shed(self, proposers: list[Proposer], inlet: Inlet) -> list[Proposer]:
        """Fewer candidate poses for each frame while more frames wait than can be used at once."""
        self.shedding = inlet.waiting > BUSY_S * max(self._rate(), self.backend.batch_size)
        if not self.shedding:
            return proposers
        return [lambda photons, propose=propose: propose(photons)[:, :SHED_CANDIDATES] for propose in proposers]  # type: ignore[misc]

    def _say_what_it_does(self, inlet: Inlet, came: bool) -> None:
        silent_s = inlet.silent_s or 0.0
        if came and self.shedding:
            self.phase = "following the stream, with fewer candidate poses to keep up"
        elif came or silent_s <= QUIET_S:
            self.phase = "following the stream"
        else:
            doing = "seeing the reservoir again" if self._again_pays() else "waiting"
            self.phase = f"no frames for {silent_s:.0f} s: {doing}"

    # ---------------------------------------------------------------- the reservoir again

    def _rest(self) -> Iterator[Progress]:
        """After the stream's end: go through the reservoir until it no longer pays, and say what poses are worth."""
        if not self.blocks:
            return
        most = MOST_ROUNDS if self.settings.passes is None else self.settings.passes
        self._join_blocks()
        for n in range(most):
            self.phase = f"the stream has ended: seeing the reservoir again, round {n + 1}"
            self.weighing = n > 0 or most == 1 or self.past is not None
            before, radius = self._likelihood(), self.radius
            likelihood, proposers = yield from self._prepare(self.proposals)
            yield from self._with_progress(self._see_again(likelihood, proposers))
            self.passes_done += 1
            if self.weighing and self._likelihood() - before < GAINING and self.radius == radius:
                break

    def _join_blocks(self) -> None:
        """Make one block of the reservoir: an update after each round is enough when nobody waits for it."""
        evidence = self.blocks[0].evidence
        for block in list(self.blocks)[1:]:
            add_volumes(evidence, block.evidence)
        self.blocks = deque([Block(SparsePhotons.concatenate([block.photons for block in self.blocks]), evidence)])

    def _see_again(self, likelihood: PoseLikelihood, proposers: list[Proposer]) -> Iterator[None]:
        """Infer the poses of the block that was not seen for longest; its new evidence takes the place of the old."""
        block = self.blocks[0]
        evidence, tally = self._new_block().evidence, np.zeros(8)
        for part in chunks(len(block.photons), self.backend.batch_size):
            tally += self._merge(block.photons.take(np.arange(part.start, part.stop)), likelihood, proposers, evidence)
            self.seen += part.stop - part.start
            yield
        block.evidence = yield from self._volumes(evidence)
        self.blocks.rotate(-1)
        self.rounds += 1
        before = self._likelihood()
        for _ in self._explain(*self._total(), tally):
            yield
        if self.rounds % len(self.blocks) == 0:
            self.gaining = bool(self._likelihood() - before > GAINING)

    # ---------------------------------------------------------------- what there is to see

    def snapshot(self, all_poses: bool = False) -> Snapshot | None:
        """As of a `Reconstruction`, with what a stream needs to be watched."""
        snapshot = super().snapshot(all_poses)
        if snapshot is None:
            return None
        fading = f"evidence from before the reservoir halves every {self.half_life:,.0f} frames"
        live = self.watched()
        held = f"the last {live['reservoir']:,.0f} frames, seen again while the stream is slow"
        facts = {**snapshot.facts, "reservoir": held, "memory": fading}
        if self.background.sentence:
            facts["background"] = self.background.sentence
        data = self.background.taken_off(snapshot.intensity.data, snapshot.weight.data, self.pixels)
        return replace(
            snapshot, facts=facts, live=live, intensity=replace(snapshot.intensity, data=data),
            alerts=tuple(map(str, self.watch.alerts)),
        )  # fmt: skip

    def watched(self) -> dict[str, float]:
        """Latency from acquisition to use over the last seconds, median and largest; frames in the reservoir."""
        n = [use[1] for use in self.uses]
        latency = [use[2] for use in self.uses]
        return {
            "latency_s": float(np.average(latency, weights=n)) if n else float("nan"),
            "latency_max_s": max((use[3] for use in self.uses), default=float("nan")),
            "reservoir": sum(len(block.photons) for block in self.blocks),
        }

    def verdict(self) -> tuple[Verdict, str]:
        """While frames arrive, it improves if it can; poses that stay are told after the stream has ended."""
        if not self.live:
            return super().verdict()
        return ("failed", self.hopeless) if self.hopeless else ("improving", self.phase)

    # ---------------------------------------------------------------- to continue later

    def state(self) -> tuple[dict[str, Column], dict[str, Any]]:
        """As of a `Reconstruction`, with the frames that everything was measured on.

        Evidence is that of the last update: of at most a block of frames, poses are kept and photons are not.
        """
        arrays, rest = super().state()
        if not arrays or self.first is None:
            return {}, {}
        first = self.first.at(self.pixels.on_detector.astype(np.int32))  # as stored, whatever is left out the next time
        arrays |= {f"stored_{name}": column for name, column in vars(first).items()}
        return arrays, rest | {"used": self.used}

    def restore(self, arrays: dict[str, NDArray[Any]], rest: dict[str, Any]) -> None:
        """Take up a `state`; an empty one starts anew. The reservoir fills again."""
        super().restore(arrays, rest)
        if self.carried is not None:
            self.used = rest["used"]
            first = {n.removeprefix("stored_"): a for n, a in arrays.items() if n.startswith("stored_")}
            self.first = SparsePhotons(**first).at(self.pixels.rank) if first else None  # older checkpoints have none
            self.past = [grid.copy() for grid in self.carried[0]], [grid.copy() for grid in self.carried[1]]
