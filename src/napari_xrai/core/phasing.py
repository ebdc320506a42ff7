"""From a diffraction intensity to the particle: many independent starts compared, or one followed live."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .density_alignment import (
    Offset,
    align_transform,
    apply_offset,
    crop_transform,
    pad_transform,
    transform_on_grid,
)
from .frames import Phasing, PhasingVerdict, Volume
from .phase_retrieval import (
    POLISH,
    SEARCH,
    SETTLE,
    Iterate,
    Measurement,
    Recipe,
    fft_size,
    first_support,
    iterate,
    known_support,
    measured_radius,
    measurement,
    random_start,
    residual,
    resize,
)
from .resolution import ShellCurve, crossing, fsc_of_transforms
from .workers import in_threads

LARGEST_HOLE = 8
"""Voxels: beyond this radius of missing centre starts stop agreeing (18 of 20 right at 8, 2 of 20 at 10)."""


SMALL_BACKGROUND = 0.2
"""Mean share of a shell's intensity. A background below it helps to find the phases, but what it holds in the end is
noise and the weakest speckles: it is let go before error reduction. It rescues blurred intensities, and misleads where
the faint shells are true: so the first starts try both."""


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
        Starts near the best error that agree with the best one; the rest are failed starts.
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

    with _one_torch_thread():
        return _compare(_run_all(m, first, recipe, _seeds(seed, starts), threads, on_start), m, like)


def _run_all(
    m: Measurement, first: Tensor, recipe: Recipe, seeds: list[int], threads: int, on_start: Callable[[], None] | None
) -> list[_Start]:
    """A start for each seed; the first ones with and without a background, the rest as the best of them."""

    def run(job: tuple[int, Recipe]) -> _Start:
        start = _run_start(m, first, job[1], job[0])
        if on_start is not None:
            on_start()
        return start

    alike = min(2, len(seeds) // 4) if recipe.background else 0
    ways = [replace(recipe, background=tried) for tried in (True, False)] * alike
    runs = in_threads(run, list(zip(seeds, ways, strict=False)), threads)
    if runs:
        recipe = ways[min(range(len(runs)), key=lambda i: runs[i].error)]
    return [*runs, *in_threads(run, [(seed, recipe) for seed in seeds[len(runs) :]], threads)]


def _seeds(seed: int, n: int) -> list[int]:
    return [int(s) for s in np.random.SeedSequence(seed).generate_state(n)]


def _run_start(m: Measurement, first: Tensor, recipe: Recipe, seed: int) -> _Start:
    torch.set_num_threads(1)
    state = random_start(m, first, recipe, seed)
    for stage in recipe.stages:
        share = _background_share(state.background, m).value[: m.edge + 1]
        if stage.method == "er" and np.nanmean(share) < SMALL_BACKGROUND:
            state.background = None
        iterate(state, m, recipe, stage)
    transform = torch.fft.rfftn(state.x)
    return _Start(transform, residual(transform, m, state.background), state.support, state.background)


def _compare(runs: Sequence[_Start], m: Measurement, like: Volume | None) -> PhasingResult:
    """Lay the starts over the best one, leave out those that do not agree, average the rest."""
    errors = np.array([run.error for run in runs])
    best = int(np.argmin(errors))
    reference = runs[best].transform
    dq = 1.0 / (m.n * m.voxel_size)
    kept = np.zeros(len(runs), bool)
    aligned = []
    for i in np.flatnonzero(errors <= 1.1 * errors[best] + 0.005).tolist():
        turned = apply_offset(runs[i].transform, align_transform(runs[i].transform, reference, m.edge))
        curve = fsc_of_transforms(turned.numpy(), reference.numpy(), dq).value
        if np.nanmean(curve[int(m.hole) : m.edge + 1]) >= 0.5:
            kept[i] = True
            aligned.append(turned)
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
        return _centring(transform)
    if like.units != m.units:
        raise ValueError(f"the density to lay the result over is in {like.units}, the result in {m.units}")
    return align_transform(transform, transform_on_grid(like, m.n, m.voxel_size), m.edge)


def _centring(transform: Tensor) -> Offset:
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
    if 4 * n_kept < starts:
        doubts.append("most starts failed")
    return ("doubtful" if doubts else "agreed"), "; ".join([words, *doubts])


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Two threads on two busy cores make small transforms ten times slower; starts are what runs in parallel."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


LIVE = Recipe(stages=(SEARCH,))
SHOWN = Recipe(stages=(POLISH,), shrink_every=0)
SHOWN_STEPS = 8
"""Of error reduction: with 3, noisy early intensities look further from a cold start's average than need be."""
UNSETTLED_UPDATES = 4
"""By the difference map after new shells came in: RAAR would keep to what it had."""


@dataclass(eq=False)
class LivePhasing:
    """A density that follows a changing intensity at a fixed cost per update.

    The raw iterate is carried from one intensity to the next by RAAR, which follows where error reduction would stay
    behind and holds still where the difference map wanders; a few steps of error reduction from it are shown. Beside it
    a challenger grows from fresh random phases by the difference map; once mature it takes over if its error is lower.
    So a start gone wrong heals by itself. What is shown is always laid over what was shown before: neither hand nor
    place jumps.

    Parameters
    ----------
    max_size : int
        Largest grid to phase on, and the grid of the densities shown.
    seed : int
        Of the random starts.
    """

    max_size: int = 64
    seed: int = 0
    residual: float = field(default=float("nan"), init=False)
    """Relative amplitude error of the density shown."""
    agreement: float = field(default=float("nan"), init=False)
    """Whitened correlation of the density shown with the last challenger, from −1 to 1: does phasing repeat?"""

    def __post_init__(self) -> None:
        self._measured: Measurement | None = None
        self._shown: Iterate | None = None
        self._challenger: Iterate | None = None
        self._last: Tensor | None = None
        self._restarts = 0
        self._unsettled = 0

    def update(self, intensity: Volume, weight: Volume, radius: int | None = None) -> Volume:
        """The density of this intensity, warm-started from the one before.

        Parameters
        ----------
        intensity, weight : Volume
            (z, y, x) cubes; weight 0 where nothing was measured.
        radius : int, optional
            Last shell to trust; default: as far as measured. Never beyond the largest grid.

        Returns
        -------
        Volume
            On a grid that stays the same for intensities of the same shape, centred on its mass. What was shown last
            (at first zeros) while there is nothing to be phased.
        """
        size = min(self.max_size, fft_size((intensity.data.shape[0] - 1) // 2))
        limit = min(size // 2 - 1, measured_radius(weight.data) if radius is None else radius)
        try:
            m = measurement(intensity, weight, limit, n=max(32, fft_size(max(limit, 0))))
        except ValueError:
            return self._volume(intensity, size)
        with _one_torch_thread():
            transform, self.residual = self._advance(m)
            shown = self._placed(transform * ((m.shell <= m.edge) * m.scale), m)
        self._last = pad_transform(shown, size) if size >= m.n else crop_transform(shown, size)
        return self._volume(intensity, size)

    def _advance(self, m: Measurement) -> tuple[Tensor, float]:
        """Both iterates a few steps on; the transform to be shown and its error. Each update costs the same."""
        before, self._measured = self._measured, m
        steps = int(np.clip(5 * (64 / m.n) ** 3, 5, 32))
        gain, likeness = (1.0, 0.0) if before is None else _compare_amplitudes(before, m)
        if self._shown is None or likeness < 0.5:
            self._shown, self._challenger, self._unsettled = self._cold(m), None, UNSETTLED_UPDATES
            iterate(self._shown, m, LIVE, SEARCH)
            return _settled(self._shown, m)
        new_shells = before is not None and m.edge != before.edge
        self._unsettled = UNSETTLED_UPDATES if new_shells else max(0, self._unsettled - 1)
        self._shown = _carry(self._shown, m.n, gain)
        iterate(self._shown, m, LIVE, SEARCH if self._unsettled else SETTLE, steps)
        settled = _settled(self._shown, m)
        if self._challenger is None:
            self._challenger = self._cold(m)
            return settled
        self._challenger = _carry(self._challenger, m.n, gain)
        if self._challenger.age >= SEARCH.iterations:
            return self._contest(self._challenger, settled, m)
        iterate(self._challenger, m, LIVE, SEARCH, steps)
        return settled

    def _contest(self, challenger: Iterate, shown: tuple[Tensor, float], m: Measurement) -> tuple[Tensor, float]:
        """A mature challenger takes over if it fits better; either way a new one will start."""
        rival = _settled(challenger, m)
        self._challenger = None
        self.agreement = align_transform(rival[0], shown[0], m.edge).score
        if rival[1] >= 0.97 * shown[1]:
            return shown
        self._shown, self._unsettled = challenger, UNSETTLED_UPDATES
        return rival

    def _cold(self, m: Measurement) -> Iterate:
        self._restarts += 1
        return random_start(m, first_support(m), LIVE, _seeds(self.seed, self._restarts)[-1])

    def _placed(self, transform: Tensor, m: Measurement) -> Tensor:
        """Laid over what was shown last, and a tenth of the way from there to the centre: nothing jumps or drifts."""
        if self._last is None:
            return apply_offset(transform, _centring(transform))
        last = crop_transform(self._last, m.n) if self._last.shape[0] >= m.n else pad_transform(self._last, m.n)
        laid = apply_offset(transform, align_transform(transform, last, m.edge))
        centring = _centring(laid)
        return apply_offset(laid, Offset(1, 0.1 * centring.shift, centring.score))

    def _volume(self, intensity: Volume, size: int) -> Volume:
        data = np.zeros((size, size, size), np.float32)
        if self._last is not None and self._last.shape[0] == size:
            data = np.fft.fftshift(torch.fft.irfftn(self._last, s=(size, size, size)).numpy())
        units = "angstrom" if intensity.units == "1/angstrom" else "1/detector_voxel"
        return Volume(data, 1.0 / (size * intensity.voxel_size), units)


def _settled(state: Iterate, m: Measurement) -> tuple[Tensor, float]:
    """Transform of the density a raw iterate stands for, and its amplitude error; the iterate stays as it is."""
    copy = Iterate(state.x, state.support, state.background, state.age)
    iterate(copy, m, SHOWN, POLISH, SHOWN_STEPS)
    transform = torch.fft.rfftn(copy.x)
    return transform, residual(transform, m, copy.background)


def _compare_amplitudes(before: Measurement, now: Measurement) -> tuple[float, float]:
    """How much larger the amplitudes became (over what both measured), and how alike their speckles are, −1 … 1."""
    n = min(before.n, now.n)
    old, new = (crop_transform(m.amplitude, n) for m in (before, now))
    both = (crop_transform(before.known, n) * crop_transform(now.known, n)).view(-1)
    shell = crop_transform(now.shell, n).view(-1)
    old, new = old.reshape(-1) * both, new.reshape(-1) * both
    gain = float((old * new).sum() / old.square().sum().clamp(min=1e-30))
    both = both * (shell <= min(before.edge, now.edge) // 2)  # where a change of noise is no change
    count = torch.bincount(shell, both).clamp(min=1)
    pair = []
    for amplitude in (old, new):
        mean = (torch.bincount(shell, amplitude * both) / count).float()[shell]
        pair.append((amplitude - mean) / mean.clamp(min=1e-12) * both)
    return gain, float((pair[0] * pair[1]).sum() / (pair[0].norm() * pair[1].norm()).clamp(min=1e-30))


def _carry(state: Iterate, n: int, gain: float) -> Iterate:
    """An iterate on the grid and in the scale of the next intensity."""
    state = resize(state, n)
    background = None if state.background is None else state.background * gain
    return Iterate(state.x * gain, state.support, background, state.age)
