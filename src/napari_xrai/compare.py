"""The figures of merit: a reconstruction against the truth it was simulated from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .core.frames import Volume
from .core.resolution import ShellCurve, crossing, fourier_shell_correlation, sphere_correlation
from .core.rotations import align_poses, quaternion_to_matrix
from .io.source import InputError
from .io.truth import read_truth
from .run import SavedRun, read_run

if TYPE_CHECKING:
    from rich.table import Table

    from .core.simulate import Truth

SHELLS = (4, 7, 10, 13, 16, 19, 22, 25, 28, 31)
"""Radii in voxels of the truth file at which intensities are compared."""


CHANCE_SHARE = 0.85
"""Of the median error that the same poses have when they are dealt to the wrong frames: beyond it, they say nothing."""
CHANCE_NOTE = "the poses are no better than chance: the run went wrong, or {0} is of other frames"
MOST_UNLIKE = 3.0
"""Ratio of the largest |q| of two volumes of one experiment."""

FSC_THRESHOLD = 0.5
"""Against a known density; 0.143 is for two halves, each with noise of its own."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """How far a reconstruction is from the truth.

    Parameters
    ----------
    frames : int
        Poses compared.
    pose_error_deg : (frames,) float64
        Modulo one global rotation, the point group and Rz(π).
    shell_cc : dict of int to float
        Pearson correlation of the intensities on the sphere of each radius, in voxels of the truth file.
    rotation : (3, 3) float64
        The global rotation: particle frame of the run → of the truth.
    note : str
        Where the poses are no better than chance: that it may be the truth of other frames.
    fsc : ShellCurve or None
        Fourier shell correlation of the densities, unmasked, q in Å⁻¹, after the best rotation, shift and hand; None
        while either has no density.
    """

    frames: int
    pose_error_deg: NDArray[np.float64]
    shell_cc: dict[int, float]
    rotation: NDArray[np.float64]
    fsc: ShellCurve | None = None
    note: str = ""

    @property
    def fsc_resolution_A(self) -> float | None:
        """1/q where the FSC with the truth first falls below 0.5; None without densities, or if it starts below."""
        q = crossing(self.fsc, FSC_THRESHOLD) if self.fsc is not None else np.nan
        return 1 / q if q > 0 else None

    def as_json(self) -> dict[str, Any]:
        """The figures, as plain numbers."""
        error = self.pose_error_deg
        return {
            "frames": self.frames,
            "pose_error_deg": {
                "median": round(float(np.median(error)), 3),
                "mean": round(float(error.mean()), 3),
                "p90": round(float(np.percentile(error, 90)), 3),
            },
            "shell_cc": {str(r): round(cc, 4) for r, cc in self.shell_cc.items()},
            "rotation": self.rotation.round(6).tolist(),
            "fsc": None if self.fsc is None else _fsc_json(self.fsc, self.fsc_resolution_A),
            **({"note": self.note} if self.note else {}),
        }


def compare(run: Path, truth: Path) -> Comparison:
    """Compare a run (its folder, or reconstruction.h5 alone) with a truth file.

    Raises
    ------
    InputError
        If either cannot be read, the run has no poses yet, or they are of different frames.
    """
    return compare_with_truth(read_run(run), read_truth(truth), f"{truth}")


def compare_with_truth(run: SavedRun, truth: Truth, name: str) -> Comparison:
    """Compare a run with a truth already read from the file `name`."""
    snapshot = run.snapshot
    if snapshot is None or not len(snapshot.poses.frame):
        raise InputError(f"{run.path} has no poses yet: compare it after its first report")
    if snapshot.poses.frame.max() >= len(truth.rotation):
        raise InputError(
            f"{run.path} has poses up to frame {snapshot.poses.frame.max()}, {name} only {len(truth.rotation)} frames: "
            "give the truth file of these frames"
        )
    _refuse_other_experiment(run, truth, name)
    true = truth.rotation[snapshot.poses.frame]
    known = np.isfinite(true).all(axis=(1, 2))  # another program's reconstruction may have left frames out
    if not known.any():
        raise InputError(f"{name} has no pose of any frame of {run.path}: give the file of these frames")
    estimated = quaternion_to_matrix(snapshot.poses.quaternion[known])
    rotation, errors = align_poses(estimated, true[known], truth.point_group)
    curve = sphere_correlation(
        _in_units_of(truth.intensity, snapshot.intensity), truth.intensity, SHELLS, rotation=rotation.T, points=6000
    )
    in_range = {r: float(cc) for r, cc in zip(SHELLS, curve.value, strict=True) if np.isfinite(cc)}
    fsc = _density_fsc(snapshot.density, truth) if snapshot.density is not None else None
    swapped = np.random.default_rng(0).permutation(estimated)  # poses as good as these, of the wrong frames
    chance = float(np.median(align_poses(swapped, true[known], truth.point_group)[1]))
    note = CHANCE_NOTE.format(name) if np.median(errors) > CHANCE_SHARE * chance else ""
    return Comparison(len(errors), errors, in_range, rotation, fsc, note)


def _refuse_other_experiment(run: SavedRun, truth: Truth, name: str) -> None:
    """A truth of more frames, of another number or seen to another angle, would only give figures without a meaning."""
    snapshot = run.snapshot
    assert snapshot is not None
    given = run.settings
    whole = given is not None and given.input.select is None and given.engine.max_frames is None
    received, known = snapshot.counters.received, len(truth.rotation)
    if whole and snapshot.progress.fraction >= 1 and received != known:
        raise InputError(f"{run.path} is of {received:,} frames, {name} of {known:,}: give the truth of these frames")
    intensity = _in_units_of(truth.intensity, snapshot.intensity)
    reach = [v.voxel_size * (v.data.shape[0] // 2) for v in (intensity, truth.intensity)]
    if not 1 / MOST_UNLIKE < reach[0] / reach[1] < MOST_UNLIKE:
        raise InputError(
            f"{run.path} reaches to |q| = {reach[0]:.3g} {truth.intensity.units}, {name} to {reach[1]:.3g}: they are "
            "of different experiments; give the truth of these frames"
        )


def comparison_table(result: Comparison) -> Table:
    """The figures as a table for the terminal."""
    from rich.table import Table

    figures = result.as_json()
    error = figures["pose_error_deg"]
    table = Table(title=f"{result.frames:,} frames", title_justify="left", caption=result.note or None)
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, key in (("median", "median"), ("mean", "mean"), ("90th percentile", "p90")):
        table.add_row(f"pose error, {name}", f"{error[key]:.2f}°")
    for radius, cc in result.shell_cc.items():
        table.add_row(f"shell CC at {radius} voxels from q = 0", f"{cc:.3f}")
    if result.fsc is not None:
        resolution = result.fsc_resolution_A
        table.add_row("density: FSC ≥ 0.5 to", f"{resolution:.1f} Å" if resolution else "nowhere")
    return table


def _in_units_of(truth: Volume, volume: Volume) -> Volume:
    """`volume` with its voxel size in the truth's unit: one detector voxel is one voxel of the truth file."""
    if volume.units == truth.units:
        return volume
    if volume.units == "detector_voxel":
        return replace(volume, voxel_size=volume.voxel_size * truth.voxel_size, units=truth.units)
    raise InputError(
        f"the run's intensity is in {volume.units}, the other's in {truth.units}: compare a run without photon energy"
    )


def _density_fsc(density: Volume, truth: Truth) -> ShellCurve | None:
    from .core.density_alignment import align_density  # needs torch, and nothing else here does

    if truth.density is None:
        return None
    if density.units == "1/detector_voxel":
        density = replace(density, voxel_size=density.voxel_size / truth.intensity.voxel_size, units="angstrom")
    aligned = align_density(density, truth.density)
    return fourier_shell_correlation(aligned.density, aligned.reference)


def _fsc_json(fsc: ShellCurve, resolution_A: float | None) -> dict[str, Any]:
    known = np.isfinite(fsc.value)
    return {
        "resolution_A": None if resolution_A is None else round(resolution_A, 2),
        "q_invA": fsc.q[known].round(6).tolist(),
        "value": fsc.value[known].round(4).tolist(),
    }
