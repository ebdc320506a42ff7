"""skopi, SpiniFEL and cmtip: their layouts written out here; photons are found whatever was done to them."""

import h5py
import numpy as np
import pytest

from napari_xrai.core.frames import HC_EV_A, Frames
from napari_xrai.io.open import classify, describe, open_source
from napari_xrai.io.source import InputError

SIDE, WIDTH_M, DISTANCE_M, ENERGY_EV = 24, 0.1, 0.5, 4600.0
WAVELENGTH_M = HC_EV_A / ENERGY_EV * 1e-10
N = 30


def pixel_positions():
    """(1, y, x, 3) metres: a square detector as skopi has it, x along columns and y along rows."""
    axis = -WIDTH_M / 2 + WIDTH_M / SIDE * (np.arange(SIDE) + 0.5)
    x, y = np.meshgrid(axis, axis)
    return np.stack([x, y, np.full_like(x, DISTANCE_M)], axis=-1)[None]


def corrections():
    """Polarisation along x, and solid angle, of each pixel."""
    r = pixel_positions()
    unit = r / np.linalg.norm(r, axis=-1, keepdims=True)
    area = (WIDTH_M / SIDE) ** 2
    return 1 - unit[..., 0] ** 2, area * unit[..., 2] / (r**2).sum(axis=-1)


def vectors():
    r = pixel_positions()
    return (r / np.linalg.norm(r, axis=-1, keepdims=True) - [0, 0, 1]) / WAVELENGTH_M


def expected_photons():
    polarization, solid_angle = corrections()
    s = np.linalg.norm(vectors(), axis=-1)
    brightness = polarization * solid_angle / solid_angle.max() * np.exp(-((s / 5e7) ** 2))
    return 2.0 * brightness * np.random.default_rng(1).gamma(3, 1 / 3, (N, 1, 1, 1))


PHOTONS = np.random.default_rng(2).poisson(expected_photons())


def write(path, frames, *, name="intensities", first_axis=False, extra=True):
    with h5py.File(path, "w") as file:
        file[name] = frames.astype("f4")
        s = vectors()
        file["pixel_position_reciprocal"] = np.moveaxis(s, -1, 0) if first_axis else s
        file["orientations"] = np.tile([1.0, 0, 0, 0], (N, 1, 1))
        file["volume"] = np.zeros((5, 5, 5), complex)
        if extra:
            file["polarization"], file["solid_angle"] = corrections()
        file.attrs["det_distance"], file.attrs["n_images"] = DISTANCE_M, N
    return path


def counts_of(source):
    return Frames.concatenate(list(source.batches(7))).dense().reshape(PHOTONS.shape)


@pytest.mark.parametrize("first_axis", [False, True])
def test_photons_and_vectors_of_spinifel_in_both_orders(tmp_path, first_axis):
    source = open_source([write(tmp_path / "a.h5", PHOTONS, first_axis=first_axis)])
    assert np.array_equal(counts_of(source), PHOTONS)
    expected = vectors().reshape(-1, 3) * 1e-10
    np.testing.assert_allclose(source.detector.q, expected, atol=1e-9 * np.abs(expected).max())
    assert source.detector.energy_eV == pytest.approx(ENERGY_EV, rel=1e-9)
    response = np.prod(corrections(), axis=0).ravel()
    np.testing.assert_allclose(source.detector.response, response / response.mean(), rtol=1e-9)
    assert source.shape == (SIDE, SIDE) and describe(source).missing == []


def test_cmtips_photons_are_multiplied_back(tmp_path):
    polarization, solid_angle = corrections()
    divided = PHOTONS / polarization / solid_angle / 1e6
    source = open_source([write(tmp_path / "a.h5", divided, name="photons", first_axis=True, extra=False)])
    assert np.array_equal(counts_of(source), PHOTONS)
    notes = describe(source).notes
    assert any("divided by polarisation and solid angle and scaled; undone" in note for note in notes)
    assert any("polarised along x" in note for note in notes)


def test_a_common_scale_is_undone_and_said(tmp_path):
    source = open_source([write(tmp_path / "a.h5", PHOTONS * 0.037)])
    assert np.array_equal(counts_of(source), PHOTONS)
    assert any("one photon is 0.037; undone" in note for note in describe(source).notes)


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        (expected_photons(), "expected intensities without photon noise"),
        (PHOTONS + np.random.default_rng(0).normal(0.5, 0.1, PHOTONS.shape) * (PHOTONS > 0), "detector units"),
        (100 * PHOTONS + 5000, "detector units with a pedestal"),
    ],
)
def test_what_is_no_photons_is_refused(tmp_path, frames, words):
    with pytest.raises(InputError, match=words) as caught:
        open_source([write(tmp_path / "a.h5", frames)])
    assert "a.h5" in str(caught.value) and "give photon counts" in str(caught.value)


@pytest.mark.parametrize("what", ["bright and even", "one value", "dim and even"])
def test_whole_numbers_with_a_common_factor_are_scaled_photons_only_where_they_are_as_photons_are(tmp_path, what):
    rng = np.random.default_rng(0)
    counts = {
        "bright and even": 2 * rng.poisson(40 * (np.arange(9) > 3), (5, 8, 9)), "one value": np.full((5, 8, 9), 6),
        "dim and even": 2 * rng.poisson(0.3, (5, 8, 9)),
    }[what]  # fmt: skip
    np.save(tmp_path / "a.npy", counts)
    source = open_source([tmp_path / "a.npy"])
    undone = what == "dim and even"
    assert np.array_equal(next(source.batches(5)).dense(), counts.reshape(5, -1) // (2 if undone else 1))
    assert any("multiples of 2" in note for note in source.notes) == undone


def test_a_later_frame_off_the_scale_is_named(tmp_path):
    frames = np.concatenate([PHOTONS * 0.25] * 300).astype(np.float32)
    frames[8800, 0, 3, 3] = 0.3
    with h5py.File(write(tmp_path / "a.h5", frames), "a"):
        source = open_source([tmp_path / "a.h5"])
        with pytest.raises(InputError, match="frame 8800 is not photon counts"):
            source.read(np.array([8799, 8800]))


def test_vectors_that_lie_on_no_sphere_are_refused(tmp_path):
    write(tmp_path / "a.h5", PHOTONS)
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["pixel_position_reciprocal"][..., 2] = 0
    with pytest.raises(InputError, match="does not lie on an Ewald sphere"):
        open_source([tmp_path / "a.h5"])


# ---- plain arrays


SMALL = np.random.default_rng(3).poisson(0.5, (40, 12, 10))


def test_plain_hdf5_by_name_and_by_being_the_only_one(tmp_path):
    with h5py.File(tmp_path / "plain.h5", "w") as file:
        file["run/frames"] = SMALL.astype("u2")
        file["run/energy"] = np.ones(40)
    assert classify(tmp_path / "plain.h5") == "frames"
    with h5py.File(tmp_path / "plain.h5", "a") as file:
        one = open_source([tmp_path / "plain.h5"], distance_m=0.3, pixel_size_m=1e-3, energy_eV=5000.0)
        assert np.array_equal(next(one.batches(40)).dense().reshape(SMALL.shape), SMALL)
        assert one.detector.energy_eV == pytest.approx(5000)
    with h5py.File(tmp_path / "plain.h5", "a") as file:
        file["other"] = SMALL[::-1].astype("f4")
    with pytest.raises(InputError, match=r"has 2 datasets that can hold frames \(/other, /run/frames\): name one, as "):
        open_source([tmp_path / "plain.h5"])
    named = open_source([tmp_path / "plain.h5:/other"])
    assert np.array_equal(next(named.batches(40)).dense().reshape(SMALL.shape), SMALL[::-1])
    assert classify(tmp_path / "plain.h5:/other") == "frames"
    assert [path.name for path in named.paths] == ["other"] or str(named.paths[0]).endswith("plain.h5:/other")
    with pytest.raises(InputError, match="has no dataset /gone: choose one"):
        open_source([tmp_path / "plain.h5:/gone"])


def test_numpys_files(tmp_path):
    np.save(tmp_path / "a.npy", SMALL.astype("i8"))
    np.savez(tmp_path / "b.npz", frames=SMALL, times=np.arange(40))
    np.savez_compressed(tmp_path / "c.npz", first=SMALL, second=SMALL[::-1])
    for name in ("a.npy", "b.npz", "c.npz:second"):
        assert classify(tmp_path / name) == "frames"
        got = next(open_source([tmp_path / name]).batches(40)).dense().reshape(SMALL.shape)
        assert np.array_equal(got, SMALL[::-1] if "second" in name else SMALL)
    with pytest.raises(InputError, match=r"holds first, second: name the frames, as in c\.npz:"):
        open_source([tmp_path / "c.npz"])


def test_damaged_arrays_are_one_sentence_and_cost_nothing(tmp_path):
    np.save(tmp_path / "a.npy", SMALL)
    content = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(content[:5000])
    (tmp_path / "odd.npy").write_bytes(content.replace(b"(40, 12, 10)", b"(1000000000,"))
    (tmp_path / "huge.npy").write_bytes(content.replace(b"(40, 12, 10)", b"(99999,9999)"))
    np.save(tmp_path / "objects.npy", np.array([{}, []], dtype=object), allow_pickle=True)
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 .npy nothing")
    for name in ("cut.npy", "odd.npy", "huge.npy", "objects.npy", "cut.npz"):
        with pytest.raises(InputError) as caught:
            open_source([tmp_path / name])
        assert name in str(caught.value) and "\n" not in str(caught.value)


def test_masks_and_volumes_are_not_taken_for_frames(tmp_path):
    np.save(tmp_path / "mask.npy", np.zeros((16, 8, 8), "u1"))
    np.save(tmp_path / "volume.npy", np.zeros((8, 8, 8), "f4"))
    np.save(tmp_path / "frames.npy", np.zeros((100, 8, 8), "u1"))
    with h5py.File(tmp_path / "one.h5", "w") as file:
        file["images"] = SMALL.astype("u1")
    kinds = [classify(tmp_path / name) for name in ("mask.npy", "volume.npy", "frames.npy", "one.h5")]
    assert kinds == ["mask", "volume", "frames", "frames"]
