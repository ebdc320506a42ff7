"""Sections, projections and poses as pictures inside a page: PNG and SVG, with a scale bar, from nowhere else."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray
from PIL import Image

from .core.coverage import Coverage
from .core.frames import Poses, Snapshot, Volume
from .core.rotations import quaternion_to_matrix

SIDE = 240
"""Edge of a picture in the page's units."""

GAMMA = 0.3
"""Diffraction falls over many decades; this shows them."""

MAX_POSES = 5000

EMBERS = np.array(
    [(0, 0, 4), (40, 11, 84), (101, 21, 110), (159, 42, 99), (212, 72, 66), (245, 125, 21), (250, 193, 39),
     (252, 255, 164)], float
)  # fmt: skip
"""Black over red to yellow, even in lightness (the anchors of matplotlib's CC0 map "inferno")."""

AXES = ("z", "y", "x")


@dataclass(frozen=True)
class Picture:
    """An SVG element, and what it is in a few words."""

    svg: Markup
    caption: str


def intensity_sections(snapshot: Snapshot, ring: float | None = None) -> list[Picture]:
    """Three central sections of the intensity; clear where nothing was measured, a dashed ring at |q| = `ring`."""
    volume, weight = snapshot.intensity, snapshot.weight.data
    seen = (weight > 0) & np.isfinite(volume.data)
    bright = volume.data[seen & (volume.data > 0)]
    top = float(np.percentile(bright, 99.5)) if bright.size else 1.0
    middle, unit = volume.data.shape[0] // 2, "Å⁻¹" if volume.units == "1/angstrom" else "voxels"
    reach = int(np.abs(np.argwhere(seen) - middle).max(initial=0)) or middle
    inside = slice(max(0, middle - reach), middle + reach + 1)
    width = (2 * reach + 1) * volume.voxel_size
    pictures = []
    for axis, name in enumerate(AXES):
        plane, there = (
            np.take(v, middle, axis)[inside, inside] for v in (np.where(seen, volume.data, 0), seen.astype(float))
        )
        shade = (np.clip(plane / top, 0, 1)) ** GAMMA
        rgba = np.concatenate([_embers(shade), 255.0 * there[..., None]], -1)
        overlay = _bar(width, unit)
        if ring:
            radius = ring / width * SIDE
            overlay += f'<circle class="ring" cx="{SIDE / 2}" cy="{SIDE / 2}" r="{radius:.1f}"/>'
        vertical, horizontal = (a for a in AXES if a != name)
        pictures.append(Picture(_picture(rgba, overlay), f"q{name} = 0 ({horizontal} right, {vertical} up)"))
    return pictures


def density_views(density: Volume) -> list[Picture]:
    """Three projections and three central sections, cut to the particle, as ink whose strength is the density."""
    data = np.clip(np.nan_to_num(density.data), 0, None)
    if not data.any():
        return []
    n, half = data.shape[0], _reach(data)
    inside = slice(max(0, n // 2 - half), n // 2 + half + 1)
    block = data[inside, inside, inside]
    unit = "Å" if density.units == "angstrom" else "/voxel"
    bar = _bar(block.shape[0] * density.voxel_size, unit)
    pictures = []
    for what in ("projection", "section"):
        for axis, name in enumerate(AXES):
            plane = block.sum(axis) if what == "projection" else np.take(data, n // 2, axis)[inside, inside]
            ink = 255.0 * np.clip(plane / (float(np.percentile(plane, 99.8)) or 1.0), 0, 1)
            rgba = np.stack([0 * ink, ink], -1)
            words = f"projection along {name}" if what == "projection" else f"section at {name} = 0"
            pictures.append(Picture(_picture(rgba, bar, "ink"), words))
    return pictures


def pose_map(poses: Poses, coverage: Coverage | None = None) -> Picture | None:
    """Where the beam went through the particle: both halves of the sphere, area-true; None without poses.

    With `coverage`, directions with fewer views than an even spread has are tinted orange, those with more blue.
    """
    total = len(poses.frame)
    if not total:
        return None
    rows = np.linspace(0, total - 1, min(total, MAX_POSES)).astype(int)
    direction = beam_directions(poses)[rows]
    sure = np.nan_to_num(poses.confidence[rows]) >= 0.5
    parts = []
    for side, sign in enumerate((1, -1)):
        centre = 125 + 250 * side
        parts.append(f'<circle class="globe" cx="{centre}" cy="125" r="120"/>')
        if coverage is not None:
            tint = _png(_tint(coverage, sign))
            parts.append(f'<image x="{centre - 120}" y="5" width="240" height="240" href="{tint}"/>')
        for ring in (30, 60):
            radius = 120 * math.sqrt(1 - math.cos(math.radians(ring)))
            parts.append(f'<circle class="grid" cx="{centre}" cy="125" r="{radius:.1f}"/>')
        parts.append(f'<text x="{centre}" y="264" text-anchor="middle">seen from {"+" if sign > 0 else "−"}z</text>')
        for name, chosen in (("doubt", ~sure), ("sure", sure)):
            here = direction[chosen & (sign * direction[:, 2] >= 0)]
            # Lambert's azimuthal projection: equal areas stay equal
            flat = 120 * here[:, :2] / np.sqrt(1 + np.abs(here[:, 2:]))
            dots = "".join(f"M{centre + sign * x:.1f} {125 - y:.1f}h0" for x, y in flat)
            parts.append(f'<path class="pose {name}" d="{dots}"/>')
    shown = f"{len(rows):,} of {total:,}" if len(rows) < total else f"{total:,}"
    svg = f'<svg class="globes" viewBox="0 0 500 270" role="img" aria-label="Beam directions">{"".join(parts)}</svg>'
    return Picture(Markup(svg), f"{shown} beam directions in the particle's frame, equal areas, rings at 30° and 60°")


def beam_directions(poses: Poses) -> NDArray[np.float64]:
    """(N, 3) the beam's axis in the particle's frame, (x, y, z): ``R ẑ``."""
    return np.asarray(quaternion_to_matrix(poses.quaternion), np.float64)[..., 2]


def _tint(coverage: Coverage, sign: int) -> NDArray[np.float64]:
    """(n, n, 4) half of the sphere, rows upwards: how much fewer (orange) or more (blue) views than on average."""
    axis = np.linspace(-1, 1, 121)
    x, y = np.meshgrid(sign * axis, axis)
    f2 = x**2 + y**2  # Lambert's projection backwards: z = 1 − f², in units where the rim is at f = 1
    stretch = np.sqrt(np.clip(2 - f2, 0, None))
    direction = np.stack([x * stretch, y * stretch, sign * (1 - f2)], -1)
    excess = coverage.along(direction) - 1
    color = np.where(excess[..., None] < 0, (224, 120, 20), (40, 110, 230))
    strength = 200 * np.clip(np.abs(excess), 0, 1) * (f2 <= 1)
    return np.concatenate([color, strength[..., None]], -1)


def scale_bar(width: float) -> float:
    """A round length near a quarter of `width`."""
    power = 10.0 ** math.floor(math.log10(width / 4))
    return max(f * power for f in (1, 2, 5) if f * power <= width / 3)


def _reach(data: NDArray[np.float32]) -> int:
    """Half the edge of a cube around the origin that holds the particle, in voxels."""
    centre = data.shape[0] // 2
    strong = np.argwhere(data > 0.1 * data.max())
    return int(min(centre, max(6, 1.35 * np.abs(strong - centre).max())))


def _embers(shade: NDArray[np.floating]) -> NDArray[np.float64]:
    at = np.linspace(0, 1, len(EMBERS))
    return np.stack([np.interp(shade, at, channel) for channel in EMBERS.T], -1)


def _picture(pixels: NDArray[np.floating], overlay: str, name: str = "") -> Markup:
    """Pixels (rows upwards) as an SVG element of `SIDE` units, with what is drawn over them."""
    data = _png(pixels, Image.Resampling.BICUBIC if name else Image.Resampling.NEAREST)
    return Markup(
        f'<svg class="picture" viewBox="0 0 {SIDE} {SIDE + 20}" role="img">'
        f'<image class="{name}" width="{SIDE}" height="{SIDE}" href="{data}"/>{overlay}</svg>'
    )


def _png(pixels: NDArray[np.floating], resampling: Image.Resampling = Image.Resampling.BICUBIC) -> str:
    """Pixels (rows upwards) as the address of a PNG that holds them, enlarged where they are few."""
    image = Image.fromarray(np.ascontiguousarray(pixels[::-1]).astype(np.uint8))
    if image.width < SIDE:
        image = image.resize((2 * SIDE, 2 * SIDE), resampling)
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _bar(width: float, unit: str) -> str:
    length = scale_bar(width)
    return (
        f'<path class="bar" d="M4 {SIDE + 12}h{length / width * SIDE:.1f}"/>'
        f'<text x="{length / width * SIDE + 10:.1f}" y="{SIDE + 16}">{escape(f"{length:.4g} {unit}")}</text>'
    )
