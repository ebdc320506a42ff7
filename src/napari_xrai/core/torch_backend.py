"""The engine's parts on a torch device, by `torch_kernels`: the state stays there, what comes and goes is small.

Per batch, its photons go to the device once, from pinned memory and without waiting; poses, weights and likelihoods
come back. Per update of the field, volumes come back and go out. Bookkeeping of frames, the point group's orbit, the
comparison of halves and the poses' uncertainty stay on the CPU.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from . import torch_kernels
from .backend import COMPILED, Backend
from .evidence import Evidence
from .exposure import ExposureTable
from .field import DARKEST
from .junk import JunkGate, Law
from .likelihood import LONGEST_STEP, PoseLikelihood
from .pixels import Pixels, SparsePhotons
from .torch_band_limit import filtered_ratio
from .torch_kernels import Directions, LitPixels, ScoredField
from .workers import chunks

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Fill:
    """How much is worked on at a time.

    Parameters
    ----------
    batch_size, frames_at_a_time, largest_scores
        As in `Backend`.
    look_ups : int
        Places in a volume: each takes about 150 bytes of intermediate results.
    """

    batch_size: int
    frames_at_a_time: int
    largest_scores: int
    look_ups: int


CACHE_SIZED = Fill(COMPILED.batch_size, COMPILED.frames_at_a_time, COMPILED.largest_scores, 1 << 16)
CARD_SIZED = Fill(4000, 4000, 1 << 28, 1 << 23)
"""Some 5 GB, mostly the search's scores. Launching kernels takes a few ms a batch, so batches are to be large."""


def backend_of(device: str) -> Backend:
    """The backend for "cpu", "cuda", "cuda:i" or "auto": the first GPU that torch sees, or else the CPU.

    Raises
    ------
    ValueError
        Where torch sees no such GPU.
    """
    seen = torch.cuda.device_count() if device != "cpu" and torch.cuda.is_available() else 0
    if device == "cpu" or (device == "auto" and not seen):
        return COMPILED
    wanted = torch.device("cuda" if device == "auto" else device)
    if (wanted.index or 0) >= seen:
        found = "no GPU" if not seen else "one GPU, cuda:0" if seen == 1 else f"{seen} GPUs, cuda:0 to cuda:{seen - 1}"
        raise ValueError(
            f"there is no {device} here, torch sees {found}: leave out --device, or give cpu (in the panel: Settings, "
            "device)"
        )
    return torch_backend(torch.device("cuda", wanted.index or 0))


def torch_backend(device: torch.device, fill: Fill | None = None) -> Backend:
    """All parts on `device`; "cpu" is for tests and for comparison, `COMPILED` is faster there."""
    on_card = device.type == "cuda"
    fill = fill or (CARD_SIZED if on_card else CACHE_SIZED)
    transfer = Transfer(device, fill.look_ups)
    return Backend(
        name=torch.cuda.get_device_name(device) if on_card else "the CPU, by torch",
        device=device,
        batch_size=fill.batch_size,
        frames_at_a_time=fill.frames_at_a_time,
        largest_scores=fill.largest_scores,
        exposure_table=partial(TorchExposureTable, transfer),
        likelihood=TorchPoseLikelihood,
        evidence=TorchEvidence,
        junk_gate=partial(TorchJunkGate, transfer),
        gather=partial(_gather, transfer),
        scatter=partial(_scatter, transfer),
        dense=lambda photons, n_pixels: transfer.frames(photons).dense(n_pixels),
        band_filter=partial(filtered_ratio, device),
        coarse_products=_tf32 if on_card else COMPILED.coarse_products,
    )


@contextmanager
def _tf32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


# -------------------------------------------------------------------------------------------------- transfer


@dataclass(frozen=True, eq=False)
class Near:
    """Of each frame of a batch (N,): lit pixels near enough to the beam, on the device and here; their photons."""

    length: Tensor
    length_here: NDArray[np.int64]
    total: Tensor


@dataclass(frozen=True, eq=False)
class DeviceFrames:
    """A batch's sparse photons on the device: compressed rows, as in `SparsePhotons`."""

    start: Tensor
    pixel: Tensor
    count: Tensor
    known: dict[int, Near] = field(default_factory=dict)

    def near(self, n_pixels: int) -> Near:
        """What lies on the first `n_pixels` pixels, summed once."""
        if n_pixels not in self.known:
            inside = self.pixel < n_pixels
            length, total = (
                F.pad(x.cumsum(0), (1, 0))[self.start].diff() for x in (inside.long(), inside * self.count.double())
            )
            self.known[n_pixels] = Near(length, length.cpu().numpy(), total)
        return self.known[n_pixels]

    def entries(self, rows: Tensor, length: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """Photons of `rows` (J,), the first `length` (J,) of each, one after another: which row, which entry, (n,)."""
        job = torch.repeat_interleave(length, output_size=n)
        first = self.start[rows] - (length.cumsum(0) - length)
        return job, torch.arange(n, device=job.device) + first[job]

    def lit(
        self, rows: Tensor, length: Tensor, longest: int, q: Tensor, share: Tensor, total: Tensor
    ) -> LitPixels:  # fmt: skip
        """Photons of `rows` (B,), the first `length` (B,) of each, padded to `longest`; `q` and `share` of all pixels,
        `total` of all frames.
        """
        step = torch.arange(longest, device=rows.device)
        there = step < length[:, None]
        entry = torch.where(there, self.start[rows][:, None] + step, 0)
        pixel = torch.where(there, self.pixel[entry], 0)
        counts = share[pixel]
        return LitPixels(q[pixel], torch.where(there, self.count[entry] * counts, 0.0), counts, total[rows])

    def dense(self, n_pixels: int) -> Tensor:
        """(N, n_pixels) photons on the first `n_pixels` pixels."""
        row = torch.repeat_interleave(self.start.diff(), output_size=len(self.pixel))
        near = self.pixel < n_pixels
        out = torch.zeros(len(self.start) - 1, n_pixels, device=row.device)
        out[row[near], self.pixel[near]] = self.count[near]
        return out


class Transfer:
    """Arrays to a device; the last batch and the last grid stay there for all who look at them.

    Parameters
    ----------
    device : torch.device
    look_ups : int
        Places in a volume to be worked on at a time.
    """

    def __init__(self, device: torch.device, look_ups: int) -> None:
        self.device, self.look_ups = device, look_ups
        self._frames: tuple[weakref.ref[SparsePhotons], DeviceFrames] | None = None
        self._grid: tuple[weakref.ref[F32], Tensor] | None = None

    def __call__(self, array: NDArray[Any]) -> Tensor:
        """To the device; on a GPU from pinned memory, and nobody waits."""
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    def frames(self, photons: SparsePhotons) -> DeviceFrames:
        """A batch, sent once."""
        if self._frames is None or self._frames[0]() is not photons:
            sent = DeviceFrames(self(photons.start), self(photons.pixel).long(), self(photons.count))
            self._frames = weakref.ref(photons), sent
        return self._frames[1]

    def grid(self, grid: F32) -> Tensor:
        """A volume, sent once: nobody may change it in place meanwhile."""
        if self._grid is None or self._grid[0]() is not grid:
            self._grid = weakref.ref(grid), self(grid)
        return self._grid[1]

    def parts(self, length: NDArray[np.int64], each: int = 1) -> Iterator[NDArray[np.int64]]:
        """Split rows so that `each` look-ups per photon fit; rows of like `length` (N,) together, to pad little."""
        order = np.argsort(-length, kind="stable")
        first = 0
        while first < len(order):
            longest = max(1, int(length[order[first]]))
            few = max(1, self.look_ups // (longest * each))
            yield order[first : first + few]
            first += few


def _gather(transfer: Transfer, rotation: F32, point: F32, grid: F32, edge: int, threads: int) -> Tensor:
    turn, place, volume = transfer(rotation), transfer(point), transfer.grid(grid)
    few = max(1, transfer.look_ups // len(point))
    return torch.cat([torch_kernels.gather(part, place, volume, edge) for part in torch.split(turn, few)])


def _scatter(transfer: Transfer, rotation: F32, point: F32, value: F32, edge: int) -> F32:
    out = torch.zeros(edge**3, device=transfer.device)
    turn, place, laid = transfer(rotation), transfer(point), transfer(value)
    few = max(1, transfer.look_ups // len(point))
    for part, share in zip(torch.split(turn, few), torch.split(laid, few), strict=True):
        torch_kernels.scatter((place @ part.mT).flatten(0, 1), share.flatten(), out, edge)
    return np.asarray(out.cpu().numpy())


# -------------------------------------------------------------------------------------------------- parts


class TorchExposureTable(ExposureTable):
    """An `ExposureTable` whose tables and volumes are summed on the device.

    Parameters
    ----------
    transfer : Transfer
    pixels, brightness, speckle
        As for `ExposureTable`.
    """

    def __init__(self, transfer: Transfer, pixels: Pixels, brightness: F32, speckle: float = np.inf) -> None:
        super().__init__(pixels, brightness, speckle)
        self.transfer = transfer
        self.directions = Directions(transfer(self.rotation), self.m)

    def totals(
        self, grid: F32, edge: int, radius: float, threads: int, of_logarithm: bool = False
    ) -> Generator[None, None, F32]:
        """As of `ExposureTable`."""
        place, onto = map(self.transfer, self._points(self.pixels.within(radius)))
        volume = self.transfer.grid(grid)
        table = []
        few = max(1, self.transfer.look_ups // len(place))
        for nodes in torch.split(self.directions.rotation, few):
            value = torch_kernels.gather(nodes, place, volume, edge)
            table.append((value.exp() if of_logarithm else value) @ onto)
            yield
        return np.asarray(torch.cat(table).cpu().numpy())

    def spread(self, amplitudes: list[F64], radius: float, edge: int, threads: int) -> Generator[None, None, list[F32]]:
        """As of `ExposureTable`."""
        point, basis = self._points_laid(radius)
        place, onto = self.transfer(point), self.transfer(basis.T)
        lit = np.flatnonzero((amplitudes[0][:, 0] > 0) | (amplitudes[1][:, 0] > 0))
        laid = self.transfer(np.stack([amplitude[lit] for amplitude in amplitudes], -1).astype(np.float32))
        turn = self.directions.rotation[self.transfer(lit)]
        out = torch.zeros(edge**3, 2, device=self.transfer.device)
        few = max(1, self.transfer.look_ups // len(point))
        for nodes, amplitude in zip(torch.split(turn, few), torch.split(laid, few), strict=True):
            value = (amplitude.mT @ onto).mT  # (nodes, points, halves)
            torch_kernels.scatter((place @ nodes.mT).flatten(0, 1), value.flatten(0, 1), out, edge)
            yield
        return [np.ascontiguousarray(half) for half in out.cpu().numpy().T]

    def look_ups(
        self, amplitude: F64, radius: float, log_grid: F32, edge: int, threads: int
    ) -> Generator[None, None, F32]:
        """As of `ExposureTable`."""
        point, basis = self._points_laid(radius)
        place, onto, volume = self.transfer(point), self.transfer(basis.T), self.transfer.grid(log_grid)
        lit = np.flatnonzero(amplitude[:, 0] > 0)
        laid, turn = self.transfer(amplitude[lit].astype(np.float32)), self.directions.rotation[self.transfer(lit)]
        out = torch.zeros(edge**3, device=self.transfer.device)
        few = max(1, self.transfer.look_ups // len(point))
        for nodes, share in zip(torch.split(turn, few), torch.split(laid, few), strict=True):
            value = torch_kernels.gather(nodes, place, volume, edge).exp() * (share @ onto)
            torch_kernels.scatter((place @ nodes.mT).flatten(0, 1), value.flatten(), out, edge)
            yield
        return np.asarray(out.cpu().numpy())


class TorchPoseLikelihood(PoseLikelihood):
    """A `PoseLikelihood` that scores, climbs and samples on the device of its `exposure`."""

    def __init__(
        self, pixels: Pixels, brightness: F32, exposure: ExposureTable, log_grid: F32, table: F32,
        radius: float, fluence_shape: float, threads: int, light: F32 | None = None,
    ) -> None:  # fmt: skip
        super().__init__(pixels, brightness, exposure, log_grid, table, radius, fluence_shape, threads, light)
        assert isinstance(exposure, TorchExposureTable)
        self.transfer = transfer = exposure.transfer
        self.q_there, self.share_there, grid = transfer(pixels.q), transfer(pixels.share), transfer(log_grid)
        cell = torch_kernels.cell_coefficients(grid, pixels.edge)
        fine = Directions(transfer(self.lattice[0]), self.lattice[1])
        there = None if light is None else transfer(light)
        self.scored = ScoredField(grid, cell, pixels.edge, transfer(self.table), fine, fluence_shape, there)

    def _lit(self, photons: SparsePhotons, each: int) -> Iterator[tuple[Tensor, LitPixels]]:
        """Parts of a batch: rows, and their photons within the radius."""
        frames = self.transfer.frames(photons)
        near = frames.near(self.n_pixels)
        total = near.total if self.pixels.background is None else self.transfer(self.counted(photons)).double()
        for part in self.transfer.parts(near.length_here, each):
            rows, longest = self.transfer(part), max(1, int(near.length_here[part[0]]))
            yield rows, frames.lit(rows, near.length[rows], longest, self.q_there, self.share_there, total)

    def rank(self, photons: SparsePhotons, candidate: F32) -> F64:
        """As of `PoseLikelihood`."""
        named = self.transfer(candidate)
        out = torch.empty(candidate.shape[:2], dtype=torch.float64, device=named.device)
        for rows, lit in self._lit(photons, candidate.shape[1]):
            out[rows] = torch_kernels.rank(named[rows], lit, self.scored)
        return np.asarray(out.cpu().numpy())

    def _climb(self, photons: SparsePhotons, candidate: F32, steps: int) -> tuple[F32, F64, F64]:
        mode = self.transfer(candidate).clone()
        fisher, value = (
            torch.empty(*mode.shape[:2], *shape, dtype=torch.float64, device=mode.device) for shape in ((3, 3), ())
        )
        for rows, lit in self._lit(photons, candidate.shape[1]):
            found = torch_kernels.refine(mode[rows], lit, self.scored, steps, LONGEST_STEP)
            mode[rows], fisher[rows], value[rows] = found
        return mode.cpu().numpy(), fisher.cpu().numpy(), value.cpu().numpy()

    def sample(self, photons: SparsePhotons, mode: F32, fisher: F64, beta: float, noise: F64) -> tuple[F32, F64]:
        """As of `PoseLikelihood`."""
        n, c, j, _ = noise.shape
        given = self.transfer(mode), self.transfer(fisher), self.transfer(noise)
        out = torch.empty(n, c * j, 3, 3, device=self.transfer.device)
        weight = torch.empty(n, c * j, dtype=torch.float64, device=self.transfer.device)
        for rows, lit in self._lit(photons, c * j):
            pose, information, z = (x[rows] for x in given)
            out[rows], weight[rows] = torch_kernels.sample_modes(pose, information, lit, self.scored, beta, z)
        return out.cpu().numpy(), weight.cpu().numpy()

    def expected(self, rotation: F32) -> F64:
        """As of `PoseLikelihood`."""
        total = torch_kernels.expected_total(self.transfer(rotation), self.scored.table, self.scored.directions)
        return np.asarray(total.cpu().numpy())


class TorchEvidence(Evidence):
    """`Evidence` that gathers on the device of its `exposure` until its volumes are asked for."""

    def __init__(
        self, pixels: Pixels, exposure: ExposureTable, radius: float, threads: int, light: ExposureTable | None = None
    ) -> None:
        super().__init__(pixels, exposure, radius, threads, light)
        assert isinstance(exposure, TorchExposureTable)
        self.transfer, self.directions = exposure.transfer, exposure.directions
        self.q_there, self.share_there = self.transfer(pixels.q), self.transfer(pixels.share)
        self.laid = torch.zeros(2 * pixels.edge**3, device=self.transfer.device)
        self.poses = self.transfer(np.concatenate(self.amplitude))
        self.light_poses = self.transfer(np.concatenate(self.lit)) if self.lit else None

    def add(
        self, photons: SparsePhotons, row: NDArray[np.int64], rotation: F32,
        weight: F64, fluence: F64,
    ) -> None:  # fmt: skip
        """As of `Evidence`."""
        frames, edge = self.transfer.frames(photons), self.pixels.edge
        near, odd = frames.near(self.n_pixels), self.transfer(photons.index[row] % 2)
        rows, turn, share = self.transfer(row), self.transfer(rotation), self.transfer(weight)
        length = near.length_here[row]
        for part in self.transfer.parts(length):
            sample = self.transfer(part)
            job, entry = frames.entries(rows[sample], near.length[rows[sample]], int(length[part].sum()))
            of = sample[job]
            # not a batched product: there may be millions of 3 × 3 matrices
            pixel = frames.pixel[entry]
            place = (turn[of] * self.q_there[pixel][:, None]).sum(-1)
            value = (frames.count[entry] * self.share_there[pixel] * share[of]).float()
            for half in range(2):
                mine = odd[of] == half
                grid = self.laid.view(2, -1)[half]
                torch_kernels.scatter(place[mine], value[mine], grid, edge)
        first = odd * len(self.directions.rotation)
        torch_kernels.deposit(turn, share * self.transfer(fluence), self.directions, self.poses, first)
        if self.light_poses is not None:
            torch_kernels.deposit(turn, share, self.directions, self.light_poses, first)

    def _photons(self) -> list[F32]:
        return list(self.laid.view(2, -1).cpu().numpy())

    def _amplitudes(self) -> list[F64]:
        return list(self.poses.view(2, len(self.directions.rotation), -1).cpu().numpy())

    def _lit(self) -> list[F64]:
        assert self.light_poses is not None
        return list(self.light_poses.view(2, len(self.directions.rotation), -1).cpu().numpy())


class TorchJunkGate(JunkGate):
    """A `JunkGate` that looks at its pixels on the device.

    Parameters
    ----------
    transfer : Transfer
    pixels, brightness, speckle, law
        As for `JunkGate`.
    """

    def __init__(
        self, transfer: Transfer, pixels: Pixels, brightness: F32, speckle: float, law: Law | None = None
    ) -> None:
        super().__init__(pixels, brightness, speckle, law)
        self.transfer = transfer
        self.place, self.bright = transfer(self.point), transfer(self.brightness)
        self.light_there = None if self.light is None else transfer(self.light)
        self.members = [transfer(_padded_members(cell.indices, self.n_pixels)) for cell in self.cells]
        self.cell_of = [transfer(cell.indices.astype(np.int64)) for cell in self.cells]
        self.deviance_law = transfer(np.stack([self.mean, self.variance], -1))

    def _scores(self, photons: SparsePhotons, rotation: F32, ratio: F32) -> tuple[F64, F64]:
        frames, turn, grid = self.transfer.frames(photons), self.transfer(rotation), self.transfer.grid(ratio)
        total = frames.near(self.n_pixels).total[:, None]
        counted = self._counted(frames, len(photons))
        score = torch.empty(len(photons), len(self.cells), dtype=torch.float64, device=turn.device)
        for part in chunks(len(photons), max(1, self.transfer.look_ups // self.n_pixels)):
            value = torch_kernels.gather(turn[part], self.place, grid, self.edge).clamp(min=DARKEST) * self.bright
            if self.light_there is None:
                value *= (total[part] / value.sum(1, keepdim=True)).float()
            else:
                particle = (total[part] - self.light_there.sum()).clamp(min=0)
                value = value * (particle / value.sum(1, keepdim=True)).float() + self.light_there
            value = torch.cat([value, torch.zeros_like(value[:, :1])], 1)  # what pads a cell
            for size, member in enumerate(self.members):
                expected = value[:, member].sum(-1, dtype=torch.float64)
                score[part, size] = self._deviance_there(counted[size][part], expected)
        return score.cpu().numpy(), total.cpu().numpy()

    def _counted(self, frames: DeviceFrames, n: int) -> list[Tensor]:
        """(N, cells) photons in cells of each size: sums of whole numbers, exact in any order."""
        row = torch.repeat_interleave(frames.start.diff(), output_size=len(frames.pixel))
        near = frames.pixel < self.n_pixels
        row, pixel, count = row[near], frames.pixel[near], frames.count[near].double()
        sums = []
        for cell_of, member in zip(self.cell_of, self.members, strict=True):
            laid = torch.zeros(n * len(member), dtype=torch.float64, device=row.device)
            sums.append(laid.index_add_(0, row * len(member) + cell_of[pixel], count).view(n, -1))
        return sums

    def _deviance_there(self, counted: Tensor, expected: Tensor) -> Tensor:
        """`_deviance` on the device; the law is tabulated at equal steps of log λ."""
        first, step = self.log_lambda[0], self.log_lambda[1] - self.log_lambda[0]
        where = expected.clamp(min=math.exp(first)).log()
        deviance = 2 * (counted * (counted.clamp(min=1).log() - where) - (counted - expected))
        place = ((where - first) / step).clamp(0, len(self.log_lambda) - 1.000001)
        low = place.long()
        law = torch.lerp(self.deviance_law[low], self.deviance_law[low + 1], (place - low)[..., None])
        return (deviance - law[..., 0]).sum(1) / law[..., 1].sum(1).sqrt()


def _padded_members(cell: NDArray[Any], n: int) -> NDArray[np.int64]:
    """(cells, most) pixels of each cell, padded with `n`, from each pixel's cell (n,)."""
    order, length = np.argsort(cell, kind="stable"), np.bincount(cell)
    out = np.full((len(length), length.max()), n, np.int64)
    row = cell[order]
    out[row, np.arange(len(cell)) - (np.cumsum(length) - length)[row]] = order
    return out
