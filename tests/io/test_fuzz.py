"""Damaged files of every format: a result or one sentence, in a process of its own; `benchmarks/fuzz.py` at length."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

spec = importlib.util.spec_from_file_location("fuzz", Path(__file__).parents[2] / "benchmarks" / "fuzz.py")
fuzz = importlib.util.module_from_spec(spec)
sys.modules["fuzz"] = fuzz
spec.loader.exec_module(fuzz)


@pytest.fixture(scope="module")
def child(tmp_path_factory):
    child = fuzz.Child(tmp_path_factory.mktemp("fuzz"))
    yield child
    child.close()
    assert child.strays() == []


def test_undamaged_files_are_opened(child, tmp_path):
    for kind, make in fuzz.VALID.items():
        make(tmp_path / "whole.fuzz")
        assert child.ask(kind, tmp_path / "whole.fuzz") == "ok", kind


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(fuzz.VALID)), st.integers(0, 2**32))
def test_damaged_files_are_opened_or_refused_in_one_sentence(child, tmp_path, kind, seed):
    path = tmp_path / f"{kind}.fuzz"
    fuzz.VALID[kind](path)
    path.write_bytes(fuzz.damaged(path.read_bytes(), np.random.default_rng(seed)))
    assert child.ask(kind, path) in ("ok", "refused")


def test_the_watch_sees_what_it_is_for(child, tmp_path, monkeypatch):
    (tmp_path / "no.fuzz").write_bytes(b"nothing of the kind")
    assert child.ask("cxi", tmp_path / "no.fuzz") == "refused"
    assert child.ask("stumble", tmp_path / "no.fuzz").startswith("wrong KeyError")
    assert child.ask("gorge", tmp_path / "no.fuzz").startswith("memory: 1.5 GiB")
    assert child.ask("die", tmp_path / "no.fuzz").startswith("crash")
    monkeypatch.setattr(fuzz, "PATIENCE_S", 0.3)
    assert child.ask("sleep", tmp_path / "no.fuzz") == "hang"
