"""Truth files, MRC volumes and structures."""

import gzip
from pathlib import Path

import gemmi
import h5py
import mrcfile
import numpy as np
import pytest

from napari_xrai.core.frames import Volume
from napari_xrai.core.particle import amplitude_grid, builtin_particle
from napari_xrai.core.simulate import PRESETS, simulate
from napari_xrai.io.mrc import read_mrc, write_mrc
from napari_xrai.io.source import InputError
from napari_xrai.io.structure import read_particle
from napari_xrai.io.truth import read_truth, truth_path, write_truth

DATA = Path(__file__).parents[1] / "data"


def test_truth_survives_and_is_stored_in_xyz_order(tmp_path):
    _, truth, _ = simulate(builtin_particle("cube"), PRESETS["demo"], n_frames=20, seed=2)
    skewed = Volume(np.arange(27, dtype=np.float32).reshape(3, 3, 3), 1e-3, "1/angstrom")
    truth = type(truth)(truth.rotation, skewed, truth.density, truth.fluence, truth.point_group)
    path = truth_path(tmp_path / "frames.cxi")
    assert path.name == "frames.truth.h5"
    write_truth(path, truth)
    again = read_truth(path)
    for name in ("rotation", "fluence", "point_group"):
        assert np.array_equal(getattr(again, name), getattr(truth, name))
    for name in ("intensity", "density"):
        assert np.array_equal(getattr(again, name).data, getattr(truth, name).data)
        assert getattr(again, name).voxel_size == pytest.approx(getattr(truth, name).voxel_size)
    with h5py.File(path) as file:
        assert file["intensity"][2, 0, 1] == skewed.data[1, 0, 2]
        assert file["intensity"].attrs["centre"] == 1
        assert {"voxel_size_invA", "centre"} <= set(file["intensity"].attrs)
    assert [p.name for p in tmp_path.iterdir()] == ["frames.truth.h5"]


def test_other_files_are_no_truth(tmp_path):
    (tmp_path / "text.h5").write_text("no")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["intensity"] = np.zeros((3, 3, 3))
    for name, words in (("gone.h5", "does not exist"), ("text.h5", "no HDF5"), ("other.h5", "rot_lab_to_volume")):
        with pytest.raises(InputError, match=words):
            read_truth(tmp_path / name)


def test_mrc_is_valid_and_keeps_voxel_axes_and_label(tmp_path):
    data = np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32)
    path = tmp_path / "density.mrc"
    write_mrc(Volume(data, 3.5, "angstrom"), path, "X-RAI density")
    assert mrcfile.validate(str(path))
    with mrcfile.open(path) as file:
        assert (int(file.header.nx), int(file.header.ny), int(file.header.nz)) == (7, 6, 5)
        assert file.header.mode == 2 and file.header.ispg == 1
        assert file.header.dmax == pytest.approx(data.max())
    volume, label = read_mrc(path)
    assert np.array_equal(volume.data, data) and volume.voxel_size == pytest.approx(3.5) and label == "X-RAI density"
    assert [p.name for p in tmp_path.iterdir()] == ["density.mrc"]


def test_mrc_that_cannot_be_written_or_read_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="cannot be written"):
        write_mrc(Volume(np.zeros((2, 2, 2), np.float32), 1.0, "angstrom"), tmp_path / "no" / "a.mrc", "x")
    (tmp_path / "a.mrc").write_bytes(b"MAP ")
    with pytest.raises(InputError, match="cannot be read as MRC"):
        read_mrc(tmp_path / "a.mrc")


def electrons(particle):
    return amplitude_grid(particle, 1e-4, 3)[1, 1, 1].real


def test_deposited_structure_scatters_with_all_its_electrons():
    path = DATA / "2cex.pdb.gz"
    structure = gemmi.read_structure(str(path))
    expected = sum(site.atom.occ * site.atom.element.atomic_number for site in structure[0].all())
    assert electrons(read_particle(path)) == pytest.approx(expected, rel=2e-3)


def test_mmcif_and_pdb_give_the_same_particle(tmp_path):
    structure = gemmi.read_structure(str(DATA / "2cex.pdb.gz"))
    (tmp_path / "a.cif").write_text(structure.make_mmcif_document().as_string())
    one = amplitude_grid(read_particle(tmp_path / "a.cif"), 1 / 400, 21)
    two = amplitude_grid(read_particle(DATA / "2cex.pdb.gz"), 1 / 400, 21)
    np.testing.assert_allclose(np.abs(one) ** 2, np.abs(two) ** 2, rtol=1e-6)


def test_assembly_is_taken_only_when_asked_for():
    unit = read_particle(DATA / "1ei7.pdb.gz")
    whole = read_particle(f"{DATA / '1ei7.pdb.gz'}:assembly")
    assert unit.point_group is None
    assert electrons(whole) == pytest.approx(34 * electrons(unit), rel=1e-6)
    assert len(whole.point_group) == 34
    # a full turn in 17 steps is among its rotations, and each leaves the intensity as it is
    grid = np.abs(amplitude_grid(whole, 1 / 500, 21)) ** 2
    steps = [np.degrees(np.arccos(np.clip((np.trace(r) - 1) / 2, -1, 1))) for r in whole.point_group]
    assert min(abs(s - 360 / 17) for s in steps) < 0.1
    q = np.random.default_rng(0).normal(size=(40, 3)) / 300
    reference = direct(whole, q)
    for rotation in whole.point_group[[3, 20]]:
        np.testing.assert_allclose(direct(whole, q @ rotation.T), reference, rtol=2e-2, atol=1e-4 * grid.max())


def direct(particle, q):
    total = 0
    for group in particle.groups:
        phases = np.exp(2j * np.pi * (q @ group.position_A.T)) @ group.weight
        total = total + group.form(q[:, 0], q[:, 1], q[:, 2]) * phases
    return np.abs(total) ** 2


def test_unusable_structures_are_one_sentence(tmp_path):
    (tmp_path / "empty.pdb").write_text("")
    (tmp_path / "text.pdb").write_text("HEADER nothing here\nEND\n")
    (tmp_path / "odd.xyz").write_text("1 2 3")
    (tmp_path / "bad.pdb.gz").write_bytes(gzip.compress(b"x")[:10])
    for name in ("gone.pdb", "nonsense", "empty.pdb", "text.pdb", "odd.xyz", "bad.pdb.gz"):
        with pytest.raises(InputError) as caught:
            read_particle(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(InputError, match="no biological assembly"):
        read_particle(f"{DATA / '2cex.pdb.gz'}:assembly")


def test_builtin_names_need_no_file():
    assert read_particle("demo").name == "demo"
    with pytest.raises(InputError, match="demo, cube, sphere"):
        read_particle("dodecahedron")
