"""Lists of varying length: as HDF5 reads them, and an end to every damaged file."""

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from napari_xrai.io.batched import open_hdf5
from napari_xrai.io.source import InputError
from napari_xrai.io.vlen import ListReader, can_read_lists


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 3000), min_size=1, max_size=9), st.sampled_from([None, 1, 4]), st.data())
def test_lists_are_what_hdf5_reads(tmp_path, lengths, chunk, data):
    rng = np.random.default_rng(0)
    options = {} if chunk is None else {"chunks": (chunk,), "maxshape": (None,)}
    with h5py.File(tmp_path / "a.h5", "w") as file:
        made = file.create_dataset("a", (len(lengths) + 2,), h5py.vlen_dtype(np.int32), **options)
        for n, length in enumerate(lengths):  # the last two are never written
            made[n] = rng.integers(-(2**31), 2**31, length)
    lo = data.draw(st.integers(0, len(lengths) + 1))
    hi = data.draw(st.integers(lo + 1, len(lengths) + 2))
    with h5py.File(tmp_path / "a.h5") as file, (tmp_path / "a.h5").open("rb") as raw:
        assert can_read_lists(file["a"])
        values, found = ListReader(raw, "a.h5").read(file["a"], lo, hi)
        expected = file["a"][lo:hi]
    assert found.tolist() == [len(one) for one in expected]
    assert np.array_equal(values, np.concatenate(expected))


def test_lists_of_which_none_was_ever_written_are_empty(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for n in range(20):
            file.create_dataset(f"{n}", (5,), h5py.vlen_dtype(np.int32), chunks=(1 + n % 3,))
    with h5py.File(tmp_path / "a.h5") as file, (tmp_path / "a.h5").open("rb") as raw:
        for n in range(20):
            values, found = ListReader(raw, "a.h5").read(file[f"{n}"], 1, 5)
            assert len(values) == 0 and found.tolist() == [0, 0, 0, 0]


def test_other_numbers_are_left_to_hdf5(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, kind in (("wide", np.int64), ("real", np.float32), ("swapped", ">i4")):
            assert not can_read_lists(file.create_dataset(name, (3,), h5py.vlen_dtype(np.dtype(kind))))
        packed = file.create_dataset("packed", (3,), h5py.vlen_dtype(np.int32), chunks=(1,), compression="gzip")
        assert not can_read_lists(packed)


def test_heaps_that_lead_nowhere_are_one_sentence(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        made = file.create_dataset("a", (2,), h5py.vlen_dtype(np.int32))
        made[0], made[1] = np.arange(100), np.arange(50)
    content = (tmp_path / "a.h5").read_bytes()
    heap = content.index(b"GCOL")
    damages = {"magic": (heap, b"XXXX"), "size": (heap + 8, b"\xff" * 8), "object": (heap + 24, b"\xff" * 8)}
    for at, damage in damages.values():
        (tmp_path / "b.h5").write_bytes(content[:at] + damage + content[at + len(damage) :])
        refused = pytest.raises(InputError, match=r"b\.h5: its lists of lit pixels lead nowhere")
        with h5py.File(tmp_path / "b.h5") as file, (tmp_path / "b.h5").open("rb") as raw, refused:
            ListReader(raw, "b.h5").read(file["a"], 0, 2)


def test_a_heap_that_leads_to_itself_is_refused_before_hdf5_goes_round(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["number"] = 1
        file["number"].attrs["units"] = "metre"
    with open_hdf5(path) as file:
        assert file["number"].attrs["units"] == "metre"
    content = bytearray(path.read_bytes())
    first = content.index(b"GCOL") + 16
    content[first : first + 16] = bytes(16)
    (tmp_path / "b.h5").write_bytes(content)
    refused = pytest.raises(InputError, match=r"b\.h5 is damaged \(a heap that leads to itself\)")
    with refused, open_hdf5(tmp_path / "b.h5"):
        pass


@pytest.mark.parametrize("size", [2**32, 5_800_000_000, 2**62])
def test_a_heap_of_names_larger_than_its_file_is_refused_before_hdf5_makes_room_for_it(tmp_path, size):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["group/number"] = 1
    content = bytearray(path.read_bytes())
    assert content[14] == 8 and content.count(b"HEAP\0\0\0\0") == 2
    at = content.rindex(b"HEAP") + 8
    content[at : at + 8] = size.to_bytes(8, "little")
    (tmp_path / "b.h5").write_bytes(content)
    refused = pytest.raises(InputError, match=r"b\.h5 is damaged \(a heap of names larger than the file\)")
    with refused, open_hdf5(tmp_path / "b.h5") as file:
        file.get("group/number")
