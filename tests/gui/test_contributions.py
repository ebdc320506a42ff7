"""What napari offers with the plugin installed: readers, writers, sample data, menus."""

import mrcfile
import numpy as np
import pytest
from conftest import said
from engine import GuiEngine
from npe2 import PluginManager, PluginManifest

from napari_xrai.contributions import get_reader, open_panel, show_panel
from napari_xrai.layers import KEY
from napari_xrai.run import RunFolder
from napari_xrai.settings import Settings


def test_the_manifest_is_valid_and_every_command_is_there():
    manifest = PluginManifest.from_distribution("napari-xrai")
    manifest.validate_imports()
    assert [widget.display_name for widget in manifest.contributions.widgets] == [
        "X-RAI Reconstruct",
        "X-RAI First look",
    ]


def test_the_menu_entry_is_where_napari_looks(viewer):
    assert any(
        item.command == "napari-xrai.show_panel" for item in PluginManager.instance().iter_menu("napari/file/acquire")
    )


def test_files_are_told_apart_by_content(tiny, tmp_path):
    renamed = tmp_path / "frames.h5"
    renamed.write_bytes(tiny[0].read_bytes())
    assert get_reader(str(renamed)) is not None
    assert get_reader(str(tiny[1])) is not None
    other = tmp_path / "photo.emc"
    other.write_bytes(b"\x89PNG")
    assert get_reader(str(other)) is None
    assert get_reader(str(tmp_path / "nothing.emc")) is None
    for stack in (
        np.zeros((100, 8, 8), np.uint8),
        np.zeros((8, 8), np.uint8),
    ):  # napari's own, unless dropped on the panel
        np.save(tmp_path / "stack.npy", stack)
        assert get_reader(str(tmp_path / "stack.npy")) is None
    assert get_reader([str(renamed), str(tmp_path / "stack.npy")]) is not None


def test_a_run_folder_opens_as_maps_and_is_saved_as_mrc(viewer, tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.start(Settings())
    snapshot = GuiEngine().snapshot()
    folder.write_result(snapshot, "frames.cxi", poses=True)
    layers = viewer.open(str(folder.path), plugin="napari-xrai")
    assert [layer.metadata[KEY] for layer in layers] == ["intensity", "slices"]
    layers[0].save(str(tmp_path / "map.mrc"), plugin="napari-xrai")
    with mrcfile.open(tmp_path / "map.mrc") as file:
        np.testing.assert_array_equal(file.data, snapshot.intensity.data)
        assert float(file.voxel_size.x) == pytest.approx(1e4 * snapshot.intensity.voxel_size)
        assert "1e-4" in bytes(file.header.label[0]).decode()


def test_a_detector_opened_alone_opens_the_panel_and_waits_there(qtbot, viewer, tiny):
    viewer.open(str(tiny[1]), plugin="napari-xrai")
    panel = open_panel(viewer)
    assert panel is not None
    viewer.open(str(tiny[0]), plugin="napari-xrai")
    qtbot.waitUntil(lambda: said(panel) == "Ready: press Start.", timeout=30_000)
    assert "50 frames" in panel.found_view._sentence.text()
    assert panel.found_view._sentence.text().count("geometry") == 0


def test_sample_data_fills_the_panel(qtbot, viewer):
    panel = show_panel(viewer)
    (layer,) = viewer.open_sample("napari-xrai", "small-particle")
    assert layer.metadata[KEY] == "patterns"
    qtbot.waitUntil(lambda: said(panel) == "Ready: press Start.", timeout=30_000)
    assert len(viewer.layers) == 1
