"""CrystFEL geometries: pixels where another program puts them, and one sentence for what cannot be read."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_xrai.core.detector import square_detector
from napari_xrai.core.frames import BAD, Frames
from napari_xrai.io.geom_text import is_geom, read_geom
from napari_xrai.io.open import classify, open_source
from napari_xrai.io.source import Beam, InputError

AGIPD = Path(__file__).parents[1] / "data" / "agipd_1m.npz"
HEAD = "photon_energy = 6000\nclen = 0.7\nres = 5000\n"


def panel_text(name, panel, more=""):
    """A panel as EXtra-geom writes it."""
    fs, ss, (corner_x, corner_y, offset) = panel[:3], panel[3:6], panel[6:]
    words = [" ".join(f"{v:+.17g}{axis}" for v, axis in zip(vector, "xyz", strict=True)) for vector in (fs, ss)]
    return (
        f"{name}/fs = {words[0]}\n{name}/ss = {words[1]}\n{name}/corner_x = {corner_x!r}\n"
        f"{name}/corner_y = {corner_y!r}\n{name}/coffset = {offset!r}\n{more}"
    )


@pytest.fixture(scope="module")
def agipd(tmp_path_factory):
    """The geometry file of an AGIPD-1M at 70 cm, out of its figures; and where EXtra-geom puts some of its pixels."""
    known = np.load(AGIPD)
    text = "; AGIPD-1M\n\ndata = /entry_1/instrument_1/detector_1/data ;\ndim0 = %\nres = 5000.0 ; pixels per metre\n"
    text += "photon_energy = 6000.0\nclen = 0.7073925441308975\nrigid_group_p0 = p0a0,p0a1\n"
    for n, panel in enumerate(known["panel"].tolist()):
        name, tile = f"p{n // 8}a{n % 8}", n % 8
        where = f"{name}/dim1 = {n // 8}\n{name}/dim2 = ss\n{name}/dim3 = fs\n{name}/min_fs = 0\n{name}/max_fs = 127\n"
        text += panel_text(name, panel, where + f"{name}/min_ss = {64 * tile}\n{name}/max_ss = {64 * tile + 63}\n")
    path = tmp_path_factory.mktemp("geom") / "agipd.geom"
    path.write_text(text)
    return path, known


@pytest.mark.parametrize("shape", [(16, 512, 128), (8192, 128), (1048576,)])
def test_every_pixel_is_where_extra_geom_puts_it(agipd, shape):
    path, known = agipd
    centre, area, bad = read_geom(path).placed(shape)
    assert np.abs(centre[known["pixel"]] - known["xyz_m"]).max() < 1e-6 * 2e-4
    np.testing.assert_allclose(np.linalg.norm(area, axis=1), 4e-8, rtol=1e-4)
    assert not bad.any()


def test_the_beam_and_the_distance_come_from_the_file_unless_given(agipd):
    path, known = agipd
    detector, notes, missing = read_geom(path).detector((16, 512, 128))
    assert detector.energy_eV == pytest.approx(6000) and notes == () and missing == ("polarisation",)
    at = known["xyz_m"] + [0, 0, 0.7073925441308975]
    q = (at / np.linalg.norm(at, axis=1)[:, None] - [0, 0, 1]) / detector.wavelength_A
    np.testing.assert_allclose(detector.q[known["pixel"]], q, rtol=1e-9, atol=1e-12)
    nearer, _, missing = read_geom(path).detector((16, 512, 128), Beam(9000.0, 0.35, None, "x"))
    assert missing == () and nearer.energy_eV == pytest.approx(9000)
    assert np.abs(nearer.q[:, :2]).max() > 2.5 * np.abs(detector.q[:, :2]).max()


def square_geom(rows, columns, more=""):
    """The square detector of four numbers, as a geometry file."""
    return (
        HEAD + f"a/min_ss = 0\na/max_ss = {rows - 1}\na/min_fs = 0\na/max_fs = {columns - 1}\n"
        f"a/corner_x = {columns / 2}\na/corner_y = {rows / 2}\na/fs = -x\na/ss = -y\n{more}"
    )


def test_a_square_detector_is_the_one_of_four_numbers(tmp_path):
    path = tmp_path / "square.geom"
    path.write_text(square_geom(6, 4))
    detector, _, _ = read_geom(path).detector((6, 4), Beam(polarization="y"))
    nominal = square_detector((6, 4), 2e-4, 0.7, 6000.0, polarization="y")
    np.testing.assert_allclose(detector.q, nominal.q, atol=1e-12)
    np.testing.assert_allclose(detector.response, nominal.response, rtol=1e-9)


@pytest.mark.parametrize(
    ("clen", "energy"),
    [("0.7 m", "6 keV"), ("700 mm", "6000"), ("0.7", "6000 eV"), ("/LCLS/detector_z", "/LCLS/photon_energy_eV eV"),
     ("/LCLS/z_in_metres m", "/LCLS/photon_energy_eV")],
)  # fmt: skip
def test_lengths_and_energies_in_whatever_unit_and_place(tmp_path, clen, energy):
    frames = tmp_path / "frames.h5"
    with h5py.File(frames, "w") as file:
        file["LCLS/detector_z"] = np.full(5, 700.0)
        file["LCLS/z_in_metres"] = 0.7
        file["LCLS/photon_energy_eV"] = np.full(5, 6000.0)
    path = tmp_path / "a.geom"
    path.write_text(square_geom(6, 4).replace("clen = 0.7", f"clen = {clen}").replace("= 6000", f"= {energy}"))
    detector, _, missing = read_geom(path).detector((6, 4), frames=frames)
    assert missing == ("polarisation",)
    np.testing.assert_allclose(detector.q, square_detector((6, 4), 2e-4, 0.7, 6000.0).q, atol=1e-12)


def test_a_wavelength_is_an_energy(tmp_path):
    path = tmp_path / "a.geom"
    for value in ("2.5 A", "2.5e-10 m", "2.5e-10"):
        path.write_text(square_geom(6, 4).replace("photon_energy = 6000", f"wavelength = {value}"))
        assert read_geom(path).detector((6, 4))[0].wavelength_A == pytest.approx(2.5)


def test_bad_regions_edges_and_ignored_panels_are_masked(tmp_path):
    path = tmp_path / "a.geom"
    more = "badspot/min_ss = 1\nbadspot/max_ss = 2\nbadspot/min_fs = 0\nbadspot/max_fs = 1\nbadspot/panel = a\n"
    more += "badlab/min_x = -2\nbadlab/max_x = -1\nbadlab/min_y = -9\nbadlab/max_y = 9\n"
    path.write_text(square_geom(6, 4, more))
    bad = read_geom(path).detector((6, 4))[0].mask.reshape(6, 4) == BAD
    expected = np.zeros((6, 4), bool)
    expected[1:3, :2] = expected[:, 3] = True
    assert np.array_equal(bad, expected)
    path.write_text("mask_edge_pixels = 2\n" + square_geom(6, 5))
    assert np.argwhere(read_geom(path).detector((6, 5))[0].mask.reshape(6, 5) != BAD).tolist() == [[2, 2], [3, 2]]
    # columns that no panel covers, and a panel that is switched off
    path.write_text(square_geom(6, 4, "a/no_index = 1\n"))
    assert (read_geom(path).placed((6, 4))[2]).all()
    path.write_text(square_geom(6, 4))
    assert read_geom(path).placed((6, 6))[2].reshape(6, 6).sum(axis=0).tolist() == [0, 0, 0, 0, 6, 6]


@pytest.mark.parametrize("old", [True, False])
def test_masks_in_hdf5_reject_by_their_bits(tmp_path, old):
    bits = np.array([[0, 1, 2, 4], [8, 9, 0x18, 0xFFFF]], np.uint16)
    with h5py.File(tmp_path / "mask.h5", "w") as file:
        file["m"] = bits
    names = ("mask", "mask_file", "mask_good", "mask_bad")
    names = names if old else ("mask3_data", "mask3_file", "mask3_goodbits", "mask3_badbits")
    values = ("/m", "mask.h5", "0x8", "0x10")
    path = tmp_path / "a.geom"
    text = "".join(f"{n} = {v}\n" for n, v in zip(names, values, strict=True))
    path.write_text(text + square_geom(2, 4))
    mask = read_geom(path).detector((2, 4))[0].mask
    assert np.array_equal(mask == BAD, ((bits & 0x8 == 0) | (bits & 0x10 != 0)).ravel())
    (tmp_path / "mask.h5").unlink()
    with pytest.raises(InputError, match=r"names the mask file mask\.h5, which is not there: bring it back"):
        read_geom(path).detector((2, 4))


def test_defaults_count_for_panels_mentioned_later(tmp_path):
    path = tmp_path / "a.geom"
    b = square_geom(6, 4).replace(HEAD, "").replace("a/", "b/")
    path.write_text(square_geom(6, 4, "coffset = 0.01\n" + b))
    a, b = read_geom(path).panels
    assert a.corner_m[2] == 0 and b.corner_m[2] == 0.01


def test_a_file_of_frames_without_geometry_takes_a_geom_and_keeps_its_own_mask(tmp_path):
    with h5py.File(tmp_path / "virtual.cxi", "w") as file:  # as programs of the European XFEL write it
        group = file.create_group("entry_1/instrument_1/detector_1")
        group["data"] = np.random.default_rng(0).poisson(1.0, (3, 2, 4, 5)).astype(np.float32)
        group["mask"] = np.zeros((3, 2, 4, 5), np.uint32)
        group["mask"][:, 1, 2, 3] = 0x800
        file["entry_1/trainId"] = np.arange(3)
        file["entry_1/data_1"] = h5py.SoftLink("/entry_1/instrument_1/detector_1")
        file["cxi_version"] = [150]
    text = HEAD + "dim0 = %\n"
    for module, corner in enumerate((10, -10)):
        name = f"m{module}"
        text += f"{name}/dim1 = {module}\n{name}/dim2 = ss\n{name}/dim3 = fs\n{name}/corner_x = {corner}\n"
        text += f"{name}/corner_y = 2\n{name}/min_ss = 0\n{name}/max_ss = 3\n{name}/min_fs = 0\n{name}/max_fs = 4\n"
    (tmp_path / "two.geom").write_text(text)
    assert classify(tmp_path / "two.geom") == "detector"
    source = open_source([tmp_path / "virtual.cxi", tmp_path / "two.geom"])
    assert np.flatnonzero(source.detector.mask).tolist() == [1 * 20 + 2 * 5 + 3]
    assert source.detector.energy_eV == pytest.approx(6000)


BROKEN = [
    ("res = 5000\n", "describes no panel"),
    (square_geom(6, 4).replace("a/corner_x = 2.0\n", ""), "panel a has no corner_x"),
    (square_geom(6, 4).replace("-x", "north"), "fs = north is no direction"),
    (square_geom(6, 4).replace("a/fs = -x", "a/fs = 2y"), "fs and ss are parallel"),
    (square_geom(6, 4).replace("max_ss = 5", "max_ss = -1"), "spans ss 0…-1"),
    (square_geom(6, 4).replace("max_ss = 5", "max_ss = 1e99"), "is no number"),
    (square_geom(6, 4).replace("res = 5000", "res = 0"), "1/res is inf"),
    (square_geom(6, 4).replace("res = 5000", "res = 0.005"), "that looks like 200 µm: give 0.0002 m"),
    (square_geom(6, 4).replace("clen = 0.7", "clen = 700"), "clen is 700 m, .* looks like 700 mm: give 0.7 m"),
    (square_geom(6, 4).replace("6000", "6"), "6 eV, .* looks like 6 keV: give 6000 eV"),
    (square_geom(6, 4).replace("clen = 0.7\n", ""), "how far the detector is"),
    (square_geom(6, 4).replace("clen = 0.7\n", "clen\n"), "line 2: 'clen' is not of the form key = value"),
    (square_geom(6, 4).replace("photon_energy", "electron_voltage"), "electron microscope"),
    ("dim0 = fs\ndim1 = ss\n" + square_geom(6, 4), "ss once and fs once after it"),
    ("dim99999999999 = ss\n" + square_geom(6, 4), "too many dimensions"),
    (square_geom(6, 4, "badx/min_ss = 1\n"), "badx: a bad region needs"),
    (square_geom(6, 4, "badx/min_ss=1\nbadx/max_ss=1\nbadx/min_fs=1\nbadx/max_fs=1\n"), "no panel is given"),
    (square_geom(60, 4), r"describes frames of shape \(60, 4\) but these have shape \(6, 4\)"),
]


@pytest.mark.parametrize(("text", "words"), BROKEN, ids=[words[:20] for _, words in BROKEN])
def test_what_cannot_be_read_is_one_sentence(tmp_path, text, words):
    path = tmp_path / "a.geom"
    path.write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        read_geom(path).detector((6, 4))
    assert "a.geom" in str(caught.value) and "\n" not in str(caught.value)


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="abdx/=-+.0123456789 \n;%sf", max_size=60), st.integers(0, 200), st.integers(0, 40))
def test_any_damage_gives_a_geometry_or_one_sentence(tmp_path_factory, noise, at, cut):
    text = square_geom(6, 4)
    path = tmp_path_factory.mktemp("g") / "a.geom"
    path.write_text(text[:at] + noise + text[at + cut :])
    try:
        detector = read_geom(path).detector((6, 4))[0]
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert np.isfinite(detector.q).all()


def test_other_text_is_no_geometry():
    for text in ("", "hello\n", "a = 1\nb = 2\n", "[parameters]\ndetd = 300\nlambda = 4\n", "res\0 = 5\nclen = 1\n"):
        assert not is_geom(text.encode())
    assert is_geom(HEAD.encode())


def test_frames_of_four_numbers_need_no_file(tmp_path):
    with h5py.File(tmp_path / "bare.cxi", "w") as file:
        file["entry_1/data_1/data"] = np.ones((3, 6, 4), np.uint8)
    bare = open_source([tmp_path / "bare.cxi"], energy_eV=6000.0, distance_m=0.7, pixel_size_m=2e-4, polarization="x")
    np.testing.assert_allclose(
        bare.detector.q, square_detector((6, 4), 2e-4, 0.7, 6000.0, polarization="x").q, atol=1e-12
    )
    wrong = [
        ("distance_m", 700.0, "700 mm: give 0.7 m"), ("pixel_size_m", 200.0, "200 µm"),
        ("energy_eV", 6.0, "6 keV: give 6000 eV"), ("energy_eV", 9.6e-16, "give 5991"),
    ]  # fmt: skip
    for name, value, words in wrong:
        with pytest.raises(InputError, match=words):
            open_source([tmp_path / "bare.cxi"], **{name: value})
    assert isinstance(next(bare.batches(3)), Frames)
