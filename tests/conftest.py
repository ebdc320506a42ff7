"""What holds for every test: the user's own settings are neither read nor written."""

import pytest


@pytest.fixture(autouse=True)
def no_user_settings(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.getbasetemp() / "config"
    monkeypatch.setenv("NAPARI_XRAI_CONFIG_DIR", str(folder))
    yield
    for path in folder.glob("*"):
        path.unlink()
