"""Which protocol a stream speaks, told by its first message, and messages as trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from . import bridge, dectris, lclstreamer
from .train import MessageError, Train

Decoder = Callable[[Sequence[bytes]], Train]
PROTOCOLS: dict[str, tuple[Callable[[Sequence[bytes]], bool], Decoder]] = {
    "LCLStreamer": (lclstreamer.speaks, lclstreamer.unpack),
    "DECTRIS Stream V2": (dectris.speaks, dectris.unpack),
    "karabo-bridge": (bridge.speaks, bridge.unpack),
}


def protocol_of(parts: Sequence[bytes]) -> tuple[str, Decoder]:
    """Name and decoder of the protocol that a message is of.

    Raises
    ------
    MessageError
        If it is of none.
    """
    for name, (speaks, unpack) in PROTOCOLS.items():
        if speaks(parts):
            return name, unpack
    raise MessageError(f"{len(parts)} part{'s' * (len(parts) != 1)}, of no protocol known here")
