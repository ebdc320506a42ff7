"""Curves as SVG, drawn by hand: small, sharp on paper, coloured by the page's own style, light or dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import ArrayLike, NDArray

WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 60, 12, 12, 44


@dataclass(frozen=True, eq=False)
class Series:
    """One line of a plot; NaN interrupts it."""

    label: str
    x: ArrayLike
    y: ArrayLike


@dataclass(frozen=True)
class Level:
    """A dashed line across the plot, with what it is."""

    y: float
    label: str


@dataclass(frozen=True)
class Axis:
    """One axis: what it shows, its ends (None: from the data), and whether it is logarithmic."""

    label: str
    low: float | None = None
    high: float | None = None
    log: bool = False


def plot(
    series: Sequence[Series], x: Axis, y: Axis, levels: Sequence[Level] = (), mark: float | None = None
) -> Markup | None:
    """An SVG element with these lines; None where no point of them can be drawn.

    Parameters
    ----------
    series : sequence of Series
    x, y : Axis
    levels : sequence of Level
    mark : float, optional
        Where on x a vertical line stands.
    """
    points = [_finite(s, y.log) for s in series]
    flat = np.concatenate([p[np.isfinite(p).all(1)] for p in points]) if points else np.zeros((0, 2))
    if not len(flat):
        return None
    scale_x = _Scale.of(flat[:, 0], x, LEFT, WIDTH - RIGHT)
    scale_y = _Scale.of(np.r_[flat[:, 1], [level.y for level in levels]], y, HEIGHT - BOTTOM, TOP)
    parts = [_axes(scale_x, scale_y, x.label, y.label)]
    if mark is not None and scale_x.low <= mark <= scale_x.high:
        at = scale_x(mark)
        parts.append(f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
    parts += [_level(level, scale_y) for level in levels]
    parts += [_line(p, number, scale_x, scale_y) for number, p in enumerate(points)]
    if len(series) > 1:
        parts.append(_legend([s.label for s in series]))
    name = escape(f"{y.label} against {x.label}")
    return Markup(
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name}">{"".join(parts)}</svg>'
    )


def bars(counts: ArrayLike, edges: ArrayLike, x: Axis, y_label: str) -> Markup | None:
    """A histogram as an SVG element; None for an empty one."""
    n, at = np.asarray(counts, float), np.asarray(edges, float)
    if not n.sum() > 0:
        return None
    scale_x = _Scale.of(at, Axis(x.label, x.low, x.high), LEFT, WIDTH - RIGHT)
    scale_y = _Scale.of(np.r_[0, n], Axis(y_label, 0), HEIGHT - BOTTOM, TOP)
    boxes = [
        f'<rect class="bar" x="{scale_x(a) + 0.5:.1f}" width="{max(0.5, scale_x(b) - scale_x(a) - 1):.1f}" '
        f'y="{scale_y(v):.1f}" height="{scale_y(0) - scale_y(v):.1f}"/>'
        for a, b, v in zip(at[:-1], at[1:], n, strict=True)
    ]
    name = escape(f"{y_label} by {x.label}")
    return Markup(
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name}">'
        f"{_axes(scale_x, scale_y, x.label, y_label)}{''.join(boxes)}</svg>"
    )


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from `low` to `high`, at most `most` of them: steps of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(f * power for f in (1, 2, 5, 10) if f * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


@dataclass(frozen=True)
class _Scale:
    """From values to picture coordinates."""

    low: float
    high: float
    start: float
    end: float
    log: bool

    @classmethod
    def of(cls, values: NDArray[np.float64], axis: Axis, start: float, end: float) -> _Scale:
        low = float(values.min()) if axis.low is None else axis.low
        high = float(values.max()) if axis.high is None else axis.high
        if axis.log:
            low, high = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
            low, high = (low, high) if high > low else (low - 1, high)
        elif not high > low:
            low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
        elif axis.low is None and axis.high is None:
            room = 0.04 * (high - low)
            low, high = low - room, high + room
        return cls(low, high, start, end, axis.log)

    def __call__(self, value: float) -> float:
        at = math.log10(value) if self.log else value
        return self.start + (at - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[tuple[float, str]]:
        """Positions in the picture, and what stands there."""
        if self.log:
            every = max(1, math.ceil((self.high - self.low) / 6))
            powers = range(round(self.low), round(self.high) + 1, every)
            return [(self(10.0**p), f"10{str(p).translate(SUPERSCRIPTS)}") for p in powers]
        return [(self(t), _number(t)) for t in ticks(self.low, self.high)]


SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _number(value: float) -> str:
    if value and abs(value) >= 10_000:
        for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
            if abs(value) >= size:
                return f"{value / size:.4g}{letter}"
    return f"{value:.4g}".replace("-", "−")


def _finite(series: Series, log: bool) -> NDArray[np.float64]:
    points = np.stack([np.asarray(series.x, float), np.asarray(series.y, float)], -1)
    if log:
        points[~(points[:, 1] > 0), 1] = np.nan
    points[~np.isfinite(points).all(1)] = np.nan
    return points


def _axes(scale_x: _Scale, scale_y: _Scale, x_label: str, y_label: str) -> str:
    floor, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for at, text in scale_x.ticks():
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{floor}"/>')
        parts.append(f'<text x="{at:.1f}" y="{floor + 15}" text-anchor="middle">{text}</text>')
    for at, text in scale_y.ticks():
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{text}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {TOP}V{floor}H{right}"/>')
    middle = (LEFT + right) / 2
    parts.append(f'<text class="label" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    turned = f"translate(11 {(TOP + floor) / 2}) rotate(-90)"
    parts.append(f'<text class="label" transform="{turned}" text-anchor="middle">{escape(y_label)}</text>')
    return "".join(parts)


def _level(level: Level, scale_y: _Scale) -> str:
    at = scale_y(level.y)
    return (
        f'<line class="level" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
        f'<text class="level" x="{LEFT + 5}" y="{at - 4:.1f}">{escape(level.label)}</text>'
    )


def _line(points: NDArray[np.float64], number: int, scale_x: _Scale, scale_y: _Scale) -> str:
    """A path with gaps; a point that stands alone is a dot."""
    path, dots, pen_down = [], [], False
    known = np.isfinite(points[:, 0]) & np.isfinite(points[:, 1])
    for i, (x, y) in enumerate(points):
        if not known[i]:
            pen_down = False
            continue
        at = f"{scale_x(x):.1f} {min(max(scale_y(y), TOP), HEIGHT - BOTTOM):.1f}"
        alone = not pen_down and not (i + 1 < len(points) and known[i + 1])
        dots.append(f"M{at}h0") if alone else path.append(f"{'L' if pen_down else 'M'}{at}")
        pen_down = True
    return f'<path class="line s{number}" d="{"".join(path)}"/><path class="dots s{number}" d="{"".join(dots)}"/>'


def _legend(labels: Sequence[str]) -> str:
    parts = []
    for number, label in enumerate(labels):
        y = HEIGHT - BOTTOM - 10 - 16 * (len(labels) - 1 - number)
        parts.append(f'<path class="line s{number}" d="M{LEFT + 10} {y - 4}h22"/>')
        parts.append(f'<text x="{LEFT + 38}" y="{y}">{escape(label)}</text>')
    return "".join(parts)
