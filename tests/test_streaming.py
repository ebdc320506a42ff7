"""Streams from end to end: the command line follows a file that another process writes, is killed, and goes on."""

import json
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest

from napari_xrai.core.frames import HC_EV_A, Frames
from napari_xrai.core.particle import builtin_particle
from napari_xrai.core.simulate import Preset, simulate
from napari_xrai.io.cxi_writer import CxiWriter
from napari_xrai.run import read_metrics, read_run

N = 400
WRITER = """
import os, sys, time, h5py
with h5py.File(sys.argv[1]) as given, h5py.File(sys.argv[2], "w", libver="latest") as file:
    for name in given:
        if name != "entry_1":
            given.copy(name, file)
    given.copy("entry_1", file)
    source = given["entry_1/instrument_1/detector_1/data"]
    del file["entry_1/instrument_1/detector_1/data"]
    data = file.create_dataset("entry_1/instrument_1/detector_1/data", (0, *source.shape[1:]), "u2",
                               maxshape=(None, *source.shape[1:]), chunks=(10, *source.shape[1:]))
    file.swmr_mode = True
    for first in range(0, len(source), 20):
        data.resize(first + 20, axis=0)
        data[first:] = source[first:first + 20]
        file.flush()
        while first == 200 and not os.path.exists(sys.argv[3]):
            time.sleep(0.1)
        time.sleep(0.05)
    print("all written", flush=True)
    time.sleep(300)
"""
# the engine's own starts, cut short: these tests are about what happens around them
COMMAND = """
import sys
from napari_xrai import session
from napari_xrai.core import bootstrap, online, reconstruction, starts
bootstrap.STEPS, bootstrap.BATCH = 2, 100
starts.MOST_STARTS = reconstruction.PASSES_PER_START = 1
online.RESERVOIR_FRAMES, online.BLOCK_FRAMES, online.BLOCKS, online.MOST_ROUNDS = 100, 40, 2, 1
session.REPORT_EVERY_S = session.SNAPSHOT_EVERY_S = 0.2
session.WRITING_SHARE = 0.5
session.LiveDensity.update = lambda self, snapshot: None
session.LiveDensity.finish = lambda self, snapshot, stopping: None
from napari_xrai.cli import main
main()
"""


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    """A complete CXI file, and its frames."""
    path = tmp_path_factory.mktemp("streaming") / "frames.cxi"
    preset = Preset((16, 16), 4.8e-3, 0.3, HC_EV_A / 4.0, stop_radius_px=1.5, photons=600)
    detector, _, batches = simulate(builtin_particle("demo"), preset, n_frames=N)
    batches = list(batches)
    with CxiWriter(path, detector, distance_m=0.3, polarization="x") as out:
        for batch in batches:
            out.write(batch)
    return path, Frames.concatenate(batches)


def reconstruct(*arguments, **kwargs):
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, "reconstruct", "--threads", "1", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs,
    )  # fmt: skip


def sums_hold(run: Path, kills: int = 0):
    lines = read_metrics(run)
    for line in lines:
        assert line["received"] == line["dropped"] + line["not_hit"] + line["junk"] + line["used"]
        assert {"latency_s", "frames_per_s", "resolution_A", "alerts", "faults"} <= line.keys()
    received = [line["received"] for line in lines]
    fell = sum(later < earlier for earlier, later in pairwise(received))
    assert fell <= kills  # a killed run goes on from its last checkpoint, a report or two before its last line
    return lines


def test_killed_at_any_moment_a_followed_file_is_gone_on_with_and_no_frame_is_taken_twice(frames, tmp_path):
    growing, out = tmp_path / "growing.cxi", tmp_path / "run"
    go_on = tmp_path / "go_on"  # the writer waits for it in the middle
    writer = subprocess.Popen([sys.executable, "-c", WRITER, frames[0], growing, go_on], stdout=subprocess.PIPE)
    try:
        running = reconstruct(growing, "--follow", "--out", out, "--idle-timeout", "20")
        until = time.monotonic() + 60
        while not (out / "checkpoint").exists() and time.monotonic() < until and running.poll() is None:
            time.sleep(0.02)
        assert (out / "checkpoint").exists(), running.communicate()
        time.sleep(0.3)
        running.send_signal(signal.SIGKILL)
        running.wait()
        before = len(read_run(out).snapshot.status)  # whole, though killed
        state = json.loads((out / "checkpoint" / "state.json").read_text())
        assert all((out / "checkpoint" / name).exists() for name in state["files"])
        go_on.touch()
        going_on = reconstruct("--resume", "--out", out, "--idle-timeout", "3")
        said, problem = going_on.communicate(timeout=120)
        assert going_on.returncode == 0, problem
    finally:
        writer.kill()
    snapshot = read_run(out).snapshot
    assert 0 < before < N
    assert snapshot.counters.received == len(snapshot.status) == N
    assert snapshot.counters.dropped == 0
    assert len(np.unique(snapshot.poses.frame)) == len(snapshot.poses.frame) == snapshot.counters.hits
    sums_hold(out, kills=1)
    with h5py.File(out / "reconstruction.h5") as file:  # in a growing file, the order of reception is the place
        np.testing.assert_array_equal(file["poses/index"], file["poses/frame"])
    assert "followed while it grows" in snapshot.facts["frames"]
    assert f"of {N} frames used" in said


def test_a_replay_is_labelled_counts_what_it_drops_and_ends_at_max_frames(frames, tmp_path):
    run = reconstruct(frames[0], "--replay", "2000", "--out", tmp_path / "run", "--max-frames", "350")
    said, problem = run.communicate(timeout=120)
    assert run.returncode == 0, problem
    assert said.startswith("replay of CXI 1.6 at 2,000 frames/s")
    lines = sums_hold(tmp_path / "run")
    assert lines[-1]["received"] == 350
    with h5py.File(tmp_path / "run" / "reconstruction.h5") as file:
        assert len(file["frames/status"]) == 350
        assert file["facts"].attrs["frames"].startswith("replay of")


def test_a_stream_over_the_network_from_serve_to_reconstruct(frames, tmp_path):
    server = subprocess.Popen(
        [sys.executable, "-m", "napari_xrai", "serve", str(frames[0]), "--rate", "100", "--port", "45913"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert "replay of" in server.stdout.readline()
        run = reconstruct("tcp://localhost:45913", "--out", tmp_path / "run", "--idle-timeout", "20")
        said, problem = run.communicate(timeout=120)
        assert run.returncode == 0, problem
        assert "frames sent" in server.communicate(timeout=20)[0].splitlines()[-1]
    finally:
        server.kill()
    assert "karabo-bridge stream from tcp://localhost:45913" in said
    last = sums_hold(tmp_path / "run")[-1]
    assert 100 <= last["received"] <= N
    assert last["used"] > 0
    with h5py.File(tmp_path / "run" / "reconstruction.h5") as file:
        train, pulse = file["poses/trainId"][:], file["poses/pulseId"][:]
    assert (train > 0).all() and (np.diff(train) >= 0).all() and len(np.unique(train)) > 3
    assert len(np.unique(np.stack([train, pulse]), axis=1).T) == last["hits"]
