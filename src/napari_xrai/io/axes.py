"""Which axis of a streamed array is which: p pulse (frame), m module, s slow scan (row), f fast scan (column)."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

USUAL = ("psf", "pmsf", "mfsp", "fsp", "spf", "msfp", "mpsf", "sfp", "sf", "msf")
"""Files have pulses first; calibrated data on line at the European XFEL has them last, and fast before slow."""
LETTERS = "pmsf"


def guess_axes(array: tuple[int, ...], frame: tuple[int, ...]) -> str | None:
    """Tell the axes of an array from a frame's shape, (s, f) or (m, s, f); None where they do not go together.

    Where several orders fit, the one used most is taken.
    """
    inner = LETTERS[-len(frame) :]
    size = dict(zip(inner, frame, strict=True))
    length = len(array) - len(frame)
    if length not in (0, 1):
        return None
    letters = "p" * length + inner
    orders = ["".join(order) for order in permutations(letters)]

    def fits(order: str) -> bool:
        return all(letter == "p" or size[letter] == n for letter, n in zip(order, array, strict=True))

    fitting = [order for order in orders if fits(order)]
    return min(fitting, key=lambda order: USUAL.index(order) if order in USUAL else len(USUAL), default=None)


def check_axes(axes: str) -> bool:
    """Whether these letters name each axis once, rows and columns among them."""
    return len(set(axes)) == len(axes) and set(axes) <= set(LETTERS) and {"s", "f"} <= set(axes)


def in_frame_order(array: NDArray[Any], axes: str) -> NDArray[Any]:
    """(N, [m,] s, f) frames out of an array with these axes."""
    order = [axes.index(letter) for letter in LETTERS if letter in axes]
    ordered = array.transpose(order)
    return ordered if "p" in axes else ordered[np.newaxis]


def frame_shape(array: tuple[int, ...], axes: str) -> tuple[int, ...]:
    """A frame's shape, (s, f) or (m, s, f)."""
    return tuple(array[axes.index(letter)] for letter in "msf" if letter in axes)
