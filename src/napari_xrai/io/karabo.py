"""Frames from a karabo-bridge server: trains of pulses over a socket, as the European XFEL streams them."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..core.frames import BAD, Frames
from .adu import photons_from_adu
from .axes import in_frame_order
from .batched import dense_frames
from .bridge import MessageError, Part, Train, require_zmq, unpack
from .source import InputError
from .stream import Batch
from .stream_geometry import GEOMETRY_SOURCE, revision_of

Socket = Literal["REQ", "SUB", "PULL"]

MAX_AGE_S = 1.5
SILENCE_S = 5.0
"""A request that was not answered for so long may have been lost with its server: it is made again, on a new socket."""
HEARTBEAT_MS, HEARTBEAT_LOST_MS = 1000, 5000
REMEMBERED = 10_000
"""Messages: one that comes again is told from a new one."""
TRAIN, SECONDS, FRACTION = "timestamp.tid", "timestamp.sec", "timestamp.frac"
END = "end"
"""Key of our own server's end mark, in its source of geometry."""


class BridgeSocket:
    """Asks a server for messages, for ever: a server that went away is waited for.

    Parameters
    ----------
    address : str
        ``tcp://host:port``
    socket : "REQ", "SUB" or "PULL"

    Raises
    ------
    InputError
        If the address makes no sense.
    """

    def __init__(self, address: str, socket: Socket = "REQ") -> None:
        self._zmq = require_zmq()
        self.address, self._kind = address, socket
        self._context = self._zmq.Context()
        self._socket: Any = None
        self._asked: float | None = None
        self.reconnected = 0
        self._connect()

    def receive(self, wait_s: float) -> list[bytes] | None:
        """The parts of the next message; None if none came in time."""
        if self._kind == "REQ" and self._asked is None:
            self._socket.send(b"next")
            self._asked = time.monotonic()
        if not self._socket.poll(1000 * wait_s):
            if self._asked is not None and time.monotonic() - self._asked > SILENCE_S:
                self._connect()
                self.reconnected += 1
            return None
        self._asked = None
        parts: list[bytes] = self._socket.recv_multipart()
        return parts

    def _connect(self) -> None:
        zmq = self._zmq
        if self._socket is not None:
            self._socket.close(linger=0)
        self._socket = self._context.socket(getattr(zmq, self._kind))
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVHWM, 2)
        self._socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        self._socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_LOST_MS)
        if self._kind == "SUB":
            self._socket.setsockopt(zmq.SUBSCRIBE, b"")
        try:
            self._socket.connect(self.address)
        except zmq.ZMQError as error:
            self.close()
            raise InputError(f"{self.address} is no address of a stream ({error}): give tcp://host:port") from error
        self._asked = None

    def close(self) -> None:
        """Hang up."""
        self._socket.close(linger=0)
        self._context.destroy(linger=0)


class KaraboStream:
    """A `Stream` of the frames in one array of each train.

    Parameters
    ----------
    socket : BridgeSocket
    first : Train
        The train by which the rest was decided; it is the first to be given.
    source, key : str
        Where the frames are.
    axes : str
        Of the array, as in `axes`.
    shape : tuple of int
        Of a frame.
    mask : (P,) uint8
        What is bad may hold anything.
    adu_per_photon : float or None
        For values in detector units; None: they are photons.
    """

    def __init__(
        self, socket: BridgeSocket, first: Train, *, source: str, key: str, axes: str, shape: tuple[int, ...],
        mask: NDArray[np.uint8], adu_per_photon: float | None = None,
    ) -> None:  # fmt: skip
        self.faults: Counter[str] = Counter()
        self.max_age_s: float | None = MAX_AGE_S
        self.ended = False
        self._socket, self._first = socket, first
        self._source, self._key, self._axes, self._shape = source, key, axes, shape
        self._bad, self._gain = mask == BAD, adu_per_photon
        self._names: OrderedDict[tuple[Any, ...], None] = OrderedDict()
        self._newest = -1
        self._revision = revision_of(_said(first))

    def next_batch(self, wait_s: float) -> Batch | None:
        """The frames of the next train."""
        train: Train | None
        if self._first:
            train, self._first = self._first, {}
        else:
            train = self._receive(wait_s)
        if train is None:
            return None
        said = _said(train)
        if said is not None and said.get(END):
            self.ended = True
            return None
        if said is not None:
            self._revision = revision_of(said)
        part = train.get(self._source)
        if part is None or not isinstance(part.data.get(self._key), np.ndarray):
            self.faults[f"messages without {self._source}:{self._key}"] += 1
            return None
        return self._batch(part, part.data[self._key])

    def _receive(self, wait_s: float) -> Train | None:
        parts = self._socket.receive(wait_s)
        if self._socket.reconnected:
            self.faults["silences after which it was asked again"] = self._socket.reconnected
        if parts is None:
            return None
        try:
            return unpack(parts)
        except MessageError:
            self.faults["damaged messages"] += 1
            return None

    def _batch(self, part: Part, array: NDArray[Any]) -> Batch:
        acquired = acquisition_time(part.metadata)
        expected = len(self._axes)
        n = array.shape[self._axes.index("p")] if "p" in self._axes and array.ndim == expected else 1
        if self._is_repeated(part.metadata):
            self.faults["messages that came twice"] += 1
            return Batch(None, acquired, n, self._revision)
        if array.ndim != expected or in_frame_order(array, self._axes).shape[1:] != self._shape:
            self.faults["messages with frames of another shape"] += 1
            return Batch(None, acquired, n, self._revision)
        try:
            return Batch(self.frames_of(array), acquired, 0, self._revision)
        except InputError:
            self.faults["messages whose values are no photons"] += 1
            return Batch(None, acquired, n, self._revision)

    def frames_of(self, array: NDArray[Any]) -> Frames:
        """Photons of a train's frames.

        Raises
        ------
        InputError
            If values are no photons.
        """
        frames = in_frame_order(array, self._axes).reshape(-1, int(np.prod(self._shape)))
        if self._gain is not None:
            frames = photons_from_adu(frames, self._gain)
            frames[:, self._bad] = 0
        return dense_frames(frames, 0, f"{self._source}:{self._key}", self._bad)

    def _is_repeated(self, metadata: dict[str, Any]) -> bool:
        train = metadata.get(TRAIN)
        if not isinstance(train, int):
            return False
        # a server that starts again may count from 0 again, at another time
        name = (train, str(metadata.get(SECONDS, metadata.get("timestamp"))), str(metadata.get(FRACTION)))
        if name in self._names:
            return True
        self._names[name] = None
        if len(self._names) > REMEMBERED:
            self._names.popitem(last=False)
        if train < self._newest:
            self.faults["messages out of order"] += 1
        self._newest = max(self._newest, train)
        return False

    def notice(self) -> None:
        """Messages wait in the socket."""

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


def acquisition_time(metadata: dict[str, Any]) -> float:
    """Seconds since the epoch; 0 where the metadata do not say."""
    try:
        if SECONDS in metadata:
            return float(f"{metadata[SECONDS]}.{metadata.get(FRACTION, 0)}")
        return float(metadata["timestamp"])
    except (KeyError, TypeError, ValueError):
        return 0.0


def find_frames(train: Train, wanted: str | None) -> tuple[str, str, NDArray[Any]]:
    """Source, key and array of the frames: those named ``SOURCE:KEY``, or the largest array of two to four axes.

    Raises
    ------
    InputError
        If there is none.
    """
    arrays = {
        (source, key): value for source, part in train.items() if source != GEOMETRY_SOURCE
        for key, value in part.data.items() if isinstance(value, np.ndarray) and value.dtype.kind in "uif"
    }  # fmt: skip
    names = ", ".join(f"{source}:{key} {value.shape}" for (source, key), value in arrays.items()) or "no arrays"
    if wanted is not None:
        source, _, key = wanted.rpartition(":")
        if (source, key) not in arrays:
            raise InputError(f"the stream has no {wanted}; it has {names}: name another with --stream-data")
        return source, key, arrays[source, key]
    images = {name: value for name, value in arrays.items() if value.ndim in (2, 3, 4) and min(value.shape) > 0}
    if not images:
        raise InputError(f"the stream has no array of frames, only {names}: name one with --stream-data SOURCE:KEY")
    (source, key), array = max(images.items(), key=lambda item: item[1].size)
    return source, key, array


def _said(train: Train) -> dict[str, Any] | None:
    part = train.get(GEOMETRY_SOURCE)
    return part.data if part is not None else None
