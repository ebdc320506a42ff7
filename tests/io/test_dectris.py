"""DECTRIS Stream V2: messages built from its specification, compressed by HDF5's own filters."""

import datetime

import cbor2
import h5py
import hdf5plugin
import numpy as np
import pytest
import zmq

from napari_xrai.core.frames import BAD
from napari_xrai.io.live import StreamOptions, open_live
from napari_xrai.io.protocols import protocol_of
from napari_xrai.io.source import Beam, InputError
from napari_xrai.io.train import MessageError
from sender import serving

SHAPE = (12, 10)
FRAMES = np.random.default_rng(0).poisson(0.7, (9, *SHAPE)).astype(np.uint16)
TAGS = {"uint8": 64, "uint16": 69, "uint32": 70}
ARMED = datetime.datetime.now(datetime.UTC)
TICKS = 10_000_000


def packed(array, algorithm):
    """An array's bytes as HDF5's filter of that name leaves them in a chunk."""
    if algorithm is None:
        return array.tobytes()
    codec = {"bslz4": hdf5plugin.Bitshuffle(cname="lz4"), "lz4": hdf5plugin.LZ4()}[algorithm]
    with h5py.File.in_memory() as file:
        data = file.create_dataset("a", data=array, chunks=array.shape, **codec)
        chunk = data.id.read_direct_chunk((0,) * array.ndim)[1]
    size = array.dtype.itemsize if algorithm == "bslz4" else 0
    return cbor2.CBORTag(56500, [algorithm, size, chunk])


def multi_dim(array, algorithm=None):
    typed = cbor2.CBORTag(TAGS[array.dtype.name], packed(array, algorithm))
    return cbor2.CBORTag(40, [list(array.shape), typed])


def start(series=1, centre=(4.0, 7.0), mask=None, **more):
    message = {
        "type": "start", "arm_date": ARMED, "beam_center_x": centre[0], "beam_center_y": centre[1],
        "channels": ["threshold_1"], "detector_translation": [0.0, 0.0, 0.25], "image_dtype": "uint16",
        "image_size_x": SHAPE[1], "image_size_y": SHAPE[0], "incident_energy": 8000.0,
        "incident_wavelength": 12398.42 / 8000, "number_of_images": 9, "pixel_size_x": 75e-6, "pixel_size_y": 75e-6,
        "series_id": series, "series_unique_id": f"s{series}",
    }  # fmt: skip
    if mask is not None:
        message["pixel_mask"] = {"threshold_1": multi_dim(mask.astype(np.uint32))}
    return [cbor2.dumps(message | more, datetime_as_timestamp=False)]


def image(number, frame, algorithm=None, series=1):
    return [cbor2.dumps({
        "type": "image", "series_id": series, "series_unique_id": f"s{series}", "image_id": number,
        "series_date": ARMED, "start_time": [number * TICKS // 100, TICKS], "stop_time": [number * TICKS // 100, TICKS],
        "real_time": [1, TICKS], "data": {"threshold_1": multi_dim(frame, algorithm)},
    }, datetime_as_timestamp=False)]  # fmt: skip


def end(series=1):
    return [cbor2.dumps({"type": "end", "series_id": series, "series_unique_id": f"s{series}"})]


def collected(messages, n, **options):
    beam = options.pop("beam", Beam())
    with serving(zmq.PUSH, messages) as address:
        live = open_live([], StreamOptions(address=address, socket="PULL", idle_timeout_s=5.0, **options), beam=beam)
        stream, batches = live._make(0), []
        for _ in range(200):
            batch = stream.next_batch(0.05)
            if batch is not None:
                batches.append(batch)
            if sum(b.lost + (0 if b.frames is None else len(b.frames)) for b in batches) >= n:
                break
        stream.close()
    return live, stream, batches


def dense(batches):
    return np.concatenate([b.frames.dense().reshape(-1, *SHAPE) for b in batches if b.frames is not None])


@pytest.mark.parametrize("algorithm", [None, "bslz4", "lz4"])
def test_a_series_is_understood_however_it_is_compressed(algorithm):
    mask = np.zeros(SHAPE, np.uint32)
    mask[2, 3] = 1
    messages = [start(mask=mask), *(image(n, f, algorithm) for n, f in enumerate(FRAMES)), end()]
    live, stream, batches = collected(messages, 9)
    np.testing.assert_array_equal(dense(batches), FRAMES)
    assert "DECTRIS Stream V2 stream from" in live.sentence
    assert (live.detector.mask == BAD).sum() == 1 and live.detector.mask.reshape(SHAPE)[2, 3] == BAD
    assert live.detector.energy_eV == pytest.approx(8000, rel=1e-5)
    assert not stream.faults
    assert [int(b.names["imageId"][0]) for b in batches] == list(range(9))
    # start_time counts from the series' date
    assert batches[5].acquired - batches[0].acquired == pytest.approx(0.05, abs=1e-3)


def test_the_beam_centre_is_where_the_series_says():
    live, _, _ = collected([start(centre=(4.0, 7.0)), image(0, FRAMES[0])], 1)
    q = live.detector.q.reshape(*SHAPE, 3)
    corner = q[6:8, 3:5].mean((0, 1))  # the corner common to these four pixels
    assert np.hypot(*corner[:2]) < 1e-6
    step = np.linalg.norm(q[7, 5] - q[7, 4])
    assert step == pytest.approx(75e-6 / 0.25 * 8000 / 12398.42, rel=1e-3)


def test_pixels_without_data_have_no_photons_and_are_masked():
    frame = FRAMES[0].copy()
    frame[3, 3] = 65535
    live, _, batches = collected([start(), image(0, frame)], 1)
    assert dense(batches)[0, 3, 3] == 0
    assert live.detector.mask.reshape(SHAPE)[3, 3] == BAD and (live.detector.mask == BAD).sum() == 1


def test_a_series_under_another_geometry_brings_its_detector_and_one_of_another_shape_is_counted():
    messages = [
        start(), image(0, FRAMES[0]), end(), start(2, centre=(4.5, 7.0)), image(0, FRAMES[1], series=2), end(2),
        start(3, image_size_x=5), image(0, FRAMES[2][:, :5].copy(), series=3), image(0, FRAMES[1], series=2),
        [b"\xa1\x64typecrubbish"], image(1, FRAMES[3], series=2),
    ]  # fmt: skip
    live, stream, batches = collected(messages, 5)
    shifted = next(b.detector for b in batches if b.detector is not None)
    assert not np.allclose(shifted.q, live.detector.q)
    assert sum(b.lost for b in batches) == 3
    assert stream.faults["messages with frames of another shape"] == 1
    assert stream.faults["messages that came twice"] == 1
    assert stream.faults["damaged messages"] == 1


def test_a_stream_joined_in_mid_series_needs_its_geometry():
    messages = [image(n, f) for n, f in enumerate(FRAMES)]
    live, _, _ = collected(messages, 1)
    assert live.detector is None
    live, _, _ = collected(messages, 1, beam=Beam(energy_eV=8000, distance_m=0.25, pixel_size_m=75e-6))
    assert live.detector is not None


@pytest.mark.parametrize(
    "parts", [[b"GET / HTTP/1.1"], [b"\xa1"], [cbor2.dumps({"type": "other"})], [b"", b"", b""], [b""]]
)
def test_what_is_no_protocol_is_refused(parts):
    with pytest.raises((MessageError, InputError)):
        protocol_of(parts)[1](parts)
