"""Frames in a plain array: a dataset of any HDF5 file, ``.npy`` or ``.npz``."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from .batched import open_hdf5
from .dense import DenseSource, Hdf5Frames
from .glance import Glance
from .mask import NUMPY_MAGIC
from .source import UNKNOWN_BEAM, Beam, InputError

ZIP_MAGIC = b"PK\x03\x04"
LARGEST_BYTES = 2**30
"""An ``.npz`` member is inflated as a whole: no more than this."""
NAMES_SAID = 4


def split_dataset(path: Path) -> tuple[Path, str | None]:
    """``file.h5:/path/to/dataset`` into file and dataset; None where no dataset is named."""
    if path.exists():
        return path, None
    name, colon, dataset = str(path).rpartition(":")
    if colon and dataset and Path(name).is_file():
        return Path(name), dataset
    return path, None


def open_hdf5_dataset(given: Path, beam: Beam = UNKNOWN_BEAM) -> Hdf5Frames:
    """Frames in the dataset that `given` names (``file.h5:/dataset``), or in the only one that can hold frames.

    Raises
    ------
    InputError
        If none can, or several.
    """
    path, dataset = split_dataset(given)
    if dataset is None:
        names = frame_datasets(path)
        if not names:
            raise InputError(f"{path} has no dataset of frames, (N, rows, columns) of counts: give another file")
        if len(names) > 1:
            said = ", ".join(names[:NAMES_SAID]) + (", …" if len(names) > NAMES_SAID else "")
            raise InputError(
                f"{path} has {len(names)} datasets that can hold frames ({said}): name one, as {path.name}:{names[0]}"
            )
        dataset = names[0]
    source = Hdf5Frames("frames in HDF5", path, "/" + dataset.strip("/"), beam, given)
    source.missing = ("geometry", "wavelength") if beam.energy_eV is None else ("geometry",)
    source.look(None)
    return source


def open_dataset(given: Path, beam: Beam = UNKNOWN_BEAM) -> DenseSource:
    """Frames in the array that `given` names within a file: ``file.h5:/dataset`` or ``file.npz:array``.

    Raises
    ------
    InputError
        If there is no such array, or it holds no frames.
    """
    return open_hdf5_dataset(given, beam) if h5py.is_hdf5(split_dataset(given)[0]) else NumpyFrames(given, beam)


def frame_datasets(path: Path) -> list[str]:
    """Names of the datasets that can hold frames: numbers, (N, rows, columns) or modular.

    Raises
    ------
    InputError
        If the file cannot be read.
    """
    found: list[str] = []

    def visit(name: str | bytes, node: Any) -> None:  # bytes: a name that is no text
        if isinstance(name, str) and isinstance(node, h5py.Dataset) and _can_hold_frames(node.shape, node.dtype):
            found.append("/" + name)

    with open_hdf5(path) as file:
        file.visititems(visit)
    return found


def _can_hold_frames(shape: tuple[int, ...] | None, dtype: np.dtype[Any]) -> bool:
    return shape is not None and len(shape) in (3, 4) and dtype.kind in "uif" and min(shape[-2:]) > 1 and shape[0] > 0


class NumpyFrames(DenseSource):
    """Frames in a ``.npy`` file, read by memory map, or in an ``.npz`` archive's only array of frames.

    Raises
    ------
    InputError
        If it cannot be read, or holds no frames.
    """

    def __init__(self, given: Path, beam: Beam = UNKNOWN_BEAM) -> None:
        path, member = split_dataset(given)
        self._file, self._member = path, member
        with path.open("rb") as file:
            archive = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
        self._inflated: NDArray[Any] | None = _inflate(path, member) if archive else None
        with self._array() as array:
            super().__init__("frames in NumPy's format", given, array.shape, array.dtype, beam, str(given))
        self.missing = ("geometry", "wavelength") if beam.energy_eV is None else ("geometry",)
        self.look(None)

    @contextmanager
    def _array(self) -> Iterator[Any]:
        yield self._inflated if self._inflated is not None else load_npy(self._file)


def load_npy(path: Path) -> NDArray[Any]:
    """A ``.npy`` array as a memory map: nothing is read before it is used.

    Raises
    ------
    InputError
        If it is damaged or holds objects.
    """
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except Exception as error:  # a damaged header is parsed as Python: anything may come of it
        problem = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} cannot be read as a NumPy array ({problem}): write it again") from error


def _inflate(path: Path, member: str | None) -> NDArray[Any]:
    """One array of an archive, whole."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            if member is None:
                names = [name for name, info in members.items() if _holds_frames(archive, info)]
                member = names[0] if len(names) == 1 else ""
            info = members.get(member.strip("/"))
            if info is None:
                raise InputError(
                    f"{path} holds {', '.join(members) or 'nothing'}: name the frames, as in {path.name}:frames"
                )
            if info.file_size > LARGEST_BYTES:
                raise InputError(f"{path} is too large to inflate: save its array as .npy, which is read in pieces")
            with archive.open(info) as file:
                return np.asarray(np.lib.format.read_array(file, allow_pickle=False))
    except InputError:
        raise
    except Exception as error:  # as in `load_npy`
        problem = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} cannot be read as an .npz archive ({problem}): write it again") from error


def _holds_frames(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bool:
    with archive.open(info) as file:
        try:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
        except ValueError:
            return False
    return _can_hold_frames(shape, dtype)


def is_numpy_frames(look: Glance) -> bool:
    """Whether NumPy saved it, and it can hold frames."""
    if look.head.startswith(ZIP_MAGIC):
        return b".npy" in look.head or zipfile.is_zipfile(look.path)
    if not look.head.startswith(NUMPY_MAGIC):
        return False
    try:
        array = load_npy(look.path)
    except InputError:
        return False
    return _can_hold_frames(array.shape, array.dtype)


def refuse_array(path: Path) -> None:
    """Say why a ``.npy`` file is none of frames; nothing of other files.

    Raises
    ------
    InputError
        If it is a NumPy array.
    """
    if not path.is_file():
        return
    with path.open("rb") as file:
        if file.read(len(NUMPY_MAGIC)) != NUMPY_MAGIC:
            return
    array = load_npy(path)
    shape = " × ".join(map(str, array.shape)) or "a single number"
    raise InputError(f"{path} holds {array.dtype}, {shape}: give counts of photons, as frames × rows × columns")


def is_plain_hdf5(look: Glance) -> bool:
    """Whether it is HDF5 with a dataset that can hold frames."""
    return look.hdf5 is not None and bool(frame_datasets(look.path))
