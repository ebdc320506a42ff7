"""Which frames are used, and what each is called, through files, selections and bins."""

import h5py
import numpy as np
import pytest

from napari_xrai.core.detector import square_detector
from napari_xrai.core.frames import BAD, Frames, UsedGeometry
from napari_xrai.core.pixels import pixels_of
from napari_xrai.io.binning import bin_detector, working_binning
from napari_xrai.io.open import open_source
from napari_xrai.io.select import read_selection
from napari_xrai.io.source import InputError


@pytest.fixture
def files(tmp_path):
    """Two files of 6 and 4 frames, each lit at a pixel of its own; named by train, pulse and cell."""
    for n, length in enumerate((6, 4)):
        with h5py.File(tmp_path / f"run{n}.cxi", "w") as file:
            group = file.create_group("entry_1/instrument_1/detector_1")
            counts = np.zeros((length, 4, 5), np.uint8)
            counts.reshape(length, 20)[np.arange(length), np.arange(length) + 10 * n] = 1 + n
            group["data"], group["distance"], group["x_pixel_size"] = counts, 0.5, 2e-4
            file["entry_1/data_1/data"] = h5py.SoftLink("/entry_1/instrument_1/detector_1/data")
            file["entry_1/instrument_1/source_1/energy"] = 9.6e-16
            file["entry_1/trainId"] = 1000 * n + np.arange(length, dtype="u8")
            file["entry_1/pulseId"] = np.arange(length, dtype="u4")
            file["entry_1/cellId"] = np.repeat(np.arange(length, dtype="u2")[:, None] + 50, 16, axis=1)
    return [tmp_path / "run0.cxi", tmp_path / "run1.cxi"]


def test_each_frame_keeps_its_name_through_files_and_selections(files):
    source = open_source(files, select="odd")
    assert source.n_frames == 5 and "5 of 10 frames chosen by odd" in source.notes
    every = Frames.concatenate(list(source.batches(2)))
    assert every.index.tolist() == [0, 1, 2, 3, 4]
    assert every.pixel.tolist() == [1, 3, 5, 11, 13] and every.count.tolist() == [1, 1, 1, 2, 2]
    names = source.identity(np.array([4, 0, 2]))
    assert {k: v.tolist() for k, v in names.items()} == {
        "frame": [9, 1, 5], "file": [1, 0, 0], "index": [3, 1, 5], "trainId": [1003, 1, 5], "pulseId": [3, 1, 5],
        "cellId": [53, 51, 55],
    }  # fmt: skip
    assert source.read(np.array([3, 0])).pixel.tolist() == [11, 1]


def test_a_mask_for_every_cell_holds_for_the_frames_of_that_cell(files, tmp_path):
    masks = np.zeros((60, 4, 5), np.uint8)
    masks[::2, 0, 0], masks[50, 3, 4] = 1, BAD  # usual: one pixel in twenty is more than two in a hundred
    masks[:, 3, 3], masks[53, :2] = BAD, BAD
    np.save(tmp_path / "cells.npy", masks)
    source = open_source(files, mask=tmp_path / "cells.npy", select="0:9")
    expected = np.zeros(20, int)
    expected[[0, 18]] = 1, BAD
    assert source.detector.mask.tolist() == expected.tolist()
    photons = np.concatenate([batch.photons for batch in source.batches(4)])
    assert photons.tolist() == [0, 1, 1, 0, 1, 1, 0, 2, 2]  # of cells 50 and 53 none
    assert any("4 frames of 2 cells" in note for note in source.notes)
    assert source.identity(np.array([3]))["cellId"].tolist() == [53]
    np.save(tmp_path / "few.npy", masks[:52])
    with pytest.raises(InputError, match=r"few\.npy has masks for 52 cells, but frames are of cell 55"):
        open_source(files, mask=tmp_path / "few.npy")
    for path in files:
        with h5py.File(path, "a") as file:
            del file["entry_1/cellId"]
    with pytest.raises(InputError, match=r"cells\.npy has masks for 60 cells, but .*run0\.cxi does not say of which"):
        open_source(files, mask=tmp_path / "cells.npy")


def test_names_that_not_all_files_have_are_left_out(files):
    with h5py.File(files[1], "a") as file:
        del file["entry_1/pulseId"]
    assert set(open_source(files).identity(np.arange(10))) == {"frame", "file", "index", "trainId", "cellId"}


def test_rules_lists_masks_and_blacklists_choose_alike(tmp_path):
    wanted = [1, 4, 7]
    mask = np.isin(np.arange(10), wanted)
    (tmp_path / "list.txt").write_text("1\n4, 7\n")
    (tmp_path / "black.dat").write_text("\n".join("01"[not m] for m in mask))
    np.save(tmp_path / "list.npy", np.array(wanted))
    np.save(tmp_path / "mask.npy", mask)
    np.save(tmp_path / "bytes.npy", mask.astype("u1"))
    with h5py.File(tmp_path / "hits.h5", "w") as file:
        file["score/is_hit"] = mask.astype("i1")
    (tmp_path / "rest.txt").write_text("\n".join(map(str, np.flatnonzero(~mask))))
    rules = ["1:8:3", *(str(tmp_path / n) for n in ("list.txt", "black.dat", "list.npy", "mask.npy", "bytes.npy"))]
    rules += [f"{tmp_path / 'hits.h5'}:/score/is_hit", f"not:{tmp_path / 'rest.txt'}"]
    for rule in rules:
        assert read_selection(rule, 10).tolist() == wanted, rule
    assert read_selection("odd", 5).tolist() == [1, 3] and read_selection("even", 5).tolist() == [0, 2, 4]
    assert read_selection("-2:", 5).tolist() == [3, 4]


def test_what_chooses_nothing_sensible_is_one_sentence(tmp_path):
    (tmp_path / "far.txt").write_text("3 99")
    (tmp_path / "words.txt").write_text("the good ones")
    np.save(tmp_path / "short.npy", np.ones(4, bool))
    np.save(tmp_path / "real.npy", np.ones(4))
    np.save(tmp_path / "none.npy", np.zeros(10, bool))
    cases = [
        ("far.txt", "names frame 99, but they are 0 to 9"), ("words.txt", "no list of frames"),
        ("short.npy", "mask of 4 frames, but there are 10"), ("real.npy", "holds float64"),
        ("none.npy", "leaves none of the 10 frames"), ("gone.npy", "is no file"),
    ]  # fmt: skip
    for name, words in cases:
        with pytest.raises(InputError, match=words):
            read_selection(str(tmp_path / name), 10)
    for rule, words in (("::-1", "step of -1"), ("20:", "leaves none"), ("some", "is no file")):
        with pytest.raises(InputError, match=words):
            read_selection(rule, 10)


def large_detector():
    detector = square_detector((600, 500), 2e-4, 0.3, 6000.0, polarization="x", stop_radius_px=10)
    mask = detector.mask.copy()
    mask.reshape(600, 500)[:, 240:246] = BAD
    return detector.with_mask(mask)


def test_bins_conserve_photons_and_place_them_where_they_fell():
    detector = large_detector()
    counts = np.random.default_rng(0).poisson(0.02, (3, detector.n_pixels))
    cell, binned = bin_detector(detector, 5)
    from napari_xrai.io.binning import bin_frames

    frames = Frames.from_dense(counts)
    sums = bin_frames(frames, cell, binned.n_pixels)
    good = detector.mask != BAD
    assert sums.photons.tolist() == counts[:, good].sum(axis=1).tolist()
    expected = np.zeros((3, binned.n_pixels), int)
    np.add.at(expected, (slice(None), cell[good]), counts[:, good])
    assert np.array_equal(sums.dense(), expected)
    # q stays on its Ewald sphere, and no pixel is further from its cell's q than half a cell's diagonal
    on_sphere = np.linalg.norm(binned.q + np.array([0, 0, binned.ewald_radius]), axis=1)
    np.testing.assert_allclose(on_sphere, binned.ewald_radius, rtol=1e-12)
    step = np.abs(np.diff(detector.q.reshape(600, 500, 3)[300, :, 0])).max()
    offset = np.linalg.norm((detector.q[good] - binned.q[cell[good]])[:, :2], axis=1)
    assert offset.max() < 5 * step * np.sqrt(2)
    # expected photons of a flat signal are the same: response sums
    share = np.bincount(cell[good], detector.response[good], binned.n_pixels)
    np.testing.assert_allclose(binned.response, share / share.mean(), rtol=1e-12)


def test_what_became_of_cells_is_told_pixel_by_pixel(files):
    binned = open_source(files, binning=2)
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 3, binned.n_pixels).astype(np.uint8)
    told = binned.on_pixels(UsedGeometry((0.1, 0.0), (1.5, -0.5), mask, mask == BAD))
    whole = open_source(files).detector
    cell, _ = bin_detector(whole, 2)
    assert told.mask.shape == told.left_out.shape == whole.shape and told.moved == (3.0, -1.0)
    assert np.array_equal(told.mask.ravel()[cell >= 0], mask[cell[cell >= 0]])
    assert (told.mask.ravel()[cell < 0] == BAD).all() and not told.left_out.ravel()[cell < 0].any()


def test_the_working_resolution_is_the_engines_voxel():
    detector = large_detector()
    factor = working_binning(detector)
    assert factor > 1
    assert pixels_of(bin_detector(detector, factor)[1]).voxel_size == pytest.approx(
        pixels_of(detector).voxel_size, rel=0.2
    )
    assert working_binning(square_detector((260, 257), 3e-4, 0.586, 1600.0)) == 1


def test_only_large_detectors_are_binned_unasked_and_it_is_said(files):
    assert open_source(files, binning="auto").n_pixels == 20
    binned = open_source(files, binning=2, select="0:7")
    assert "2×2 pixels summed on reading" in binned.notes and binned.n_pixels < 10
    assert binned.identity(np.array([6]))["trainId"].tolist() == [1000]
    assert Frames.concatenate(list(binned.batches(3))).photons.tolist() == [1] * 6 + [2]
    with pytest.raises(InputError, match="a binning of 3 leaves next to nothing of"):
        open_source(files, binning=3)
