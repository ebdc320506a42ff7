"""The command line. Options in, one of the house's rooms at work, figures and plain words out.

Exit status: 0 done · 1 the engine failed · 2 bad input, said in one line · 130 interrupted, after saving. Heavy imports
are inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

import io
import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from pydantic import ValidationError

from . import __version__
from .io.source import InputError
from .terminal import closing_words, show_count, show_progress

if TYPE_CHECKING:
    from .io.source import FrameSource
    from .session import Session
    from .settings import Settings

INTERRUPTED = 130
STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""A closed terminal (SIGHUP) saves as Ctrl-C does; Windows has none."""

OPTIONS = {
    "energy_eV": "energy", "distance_m": "distance", "pixel_size_m": "pixel-size", "replay_hz": "replay",
    "idle_timeout_s": "idle-timeout", "socket": "stream-socket", "data": "stream-data", "axes": "stream-axes",
}  # fmt: skip
"""Settings whose option has another name."""

LONGEST_QUOTED = 60

app = typer.Typer(
    name="napari-xrai",
    help="X-ray single-particle imaging: from diffraction frames to a 3D structure.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

DetectorOption = Annotated[Path | None, typer.Option(help="Detector file, where the frames' file has no geometry.")]
MaskOption = Annotated[Path | None, typer.Option(help="Extra mask: 0 good, 1 not for orientation, 2 bad.")]
EnergyOption = Annotated[float | None, typer.Option(help="Photon energy in eV, where no file says.")]
DistanceOption = Annotated[float | None, typer.Option(help="Sample to detector in m, where no file says.")]
PixelSizeOption = Annotated[float | None, typer.Option(help="Pixel size in m, where no file says.")]
SelectOption = Annotated[
    str | None,
    typer.Option(
        help="Frames to use: a file of positions, a mask or a blacklist; not:FILE for all others.",
        metavar="FILE|odd|even|start:stop:step",
    ),
]
BeamCentreOption = Annotated[
    str | None, typer.Option(help="Found from the photons (auto), or as in the geometry.", metavar="auto|given")
]
UnevenBackgroundOption = Annotated[
    str | None, typer.Option(help="What all frames share: taken out (auto), or left in.", metavar="auto|left")
]
IdleTimeoutOption = Annotated[
    float | None, typer.Option(help="A stream has ended after so many seconds without a frame.  [default: 60]")
]
PolarizationOption = Annotated[str | None, typer.Option(help="x, y or none, where no file says.", metavar="x|y|none")]


def main() -> NoReturn:
    """Run the command line and exit; whatever the user got wrong is one line on stderr."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that has no Å shows ?
    try:
        status = app(prog_name="napari-xrai", standalone_mode=False)
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        help_command = f"{context.command_path if context else 'napari-xrai'} --help"
        status = _complain(f"{error.format_message().rstrip('.')}: see {help_command}")
    except InputError as error:
        status = _complain(str(error))
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    except Exception as error:
        from .session import ReconstructionError

        if not isinstance(error, ReconstructionError):
            raise
        status = _complain(str(error), status=1)
    sys.exit(status if isinstance(status, int) else 0)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False
) -> None:
    if version:
        print(f"napari-xrai {__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


@app.command(epilog="Example:  napari-xrai info photons.emc --detector det_sim.h5")
def info(
    file: Annotated[list[Path], typer.Argument(help="Frames, in any format the readers know, or a folder of them.")],
    detector: DetectorOption = None,
    mask: MaskOption = None,
    energy: EnergyOption = None,
    distance: DistanceOption = None,
    pixel_size: PixelSizeOption = None,
    polarization: PolarizationOption = None,
    select: SelectOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Say what is in a file, and what is missing."""
    from .io.open import describe, open_source

    given = _settings(None, {"input": {
        "sources": file, "detector": detector, "mask": mask, "energy_eV": energy, "distance_m": distance,
        "pixel_size_m": pixel_size, "polarization": polarization, "select": select,
    }}).input  # fmt: skip
    source = open_source(
        given.sources, detector=given.detector, mask=given.mask, energy_eV=given.energy_eV,
        distance_m=given.distance_m, pixel_size_m=given.pixel_size_m, polarization=given.polarization,
        select=given.select,
    )  # fmt: skip
    description = describe(source)
    print(json.dumps(description.as_json()) if as_json else description.sentence)
    if not as_json:
        _say_what_helps(source)


def _say_what_helps(source: FrameSource) -> None:
    """How to supply what is missing, and what was supplied the last time."""
    from .remembered import as_options, recall

    missing = getattr(source, "missing", ())
    options = {
        "geometry": "a detector file or --distance and --pixel-size", "wavelength": "--energy",
        "polarisation": "--polarization",
    }  # fmt: skip
    if missing:
        print(f"give {', '.join(options[name] for name in missing if name in options)}, if you know")
    last_time = recall(source)
    if last_time:
        print(f"remembered from the last time, not used now: {as_options(last_time)}")


@app.command(epilog="Example:  napari-xrai simulate cube cube.cxi --frames 4000 --photons 500")
def simulate(
    particle: Annotated[str, typer.Argument(help="PDB or mmCIF file (.gz too), or a built-in shape.")],
    out: Annotated[Path, typer.Argument(help="CXI file to write; its truth goes beside it.", metavar="OUT.cxi")],
    preset: Annotated[str, typer.Option(help="Experiment: detector, photon energy, fluence.")] = "demo",
    frames: Annotated[int | None, typer.Option(help="How many; default: the preset's.")] = None,
    photons: Annotated[float | None, typer.Option(help="Mean photons per frame; default: the preset's.")] = None,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal frames.")] = 0,
) -> None:
    """Simulate frames of a known particle, and write the truth beside them."""
    from .io.truth import truth_path
    from .simulation import write_simulation

    show_count(write_simulation(particle, out, preset, frames=frames, photons=photons, seed=seed))
    print(f"{out}\n{truth_path(out)}")


@app.command(epilog="Example:  napari-xrai reconstruct photons.emc --detector det.h5 --out klh1")
def reconstruct(
    source: Annotated[
        list[str] | None, typer.Argument(help="Frames: files, a folder of them, or tcp://host:port of a stream.")
    ] = None,
    detector: DetectorOption = None,
    mask: MaskOption = None,
    energy: EnergyOption = None,
    distance: DistanceOption = None,
    pixel_size: PixelSizeOption = None,
    polarization: PolarizationOption = None,
    select: SelectOption = None,
    binning: Annotated[int | None, typer.Option(help="Pixels summed along each edge.  [default: as resolved]")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder.  [default: ./<stem>_xrai_<time>/]")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in --out.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    passes: Annotated[int | None, typer.Option(help="Passes over the frames.")] = None,
    max_frames: Annotated[int | None, typer.Option(help="Stop after so many received frames.")] = None,
    seed: Annotated[int | None, typer.Option(help="Equal seeds give equal results on the same CPU.")] = None,
    device: Annotated[str | None, typer.Option(help="Where it runs.", metavar="auto|cpu|cuda[:i]")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    field: Annotated[str | None, typer.Option(help="The 3D intensity's form.", metavar="auto|voxel|hash|siren")] = None,
    symmetry: Annotated[str | None, typer.Option(help="Point group, if known.", metavar="C1|C4|D5|T|O|I")] = None,
    beam_centre: BeamCentreOption = None,
    uneven_background: UnevenBackgroundOption = None,
    config: Annotated[Path | None, typer.Option(help="settings.json of another run; options win over it.")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on with frames that are added to SOURCE.")] = False,
    idle_timeout: IdleTimeoutOption = None,
    replay: Annotated[float | None, typer.Option(help="Replay SOURCE at so many frames/s.", metavar="HZ")] = None,
    stream_socket: Annotated[str | None, typer.Option(help="Of the server.", metavar="REQ|SUB|PULL")] = None,
    stream_data: Annotated[str | None, typer.Option(help="Frames in a message.", metavar="SOURCE:KEY")] = None,
    stream_axes: Annotated[
        str | None, typer.Option(help="Axes of that array: p pulse, m module, s slow, f fast.", metavar="pmsf")
    ] = None,
    adu_per_photon: Annotated[float | None, typer.Option(help="Where a stream has detector units.")] = None,
) -> None:
    """Reconstruct the 3D intensity, the density and every frame's pose.

    Ctrl-C stops and saves; `--resume --out FOLDER` goes on.
    """
    addresses = [name for name in source or [] if name.startswith("tcp://")]
    if addresses and len(source or []) > 1:
        raise InputError(f"{addresses[0]} is a stream: give it alone, its detector with --detector")
    given: dict[str, dict[str, Any]] = {
        "input": {
            "sources": [Path(name).resolve() for name in source or [] if name not in addresses],
            "detector": detector and detector.resolve(),
            "mask": mask and mask.resolve(), "energy_eV": energy, "distance_m": distance, "pixel_size_m": pixel_size,
            "polarization": polarization, "select": _resolved(select), "binning": binning,
        },
        "engine": {
            "passes": passes, "max_frames": max_frames, "seed": seed, "device": device, "threads": threads,
            "field": field, "symmetry": symmetry, "beam_centre": beam_centre,
            "uneven_background": uneven_background,
        },
        "stream": {
            "follow": follow or None, "address": next(iter(addresses), None), "idle_timeout_s": idle_timeout,
            "replay_hz": replay, "socket": stream_socket, "data": stream_data, "axes": stream_axes,
            "adu_per_photon": adu_per_photon,
        },
    }  # fmt: skip
    _start(given, config, out, resume=resume, overwrite=overwrite)


@app.command(epilog="Example:  napari-xrai phase klh1 --starts 40")
def phase(
    run: Annotated[Path, typer.Argument(help="Run folder, or its reconstruction.h5.")],
    starts: Annotated[int, typer.Option(help="Random phase sets to try and to compare.")] = 20,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal densities on the same CPU.")] = 0,
) -> None:
    """Phase the intensity of a finished or stopped run from many starts, and keep what they agree on.

    The run's density is replaced; where no two starts agree, it is taken away.
    """
    from .phase import RunPhasing
    from .session import usable_cores

    work = RunPhasing(run, starts, seed, threads=usable_cores())
    show_count(work.steps(), "starts")
    print(work.summary)


@app.command(epilog="Example:  napari-xrai compare klh1 truth.h5 --json")
def compare(
    run: Annotated[Path, typer.Argument(help="Run folder, or its reconstruction.h5.")],
    truth: Annotated[Path, typer.Argument(help="Truth file of the same frames.")],
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Compare a run with the truth: pose errors, shell correlations."""
    from .compare import compare as compare_files
    from .compare import comparison_table

    result = compare_files(run, truth)
    if as_json:
        print(json.dumps(result.as_json()))
    else:
        from rich.console import Console

        Console().print(comparison_table(result))


@app.command(epilog="Example:  napari-xrai report klh1")
def report(run: Annotated[Path, typer.Argument(help="Run folder, or its reconstruction.h5.")]) -> None:
    """Write one self-contained HTML page about a run, finished or not, for the logbook."""
    from .report import write_report

    print(write_report(run))


@app.command(
    epilog="Example:  napari-xrai convert photons.emc frames.cxi --detector det.h5 --energy 6000 --distance 0.7"
)
def convert(
    source: Annotated[Path, typer.Argument(help="Frames, a .geom, or a run folder.", metavar="IN")],
    out: Annotated[Path, typer.Argument(help="Its ending says the format: cxi, emc, h5, dat, mrc, csv, star.")],
    detector: DetectorOption = None,
    mask: MaskOption = None,
    energy: EnergyOption = None,
    distance: DistanceOption = None,
    pixel_size: PixelSizeOption = None,
    polarization: PolarizationOption = None,
    select: SelectOption = None,
    binning: Annotated[int | None, typer.Option(help="Pixels summed along each edge.")] = None,
) -> None:
    """Write frames, a geometry or a result in another program's format."""
    from .convert import convert as convert_files
    from .convert import files_of

    given = {
        "sources": [source], "detector": detector, "mask": mask, "energy_eV": energy, "distance_m": distance,
        "pixel_size_m": pixel_size, "polarization": polarization, "select": select, "binning": binning,
    }  # fmt: skip
    notes: list[str] = []
    show_count(convert_files(_settings(None, {"input": given}).input, out, notes))
    print(*files_of(out), sep="\n")
    for note in notes:
        print(note, file=sys.stderr)


@app.command(epilog="Example:  napari-xrai serve demo --rate 100 --port 45454")
def serve(
    what: Annotated[
        str, typer.Argument(help="Frames in a file, or a particle to simulate without end.", metavar="FILE|PARTICLE")
    ],
    rate: Annotated[float, typer.Option(help="Frames per second.", metavar="HZ")],
    port: Annotated[int, typer.Option(help="Of this machine.")] = 45454,
    detector: DetectorOption = None,
    energy: EnergyOption = None,
    preset: Annotated[str, typer.Option(help="Experiment to simulate.")] = "demo",
    seed: Annotated[int, typer.Option(help="Equal seeds give equal frames.")] = 0,
) -> None:
    """Stream a file, or an endless simulation, over karabo-bridge: for rehearsals and demonstrations."""
    from .serve import FrameServer, frames_to_serve

    served = frames_to_serve(what, detector=detector, energy_eV=energy, preset=preset, seed=seed)
    with FrameServer(served, rate, port) as server:
        print(f"{served.words}: serving at {rate:,.4g} frames/s\nnapari-xrai reconstruct {server.address}", flush=True)
        server.run()
        print(server.sentence)


@app.command(epilog="Example:  napari-xrai demo")
def demo(
    headless: Annotated[bool, typer.Option("--headless", help="No window on this display.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for the frames and the run.")] = Path("xrai-demo"),
) -> None:
    """Simulate a small particle, reconstruct it live in napari, leave everything in a folder."""
    from .demo import run_demo

    raise typer.Exit(run_demo(out, headless=headless))


def _resolved(select: str | None) -> str | None:
    """A selection with its file's whole path, so that it is found again from anywhere."""
    if select is None:
        return None
    prefix, rule = ("not:", select[4:]) if select.startswith("not:") else ("", select)
    name, colon, dataset = rule.partition(":/")
    return f"{prefix}{Path(name).resolve()}{colon}{dataset}" if Path(name).is_file() else select


def _start(
    given: dict[str, dict[str, Any]], config: Path | None, out: Path | None, *, resume: bool, overwrite: bool
) -> None:
    """Reconstruct with what the command line gave, over what `config` or the run to resume holds."""
    if out == Path() and not resume and not overwrite and any(out.iterdir()):
        raise InputError("--out names the current folder, which holds other files: name a new one, or leave it out")
    if resume and out is None:
        raise InputError("--resume needs the run folder: give it with --out")
    if resume and out is not None and not (out / "settings.json").is_file():
        raise InputError(f"{out} holds no run to resume: check the name, or leave out --resume to start one")
    base = config or (out / "settings.json" if resume and out is not None else None)
    settings = _settings(base, given)
    if not settings.input.sources and settings.stream.address is None:
        raise InputError("no frames given: name at least one file of frames")
    stem = _stem(settings.input.sources[0]) if settings.input.sources else "stream"
    out = out or Path(f"{stem}_xrai_{time.strftime('%Y%m%d-%H%M%S')}")
    _reconstruct(settings, out, resume=resume, overwrite=overwrite)


def _settings(base: Path | None, given: dict[str, dict[str, Any]]) -> Settings:
    """The settings in file `base`, if any, under the options that were given."""
    from .settings import Settings

    try:
        known = Settings.model_validate_json(base.read_bytes()) if base else Settings()
    except OSError as error:
        raise InputError(f"{base} cannot be read ({error.strerror}): give the settings.json of a run") from error
    except ValidationError as error:
        if error.errors()[0]["type"] == "json_invalid":
            raise InputError(f"{base} is no JSON: give the settings.json of a run") from error
        raise InputError(f"{base}: {_first_problem(error)}") from error
    tree = known.model_dump()
    for branch, options in given.items():
        tree[branch].update({name: value for name, value in options.items() if value not in (None, [])})
    for branch, name in (("engine", "field"), ("engine", "device"), ("input", "polarization")):
        tree[branch][name] = tree[branch][name] and tree[branch][name].lower()
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        raise InputError(_first_problem(error)) from error


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    field = str(problem["loc"][-1]) if problem["loc"] else "settings"
    name = "SOURCE" if field == "address" else f"--{OPTIONS.get(field, field.replace('_', '-'))}"
    if problem["type"] == "extra_forbidden":
        return f"{field} is no setting: take it out, or check its spelling"
    said, given = problem["msg"].removeprefix("Value error, "), repr(problem["input"])
    given = given if len(given) <= LONGEST_QUOTED else f"{given[:LONGEST_QUOTED]}…"
    return f"{name}: {said[0].lower()}{said[1:]}, not {given}"


def _stem(path: Path) -> str:
    return path.name.split(".")[0] or path.stem


def _reconstruct(settings: Settings, out: Path, *, resume: bool, overwrite: bool) -> None:
    from .io.open import describe
    from .session import open_session

    session = open_session(settings, out, resume=resume, overwrite=overwrite)
    print(getattr(session.source, "sentence", None) or describe(session.source).sentence, flush=True)
    _say_what_helps(session.source)
    with _stopped_by_signals(session) as signals:
        show_progress(session)
    snapshot = session.last_snapshot
    if snapshot is not None:
        print(closing_words(snapshot, out), flush=True)
    if signals:
        kept = f"all is saved; go on with  napari-xrai reconstruct --resume --out {out}"
        if not (out / "checkpoint").exists():
            again = f"napari-xrai reconstruct --config {out / 'settings.json'} --overwrite --out {out}"
            kept = f"too early for a checkpoint; begin again with  {again}"
        print(f"interrupted: {kept}", flush=True)
        raise typer.Exit(INTERRUPTED)


@contextmanager
def _stopped_by_signals(session: Session) -> Iterator[list[int]]:
    """Ctrl-C, SIGTERM and SIGHUP stop the session at its next step; a second one at once. Gives those that came."""
    came: list[int] = []

    def on_signal(number: int, _: Any) -> None:
        if came:
            raise KeyboardInterrupt
        came.append(number)
        session.stop()
        print("stopping…", file=sys.stderr, flush=True)

    before = {number: signal.signal(number, on_signal) for number in STOPPING}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _complain(sentence: str, status: int = 2) -> int:
    print(f"napari-xrai: {' '.join(sentence.split())}", file=sys.stderr)
    return status
