"""Frames of large detectors: read from the chunks as they lie in the file, and the same as HDF5 itself reads them."""

import time
import tracemalloc

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from napari_xrai.core.frames import Frames
from napari_xrai.io import chunks as chunks_module
from napari_xrai.io.chunks import photon_rows
from napari_xrai.io.cxi import CxiSource
from napari_xrai.io.dragonfly import Hdf5Photons
from napari_xrai.io.source import InputError


@pytest.fixture(autouse=True)
def small_is_large(monkeypatch):
    monkeypatch.setattr(chunks_module, "LARGE_FRAME", 1)


def same_as_hdf5(data, lo, hi):
    with photon_rows(data, "a.h5: /data") as rows:
        got = rows(lo, hi)
    assert np.array_equal(got.dense(), data[lo:hi].reshape(hi - lo, -1))
    assert got.index.tolist() == list(range(lo, hi))
    assert all((np.diff(got.pixel[a:b]) > 0).all() for a, b in zip(got.start, got.start[1:], strict=False))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["u1", "<u2", ">u2", "u4", "i2", "f4"]),
    st.sampled_from([{}, {"compression": "gzip"}, {"compression": "gzip", "shuffle": True}, {"shuffle": True},
                     {"compression": "lzf"}, {"fletcher32": True}]),
    st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 7)), st.integers(0, 2**32), st.data(),
)  # fmt: skip
def test_every_layout_reads_as_hdf5_reads_it(tmp_path, kind, options, chunk, seed, data):
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rng.choice([0.05, 1, 300]), (6, 5, 7)).astype(kind) if kind[-1] != "1" else None
    counts = rng.poisson(0.4, (6, 5, 7)).astype("u1") if counts is None else counts
    lo = data.draw(st.integers(0, 5))
    hi = data.draw(st.integers(lo + 1, 6))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        same_as_hdf5(file.create_dataset("data", data=counts, chunks=chunk, **options), lo, hi)


def test_chunks_that_were_never_written_hold_no_photons(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset("data", (10, 4, 8), "u1", chunks=(2, 4, 8), compression="gzip")
        data[5] = 3
        same_as_hdf5(data, 0, 10)


def test_chunks_that_skipped_their_filter_are_read(tmp_path):
    counts = np.arange(64, dtype="u1").reshape(2, 4, 8)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset("data", (2, 4, 8), "u1", chunks=(1, 4, 8), compression="gzip")
        data[0] = counts[0]
        data.id.write_direct_chunk((1, 0, 0), counts[1].tobytes(), filter_mask=1)
        same_as_hdf5(data, 0, 2)
        assert np.array_equal(data[1], counts[1])


@pytest.mark.parametrize("damage", ["noise", "bomb", "short"])
def test_a_damaged_chunk_is_one_sentence(tmp_path, damage):
    import zlib

    raw = {"noise": b"\x00" * 40, "bomb": zlib.compress(bytes(10**7)), "short": zlib.compress(b"1")}[damage]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset("data", (2, 4, 8), "u1", chunks=(1, 4, 8), compression="gzip")
        data.id.write_direct_chunk((1, 0, 0), raw)
        with pytest.raises(InputError, match=r"a\.h5: /data: a .*chunk"), photon_rows(data, "a.h5: /data") as rows:
            rows(0, 2)


@pytest.mark.parametrize("least", [1, 10**9])  # read as they lie in the file, or by HDF5
def test_a_chunk_that_claims_more_than_it_can_have_is_refused_before_room_is_made(tmp_path, monkeypatch, least):
    monkeypatch.setattr(chunks_module, "LARGE_FRAME", least)
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "a.cxi", "w") as file:
        counts = rng.poisson(0.4, (6, 50, 70)).astype("u1")
        file.create_dataset("entry_1/data_1/data", data=counts, chunks=(2, 50, 70), compression="gzip")
        size = file["entry_1/data_1/data"].id.get_chunk_info(1).size
    content = (tmp_path / "a.cxi").read_bytes()
    key = size.to_bytes(4, "little") + bytes(4) + (2).to_bytes(8, "little")  # length, filters left out, position
    assert content.count(key) == 1
    (tmp_path / "a.cxi").write_bytes(content.replace(key, (2**32 - 16).to_bytes(4, "little") + key[4:]))
    with pytest.raises(InputError, match=r"a\.cxi: .*a chunk claims more bytes than it can have"):
        list(CxiSource(tmp_path / "a.cxi").batches(6))


def test_huge_chunks_are_refused(tmp_path):
    with h5py.File(tmp_path / "a.cxi", "w") as file:
        file.create_dataset("entry_1/data_1/data", (2**15, 256, 256), "u1", chunks=(2**14, 256, 256))
    with pytest.raises(InputError, match=r"a\.cxi: .* has chunks of 1 GiB, too large to read: h5repack"):
        CxiSource(tmp_path / "a.cxi")


@pytest.mark.parametrize("kind", ["chunks", "lists"])
def test_the_last_frame_of_many_is_read_as_quickly_as_the_first(tmp_path, kind):
    n = 60_000 if kind == "chunks" else 30_000
    with h5py.File(tmp_path / "a.h5", "w") as file:
        if kind == "chunks":
            data = file.create_dataset("entry_1/data_1/data", (n, 2, 2), "u1", chunks=(1, 2, 2))
            for frame in range(n):
                data.id.write_direct_chunk((frame, 0, 0), b"\0\1\0\0")
        else:
            for name in ("place_ones", "place_multi", "count_multi"):
                file.create_dataset(name, (n,), h5py.vlen_dtype(np.int32), chunks=(1,))[:] = [np.zeros(0, np.int32)] * n
            file["num_pix"] = 4
    source = Hdf5Photons(tmp_path / "a.h5") if kind == "lists" else CxiSource(tmp_path / "a.h5")

    def cpu_s(first):
        began = time.process_time()
        source.read(np.arange(first, first + 100))
        return time.process_time() - began

    cpu_s(0)
    assert cpu_s(n - 100) < 3 * min(cpu_s(0) for _ in range(3)) + 0.05  # walking to it would take a second


@pytest.mark.parametrize("compression", ["gzip", None])
def test_a_megapixel_file_is_read_in_bounded_memory(tmp_path, compression):
    frame = np.random.default_rng(0).poisson(0.02, (16, 512, 128)).astype("u1")
    with h5py.File(tmp_path / "agipd.cxi", "w") as file:
        data = file.create_dataset(
            "entry_1/instrument_1/detector_1/data", (60, 16, 512, 128), "u1", chunks=(1, 16, 512, 128),
            compression=compression, **({"compression_opts": 1, "shuffle": True} if compression else {}),
        )  # fmt: skip
        for n in range(60):
            data[n] = np.roll(frame, n, axis=0)
        file["entry_1/data_1/data"] = h5py.SoftLink("/entry_1/instrument_1/detector_1/data")
    source = CxiSource(tmp_path / "agipd.cxi")
    tracemalloc.start()
    photons = np.concatenate([batch.photons for batch in source.batches(10)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert photons.tolist() == [int(frame.sum())] * 60
    assert peak < 40e6  # 60 frames are 63 MB
    assert isinstance(source.read(np.array([59])), Frames)
