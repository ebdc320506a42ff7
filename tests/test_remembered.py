"""What was supplied once for an instrument is offered the next time, and nothing else is."""

import json

import pytest

from napari_xrai.remembered import as_options, recall, remember
from napari_xrai.settings import InputSettings
from toy import ToySource


class Frames(ToySource):
    missing = ("wavelength", "polarisation")


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("NAPARI_XRAI_CONFIG_DIR", str(tmp_path / "config"))
    return tmp_path / "config" / "instruments.json"


def test_what_is_missing_is_offered_again_for_the_same_instrument_only(config):
    given = InputSettings(energy_eV=2817.82, polarization="x", distance_m=0.3)
    remember(Frames(side=6), given)
    assert recall(Frames(side=6)) == {"energy_eV": 2817.82, "polarization": "x"}  # the distance is in the files
    assert as_options(recall(Frames(side=6))) == "--energy 2817.82 --polarization x"
    assert recall(Frames(side=7)) == {} and recall(ToySource(side=6)) == {}


def test_the_newest_figure_counts_and_others_stay(config):
    remember(Frames(), InputSettings(energy_eV=1000, polarization="y"))
    remember(Frames(), InputSettings(energy_eV=2000))
    assert recall(Frames()) == {"energy_eV": 2000, "polarization": "y"}


def test_a_run_without_figures_leaves_no_file(config):
    remember(Frames(), InputSettings())
    assert not config.exists()


@pytest.mark.parametrize("text", ["", "no json", "[1]", '{"toy 6x6": 3}'])
def test_a_damaged_memory_is_no_reason_to_stop(config, text):
    config.parent.mkdir()
    config.write_text(text)
    assert recall(Frames()) == {}
    remember(Frames(side=5), InputSettings(energy_eV=1000))
    assert "toy 5x5" in json.loads(config.read_text())


def test_a_folder_that_cannot_be_written_is_no_reason_to_stop(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NAPARI_XRAI_CONFIG_DIR", str(tmp_path / "file" / "below"))
    remember(Frames(), InputSettings(energy_eV=1000))
    assert recall(Frames()) == {}
