"""Masks of CXI files: two meanings of the bits, one mask for all frames or one for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from ..core.frames import BAD, GOOD, MERGE_ONLY
from .chunks import check_chunks
from .source import InputError

# CXI 1.5 and later, section "mask": any of these bits makes a pixel unusable
REJECT_BITS = 0x69F
# before 1.5 bit 0 meant *valid*, and these meant trouble
OLD_VALID_BIT, OLD_REJECT_BITS = 0x1, 0x19E
PIXEL_IS_BAD, PIXEL_IS_MERGE_ONLY = 0x80, 0x100
"""Bad; and outside the resolution limits, which rejects nothing: merged, but not used for orientation."""

DETECTOR = "entry_1/instrument_1/detector_1"
LEFT_OUT = 0.02
"""A frame that lacks a larger share of the good pixels is left out: what is dark in it would not be known from what
is missing."""
MOST_SAMPLED, PIXELS_SAMPLED = 100, 8_000_000


Meaning = Literal["bad bits", "valid bit", "any bit"]


def meaning_of(bits: NDArray[np.int64], version: int, *, euxfel: bool = False) -> Meaning:
    """What the bits of a CXI mask mean.

    Parameters
    ----------
    bits : integer array
    version : int
        100 × the CXI version. The bits changed their meaning at 150: before, bit 0 said *valid*.
    euxfel : bool
        The mask was copied from the European XFEL's own files, where any set bit is bad.
    """
    if euxfel:
        return "any bit"
    # programs that wrote 1.4 with zero for good pixels set no valid bit anywhere
    return "valid bit" if version < 150 and bool((bits & OLD_VALID_BIT).any()) else "bad bits"


def mask_rejects(bits: NDArray[np.int64], meaning: Meaning) -> NDArray[np.bool_]:
    """Which pixels a CXI mask makes unusable."""
    if meaning == "any bit":
        return np.asarray(bits != 0)
    if meaning == "valid bit":
        return np.asarray(((bits & OLD_VALID_BIT) == 0) | ((bits & OLD_REJECT_BITS) != 0))
    return np.asarray((bits & REJECT_BITS) != 0)


@dataclass(eq=False)
class CxiMask:
    """What is bad in every frame, and what in single ones.

    Parameters
    ----------
    common : (P,) uint8
        0, 1, 2.
    notes : tuple of str
    dataset : str or None
        A mask for every frame, to be read along with the frames.
    meaning : str
        How to read its bits, see `meaning_of`.
    absent : (N, M) bool or None
        Modules that a frame does not have.
    """

    common: NDArray[np.uint8]
    notes: tuple[str, ...] = ()
    dataset: str | None = None
    meaning: Meaning = "bad bits"
    absent: NDArray[np.bool_] | None = None

    @property
    def varies(self) -> bool:
        """Whether frames differ."""
        return self.dataset is not None or self.absent is not None

    def rejects(self, file: h5py.File, lo: int, hi: int) -> NDArray[np.bool_]:
        """(hi − lo, P) What is bad in these frames."""
        bad = np.broadcast_to(self.common == BAD, (hi - lo, len(self.common)))
        if self.dataset is not None:
            bits = np.asarray(file[self.dataset][lo:hi]).astype(np.int64).reshape(bad.shape)
            bad = bad | mask_rejects(bits, self.meaning)
        if self.absent is not None:
            bad = bad | _in_pixels(self.absent[lo:hi], bad.shape[1])
        return bad

    def blank(self, block: NDArray[np.generic], file: h5py.File, lo: int) -> NDArray[np.generic]:
        """Frames from `lo` on, (n, P), with zero in their bad pixels; a frame that lacks too much is all zero."""
        bad = self.rejects(file, lo, lo + len(block))
        good = self.common != BAD
        bad[(bad & good).sum(axis=1) > LEFT_OUT * good.sum()] = True
        return np.where(bad, block.dtype.type(0), block)


def read_mask(
    file: h5py.File, data: h5py.Dataset, n_frames: int, version: int, absent: NDArray[np.bool_] | None
) -> CxiMask:
    """Read the mask of `data`.

    Parameters
    ----------
    absent : (N, M) bool or None
        Modules that frames do not have, by `check_view`.

    Raises
    ------
    InputError
        If it has another shape than the frames.
    """
    n_pixels = int(np.prod(data.shape[1:]))
    node = next((n for n in _candidates(file) if isinstance(n, h5py.Dataset)), None)
    bad: NDArray[np.bool_] = np.zeros(n_pixels, bool)
    merge_only: NDArray[np.bool_] = np.zeros(n_pixels, bool)
    mask = CxiMask(np.zeros(n_pixels, np.uint8))
    if node is not None:
        check_chunks(node, f"{file.filename}: {node.name}")
        per_frame = node.ndim == data.ndim and node.shape[0] >= n_frames
        if int(np.prod(node.shape[1:] if per_frame else node.shape)) != n_pixels or node.dtype.kind not in "iu":
            raise InputError(
                f"{file.filename}: {node.name} has {int(np.prod(node.shape)):,} pixels but a frame has {n_pixels:,}: "
                "correct the mask"
            )
        bits = _sample(node, n_frames, n_pixels) if per_frame else np.asarray(node[()]).reshape(1, -1).astype(np.int64)
        mask.meaning = meaning_of(bits, _version_of_bits(file, version), euxfel=_is_euxfel(file))
        bad = _in_most(mask_rejects(bits, mask.meaning))
        if mask.meaning == "bad bits":
            merge_only = np.asarray((bits & PIXEL_IS_MERGE_ONLY).any(axis=0))
        if per_frame:
            mask.dataset, mask.notes = node.name, (_words(len(bits)),)
    if absent is not None:
        always: NDArray[np.bool_] = np.asarray(absent.mean(axis=0) > 0.5)
        bad = np.logical_or(bad, _in_pixels(always[None], n_pixels)[0])
        lacking = int((absent & ~always).any(axis=1).sum())
        mask.absent = absent if lacking else None
        mask.notes += _absent_words(int(always.sum()), lacking)
    mask.common = np.where(bad, BAD, np.where(merge_only, MERGE_ONLY, GOOD)).astype(np.uint8)
    return mask


def _candidates(file: h5py.File) -> list[h5py.HLObject | None]:
    """Where a mask may be: of each frame, or shared by all (as Cheetah writes it)."""
    return [file.get(f"{DETECTOR}/mask"), file.get(f"{DETECTOR}/mask_shared"), file.get("entry_1/data_1/mask")]


def _is_euxfel(file: h5py.File) -> bool:
    """Whether the mask holds the bad-pixel bits of the European XFEL rather than CXI's."""
    return "entry_1/trainId" in file or f"{DETECTOR}/gain" in file


def _version_of_bits(file: h5py.File, version: int) -> int:
    """Cheetah has the bits of 1.5, whatever version it says."""
    cheetah = any(name in file for name in ("LCLS", "APS", f"{DETECTOR}/mask_shared"))
    return 150 if cheetah and version < 150 else version


def _sample(node: h5py.Dataset, n_frames: int, n_pixels: int) -> NDArray[np.int64]:
    most = max(3, min(MOST_SAMPLED, PIXELS_SAMPLED // n_pixels))
    frames = np.unique(np.linspace(0, n_frames - 1, min(most, n_frames)).astype(int))
    return np.stack([np.asarray(node[int(n)]).astype(np.int64).ravel() for n in frames])


def _in_most(rejected: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels rejected in any frame, but for frames that lack far more than is usual: a module, or everything."""
    lacking = rejected.sum(axis=1)
    usual = lacking <= np.median(lacking) + LEFT_OUT * rejected.shape[1]
    bad: NDArray[np.bool_] = rejected[usual].any(axis=0)
    return bad


def _in_pixels(modules: NDArray[np.bool_], n_pixels: int) -> NDArray[np.bool_]:
    return np.repeat(modules, n_pixels // modules.shape[1], axis=1)


def _words(sampled: int) -> str:
    return (
        f"each frame has a mask of its own: what is bad in any of {sampled} looked at is bad in all, and a frame that "
        f"lacks {LEFT_OUT:.0%} more is left out"
    )


def _absent_words(always: int, lacking: int) -> tuple[str, ...]:
    words = []
    if always:
        words.append(f"{always} module{'s' * (always != 1)} missing from the view: masked")
    if lacking:
        words.append(f"{lacking:,} frames lack modules in this view: left out where that is more than {LEFT_OUT:.0%}")
    return tuple(words)
