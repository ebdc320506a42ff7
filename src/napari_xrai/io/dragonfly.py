"""Dragonfly's files: photons (.emc, binary or HDF5) and detectors (HDF5, ASCII)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ..core.frames import BAD, Detector, Frames
from .batched import BatchedSource, Rows, check_header, dense_frames, find_ids, open_hdf5, sparse_frames
from .chunks import check_chunks
from .glance import Glance
from .source import InputError
from .vlen import ListReader, can_read_lists

HEADER_BYTES = 1024
SPARSE, DENSE_INT, DENSE_DOUBLE = 0, 1, 2

MOST_DETECTOR_PIXELS = 2**24
BLOCK_LIT = 2**25
"""Lit pixels that a read may meet: bounds memory."""


def is_binary_emc(head: bytes) -> bool:
    """Whether the first 1024 bytes are a binary emc header: three small-endian integers, then zeros."""
    if len(head) < 12 or any(head[12:HEADER_BYTES]):
        return False
    return int(np.frombuffer(head, "<i4", 3)[2]) in (SPARSE, DENSE_INT, DENSE_DOUBLE) and any(head[:8])


def is_binary_photons(look: Glance) -> bool:
    """Whether this is a binary emc file."""
    return look.hdf5 is None and is_binary_emc(look.head[:HEADER_BYTES])


def is_hdf5_photons(look: Glance) -> bool:
    """Whether this is an HDF5 emc file, complete or not."""
    return look.hdf5 is not None and any(name in look.hdf5 for name in ("place_ones", "place_multi"))


def is_detector(look: Glance) -> bool:
    """Whether this is a detector file, HDF5 or ASCII."""
    if look.hdf5 is not None:
        return "qx" in look.hdf5
    return ascii_detector_header(look.head) is not None


class BinaryPhotons(BatchedSource):
    """Binary emc: sparse (one-photon pixels and multi-photon pixels apart) or dense, little-endian.

    Raises
    ------
    InputError
        If the file's size and its header disagree.
    """

    def __init__(self, path: Path) -> None:
        size = path.stat().st_size
        n_frames, n_pixels, self._kind = (int(v) for v in np.fromfile(path, "<i4", 3))
        check_header(path, n_frames, n_pixels)
        least = {SPARSE: 8 * n_frames, DENSE_INT: 4 * n_frames * n_pixels, DENSE_DOUBLE: 8 * n_frames * n_pixels}
        _check_size(path, size, HEADER_BYTES + least[self._kind], exactly=self._kind != SPARSE)
        super().__init__("Dragonfly photons (binary)", (path,), n_frames, (n_pixels,))
        if self._kind == SPARSE:
            counts = np.fromfile(path, "<i4", 2 * n_frames, offset=HEADER_BYTES).reshape(2, n_frames)
            if counts.min() < 0:
                raise InputError(f"{path}: its table of lit pixels has negative lengths: the file is damaged")
            # where each frame's entries begin: what lets any frame be read without those before it
            self._start = np.zeros((2, n_frames + 1), np.int64)
            np.cumsum(counts, axis=1, out=self._start[:, 1:])
            ones, multi = (int(v) for v in self._start[:, -1])
            _check_size(path, size, HEADER_BYTES + least[SPARSE] + 4 * ones + 8 * multi, exactly=True)

    @contextmanager
    def _rows(self) -> Iterator[Rows]:
        yield self._sparse_rows if self._kind == SPARSE else self._dense_rows

    def _block(self) -> int:
        if self._kind != SPARSE:
            return super()._block()
        lit = int(self._start[:, -1].sum()) // (self.n_frames or 1)
        return max(1, BLOCK_LIT // 8 // (lit + 1))

    def _dense_rows(self, lo: int, hi: int) -> Frames:
        dtype = "<i4" if self._kind == DENSE_INT else "<f8"
        n, width = self.n_pixels, np.dtype(dtype).itemsize
        block = np.fromfile(self.paths[0], dtype, (hi - lo) * n, offset=HEADER_BYTES + lo * n * width)
        return dense_frames(block.reshape(-1, n), lo, str(self.paths[0]))

    def _sparse_rows(self, lo: int, hi: int) -> Frames:
        path, start = self.paths[0], self._start
        first = HEADER_BYTES + 8 * (self.n_frames or 0)
        total_ones, total_multi = (int(v) for v in start[:, -1])

        def entries(kind: int, skip: int) -> NDArray[np.int32]:
            a, b = (int(v) for v in start[kind, [lo, hi]])
            return np.fromfile(path, "<i4", b - a, offset=first + 4 * (skip + a))

        ones = entries(0, 0)
        multi, count = entries(1, total_ones), entries(1, total_ones + total_multi)
        lit = np.diff(start[:, lo : hi + 1], axis=1)
        return _ones_and_multi(ones, multi, count, lit, (lo, hi), self.n_pixels, str(path))


class Hdf5Photons(BatchedSource):
    """HDF5 emc: one variable-length list of lit pixels per frame, one- and multi-photon apart.

    Raises
    ------
    InputError
        If a dataset is missing or their lengths differ.
    """

    def __init__(self, path: Path) -> None:
        names = ("place_ones", "place_multi", "count_multi")
        with open_hdf5(path) as file:
            for name in ("num_pix", *names):
                if not isinstance(file.get(name), h5py.Dataset):
                    raise InputError(f"{path} has no dataset {name}: it is not a complete photons file")
            for name in names:
                kind = h5py.check_vlen_dtype(file[name].dtype)
                if file[name].ndim != 1 or kind is None or np.dtype(kind).kind not in "iu":
                    raise InputError(f"{path}: {name} is no list of pixels per frame: write it again")
                check_chunks(file[name], f"{path}: {name}")
            n_pixels = int(np.ravel(file["num_pix"][()])[0])
            lengths = {file[name].shape[0] for name in names}
            if len(lengths) != 1:
                raise InputError(
                    f"{path}: place_ones, place_multi and count_multi have different lengths: write it again"
                )
            ids = find_ids(file, min(lengths))
        check_header(path, lengths.copy().pop(), n_pixels)
        super().__init__("Dragonfly photons (HDF5)", (path,), lengths.pop(), (n_pixels,), ids=ids)

    def _block(self) -> int:
        return max(1, min(1000, BLOCK_LIT // self.n_pixels))  # should every pixel be lit

    @contextmanager
    def _rows(self) -> Iterator[Rows]:
        path = self.paths[0]
        with open_hdf5(path) as file, path.open("rb") as raw:
            lists = ListReader(raw, str(path))

            def read(dataset: h5py.Dataset, lo: int, hi: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
                if can_read_lists(dataset):
                    return lists.read(dataset, lo, hi)
                found = dataset[lo:hi]
                return np.concatenate(found), np.array([len(one) for one in found])

            def rows(lo: int, hi: int) -> Frames:
                ones, multi, count = (read(file[n], lo, hi) for n in ("place_ones", "place_multi", "count_multi"))
                if not np.array_equal(multi[1], count[1]):
                    raise InputError(f"{path}: place_multi and count_multi of a frame differ in length: write it again")
                lit = np.array([ones[1], multi[1]])
                return _ones_and_multi(ones[0], multi[0], count[0], lit, (lo, hi), self.n_pixels, str(path))

            yield rows


def _ones_and_multi(
    ones: NDArray[Any], multi: NDArray[Any], count: NDArray[Any], lit: NDArray[np.int64],
    span: tuple[int, int], n_pixels: int, what: str,
) -> Frames:  # fmt: skip
    frame = np.concatenate([np.repeat(np.arange(lit.shape[1]), n) for n in lit])
    pixel = np.concatenate([ones, multi]).astype(np.int64)
    photons = np.concatenate([np.ones(len(ones), np.int64), count.astype(np.int64)])
    return sparse_frames(frame, pixel, photons, span, n_pixels, what)


def _check_size(path: Path, size: int, expected: int, *, exactly: bool) -> None:
    if size < expected:
        raise InputError(
            f"{path} is truncated: its header promises {expected:,} bytes, it has {size:,}; copy it again in full"
        )
    if exactly and size > expected:
        raise InputError(
            f"{path} has {size:,} bytes, but the frames that its header counts fill {expected:,}: it is damaged, "
            "write it again"
        )


def read_detector(path: Path) -> tuple[Detector, tuple[str, ...]]:
    """Read a Dragonfly detector, HDF5 or ASCII, told apart by content.

    Parameters
    ----------
    path : Path

    Returns
    -------
    detector : Detector
        q and Ewald radius in the file's own unit (``"detector_voxel"``), response scaled to mean 1 over not-bad pixels.
    notes : tuple of str
        What was corrected: the sign of qz in old files, a missing Ewald radius.

    Raises
    ------
    InputError
        If something is missing or makes no sense.
    """
    columns, radius, background = _read_hdf5_columns(path) if h5py.is_hdf5(path) else _read_ascii_columns(path)
    q, response = columns[:, :3], columns[:, 3]
    if not np.isfinite(columns[:, :4]).all() or not (response >= 0).all():
        raise InputError(f"{path}: qx, qy, qz and corr must be finite and corr not negative: make the detector again")
    if (q[:, :2] == q[0, :2]).all():
        raise InputError(f"{path}: qx and qy are the same for all pixels: make the detector again")
    notes = []
    if q[:, 2].max() > 0 and abs(q[:, 2].max()) > abs(q[:, 2].min()):
        q = q * [1.0, 1.0, -1.0]
        notes.append("qz in the detector file points upstream (old convention): flipped")
    fitted = fit_ewald_radius(q)
    if radius is None or radius <= 0:
        if fitted is None:
            raise InputError(f"{path} has no ewald_rad and a flat qz: make the detector again with a current program")
        radius = fitted
        notes.append(f"the detector file has no Ewald radius: {radius:.5g} voxels follow from its q")
    elif fitted is not None and abs(fitted / radius - 1) > 0.02:
        raise InputError(f"{path}: ewald_rad is {radius:g} but q lies on a sphere of {fitted:.5g}: make it again")
    mask = np.clip(columns[:, 4], 0, BAD).astype(np.uint8)
    scale = response[mask != BAD].mean() if (mask != BAD).any() else 1.0
    if scale <= 0:
        raise InputError(f"{path}: corr is zero everywhere: make the detector again")
    detector = Detector(q, response / scale, mask, (len(q),), radius, "detector_voxel", background)
    return detector, tuple(notes)


def fit_ewald_radius(q: NDArray[np.float64]) -> float | None:
    """Radius of the sphere through 0 with centre (0, 0, −E) that fits q: |q|² = −2 E qz."""
    square = (q**2).sum(axis=1)
    weight = float((square * -q[:, 2]).sum())
    return float((square**2).sum() / (2 * weight)) if weight > 0 else None


def _read_hdf5_columns(path: Path) -> tuple[NDArray[np.float64], float | None, NDArray[np.float64] | None]:
    with open_hdf5(path) as file:
        found = {name: _column(file, name) for name in ("qx", "qy", "qz", "corr", "mask", "ewald_rad", "background")}
    columns = []
    for name in ("qx", "qy", "qz", "corr", "mask"):
        column = found[name]
        if column is None:
            raise InputError(f"{path} has no dataset {name} of numbers: give a complete detector file")
        columns.append(column)
    radius = None if found["ewald_rad"] is None else float(found["ewald_rad"][0])
    background = found["background"]
    if len({len(c) for c in columns}) != 1 or (background is not None and len(background) != len(columns[0])):
        raise InputError(f"{path}: its datasets have different lengths: make the detector again")
    return np.stack(columns, axis=1), radius, background


def _column(file: h5py.File, name: str) -> NDArray[np.float64] | None:
    """A dataset of numbers, flattened; None where there is none, or nothing that a detector could have."""
    node = file.get(name)
    if not isinstance(node, h5py.Dataset) or node.dtype.kind not in "biuf" or not 0 < node.size <= MOST_DETECTOR_PIXELS:
        return None
    return np.asarray(node[()], np.float64).ravel()


def ascii_detector_header(head: bytes) -> list[float] | None:
    """Numbers in the first line if this text begins like an ASCII detector: 1 or 3 numbers, then 5 per pixel."""
    try:
        lines = head.decode("ascii").split("\n")
        header, pixel = [[float(v) for v in line.split()] for line in lines[:2]]
    except ValueError:  # not text, not numbers, or a single line
        return None
    return header if len(header) in (1, 3) and len(pixel) == 5 else None


def _read_ascii_columns(path: Path) -> tuple[NDArray[np.float64], float | None, None]:
    with path.open("rb") as file:
        header = ascii_detector_header(file.read(4096))
    if header is None:
        raise InputError(f"{path} is no detector file: expected num_pix, detd, ewald_rad and 5 columns per pixel")
    try:
        columns = np.loadtxt(path, skiprows=1, ndmin=2)
    except ValueError as error:
        raise InputError(f"{path} is damaged or cut short, not 5 numbers a pixel: copy it again in full") from error
    if columns.shape != (int(header[0]), 5):
        raise InputError(f"{path} promises {int(header[0]):,} pixels but has {len(columns):,}: copy it again in full")
    return columns, header[2] if len(header) == 3 else None, None
