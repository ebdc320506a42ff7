"""Which point group does an intensity look as if it had? Told by the volume alone, to be named in another run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree
from scipy.spatial.transform import Rotation

from . import kernels
from .rotations import direction_to_rotation, fibonacci_directions, rotation_z
from .symmetry import point_group

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

DIRECTIONS = 1200
"""On half a sphere, 4.2° apart."""

ORDERS = range(2, 13)
"""Of axes that are looked for: higher ones show only where an unnamed group's parts no longer lie on one another."""

AZIMUTHS = 72
"""On a circle about an axis."""

GROUPS = (*(f"C{n}" for n in ORDERS), *(f"D{n}" for n in ORDERS), "T", "O", "I")

PARTS = {"T": "C2 C3 D2", "O": "C2 C3 C4 D2 D3 D4 T", "I": "C2 C3 C5 D2 D3 D5 T"}
"""Groups within the polyhedral ones."""

LIKE = {"C2": 0.8, "D2": 0.65}
LIKE_AT_ALL = 0.4
"""Correlation from which on a group is spoken of. Particles without symmetry have up to 0.54 for C2, 0.35 for D2, 0.28
for others, and lumps of a few atoms up to 0.72 for C2; D5 and O that nobody named 0.4 to 0.95, for their parts are bent
against one another.
"""

IN_SIGHT = 0.25
"""Correlation of an axis below which groups with such axes are not looked at: it saves time."""

WHOLE = 0.92
"""Of a half's likeness, that of the whole group. Where it is half there it has up to 0.9."""

SEEN_WITHIN, SPHERES = 3.2, 4.0
"""Speckles beyond the beam stop: farther out bent parts no longer lie on one another. And spheres in each of them."""

LEAST_SEEN = 1.5
"""Speckles beyond the beam stop: on fewer spheres chance looks like any group."""

ROUND = 0.8
"""Part of the variation that is constant about one direction: the order of that axis cannot be seen. Discs have 0.95,
less where noise varies as much as they do; other particles 0.25 to 0.6.
"""

LEADERS, TWIST_DEG = 20, 2.0
"""Directions that a group's main axis is tried along, and steps of the angle about it."""


@dataclass(frozen=True)
class Likeness:
    """How far an intensity looks as if it had a point group.

    Attributes
    ----------
    group : str
        In Schoenflies notation.
    correlation : float
        Of the intensity with itself, turned by the group's rotations: their mean, without the identity's, at the best
        orientation of the axes; of what varies about each axis. 1 where the group is there.
    """

    group: str
    correlation: float


class AxisLikeness:
    """How far an intensity repeats itself about each direction.

    What an axis of order n leaves unchanged has, on circles about it, harmonics of orders that n divides and no
    others: the spectrum over the azimuth tells all orders at once.

    Parameters
    ----------
    ratio : (edge³) float32
        Flat (z, y, x), V(q) = V(−q).
    edge : int
    inner, outer, step : float
        Radii between which it is looked at, and from sphere to sphere, voxels.
    """

    def __init__(self, ratio: F32, edge: int, inner: float, outer: float, step: float) -> None:
        self.direction = fibonacci_directions(2 * DIRECTIONS)[:DIRECTIONS]
        power = self._spectra(ratio, edge, np.arange(inner, outer + step / 2, step))
        varying = power[:, 1:].sum(1)
        self.roundness = power[:, 0] / np.maximum(power.sum(1), 1e-12)
        """(J,) part of the variation on spheres that is constant about each direction."""
        self.correlation = np.stack([
            (n * power[:, n::n].sum(1) / np.maximum(varying, 1e-12) - 1) / (n - 1) for n in ORDERS
        ])  # fmt: skip
        """(orders, J) mean correlation with itself, turned by the rotations of an axis of each order."""
        self._nearest = KDTree(np.concatenate([self.direction, -self.direction]))

    def _spectra(self, ratio: F32, edge: int, radii: F64) -> F64:
        """(J, 1 + AZIMUTHS/2) power over azimuthal orders, spheres of unit variance, about each direction."""
        rotation = direction_to_rotation(self.direction).astype(np.float32)
        angle = 2 * np.pi * np.arange(AZIMUTHS) / AZIMUTHS
        power = np.zeros((len(rotation), AZIMUTHS // 2 + 1))
        for radius in radii:
            circles = max(3, round(radius / 1.5))
            z = (np.arange(circles) + 0.5)[:, None] / circles + 0 * angle  # of equal areas; the other half is the same
            across = np.sqrt(1 - z * z)
            point = radius * np.stack([across * np.cos(angle), across * np.sin(angle), z], -1).astype(np.float32)
            value = np.empty((len(rotation), z.size), np.float32)
            kernels.gather(rotation, point.reshape(-1, 3), ratio, edge, value)
            value = (value - value.mean()) / max(float(value.std()), 1e-12)
            harmonic = np.fft.rfft(value.reshape(len(rotation), circles, AZIMUTHS), axis=-1)
            power += np.square(np.abs(harmonic)).mean(1)
        power[:, 1:] *= 2
        return power

    def along(self, order: int, direction: F64) -> F64:
        """Correlation about the known directions nearest to `direction`, (…, 3)."""
        index = self._nearest.query(direction)[1] % DIRECTIONS
        return np.asarray(self.correlation[order - ORDERS.start, index])

    def of(self, group: str) -> float:
        """Mean over a group's rotations, the identity's left out, at the orientation where it is largest; 0 where no
        axis of one of its orders is in sight.
        """
        if group[0] == "C":
            return float(self.correlation[int(group[1:]) - ORDERS.start].max())
        axis, order = axes_of(group)
        if min(self.correlation[n - ORDERS.start].max() for n in set(order.tolist())) < IN_SIGHT:
            return 0.0
        main = int(order.argmax())
        leading = np.argsort(-self.correlation[order[main] - ORDERS.start])[:LEADERS]
        upright = direction_to_rotation(axis[main]).T
        twist = rotation_z(np.radians(np.arange(0, 360, TWIST_DEG))) @ upright
        frame = direction_to_rotation(self.direction[leading])[:, None] @ twist
        total = np.zeros(frame.shape[:2])
        for a, n in zip(axis, order, strict=True):
            total += (n - 1) * self.along(int(n), frame @ a)
        return float(total.max() / (order - 1).sum())


def axes_of(group: str) -> tuple[F64, NDArray[np.int64]]:
    """Axes of a point group, (A, 3), and the order of each."""
    turn = Rotation.from_matrix(point_group(group)[1:]).as_rotvec()
    angle = np.linalg.norm(turn, axis=1, keepdims=True)
    axis = turn / angle
    first_positive = np.take_along_axis(axis, (np.abs(axis) > 1e-6).argmax(1)[:, None], 1)
    axis, member = np.unique((axis * np.sign(first_positive)).round(6), axis=0, return_inverse=True)
    return axis, np.bincount(member.reshape(-1)) + 1


def holds(group: str, part: str) -> bool:
    """Whether a group has all rotations of a smaller one, their axes laid on one another."""
    if group in PARTS:
        return part in PARTS[group].split()
    if part in PARTS or part == group or (part[0] == "D" and group[0] == "C"):
        return False
    return int(group[1:]) % int(part[1:]) == 0 or (group[0] == "D" and part == "C2")


def most_alike(axes: AxisLikeness) -> list[Likeness]:
    """The group that the intensity looks most as if it had, and the part of that group that it has most; none where it
    does not look as if it had any.

    Of groups that hold one another, the larger tells more: it makes every frame as many times likelier as it has
    rotations. So likeness counts times their logarithm. But a group is nearly as alike as each half of it, or it is
    only half there.
    """
    order = {group: len(point_group(group)) for group in GROUPS}
    alike = {group: axes.of(group) for group in GROUPS}
    worth = {group: value * np.log(order[group]) for group, value in alike.items()}
    halves = {
        group: [half for half in GROUPS if 2 * order[half] == order[group] and holds(group, half)] for group in GROUPS
    }
    seen = [
        group
        for group in GROUPS
        if alike[group] >= max(LIKE.get(group, LIKE_AT_ALL), *(WHOLE * alike[half] for half in halves[group]), 0.0)
    ]
    if not seen:
        return []
    best = max(seen, key=worth.__getitem__)
    part = max((group for group in GROUPS if holds(best, group)), key=worth.__getitem__, default=best)
    return [Likeness(group, alike[group]) for group in dict.fromkeys((best, part))]


@dataclass(frozen=True)
class SymmetrySeen:
    """What an intensity looks as if it had.

    Attributes
    ----------
    group : str
        Point group, or nothing.
    none : bool
        There is none to be seen, though it was looked for.
    words : str
    """

    group: str
    none: bool
    words: str


def look_for_symmetry(ratio: F32, edge: int, inner: float, radius: float, speckle: float) -> SymmetrySeen:
    """The point group that an intensity looks as if it had.

    Parameters
    ----------
    ratio : (edge³) float32
        Flat (z, y, x), V(q) = V(−q).
    edge : int
    inner, radius : float
        Of the beam stop, and to which the intensity is known, voxels.
    speckle : float
        Its width, voxels.
    """
    first, last = inner + 1, min(radius, inner + SEEN_WITHIN * speckle)
    if last < first + LEAST_SEEN * speckle:
        return SymmetrySeen("", False, "not looked for: too few speckles are resolved")
    axes = AxisLikeness(ratio, edge, first, last, speckle / SPHERES)
    if axes.roundness.max() > ROUND:
        words = "round about one axis, whose order is not seen: name the point group, if it is known"
        return SymmetrySeen("", False, words)
    found = most_alike(axes)
    if not found:
        return SymmetrySeen("", True, "none seen")
    words = f"{found[0].group}, {found[0].correlation:.2f} alike under its turns"
    part = "".join(f", {more.correlation:.2f} under those of its part {more.group}" for more in found[1:])
    words = f"looks like {words}{part}: if one is true, name it, and the map gets sharper"
    return SymmetrySeen(found[0].group, False, words)
