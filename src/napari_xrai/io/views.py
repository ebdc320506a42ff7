"""Views of other files (HDF5 virtual datasets): what of them is there.

HDF5 fills the place of a missing file, or of a part that nobody mapped, with a fill value and says nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from .batched import open_hdf5
from .compression import require_readable
from .source import InputError


def check_view(path: Path, data: h5py.Dataset) -> NDArray[np.bool_] | None:
    """Refuse a view whose files are gone; find what it leaves unmapped.

    Parameters
    ----------
    path : Path
        The file of the view.
    data : (N, …) dataset

    Returns
    -------
    (N, M) bool, or None
        True where frame n has nothing in module m (of 3D frames: M is 1, and anything is missing). None where nothing
        is missing, or the dataset is no view.

    Raises
    ------
    InputError
        If a file that it views is gone, unreadable or too short: which, and how many frames are affected.
    """
    if not data.is_virtual:
        return None
    n_frames = data.shape[0]
    gone = np.zeros(n_frames, bool)
    modular = data.ndim == 4
    mapped = np.zeros((n_frames, data.shape[1] if modular else 1), np.int64)
    pixels = int(np.prod(data.shape[2 if modular else 1 :]))
    why: dict[str, str] = {}
    state: dict[tuple[str, str], tuple[str, tuple[int, ...]]] = {}
    for part in data.virtual_sources():
        first, last = (np.array(bound) for bound in part.vspace.get_select_bounds())
        frames = _along_first_axis(part.vspace, int(first[0]), int(last[0]))
        key = (part.file_name, part.dset_name)
        if key not in state:
            state[key] = _look_at(path, data, *key)
        problem = state[key][0] or _too_short(part, state[key][1])
        if problem:
            gone[frames] = True
            why.setdefault(part.file_name, problem)
            continue
        if modular:
            mapped[np.ix_(frames, np.arange(first[1], last[1] + 1))] += int(np.prod(last[2:] - first[2:] + 1))
        else:
            mapped[frames] += int(np.prod(last[1:] - first[1:] + 1))
    if why:
        name, problem = next(iter(why.items()))
        more = f" and {len(why) - 1} more" if len(why) > 1 else ""
        raise InputError(
            f"{path}: {data.name} is a view of {name}{more}, which {problem}; {gone.sum():,} of {n_frames:,} frames "
            "lack data: bring it back, or make the view again without it"
        )
    absent: NDArray[np.bool_] = mapped < pixels
    return absent if absent.any() else None


def _along_first_axis(space: Any, first: int, last: int) -> NDArray[np.int64]:
    """Frames that a selection takes; with a stride, not all between its bounds."""
    if space.is_regular_hyperslab():
        start, stride, count, block = (int(values[0]) for values in space.get_regular_hyperslab())
        steps = np.arange(count)[:, None] * stride + np.arange(block)
        return np.asarray(start + steps, np.int64).ravel()
    return np.arange(first, last + 1)


def _look_at(path: Path, data: h5py.Dataset, file_name: str, dataset: str) -> tuple[str, tuple[int, ...]]:
    """What is wrong with a source, in words, or nothing; and its shape."""
    if file_name == ".":
        node = data.file.get(dataset)
        return ("", node.shape) if isinstance(node, h5py.Dataset) else (f"has no dataset {dataset}", ())
    # as HDF5 looks: beside the view, then where the program runs
    found = next((p for p in (path.parent / file_name, Path(file_name)) if p.exists()), None)
    if found is None:
        return "is not there", ()
    try:
        with open_hdf5(found) as source:
            node = source.get(dataset)
            if not isinstance(node, h5py.Dataset):
                return f"has no dataset {dataset}", ()
            require_readable(found, node)
            return "", node.shape
    except InputError as error:
        if "compressed" in str(error):
            raise
        return "cannot be read", ()


def _too_short(part: Any, shape: tuple[int, ...]) -> str:
    """Whether the mapping reaches beyond the end of its source."""
    space = part.src_space
    if space.get_select_type() == h5py.h5s.SEL_HYPERSLABS and len(space.shape) == len(shape):
        short = any(end >= n for end, n in zip(space.get_select_bounds()[1], shape, strict=True))
    else:
        short = part.vspace.get_select_npoints() > int(np.prod(shape))
    return "is shorter than the view" if short else ""
