"""LCLStreamer: HDF5 files as messages, pushed by a sender that calls or is called."""

import io
import threading
import time

import h5py
import hdf5plugin
import numpy as np
import pytest
import zmq

from napari_xrai.io.live import StreamOptions, open_live
from napari_xrai.io.source import Beam
from sender import serving

EVENTS = np.random.default_rng(0).poisson(0.6, (10, 2, 6, 7)).astype(np.float32) * 9.5
BEAM = Beam(energy_eV=6000, distance_m=0.5, pixel_size_m=1e-3)
COMPRESSION = {"none": {}, "gzip": {"compression": "gzip"}, "zstd": hdf5plugin.Bitshuffle(cname="zstd")}


def message(first, frames, compression="none", time_s=None):
    """As lclstreamer's HDF5BinarySerializer writes it: one row per event, a chunk each."""
    block = io.BytesIO()
    times = (time.time() if time_s is None else time_s) + 0.01 * (first + np.arange(len(frames)))
    fields = {"/data/timestamp": times, "/data/data": frames, "/data/random": np.ones((len(frames), 3))}
    with h5py.File(block, "w") as file:
        for name, values in fields.items():
            file.create_dataset(name, data=values, chunks=(1, *values.shape[1:]), **COMPRESSION[compression])
    return [block.getvalue()]


def received(stream, n):
    batches = []
    for _ in range(200):
        batch = stream.next_batch(0.05)
        batches += [] if batch is None else [batch]
        if sum(b.lost + (0 if b.frames is None else len(b.frames)) for b in batches) >= n:
            break
    return batches


@pytest.mark.parametrize("compression", COMPRESSION)
def test_events_are_found_with_their_times_and_repeated_or_damaged_ones_counted(compression):
    square = np.ascontiguousarray(EVENTS[:, 0, :, :6])
    first = message(0, square, compression)
    damaged = [first[0][: len(first[0]) // 2]]
    with serving(zmq.PUSH, [first, first, damaged, message(10, square[::-1], compression)]) as address:
        options = StreamOptions(address=address, socket="PULL", adu_per_photon=9.5, idle_timeout_s=5.0)
        live = open_live([], options, beam=BEAM)
        stream = live._make(0)
        batches = received(stream, 30)
        stream.close()
    frames = np.concatenate([b.frames.dense().reshape(-1, 6, 6) for b in batches if b.frames is not None])
    np.testing.assert_array_equal(frames, np.concatenate([square, square[::-1]]) / 9.5)
    assert stream.faults == {"messages that came twice": 1, "damaged messages": 1}
    assert "LCLStreamer stream from" in live.sentence and "hdf5:data/data has axes psf" in live.sentence
    assert abs(batches[0].acquired - time.time()) < 20
    assert np.ptp(batches[0].names["timestamp"]) == pytest.approx(0.09)


def test_a_sender_that_calls_is_waited_for_at_our_own_port():
    context = zmq.Context()
    port = 45937

    def call():
        socket = context.socket(zmq.PUSH)
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(f"tcp://127.0.0.1:{port}")
        for n in range(5):
            socket.send(message(10 * n, EVENTS[:, 0, :, :6])[0])
        time.sleep(2)
        socket.close()

    thread = threading.Thread(target=call)
    thread.start()
    options = StreamOptions(address=f"tcp://*:{port}", socket="PULL", adu_per_photon=9.5, idle_timeout_s=5.0)
    live = open_live([], options, beam=BEAM)
    stream = live._make(0)
    assert sum(len(b.frames) for b in received(stream, 50)) == 50
    stream.close()
    thread.join()
    context.destroy()
