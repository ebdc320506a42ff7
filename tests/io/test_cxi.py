"""CXI: what we write comes back; what others write is understood, with both meanings of the mask."""

import errno
import os

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from napari_xrai.core.detector import Panels, detector_from_panels, square_detector
from napari_xrai.core.frames import BAD, HC_EV_A, Frames
from napari_xrai.core.particle import builtin_particle
from napari_xrai.core.simulate import PRESETS, simulate
from napari_xrai.io.cxi import CxiSource
from napari_xrai.io.cxi_mask import mask_rejects, meaning_of
from napari_xrai.io.cxi_writer import CxiWriter
from napari_xrai.io.open import describe, open_source
from napari_xrai.io.source import InputError
from napari_xrai.io.units import JOULE_PER_EV

DETECTOR = "entry_1/instrument_1/detector_1"
PRESET = PRESETS["demo"]


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    path = tmp_path_factory.mktemp("cxi") / "demo.cxi"
    detector, _, batches = simulate(builtin_particle("demo"), PRESET, n_frames=120, seed=1)
    frames = list(batches)
    with CxiWriter(path, detector, distance_m=PRESET.distance_m, polarization=PRESET.polarization) as out:
        for batch in frames:
            out.write(batch)
    return path, detector, Frames.concatenate(frames).dense()


def copy_of(path, tmp_path, change):
    other = tmp_path / "changed.cxi"
    other.write_bytes(path.read_bytes())
    with h5py.File(other, "a") as file:
        change(file)
    return other


def set_data(values):
    def change(file):
        attributes = dict(file[f"{DETECTOR}/data"].attrs)
        del file[f"{DETECTOR}/data"]
        file[f"{DETECTOR}/data"] = values
        file[f"{DETECTOR}/data"].attrs.update(attributes)

    return change


def test_frames_and_geometry_survive(simulated):
    path, detector, counts = simulated
    source = open_source([path])
    assert source.format == "CXI 1.6" and source.n_frames == 120 and source.shape == (64, 64)
    assert np.array_equal(Frames.concatenate(list(source.batches(33))).dense(), counts)
    assert np.array_equal(source.read(np.array([100, 5, 5])).dense(), counts[[100, 5, 5]])
    read = source.detector
    np.testing.assert_allclose(read.q, detector.q, atol=1e-12)
    np.testing.assert_allclose(read.response, detector.response, rtol=1e-9)
    assert np.array_equal(read.mask, detector.mask)
    assert read.energy_eV == pytest.approx(PRESET.energy_eV)


def test_nothing_is_missing_from_our_own_file(simulated):
    path, _, counts = simulated
    found = describe(open_source([path]))
    assert found.missing == [] and found.notes == []
    assert found.sentence == f"120 frames · 4,096 pixels · {counts.sum() / 120:,.0f} photons/frame"


def test_layout_is_what_facilities_write(simulated):
    with h5py.File(simulated[0]) as file:
        assert file["cxi_version"][()] == 160
        data = file["entry_1/data_1/data"]
        assert file["entry_1/data_1"].get("data", getlink=True).path == f"/{DETECTOR}/data"
        assert data.dtype == np.uint16 and data.compression == "gzip" and data.shuffle
        assert data.chunks[1:] == (64, 64)
        assert file[f"{DETECTOR}/mask"].dtype == np.uint32
        assert set(np.unique(file[f"{DETECTOR}/mask"][()] & 0x69F)) == {0, 0x80}
        assert file["entry_1/instrument_1/source_1/energy"][()] == pytest.approx(PRESET.energy_eV * JOULE_PER_EV)
        corner, step = file[f"{DETECTOR}/corner_position"][()], file[f"{DETECTOR}/basis_vectors"][()]
        np.testing.assert_allclose(corner, [32 * 1.2e-3, 32 * 1.2e-3, 0], atol=1e-12)
        np.testing.assert_allclose(step, [[0, -1.2e-3, 0], [-1.2e-3, 0, 0]], atol=1e-12)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(counts=arrays(np.int32, (3, 4, 5), elements=st.integers(0, 65535)), split=st.integers(1, 3))
def test_counts_survive(tmp_path, counts, split):
    detector = square_detector((4, 5), 1e-3, 0.1, 5000.0)
    path = tmp_path / "a.cxi"
    with CxiWriter(path, detector, distance_m=0.1, polarization="none") as out:
        for first in range(0, 3, split):
            out.write(Frames.from_dense(counts[first : first + split], first))
    got = Frames.concatenate(list(CxiSource(path).batches(2))).dense()
    assert np.array_equal(got, counts.reshape(3, -1))


@pytest.mark.parametrize(("photons", "bits"), [(10_000, 16), (3_000_000, 32)])
def test_bright_frames_get_wider_counts(tmp_path, photons, bits):
    detector = square_detector((4, 5), 1e-3, 0.1, 5000.0)
    counts = np.full((2, 4, 5), photons)
    with CxiWriter(tmp_path / "a.cxi", detector, distance_m=0.1, polarization="none") as out:
        out.write(Frames.from_dense(counts))
    with h5py.File(tmp_path / "a.cxi") as file:
        assert file["entry_1/data_1/data"].dtype == f"u{bits // 8}"
    assert np.array_equal(next(CxiSource(tmp_path / "a.cxi").batches(2)).dense(), counts.reshape(2, -1))


def test_modular_detectors_keep_their_modules(tmp_path):
    step = np.array([[[0, -2e-4, 0], [-2e-4, 0, 0]], [[-2e-4, 0, 0], [0, 2e-4, 0]]])
    panels = Panels(np.array([[0.01, 0.02, 0.5], [-0.01, -0.02, 0.5]]), step, (2, 6, 4))
    detector = detector_from_panels(panels, energy_eV=6000.0, polarization="y")
    counts = np.random.default_rng(0).poisson(0.5, (5, 2, 6, 4))
    path = tmp_path / "modules.cxi"
    with CxiWriter(path, detector, distance_m=0.5, polarization="y") as out:
        out.write(Frames.from_dense(counts))
    source = open_source([path])
    assert source.shape == (2, 6, 4)
    np.testing.assert_allclose(source.detector.q, detector.q, atol=1e-12)
    np.testing.assert_allclose(source.detector.response, detector.response, rtol=1e-9)

    def repeat_per_event(file):  # as merged files do, under the spelling of the official examples
        corner, basis = file[f"{DETECTOR}/corner_position"][()], file[f"{DETECTOR}/basis_vectors"][()]
        del file[f"{DETECTOR}/corner_position"], file[f"{DETECTOR}/basis_vectors"]
        file[f"{DETECTOR}/corner_positions"] = np.repeat(corner[None], 5, axis=0)
        file[f"{DETECTOR}/basis_vectors"] = np.repeat(basis[None], 5, axis=0)

    merged = open_source([copy_of(path, tmp_path, repeat_per_event)])
    np.testing.assert_allclose(merged.detector.q, detector.q, atol=1e-12)


def test_mask_bits_changed_their_meaning_at_1_5():
    bits = np.array([0x0, 0x1, 0x4, 0x80, 0x200, 0x1000, 0x100, 0x5])

    def rejected(bits, version, **options):
        return mask_rejects(bits, meaning_of(bits, version, **options)).tolist()

    assert rejected(bits, 160) == [False, True, True, True, True, False, False, True]
    # before: bit 0 says valid; 0x80 does not exist, 0x100 not exposed
    assert rejected(bits, 140) == [True, False, True, True, True, True, True, True]
    # programs that wrote 1.4 with zero for good pixels set no valid bit anywhere
    assert rejected(np.array([0x0, 0x8]), 140) == [False, True]
    assert rejected(np.array([0x0, 0x1000]), 150, euxfel=True) == [False, True]


def test_old_masks_are_read_by_the_files_version(simulated, tmp_path):
    path, detector, _ = simulated

    def old(file):
        file["cxi_version"][()] = 140
        mask = file[f"{DETECTOR}/mask"]
        mask[()] = np.where(detector.mask.reshape(64, 64) == BAD, 0, 1)

    read = open_source([copy_of(path, tmp_path, old)]).detector
    assert np.array_equal(read.mask == BAD, detector.mask == BAD)


def test_energy_per_shot_and_version_as_array_are_understood(simulated, tmp_path):
    def change(file):
        del file["cxi_version"], file["entry_1/instrument_1/source_1/energy"]
        file["cxi_version"] = np.array([150])
        file["entry_1/instrument_1/source_1/energy"] = np.full(120, 2000.0 * JOULE_PER_EV, np.float32)

    source = open_source([copy_of(simulated[0], tmp_path, change)])
    assert source.format == "CXI 1.5"
    assert source.detector.energy_eV == pytest.approx(2000, rel=1e-6)


def test_what_the_file_does_not_say_is_named_and_can_be_given(simulated, tmp_path):
    def strip(file):
        del file["entry_1/instrument_1/source_1"]
        for name in ("corner_position", "basis_vectors", "distance", "x_pixel_size", "y_pixel_size"):
            del file[f"{DETECTOR}/{name}"]

    path = copy_of(simulated[0], tmp_path, strip)
    bare = open_source([path])
    assert bare.detector is None
    assert describe(bare).missing == ["geometry", "wavelength"]
    with_lengths = open_source([path], distance_m=0.3, pixel_size_m=1.2e-3)
    assert with_lengths.detector.units == "detector_voxel"
    assert "wavelength" in describe(with_lengths).sentence and "middle" in describe(with_lengths).sentence
    full = open_source([path], distance_m=0.3, pixel_size_m=1.2e-3, energy_eV=HC_EV_A / 4.0, polarization="x")
    np.testing.assert_allclose(full.detector.q, simulated[1].q, atol=1e-12)
    assert describe(full).missing == []


def test_given_values_win_over_the_files(simulated):
    source = open_source([simulated[0]], energy_eV=5000.0, distance_m=0.6)
    nominal = square_detector((64, 64), 1.2e-3, 0.6, 5000.0, polarization="x")
    np.testing.assert_allclose(source.detector.q, nominal.q, atol=1e-12)


def test_nan_in_masked_pixels_is_no_error_elsewhere_it_is(simulated, tmp_path):
    path, detector, counts = simulated
    values = counts.reshape(-1, 64, 64).astype(np.float32)
    values[:, detector.mask.reshape(64, 64) == BAD] = np.nan
    source = open_source([copy_of(path, tmp_path, set_data(values))])
    assert np.array_equal(Frames.concatenate(list(source.batches(50))).dense(), counts)
    values[3, 10, 10] = np.nan
    with pytest.raises(InputError, match=r"changed\.cxi: /entry_1/data_1/data: frame 3 has NaN"):
        open_source([copy_of(path, tmp_path, set_data(values))])


@pytest.mark.parametrize(("value", "words"), [(-2, "negative"), (0.25, "fractions")])
def test_detector_units_are_not_photons(simulated, tmp_path, value, words):
    values = np.ones((4, 64, 64), np.int16 if value == -2 else np.float32)
    values[2, 5, 5] = value
    with pytest.raises(InputError, match=f"frame 2 has {words}"):
        open_source([copy_of(simulated[0], tmp_path, set_data(values))])


def test_everything_masked_is_refused(simulated, tmp_path):
    def mask_all(file):
        file[f"{DETECTOR}/mask"][()] = 0x80

    with pytest.raises(InputError, match="leaves no good pixel"):
        open_source([copy_of(simulated[0], tmp_path, mask_all)])


def test_a_view_of_files_that_are_gone_is_no_empty_data(simulated, tmp_path):
    path, _, counts = simulated

    def view(file):
        del file[f"{DETECTOR}/data"]
        layout = h5py.VirtualLayout((120, 64, 64), "u2")
        layout[:] = h5py.VirtualSource("raw.h5", f"{DETECTOR}/data", (120, 64, 64))
        file[DETECTOR].create_virtual_dataset("data", layout)

    viewing = copy_of(path, tmp_path, view)
    with pytest.raises(InputError, match=r"is a view of raw\.h5, which is not there"):
        open_source([viewing])
    (tmp_path / "raw.h5").write_bytes(path.read_bytes())
    assert np.array_equal(next(open_source([viewing]).batches(120)).dense(), counts)


def test_wrong_shapes_are_named(simulated, tmp_path):
    for values, words in ((np.ones((5, 2, 2, 8, 8), "u1"), "shape"), (np.ones(7, "u1"), "shape")):
        with pytest.raises(InputError, match=words):
            open_source([copy_of(simulated[0], tmp_path, set_data(values))])
    with pytest.raises(InputError, match=r"mask has 4,096 pixels but a frame has 1,024"):
        open_source([copy_of(simulated[0], tmp_path, set_data(np.ones((5, 32, 32), "u1")))])


def test_absurd_sizes_cost_nothing(simulated, tmp_path):
    def huge(file):
        del file[f"{DETECTOR}/data"], file[f"{DETECTOR}/mask"]
        file.create_dataset(f"{DETECTOR}/data", (10**9, 10**5, 10**5), "u1", chunks=(1, 1000, 1000))

    with pytest.raises(InputError, match="pixels per frame: its header is damaged"):
        open_source([copy_of(simulated[0], tmp_path, huge)])


def test_an_abandoned_file_leaves_nothing(tmp_path):
    detector = square_detector((4, 5), 1e-3, 0.1, 5000.0)

    def write_and_stumble():
        with CxiWriter(tmp_path / "a.cxi", detector, distance_m=0.1, polarization="none") as out:
            out.write(Frames.from_dense(np.ones((2, 4, 5), int)))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_and_stumble()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match=r"cannot be written .*make the folder .*nowhere first"):
        CxiWriter(tmp_path / "nowhere" / "a.cxi", detector, distance_m=0.1, polarization="none")


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    detector = square_detector((64, 64), 1e-3, 0.1, 5000.0)
    noise = np.random.default_rng(0).integers(0, 60_000, (400, 64, 64))
    allocate = os.posix_fallocate

    def small_disk(handle, offset, length):
        if offset + length > 6_000_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        allocate(handle, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", small_disk)
    with pytest.raises(InputError, match=r"full\.cxi cannot be written \(No space left on device\): free some space"):
        write_all(tmp_path / "full.cxi", detector, noise)
    assert list(tmp_path.iterdir()) == []


def test_room_kept_free_ahead_is_given_back(tmp_path):
    detector = square_detector((64, 64), 1e-3, 0.1, 5000.0)
    noise = np.random.default_rng(0).integers(0, 60_000, (200, 64, 64))
    write_all(tmp_path / "a.cxi", detector, noise)
    assert (tmp_path / "a.cxi").stat().st_size < 1.2 * 2 * noise.size
    assert np.array_equal(next(CxiSource(tmp_path / "a.cxi").batches(200)).dense(), noise.reshape(200, -1))


def write_all(path, detector, counts):
    with CxiWriter(path, detector, distance_m=0.1, polarization="none") as out:
        for first in range(0, len(counts), 100):
            out.write(Frames.from_dense(counts[first : first + 100], first))
