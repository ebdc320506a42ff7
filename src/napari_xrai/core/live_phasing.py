"""A density that follows a changing intensity: one start carried on and on, and challenged by fresh ones."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from .density_alignment import Offset, align_transform, apply_offset, crop_transform, pad_transform
from .frames import Volume
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
    measured_radius,
    measurement,
    random_start,
    residual,
    resize,
)
from .phasing import centring, one_torch_thread, start_seeds, without_small

LIVE = Recipe(stages=(SEARCH,))
SHOWN = Recipe(stages=(POLISH,), shrink_every=0)
SHOWN_STEPS = 6
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
        with one_torch_thread():
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
        return random_start(m, first_support(m), LIVE, start_seeds(self.seed, self._restarts)[-1])

    def _placed(self, transform: Tensor, m: Measurement) -> Tensor:
        """Laid over what was shown last, and a tenth of the way from there to the centre: nothing jumps or drifts."""
        if self._last is None:
            return apply_offset(transform, centring(transform))
        last = crop_transform(self._last, m.n) if self._last.shape[0] >= m.n else pad_transform(self._last, m.n)
        laid = apply_offset(transform, align_transform(transform, last, m.edge))
        way = centring(laid)
        return apply_offset(laid, Offset(1, 0.1 * way.shift, way.score))

    def _volume(self, intensity: Volume, size: int) -> Volume:
        data = np.zeros((size, size, size), np.float32)
        if self._last is not None and self._last.shape[0] == size:
            data = np.fft.fftshift(torch.fft.irfftn(self._last, s=(size, size, size)).numpy())
        units = "angstrom" if intensity.units == "1/angstrom" else "1/detector_voxel"
        return Volume(data, 1.0 / (size * intensity.voxel_size), units)


def _settled(state: Iterate, m: Measurement) -> tuple[Tensor, float]:
    """Transform of the density a raw iterate stands for, and its amplitude error; the iterate stays as it is."""
    copy = Iterate(state.x, state.support, without_small(state.background, m), state.age)
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
