"""One door for everything that arrives: a growing file, a filling folder, a socket, a file replayed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ..core.frames import BAD, GOOD, Detector, Frames
from . import cxi
from .axes import USUAL, check_axes, frame_shape, guess_axes
from .batched import BatchedSource, Rows, open_hdf5
from .dense import Hdf5Frames
from .follow import FillingFolder, GrowingFile
from .frame_names import FrameNames
from .inlet import StreamInlet
from .message_socket import MessageSocket, Socket
from .message_stream import MessageStream, find_frames
from .open import classify, describe, equip, open_source
from .plain import split_dataset
from .protocols import Decoder, protocol_of
from .replay import Replay
from .source import Beam, FrameSource, InputError
from .stream import Stream
from .stream_geometry import GEOMETRY_SOURCE, detector_of
from .train import NO_DATA, MessageError, Train
from .units import check_beam

LOOK_EVERY_S = 0.5


@dataclass(frozen=True)
class StreamOptions:
    """How frames arrive.

    Parameters
    ----------
    address : str or None
        ``tcp://host:port`` of a server, ``tcp://*:port`` to be connected to; None for files.
    socket : "REQ", "SUB" or "PULL"
    data, axes : str or None
        ``SOURCE:KEY`` of the frames in a message, and the axes of that array (p pulse, m module, s slow, f fast).
    adu_per_photon : float or None
        Where values are detector units.
    replay_hz : float or None
        Play files back at so many frames per second, in place of following them.
    idle_timeout_s : float
        The stream has ended after so long without a frame.
    find_hits : bool
    """

    address: str | None = None
    socket: Socket = "REQ"
    data: str | None = None
    axes: str | None = None
    adu_per_photon: float | None = None
    replay_hz: float | None = None
    idle_timeout_s: float = 60.0
    find_hits: bool = True


class LiveSource:
    """Frames that arrive: what is known of them before they do, and the way to receive them.

    Attributes are those of a `FrameSource`; `n_frames` is None, for nobody knows.
    """

    def __init__(self, like: FrameSource, make: Callable[[int], Stream], words: str, options: StreamOptions) -> None:
        self.format, self.shape, self.n_pixels = words, like.shape, like.n_pixels
        self.detector: Detector | None = like.detector
        self.n_frames: int | None = None
        self.notes: tuple[str, ...] = getattr(like, "notes", ())
        self.missing: tuple[str, ...] = getattr(like, "missing", ())
        self.options, self._make, self._like_paths = options, make, like.paths
        self.stream: Stream | None = None
        self.names = FrameNames()

    @property
    def paths(self) -> tuple[Path, ...]:
        """Of a folder, the files read so far, which ``file`` counts."""
        return tuple(getattr(self.stream, "paths", ())) or self._like_paths

    @property
    def faults(self) -> dict[str, int]:
        """What went wrong so far, in words, and how often."""
        return dict(self.stream.faults) if self.stream is not None else {}

    @property
    def sentence(self) -> str:
        """What was found, in words."""
        missing = [f"{' and '.join(self.missing)} not known"] if self.missing else []
        return " · ".join([self.format, f"{self.n_pixels:,} pixels", *missing, *self.notes])

    def inlet(self, start: int, most_frames: int | None) -> StreamInlet:
        """Receive from now on; the first frame gets position `start`."""
        assert self.detector is not None
        self.stream = self._make(start)
        return StreamInlet(
            self.stream, self.detector, self.names, start=start, most_frames=most_frames,
            idle_timeout_s=self.options.idle_timeout_s, find_hits=self.options.find_hits,
        )  # fmt: skip

    def identity(self, frames: NDArray[np.integer[Any]]) -> dict[str, NDArray[Any]]:
        """What the frames at these positions in the order of reception are called elsewhere: see `FrameNames`."""
        position = np.asarray(frames, np.int64)
        return {"frame": position, **self.names.of(position)}

    def batches(self, size: int, start: int = 0) -> Iterator[Frames]:
        """Nothing: a stream cannot be read again."""
        return iter(())

    def read(self, frames: np.ndarray) -> Frames:
        """Refuse: a stream cannot be read again."""
        raise InputError(f"{self.format}: frames of a stream cannot be read again")


def open_live(
    paths: list[Path], options: StreamOptions, *, detector: Path | None = None, mask: Path | None = None,
    beam: Beam = Beam(),  # noqa: B008
) -> LiveSource:  # fmt: skip
    """Open something that arrives.

    Raises
    ------
    InputError
        If nothing comes in `idle_timeout_s`, or what comes cannot be used.
    """
    check_beam(beam)
    if options.address is not None:
        return _open_socket(options, detector, mask, beam)
    if options.replay_hz is not None:
        source = _open(paths, detector, mask, beam)
        rate = options.replay_hz
        words = f"replay of {describe(source).format} at {rate:,.4g} frames/s"
        return LiveSource(source, lambda start: Replay(source, rate, start), words, options)
    if len(paths) != 1:
        raise InputError("--follow takes one file that grows, one folder that fills, or one tcp:// address")
    if paths[0].is_dir():
        return _open_folder(paths[0], options, detector, mask, beam)
    return _open_growing(paths[0], options, detector, mask, beam)


def _open(paths: list[Path], detector: Path | None, mask: Path | None, beam: Beam) -> BatchedSource:
    source = open_source(
        paths, detector=detector, mask=mask, energy_eV=beam.energy_eV, distance_m=beam.distance_m,
        pixel_size_m=beam.pixel_size_m, polarization=beam.polarization, binning="auto",
    )  # fmt: skip
    assert isinstance(source, BatchedSource)
    return source


def _patiently(work: Callable[[], BatchedSource | None], timeout_s: float, what: str) -> BatchedSource:
    """Try until something is there."""
    began = time.monotonic()
    while True:
        problem = f"{what}: nothing came in {timeout_s:g} s"
        try:
            found = work()
        except InputError as error:
            found, problem = None, str(error)
        if found is not None:
            return found
        if time.monotonic() - began > timeout_s:
            raise InputError(problem)
        time.sleep(LOOK_EVERY_S)


def _open_growing(
    path: Path, options: StreamOptions, detector: Path | None, mask: Path | None, beam: Beam
) -> LiveSource:
    file, _ = split_dataset(path)
    if file.exists() and file.stat().st_size and not h5py.is_hdf5(file):
        raise InputError(f"{path} is not HDF5, which alone can be read while it grows: leave out --follow")
    source = _patiently(lambda: _open([path], detector, mask, beam), options.idle_timeout_s, str(path))
    file, _ = split_dataset(path)  # before the file was there, FILE:DATASET could not be told from a name
    innermost = source
    while hasattr(innermost, "_source"):
        innermost = innermost._source
    if not isinstance(innermost, cxi.CxiSource | Hdf5Frames):
        raise InputError(f"{path}: {source.format} cannot be read while it grows: leave out --follow")
    name = innermost._dataset

    def length() -> int:
        with open_hdf5(file) as hdf5:
            data = hdf5.get(name)
            return cxi.written(data) if isinstance(data, h5py.Dataset) else 0

    words = f"{source.format}, followed while it grows"
    return LiveSource(source, lambda start: GrowingFile(source, length, start), words, options)


def _open_folder(
    folder: Path, options: StreamOptions, detector: Path | None, mask: Path | None, beam: Beam
) -> LiveSource:
    def open_file(path: Path) -> BatchedSource:
        source = _open([path], detector, mask, beam)
        if source.shape != first.shape:
            raise InputError(f"{path} has frames of another shape than {first.paths[0]}: left out")
        return source

    def is_frames(path: Path) -> bool:
        return classify(path) == "frames"

    def first_file() -> BatchedSource | None:
        for path in sorted(p for p in folder.iterdir() if not p.name.startswith(".")):
            if path.is_file() and path.stat().st_size and is_frames(path):
                return _open([path], detector, mask, beam)
        return None

    first = _patiently(first_file, options.idle_timeout_s, str(folder))
    first.paths = (folder,)
    words = f"{first.format}, a folder followed while it fills"
    return LiveSource(
        first, lambda start: FillingFolder(folder, open_file, is_frames, first.detector, start), words, options
    )


class _Streamed(BatchedSource):
    """Stands for the frames of a socket where a detector is fitted to them."""

    @contextmanager
    def _rows(self) -> Iterator[Rows]:
        raise InputError("frames of a stream cannot be read again")
        yield


def _open_socket(options: StreamOptions, detector: Path | None, mask: Path | None, beam: Beam) -> LiveSource:
    assert options.address is not None
    if options.axes is not None and not check_axes(options.axes):
        raise InputError(f"--stream-axes must be letters of p m s f, each once, not {options.axes!r}")
    socket = MessageSocket(options.address, options.socket)
    try:
        protocol, decode, first = _first_train(socket, options)
        source, key, array = find_frames(first, options.data)
        axes, like = _fit(array.shape, first, options, detector, mask, beam)
        empty = first[source].data.get(NO_DATA, np.zeros(like.shape, bool))
        if like.detector is not None:
            like.detector = like.detector.with_mask(np.where(empty, BAD, GOOD))
        mask_of = like.detector.mask if like.detector is not None else np.zeros(like.n_pixels, np.uint8)

        def new_detector(said: dict[str, Any]) -> Detector:
            return _streamed_detector(said, like, mask, beam).with_mask(np.where(empty, BAD, GOOD))

        stream = MessageStream(
            socket, decode, first, source=source, key=key, axes=axes, shape=like.shape, mask=mask_of,
            adu_per_photon=options.adu_per_photon,
            new_detector=new_detector if detector is None and GEOMETRY_SOURCE in first else None,
        )  # fmt: skip
        try:
            stream.frames_of(array)
        except InputError as error:
            raise InputError(f"{error} (--adu-per-photon)") from error
    except BaseException:
        socket.close()
        raise
    guessed = "" if options.axes else ", as guessed (--stream-axes)"
    like.notes += (f"{source}:{key} has axes {axes}{guessed}",)
    words = f"{protocol} stream from {options.address}"
    return LiveSource(like, lambda start: stream, words, options)


def _streamed_detector(said: dict[str, Any], like: BatchedSource, mask: Path | None, beam: Beam) -> Detector:
    """The detector that a stream describes, with what the user says laid over it."""
    detector = detector_of({**said, **_said_by(beam)})
    if detector.shape != like.shape:
        raise InputError(f"the stream describes frames of shape {detector.shape}, not {like.shape}")
    other = _Streamed(like.format, like.paths, 0, like.shape, detector=detector)
    equip(other, None, mask, Beam())
    assert other.detector is not None
    if not (other.detector.mask < BAD).any():
        raise InputError("the mask leaves no good pixel: give another mask or detector file")
    return other.detector


def _said_by(beam: Beam) -> dict[str, Any]:
    """What the user says of the beam, in the words of `detector_of`."""
    known = {"energy_eV": beam.energy_eV, "polarization": beam.polarization}
    return {name: value for name, value in known.items() if value is not None}


def _first_train(socket: MessageSocket, options: StreamOptions) -> tuple[str, Decoder, Train]:
    """Protocol, decoder, and the first train with an array, with the geometry that came before it."""
    began = time.monotonic()
    geometry: Train = {}
    while time.monotonic() - began < options.idle_timeout_s:
        parts = socket.receive(0.2)
        if parts is None:
            continue
        try:
            name, decode = protocol_of(parts)
            train = decode(parts)
        except MessageError as error:
            raise InputError(
                f"{options.address} speaks none of karabo-bridge 2, LCLStreamer's HDF5 and DECTRIS Stream V2 "
                f"({error}): check the address and the server"
            ) from error
        geometry |= {GEOMETRY_SOURCE: train[GEOMETRY_SOURCE]} if GEOMETRY_SOURCE in train else {}
        if set(train) - {GEOMETRY_SOURCE}:
            return name, decode, {**geometry, **train}
    raise InputError(
        f"nothing came from {options.address} in {options.idle_timeout_s:g} s: is the server running there, and is "
        f"its socket for {options.socket} (--stream-socket)?"
    )


def _fit(
    array: tuple[int, ...], first: Train, options: StreamOptions, detector: Path | None, mask: Path | None, beam: Beam
) -> tuple[str, BatchedSource]:  # fmt: skip
    """Axes of the array and frames with a detector, such that they go together."""
    assert options.address is not None
    said = first.get(GEOMETRY_SOURCE)
    own = detector_of({**said.data, **_said_by(beam)}) if said is not None and detector is None else None
    if options.axes is not None:
        choices = [options.axes]
    elif own is not None:
        axes = guess_axes(array, own.shape)
        choices = [] if axes is None else [axes]
    else:
        choices = [*likely_axes(array), "pf"]  # a detector file may list its pixels without saying how they lie
    problem = InputError(f"frames of shape {array} do not fit the detector: name their axes with --stream-axes")
    for axes in choices:
        if len(axes) != len(array):
            continue
        like = _Streamed("stream", (Path(options.address),), 0, frame_shape(array, axes), missing=("geometry",))
        try:
            if own is not None and own.shape == like.shape:
                like.detector, like.missing = own, ()
            equip(like, detector, mask, beam)
        except InputError as error:
            problem = error
            continue
        if like.detector is not None and not (like.detector.mask < BAD).any():
            raise InputError("the mask leaves no good pixel: give another mask or detector file")
        return axes, like
    raise problem


def likely_axes(array: tuple[int, ...]) -> list[str]:
    """Orders of axes that an array of this shape may have, the likeliest first.

    Rows and columns of a module are alike in number, or 512 and 128; pulses are as many as they are.
    """

    def unlikely(axes: str) -> tuple[bool, int]:
        rows, columns = frame_shape(array, axes)[-2:]
        return not (rows == columns or (rows, columns) == (512, 128)), USUAL.index(axes)

    return sorted((axes for axes in USUAL if len(axes) == len(array)), key=unlikely)
