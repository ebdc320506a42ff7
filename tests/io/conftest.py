"""The small real files, where a test can write beside them."""

import gzip
import shutil
from pathlib import Path

import pytest

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Folder with 50 real Dragonfly frames in four files, and their detector in two."""
    folder = tmp_path_factory.mktemp("klh1_tiny")
    for path in (DATA / "klh1_tiny").iterdir():
        if path.suffix == ".gz":
            (folder / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
        else:
            shutil.copyfile(path, folder / path.name)
    return folder
