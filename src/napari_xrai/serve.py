"""A karabo-bridge server of our own: a file, or a particle simulated without end, at a chosen rate."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from .core.detector import Polarization
from .core.frames import Detector, Frames
from .io.bridge import pack
from .io.message_socket import require_zmq
from .io.source import InputError
from .io.stream_geometry import GEOMETRY_SOURCE, describe_detector
from .io.train import Part, Train

TRAINS_PER_S = 10.0
MOST_FRAMES_PER_TRAIN = 400
QUEUE = 10
"""Trains that wait to be asked for; older ones are dropped, as at a facility."""
END_S = 10.0
"""After its last frame the server tells for so long that this is the end."""
DATA_SOURCE, DATA_KEY = "napari-xrai/frames", "image.data"
SIMULATED_AT_ONCE = 500


@dataclass(frozen=True, eq=False)
class Served:
    """Frames to be served.

    Parameters
    ----------
    words : str
        What they are; a file's say that it is a replay.
    detector : Detector or None
    polarization : "x", "y" or "none"
    shape : tuple of int
        Of a frame.
    batches : iterator of Frames
    """

    words: str
    detector: Detector | None
    polarization: Polarization
    shape: tuple[int, ...]
    batches: Iterator[Frames]


def frames_to_serve(
    what: str, *, detector: Path | None = None, energy_eV: float | None = None, preset: str = "demo", seed: int = 0
) -> Served:
    """Frames of a file, once; or of a simulated particle, without end.

    Raises
    ------
    InputError
        If it is neither a file of frames nor a particle.
    """
    from .io.open import classify, describe, open_source
    from .io.plain import split_dataset

    if split_dataset(Path(what))[0].exists() and classify(Path(what)) == "frames":
        source = open_source([Path(what)], detector=detector, energy_eV=energy_eV)
        polarization: Polarization = getattr(source, "beam").polarization or "none"  # noqa: B009
        words = f"replay of {what} ({describe(source).format}, {source.n_frames:,} frames)"
        return Served(words, source.detector, polarization, source.shape, source.batches(200))
    from .core.simulate import PRESETS, simulate
    from .io.structure import read_particle

    if preset not in PRESETS:
        raise InputError(f"there is no preset {preset!r}: choose one of {', '.join(PRESETS)}")
    particle, chosen = read_particle(what), PRESETS[preset]
    found, _, first = simulate(particle, chosen, n_frames=SIMULATED_AT_ONCE, seed=seed)

    def endless() -> Iterator[Frames]:
        yield from first
        for more in count(1):
            yield from simulate(particle, chosen, n_frames=SIMULATED_AT_ONCE, seed=seed + more)[2]

    return Served(f"simulated {what}", found, chosen.polarization, chosen.shape, endless())


class FrameServer:
    """Serves frames to one client or many, each train to whoever asks first; a context manager.

    Parameters
    ----------
    served : Served
    rate_hz : float
        Frames per second.
    port : int
        0: any that is free.

    Raises
    ------
    InputError
        If the port is taken.
    """

    def __init__(self, served: Served, rate_hz: float, port: int) -> None:
        if rate_hz <= 0:
            raise InputError(f"--rate must be a positive number of frames per second, not {rate_hz:g}")
        zmq = require_zmq()
        self.served, self.rate_hz = served, rate_hz
        self.sent = self.dropped = 0
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.REP)
        self._socket.setsockopt(zmq.LINGER, 0)
        try:
            self._socket.bind(f"tcp://0.0.0.0:{port or '*'}")
        except zmq.ZMQError as error:
            self.close()
            raise InputError(f"port {port} cannot be had ({error}): give another with --port") from error
        self.port = int(self._socket.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2])
        said = None if served.detector is None else describe_detector(served.detector, served.polarization)
        self._geometry: dict[str, Any] | None = said

    @property
    def address(self) -> str:
        """Where a client on this machine finds it."""
        return f"tcp://localhost:{self.port}"

    @property
    def sentence(self) -> str:
        """What became of the frames."""
        return f"{self.sent:,} frames sent, {self.dropped:,} dropped for want of somebody to ask"

    def run(self) -> None:
        """Serve until the frames end, or for ever."""
        waiting: deque[Train] = deque()
        asked = False
        for train, due in self._trains():
            while True:
                asked = asked or self._is_asked(max(0.0, due - time.monotonic()) if not (waiting and asked) else 0.0)
                if asked and waiting:
                    asked = self._answer(waiting.popleft())
                if time.monotonic() >= due:
                    break
            waiting.append(train)
            if len(waiting) > QUEUE:
                self.dropped += _frames_in(waiting.popleft())
        self._end(waiting, asked)

    def _end(self, waiting: deque[Train], asked: bool) -> None:
        waiting.append({GEOMETRY_SOURCE: Part({**(self._geometry or {}), "end": True})})
        until = time.monotonic() + END_S
        while waiting and time.monotonic() < until:
            asked = asked or self._is_asked(0.1)
            if asked:
                asked = self._answer(waiting.popleft())
        self.dropped += sum(map(_frames_in, waiting))

    def _is_asked(self, wait_s: float) -> bool:
        if not self._socket.poll(1000 * wait_s):
            return False
        self._socket.recv()
        return True

    def _answer(self, train: Train) -> bool:
        self._socket.send_multipart(pack(train))
        self.sent += _frames_in(train)
        return False

    def _trains(self) -> Iterator[tuple[Train, float]]:
        """Trains, and when each is due."""
        size = int(np.clip(round(self.rate_hz / TRAINS_PER_S), 1, MOST_FRAMES_PER_TRAIN))
        due = time.monotonic()
        number = int(time.time() * TRAINS_PER_S)  # counts on after a restart
        for frames in _regrouped(self.served.batches, size):
            due = max(due + len(frames) / self.rate_hz, time.monotonic() - 1.0)  # a pause is not made up for
            number += 1
            yield self._train(frames, number), due

    def _train(self, frames: Frames, number: int) -> Train:
        now = time.time()
        metadata = {
            "source": DATA_SOURCE, "timestamp": now, "timestamp.sec": str(int(now)),
            "timestamp.frac": f"{now % 1:.18f}"[2:], "timestamp.tid": number,
        }  # fmt: skip
        counts = frames.dense()
        counts = counts.astype(np.min_scalar_type(int(counts.max(initial=0)))).reshape(-1, *self.served.shape)
        train = {DATA_SOURCE: Part({DATA_KEY: counts, "image.pulseId": np.arange(len(frames))}, metadata)}
        if self._geometry is not None:
            train[GEOMETRY_SOURCE] = Part(self._geometry)
        return train

    def close(self) -> None:
        """Hang up."""
        self._socket.close(linger=0)
        self._context.destroy(linger=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _frames_in(train: Train) -> int:
    return len(train[DATA_SOURCE].data[DATA_KEY]) if DATA_SOURCE in train else 0


def _regrouped(batches: Iterator[Frames], size: int) -> Iterator[Frames]:
    rest: Frames | None = None
    for batch in batches:
        rest = batch if rest is None else Frames.concatenate([rest, batch])
        while len(rest) >= size:
            yield rest.take(slice(0, size))
            rest = rest.take(slice(size, None))
    if rest is not None and len(rest):
        yield rest
