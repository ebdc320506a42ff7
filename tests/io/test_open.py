"""The door: what a file is, said in words; what cannot be used, said in one sentence."""

import json
from dataclasses import replace

import h5py
import imageio.v3 as imageio
import numpy as np
import pytest
import tifffile

from napari_xrai.core.frames import BAD, MERGE_ONLY, Volume
from napari_xrai.io.mask import read_mask
from napari_xrai.io.mrc import write_mrc
from napari_xrai.io.open import classify, describe, open_source
from napari_xrai.io.source import InputError


def test_content_decides_not_the_name(tiny, tmp_path):
    for original, kind in (
        ("photons.h5", "frames"), ("photons.emc", "frames"), ("det_sim.h5", "detector"), ("det_sim.dat", "detector"),
    ):  # fmt: skip
        disguised = tmp_path / f"{original.replace('.', '_')}.png"
        disguised.write_bytes((tiny / original).read_bytes())
        assert classify(disguised) == kind


def test_every_kind_is_recognised(tiny, tmp_path):
    mask = np.zeros((64, 64), np.uint8)
    mask[0] = BAD
    np.save(tmp_path / "mask.npy", mask)
    mask.tofile(tmp_path / "mask.byt")
    with h5py.File(tmp_path / "mask.h5", "w") as file:
        file["mask"] = mask
    assert {classify(tmp_path / f"mask.{e}") for e in ("npy", "byt", "h5")} == {"mask"}
    write_mrc(Volume(np.zeros((4, 4, 4), np.float32), 1.0, "angstrom"), tmp_path / "a.map", "x")
    assert classify(tmp_path / "a.map") == "volume"
    (tmp_path / "notes.txt").write_text("not data\n")
    (tmp_path / "empty").write_bytes(b"")
    assert classify(tmp_path / "notes.txt") == classify(tmp_path / "empty") == "unknown"
    run = tmp_path / "run"
    run.mkdir()
    assert classify(run) == "unknown"
    (run / "settings.json").write_text(json.dumps({"input": {}, "engine": {}}))
    assert classify(run) == "run"
    assert classify(tiny) == "frames"
    assert classify(tmp_path / "nothing here") == "unknown"


@pytest.mark.parametrize("mean", [0.003, 0.1, 0.4])
def test_a_few_dim_frames_are_no_mask_and_modules_of_bad_pixels_are_no_frames(tmp_path, mean):
    rng = np.random.default_rng(0)
    frames = np.minimum(rng.poisson(mean, (5, 40, 30)), 2).astype(np.uint8)
    mask = np.zeros((16, 64, 32), np.uint8)
    mask[3], mask[:, 20:24, 5:12], mask[:, :, 0], mask[:, 0], mask[:, 31] = 2, 2, 1, 2, 2
    for name, values, kind in (("frames", frames, "frames"), ("mask", mask, "mask")):
        np.save(tmp_path / f"{name}.npy", values)
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["values"] = values
        assert classify(tmp_path / f"{name}.npy") == classify(tmp_path / f"{name}.h5") == kind
    with h5py.File(tmp_path / "scattered.h5", "w") as file:
        file["good_pixel_mask"] = frames  # its name says what is in there
    assert classify(tmp_path / "scattered.h5") == "mask"
    source = open_source([tmp_path / "frames.h5"])
    assert np.array_equal(next(source.batches(5)).dense(), frames.reshape(5, -1))


def test_the_sentence_says_what_was_found(tiny):
    found = describe(open_source([tiny / "photons.emc", tiny / "det_sim.h5"]))
    assert found.sentence == "50 frames · 4,096 pixels · 453 photons/frame · wavelength not in these files"
    assert found.as_json() == {
        "format": "Dragonfly photons (binary)", "frames": 50, "shape": [4096],
        "photons_per_frame": pytest.approx(452.94, abs=0.5), "missing": ["wavelength"],
    }  # fmt: skip
    json.dumps(found.as_json())
    assert describe(open_source([tiny / "photons.emc"])).missing == ["geometry"]
    given = open_source([tiny / "photons.emc"], detector=tiny / "det_sim.dat", energy_eV=2817.82)
    assert describe(given).missing == []
    assert given.detector.wavelength_A == pytest.approx(4.4, rel=1e-5)


def test_one_gesture_may_mix_frames_detector_and_mask(tiny, tmp_path):
    mask = np.zeros(4096, np.uint8)
    mask[2000:2010] = BAD
    np.save(tmp_path / "mine.npy", mask)
    source = open_source([tmp_path / "mine.npy", tiny / "det_sim.h5", tiny / "photons.h5"])
    assert (source.detector.mask[2000:2010] == BAD).all()
    assert (source.detector.mask == MERGE_ONLY).sum() == 1000  # laid over the detector's own
    assert source.format == "Dragonfly photons (HDF5)"


def test_a_folder_of_frames_is_read_in_order_of_names(tiny, tmp_path):
    (tmp_path / "r10.emc").write_bytes((tiny / "photons.emc").read_bytes())
    (tmp_path / "r9.emc").write_bytes((tiny / "photons_legacy_make_data.emc").read_bytes())
    (tmp_path / "readme.txt").write_text("hello world\nthis is no frame")
    for given in (tmp_path, tmp_path / "r*.emc"):
        source = open_source([given])
        assert [p.name for p in source.paths] == ["r9.emc", "r10.emc"] and source.n_frames == 100
    with pytest.raises(InputError, match=r"nothing fits .*x\*\.emc"):
        open_source([tmp_path / "x*.emc"])


def test_a_folder_finds_its_detector_and_counts_no_frame_twice(tiny):
    before = {path: path.stat().st_mtime_ns for path in tiny.iterdir()}
    source = open_source([tiny])
    assert source.n_frames == 100 and source.detector is not None and source.missing == ("wavelength",)
    left_out = [note for note in source.notes if "left out" in note]
    assert len(left_out) == 2 and all("photons.emc once more" in note for note in left_out)
    assert {path: path.stat().st_mtime_ns for path in tiny.iterdir()} == before  # nothing was written there


def test_mask_files_agree_whatever_their_format(tiny, tmp_path):
    mask = np.random.default_rng(0).integers(0, 3, (64, 64)).astype(np.uint8)
    np.save(tmp_path / "m.npy", mask.astype(np.int64))
    mask.tofile(tmp_path / "m.byt")
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file["anything"] = mask
    with h5py.File(tmp_path / "more.h5", "w") as file:
        file["entry/a"], file["entry/b"] = mask, mask
    imageio.imwrite(tmp_path / "m.png", mask)
    imageio.imwrite(tmp_path / "colour.png", np.repeat(np.where(mask == BAD, 255, mask)[..., None], 3, axis=2))
    tifffile.imwrite(tmp_path / "m.tif", np.where(mask == BAD, 255, mask).astype(np.uint8))
    columns = np.loadtxt(tiny / "det_sim.dat", skiprows=1)
    columns[:, 4] = mask.ravel()
    np.savetxt(tmp_path / "m.dat", columns, header="4096 250 250", comments="")
    for name in ("m.npy", "m.byt", "m.h5", "more.h5:/entry/b", "m.png", "colour.png", "m.tif", "m.dat"):
        assert np.array_equal(read_mask(tmp_path / name, (64, 64)), mask.ravel()), name


def test_a_mask_may_be_that_of_frames_or_of_a_geometry(tmp_path):
    with h5py.File(tmp_path / "a.cxi", "w") as file:
        file["entry_1/data_1/data"] = np.ones((2, 2, 3), np.uint8)
        file["entry_1/instrument_1/detector_1/mask"] = np.array([[0, 0x80, 0], [0x2, 0, 0x1000]], np.uint32)
    assert read_mask(tmp_path / "a.cxi", (2, 3)).tolist() == [0, 2, 0, 2, 0, 0]
    text = "res = 5000\na/min_ss = 0\na/max_ss = 1\na/min_fs = 0\na/max_fs = 1\na/corner_x = 0\na/corner_y = 0\n"
    (tmp_path / "a.geom").write_text(text)
    assert read_mask(tmp_path / "a.geom", (2, 3)).tolist() == [0, 0, 2, 0, 0, 2]


def test_frames_without_any_mask_are_told(tiny, tmp_path):
    source = open_source([tiny / "photons.emc", tiny / "det_sim.h5"])
    assert "no pixel is masked" not in describe(source).notes
    source.detector = replace(source.detector, mask=np.zeros(4096, np.uint8))
    assert "no pixel is masked" in describe(source).sentence


def test_a_mask_that_lies_on_its_side_is_refused(tmp_path):
    np.save(tmp_path / "m.npy", np.zeros((257, 260), np.uint8))
    with pytest.raises(InputError, match=r"mask of 257 × 260 pixels but the frames have 260 × 257: turn it"):
        read_mask(tmp_path / "m.npy", (260, 257))
    (tmp_path / "m.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    with pytest.raises(InputError, match="cannot be read as an image"):
        read_mask(tmp_path / "m.png")


def frames_with(tiny, *others, **options):
    return lambda tmp_path: open_source([tiny / "photons.emc", *others], **options)


def test_each_bad_input_is_one_sentence_with_file_and_remedy(tiny, tmp_path):
    empty = tmp_path / "empty.cxi"
    empty.write_bytes(b"")
    text = tmp_path / "paper.pdf"
    text.write_bytes(b"%PDF-1.4 and so on")
    folder = tmp_path / "folder"
    folder.mkdir()
    all_bad, wrong_size, odd, true_false = (tmp_path / f"{n}.npy" for n in ("all_bad", "wrong_size", "odd", "bool"))
    np.save(all_bad, np.full(4096, BAD, np.uint8))
    np.save(wrong_size, np.zeros(100, np.uint8))
    np.save(odd, np.full(4096, 7, np.uint8))
    np.save(true_false, np.zeros(4096, bool))
    waves, cut = tmp_path / "waves.npy", tmp_path / "cut.npy"
    np.save(waves, np.zeros((3, 8, 8), complex))
    cut.write_bytes(waves.read_bytes()[:-100])
    listless = tmp_path / "listless.h5"
    listless.write_bytes((tiny / "photons.h5").read_bytes())
    with h5py.File(listless, "a") as file:
        del file["place_ones"]
    small = tmp_path / "small.dat"
    small.write_text("2 250 250\n0 1 -0.002 1 0\n1 0 -0.002 1 0\n")
    photons, detector = tiny / "photons.emc", tiny / "det_sim.h5"
    turned = tmp_path / "turned.dat"
    columns = np.loadtxt(tiny / "det_sim.dat", skiprows=1)[:, [1, 0, 2, 3, 4]]
    np.savetxt(turned, columns, header="4096 250 250", comments="")
    cases = [
        (lambda: open_source([tmp_path / "none.cxi"]), "none.cxi does not exist"),
        (lambda: open_source([empty]), "empty.cxi is empty"),
        (lambda: open_source([text]), "paper.pdf is of no known format"),
        (lambda: open_source([waves]), "waves.npy holds complex128, 3 × 8 × 8: give counts of photons"),
        (lambda: open_source([cut]), "cut.npy cannot be read as a NumPy array"),
        (lambda: open_source([listless]), "listless.h5 has no dataset place_ones"),
        (lambda: open_source([folder]), "folder holds no frames"),
        (lambda: open_source([detector]), "there are no frames"),
        (lambda: open_source([]), "there are no frames: nothing was given"),
        (lambda: open_source([photons], detector=small), "has 2 pixels but the frames in"),
        (lambda: open_source([photons], detector=photons), "is no detector file"),
        (lambda: open_source([photons], detector=tmp_path / "gone.h5"), "gone.h5 does not exist"),
        (lambda: open_source([photons, detector], mask=all_bad), "leaves no good pixel"),
        (lambda: open_source([photons, detector], mask=wrong_size), "has 100 pixels but the frames"),
        (lambda: open_source([photons, detector], mask=odd), "values other than 0, 1, 2"),
        (lambda: open_source([photons, detector], mask=true_false), "write the mask as integers"),
        (lambda: open_source([photons, detector, turned]), "are both detector files"),
        (lambda: open_source([photons, detector], energy_eV=-5.0), "the photon energy is -5.0: give a positive number"),
    ]
    for act, words in cases:
        with pytest.raises(InputError) as caught:
            act()
        message = str(caught.value)
        assert words in message
        assert "\n" not in message and (":" in message or ";" in message)  # what is wrong: what to do


def test_files_of_different_detectors_do_not_join(tiny, tmp_path):
    header = np.zeros(256, "<i4")
    header[:3] = [1, 4, 1]
    (tmp_path / "other.emc").write_bytes(header.tobytes() + np.ones(4, "<i4").tobytes())
    with pytest.raises(InputError, match="are not of one experiment: frames of shape 4 and 4096; open"):
        open_source([tiny / "photons.emc", tmp_path / "other.emc"])


def test_reading_many_frames_needs_no_more_memory_than_few(tmp_path):
    import tracemalloc

    from test_dragonfly import write_dense

    write_dense(tmp_path / "many.emc", np.ones((20_000, 1000), np.int32), 1)  # 80 MB
    source = open_source([tmp_path / "many.emc"])
    tracemalloc.start()
    photons = sum(int(batch.photons.sum()) for batch in source.batches(500))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert photons == 20_000_000
    assert peak < 60e6


def test_plain_arrays_beside_frames_in_a_folder_are_not_frames(tiny, tmp_path):
    (tmp_path / "a.emc").write_bytes((tiny / "photons.emc").read_bytes())
    np.save(tmp_path / "powder.npy", np.ones((50, 64, 64), np.uint16))
    assert [path.name for path in open_source([tmp_path]).paths] == ["a.emc"]
    (tmp_path / "a.emc").unlink()
    assert [path.name for path in open_source([tmp_path]).paths] == ["powder.npy"]
