"""The door: what a file is, said in words; what cannot be used, said in one sentence."""

import json

import h5py
import numpy as np
import pytest

from napari_xrai.core.frames import BAD, MERGE_ONLY, Volume
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
    for name in ("b.emc", "a.emc"):
        (tmp_path / name).write_bytes((tiny / "photons.emc").read_bytes())
    (tmp_path / "readme.txt").write_text("hello world\nthis is no frame")
    source = open_source([tmp_path])
    assert [p.name for p in source.paths] == ["a.emc", "b.emc"] and source.n_frames == 100


def test_mask_files_agree_whatever_their_format(tiny, tmp_path):
    mask = np.random.default_rng(0).integers(0, 3, (64, 64)).astype(np.uint8)
    np.save(tmp_path / "m.npy", mask.astype(np.int64))
    mask.tofile(tmp_path / "m.byt")
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file["anything"] = mask
    masks = [
        open_source([tiny / "photons.emc", tiny / "det_sim.h5"], mask=tmp_path / f"m.{e}").detector.mask
        for e in ("npy", "byt", "h5")
    ]
    assert np.array_equal(masks[0], masks[1]) and np.array_equal(masks[0], masks[2])


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
    small = tmp_path / "small.dat"
    small.write_text("2 250 250\n0 1 -0.002 1 0\n1 0 -0.002 1 0\n")
    photons, detector = tiny / "photons.emc", tiny / "det_sim.h5"
    cases = [
        (lambda: open_source([tmp_path / "none.cxi"]), "none.cxi does not exist"),
        (lambda: open_source([empty]), "empty.cxi is empty"),
        (lambda: open_source([text]), "paper.pdf is of no known format"),
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
        (lambda: open_source([photons, detector, tiny / "det_sim.dat"]), "are both detector files"),
        (lambda: open_source([photons, detector], energy_eV=-5.0), "energy_eV is -5.0: give a positive number"),
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
    with pytest.raises(
        InputError, match="are not of one experiment: frames of shape 4 and 4096; open"
    ):
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
