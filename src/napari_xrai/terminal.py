"""What the terminal shows: progress while work goes on, and words at its end."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .resolution_words import resolution_words

if TYPE_CHECKING:
    from .core.frames import Snapshot
    from .session import Session


ALERTED = ("faults",)
"""Of what a snapshot says in words: told otherwise."""


def show_progress(session: Session) -> None:
    """Iterate the session: a live bar on a terminal, a line every few seconds elsewhere."""
    told: set[str] = set()
    if not sys.stdout.isatty():
        next_line = 0.0
        for progress in session.run():
            for words in _news(session, told):
                print(words, flush=True)
            if time.monotonic() >= next_line:
                done = "" if math.isnan(progress.fraction) else f"{100 * progress.fraction:3.0f} %  "
                print(f"{done}{progress.phase:<20} {_pace(session)}", flush=True)
                next_line = time.monotonic() + 5
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    columns = (
        TextColumn("{task.description:<20}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[pace]}"),
    )
    with Progress(*columns) as bar:
        task = bar.add_task("starting", total=1.0, pace="")
        for progress in session.run():
            for words in _news(session, told):
                bar.console.print(words, highlight=False, markup=False)
            known = not math.isnan(progress.fraction)
            bar.update(
                task, description=progress.phase, completed=progress.fraction if known else 0.0,
                total=1.0 if known else None, pace=_pace(session),
            )  # fmt: skip


def _news(session: Session, told: set[str]) -> list[str]:
    """What was chosen, what no pass will mend, and what a stream says has changed or gone wrong: each once."""
    snapshot = session.last_snapshot
    if snapshot is None:
        return []
    chosen = [name for name in snapshot.facts if f"chosen {name}" not in told]
    told.update(f"chosen {name}" for name in chosen)
    news = [f"  {name}: {snapshot.facts[name]}" for name in chosen if name not in ALERTED]
    if snapshot.verdict == "failed" and not snapshot.progress.fraction >= 1 and snapshot.reason not in told:
        news.append(f"! failed: {snapshot.reason}")
        told.add(snapshot.reason)
    if snapshot.live:
        faults = getattr(session.source, "faults", {})
        now = time.strftime("%H:%M:%S")
        news += [f"! {words}" for words in snapshot.alerts if words not in told]
        news += [f"! {now} {words}" for words in faults if words not in told]
        told.update(snapshot.alerts, faults)
    return news


def show_count(steps: Iterator[tuple[int, int]], what: str = "frames") -> None:
    """Iterate work that counts: a live bar on a terminal, nothing elsewhere."""
    from rich.progress import MofNCompleteColumn, Progress

    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), disable=not sys.stdout.isatty()) as bar:
        task = bar.add_task(what, total=None)
        for done, total in steps:
            bar.update(task, completed=done, total=total)


def _pace(session: Session) -> str:
    """Frames per second, log-likelihood, resolution and time left, as far as they are known."""
    words = [f"{session.frames_per_s:,.0f} frames/s"] if session.frames_per_s else []
    snapshot = session.last_snapshot
    if snapshot is not None:
        if "log_likelihood" in snapshot.history and len(snapshot.history["log_likelihood"]):
            words.append(f"log-likelihood {snapshot.history['log_likelihood'][-1]:.1f}")
        if resolution := resolution_words(snapshot):
            words.append(resolution)
        if snapshot.live:
            words += _live_words(snapshot)
    if session.time_left_s is not None:
        minutes, seconds = divmod(round(session.time_left_s), 60)
        words.append(f"{minutes}:{seconds:02d} left")
    return " · ".join(words)


def _live_words(snapshot: Snapshot) -> list[str]:
    """Where a stream's frames went, and how old they were when they were used."""
    n = snapshot.counters
    words = [
        f"received {n.received:,} = dropped {n.dropped:,} + not hit {n.not_hit:,} + junk {n.junk:,} + used {n.used:,}"
    ]
    if not math.isnan(snapshot.live["latency_s"]):
        words.append(f"latency {snapshot.live['latency_s']:.1f} s")
    return words


def closing_words(snapshot: Snapshot, out: Path) -> str:
    """What came of a reconstruction, at its end or where it was stopped, and where it is."""
    done, counters = snapshot.progress.fraction, snapshot.counters
    head, kept = str(snapshot.verdict), "everything"
    if not done >= 1:
        head = head if head == "failed" else "stopped" if math.isnan(done) else f"stopped at {done:.0%}"
        kept = "what was found so far"
    resolution = f"{words}, " if (words := resolution_words(snapshot)) else ""
    phasing = f"density {snapshot.phasing.verdict}: {snapshot.phasing.reason}\n" if snapshot.phasing else ""
    return (
        f"{head}: {resolution}{snapshot.reason}\n{phasing}{_outlook(snapshot)}"
        f"{counters.used:,} of {counters.received:,} frames used; {kept} is in {out}/"
    )


def _outlook(snapshot: Snapshot) -> str:
    """What more frames would bring, and how even the views are; nothing of a failed run."""
    if snapshot.trust is None or snapshot.verdict == "failed":
        return ""
    # a radius that still grows would pass for the limit; a stream, whose end is not known, has grown as far as it can
    forecast = "" if snapshot.progress.fraction < 1 else f"{snapshot.trust.forecast.sentence}\n"
    return f"{forecast}{snapshot.trust.coverage.sentence}\n"
