"""What every message of a stream is turned into, whatever its protocol: values and arrays by source and key."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False)
class Part:
    """One source's share of a train: values and arrays by key, and ``timestamp…`` metadata."""

    data: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)


Train = dict[str, Part]
"""By source name."""
NO_DATA = "no data"
"""Key of a boolean array in the shape of a frame: pixels that this message has nothing of."""


class MessageError(ValueError):
    """A message that is not what its protocol says."""
