"""Poses as tables for other programs: CSV, and STAR as the cryo-EM programs read it."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.rotations import quaternion_to_matrix
from .atomic import replacing

QUATERNION = ("qx", "qy", "qz", "qw")


def write_pose_table(path: Path, columns: dict[str, NDArray[Any]], names: Sequence[str]) -> None:
    """Write poses as ``.star``, or as CSV under any other name.

    Parameters
    ----------
    columns : dict of str to (N, …) array
        ``frame``, ``quaternion`` (x, y, z, w; lab → particle), ``fluence``, …; ``file`` counts `names`.

    Raises
    ------
    InputError
        If it cannot be written.
    """
    star = path.suffix == ".star"
    with replacing(path) as part, part.open("w", newline="") as file:
        if star:
            file.writelines(_star_lines(columns, names))
        else:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(_header(columns))
            table.writerows(_rows(columns, names))


def _header(columns: dict[str, NDArray[Any]]) -> list[str]:
    return ["frame", *QUATERNION, *_others(columns)]


def _others(columns: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """What there is besides frame and quaternion, one number each: columns of several are numbered from 1."""
    found: dict[str, NDArray[Any]] = {}
    for name, column in columns.items():
        if name in ("frame", "quaternion"):
            continue
        flat = column.reshape(len(column), -1)
        for n in range(flat.shape[1]):
            found[name if flat.shape[1] == 1 else f"{name}{n + 1}"] = flat[:, n]
    return found


def _rows(columns: dict[str, NDArray[Any]], names: Sequence[str]) -> Iterator[list[Any]]:
    others = _others(columns)
    for n, frame in enumerate(columns["frame"].tolist()):
        row = [frame, *(f"{v:.8g}" for v in columns["quaternion"][n].tolist())]
        for name, column in others.items():
            value = column[n].item()
            if name == "file" and names:
                value = names[value]
            row.append(f"{value:.7g}" if isinstance(value, float) else value)
        yield row


def _star_lines(columns: dict[str, NDArray[Any]], names: Sequence[str]) -> Iterator[str]:
    """RELION's angles for its own programs, and the quaternion for those who want the pose as it was found."""
    tags = ["_rlnImageName", "_rlnAngleRot", "_rlnAngleTilt", "_rlnAnglePsi"]
    header = _header(columns)
    tags += [f"_xrai{name[0].upper()}{name[1:]}" for name in header]
    yield "# created by napari-xrai; quaternions are (x, y, z, w), lab to particle\n\ndata_particles\n\nloop_\n"
    yield from (f"{tag} #{n}\n" for n, tag in enumerate(tags, 1))
    angles = relion_angles(columns["quaternion"])
    position = columns.get("index", columns["frame"])
    for n, row in enumerate(_rows(columns, names)):
        file = names[int(columns["file"][n])] if names and "file" in columns else "frames"
        image = f"{int(position[n]) + 1:06d}@{file}"
        words = [image, *(f"{a:.6f}" for a in angles[n]), *map(str, row)]
        yield " ".join(f'"{word}"' if " " in word or not word else word for word in words) + "\n"


def relion_angles(quaternion: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """(N, 3) rot, tilt, psi in degrees, of RELION's ``A = Rz(psi) Ry(tilt) Rz(rot)``, passive, particle → image.

    Parameters
    ----------
    quaternion : (N, 4)
        (x, y, z, w), lab → particle: A is its inverse.
    """
    a = quaternion_to_matrix(np.asarray(quaternion, np.float64)).transpose(0, 2, 1)
    tilt = np.arccos(np.clip(a[:, 2, 2], -1, 1))
    polar = np.hypot(a[:, 2, 0], a[:, 2, 1]) < 1e-9  # only rot + psi, or their difference, is known: rot takes it
    sign = np.where(a[:, 2, 2] > 0, 1.0, -1.0)
    rot = np.where(polar, sign * np.arctan2(a[:, 0, 1], a[:, 1, 1]), np.arctan2(a[:, 2, 1], a[:, 2, 0]))
    psi = np.where(polar, 0.0, np.arctan2(a[:, 1, 2], -a[:, 0, 2]))
    return np.asarray(np.degrees(np.stack([rot, tilt, psi], axis=1)), np.float64)
