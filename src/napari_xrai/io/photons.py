"""Whether values are photon counts, and what turns them into such where they were scaled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.frames import Frames
from .batched import dense_frames
from .source import InputError

ROUNDING = 3e-6
"""Relative error that single precision and a few multiplications leave on a count."""
LEAST_LIT = 30
"""Lit pixels without which a common scale is not believed."""
PEDESTAL = 10


@dataclass(frozen=True, eq=False)
class Scale:
    """Photons are values times `factor`.

    Parameters
    ----------
    factor : (P,) float64 or None
        None where the values are counts as they are.
    note : str
        What was undone, in words; empty where nothing was.
    """

    factor: NDArray[np.float64] | None = None
    note: str = ""

    def frames(self, block: NDArray[Any], first: int, what: str, ignore: NDArray[np.bool_]) -> Frames:
        """Frames out of (n, P) values.

        Raises
        ------
        InputError
            If a value is no photon count after scaling: the first such frame is named.
        """
        if self.factor is None:
            return dense_frames(block, first, what, ignore)
        photons = np.where(ignore, 0.0, block * self.factor)
        whole = np.rint(photons)
        wrong = ~(np.abs(photons - whole) <= ROUNDING * np.maximum(whole, 1) + 1e-4)
        if wrong.any():
            frame = first + int(np.argmax(wrong.any(axis=1)))
            raise InputError(
                f"{what}: frame {frame} is not photon counts on the scale of the first frames: convert it to photons"
            )
        return dense_frames(whole, first, what)


def find_scale(
    sample: NDArray[Any], what: str, corrections: dict[str, NDArray[np.float64]], ignore: NDArray[np.bool_]
) -> Scale:
    """Find what was done to photon counts: nothing, one factor, or a correction divided out as well.

    Counts are recognised by being whole multiples of the smallest of them.

    Parameters
    ----------
    sample : (n, P)
        The first frames.
    what : str
        File and dataset, for the message.
    corrections : dict of str to (P,)
        Name and weight of what may have been divided out, such as solid angle × polarisation; any common factor.
    ignore : (P,) bool
        Bad pixels.

    Raises
    ------
    InputError
        If the values are no photon counts, however scaled.
    """
    values = np.where(ignore, 0, sample)
    _refuse_raw(values, what, ignore)
    if values.dtype.kind in "uib":
        return _of_integers(values)
    if not np.isfinite(values).all() or (values < 0).any():
        return Scale()  # reading says in which frame
    lit = values > 0
    if not lit.any() or not (values[lit] % 1).any():
        return _of_integers(values)
    ones = np.ones(values.shape[1])
    for name, weight in {"": ones, **corrections}.items():
        photons = (values * weight)[lit]
        unit = float(photons.min())
        if len(photons) >= LEAST_LIT and unit > 0 and _are_whole(photons / unit):
            said = f"divided by {name} and scaled" if name else f"scaled: one photon is {unit:.6g}"
            return Scale(weight / unit, f"the frames hold photons {said}; undone")
    share = float(np.count_nonzero(values) / max(1, (~ignore).sum() * len(values)))
    kind = "expected intensities without photon noise" if share > 0.5 else "detector units or corrected values"
    raise InputError(
        f"{what} holds fractions that are no multiples of one photon ({kind}): give photon counts (in a simulation, "
        "with Poisson noise)"
    )


def _are_whole(ratio: NDArray[np.float64]) -> bool:
    return bool((np.abs(ratio - np.rint(ratio)) <= ROUNDING * np.maximum(ratio, 1) + 1e-4).all())


def _of_integers(values: NDArray[Any]) -> Scale:
    """Whole numbers are counts, unless they are as dim photons are and all multiples of one larger than one.

    Of dim photons single ones are the most frequent and some come in twos. Bright counts that happen to have a common
    factor, or one value everywhere, are left as they are.
    """
    lit = values[values > 0]
    if len(lit) < LEAST_LIT:
        return Scale()
    step = int(np.gcd.reduce(lit.astype(np.int64)))
    single, double = (int(np.count_nonzero(lit == n * step)) for n in (1, 2))
    if step == 1 or double == 0 or single < len(lit) / 2:
        return Scale()
    return Scale(np.full(values.shape[1], 1 / step), f"all values are multiples of {step}: taken as one photon each")


def _refuse_raw(values: NDArray[Any], what: str, ignore: NDArray[np.bool_]) -> None:
    """Raw detector readings have a pedestal: no pixel is ever dark."""
    seen = values[:, ~ignore]
    if seen.size and seen.min() >= PEDESTAL:
        raise InputError(
            f"{what}: no pixel is below {seen.min():g}, so these are detector units with a pedestal: give photon counts"
        )
