"""DECTRIS Stream V2: CBOR messages that start a series, bring its images one by one, and end it.

https://github.com/dectris/documentation (stream_v2, cbor); arrays by RFC 8746, compressed byte strings by tag 56500.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.detector import square_panel
from ..core.frames import BAD, GOOD, HC_EV_A
from .source import InputError
from .stream_geometry import GEOMETRY_SOURCE
from .train import NO_DATA, MessageError, Part, Train

EXTRA = 'pip install "napari-xrai[dectris]"'
SOURCE = "dectris"
SERIES_STRIDE = 2**32
ROW_MAJOR, COMPRESSED = 40, 56500
TYPED = {
    64: "u1", 65: ">u2", 66: ">u4", 67: ">u8", 68: "u1", 69: "<u2", 70: "<u4", 71: "<u8", 72: "i1", 73: ">i2",
    74: ">i4", 75: ">i8", 77: "<i2", 78: "<i4", 79: "<i8", 80: ">f2", 81: ">f4", 82: ">f8", 84: "<f2", 85: "<f4",
    86: "<f8",
}  # fmt: skip
"""CBOR tags of typed arrays."""
FIRST_KEY = b"\x64type"
"""Every message is a map whose first key is this."""


def speaks(parts: Sequence[bytes]) -> bool:
    """Whether this message is a CBOR map that begins with its type."""
    return len(parts) == 1 and b"\xa0" <= parts[0][:1] < b"\xc0" and FIRST_KEY in parts[0][:16]


def unpack(parts: Sequence[bytes]) -> Train:
    """An image as a train of one frame, by channel; the start of a series as its geometry; its end as nothing.

    Raises
    ------
    MessageError
        If it is none of these.
    InputError
        If what decodes them is not installed.
    """
    try:
        import cbor2
    except ImportError as error:
        raise InputError(f"DECTRIS streams need {error.name}: {EXTRA}") from error
    try:
        message = cbor2.loads(parts[0])
        kind = message["type"]
        if kind == "image":
            return {SOURCE: _image(message)}
        if kind == "start":
            said = _geometry(message)
            return {} if said is None else {GEOMETRY_SOURCE: Part(said)}
        if kind == "end":
            return {}
    except InputError:
        raise
    except Exception as error:  # CBOR's own, and whatever wrong types bring about
        raise MessageError(str(error) or type(error).__name__) from error
    raise MessageError(f"a message of type {kind!r}")


def _image(message: dict[str, Any]) -> Part:
    series, image = int(message["series_id"]), int(message["image_id"])
    began: datetime = message["series_date"]
    ticks, per_second = message["stop_time"]
    images = {f"data/{name}": array_of(node) for name, node in message["data"].items()}
    data: dict[str, Any] = {name: np.where(_is_empty(a), 0, a).astype(a.dtype) for name, a in images.items()}
    data[NO_DATA] = np.any([_is_empty(a) for a in images.values()], axis=0)
    data |= {"seriesId": np.array([series]), "imageId": np.array([image])}
    time = began.timestamp() + ticks / per_second
    return Part(data, {"timestamp.tid": series * SERIES_STRIDE + image, "timestamp": time})


def _is_empty(image: NDArray[Any]) -> NDArray[np.bool_]:
    """The largest number of its type says that a pixel has no data."""
    return np.asarray(image == np.iinfo(image.dtype).max if image.dtype.kind == "u" else np.zeros(image.shape, bool))


def _geometry(message: dict[str, Any]) -> dict[str, Any] | None:
    """What `stream_geometry.detector_of` makes the detector from; None where the series does not say enough."""
    pixel, other = float(message.get("pixel_size_x") or 0), float(message.get("pixel_size_y") or 0)
    distance = float((message.get("detector_translation") or (0, 0, 0))[2])
    wavelength = float(message.get("incident_wavelength") or 0)
    shape = int(message["image_size_y"]), int(message["image_size_x"])
    if min(pixel, other, abs(distance), wavelength) <= 0:
        return None
    panel = square_panel(shape, 1.0, abs(distance))
    column, row = float(message["beam_center_x"]), float(message["beam_center_y"])
    corner = np.array([[column * pixel, row * other, abs(distance)]])
    masks = [array_of(mask) for mask in (message.get("pixel_mask") or {}).values()]
    mask = np.any([np.asarray(m) != 0 for m in masks], axis=0) if masks else np.zeros(shape, bool)
    return {
        "corner_m": corner, "step_m": panel.step_m * np.array([other, pixel])[:, None], "shape": list(shape),
        "energy_eV": HC_EV_A / wavelength, "polarization": "none",
        "mask": np.where(mask, BAD, GOOD).astype(np.uint8).reshape(-1),
    }  # fmt: skip


def array_of(node: Any) -> NDArray[Any]:
    """An array out of its CBOR tags: rows and columns around a typed one, compressed or not."""
    if node.tag == ROW_MAJOR:
        shape, typed = node.value
        return array_of(typed).reshape([int(n) for n in shape])
    content = node.value
    if not isinstance(content, bytes):
        content = _decompressed(content)
    return np.frombuffer(content, TYPED[node.tag])


def _decompressed(node: Any) -> bytes:
    try:
        from dectris.compression import decompress
    except ImportError as error:
        raise InputError(f"compressed DECTRIS streams need dectris-compression: {EXTRA}") from error
    if node.tag != COMPRESSED:
        raise MessageError(f"CBOR tag {node.tag} in place of bytes")
    algorithm, element_size, packed = node.value
    return bytes(decompress(packed, algorithm, elem_size=element_size))
