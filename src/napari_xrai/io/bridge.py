"""The karabo-bridge protocol, version 2.2: messages of a train as parts of bytes, and back.

A message is pairs of parts, header and payload: per source one of metadata and plain values, then one per array.
https://rtd.xfel.eu/docs/data-analysis-user-documentation/en/latest/online/karabo_bridge.html
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .message_socket import EXTRA
from .source import InputError
from .train import MessageError, Part, Train

LARGEST_TEXT = 2**31 - 1


def speaks(parts: Sequence[bytes]) -> bool:
    """Whether this message can be of version 2: pairs of parts."""
    return len(parts) >= 2 and len(parts) % 2 == 0


def _msgpack() -> Any:
    try:
        import msgpack
    except ImportError as error:
        raise InputError(f"karabo-bridge needs {error.name}: {EXTRA}") from error
    return msgpack


def pack(train: Mapping[str, Part]) -> list[bytes]:
    """The parts of a message."""
    msgpack = _msgpack()
    parts: list[bytes] = []
    for source, part in train.items():
        arrays = {key: value for key, value in part.data.items() if isinstance(value, np.ndarray)}
        plain = {key: value for key, value in part.data.items() if key not in arrays}
        header = {"source": source, "content": "msgpack", "metadata": part.metadata}
        parts += [msgpack.packb(header), msgpack.packb(plain)]
        for key, array in arrays.items():
            header = {
                "source": source, "content": "array", "path": key, "dtype": str(array.dtype), "shape": array.shape
            }  # fmt: skip
            parts += [msgpack.packb(header), np.ascontiguousarray(array).tobytes()]
    return parts


def unpack(parts: Sequence[bytes]) -> Train:
    """A message's train.

    Raises
    ------
    MessageError
        If the parts are no message, or sizes contradict each other. Nothing in a message is ever executed.
    """
    msgpack = _msgpack()
    if not speaks(parts):
        raise MessageError(f"{len(parts)} part{'s' * (len(parts) != 1)}: version 2 has pairs")
    train: Train = {}
    try:
        for header_bytes, payload in zip(parts[::2], parts[1::2], strict=True):
            header = msgpack.unpackb(header_bytes, strict_map_key=False)
            part = train.setdefault(header["source"], Part())
            if header["content"] == "array":
                dtype = np.dtype(header["dtype"])
                if dtype.kind not in "uifb":
                    raise MessageError(f"an array of {dtype}")
                part.data[header["path"]] = np.frombuffer(payload, dtype).reshape(header["shape"])
            else:
                values = msgpack.unpackb(payload, strict_map_key=False, max_bin_len=LARGEST_TEXT)
                part.metadata.update(header.get("metadata", {}))
                part.data.update(values)
    except MessageError:
        raise
    except Exception as error:  # msgpack's own, and whatever wrong types bring about
        raise MessageError(str(error) or type(error).__name__) from error
    return train
