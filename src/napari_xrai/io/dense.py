"""Frames that lie in an array of an open file as they are: HDF5 datasets, and what NumPy saves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ..core.frames import BAD, Detector, Frames
from .batched import MOST_DENSE_PIXELS, BatchedSource, Rows, check_header, open_hdf5
from .compression import require_readable
from .photons import Scale, find_scale
from .source import Beam, InputError
from .views import check_view

PIXELS_SAMPLED = 4_000_000


class DenseSource(BatchedSource):
    """Frames in an array (N, …); values that are scaled photons are turned back.

    Parameters
    ----------
    format : str
    path : Path
    shape : tuple of int
        Of the array.
    beam : Beam
    what : str
        File and dataset, for messages.

    Raises
    ------
    InputError
        If the array is no frames, or their number absurd.
    """

    def __init__(self, format: str, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], beam: Beam, what: str):
        if len(shape) < 2 or dtype.kind not in "uif":
            raise InputError(f"{what} holds {dtype} of shape {shape}: give frames, (N, rows, columns) of counts")
        check_header(path, shape[0], int(np.prod(shape[1:])), MOST_DENSE_PIXELS)
        super().__init__(format, (path,), shape[0], tuple(int(n) for n in shape[1:]), beam=beam)
        self.what, self._scale = what, Scale()

    def look(self, detector: Detector | None, corrections: dict[str, NDArray[np.float64]] | None = None) -> None:
        """Take a geometry, and learn from the first frames what their values are.

        Raises
        ------
        InputError
            If they are no photon counts.
        """
        self.detector = detector
        n = max(1, min(self.n_frames or 0, PIXELS_SAMPLED // self.n_pixels))
        with self._array() as array:
            sample = np.asarray(array[:n]).reshape(n, -1)
        self._scale = find_scale(sample, self.what, corrections or {}, self._ignored())
        self.notes += (self._scale.note,) if self._scale.note else ()

    def _array(self) -> AbstractContextManager[Any]:
        """Open the array for as long as the block lasts."""
        raise NotImplementedError

    def _ignored(self) -> NDArray[np.bool_]:
        mask = self.mask if self.detector is None else self.detector.mask
        return np.zeros(self.n_pixels, bool) if mask is None else np.asarray(mask == BAD)

    @contextmanager
    def _rows(self) -> Iterator[Rows]:
        ignored = self._ignored()
        with self._array() as array:

            def rows(lo: int, hi: int) -> Frames:
                block = np.asarray(array[lo:hi]).reshape(hi - lo, -1)
                return self._scale.frames(block, lo, self.what, ignored)

            yield rows


class Hdf5Frames(DenseSource):
    """Frames in one dataset of an HDF5 file, virtual or compressed ones included.

    Parameters
    ----------
    format : str
    path : Path
    dataset : str
    beam : Beam
    given : Path, optional
        The name under which the user gave it, where it says the dataset as well.

    Raises
    ------
    InputError
        If there is no such dataset, or it is no frames.
    """

    def __init__(self, format: str, path: Path, dataset: str, beam: Beam, given: Path | None = None) -> None:
        self._file, self._dataset = path, dataset
        what = f"{path}: {dataset}"
        with open_hdf5(path) as file:
            data = file.get(dataset)
            if not isinstance(data, h5py.Dataset) or data.shape is None:
                raise InputError(f"{path} has no dataset {dataset}: choose one of those that it has")
            super().__init__(format, given or path, data.shape, data.dtype, beam, what)
            require_readable(path, data)
            absent = check_view(path, data)
            if absent is not None:
                n = int(absent.any(axis=1).sum())
                raise InputError(f"{what}: {n:,} frames of this view have parts that come from no file: make it again")

    @contextmanager
    def _array(self) -> Iterator[Any]:
        with open_hdf5(self._file) as file:
            yield file[self._dataset]
