"""What the panel says about a run, in words."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..io.source import InputError
from ..resolution_words import resolution_words

if TYPE_CHECKING:
    from pathlib import Path

    from ..core.frames import Progress, Snapshot

VERDICTS = {"converged": "Converged", "improving": "Improving", "failed": "Not converging"}


def progress_words(progress: Progress, frames_per_s: float, time_left_s: float | None) -> str:
    """Phase, speed and time left: ``"pass 3 of 10 · 1,240 frames/s · 0:42 left"``."""
    said = [progress.phase]
    if frames_per_s > 0:
        said.append(f"{frames_per_s:,.0f} frames/s")
    if time_left_s is not None and math.isfinite(time_left_s):
        said.append(f"{duration_words(time_left_s)} left")
    return " · ".join(said)


def duration_words(seconds: float) -> str:
    """``"0:42"``, ``"12:05"``, ``"3 h 20 min"``."""
    whole = max(0, round(seconds))
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60}:{whole % 60:02d}"


def ago_words(seconds: float) -> str:
    """``"just now"``, ``"12 s ago"``, ``"5 min ago"``, ``"3 h ago"``, ``"2 days ago"``."""
    if seconds < 3:
        return "just now"
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def verdict_words(snapshot: Snapshot) -> str:
    """One look at the result, and why: ``"Improving at 12.3 Å: the half-sets agree better with every pass."``."""
    head = VERDICTS[snapshot.verdict]
    if resolution := resolution_words(snapshot):
        head += f" at {resolution}"
    return f"{head}: {snapshot.reason}" if snapshot.reason else head


def live_words(snapshot: Snapshot) -> str:
    """One look while it runs."""
    provisional = "The density is provisional: independent starts decide at the end" if snapshot.density else ""
    return sentences(verdict_words(snapshot), provisional if snapshot.phasing is None else "")


def sentences(*parts: str) -> str:
    """The parts that say something, as sentences."""
    return " ".join(part if part.endswith((".", "!", "?")) else f"{part}." for part in parts if part)


def density_words(snapshot: Snapshot) -> str:
    """How far the density may be believed; nothing for a live one."""
    phasing = snapshot.phasing
    if phasing is None:
        return ""
    if phasing.verdict == "failed":
        return f"No density: {phasing.reason}"
    head = "Density" if phasing.verdict == "agreed" else "Density, doubtful"
    return f"{head}: {phasing.reason}"


def phased_words(snapshot: Snapshot | None, run: Path) -> str:
    """What came of phasing a saved run again; None: it was stopped."""
    if snapshot is None:
        return "Phasing stopped: the run is as it was."
    return sentences(density_words(snapshot), f"Saved in {run}.")


def frames_words(snapshot: Snapshot) -> str:
    """Where the frames went; nothing while none has a fate yet."""
    counters = snapshot.counters
    if not counters.received:
        return ""
    fates = [f"{counters.used:,} of {counters.received:,} frames used"]
    for name in ("junk", "not_hit", "dropped"):
        if number := getattr(counters, name):
            fates.append(f"{number:,} {name.replace('_', ' ')}")
    latency = snapshot.live.get("latency_s", math.nan)
    if math.isfinite(latency):
        fates.append(f"used {latency:.1f} s after they were taken")
    alert = f"\n! {snapshot.alerts[-1]}" if snapshot.alerts else ""
    faults = f"\n! {snapshot.facts['faults']}" if "faults" in snapshot.facts else ""
    centre = snapshot.facts.get("beam centre", "")
    beam = f"\n! beam centre {centre}" if centre.startswith("moved") else ""
    return " · ".join(fates) + beam + alert + faults


def hits_words(hits: int, looked_at: int, total: int) -> str:
    """How many of the frames looked at are hits: ``"312 of 1,000 frames looked at are hits (31.2 %)"``."""
    of_all = f"; there are {total:,} in all" if looked_at < total else ""
    return f"{hits:,} of {looked_at:,} frames looked at are hits ({100 * hits / max(looked_at, 1):.3g} %){of_all}"


def centre_words(before: tuple[float, float], after: tuple[float, float]) -> str:
    """Where the beam centre went, as (row, column): ``"Beam centre moved 3.0 pixels right and 1.5 up: …"``."""
    return (
        f"Beam centre moved {_way_words(before, after)}: rings and radial average follow. A run takes it with "
        '"Use for the run".'
    )


def found_centre_words(given: tuple[float, float], found: tuple[float, float]) -> str:
    """How far from where the geometry has it the beam was found, both as (row, column)."""
    return (
        f"The beam was found {_way_words(given, found)} from where the geometry has it; the cross is there now. A run "
        'finds it by itself, and takes it from here with "Use for the run".'
    )


def _way_words(before: tuple[float, float], after: tuple[float, float]) -> str:
    down, right = after[0] - before[0], after[1] - before[1]
    sideways = f"{abs(right):.1f} pixels {'right' if right > 0 else 'left'}"
    return f"{sideways} and {abs(down):.1f} {'down' if down > 0 else 'up'}"


def handed_over_words(what: str, folder: Path) -> str:
    """What the run gets now, and where its files are."""
    return f"X-RAI Reconstruct has {what} now. Saved in {folder}."


def error_words(error: Exception) -> str:
    """An error as one sentence; what nobody foresaw keeps its type's name."""
    from ..session import ReconstructionError

    if isinstance(error, MemoryError):
        return "Out of memory: close other programs, or reconstruct fewer frames (Settings, max frames)."
    text = str(error).strip().splitlines()
    said = text[0] if text else type(error).__name__
    return said if isinstance(error, InputError | ReconstructionError) else f"{type(error).__name__}: {said}"
