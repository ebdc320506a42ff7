"""From a diffraction intensity to the particle: many independent starts compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .density_alignment import (
    Offset,
    align_transform,
    apply_offset,
    transform_on_grid,
)
from .frames import Phasing, PhasingVerdict, Volume
from .phase_retrieval import (
    Measurement,
    Recipe,
    first_support,
    iterate,
    known_support,
    measurement,
    random_start,
    residual,
)
from .resolution import ShellCurve, crossing, fsc_of_transforms
from .workers import in_threads

LARGEST_HOLE = 8
"""Voxels: beyond this radius of missing centre starts stop agreeing (18 of 20 right at 8, 2 of 20 at 10)."""


SMALL_BACKGROUND = 0.2
"""Mean share of a shell's intensity. A background below it helps to find the phases, but what it holds in the end is
noise and the weakest speckles: it is let go before error reduction."""

UNEXPLAINED, SMALL_ERROR = 0.5, 0.1
"""Of the error that a density without any speckle would have. Starts above it may well agree, on a point or a blob, but
not on what was measured. An error below the second is small, for a round particle has no speckles to explain."""

TRIED, BETTER_FIT = 3, 0.5
"""First starts with a background, and as many without. It rescues blurred intensities and misleads where the faint
shells are true. It is kept where it takes the error to this part of what it is without; less is what more freedom buys,
and then it is kept where its starts agree better."""


@dataclass(frozen=True, eq=False)
class PhasingResult:
    """The density, and how far to believe it.

    Parameters
    ----------
    density : Volume
        Average of the kept starts, cut at the last measured shell, centred on its mass; its transform is √intensity.
        Its hand is a matter of chance. Shown even where `verdict` says it failed.
    support : (n, n, n) bool
        Of the best start, in the frame of `density`.
    errors : (starts,) float64
        Relative distance of each start's amplitudes from the measured ones.
    kept : (starts,) bool
        Starts that fit, near the best error, and agree with the best one; the rest are failed starts.
    agreement : ShellCurve
        Mean FSC between two kept starts; NaN with fewer than two.
    prtf : ShellCurve
        Phase retrieval transfer function, |⟨exp iφ⟩| over the kept starts, mean over each shell's measured voxels.
        Optimistic: it is not a resolution.
    background : ShellCurve
        Share of each shell's intensity given to an incoherent background.
    hole : float
        Radius of the missing centre, in voxels.
    verdict : "agreed", "doubtful" or "failed"
    reason : str
        Why, in words.
    """

    density: Volume
    support: NDArray[np.bool_]
    errors: NDArray[np.float64]
    kept: NDArray[np.bool_]
    agreement: ShellCurve
    prtf: ShellCurve
    background: ShellCurve
    hole: float
    verdict: PhasingVerdict
    reason: str

    @property
    def failed(self) -> int:
        """Starts left out."""
        return int((~self.kept).sum())

    def record(self, seed: int) -> Phasing:
        """What is kept of it beside the density; `seed` is the one `phase` was given."""
        curves = {name: getattr(self, name).value for name in ("prtf", "agreement", "background")}
        return Phasing(
            self.verdict, self.reason, len(self.kept), int(self.kept.sum()), seed, {"q": self.prtf.q, **curves}
        )


@dataclass(frozen=True, eq=False)
class _Start:
    transform: Tensor
    error: float
    support: Tensor
    background: Tensor | None


def phase(
    intensity: Volume,
    weight: Volume,
    starts: int = 20,
    seed: int = 0,
    *,
    radius: int | None = None,
    diameter: float | None = None,
    support: Volume | None = None,
    like: Volume | None = None,
    recipe: Recipe | None = None,
    threads: int = 1,
    on_start: Callable[[], None] | None = None,
) -> PhasingResult:
    """Phase an intensity from many random starts, and keep what they agree on.

    Parameters
    ----------
    intensity, weight : Volume
        (z, y, x) cubes; weight 0 where nothing was measured.
    starts, seed : int
        Random phase sets; equal seeds give equal results on the same machine, whatever `threads`.
    radius : int, optional
        Last shell to use, in voxels of the intensity: how far the data are trusted; default: as far as measured.
    diameter : float, optional
        Of the first support, in the density's unit; default: from the autocorrelation.
    support : Volume, optional
        Where the particle is known to be (> 0.5), kept as it is: no shrink-wrap.
    like : Volume, optional
        A density shown before, in the same unit: the result is laid over it (shift and hand).
    recipe : Recipe, optional
        How a start runs.
    threads : int
        Starts run at a time, each on one core.
    on_start : callable, optional
        Called after each start, from its thread; what it raises ends the phasing.

    Raises
    ------
    ValueError
        If there is nothing to phase, or a support is empty or does not fit in the box.
    """
    if starts < 1:
        raise ValueError(f"phasing needs at least one start, not {starts}")
    m = measurement(intensity, weight, radius)
    recipe = Recipe() if recipe is None else recipe
    if support is None:
        first = first_support(m, diameter)
    else:
        first = known_support(support, m)
        recipe = replace(recipe, shrink_every=0)

    with one_torch_thread():
        return _compare(*_run_all(m, first, recipe, start_seeds(seed, starts), threads, on_start), m, like)


def _run_all(
    m: Measurement, first: Tensor, recipe: Recipe, seeds: list[int], threads: int, on_start: Callable[[], None] | None
) -> tuple[list[_Start], int]:
    """A start for each seed, and which of them is the best.

    The first ones run with and without a background, the rest in the better way; of its starts the one of least error
    is the best.
    """

    def run(job: tuple[int, Recipe]) -> _Start:
        start = _run_start(m, first, job[1], job[0])
        if on_start is not None:
            on_start()
        return start

    tried = min(TRIED, len(seeds) // 3) if recipe.background else 0
    if not tried:
        runs = in_threads(run, [(seed, recipe) for seed in seeds], threads)
        return runs, _least_error(runs)
    ways = [replace(recipe, background=True)] * tried + [replace(recipe, background=False)] * tried
    runs = in_threads(run, list(zip(seeds, ways, strict=False)), threads)
    fitted, plain = runs[:tried], runs[tried:]
    least = [half[_least_error(half)].error for half in (fitted, plain)]
    background = least[0] < BETTER_FIT * least[1] or _mean_agreement(fitted, m) >= _mean_agreement(plain, m)
    more = in_threads(run, [(seed, replace(recipe, background=background)) for seed in seeds[2 * tried :]], threads)
    own = [*(fitted if background else plain), *more]
    return [*own, *(plain if background else fitted)], _least_error(own)


def _least_error(runs: Sequence[_Start]) -> int:
    return min(range(len(runs)), key=lambda i: runs[i].error)


def _mean_agreement(runs: Sequence[_Start], m: Measurement) -> float:
    """Mean FSC of two starts; 0 for one that does not fit, NaN for a single one."""
    limit = _largest_error(m)
    pairs = [
        _laid_over(a.transform, b.transform, m)[1] if max(a.error, b.error) <= limit else 0.0
        for a, b in combinations(runs, 2)
    ]
    return float(np.mean(pairs)) if pairs else float("nan")


def _largest_error(m: Measurement) -> float:
    """Error above which a start explains nothing: a part of what is left where each shell's amplitude is its mean."""
    mean = torch.bincount(m.shell.view(-1), m.amplitude.view(-1)) / m.per_shell
    left = (m.amplitude - mean.float()[m.shell]) * m.known
    return max(SMALL_ERROR, UNEXPLAINED * float((left.square().sum() / m.amplitude.square().sum()).sqrt()))


def _laid_over(transform: Tensor, reference: Tensor, m: Measurement) -> tuple[Tensor, float]:
    """One start laid over another, and their FSC, a mean over the measured shells."""
    laid = apply_offset(transform, align_transform(transform, reference, m.edge))
    curve = fsc_of_transforms(laid.numpy(), reference.numpy(), 1.0).value
    return laid, float(np.nanmean(curve[int(m.hole) : m.edge + 1]))


def start_seeds(seed: int, n: int) -> list[int]:
    """Seeds of n starts: the first ones are the same however many there are."""
    return [int(s) for s in np.random.SeedSequence(seed).generate_state(n)]


def _run_start(m: Measurement, first: Tensor, recipe: Recipe, seed: int) -> _Start:
    torch.set_num_threads(1)
    state = random_start(m, first, recipe, seed)
    for stage in recipe.stages:
        if stage.method == "er":
            state.background = without_small(state.background, m)
        iterate(state, m, recipe, stage)
    transform = torch.fft.rfftn(state.x)
    return _Start(transform, residual(transform, m, state.background), state.support, state.background)


def _compare(runs: Sequence[_Start], best: int, m: Measurement, like: Volume | None) -> PhasingResult:
    """Lay the starts over the best one, leave out those that do not agree, average the rest."""
    errors = np.array([run.error for run in runs])
    reference = runs[best].transform
    dq = 1.0 / (m.n * m.voxel_size)
    kept = np.zeros(len(runs), bool)
    aligned = []
    limit = min(1.1 * errors[best] + 0.005, _largest_error(m))
    for i in np.flatnonzero(errors <= limit).tolist():
        turned, alike = _laid_over(runs[i].transform, reference, m)
        if alike >= 0.5:
            kept[i] = True
            aligned.append(turned)
    aligned = aligned or [reference]
    average = torch.stack(aligned).mean(0) * (m.shell <= m.edge)
    place = _place(average, m, like)
    data = torch.fft.irfftn(apply_offset(average, place) * m.scale, s=(m.n,) * 3)
    support = torch.fft.irfftn(apply_offset(torch.fft.rfftn(runs[best].support), place), s=(m.n,) * 3) > 0.5
    agreement, prtf = _mutual_fsc(aligned, m, dq), _transfer(aligned, m, dq)
    background = _background_share(runs[best].background, m)
    verdict, reason = _judge(kept, agreement, background, m)
    return PhasingResult(
        density=Volume(np.fft.fftshift(data.numpy()), m.voxel_size, m.units),
        support=np.fft.fftshift(support.numpy()), errors=errors, kept=kept, agreement=agreement, prtf=prtf,
        background=background, hole=m.hole, verdict=verdict, reason=reason,
    )  # fmt: skip


def _place(transform: Tensor, m: Measurement, like: Volume | None) -> Offset:
    """Where to put a density: its centre of mass at the origin, or over the one shown before."""
    if like is None:
        return centring(transform)
    if like.units != m.units:
        raise ValueError(f"the density to lay the result over is in {like.units}, the result in {m.units}")
    return align_transform(transform, transform_on_grid(like, m.n, m.voxel_size), m.edge)


def centring(transform: Tensor) -> Offset:
    """The shift that takes a map's centre of mass to the origin."""
    n = transform.shape[0]
    mass = torch.fft.irfftn(transform, s=(n, n, n)).clamp_(min=0)
    mass = mass * (mass > 0.1 * mass.max())
    k = 2 * np.pi / n * torch.arange(n)
    # on a circle: the particle may lie across the box's edge
    centre = [
        float(torch.atan2(profile @ torch.sin(k), profile @ torch.cos(k))) * n / (2 * np.pi)
        for profile in (mass.sum((1, 2)), mass.sum((0, 2)), mass.sum((0, 1)))
    ]
    return Offset(1, -np.array(centre), float("nan"))


def _mutual_fsc(aligned: Sequence[Tensor], m: Measurement, dq: float) -> ShellCurve:
    """Mean over pairs of Re Σ F_i F_j* / Σ|F|²: from the sum over starts, since |ΣF|² holds every pair."""
    n_starts, n_shells = len(aligned), m.n // 2 + 1
    total = torch.bincount(m.shell.view(-1), torch.stack(list(aligned)).sum(0).abs().square().view(-1))
    powers = torch.stack([f.abs().square() for f in aligned]).sum(0)
    single = torch.bincount(m.shell.view(-1), powers.view(-1))
    value = np.full(n_shells, np.nan)
    if n_starts > 1:
        ratio = (total - single) / ((n_starts - 1) * single).clamp(min=1e-30)
        value = ratio.numpy()[:n_shells].astype(np.float64)
    value[m.edge + 1 :] = np.nan
    return ShellCurve(np.arange(n_shells, dtype=np.float64) * dq, value, _voxels(m, n_shells))


def _transfer(aligned: Sequence[Tensor], m: Measurement, dq: float) -> ShellCurve:
    n_shells = m.n // 2 + 1
    unit = torch.stack([f / f.abs().clamp(min=1e-20) for f in aligned]).mean(0).abs() * m.known
    value = (torch.bincount(m.shell.view(-1), unit.view(-1)) / m.per_shell).numpy()[:n_shells].astype(np.float64)
    count = _voxels(m, n_shells)
    value[count == 0] = np.nan
    return ShellCurve(np.arange(n_shells, dtype=np.float64) * dq, value, count)


def _voxels(m: Measurement, n_shells: int) -> NDArray[np.int64]:
    count = torch.bincount(m.shell.view(-1), m.known.view(-1)).numpy()[:n_shells]
    return np.asarray(count, np.int64)


def without_small(background: Tensor | None, m: Measurement) -> Tensor | None:
    """The background, or none where it is smaller than `SMALL_BACKGROUND`."""
    share = _background_share(background, m).value[: m.edge + 1]
    return None if np.nanmean(share) < SMALL_BACKGROUND else background


def _background_share(background: Tensor | None, m: Measurement) -> ShellCurve:
    n_shells, dq = m.n // 2 + 1, 1.0 / (m.n * m.voxel_size)
    count = _voxels(m, n_shells)
    if background is None:
        value = np.zeros(n_shells)
    else:
        power = torch.bincount(m.shell.view(-1), m.amplitude.square().view(-1)) / m.per_shell
        value = (background.square() / power.clamp(min=1e-30)).numpy()[:n_shells].astype(np.float64)
    value[count == 0] = np.nan
    return ShellCurve(np.arange(n_shells, dtype=np.float64) * dq, value, count)


def _judge(
    kept: NDArray[np.bool_], agreement: ShellCurve, background: ShellCurve, m: Measurement
) -> tuple[PhasingVerdict, str]:
    starts, n_kept = len(kept), int(kept.sum())
    doubts = []
    if m.hole > LARGEST_HOLE:
        doubts.append(
            f"nothing was measured within {m.hole:.0f} voxels of q = 0, and beyond {LARGEST_HOLE} "
            "the particle's outline is not determined"
        )
    share = float(np.nanmean(background.value[: m.edge + 1]))
    if share > 0.5:
        doubts.append(f"{share:.0%} of the intensity of a shell is incoherent background on average")
    if n_kept < 2:
        return "failed", "; ".join([f"no two of {starts} starts agree: the density is not determined", *doubts])
    seen = slice(round(m.hole), None)  # in the hole itself the starts float
    end = crossing(ShellCurve(agreement.q[seen], agreement.value[seen], agreement.count[seen]), 0.5)
    if not end > 0:
        return "failed", "; ".join(["the starts agree in no shell: the density is not determined", *doubts])
    last = agreement.q[m.edge]
    words = f"{n_kept} of {starts} starts agree"
    if np.isfinite(end) and end < last:
        words += f", to {end / agreement.q[1]:.0f} of {m.edge} shells"
    if 0 < share <= 0.5:
        words += f"; an incoherent background of {share:.0%} of a shell's intensity on average was solved for"
    if not end > 0.5 * last:
        doubts.append("they do so at low resolution only")
    if 2 * n_kept < starts:
        doubts.append("most starts failed")
    return ("doubtful" if doubts else "agreed"), "; ".join([words, *doubts])


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Two threads on two busy cores make small transforms ten times slower; starts are what runs in parallel."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
