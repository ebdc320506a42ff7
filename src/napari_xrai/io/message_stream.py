"""Frames out of messages, one array in each, whatever the protocol: what is damaged or comes twice is counted."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.frames import BAD, Detector, Frames
from .adu import photons_from_adu
from .axes import in_frame_order
from .batched import dense_frames
from .message_socket import MessageSocket
from .protocols import Decoder
from .source import InputError
from .stream import Batch
from .stream_geometry import GEOMETRY_SOURCE, revision_of
from .train import MessageError, Part, Train

MAX_AGE_S = 1.0
REMEMBERED = 10_000
"""Messages: one that comes again is told from a new one."""
TRAIN, SECONDS, FRACTION = "timestamp.tid", "timestamp.sec", "timestamp.frac"
END = "end"
"""Key of our own server's end mark, in its source of geometry."""
NAMES = ("trainId", "pulseId", "cellId", "seriesId", "imageId", "timestamp")
"""What frames are called elsewhere, where a message has one such number for each."""
NewDetector = Callable[[dict[str, Any]], Detector]
"""Makes the detector that a stream describes, or raises InputError."""


class MessageStream:
    """A `Stream` of the frames in one array of each train.

    Parameters
    ----------
    socket : MessageSocket
    decode : callable
        Messages → trains.
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
    new_detector : callable or None
        Makes the detector when the stream describes another one; None: it was given by the user, and what is taken
        under another is lost.
    """

    def __init__(
        self, socket: MessageSocket, decode: Decoder, first: Train, *, source: str, key: str, axes: str,
        shape: tuple[int, ...], mask: NDArray[np.uint8], adu_per_photon: float | None = None,
        new_detector: NewDetector | None = None,
    ) -> None:  # fmt: skip
        self.faults: Counter[str] = Counter()
        self.max_age_s: float | None = MAX_AGE_S
        self.ended = False
        self._socket, self._decode, self._first = socket, decode, first
        self._source, self._key, self._axes, self._shape = source, key, axes, shape
        self._bad, self._gain = mask == BAD, adu_per_photon
        self._names: OrderedDict[tuple[Any, ...], None] = OrderedDict()
        self._last = -1
        self._new_detector = new_detector
        self._detector: Detector | None = None
        self._revision = self._first_revision = revision_of(_said(first))
        self._is_lost = False

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
        if said is not None and revision_of(said) != self._revision:
            self._follow_detector(said)
        part = train.get(self._source)
        if part is None and set(train) <= {GEOMETRY_SOURCE}:
            return None
        if part is None or not isinstance(part.data.get(self._key), np.ndarray):
            self.faults[f"messages without {self._source}:{self._key}"] += 1
            return None
        return self._batch(part, part.data[self._key])

    def _receive(self, wait_s: float) -> Train | None:
        parts = self._socket.receive(wait_s)
        if self._socket.reconnected:
            self.faults["no answer: the server was asked again"] = self._socket.reconnected
        if parts is None:
            return None
        try:
            return self._decode(parts)
        except MessageError:
            self.faults["damaged messages"] += 1
            return None

    def _follow_detector(self, said: dict[str, Any]) -> None:
        """Take the detector that the stream has from now on; where that cannot be, its frames are lost."""
        self._revision = revision_of(said)
        self._is_lost = self._revision != self._first_revision
        if self._new_detector is not None:
            try:
                self._detector = self._new_detector(said)
                self._bad, self._is_lost = self._detector.mask == BAD, False
            except InputError:
                self._is_lost = True

    def _batch(self, part: Part, array: NDArray[Any]) -> Batch:
        acquired = acquisition_time(part.metadata)
        expected = len(self._axes)
        n = array.shape[self._axes.index("p")] if "p" in self._axes and array.ndim == expected else 1
        if self._is_repeated(part.metadata):
            self.faults["messages that came twice"] += 1
            return Batch(None, acquired, n)
        if array.ndim != expected or in_frame_order(array, self._axes).shape[1:] != self._shape:
            self.faults["messages with frames of another shape"] += 1
            return Batch(None, acquired, n)
        if self._is_lost:
            self.faults["frames under a geometry or mask that is not the run's"] += n
            return Batch(None, acquired, n)
        try:
            frames = self.frames_of(array)
        except InputError:
            self.faults["messages whose values are no photons"] += 1
            return Batch(None, acquired, n)
        detector, self._detector = self._detector, None
        return Batch(frames, acquired, 0, detector, names_of(part, n))

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
        if train < self._last:  # once, where a server starts again and counts from the beginning
            self.faults["messages out of order"] += 1
        self._last = train
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


def names_of(part: Part, n: int) -> dict[str, NDArray[Any]]:
    """What a message's `n` frames are called elsewhere: each name (n,)."""
    found: dict[str, NDArray[Any]] = {}
    for key, value in part.data.items():
        name = next((name for name in NAMES if key.replace("/", ".").split(".")[-1] == name), None)
        if name is not None and isinstance(value, np.ndarray) and value.size == n and value.dtype.kind in "uif":
            found[name] = value.reshape(n)
    train = part.metadata.get(TRAIN)
    if "trainId" not in found and isinstance(train, int) and SECONDS in part.metadata:
        found["trainId"] = np.full(n, train, np.int64)
    return found


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
