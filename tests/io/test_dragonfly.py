"""Dragonfly's photons and detectors: the same physics whatever file they come in."""

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from napari_xrai.core.frames import BAD, Frames
from napari_xrai.core.simulate import PRESETS
from napari_xrai.io.dragonfly import BinaryPhotons, Hdf5Photons, read_detector
from napari_xrai.io.open import classify, describe, open_source
from napari_xrai.io.source import CENTRE_ASSUMED, InputError
from napari_xrai.io.truth import read_truth

ROUND_TRIPS = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def all_frames(source, size=7):
    return Frames.concatenate(list(source.batches(size))).dense()


def write_sparse(path, counts):
    """The sparse binary layout as its format description has it, one frame at a time."""
    ones = [np.flatnonzero(frame == 1) for frame in counts]
    multi = [np.flatnonzero(frame > 1) for frame in counts]
    header = np.zeros(256, "<i4")
    header[:2] = counts.shape
    many = [frame[places] for frame, places in zip(counts, multi, strict=True)]
    parts = [header, [len(o) for o in ones], [len(m) for m in multi], *ones, *multi, *many]
    path.write_bytes(b"".join(np.asarray(part, "<i4").tobytes() for part in parts))


def write_dense(path, counts, kind):
    header = np.zeros(256, "<i4")
    header[:3] = [*counts.shape, kind]
    path.write_bytes(header.tobytes() + counts.astype("<i4" if kind == 1 else "<f8").tobytes())


def write_hdf5(path, counts):
    with h5py.File(path, "w") as file:
        file["num_pix"] = np.array([counts.shape[1]])
        for name in ("place_ones", "place_multi", "count_multi"):
            data = file.create_dataset(name, (len(counts),), h5py.vlen_dtype(np.int32))
            for n, frame in enumerate(counts):
                lit = np.flatnonzero(frame == 1 if name == "place_ones" else frame > 1)
                data[n] = frame[lit] if name == "count_multi" else lit


def test_three_files_hold_the_same_frames_and_the_legacy_one_others(tiny):
    same = [all_frames(open_source([tiny / n])) for n in ("photons_make_data.h5", "photons.h5", "photons.emc")]
    legacy = all_frames(open_source([tiny / "photons_legacy_make_data.emc"]))
    assert same[0].shape == legacy.shape == (50, 4096)
    assert np.array_equal(same[0], same[1]) and np.array_equal(same[0], same[2])
    assert not np.array_equal(same[0], legacy)
    assert 300 < legacy.sum() / 50 < 700


def test_no_photon_falls_behind_the_beam_stop(tiny):
    # true only if pixel order in photons and detector files is understood alike
    source = open_source([tiny / "photons.emc", tiny / "det_sim.h5"])
    assert all_frames(source)[:, source.detector.mask == BAD].sum() == 0


def test_detector_files_agree(tiny):
    (hdf5, _), (text, _) = read_detector(tiny / "det_sim.h5"), read_detector(tiny / "det_sim.dat")
    np.testing.assert_allclose(hdf5.q, text.q, atol=1e-12)
    np.testing.assert_allclose(hdf5.response, text.response, atol=1e-12)
    assert np.array_equal(hdf5.mask, text.mask)
    assert hdf5.ewald_radius == text.ewald_radius == 250
    assert hdf5.units == "detector_voxel" and hdf5.wavelength_A is None


def test_detector_lies_on_its_ewald_sphere_downstream_and_takes_an_energy(tiny):
    detector, notes = read_detector(tiny / "det_sim.h5")
    assert notes == ()
    np.testing.assert_allclose(np.linalg.norm(detector.q + np.array([0, 0, 250.0]), axis=1), 250, rtol=1e-9)
    assert (detector.q[:, 2] <= 0).all()
    in_angstrom = detector.with_energy(12398.419843320026 / 4.4)
    assert in_angstrom.wavelength_A == pytest.approx(4.4)
    np.testing.assert_allclose(in_angstrom.q, detector.q / 1100, rtol=1e-9)


def test_our_preset_is_the_same_experiment(tiny):
    theirs, _ = read_detector(tiny / "det_sim.h5")
    ours = PRESETS["dragonfly-64"].detector()

    def ordered(values):  # their pixels run along y first, from the lower right seen downstream
        return values.reshape(64, 64, -1)[::-1, ::-1].transpose(1, 0, 2).reshape(4096, -1).squeeze()

    np.testing.assert_allclose(ordered(ours.q), theirs.q / 1100, atol=1e-9)
    np.testing.assert_allclose(ordered(ours.response), theirs.response, rtol=1e-9)
    assert np.array_equal(ordered(ours.mask), theirs.mask)


def test_old_detectors_are_turned_downstream_and_it_is_said(tiny, tmp_path):
    new, _ = read_detector(tiny / "det_sim.h5")
    lines = (tiny / "det_sim.dat").read_text().splitlines()
    columns = np.loadtxt(lines[1:]) * [1, 1, -1, 1, 1]
    old = tmp_path / "old.dat"
    np.savetxt(old, columns, header="4096", comments="")  # the oldest header has the number of pixels only
    detector, notes = read_detector(old)
    np.testing.assert_allclose(detector.q, new.q, atol=1e-12)
    assert detector.ewald_radius == pytest.approx(250, rel=1e-6)
    assert len(notes) == 2 and "flipped" in notes[0] and "Ewald" in notes[1]


def test_any_frames_can_be_read_in_any_order(tiny):
    for name in ("photons.emc", "photons.h5"):
        source = open_source([tiny / name])
        every = all_frames(source)
        wanted = np.array([49, 3, 3, 0, 17, 18])
        got = source.read(wanted)
        assert np.array_equal(got.dense(), every[wanted])
        assert got.index.tolist() == wanted.tolist()
        assert len(source.read(np.array([], int))) == 0
        late = list(source.batches(20, start=35))
        assert [b.index[0] for b in late] == [35] and len(late[0]) == 15
        with pytest.raises(IndexError):
            source.read(np.array([50]))


def test_files_join_in_the_order_given(tiny):
    names = ["photons.emc", "photons_legacy_make_data.emc"]
    joined = open_source([tiny / n for n in names])
    apart = np.concatenate([all_frames(open_source([tiny / n])) for n in names])
    assert joined.n_frames == 100
    assert np.array_equal(all_frames(joined, 33), apart)
    assert np.array_equal(joined.read(np.array([51, 2])).dense(), apart[[51, 2]])
    assert np.concatenate([b.index for b in joined.batches(33)]).tolist() == list(range(100))


@ROUND_TRIPS
@given(counts=arrays(np.int32, (4, 6), elements=st.integers(0, 300)))
def test_counts_survive_every_layout(tmp_path, counts):
    writers = {
        "sparse": lambda p: write_sparse(p, counts),
        "int": lambda p: write_dense(p, counts, 1),
        "double": lambda p: write_dense(p, counts, 2),
        "hdf5": lambda p: write_hdf5(p, counts),
    }
    for name, write in writers.items():
        path = tmp_path / name
        write(path)
        source = (Hdf5Photons if name == "hdf5" else BinaryPhotons)(path)
        assert np.array_equal(all_frames(source, 3), counts)
        frames = next(source.batches(4))
        assert (frames.count >= 1).all()
        assert all((np.diff(frames.pixel[a:b]) > 0).all() for a, b in zip(frames.start, frames.start[1:], strict=False))


def test_pixels_in_any_order_and_listed_twice_add_up(tmp_path):
    header = np.zeros(256, "<i4")
    header[:2] = [1, 8]
    body = np.array([3, 1, 5, 2, 5, 7, 4], "<i4")  # ones at 5, 2, 5; four photons at 7
    (tmp_path / "a.emc").write_bytes(header.tobytes() + body.tobytes())
    frames = next(BinaryPhotons(tmp_path / "a.emc").batches(1))
    assert frames.pixel.tolist() == [2, 5, 7]
    assert frames.count.tolist() == [1, 2, 4]


@pytest.mark.parametrize("cut", [1030, 5000, -4])
def test_truncated_binary_is_said_so(tiny, tmp_path, cut):
    path = tmp_path / "cut.emc"
    path.write_bytes((tiny / "photons.emc").read_bytes()[:cut])
    with pytest.raises(InputError, match=r"cut\.emc is truncated: .* copy it again"):
        open_source([path])


@pytest.mark.parametrize("cut", [2000, 40_000, -8])
def test_truncated_hdf5_is_said_so(tiny, tmp_path, cut):
    path = tmp_path / "cut.h5"
    path.write_bytes((tiny / "photons.h5").read_bytes()[:cut])
    with pytest.raises(InputError, match=r"cut\.h5 is truncated: copy it again"):
        open_source([path])


@pytest.mark.parametrize(
    ("frames", "pixels"), [(2**31 - 1, 4096), (50, 2**31 - 1), (-5, 4096), (50, -1), (0, 4096), (50, 0)]
)
@pytest.mark.parametrize("kind", [0, 1, 2])
def test_absurd_headers_are_refused_without_allocating(tiny, tmp_path, frames, pixels, kind):
    path = tmp_path / "absurd.emc"
    content = bytearray((tiny / "photons.emc").read_bytes())
    content[:12] = np.array([frames, pixels, kind], "<i4").tobytes()
    path.write_bytes(content)
    if (frames, pixels, kind) == (50, 2**31 - 1, 0):  # a sparse file may have few photons on many pixels
        assert open_source([path]).n_frames == 50
        return
    with pytest.raises(InputError, match=r"absurd\.emc (is truncated|claims)"):
        open_source([path])


@pytest.mark.parametrize(
    ("value", "words"), [(np.nan, "NaN"), (-1.0, "negative"), (0.5, "fractions"), (np.inf, "NaN or infinite")]
)
def test_values_that_are_no_counts_name_the_frame(tmp_path, value, words):
    counts = np.ones((12, 5))
    counts[9, 2] = value
    write_dense(tmp_path / "bad.emc", counts, 2)
    with pytest.raises(InputError, match=rf"bad\.emc: frame 9 has {words}"):
        open_source([tmp_path / "bad.emc"])


def test_photons_outside_the_frame_are_refused(tmp_path):
    write_sparse(tmp_path / "out.emc", np.eye(6, dtype=int))
    content = bytearray((tmp_path / "out.emc").read_bytes())
    content[4:8] = np.array([3], "<i4").tobytes()
    (tmp_path / "out.emc").write_bytes(content)
    with pytest.raises(InputError, match="frame 3 has photons outside its 3 pixels"):
        open_source([tmp_path / "out.emc"])


def test_all_zero_frames_are_refused(tmp_path):
    for name, write in (("a", write_sparse), ("b", write_hdf5)):
        write(tmp_path / name, np.zeros((20, 9), int))
        with pytest.raises(InputError, match="first 20 frames hold no photons"):
            open_source([tmp_path / name])


def test_incomplete_files_name_what_is_missing(tiny, tmp_path):
    for name, dataset in (("photons.h5", "count_multi"), ("det_sim.h5", "qz")):
        path = tmp_path / name
        path.write_bytes((tiny / name).read_bytes())
        with h5py.File(path, "a") as file:
            del file[dataset]
        with pytest.raises(InputError, match=f"has no dataset {dataset}"):
            open_source([path]) if name == "photons.h5" else read_detector(path)


def test_detector_with_nan_or_wrong_radius_is_refused(tiny, tmp_path):
    for dataset, value, words in (("qx", np.nan, "finite"), ("ewald_rad", 100.0, "sphere")):
        path = tmp_path / f"{dataset}.h5"
        path.write_bytes((tiny / "det_sim.h5").read_bytes())
        with h5py.File(path, "a") as file:
            if dataset == "qx":
                file["qx"][7] = value
            else:
                file["ewald_rad"][()] = value
        with pytest.raises(InputError, match=words):
            read_detector(path)


def test_a_detector_whose_pixels_all_look_one_way_is_refused(tiny, tmp_path):
    path = tmp_path / "zero.h5"
    path.write_bytes((tiny / "det_sim.h5").read_bytes())
    with h5py.File(path, "a") as file:
        for name in ("qx", "qy", "qz"):
            file[name][:] = 0
    with pytest.raises(InputError, match=r"zero\.h5: qx and qy are the same for all pixels"):
        read_detector(path)


def test_cut_text_detector_says_how_many_pixels_are_missing(tiny, tmp_path):
    path = tmp_path / "cut.dat"
    path.write_text("\n".join((tiny / "det_sim.dat").read_text().splitlines()[:100]))
    with pytest.raises(InputError, match="promises 4,096 pixels but has 99"):
        read_detector(path)


# ---- config.ini, and what Dragonfly makes of it

CONFIG = """# as Dragonfly's own example
[parameters]
detd = 300
lambda = 4.4
detsize = 64
pixsize = 1.2
stoprad = 4
polarization = x

[make_detector]
out_detector_file = {detector}

[make_data]
num_data = 50
out_photons_file = photons.emc
in_detector_file = make_detector:::out_detector_file

[emc]
in_photons_file = make_data:::out_photons_file
in_detector_file = make_detector:::out_detector_file
num_div = 6
"""


def write_config(tiny, tmp_path, text=CONFIG, detector="det_sim.h5"):
    for name in ("photons.emc", "det_sim.h5", "photons_legacy_make_data.emc"):
        (tmp_path / name).write_bytes((tiny / name).read_bytes())
    (tmp_path / "config.ini").write_text(text.format(detector=detector))
    return tmp_path / "config.ini"


def test_a_config_gives_photons_detector_and_wavelength_in_one_drop(tiny, tmp_path):
    source = open_source([write_config(tiny, tmp_path)])
    assert np.array_equal(all_frames(source), all_frames(open_source([tiny / "photons.emc"])))
    assert source.detector.wavelength_A == pytest.approx(4.4, rel=1e-9)
    known, _ = read_detector(tiny / "det_sim.h5")
    np.testing.assert_allclose(source.detector.q, known.q / 1100, atol=1e-12)
    assert describe(source).missing == []


def test_a_config_without_its_detector_file_makes_the_same_detector(tiny, tmp_path):
    source = open_source([write_config(tiny, tmp_path, detector="gone.h5")])
    known, _ = read_detector(tiny / "det_sim.h5")
    np.testing.assert_allclose(source.detector.q, known.q / 1100, atol=1e-9 * np.abs(known.q).max() / 1100)
    np.testing.assert_allclose(source.detector.response, known.response, rtol=1e-9)
    assert np.array_equal(source.detector.mask, known.mask)
    assert any("made from the numbers in config.ini" in note for note in describe(source).notes)
    assert CENTRE_ASSUMED in source.notes
    said = CONFIG.replace("[make_detector]", "[make_detector]\ncenter = 31.5 31.5")
    assert CENTRE_ASSUMED not in open_source([write_config(tiny, tmp_path, said, detector="gone.h5")]).notes


def test_a_config_may_name_a_list_of_photons(tiny, tmp_path):
    text = CONFIG.replace("in_photons_file = make_data:::out_photons_file", "in_photons_list = runs.txt")
    (tmp_path / "runs.txt").write_text("photons.emc\nphotons_legacy_make_data.emc\n")
    source = open_source([write_config(tiny, tmp_path, text)])
    assert source.n_frames == 100 and source.identity(np.array([99]))["index"].tolist() == [49]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("out_photons_file = photons.emc", "out_photons_file = gone.emc", r"gone\.emc"),
        ("make_data:::out_photons_file", "emc:::in_photons_file", "refers to itself"),
        ("lambda = 4.4", "lambda = -1", "lambda is -1"),
        ("detd = 300", "detd = 300 mm", "detd in .parameters. is no number"),
        ("detsize = 64", "detsize = 65", "4,225 pixels but its photons 4,096"),
    ],
)
def test_configs_that_cannot_be_are_one_sentence(tiny, tmp_path, old, new, words):
    path = write_config(tiny, tmp_path, CONFIG.replace(old, new), detector="gone.h5")
    with pytest.raises(InputError, match=words) as caught:
        open_source([path])
    assert "config.ini" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("count", [49, 51, 25])
def test_a_header_that_miscounts_its_frames_is_refused(tiny, tmp_path, count):
    content = bytearray((tiny / "photons.emc").read_bytes())
    content[:4] = np.array([count], "<i4").tobytes()
    (tmp_path / "odd.emc").write_bytes(content)
    with pytest.raises(InputError, match=r"odd\.emc (is truncated|has 60,680 bytes, but the frames that its header)"):
        open_source([tmp_path / "odd.emc"])
    write_dense(tmp_path / "dense.emc", np.ones((5, 7), int), 1)
    content = (tmp_path / "dense.emc").read_bytes() + b"\0\0\0\0"
    (tmp_path / "dense.emc").write_bytes(content)
    with pytest.raises(InputError, match="header counts fill 1,164"):
        open_source([tmp_path / "dense.emc"])


def test_either_detector_file_goes_with_every_photons_file(tiny):
    names = ("photons_make_data.h5", "photons.h5", "photons.emc", "photons_legacy_make_data.emc")
    q = [open_source([tiny / n, tiny / d]).detector.q for n in names for d in ("det_sim.h5", "det_sim.dat")]
    for other in q[1:]:
        np.testing.assert_allclose(other, q[0], atol=1e-9 * np.abs(q[0]).max())


def test_an_output_is_read_as_dragonfly_slices_it(tmp_path):
    # its own slice of the model, by its own matrix (scalar-first quaternions), is ours by our pose
    rng = np.random.default_rng(0)
    quaternions = rng.normal(size=(20, 4))
    quaternions /= np.linalg.norm(quaternions, axis=1, keepdims=True)
    model = rng.random((1, 21, 21, 21))
    with h5py.File(tmp_path / "output_030.h5", "w") as file:
        file["intens"], file["quaternions"] = model, quaternions
        file["orientations"] = np.array([3, -1, 7], "i4")
    truth = read_truth(tmp_path / "output_030.h5")
    assert classify(tmp_path / "output_030.h5") == "volume"
    w, x, y, z = quaternions[3]
    matrix = np.array([
        [1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)],
        [2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (w * x + y * z)],
        [2 * (w * y + x * z), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)],
    ])  # fmt: skip
    np.testing.assert_allclose(truth.rotation[0], matrix, atol=1e-6)
    assert np.isnan(truth.rotation[1]).all()
    assert truth.intensity.data[4, 5, 6] == np.float32(model[0, 6, 5, 4])
    assert truth.intensity.units == "detector_voxel"
    for name, words in (("quaternions", "poses are unknown"), ("intens", "no dataset rot_lab_to_volume")):
        with h5py.File(tmp_path / "output_030.h5", "a") as file:
            del file[name]
        with pytest.raises(InputError, match=words):
            read_truth(tmp_path / "output_030.h5")
