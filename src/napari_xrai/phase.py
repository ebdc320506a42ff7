"""Phase the intensity of a saved run again, from many starts, and put the density into the run."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .core.frames import Phasing, Snapshot, Volume
from .core.resolution import ShellCurve, crossing
from .io.source import InputError
from .run import SavedRun, beside_result, read_run, write_phasing
from .run_lock import only_writer

if TYPE_CHECKING:
    from .core.phasing import PhasingResult

# Idle OpenMP threads must sleep, not spin: on busy cores spinning costs a factor of ten. Read once, at torch's import.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

STARTS = 20
TICK_S = 0.05


class RunPhasing:
    """The phasing of one saved run.

    Parameters
    ----------
    run : Path
        Run folder, or its reconstruction.h5.
    starts, seed : int
        Random phase sets to try; equal seeds give equal densities on the same machine.
    threads : int
        Starts run at a time.

    Attributes
    ----------
    phasing : Phasing or None
        The outcome, once all starts are done.
    density : Volume or None
        None until then, and where phasing failed.

    Raises
    ------
    InputError
        If there is no such run, it has no intensity yet, or fewer than two starts are asked for.
    """

    def __init__(self, run: Path, starts: int = STARTS, seed: int = 0, *, threads: int = 1) -> None:
        if starts < 2:
            raise InputError(f"--starts: {starts} cannot be compared with each other, give at least 2")
        if seed < 0:
            raise InputError(f"--seed: {seed} is negative, give 0 or more")
        self.saved: SavedRun = read_run(run)
        if self.saved.snapshot is None:
            raise InputError(f"{run} has no result yet: phase it after its first report")
        self._snapshot: Snapshot = self.saved.snapshot
        self.starts, self.seed, self.threads = starts, seed, threads
        self.phasing: Phasing | None = None
        self.density: Volume | None = None
        self._done = 0
        self._given_up = threading.Event()

    def steps(self) -> Iterator[tuple[int, int]]:
        """Do it: yields starts done, and starts in all, often. Closing the generator gives up; nothing is written then.

        Raises
        ------
        InputError
            If there is nothing to phase, the run is being written, or it cannot be written.
        """
        folder = self.saved.path
        with only_writer(folder) if folder.is_dir() else nullcontext():
            yield from self._starts()

    def _starts(self) -> Iterator[tuple[int, int]]:
        with ThreadPoolExecutor(1) as pool:
            phased = pool.submit(self._phase)
            try:
                while not phased.done():
                    yield self._done, self.starts
                    time.sleep(TICK_S)
            finally:
                self._given_up.set()  # the start that runs goes on to its end, no other begins
        try:
            result = phased.result()
        except ValueError as error:
            raise InputError(f"{self.saved.path} cannot be phased: {error}") from error
        now = self._snapshot
        self.phasing = self._with_halves(result).of_intensity(now.verdict, now.reason)
        self.density = None if result.verdict == "failed" else result.density
        write_phasing(self.saved, self.density, self.phasing)
        yield self.starts, self.starts

    def _phase(self) -> PhasingResult:
        from .core.phasing import phase

        now = self._snapshot
        return phase(
            now.intensity, now.weight, self.starts, self.seed, radius=math.ceil(now.progress.radius), like=now.density,
            threads=self.threads, on_start=self._count,
        )  # fmt: skip

    def _with_halves(self, result: PhasingResult) -> Phasing:
        from .core.half_densities import compared_by_halves

        record, now = result.record(self.seed), self._snapshot
        if now.trust is None:  # a run stopped early, or made by an older version
            return record
        return compared_by_halves(record, result, now.trust.halves, now.weight, math.ceil(now.progress.radius))

    def _count(self) -> None:
        if self._given_up.is_set():
            raise InterruptedError
        self._done += 1

    @property
    def summary(self) -> str:
        """The outcome in a few lines."""
        if self.phasing is None:
            return "not phased yet"
        lines = [f"{self.phasing.verdict}: {self.phasing.reason}", curve_words(self.phasing, self._snapshot)]
        if self.density is None:
            lines.append("no density is kept: what single starts show is not determined by this intensity")
        else:
            lines.append(str(beside_result(self.saved.path, "density.mrc")))
        if (page := beside_result(self.saved.path, "report.html")).exists():
            lines.append(f"{page} shows what was there before: renew it with  napari-xrai report {self.saved.path}")
        return "\n".join(line for line in lines if line)


def curve_words(phasing: Phasing, snapshot: Snapshot) -> str:
    """Where the starts cease to agree and what the PRTF is there, in words; nothing where no curves are."""
    curves = phasing.curves
    if phasing.kept < 2 or "agreement" not in curves:
        return ""
    agreement = ShellCurve(curves["q"], curves["agreement"], np.zeros(len(curves["q"]), np.int64))
    end = crossing(agreement, 0.5)
    if not end > 0:
        return "the starts agree at no resolution"
    prtf = curves["prtf"][np.isfinite(curves["prtf"])]
    return (
        f"starts agree (mean FSC 0.5) to {length_words(end, snapshot.intensity.units)}; "
        f"PRTF {prtf.mean():.2f} on average, {prtf[-1]:.2f} in the last shell: optimistic, not a resolution"
    )


def length_words(q: float, units: str) -> str:
    """1/q in Å; q itself in detector voxels where there is no wavelength."""
    return f"{1 / q:.3g} Å" if units == "1/angstrom" else f"{q:.3g} detector voxels from the centre"
