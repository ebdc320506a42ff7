"""NXmx: written with nexusformat, placed by hand; and what Eiger's file writer does with links."""

import h5py
import hdf5plugin
import numpy as np
import pytest
from nexusformat.nexus import (
    NXbeam,
    NXdata,
    NXdetector,
    NXdetector_module,
    NXentry,
    NXfield,
    NXinstrument,
    NXroot,
    NXsample,
    NXtransformations,
)  # fmt: skip

from napari_xrai.core.frames import BAD, HC_EV_A, Frames
from napari_xrai.io import compression
from napari_xrai.io.open import classify, describe, open_source
from napari_xrai.io.source import InputError

ROWS, COLUMNS, N = 10, 8, 24
PHOTONS = np.random.default_rng(4).poisson(0.4, (N, ROWS, COLUMNS)).astype("u4")
WAVELENGTH_A, PIXEL_M, DISTANCE_M, TILT_DEG = 2.5, 75e-6, 0.12, 3.0
TRANSFORMATIONS = "/entry/instrument/detector/transformations"
MODULE = "/entry/instrument/detector/module"


def axis(value, vector, kind, on, unit, offset=(0, 0, 0)):
    return NXfield(
        value, units=unit, transformation_type=kind, vector=np.array(vector, float), depends_on=on,
        offset=np.array(offset, float), offset_units="mm",
    )  # fmt: skip


def write(path, change=lambda file: None):
    """A flat detector on a stage: moved downstream, tilted about x, its corner up and left of the beam."""
    detector = NXdetector(
        pixel_mask=NXfield(np.zeros((ROWS, COLUMNS), "u4")), distance=NXfield(DISTANCE_M * 1e3, units="mm"),
        x_pixel_size=NXfield(PIXEL_M, units="m"), depends_on=f"{TRANSFORMATIONS}/tilt",
    )  # fmt: skip
    detector["transformations"] = NXtransformations(
        tilt=axis(TILT_DEG, (1, 0, 0), "rotation", f"{TRANSFORMATIONS}/along", "deg"),
        along=axis(DISTANCE_M * 1e3, (0, 0, 1), "translation", ".", "mm"),
    )
    detector["module"] = NXdetector_module(
        data_origin=[0, 0],
        data_size=[ROWS, COLUMNS],
        module_offset=axis(0.0, (1, 0, 0), "translation", f"{TRANSFORMATIONS}/tilt", "m", offset=(0.3, 0.4, 0)),
        fast_pixel_direction=axis(PIXEL_M * 1e6, (-1, 0, 0), "translation", f"{MODULE}/module_offset", "um"),
        slow_pixel_direction=axis(PIXEL_M * 1e6, (0, -1, 0), "translation", f"{MODULE}/fast_pixel_direction", "um"),
    )
    beam = NXbeam(incident_wavelength=NXfield(np.full(N, WAVELENGTH_A), units="angstrom"))
    entry = NXentry(
        NXinstrument(detector=detector, beam=beam),
        NXsample(),
        definition="NXmx",
        data=NXdata(NXfield(PHOTONS, name="data")),
    )
    NXroot(entry=entry).save(str(path), "w")
    with h5py.File(path, "a") as file:
        file["entry/instrument/detector/pixel_mask"][2, 3] = 1
        file["entry/instrument/detector/pixel_mask"][2, 4] = 1 << 31  # interpolated: no reason to reject
        change(file)
    return path


def counts_of(source):
    return Frames.concatenate(list(source.batches(7))).dense().reshape(N, *source.shape)


def expected_q():
    tilt = np.radians(TILT_DEG)
    turn = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    q = np.zeros((ROWS, COLUMNS, 3))
    for i, j in np.ndindex(ROWS, COLUMNS):
        r = turn @ [3e-4 - (j + 0.5) * PIXEL_M, 4e-4 - (i + 0.5) * PIXEL_M, 0] + [0, 0, DISTANCE_M]
        q[i, j] = (r / np.linalg.norm(r) - [0, 0, 1]) / WAVELENGTH_A
    return q.reshape(-1, 3)


def test_frames_mask_wavelength_and_the_chain_of_axes(tmp_path):
    source = open_source([write(tmp_path / "a.nxs")])
    assert source.format == "NeXus NXmx"
    good = (source.detector.mask != BAD).reshape(ROWS, COLUMNS)
    assert np.array_equal(counts_of(source)[:, good], PHOTONS[:, good])
    np.testing.assert_allclose(source.detector.q, expected_q(), atol=1e-9 * np.abs(expected_q()).max())
    assert np.flatnonzero(source.detector.mask == BAD).tolist() == [2 * COLUMNS + 3]
    assert source.detector.energy_eV == pytest.approx(HC_EV_A / WAVELENGTH_A, rel=1e-9)
    assert describe(source).missing == ["polarisation"]


def test_without_modules_the_beam_centre_and_distance_place_a_flat_detector(tmp_path):
    def strip(file):
        del file[MODULE]
        file["entry/instrument/detector/beam_center_x"], file["entry/instrument/detector/beam_center_y"] = 4.5, 3.0

    q = open_source([write(tmp_path / "a.nxs", strip)]).detector.q.reshape(ROWS, COLUMNS, 3)
    nearest = np.unravel_index(np.argmin(np.linalg.norm(q, axis=-1)), (ROWS, COLUMNS))
    assert nearest[1] == 4 and nearest[0] in (2, 3)
    assert q[0, 0, 0] > 0 and q[0, 0, 1] > 0  # seen downstream: left and up


def test_eigers_blocks_are_read_one_after_the_other_and_missed_by_name(tmp_path):
    def as_eiger(file):
        del file["entry/data/data"]
        for k in range(3):
            with h5py.File(tmp_path / f"x_data_{k + 1:06}.h5", "w") as block:
                frames = PHOTONS[8 * k : 8 * k + 8].copy()
                frames[:, 0, 0] = 2**32 - 1  # how it marks pixels that have no value
                block.create_dataset(
                    "entry/data/data", data=frames, chunks=(1, ROWS, COLUMNS), **hdf5plugin.Bitshuffle()
                )
            file[f"entry/data/data_{k + 1:06}"] = h5py.ExternalLink(f"x_data_{k + 1:06}.h5", "/entry/data/data")

    source = open_source([write(tmp_path / "x_master.h5", as_eiger)])
    got = counts_of(source)
    assert np.array_equal(got[:, 3:], PHOTONS[:, 3:]) and source.detector.mask[0] == BAD
    assert np.array_equal(
        source.read(np.array([17, 7, 8])).dense().reshape(3, ROWS, COLUMNS)[:, 3:], PHOTONS[[17, 7, 8], 3:]
    )
    (tmp_path / "x_data_000002.h5").unlink()
    with pytest.raises(InputError, match=r"1 of 3 blocks of frames are links to files that are not there, x_data_0+2"):
        open_source([tmp_path / "x_master.h5"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f[f"{MODULE}/data_size"].write_direct(np.array([ROWS + 1, COLUMNS])), "lies outside frames"),
        (lambda f: f[f"{TRANSFORMATIONS}/tilt"].attrs.modify("depends_on", "/gone"), "depends on /gone"),
        (lambda f: f[f"{TRANSFORMATIONS}/along"].attrs.modify("depends_on", f"{TRANSFORMATIONS}/tilt"), "in a circle"),
        (lambda f: f[f"{MODULE}/fast_pixel_direction"].attrs.modify("units", "furlong"), "in 'furlong'"),
        (lambda f: f.__delitem__("entry/data/data"), "holds no frames"),
    ],
)
def test_a_geometry_that_cannot_be_is_one_sentence(tmp_path, change, words):
    with pytest.raises(InputError, match=words):
        open_source([write(tmp_path / "a.nxs", change)])


def test_compressed_data_are_read_or_name_what_to_install(tmp_path, monkeypatch):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("frames", data=PHOTONS, chunks=(1, ROWS, COLUMNS), **hdf5plugin.Zstd())
        # a filter that nobody has
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_chunk((1, ROWS, COLUMNS))
        plan.set_filter(32700, h5py.h5z.FLAG_OPTIONAL, ())
        space = h5py.h5s.create_simple(PHOTONS.shape)
        odd = h5py.h5d.create(file.id, b"odd", h5py.h5t.NATIVE_UINT32, space, dcpl=plan)
        odd.write_direct_chunk((0, 0, 0), b"\1" * 40, 0)
    assert classify(tmp_path / "a.h5") == "frames"
    assert np.array_equal(counts_of(open_source([tmp_path / "a.h5:/frames"])), PHOTONS)
    with pytest.raises(InputError, match="compressed with HDF5 filter 32700, which is not installed here: repack it"):
        open_source([tmp_path / "a.h5:/odd"])
    monkeypatch.setattr(compression, "_load_plugins", lambda: False)  # as if hdf5plugin were not there
    with pytest.raises(InputError, match=r'not installed here: pip install "napari-xrai\[compression\]"'):
        open_source([tmp_path / "a.h5:/odd"])
