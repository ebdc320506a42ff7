"""CXI as others write it: laid out here from their descriptions, or written by EXtra-data from its own mock files."""

import gc
import sys
import time

import h5py
import numpy as np
import pytest
from extra_data import RunDirectory
from extra_data.components import AGIPD1M
from extra_data.tests.mockdata import write_file
from extra_data.tests.mockdata.detectors import AGIPDModule

from napari_xrai.core.frames import BAD, HC_EV_A, Frames
from napari_xrai.io.open import classify, describe, is_ours, open_source
from napari_xrai.io.source import InputError

JOULE = 1.602176634e-19
DETECTOR = "entry_1/instrument_1/detector_1"
RNG = np.random.default_rng(5)
N, MODULES, ROWS, COLUMNS = 40, 3, 6, 5
PHOTONS = RNG.poisson(0.3, (N, MODULES, ROWS, COLUMNS)).astype("u1")
CORNER = np.array([[0.004, 0.003, 0.7], [-0.001, 0.003, 0.7003], [0.001, -0.002, 0.6999]])
STEP = np.array([[[0, -2e-4, 1e-6], [-2e-4, 0, 0]], [[0, -2e-4, 0], [-2e-4, 0, 0]], [[2e-4, 0, 0], [0, -2e-4, 0]]])


def counts_of(source):
    return Frames.concatenate(list(source.batches(13))).dense().reshape(len(PHOTONS), *source.shape)


def scattering_vectors(corner, step, energy_eV):
    """(module, row, column, 3), pixel by pixel as the format's description has it."""
    q = np.zeros((MODULES, ROWS, COLUMNS, 3))
    for m, i, j in np.ndindex(MODULES, ROWS, COLUMNS):
        r = corner[m] + (i + 0.5) * step[m, 0] + (j + 0.5) * step[m, 1]
        q[m, i, j] = (r / np.linalg.norm(r) - [0, 0, 1]) * energy_eV / HC_EV_A
    return q.reshape(-1, 3)


def write_spi_group(path, change=lambda file: None):
    """Version 1.6 as SPI groups at the European XFEL write hits: modular photons, one mask, energy per shot."""
    with h5py.File(path, "w") as file:
        file["cxi_version"] = 160
        file["entry_1/experiment_identifier"] = [f"p1_r2_t{n}_c0" for n in range(N)]
        detector = file.create_group(DETECTOR)
        data = detector.create_dataset(
            "data", data=PHOTONS, chunks=(1, *PHOTONS.shape[1:]), compression="gzip", compression_opts=1, shuffle=True
        )
        data.attrs["axes"] = "experiment_identifier:module_identifier:y:x"
        file["entry_1/data_1/data"] = h5py.SoftLink(f"/{DETECTOR}/data")
        mask = np.zeros(PHOTONS.shape[1:], "u4")
        mask[1, 2, 3] = 0x80
        detector["mask"] = mask
        detector["corner_position"], detector["basis_vectors"] = CORNER, STEP
        # a legacy map of pixels, of which only x and y are right
        detector["xyz_map"] = np.full((3, *PHOTONS.shape[1:]), 0.7, "f4")
        detector["xyz_map"].attrs["units"] = "m"
        for name, value in (("distance", 0.7), ("x_pixel_size", 2e-4), ("y_pixel_size", 2e-4)):
            detector[name] = value
        detector["trainId"], detector["cellId"] = np.arange(N, dtype="u8"), np.zeros(N, "u2")
        energy = np.full(N, 6000.0 * JOULE)
        file["entry_1/instrument_1/source_1/energy"] = energy.astype("f8")
        detector["data_white"] = np.full(PHOTONS.shape[1:], 0.01, "f4")
        detector["background_weighting"] = np.tile([0.5, 1.5, np.nan, -1.0], N // 4)
        change(file)


def test_hits_of_the_spi_groups_give_photons_geometry_mask_energy_and_background(tmp_path):
    write_spi_group(tmp_path / "hits.cxi")
    source = open_source([tmp_path / "hits.cxi"])
    assert np.array_equal(counts_of(source), PHOTONS)
    expected = scattering_vectors(CORNER, STEP, 6000.0)
    np.testing.assert_allclose(source.detector.q, expected, atol=1e-9 * np.abs(expected).max())
    assert np.flatnonzero(source.detector.mask).tolist() == [43]
    assert source.detector.energy_eV == pytest.approx(6000, rel=1e-9)
    # shots without a weight do not count
    np.testing.assert_allclose(source.detector.background, 0.01, rtol=1e-6)
    found = describe(source)
    assert found.missing == ["polarisation"]
    (note,) = found.notes
    assert note.startswith("the background in these files is not used")


@pytest.mark.parametrize(("what", "named"), [("source_1/energy", "photon energy"), ("detector_1/distance", "distance")])
def test_a_jitter_from_shot_to_shot_is_said(tmp_path, what, named):
    def jitter(file):
        value = float(np.median(file[f"entry_1/instrument_1/{what}"][()]))
        del file[f"entry_1/instrument_1/{what}"]
        file[f"entry_1/instrument_1/{what}"] = value * (1 + 1e-3 * np.linspace(-1, 1, N))

    write_spi_group(tmp_path / "hits.cxi", jitter)
    source = open_source([tmp_path / "hits.cxi"])
    assert any(note.startswith(f"the {named} varies by 0.18% from shot to shot") for note in source.notes)


def test_merged_runs_repeat_the_geometry_and_their_energy_jitters(tmp_path):
    def merge(file):
        for name in ("corner_position", "basis_vectors"):
            once = file[f"{DETECTOR}/{name}"][()]
            del file[f"{DETECTOR}/{name}"]
            file[f"{DETECTOR}/{name}"] = np.repeat(once[None], N, axis=0)
        file["entry_1/instrument_1/source_1/energy"][:] = (6000 + 60 * np.linspace(-1, 1, N)) * JOULE

    write_spi_group(tmp_path / "merged.cxi", merge)
    source = open_source([tmp_path / "merged.cxi"])
    np.testing.assert_allclose(source.detector.q, scattering_vectors(CORNER, STEP, 6000.0), atol=1e-9)
    assert any("energy varies by 1.8%" in note for note in describe(source).notes)


def write_cheetah(path, *, modular, mask=None, energies=9500.0):
    """What Cheetah writes: version 1.4 with the mask bits of 1.5, room made ahead, everything per shot."""
    room = 2 * N
    frames = PHOTONS if modular else PHOTONS.reshape(N, MODULES * ROWS, COLUMNS)
    with h5py.File(path, "w") as file:
        file["cxi_version"] = 140
        file.create_group("LCLS")["photon_energy_eV"] = np.full(room, energies)
        detector = file.create_group(DETECTOR)
        inner = detector.create_group("modular_data" if modular else "data_raw")
        inner.create_dataset("data", (room, *frames.shape[1:]), "i2", chunks=(1, *frames.shape[1:]))[:N] = frames
        inner["data"].attrs.create("numEvents", np.array([N], "i4"))
        shared = np.zeros(frames.shape[1:], "u2")
        shared.ravel()[[7, 8]] = [1, 8]  # invalid, dead
        inner["mask_shared"] = shared
        names = ["data", "mask_shared"]
        if modular:
            inner["corner_positions"] = np.repeat((CORNER - [0, 0, 0.7])[None], room, axis=0).astype("f4")
            inner["basis_vectors"] = np.repeat(STEP[None], room, axis=0).astype("f4")
            names += ["corner_positions", "basis_vectors"]
        for name in names:
            detector[name] = h5py.SoftLink(f"{inner.name}/{name}")
        detector["distance"], detector["x_pixel_size"] = np.full(room, 0.7), np.full(room, 2e-4)
        energy = np.zeros(room)
        energy[:N] = energies * 1.602e-19
        file["entry_1/instrument_1/source_1/energy"] = energy
        file["entry_1/data_1"] = h5py.SoftLink(f"/{DETECTOR}")


@pytest.mark.parametrize("modular", [True, False])
def test_cheetahs_files_are_read_as_far_as_they_were_written_under_the_bits_they_use(tmp_path, modular):
    write_cheetah(tmp_path / "a.cxi", modular=modular)
    source = open_source([tmp_path / "a.cxi"])
    assert source.n_frames == N
    got = counts_of(source).reshape(N, -1)
    good = np.ones(90, bool)
    good[[7, 8]] = False
    assert np.array_equal(got[:, good], PHOTONS.reshape(N, -1)[:, good])
    assert np.flatnonzero(source.detector.mask == BAD).tolist() == [7, 8]
    assert source.detector.energy_eV == pytest.approx(9500, rel=2e-4)
    if modular:  # in single precision
        expected = scattering_vectors(CORNER, STEP, source.detector.energy_eV)
        np.testing.assert_allclose(source.detector.q, expected, atol=1e-6 * np.abs(expected).max())


def write_masks_per_frame(path):
    """Every frame with a mask of its own: pixel 4 bad in some, frame 9 without its second module, 10 wholly bad."""
    masks = np.zeros(PHOTONS.shape, "u4")
    masks[::3, 0, 0, 4] = 0x4
    masks[9, 1] = 0x200
    masks[10] = 0x80
    masks[25, 2, 5, 4] = 0x2
    values = PHOTONS.astype("f4")
    values[masks != 0] = np.nan

    def put(file):
        del file[f"{DETECTOR}/mask"], file[f"{DETECTOR}/data"]
        file[f"{DETECTOR}/mask"], file[f"{DETECTOR}/data"] = masks, values

    write_spi_group(path, put)
    return masks


def test_a_mask_for_every_frame_is_kept_for_every_frame(tmp_path):
    masks = write_masks_per_frame(tmp_path / "a.cxi")
    source = open_source([tmp_path / "a.cxi"])
    got = counts_of(source)
    # one bad pixel costs a pixel, not the frame; a module or more costs the frame
    expected = np.where(masks != 0, 0, PHOTONS)
    expected[[9, 10]] = 0
    always = (source.detector.mask == BAD).reshape(PHOTONS.shape[1:])
    assert np.array_equal(got, np.where(always, 0, expected))
    assert always[0, 0, 4] and not always[1].any()
    assert any("each frame has a mask of its own" in note for note in describe(source).notes)


@pytest.fixture(scope="module")
def agipd_run(tmp_path_factory):
    """A corrected AGIPD run of 16 modules and 2 trains, by EXtra-data's mock writer, with photons put in."""
    folder = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    for module in range(16):
        path = folder / f"CORR-R0001-AGIPD{module:02}-S00000.h5"
        device = AGIPDModule(f"SPB_DET_AGIPD1M-1/DET/{module}CH0", raw=False, frames_per_train=2)
        write_file(path, [device], ntrains=2, chunksize=8)
        with h5py.File(path, "a") as file:
            image = file[f"INSTRUMENT/SPB_DET_AGIPD1M-1/DET/{module}CH0:xtdf/image"]
            image["data"][:4] = rng.poisson(0.02, (4, 512, 128))
            image["mask"][:4, 3, 5] = 0x1000  # a bit of the facility's own
    return folder


def make_view(run, path):
    opened = RunDirectory(run)
    AGIPD1M(opened, min_modules=16).write_virtual_cxi(str(path))
    for file in opened.files:
        file.close()
    return path


def module_frames(run, module):
    with h5py.File(run / f"CORR-R0001-AGIPD{module:02}-S00000.h5") as file:
        return file[f"INSTRUMENT/SPB_DET_AGIPD1M-1/DET/{module}CH0:xtdf/image/data"][:4]


def test_views_by_extra_data_are_read_and_ask_for_their_geometry(agipd_run, tmp_path):
    source = open_source([make_view(agipd_run, tmp_path / "vds.cxi")])
    assert source.shape == (16, 512, 128) and source.n_frames == 4
    assert describe(source).missing == ["geometry", "wavelength"]
    got = Frames.concatenate(list(source.batches(3))).dense().reshape(4, 16, 512, 128)
    for module in (0, 15):
        expected = module_frames(agipd_run, module)
        expected[:, 3, 5] = 0
        assert np.array_equal(got[:, module], expected)


def test_a_run_folder_is_read_through_extra_data_and_never_written_to(agipd_run, capsys):
    before = {path: path.stat().st_mtime_ns for path in agipd_run.iterdir()}
    source = open_source([agipd_run])
    assert classify(agipd_run) == "frames" and is_ours(agipd_run)
    assert source.format == "European XFEL run, SPB_DET_AGIPD1M-1" and source.paths == (agipd_run,)
    assert source.shape == (16, 512, 128) and describe(source).missing == ["geometry", "wavelength"]
    got = Frames.concatenate(list(source.batches(3))).dense().reshape(4, 16, 512, 128)
    expected = module_frames(agipd_run, 7)
    expected[:, 3, 5] = 0
    assert np.array_equal(got[:, 7], expected)
    named = source.identity(np.array([0, 3]))
    assert named["trainId"].tolist() == [10000, 10001] and {"pulseId", "cellId"} <= set(named)
    assert {path: path.stat().st_mtime_ns for path in agipd_run.iterdir()} == before
    view = source._view
    del source
    gc.collect()
    assert not view.parent.exists()
    assert capsys.readouterr().out == ""


def test_a_run_without_extra_data_says_what_to_install(agipd_run, monkeypatch):
    monkeypatch.setitem(sys.modules, "extra_data", None)
    with pytest.raises(InputError, match=r'run of the European XFEL: pip install "napari-xrai\[euxfel\]"'):
        open_source([agipd_run])


def test_a_run_with_a_truncated_file_is_one_sentence(agipd_run, tmp_path):
    for path in agipd_run.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    cut = tmp_path / "CORR-R0001-AGIPD07-S00000.h5"
    cut.write_bytes(cut.read_bytes()[:5000])
    with pytest.raises(InputError, match=r"AGIPD07-S00000\.h5 cannot be read: copy it again in full, or take it out"):
        open_source([tmp_path])


def test_a_view_whose_files_are_gone_says_how_many_frames_it_lacks(agipd_run, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for path in agipd_run.iterdir():
        (run / path.name).write_bytes(path.read_bytes())
    view = make_view(run, tmp_path / "vds.cxi")
    (run / "CORR-R0001-AGIPD07-S00000.h5").unlink()
    with pytest.raises(InputError, match=r"AGIPD07-S00000\.h5, which is not there; 4 of 4 frames lack data: bring it"):
        open_source([view])


def test_a_module_that_was_never_in_the_view_is_masked_and_a_hole_in_one_frame_costs_that_frame(tmp_path):
    frames = PHOTONS.astype("u2")
    with h5py.File(tmp_path / "raw.h5", "w") as file:
        file["data"] = frames

    def view(file):
        del file[f"{DETECTOR}/data"], file[f"{DETECTOR}/mask"]
        layout = h5py.VirtualLayout(PHOTONS.shape, "u2")
        source = h5py.VirtualSource(tmp_path / "raw.h5", "data", PHOTONS.shape)
        layout[:, 0] = source[:, 0]  # nothing of module 1
        layout[:30, 2] = source[:30, 2]
        layout[31:, 2] = source[31:, 2]
        file[DETECTOR].create_virtual_dataset("data", layout)

    write_spi_group(tmp_path / "a.cxi", view)
    source = open_source([tmp_path / "a.cxi"])
    assert (source.detector.mask.reshape(MODULES, -1) == BAD).all(axis=1).tolist() == [False, True, False]
    got = counts_of(source)
    assert not got[30].any() and np.array_equal(got[29, 2], PHOTONS[29, 2])
    notes = " ".join(describe(source).notes)
    assert "1 module missing from the view" in notes and "1 frames lack modules" in notes


def test_raw_detector_readings_are_refused(tmp_path):
    def raw(file):
        del file[f"{DETECTOR}/data"]
        file[f"{DETECTOR}/data"] = np.ones((4, MODULES, 2, ROWS, COLUMNS), "u2")

    write_spi_group(tmp_path / "a.cxi", raw)
    with pytest.raises(InputError, match="detector units and gain side by side: give calibrated photons"):
        open_source([tmp_path / "a.cxi"])


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("data_white", np.ones((2, 2), "f4"), "data_white has 4 pixels but a frame has 90"),
        ("corner_position", np.zeros((2, 3)), "does not describe 3 modules"),
        ("distance", 700.0, "looks like 700 mm"),
    ],
)
def test_what_cannot_be_is_said(tmp_path, name, value, words):
    def change(file):
        del file[f"{DETECTOR}/{name}"]
        file[f"{DETECTOR}/{name}"] = value

    write_spi_group(tmp_path / "a.cxi", change)
    with pytest.raises(InputError, match=words):
        open_source([tmp_path / "a.cxi"])


def test_runs_of_two_experiments_are_refused_and_masks_of_one_add_up(tmp_path):
    def other_energy(file):
        file["entry_1/instrument_1/source_1/energy"][:] *= 1.1

    def moved(file):
        file[f"{DETECTOR}/corner_position"][:, 0] += 2e-3

    def other_mask(file):
        file[f"{DETECTOR}/mask"][0, 0, 0] = 0x8

    for name, change in (("a", lambda file: None), ("b", other_energy), ("c", moved), ("d", other_mask)):
        write_spi_group(tmp_path / f"{name}.cxi", change)
        with h5py.File(tmp_path / f"{name}.cxi", "a") as file:
            file[f"{DETECTOR}/data"][:] = np.roll(PHOTONS, ord(name), axis=0)
    with pytest.raises(InputError, match=r"not of one experiment: photon energies of 6,600\.0 and 6,000\.0 eV"):
        open_source([tmp_path / "a.cxi", tmp_path / "b.cxi"])
    with pytest.raises(InputError, match="their detectors were in different places"):
        open_source([tmp_path / "a.cxi", tmp_path / "c.cxi"])
    together = open_source([tmp_path / "a.cxi", tmp_path / "d.cxi"])
    assert together.n_frames == 2 * N and np.flatnonzero(together.detector.mask).tolist() == [0, 43]


def test_a_hundred_thousand_frames_open_at_once_and_are_never_read_whole(tmp_path):
    with h5py.File(tmp_path / "long.cxi", "w") as file:
        shape = (100_000, 16, 128, 64)
        data = file.create_dataset(f"{DETECTOR}/data", shape, "u1", chunks=(1, *shape[1:]), compression="gzip")
        mask = file.create_dataset(f"{DETECTOR}/mask", shape, "u4", chunks=(1, *shape[1:]), compression="gzip")
        data[:30] = RNG.poisson(0.01, (30, *shape[1:]))
        for node in (data, mask):  # whoever reads this stumbles
            node.id.write_direct_chunk((70_001, 0, 0, 0), b"no deflated data")
    began = time.process_time()
    source = open_source([tmp_path / "long.cxi"])
    first = source.read(np.array([0]))
    assert time.process_time() - began < 1
    with h5py.File(tmp_path / "long.cxi") as file:
        assert np.array_equal(first.dense().reshape(shape[1:]), file[f"{DETECTOR}/data"][0])
    assert describe(source).frames == 100_000
    with pytest.raises(InputError, match=r"long\.cxi cannot be read: some of its frames are damaged"):
        source.read(np.array([70_001]))
