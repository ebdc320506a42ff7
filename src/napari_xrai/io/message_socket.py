"""A ZeroMQ socket that messages come from, for ever: a server that went away is waited for."""

from __future__ import annotations

import time
from typing import Any, Literal

from .source import InputError

Socket = Literal["REQ", "SUB", "PULL"]

EXTRA = 'pip install "napari-xrai[euxfel]"'
SILENCE_S = 5.0
"""A request that was not answered for so long may have been lost with its server: it is made again, on a new socket."""
HEARTBEAT_MS, HEARTBEAT_LOST_MS = 1000, 5000
LISTENING = ("tcp://*:", "tcp://0.0.0.0:")
"""Addresses at which we wait to be connected to, where the sender is the one that calls."""


def require_zmq() -> Any:
    """The zmq module, or in one sentence how to get it.

    Raises
    ------
    InputError
        If it is not installed.
    """
    try:
        import zmq
    except ImportError as error:
        raise InputError(f"streams need {error.name}: {EXTRA}") from error
    return zmq


class MessageSocket:
    """Asks for messages, or listens for them.

    Parameters
    ----------
    address : str
        ``tcp://host:port``; ``tcp://*:port`` waits there for a sender that connects.
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
            if self.address.startswith(LISTENING):
                self._socket.bind(self.address)
            else:
                self._socket.connect(self.address)
        except zmq.ZMQError as error:
            self.close()
            raise InputError(f"{self.address} is no address of a stream ({error}): give tcp://host:port") from error
        self._asked = None

    def close(self) -> None:
        """Hang up."""
        self._socket.close(linger=0)
        self._context.destroy(linger=0)
