"""karabo-bridge: held against the facility's own package, and against everything a network does to messages."""

import threading
import time
from itertools import permutations

import numpy as np
import pytest
import zmq
from karabo_bridge import Client, serialize
from karabo_bridge.server import ServerInThread

from napari_xrai.core.frames import Frames
from napari_xrai.io import message_socket
from napari_xrai.io.adu import photons_from_adu
from napari_xrai.io.axes import guess_axes, in_frame_order
from napari_xrai.io.bridge import unpack
from napari_xrai.io.live import StreamOptions, open_live
from napari_xrai.io.source import Beam, InputError
from napari_xrai.io.train import MessageError
from napari_xrai.serve import FrameServer, Served, frames_to_serve
from sender import serving

SOURCE = "SPB_DET_AGIPD1M-1/CAL/APPEND_CORRECTED"
BEAM = Beam(energy_eV=6000, distance_m=0.5, pixel_size_m=1e-3)
FRAMES = np.random.default_rng(0).poisson(0.5, (6, 8, 8)).astype(np.uint16)


def train(number, frames=FRAMES, second=1000):
    now = time.time()
    meta = {"source": SOURCE, "timestamp": now, "timestamp.sec": str(second), "timestamp.frac": "5" + 17 * "0",
            "timestamp.tid": number}  # fmt: skip
    return {SOURCE: {"image.data": frames, "image.pulseId": np.arange(len(frames)), "trainId": number}}, {SOURCE: meta}


def opened(address, **options):
    live = open_live([], StreamOptions(address=address, idle_timeout_s=5.0, **options), beam=BEAM)
    return live, live._make(0)


def received(stream, n, seconds=8.0):
    frames, lost, until = [], 0, time.monotonic() + seconds
    while len(frames) + lost < n and time.monotonic() < until:
        batch = stream.next_batch(0.05)
        if batch is not None:
            lost += batch.lost
            frames += [] if batch.frames is None else list(batch.frames.dense().reshape(-1, 8, 8))
    return np.array(frames), lost


def test_the_facilitys_own_server_is_understood():
    server = ServerInThread("tcp://127.0.0.1:*", dummy_timestamps=True)
    with server:
        server.feed(*train(1))
        server.feed(*train(2, FRAMES[::-1]))
        live, stream = opened(server.endpoint)
        frames, _ = received(stream, 12)
        stream.close()
    assert f"{SOURCE}:image.data has axes psf, as guessed" in live.sentence
    np.testing.assert_array_equal(frames, np.concatenate([FRAMES, FRAMES[::-1]]))


def test_frames_that_are_lists_of_pixels_fit_a_detector_file_that_is_one_too(tmp_path):
    detector = tmp_path / "det.dat"
    q = np.stack(np.meshgrid(*[np.arange(8) - 3.5] * 2), axis=-1).reshape(-1, 2)
    rows = "".join(f"{x} {y} {-(x * x + y * y) / 200} 1.0 0\n" for x, y in q)
    detector.write_text(f"64 100 100\n{rows}")
    with serving(zmq.REP, [serialize(*train(1, FRAMES.reshape(6, 64)))] * 2) as address:
        live = open_live([], StreamOptions(address=address, idle_timeout_s=5.0), detector=detector)
        frames = live._make(0).next_batch(1.0).frames
        live._make(0).close()
    np.testing.assert_array_equal(frames.dense(), FRAMES.reshape(6, 64))


def test_the_facilitys_own_client_understands_our_server():
    batches = iter([Frames.from_dense(FRAMES), Frames.from_dense(FRAMES[::-1])])
    with FrameServer(Served("test", None, "none", (8, 8), batches), 100.0, 0) as server:
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        client = Client(server.address, timeout=5)
        got, meta = [], []
        while sum(map(len, got)) < 12:
            data, metadata = client.next()
            got.append(data["napari-xrai/frames"]["image.data"])
            meta.append(metadata["napari-xrai/frames"])
        client.next()  # the end mark
        thread.join(5)
    np.testing.assert_array_equal(np.concatenate(got), np.concatenate([FRAMES, FRAMES[::-1]]))
    tids = [m["timestamp.tid"] for m in meta]
    assert tids == sorted(set(tids))
    assert abs(float(meta[0]["timestamp"]) - time.time()) < 10


@pytest.mark.parametrize(("kind", "option"), [(zmq.PUB, "SUB"), (zmq.PUSH, "PULL")])
def test_publishers_and_pushers_are_heard(kind, option):
    messages = [serialize(*train(n)) for n in range(40)]
    with serving(kind, messages, pause=0.05) as address:
        _, stream = opened(address, socket=option)
        frames, _ = received(stream, 18)
        stream.close()
    np.testing.assert_array_equal(frames[:18], np.concatenate([FRAMES] * 3))


def test_twice_out_of_order_of_another_shape_and_damaged_each_counted_none_fatal():
    other = np.ones((4, 9, 9), np.uint16)
    halves = FRAMES.astype(np.float32) / 2
    messages = [
        serialize(*train(1)), serialize(*train(3)), serialize(*train(2)), serialize(*train(3)),
        serialize(*train(4, other)), serialize(*train(5, FRAMES[0])), serialize(*train(6, halves)),
        [b"rubbish"], [b"\xc1", b"\xc1"], serialize({"OTHER": {"x": np.ones(3)}}, {"OTHER": {}}), serialize(*train(7)),
    ]  # fmt: skip
    with serving(zmq.REP, messages) as address:
        _, stream = opened(address)
        frames, lost = received(stream, 41)
        stream.close()
    assert len(frames) == 24
    assert lost == 6 + 4 + 1 + 6
    assert dict(stream.faults) == {
        "messages out of order": 1, "messages that came twice": 1, "messages with frames of another shape": 2,
        "messages whose values are no photons": 1, "damaged messages": 2,
        f"messages without {SOURCE}:image.data": 1,
    }  # fmt: skip


def test_a_server_that_starts_again_is_found_again_even_if_it_counts_from_the_beginning(monkeypatch):
    monkeypatch.setattr(message_socket, "SILENCE_S", 0.3)
    with serving(zmq.REP, [serialize(*train(10))]) as address:
        _, stream = opened(address)
        assert len(received(stream, 6)[0]) == 6
        assert len(received(stream, 1, 0.5)[0]) == 0
    with serving(zmq.REP, [serialize(*train(n, second=2000)) for n in range(3)], port=int(address.rpartition(":")[2])):
        frames, lost = received(stream, 18)
    stream.close()
    assert len(frames) == 18
    assert lost == 0
    assert stream.faults["messages out of order"] == 1
    assert stream.faults["no answer: the server was asked again"] > 0


def test_a_message_cannot_run_code_or_claim_what_it_does_not_hold():
    import msgpack

    head = msgpack.packb({"source": "a", "content": "array", "path": "x", "dtype": "O", "shape": [1]})
    with pytest.raises(MessageError):
        unpack([head, b"\x80\x04cos\nsystem\n"])
    large = msgpack.packb({"source": "a", "content": "array", "path": "x", "dtype": "u1", "shape": [10**12]})
    with pytest.raises(MessageError):
        unpack([large, b"\x00"])


@pytest.mark.parametrize("axes", ["".join(p) for p in permutations("pmsf")] + ["".join(p) for p in permutations("psf")])
def test_axes_are_found_and_undone_in_any_order(axes):
    size = {"p": 5, "m": 2, "s": 3, "f": 4}
    frames = np.arange(5 * 2 * 3 * 4).reshape(5, 2, 3, 4) if "m" in axes else np.arange(60).reshape(5, 3, 4)
    letters = [letter for letter in "pmsf" if letter in axes]
    array = frames.transpose([letters.index(letter) for letter in axes])
    found = guess_axes(array.shape, tuple(size[letter] for letter in letters[1:]))
    assert found == axes
    np.testing.assert_array_equal(in_frame_order(array, found), frames)


def test_detector_units_become_photons():
    adu = np.array([-20, 0, 6.9, 7.1, 16.9, 17.1, np.nan, np.inf], np.float32)
    assert photons_from_adu(adu, 10.0).tolist() == [0, 0, 0, 1, 1, 2, 0, 0]


def test_streamed_detector_units_are_refused_with_the_remedy_or_converted():
    adu = FRAMES.astype(np.float32) * 8.0 + np.random.default_rng(1).normal(0, 0.5, FRAMES.shape).astype(np.float32)
    with (
        serving(zmq.REP, [serialize(*train(n, adu)) for n in range(5)]) as address,
        pytest.raises(InputError, match="--adu-per-photon"),
    ):
        opened(address)
    with serving(zmq.REP, [serialize(*train(n, adu)) for n in range(5)]) as address:
        _, stream = opened(address, adu_per_photon=8.0)
        frames, _ = received(stream, 6)
        stream.close()
    np.testing.assert_array_equal(frames, FRAMES)


def test_our_own_server_brings_its_geometry_along():
    served = frames_to_serve("cube")
    with FrameServer(served, 500.0, 0) as server:
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        live = open_live([], StreamOptions(address=server.address, idle_timeout_s=5.0))
        live._make(0).close()
        assert live.detector is not None
        np.testing.assert_allclose(live.detector.q, served.detector.q, atol=1e-9)
        np.testing.assert_array_equal(live.detector.mask, served.detector.mask)
        assert live.detector.energy_eV == pytest.approx(served.detector.energy_eV)
