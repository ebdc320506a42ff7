"""One page about a run, for the logbook: everything on it, nothing fetched, readable at three in the morning."""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from numpy.typing import NDArray

from . import __version__
from .core.coverage import Coverage, ViewDensity
from .core.frames import Phasing, Snapshot
from .core.resolution import shell_index
from .io.atomic import replacing
from .io.source import InputError
from .live_density import FINAL_STARTS
from .report_curves import Axis, Level, Series, bars, plot
from .report_pictures import Picture, beam_directions, density_views, intensity_sections, pose_map
from .resolution_words import resolution_q
from .run import SETTINGS, SavedRun, beside_result, read_run
from .run_result import RESULT
from .settings import unset_words

PAGE = "report.html"
LIBRARIES = ("numpy", "scipy", "torch", "numba", "h5py")
TONES = {"converged": "good", "agreed": "good", "improving": "fair", "doubtful": "fair", "failed": "bad"}
HEADLINES = {"converged": "Converged", "improving": "Improving", "failed": "Failed: not converging"}

HALVES = (
    "Frames of even and odd position, merged apart. The two halves share their poses, which were found against the "
    "common volume: the figure is optimistic. No mask was used."
)


@dataclass(frozen=True)
class Tile:
    """One figure of the head."""

    label: str
    value: str
    note: str
    tone: str = ""


@dataclass(frozen=True)
class Figure:
    """A curve with its words; `svg` is None where there is nothing to draw, and the words say why."""

    title: str
    svg: Markup | None
    words: str


def write_report(run: Path) -> Path:
    """Write the page about a run, finished, stopped or still being written; give its path.

    Parameters
    ----------
    run : Path
        Run folder, or its reconstruction.h5 alone.

    Raises
    ------
    InputError
        If there is no run, it has no result yet, or the page cannot be written.
    """
    saved = read_run(run)
    text = page(saved, datetime.now().astimezone())
    path = beside_result(saved.path, PAGE)
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")
    return path


def page(saved: SavedRun, made: datetime) -> str:
    """The page as HTML.

    Raises
    ------
    InputError
        If the run has no result yet.
    """
    now = saved.snapshot
    if now is None:
        raise InputError(f"{saved.path} has no result yet: report it after its first one")
    loader = PackageLoader(__package__, ".")
    environment = Environment(
        loader=loader, autoescape=select_autoescape(["html"]), undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    density, density_words = _density(now)
    coverage = None
    if len(now.poses.frame):
        coverage = now.trust.coverage if now.trust else ViewDensity([beam_directions(now.poses)]).coverage()
    sections = intensity_sections(now, resolution_q(now))
    return environment.get_template(PAGE).render(
        style=Markup(loader.get_source(environment, "report.css")[0]),
        title=_title(saved), path=saved.path.resolve(), made=f"{made:%Y-%m-%d %H:%M %Z}", written=_written(saved.path),
        state=state_words(now), headline=HEADLINES[now.verdict], tone=TONES[now.verdict], reason=now.reason,
        tiles=_tiles(saved), sections=sections, density=density, density_words=density_words,
        glance=sections[0], half_sets=_half_sets(now), curves=_curves(now), poses=pose_map(now.poses, coverage),
        pose_words=_poses(now, coverage), certainty=_certainty(now), inputs=_inputs(saved), settings=_settings(saved),
        chosen=_chosen(now), counters=_counters(now), again=_again(saved), versions=_versions(saved, made),
    )  # fmt: skip


# ---- the head


def state_words(snapshot: Snapshot) -> str:
    """Whether the run came to its end."""
    progress = snapshot.progress
    if progress.fraction >= 1:
        return "Run to its end"
    at = f" at {progress.fraction:.0%}" if np.isfinite(progress.fraction) else ""
    return f"Not run to its end (stopped, or still running){at}, {progress.phase}"


def _title(saved: SavedRun) -> str:
    names = [Path(source).name for source in saved.sources]
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "") if names else saved.path.name


def _written(path: Path) -> str:
    file = path / RESULT if path.is_dir() else path
    return f"{datetime.fromtimestamp(file.stat().st_mtime).astimezone():%Y-%m-%d %H:%M %Z}"


def _tiles(saved: SavedRun) -> list[Tile]:
    now = saved.snapshot
    assert now is not None
    counters, q = now.counters, resolution_q(now)
    resolution = Tile("Resolution", "none yet", "the half-sets do not agree, or do not exist yet")
    if q is not None:
        value = f"{1 / q:.3g} Å" if now.intensity.units == "1/angstrom" else f"{q:.3g} voxels"
        unit = "" if now.intensity.units == "1/angstrom" else " at this |q|; no wavelength, so no Å"
        resolution = Tile("Resolution", value, f"half-sets correlate ½{unit}; optimistic, they share poses")
    if q is not None and now.verdict == "failed":
        resolution = Tile("Resolution", "none", "the half-sets agree with each other, but the run has failed", "bad")
    left_out = counters.received - counters.used
    rest = f"{left_out:,} left out" if left_out else "none left out"
    return [
        resolution,
        Tile("Frames used", f"{counters.used:,}", f"of {counters.received:,} received, {rest}"),
        _diameter_tile(now),
        _density_tile(now),
        _time_tile(saved),
    ]


def _diameter_tile(now: Snapshot) -> Tile:
    value, _, source = now.facts.get("diameter", "not known").partition(", ")
    return Tile("Diameter", value, f"of the particle, {source}" if source else "of the particle")


def _density_tile(now: Snapshot) -> Tile:
    if now.phasing is not None:
        note = f"{now.phasing.kept} of {now.phasing.starts} phasing starts agree"
        if now.verdict == "failed" and now.density is not None:
            return Tile("Density", "not to be believed", f"{note}, but the intensity has not converged", "bad")
        return Tile("Density", now.phasing.verdict, note, TONES[now.phasing.verdict])
    if now.density is not None:
        return Tile("Density", "live", "one start, not compared with others")
    return Tile("Density", "none yet", "the intensity has not been phased")


def _time_tile(saved: SavedRun) -> Tile:
    if not saved.metrics:
        return Tile("Time", "not known", "metrics.jsonl is not beside the result")
    minutes, seconds = divmod(round(saved.metrics[-1]["time_s"]), 60)
    value = f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
    if minutes >= 60:
        value = f"{minutes // 60} h {minutes % 60:02d} min"
    return Tile("Time", value, f"{saved.metrics[-1]['cpu_s']:,.0f} s of processor time")


# ---- curves


def _curves(now: Snapshot) -> list[Figure]:
    """All but that of the half-sets; those that cannot be drawn come last."""
    figures = [_phasing(now), *_over_frames(now), _profile(now), _forecast(now)]
    return sorted(figures, key=lambda figure: figure.svg is None)


def _q_axis(now: Snapshot) -> Axis:
    return Axis("q = 1/d (Å⁻¹)" if now.intensity.units == "1/angstrom" else "|q| (detector voxels)", 0)


def _half_sets(now: Snapshot) -> Figure:
    q, cc = (now.shells.get(name, np.zeros(0)) for name in ("q", "half_cc"))
    svg = plot(
        [Series("half-set CC", q, cc)], _q_axis(now), Axis("shell CC", -0.1, 1.0),
        [Level(0.5, "0.5"), Level(1 / 7, "1/7, for halves with poses of their own")], mark=resolution_q(now),
    )  # fmt: skip
    words = HALVES
    if svg is None:
        words = "No curve: the half-sets hold too few frames so far, or the run has not come to merging them."
    return Figure("Half-sets: shell correlation of the intensity", svg, words)


def _phasing(now: Snapshot) -> Figure:
    title = "Phasing: PRTF and agreement of starts"
    if now.phasing is None:
        return Figure(title, None, "No curve: the intensity has not been phased from several starts.")
    curves = now.phasing.curves
    lines = [
        Series(label, curves["q"], curves[name])
        for name, label in (
            ("prtf", "PRTF"),
            ("agreement", "FSC between starts, mean"),
            ("half_fsc", "FSC of half-set densities"),
        )
        if name in curves
    ]
    svg = plot(lines, _q_axis(now), Axis("PRTF, FSC", -0.1, 1.0), [Level(0.5, "0.5")])
    words = (
        "How well phasing repeats on this one intensity. Neither curve knows the errors of the intensity itself, and "
        "the PRTF is no resolution."
    )
    if "half_fsc" in curves:
        words += (
            " The half-set densities share poses, support (a mask) and first phases: they tell of photon noise only."
        )
    if svg is None:
        words = f"No curve: {now.phasing.reason}."
    return Figure(title, svg, words)


def _over_frames(now: Snapshot) -> list[Figure]:
    calibrated = now.intensity.units == "1/angstrom"
    history = {name: now.history.get(name, np.zeros(0)) for name in ("frames_seen", "resolution_q", "log_likelihood")}
    seen, q = history["frames_seen"], history["resolution_q"]
    with np.errstate(divide="ignore", invalid="ignore"):
        resolution = np.where(q > 0, 1 / q if calibrated else q, np.nan)
    frames = Axis("frames seen, repeats counted", 0)
    label = "resolution (Å)" if calibrated else "|q| at CC ½ (voxels)"
    finer = "lower is finer" if calibrated else "higher is finer"
    drawn = plot([Series("", seen, resolution)], frames, Axis(label, 0))
    likelihood = plot([Series("", seen, history["log_likelihood"])], frames, Axis("log-likelihood per frame"))
    return [
        Figure(
            "Resolution over the run", drawn,
            f"Where the half-sets correlate ½; {finer}." if drawn else "No curve: no half-sets have agreed yet.",
        ),
        Figure(
            "Likelihood over the run", likelihood,
            "Mean per frame, above that of a structureless particle. It also rises with fitted noise."
            if likelihood else "No curve: no frame has been scored yet.",
        ),
    ]  # fmt: skip


def _profile(now: Snapshot) -> Figure:
    data, seen = now.intensity.data, (now.weight.data > 0) & np.isfinite(now.intensity.data)
    q = np.arange(data.shape[0] // 2 + 1) * now.intensity.voxel_size
    lines = [Series("mean intensity", q, _shell_means(data, seen))]
    words = "Mean of the measured voxels of each shell"
    if now.trust is not None:
        known = seen & (now.trust.standard_error.data > 0)
        error = np.sqrt(_shell_means(now.trust.standard_error.data.astype(np.float64) ** 2, known))
        lines.append(Series("standard error of a voxel, rms", q, error))
        words += "; the standard error holds noise, blur and lost detail, and is not known beside the beam stop"
    svg = plot(lines, _q_axis(now), Axis("intensity", log=True), mark=resolution_q(now))
    words = f"{words}." if svg else "No curve: the intensity is empty."
    if svg and not np.ptp(data[seen]) > 0:
        words = "The intensity is the same in every measured voxel: it shows no particle."
    return Figure("Radial profile of the intensity", svg, words)


def _shell_means(data: NDArray[np.floating], seen: NDArray[np.bool_]) -> NDArray[np.float64]:
    shell, shells = shell_index(data.shape[0]), data.shape[0] // 2 + 1
    count = np.bincount(shell[seen], minlength=shells)[:shells]
    total = np.bincount(shell[seen], data[seen], minlength=shells)[:shells]
    return np.divide(total, count, out=np.full(shells, np.nan), where=count > 0)


def _forecast(now: Snapshot) -> Figure:
    title = "What more frames would bring"
    if now.trust is None or not now.progress.fraction >= 1:  # a radius that still grows would pass for the limit
        return Figure(title, None, "No forecast: it is made at the end of a run, from how far the half-sets agree.")
    if now.verdict == "failed":
        return Figure(title, None, "No forecast: the run failed, and more frames alone would not mend that.")
    coming, calibrated = now.trust.forecast, now.intensity.units == "1/angstrom"
    lines = [
        Series(label, coming.frames, 1 / q if calibrated else q)
        for label, q in (("expected", coming.q), ("at worst", coming.low), ("at best", coming.high))
    ]
    axis = Axis("resolution (Å)" if calibrated else "|q| at CC ½ (voxels)", 0)
    words = f"{coming.sentence[0].upper()}{coming.sentence[1:]}."
    svg = None if coming.at_edge[0] else plot(lines, Axis("frames", 0), axis)
    return Figure(title, svg, words)


# ---- density and poses


def _density(now: Snapshot) -> tuple[list[Picture], str]:
    """The density's views, and what to think of them; no views where none may be believed."""
    if now.density is None:
        if now.phasing is not None:
            return [], f"No density is shown, because phasing failed: {now.phasing.reason}."
        return [], "No density yet: the intensity has not been phased."
    views = density_views(now.density)
    if not views:
        return [], "The density is empty."
    words = _phasing_words(now.phasing)
    if now.verdict == "failed" and (now.phasing is None or now.phasing.verdict == "agreed"):
        words = f"Not to be believed: the intensity it was phased from has not converged. {words}"
    return views, words


def _phasing_words(phasing: Phasing | None) -> str:
    if phasing is None:
        return (
            "The live density of one start, to steer by; it was not compared with other starts. "
            "napari-xrai phase does that."
        )
    head = {"agreed": "Average of the starts that agree", "doubtful": "Doubtful", "failed": "Failed"}[phasing.verdict]
    return f"{head}: {phasing.reason}. Its hand is a matter of chance."


def _poses(now: Snapshot, coverage: Coverage | None) -> str:
    poses = now.poses
    if coverage is None:
        return "No poses yet: they are written at the end, and once a minute before."
    sure = float((np.nan_to_num(poses.confidence) >= 0.5).mean())
    words = f"{sure:.0%} of the poses have a confidence of ½ or more (blue dots; the others orange)."
    if len(poses.frame) < now.counters.used:
        words += f" {len(poses.frame):,} of {now.counters.used:,} used frames have a pose in this file so far."
    said = f"{coverage.sentence[0].upper()}{coverage.sentence[1:]}"
    return f"{words} {said}. Tinted orange: fewer views than an even spread; blue: more."


def _certainty(now: Snapshot) -> list[Figure]:
    """Histograms of how sure the poses are."""
    counts, edges = np.histogram(np.nan_to_num(now.poses.confidence).clip(0, 1), 20, (0, 1))
    svg = bars(counts, edges, Axis("confidence", 0, 1), "frames")
    words = "Posterior weight within 10° of each frame's pose, given this volume."
    figures = [Figure("Confidence of the poses", svg, words)]
    radius = now.poses.radius68[np.isfinite(now.poses.radius68)]
    if len(radius):
        most = float(np.percentile(radius, 99)) * 1.05 or 1.0
        counts, edges = np.histogram(radius.clip(0, most), 24, (0, most))
        svg = bars(counts, edges, Axis("68 % radius (degrees)", 0, most), "frames")
        several = float((now.poses.modes > 1).mean()) if len(now.poses.modes) else 0.0
        words = (
            "The true pose, or its half-turn about the beam, which no frame tells from it, lies within this angle "
            f"with 68 %; median {np.median(radius):.2g}°. "
            f"{several:.0%} of the frames have more than one possible pose."
        )
        figures.insert(0, Figure("Uncertainty of the poses", svg, words))
    return figures


# ---- tables


INPUT_FACTS = ("frames", "detector", "photon energy")
"""Facts about what went in; the other facts were found in the data."""

FILES = {"detector": "detector file", "mask": "mask file"}


def _inputs(saved: SavedRun) -> dict[str, str]:
    rows = {"files": "\n".join(saved.sources) or "not known"}
    given = saved.settings.input if saved.settings else None
    if given is not None:
        named: dict[str, Any] = given.model_dump(exclude={"sources"}, exclude_none=True)
        rows |= {FILES.get(name, name.replace("_", " ") + " given"): str(value) for name, value in named.items()}
    facts = saved.snapshot.facts if saved.snapshot else {}
    return rows | {name: facts[name] for name in INPUT_FACTS if name in facts}


def _chosen(now: Snapshot) -> dict[str, str]:
    return {name: fact for name, fact in now.facts.items() if name not in INPUT_FACTS}


def _settings(saved: SavedRun) -> dict[str, str]:
    if saved.settings is None:
        return {"": f"{SETTINGS} is not beside the result"}
    engine = saved.settings.engine.model_dump()
    return {
        name.replace("_", " "): unset_words(name) if value is None else str(value) for name, value in engine.items()
    }


def _counters(now: Snapshot) -> dict[str, str]:
    counters = now.counters
    names = ("received", "hits", "used", "junk", "not_hit", "dropped")
    return {name.replace("_", " "): f"{getattr(counters, name):,}" for name in names}


def _again(saved: SavedRun) -> list[str]:
    """Shell commands."""
    command = ["napari-xrai", "reconstruct"]
    if saved.settings is not None:
        command += ["--config", str((saved.path / SETTINGS).resolve())]
    else:
        command += saved.sources
    commands, phasing = [f"{shlex.join(command)} --out again"], saved.snapshot and saved.snapshot.phasing
    if phasing and phasing.starts != FINAL_STARTS:  # those are a reconstruction's own
        commands.append(f"napari-xrai phase again --starts {phasing.starts} --seed {phasing.seed}")
    return [*commands, "napari-xrai report again"]


def _versions(saved: SavedRun, made: datetime) -> dict[str, str]:
    rows = {"run made by": saved.created_by, "report made by": f"napari-xrai {__version__}, {made:%Y-%m-%d %H:%M %Z}"}
    rows["Python"] = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return rows | {name: importlib.metadata.version(name) for name in LIBRARIES}
