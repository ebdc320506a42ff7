"""One density sought from one diffraction intensity: the constraints, and the iterations between them.

Two sets are asked for their common point: maps whose transform has the measured amplitude (P_M, one FFT pair), and
maps that are positive inside a compact support (P_S). Error reduction and HIO: Fienup 1982; difference map: Elser 2003;
RAAR: Luke 2005; shrink-wrap: Marchesini et al. 2003. What was not measured floats free.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .density_alignment import crop_transform, pad_transform
from .frames import Volume
from .resolution import fourier_shells, sample, shell_index

Method = Literal["er", "hio", "raar", "difference map"]


@dataclass(frozen=True, eq=False)
class Measurement:
    """The amplitudes to be met, on the half grid of ``rfftn``.

    Parameters
    ----------
    amplitude : (n, n, n//2+1) float32
        √intensity, scaled to a mean square of 1 over what was measured; 0 where nothing was.
    known : (n, n, n//2+1) float32
        1 measured, 0 floating.
    shell : (n, n, n//2+1) int64
        |q| in voxels, rounded.
    per_shell : (S,) float32
        Measured coefficients of each shell, at least 1.
    edge : int
        Last shell in use.
    hole : float
        Radius, in voxels, of the ball around q = 0 where nothing was measured.
    scale : float
        √intensity = scale · amplitude.
    voxel_size, units
        Of the density.
    """

    amplitude: Tensor
    known: Tensor
    shell: Tensor
    per_shell: Tensor
    edge: int
    hole: float
    scale: float
    voxel_size: float
    units: str

    @property
    def n(self) -> int:
        """Voxels along an edge of the density."""
        return int(self.amplitude.shape[0])


def measured_radius(weight: NDArray[np.float32]) -> int:
    """The largest radius at which half the voxels of a shell were measured; 0 if there is none."""
    n = weight.shape[0]
    shell, last = shell_index(n), (n - 1) // 2
    count = np.bincount(shell.reshape(-1))[: last + 1]
    good = np.flatnonzero(np.bincount(shell[weight > 0], minlength=last + 1)[: last + 1] >= 0.5 * count)
    return int(good[-1]) if len(good) else 0


def fft_size(radius: int) -> int:
    """The smallest even size without prime factors above 5 that holds a sphere of `radius` off its Nyquist planes."""
    n = 2 * radius + 2
    while True:
        rest = n
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return n
        n += 2


def measurement(intensity: Volume, weight: Volume, radius: int | None = None, n: int | None = None) -> Measurement:
    """Cut a sphere of `radius` voxels out of an intensity and turn it into amplitudes to be met.

    Friedel mates are averaged by weight; voxels that are negative count as zero, those not finite as unmeasured.

    Parameters
    ----------
    intensity, weight : Volume
        On the same (z, y, x) cube; weight 0 where nothing was measured.
    radius : int, optional
        Last shell to use; default `measured_radius`.
    n : int, optional
        Grid of the density; default `fft_size` of the radius.

    Raises
    ------
    ValueError
        If nothing is there to be phased: an empty or constant intensity, or a radius below 4 voxels.
    """
    data, seen = intensity.data, weight.data
    if data.shape != seen.shape or len(set(data.shape)) != 1:
        raise ValueError(f"intensity {data.shape} and weight {seen.shape} must be cubes of one size")
    centre = data.shape[0] // 2
    limit = min(measured_radius(seen), (data.shape[0] - 1) // 2)
    r = limit if radius is None else min(int(radius), limit)
    if r < 4:
        raise ValueError(f"only {r} shells of the intensity were measured: too few to phase, at least 4 are needed")
    n = fft_size(r) if n is None else n
    inside = slice(centre - r, centre + r + 1)
    block, share = data[inside, inside, inside], _out_of_shadow(seen[inside, inside, inside])
    share = np.where((shell_index(2 * r + 1) <= r) & np.isfinite(block) & np.isfinite(share), share, 0)
    block = np.where(share > 0, np.maximum(block, 0), 0)
    total = share + share[::-1, ::-1, ::-1]
    weighted = block * share
    friedel = (weighted + weighted[::-1, ::-1, ::-1]) / np.where(total > 0, total, 1)
    if not (total > 0).any():
        raise ValueError("no measured voxel of the intensity holds a finite value: there is nothing to phase")
    if not np.ptp(friedel[total > 0]) > 1e-5 * friedel.max():  # beyond the rounding of a mean of two
        raise ValueError("the intensity is empty or constant: there is nothing to phase")
    known = _half_grid((total > 0).astype(np.float32), n)
    amplitude = _half_grid(np.sqrt(friedel).astype(np.float32), n)
    scale = float((amplitude.square().sum() / known.sum()).sqrt())
    shell = torch.from_numpy(fourier_shells(n)[0])
    per_shell = torch.bincount(shell.view(-1), known.view(-1)).to(torch.float32)
    measured = torch.nonzero(per_shell > 0)
    in_angstrom = intensity.units == "1/angstrom"
    return Measurement(
        amplitude=amplitude / scale, known=known, shell=shell, per_shell=per_shell.clamp(min=1), edge=r,
        hole=float(measured[0]), scale=scale,
        voxel_size=1.0 / (n * intensity.voxel_size), units="angstrom" if in_angstrom else "1/detector_voxel",
    )  # fmt: skip


def _out_of_shadow(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """The weight without the rim of the beam stop: half in its shadow, voxels there rest on few pixels, and those look
    beside them. Exposure falls with |q| everywhere else; where it still rises is the rim.
    """
    axis = np.arange(len(weight)) - len(weight) // 2
    radius = np.sqrt((axis**2)[:, None, None] + (axis**2)[:, None] + axis**2)
    step = np.rint(2 * radius).astype(int)
    seen = weight > 0
    count = np.bincount(step[seen])
    inner = np.flatnonzero(count)[: 2 * WIDEST_RIM]
    mean = np.bincount(step[seen], weight[seen])[inner] / count[inner]
    falls = np.flatnonzero(np.diff(mean) <= 0)
    last = int(falls[0]) if len(falls) else 0
    if last == 0 or inner[0] == 0 or mean[0] > RIM * mean[last]:
        return weight
    return np.where(radius < (inner[last] + 1) / 2, np.float32(0), weight)


RIM, WIDEST_RIM = 0.9, 4
"""Exposure, relative to its largest, below which the innermost voxels lie in shadow; how far it may reach, voxels."""


def _half_grid(block: NDArray[np.float32], n: int) -> Tensor:
    """An odd cube around q = 0 on the half grid of an n³ transform."""
    r = block.shape[0] // 2
    k = np.arange(-r, r + 1)
    out = np.zeros((n, n, n // 2 + 1), np.float32)
    out[np.ix_(k % n, k % n, np.arange(r + 1))] = block[:, :, r:]
    return torch.from_numpy(out)


def first_support(m: Measurement, diameter: float | None = None) -> Tensor:
    """(n, n, n) bool: where the particle may be at first; origin at index 0.

    A ball of `diameter` (in the density's unit); without one, the autocorrelation halved: for a centred convex particle
    ρ*ρ reaches exactly twice as far as ρ. The hole is filled by Guinier's law from the shells beside it.
    """
    n = m.n
    k = torch.fft.fftfreq(n, 1 / n)
    if diameter is not None:
        radius = 0.5 * diameter / m.voxel_size
        if radius >= n / 2:
            raise ValueError(f"a support of {diameter:.4g} does not fit in the box of {n * m.voxel_size:.4g} {m.units}")
        ball: Tensor = k[:, None, None] ** 2 + k[None, :, None] ** 2 + k**2 <= radius**2
        return ball
    power = m.amplitude.square()
    mean = torch.bincount(m.shell.view(-1), power.view(-1)).float() / m.per_shell
    first = int(m.hole)
    q2 = torch.arange(len(mean)).float() ** 2
    fit = slice(first, first + 4)
    log = mean[fit].clamp(min=1e-12).log()
    slope = ((log - log.mean()) * (q2[fit] - q2[fit].mean())).sum() / (q2[fit] - q2[fit].mean()).square().sum()
    guinier = torch.exp(log.mean() + slope.clamp(max=0) * (q2 - q2[fit].mean()))
    inside = (m.shell <= m.edge).float()
    filled = torch.where(m.known > 0, power, guinier[m.shell] * (m.shell < first + 4))
    taper = torch.exp(-2 * (m.shell / m.edge) ** 2) * inside
    # autocorrelation on half-spaced points: the same coefficients on twice as fine a grid, cut to the middle
    auto = torch.fft.irfftn(filled * taper, s=(n, n, n))
    axis = (2 * torch.fft.fftfreq(n, 1 / n)).round().long()
    reach = (axis.abs() < n // 2).nonzero().squeeze(1)
    half = torch.zeros(n, n, n)
    half[reach[:, None, None], reach[None, :, None], reach] = auto[
        (axis[reach] % n)[:, None, None], (axis[reach] % n)[None, :, None], axis[reach] % n
    ]
    reached: Tensor = half > AUTOCORRELATION_LEVEL * auto[0, 0, 0]
    return reached


def known_support(support: Volume, m: Measurement) -> Tensor:
    """(n, n, n) bool: where a map is above ½, on the measurement's grid; origin at index 0.

    Raises
    ------
    ValueError
        If its unit is another, it is empty, or it does not fit in the box.
    """
    if support.units != m.units:
        raise ValueError(f"the support is in {support.units}, the density in {m.units}")
    axis = np.fft.fftfreq(m.n, 1 / m.n) * m.voxel_size
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    inside = np.nan_to_num(sample(support, np.stack([x, y, z], -1))) > 0.5
    if not inside.any():
        raise ValueError("the support is empty")
    if inside.sum() > (support.data > 0.5).sum() * (support.voxel_size / m.voxel_size) ** 3 * 1.5 or inside.all():
        raise ValueError(f"the support does not fit in the box of {m.n * m.voxel_size:.4g} {m.units}")
    return torch.from_numpy(inside)


AUTOCORRELATION_LEVEL = 0.01
"""Of ρ*ρ at the origin: where the halved autocorrelation ends (the best of 0.01, 0.04 and 0.15 on four shapes)."""


@dataclass(frozen=True)
class Stage:
    """A run of iterations of one kind.

    Parameters
    ----------
    method : "er", "hio", "raar" or "difference map"
    iterations : int
    beta : float
        HIO's feedback, RAAR's relaxation; the difference map is taken at 1.
    threshold : float
        Level of the shrink-wrap, relative to the maximum of the blurred density: tight while phases are sought; loose
        at the end, or soft edges are cut off and the highest shells with them.
    """

    method: Method
    iterations: int
    beta: float = 1.0
    threshold: float = 0.1


SEARCH = Stage("difference map", 100)
"""Finds the phases, but wanders on noisy amplitudes."""
SETTLE = Stage("raar", 60, beta=0.9, threshold=0.07)
"""Comes to rest on noisy amplitudes, and still moves where error reduction would stay."""
POLISH = Stage("er", 30, threshold=0.04)


@dataclass(frozen=True)
class Recipe:
    """How one start runs; the defaults were chosen on clean and noisy intensities of several particles.

    Parameters
    ----------
    stages : tuple of Stage
        One after the other.
    shrink_every : int
        Iterations between shrink-wraps; 0 keeps the first support.
    blur : (float, float)
        Shrink-wrap's Gaussian σ in voxels, from the first iteration to the last.
    positive : bool
        The density is nowhere negative.
    background : bool
        Solve for an incoherent background that depends on |q| only.
    """

    stages: tuple[Stage, ...] = (SEARCH, SETTLE, POLISH)
    shrink_every: int = 10
    blur: tuple[float, float] = (2.0, 1.0)
    positive: bool = True
    background: bool = True

    @property
    def iterations(self) -> int:
        """Of all stages."""
        return sum(stage.iterations for stage in self.stages)


@dataclass(eq=False)
class Iterate:
    """Where one start stands.

    Parameters
    ----------
    x : (n, n, n) float32
        The raw iterate; origin at index 0. Neither measured nor positive, unless error reduction made it.
    support : (n, n, n) float32
        1 inside.
    background : (S,) float32 or None
        Incoherent amplitude per shell, in the measurement's scale.
    age : int
        Iterations so far.
    """

    x: Tensor
    support: Tensor
    background: Tensor | None
    age: int = 0


def random_start(m: Measurement, support: Tensor, recipe: Recipe, seed: int) -> Iterate:
    """Measured amplitudes with the phases of white noise: real, and different for every seed."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.fft.rfftn(torch.randn(m.n, m.n, m.n, generator=generator))
    x = torch.fft.irfftn(noise * (m.amplitude / noise.abs().clamp(min=1e-12)), s=(m.n, m.n, m.n))
    background = None
    if recipe.background:
        background = 0.1 * torch.bincount(m.shell.view(-1), m.amplitude.view(-1)).float() / m.per_shell
    return Iterate(x, support.float(), background)


def project_amplitude(x: Tensor, m: Measurement, background: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """P_M: the nearest map with the measured amplitudes, its transform, and the background that goes with it.

    With a background b(|q|), amplitude and background together make the measured intensity, |F|² + b² = I: both are
    scaled by √(I / (|F|² + b²)), and b is averaged over its shell (Ayyer et al. 2016, Nature 530, 202, Methods).
    """
    transform = torch.fft.rfftn(x)
    power = transform.real.square().addcmul_(transform.imag, transform.imag)
    if background is not None:
        power += background.square()[m.shell]
    gain = power.add_(1e-12).rsqrt_().mul_(m.amplitude)
    if background is not None:
        mean = torch.bincount(m.shell.view(-1), gain.view(-1)).to(torch.float32) / m.per_shell
        background = background * mean
    gain += 1 - m.known
    transform *= gain
    return torch.fft.irfftn(transform, s=x.shape), transform, background


def project_support(x: Tensor, support: Tensor, positive: bool) -> Tensor:
    """P_S, in place: nothing outside the support, nothing negative."""
    if positive:
        x.clamp_(min=0)
    return x.mul_(support)


def iterate(state: Iterate, m: Measurement, recipe: Recipe, stage: Stage, steps: int | None = None) -> None:
    """Take the iterate `steps` on, in place; all of the stage's iterations by default."""
    for _ in range(stage.iterations if steps is None else steps):
        p, transform, state.background = project_amplitude(state.x, m, state.background)
        state.age += 1
        if recipe.shrink_every and state.age % recipe.shrink_every == 0:
            progress = min(1.0, state.age / recipe.iterations)
            sigma = recipe.blur[0] + (recipe.blur[1] - recipe.blur[0]) * progress
            state.support = shrink_wrap(transform, m, sigma, stage.threshold)
        state.x = _next(state, p, stage, recipe.positive)


def _next(state: Iterate, p: Tensor, stage: Stage, positive: bool) -> Tensor:
    x, beta = state.x, stage.beta
    if stage.method == "er":
        return project_support(p, state.support, positive)
    if stage.method == "hio":
        allowed = state.support * (p > 0) if positive else state.support
        outside = torch.sub(x, p, alpha=beta)
        return outside.add_((p - outside).mul_(allowed))
    # RAAR: β·(x + P_S(2p − x) − p) + (1 − β)·p; the difference map at its β = 1 is RAAR at 1
    b = 1.0 if stage.method == "difference map" else beta
    reflected = project_support(torch.sub(p, x, alpha=0.5).mul_(2), state.support, positive)
    return x.mul_(b).add_(p, alpha=1 - 2 * b).add_(reflected, alpha=b)


def shrink_wrap(transform: Tensor, m: Measurement, sigma: float, level: float) -> Tensor:
    """The support where a map, blurred by `sigma` voxels, is above `level` of its maximum."""
    gauss = torch.exp((-2 * (np.pi * sigma / m.n) ** 2) * torch.arange(int(m.shell.max()) + 1).float() ** 2)
    blurred = torch.fft.irfftn(transform * gauss[m.shell], s=(m.n, m.n, m.n))
    support: Tensor = (blurred > level * blurred.max()).float()
    return support


def residual(transform: Tensor, m: Measurement, background: Tensor | None) -> float:
    """Relative distance of a map's amplitudes from the measured ones: √(Σ(|F| − A)² / ΣA²) over what was measured."""
    power = transform.real.square().addcmul_(transform.imag, transform.imag)
    if background is not None:
        power += background.square()[m.shell]
    difference = power.sqrt_().sub_(m.amplitude).mul_(m.known)
    return float((difference.square().sum() / m.amplitude.square().sum()).sqrt())


def resize(state: Iterate, n: int) -> Iterate:
    """The same iterate on another grid: its transform cut or padded."""
    old = state.x.shape[0]
    if n == old:
        return state
    change = pad_transform if n > old else crop_transform
    x, support = (torch.fft.irfftn(change(torch.fft.rfftn(v), n), s=(n, n, n)) for v in (state.x, state.support))
    gain = (n / old) ** 3
    background = state.background
    if background is not None:
        shells = int(fourier_shells(n)[0].max()) + 1
        padded = torch.zeros(shells)
        padded[: len(background)] = background[:shells]
        background = padded
    return Iterate(x, (support * gain > 0.5).float(), background, state.age)
