"""What HDF5 takes on trust is refused before it is asked: it would make room for any size, or read past an end."""

import os
import struct

import h5py
import numpy as np
import pytest

from napari_xrai.io.batched import open_hdf5
from napari_xrai.io.hdf5_walk import find_fault
from napari_xrai.io.source import InputError

LAYOUTS = ["earliest", "latest"]


def fault_in(path):
    with path.open("rb") as file:
        return find_fault(file, os.path.getsize(path))


def write(path, libver):
    with h5py.File(path, "w", libver=libver) as file:
        for n in range(60):  # more members than one node of a tree holds
            node = file.create_dataset(f"group/{n}", data=np.arange(n + 1))
            node.attrs["units"] = f"metre {n}"
            for k in range(6):  # more attributes than fit beside the header
                node.attrs[f"note {k}"] = ["some", "words"]
        file["text"] = "words"
        file["texts"] = [b"many", b"more"]
        file["packed"] = np.zeros((10, 10))
        file["view"] = h5py.SoftLink("/group/3")


@pytest.mark.parametrize("libver", LAYOUTS)
def test_sound_files_are_sound(tmp_path, libver):
    path = tmp_path / "a.h5"
    write(path, libver)
    assert fault_in(path) == ""
    with h5py.File(path, "a") as file:  # what is taken out leaves its traces behind
        del file["group/7"], file["text"]
        file["group/7"] = np.zeros(3)
    assert fault_in(path) == ""
    (tmp_path / "cut.h5").write_bytes(path.read_bytes()[:3000])
    assert "damaged" not in fault_in(tmp_path / "cut.h5")


def test_a_header_that_goes_on_beyond_the_file_is_refused(tmp_path):
    path = tmp_path / "a.h5"
    write(path, "earliest")
    content = bytearray(path.read_bytes())
    with h5py.File(path) as file:
        at = h5py.h5o.get_info(file["group/9"].id).addr
    where = content.index(struct.pack("<HH", 0x10, 16), at) + 8
    assert fault_in(path) == ""
    content[where + 8 : where + 16] = (5_800_000_000).to_bytes(8, "little")
    path.write_bytes(content)
    refused = pytest.raises(InputError, match=r"a\.h5 is damaged \(an object header larger than the file\)")
    with refused, open_hdf5(path):
        pass


@pytest.mark.parametrize("libver", LAYOUTS)
@pytest.mark.parametrize("where", ["attribute", "dataset"])
def test_a_text_that_is_shorter_than_it_says_is_refused(tmp_path, libver, where):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", libver=libver) as file:
        file["number"] = 1.0
        if where == "attribute":
            file["number"].attrs["units"] = "angstrom"
        else:
            file["text"] = "angstrom"
    assert fault_in(path) == ""
    content = bytearray(path.read_bytes())
    heap = content.index(b"GCOL")
    at = content.index(struct.pack("<IQI", 8, heap, 1))
    content[at : at + 4] = (2**31).to_bytes(4, "little")
    path.write_bytes(content)
    assert fault_in(path) == "a text longer than the place where it lies"


def test_a_text_of_no_kind_is_refused(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["number"] = 1.0
        file["number"].attrs["units"] = "angstrom"
    content = bytearray(path.read_bytes())
    at = content.index(b"\x19\x01\x01\0")  # variable length: text, in UTF-8
    content[at + 1] = 0x44
    path.write_bytes(content)
    assert fault_in(path) == "a datatype that does not exist"
