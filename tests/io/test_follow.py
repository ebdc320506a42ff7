"""Files that grow and folders that fill, written by other processes: every frame once, in order, whatever happens."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest

from napari_xrai.io import follow
from napari_xrai.io.live import StreamOptions, open_live
from napari_xrai.io.source import Beam, InputError

WRITER = """
import sys, time, h5py, numpy as np
path, n, pause = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
with h5py.File(path, "w", libver="latest") as file:
    data = file.create_dataset("frames", (0, 8, 8), "u1", maxshape=(None, 8, 8), chunks=(7, 8, 8))
    file.swmr_mode = True
    for first in range(0, n, 5):
        data.resize(first + 5, axis=0)
        for frame in range(first, first + 5):
            data[frame] = np.full((8, 8), frame % 250 + 1, "u1")
        file.flush()
        print(first + 5, flush=True)
        time.sleep(pause)
    if len(sys.argv) > 4:
        time.sleep(60)
"""
BEAM = Beam(energy_eV=6000, distance_m=0.5, pixel_size_m=1e-3)


def writer(path, n, pause=0.0, *more):
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(n), str(pause), *more], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "5\n"
    return process


def opened(path, **options):
    live = open_live([Path(path)], StreamOptions(idle_timeout_s=5.0, **options), beam=BEAM)
    return live._make(0)


def received(stream, n, seconds=15.0):
    """The first pixel of the first n frames, and how many were lost."""
    values, lost, until = [], 0, time.monotonic() + seconds
    while len(values) + lost < n and time.monotonic() < until:
        batch = stream.next_batch(0.05)
        if batch is not None:
            lost += batch.lost
            values += [] if batch.frames is None else list(batch.frames.dense()[:, 0])
    return values, lost


def test_a_file_that_grows_gives_every_frame_once_and_in_order(tmp_path):
    path = tmp_path / "growing.h5"
    with writer(path, 300, 0.02):
        values, lost = received(opened(path), 300)
    assert values == [frame % 250 + 1 for frame in range(300)]
    assert lost == 0


def test_a_dataset_of_a_file_that_is_not_there_yet_is_waited_for(tmp_path):
    path = tmp_path / "later.h5"
    with ThreadPoolExecutor(1) as pool:
        opening = pool.submit(opened, f"{path}:/frames")
        time.sleep(0.5)
        writer(path, 20).communicate()
        values, lost = received(opening.result(), 20)
    assert values == list(range(1, 21))
    assert lost == 0


def test_a_writer_that_is_killed_leaves_what_it_wrote(tmp_path):
    path = tmp_path / "growing.h5"
    process = writer(path, 100, 0.0, "stay")
    for line in process.stdout:
        if line == "100\n":
            break
    stream = opened(path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    values, _ = received(stream, 100)
    assert values == [frame % 250 + 1 for frame in range(100)]
    assert received(stream, 1, 0.5) == ([], 0)


def test_frames_that_have_a_place_but_no_photons_yet_are_waited_for(tmp_path):
    path = tmp_path / "late.h5"
    with h5py.File(path, "w", libver="latest") as file:
        data = file.create_dataset("frames", (10, 8, 8), "u1", maxshape=(None, 8, 8), chunks=(1, 8, 8))
        data[:4] = 1
        file.swmr_mode = True
        file.flush()
        stream = opened(tmp_path / "late.h5:/frames")
        assert received(stream, 10, 0.6) == ([1, 1, 1, 1], 0)
        data[4:10] = 2
        file.flush()
        assert received(stream, 6)[0] == [2] * 6


def test_frames_that_stay_empty_are_taken_for_empty_in_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(follow, "SETTLED_S", 0.3)
    path = tmp_path / "empty.h5"
    with h5py.File(path, "w") as file:
        file["frames"] = np.array([np.ones((8, 8)), np.zeros((8, 8))], "u1")
    assert received(opened(tmp_path / "empty.h5:/frames"), 2)[0] == [1, 0]


def test_a_file_that_is_cut_off_is_survived_and_said(tmp_path):
    path = tmp_path / "cut.h5"
    writer(path, 100).communicate()
    stream = opened(path)
    assert len(received(stream, 50)[0]) >= 50
    os.truncate(path, 3000)
    stream._visible = stream._next  # what it had seen is read
    received(stream, 1000, 1.5)
    assert any("truncated" in fault or "cannot be read" in fault for fault in stream.faults)
    path.unlink()
    received(stream, 1000, 1.0)
    writer(path, 200).communicate()
    values, _ = received(stream, 60, 10.0)
    assert len(values) >= 60


def test_what_waits_too_long_on_disk_is_dropped_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(follow, "MOST_BEHIND_S", 0.3)
    monkeypatch.setattr(follow, "LEAST_BEHIND_S", 0.1)
    path = tmp_path / "behind.h5"
    writer(path, 300).communicate()
    stream = opened(path)
    stream.notice()
    time.sleep(0.5)
    values, lost = received(stream, 300)
    assert values == []
    assert lost == 300


def test_files_are_read_once_they_are_finished_and_damaged_ones_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(follow, "SETTLED_S", 0.3)
    np.save(tmp_path / "r1.npy", 3 + np.arange(3 * 64, dtype="u1").reshape(3, 8, 8) % 2)
    stream = opened(tmp_path)
    assert received(stream, 3)[0] == [3, 3, 3]
    with (tmp_path / "r2.npy").open("wb") as file:
        whole = (tmp_path / "r1.npy").read_bytes().replace(b"\x03", b"\x07")
        file.write(whole[:200])
        file.flush()
        for _ in range(3):
            assert received(stream, 1, 0.2) == ([], 0)
            os.utime(tmp_path / "r2.npy")
        file.write(whole[200:])
    np.save(tmp_path / "r10.npy", 5 + np.arange(2 * 64, dtype="u1").reshape(2, 8, 8) % 2)
    np.save(tmp_path / "r3.npy", 5 + np.arange(2 * 16, dtype="u1").reshape(2, 4, 4) % 2)
    (tmp_path / "notes.txt").write_text("nothing")
    values, _ = received(stream, 5, 6.0)
    assert values == [7, 7, 7, 5, 5]
    assert any("another shape" in fault for fault in stream.faults)


def test_the_files_that_a_folders_frames_are_named_by_are_those_read_so_far(tmp_path, monkeypatch):
    monkeypatch.setattr(follow, "SETTLED_S", 0.2)
    for name in ("r1.npy", "r2.npy"):
        np.save(tmp_path / name, 3 + np.arange(6 * 64, dtype="u1").reshape(6, 8, 8) % 2)
    live = open_live([tmp_path], StreamOptions(idle_timeout_s=5.0, find_hits=False), beam=BEAM)
    assert live.paths == (tmp_path,)
    with live.inlet(0, 12) as inlet:
        while not inlet.ended:
            inlet.take(20, 0.1)
    named = live.identity(np.array([5, 6]))
    assert [live.paths[n].name for n in named["file"]] == ["r1.npy", "r2.npy"]
    assert named["index"].tolist() == [5, 0] and named["frame"].tolist() == [5, 6]


def test_a_replay_is_called_one_and_keeps_its_rate(tmp_path):
    np.save(tmp_path / "r.npy", 3 + np.arange(100 * 64, dtype="u1").reshape(100, 8, 8) % 2)
    live = open_live([tmp_path / "r.npy"], StreamOptions(replay_hz=200.0), beam=BEAM)
    assert live.sentence.startswith("replay of")
    began = time.monotonic()
    values, _ = received(live._make(0), 100)
    assert values == [3] * 100
    assert 0.45 < time.monotonic() - began < 2.0


@pytest.mark.parametrize("name", ["nothing.h5", "photons.npy"])
def test_what_cannot_be_followed_is_said_in_one_sentence(tmp_path, name):
    if name == "photons.npy":
        np.save(tmp_path / name, np.ones((3, 8, 8), "u1"))
    with pytest.raises(InputError, match=r"does not exist|leave out --follow"):
        opened(tmp_path / name, socket="REQ")
