"""Detectors that stream, as event source: a PUSH socket plays the detector."""

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cbor2
import h5py
import numpy as np
import pytest
import zmq
from tests.streamer.conftest import Start, wait_until
from tests.streamer.serializing import STAMP, Given, events, parameters_of, whole_stream

from lclstream.core.errors import DecodeError, InvalidConfigError, UnavailableError
from lclstream.streamer import simplon
from lclstream.streamer.config import parse_parameters
from lclstream.streamer.events import Event, open_event_source
from lclstream.streamer.simplon import (
    DateTime,
    EndMessage,
    ImageMessage,
    PackedArray,
    Rational,
    StartMessage,
    lclstreamer,
)
from lclstream.streamer.simplon.compression import compress_blocks
from lclstream.streamer.sources.inspection import describe
from lclstream.streamer.sources.simplon import SimplonEventSource
from lclstream.streamer.sources.simplon_series import EPOCH_S, MAX_SERIES, UNKNOWN_EXTENT
from lclstream.streamer.stopping import StopRequest

STARTED_S = 1_700_000_000
Push = Callable[..., zmq.Socket[bytes]]


@pytest.fixture
def push() -> Iterator[Push]:
    """Return a function that opens a detector's socket; it listens where none is named."""
    context = zmq.Context()
    opened: list[zmq.Socket[bytes]] = []

    def one(connect: str = "") -> zmq.Socket[bytes]:
        socket = context.socket(zmq.PUSH)
        opened.append(socket)
        socket.set(zmq.SNDTIMEO, 20_000)
        if connect:
            socket.connect(connect)
        else:
            socket.bind("tcp://127.0.0.1:*")
        return socket

    yield one
    for socket in opened:
        socket.close(linger=0)
    context.term()


def address(socket: zmq.Socket[bytes]) -> str:
    return socket.get_string(zmq.LAST_ENDPOINT)


def opened(
    document: dict[str, Any], url: str, rank: int = 0, size: int = 1, **config: Any
) -> SimplonEventSource:
    document["source_identifier"] = url
    document["event_source"] = {"type": "SimplonEventSource", "idle_timeout_s": 20, **config}
    source = open_event_source(parse_parameters(document), rank, size)
    assert isinstance(source, SimplonEventSource)
    return source


def frame(number: int, shape: tuple[int, int] = (8, 9)) -> np.ndarray[Any, Any]:
    return np.random.default_rng(number).integers(0, 9, shape, np.uint16)


def image(number: int, series: int = 4, **keys: Any) -> ImageMessage:
    return ImageMessage(
        series_id=series, series_unique_id=f"u{series}", image_id=number,
        data={
            "threshold_1": PackedArray.pack(frame(number), "bslz4"),
            "threshold_2": PackedArray.pack(frame(number + 100)),
        },
        series_date=DateTime.of_ns(STARTED_S * 10**9 + 7), start_time=Rational(number, 120), **keys,
    )  # fmt: skip


def start_of(series: int = 4, **fields: Any) -> StartMessage:
    said = {"channels": ["threshold_1", "threshold_2"], "incident_wavelength": 1.3, **fields}
    return StartMessage(series_id=series, series_unique_id=f"u{series}", fields=said)


def end_of(series: int = 4) -> EndMessage:
    return EndMessage(series_id=series, series_unique_id=f"u{series}")


def send(socket: zmq.Socket[bytes], *messages: simplon.Message | bytes) -> None:
    for message in messages:
        if not isinstance(message, bytes):
            message = b"".join(simplon.encode(message))
        socket.send(message)


def all_of(source: SimplonEventSource, *wanted: tuple[str, str]) -> list[tuple[Event, list[Any]]]:
    try:
        return [(event, [event.read(*each) for each in wanted]) for event in source]
    finally:
        source.close()


def test_a_series_becomes_events(document: dict[str, Any], push: Push) -> None:
    detector = push()
    source = opened(document, address(detector), detector="eiger")
    send(detector, start_of(number_of_images=3), *map(image, range(3)), end_of())
    found = all_of(
        source, ("eiger", "raw.raw"), ("eiger", "raw.threshold_2"), ("eiger", "raw.calib"),
        ("start", "incident_wavelength"), ("image", "start_time"),
    )  # fmt: skip
    assert [event.index for event, _ in found] == [0, 1, 2]
    assert [event.run for event, _ in found] == [4, 4, 4]
    seconds = STARTED_S - EPOCH_S
    stamps = [seconds << 32 | 7 + number * 10**9 // 120 for number in range(3)]
    assert [event.timestamp for event, _ in found] == stamps
    assert {event.run_timestamp for event, _ in found} == {seconds << 32 | 7}
    for number, (_, (first, second, again, wavelength, time)) in enumerate(found):
        assert np.array_equal(first, frame(number))
        assert first.dtype == np.uint16
        assert np.array_equal(second, frame(number + 100))
        assert again is first
        assert wavelength == 1.3
        assert time == pytest.approx(number / 120)
    assert source.counts == {
        "messages": 5, "bytes": source.counts["bytes"], "series": 1, "images": 3,
        "missing_images": 0, "images_without_start": 0,
    }  # fmt: skip


def test_what_our_own_serializer_adds_is_taken_over(document: dict[str, Any], push: Push) -> None:
    detector = push()
    source = opened(document, address(detector), experiment="not this", run=9)
    said = {
        "timestamp": 2**64 - 3, "event_index": 77, "run": 51, "experiment": "mfx100852324",
        "step": 6, "values": {"SIOC:SYS0:ML00:AO192": 1.25, "ebeamh.raw.energy": 3600.5},
    }  # fmt: skip
    send(detector, start_of(), image(0, user_data=said), end_of())
    ((event, values),) = all_of(
        source, ("user_data", "values.SIOC:SYS0:ML00:AO192"),
        ("user_data", "values.ebeamh.raw.energy"), ("user_data", "absent"),
    )  # fmt: skip
    assert (event.timestamp, event.index, event.run, event.step) == (2**64 - 3, 77, 51, 6)
    assert event.experiment == "mfx100852324"
    assert values == [1.25, 3600.5, None]


def test_a_foreign_image_may_lack_nearly_everything(document: dict[str, Any], push: Push) -> None:
    detector = push()
    source = opened(document, address(detector), run=5, experiment="tst")
    pixels = cbor2.CBORTag(40, [[2, 2], cbor2.CBORTag(64, b"abcd")])
    bare = cbor2.dumps({"type": "image", "data": {"a": pixels}})
    send(detector, bare, bare, cbor2.dumps({"type": "end"}))
    found = all_of(source, ("detector", "raw.raw"), ("start", "frame_time"), ("image", "image_id"))
    assert [(event.index, event.timestamp, event.run) for event, _ in found] == [
        (0, 0, 5), (1, 1, 5),
    ]  # fmt: skip
    assert found[0][0].experiment == "tst"
    pixel, frame_time, number = found[1][1]
    assert pixel.tolist() == [[97, 98], [99, 100]]
    assert (frame_time, number) == (None, None)
    assert source.counts["images_without_start"] == 2


def test_readings_that_cannot_be_are_named(document: dict[str, Any], push: Push) -> None:
    detector = push()
    source = opened(document, address(detector))
    fields: dict[str, Any] = {
        "goniometer": {"omega": {"start": 0.5}},
        "pixel_mask": {"threshold_1": b"\0" * 4},
    }
    send(detector, start_of(arm_date=DateTime.of_ns(0), **fields), image(0), end_of())
    event = next(iter(source))
    assert event.read("start", "goniometer.omega.start") == 0.5
    assert event.read("start", "arm_date") == "1970-01-01T00:00:00.000000000Z"
    assert np.array_equal(event.read("start", "pixel_mask.threshold_1"), [0] * 4)  # type: ignore[arg-type]
    assert event.read("start", "channels") is not None
    assert event.read("start", "image_dtype") is None
    for name, field, text in [
        ("detektor", "raw.raw", r"no detector or variable 'detektor' \(did you mean 'detector'"),
        ("detector", "raw.threshold_3", r"no field 'raw.threshold_3' \(did you mean 'raw.thresh"),
        ("start", "frame_tim", r"no field 'frame_tim' \(did you mean 'frame_time'"),
        ("start", "goniometer", r"'goniometer' is neither number, text nor array; it has: omega"),
        ("image", "exposure", r"no field 'exposure'"),
    ]:
        with pytest.raises(InvalidConfigError, match=text):
            event.read(name, field)
    source.close()


def test_several_series_follow_each_other(document: dict[str, Any], push: Push) -> None:
    detector = push()
    source = opened(document, address(detector), series=3, late_s=0.2)
    # The second one says how long it is, and is cut short.
    send(detector, start_of(1), image(0, 1), image(1, 1), end_of(1))
    send(detector, start_of(2, number_of_images=5), image(0, 2), image(3, 2), end_of(2))
    send(detector, start_of(3), image(0, 3), end_of(3))
    found = all_of(source)
    assert [(event.run, event.index) for event, _ in found] == [
        (1, 0), (1, 1), (2, 2), (2, 5), (3, 7),
    ]  # fmt: skip
    assert source.counts["missing_images"] == 3


def test_series_that_overlap_share_no_index(document: dict[str, Any], push: Push) -> None:
    detector = push()
    source = opened(document, address(detector), series=2)
    send(detector, start_of(1), image(0, 1), start_of(2), image(0, 2), image(1, 1), image(1, 2))
    send(detector, end_of(1), end_of(2))
    assert [(event.run, event.index) for event, _ in all_of(source)] == [
        (1, 0), (2, UNKNOWN_EXTENT), (1, 1), (2, UNKNOWN_EXTENT + 1),
    ]  # fmt: skip


def test_senders_that_connect_may_be_overtaken(document: dict[str, Any], push: Push) -> None:
    source = opened(document, "tcp://127.0.0.1:*", role="server", late_s=10)
    first, second = push(source.addresses[0]), push(source.addresses[0])
    send(first, start_of(number_of_images=4), image(0), image(2), end_of())

    def late() -> None:
        wait_until(lambda: source.counts["messages"] == 4)
        send(second, image(1), image(3))

    thread = threading.Thread(target=late)
    thread.start()
    assert sorted(event.index for event, _ in all_of(source)) == [0, 1, 2, 3]
    thread.join()


def test_one_source_reads_several_senders(document: dict[str, Any], push: Push) -> None:
    detectors = [push() for _ in range(3)]
    source = opened(document, ",".join(map(address, detectors)), late_s=0.3)
    for number, detector in enumerate(detectors):
        send(detector, image(number), image(number + 3))
    send(detectors[2], end_of())
    assert sorted(event.index for event, _ in all_of(source)) == list(range(6))


def test_ranks_may_share_the_images_only_when_told(document: dict[str, Any], push: Push) -> None:
    with pytest.raises(InvalidConfigError, match="a message reaches one rank only"):
        opened(document, "tcp://127.0.0.1:9", 0, 2)
    detector = push()
    ranks = [
        opened(document, address(detector), rank, 2, ranks="share", idle_timeout_s=1.5)
        for rank in range(2)
    ]
    found: list[list[Event]] = [[], []]

    def take(rank: int) -> None:
        # A rank that has not got one yet would leave them all to the other.
        found[rank] += [event for event, _ in all_of(ranks[rank])]

    threads = [threading.Thread(target=take, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    sent = 0
    while not all(each.counts["images"] for each in ranks) or sent < 6:
        send(detector, image(sent))
        sent += 1
    send(detector, end_of())
    for thread in threads:
        thread.join()
    indices = [event.index for events in found for event in events]
    assert sorted(indices) == list(range(sent))
    assert all(found)


def test_lclstreamers_dialect_becomes_events(
    document: dict[str, Any], push: Push, vectors: Path
) -> None:
    detector = push()
    source = opened(document, address(detector), detector="jungfrau")
    folder = vectors / "simplon-slac66cc566-f64"
    send(detector, *((folder / f"{number:04}.bin").read_bytes() for number in range(7)))
    found = all_of(
        source, ("jungfrau", "raw.calib"), ("image", "photon_energy"), ("jungfrau", "_detid"),
        ("image", "beam_direction.angle_y"), ("jungfrau", "raw._det_geotxt_default"),
    )  # fmt: skip
    assert [event.index for event, _ in found] == list(range(5))
    for number, (event, (pixels, energy, name, angle, geometry)) in enumerate(found):
        expected = np.random.default_rng(1000 + number).poisson(2.0, (2, 16, 32))
        assert pixels.dtype == np.float64
        assert np.array_equal(pixels, expected)
        assert (energy, angle, name) == (3600.0 + number, 0.2, "fakedet_0001")
        assert geometry == "# fake geometry\nJUNGFRAU:V1 0 0 0\n"
        assert (event.run, event.experiment) == (51, "mfx100852324")
        assert event.run_timestamp == 7_310_000_000_000_000_000
        assert event.timestamp == int(float(((1_700_000_000 + number) << 32) | 123_456_789))


def test_the_exact_time_stamp_of_our_own_dialect_is_kept(
    document: dict[str, Any], push: Push
) -> None:
    detector = push()
    source = opened(document, address(detector), dialect="lclstreamer")
    blocks = compress_blocks(frame(1), lclstreamer.BLOCK_ITEMS * 2)
    stamp = (1_700_000_000 << 32) | 123_456_789
    start: dict[str, Any] = {"type": "start", "run": "51", "datatype": "uint16", "shape": "8x9"}
    pixels = {"type": "image", "run": "51", "compressed_data": blocks.data, "timestamp": stamp}
    for fields, prefix in ((start, b"c"), (pixels, b"m"), ({"type": "stop", "run": "51"}, b"c")):
        send(detector, b"".join(lclstreamer.encode(fields, prefix)))
    ((event, (read,)),) = all_of(source, ("detector", "raw.raw"))
    assert event.timestamp == stamp
    assert np.array_equal(read, frame(1))
    assert read.dtype == np.uint16


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([b"\x00"], "message 1: neither Stream V2 nor lclstreamer: begins with 00"),
        ([b"\xd9\xd9\xf7\xa1"], "message 1: CBOR, byte 4: cut off"),
        ([start_of(), start_of()], "message 2: series 4 begins twice"),
        ([b"m" + cbor2.dumps({"type": "image", "compressed_data": b""})], "start did not come"),
    ],
)  # fmt: skip
def test_a_damaged_message_is_named(
    document: dict[str, Any], push: Push, messages: Sequence[Any], text: str
) -> None:
    detector = push()
    source = opened(document, address(detector))
    send(detector, *messages)
    with pytest.raises(DecodeError, match=rf"^{address(detector)}: {text}|{text}$"):
        all_of(source)


def test_a_damaged_image_does_not_hide_what_came_before(
    document: dict[str, Any], push: Push
) -> None:
    detector = push()
    source = opened(document, address(detector))
    good = b"".join(simplon.encode(image(0)))
    at = good.index(frame(100).tobytes())
    bad = good[: at - 200] + bytes(100) + good[at - 100 :]
    send(detector, start_of(), good, bad)
    events = iter(source)
    assert np.array_equal(next(events).read("detector", "raw.raw"), frame(0))  # type: ignore[arg-type]
    with pytest.raises(DecodeError):
        next(events).read("detector", "raw.raw")
    source.close()


def test_the_older_stream_becomes_events(document: dict[str, Any], push: Push) -> None:
    detector = push()
    source = opened(document, address(detector), detector="eiger", run=8)
    config = b'{"wavelength": 1.1, "nimages": 2, "ntrigger": 1}'
    detector.send_multipart([b'{"htype": "dheader-1.0", "series": 3}', config])
    for number in range(2):
        about = b'{"htype": "dimage_d-1.0", "shape": [9, 8], "type": "uint16", "encoding": "<"}'
        head = b'{"htype": "dimage-1.0", "series": 3, "frame": %d}' % number
        detector.send_multipart([head, about, frame(number).tobytes(), b"{}"])
    detector.send(b'{"htype": "dseries_end-1.0", "series": 3}')
    found = all_of(source, ("eiger", "raw.raw"), ("start", "incident_wavelength"))
    assert [(event.index, event.run) for event, _ in found] == [(0, 8), (1, 8)]
    for number, (_, (pixels, wavelength)) in enumerate(found):
        assert np.array_equal(pixels, frame(number))
        assert wavelength == 1.1


def test_a_message_of_several_parts_that_makes_no_sense_is_named(
    document: dict[str, Any], push: Push
) -> None:
    detector = push()
    source = opened(document, address(detector))
    detector.send_multipart([b"a", b"b"])
    with pytest.raises(DecodeError, match="message 1: part 1: no JSON"):
        all_of(source)


@pytest.mark.parametrize(
    ("messages", "config", "text"),
    [
        ((), {"start_timeout_s": 0.1}, "nothing came from tcp://.* within 0.1 s"),
        ((start_of(number_of_images=3), image(0)), {"idle_timeout_s": 0.5},
         "for 0.5 s, and series 4 has not ended after 1 of 3 images"),
        ((image(0), end_of()), {"idle_timeout_s": 0.5, "series": 2},
         "for 0.5 s, and 1 of 2 series have ended"),
    ],
)  # fmt: skip
def test_silence_is_a_fault(
    document: dict[str, Any], push: Push, messages: Any, config: Any, text: str
) -> None:
    detector = push()
    source = opened(document, address(detector), **config)
    send(detector, *messages)
    with pytest.raises(UnavailableError, match=text):
        all_of(source)


def test_silence_between_series_is_the_end(document: dict[str, Any], push: Push) -> None:
    detector = push()
    source = opened(document, address(detector), series=0, idle_timeout_s=0.5)
    send(detector, start_of(1), image(0, 1), end_of(1), start_of(2), image(0, 2), end_of(2))
    assert [event.run for event, _ in all_of(source)] == [1, 2]


def test_the_wish_to_end_cuts_the_wait_short(document: dict[str, Any], push: Push) -> None:
    source = opened(document, address(push()), start_timeout_s=600)
    with StopRequest() as stop:
        source.interrupt_by(stop)
        stop.request("enough")
        assert all_of(source) == []


@pytest.mark.parametrize(
    ("identifier", "config", "text"),
    [
        ("", {}, "source_identifier must be an address"),
        ("run.h5", {}, "source_identifier must be tcp://HOST:PORT or ipc://PATH"),
        ("tcp://host:port", {}, "source_identifier must be tcp://HOST:PORT"),
        ("tcp://a:1", {"ranks": "share", "series": 2}, "series must be 1"),
        ("tcp://a:1", {"ranks": "share", "dialect": "lclstreamer"}, "ranks cannot share"),
        ("tcp://203.0.113.1:31001", {"role": "server"}, "cannot listen on tcp://203.0.113.1:31001"),
    ],
)  # fmt: skip
def test_mistakes_are_named(
    document: dict[str, Any], identifier: str, config: Any, text: str
) -> None:
    with pytest.raises(InvalidConfigError, match=text):
        opened(document, identifier, **config)


def stack(number: int, dtype: str) -> np.ndarray[Any, Any]:
    return np.random.default_rng(number).integers(3, 90, (2, 6, 8)).astype(dtype)


DIALECTS: list[dict[str, Any]] = [
    {"dialect": "stream2"},
    {"dialect": "lclstreamer", "polarization_fraction": 1, "polarization_axis": [1, 0, 0],
     "data_collection_rate": "120Hz", "detector_name": "jungfrau", "detector_type": "Area"},
]  # fmt: skip


@pytest.mark.parametrize("serializer", DIALECTS, ids=["stream2", "lclstreamer"])
@pytest.mark.parametrize("dtype", ["u2", "i2", "f4"])
def test_what_our_own_streamer_sends_comes_back(
    document: dict[str, Any], push: Push, dtype: str, serializer: dict[str, Any]
) -> None:
    given: list[Given] = [
        {
            "frame": None if number == 2 else stack(number, dtype),
            "wavelength": np.float64(1.25 + number),
            "peaks": np.arange(6, dtype="f4").reshape(3, 2) * number,
            "name": "é" * number,
            "absent": None if number % 2 else np.int32(-7),
        }
        for number in range(5)
    ]
    settings = {"type": "SimplonBinarySerializer", "data_source_to_serialize": "frame"}
    parameters = parameters_of(given[0], 2, **settings, **serializer)
    detector = push()
    source = opened(document, address(detector), detector="jungfrau")
    send(detector, *whole_stream(parameters, events(given)))
    found = all_of(
        source, ("jungfrau", "raw.calib"), ("wavelength", ""), ("peaks", ""), ("name", ""),
        ("absent", ""),
    )  # fmt: skip
    assert len(found) == 5
    for number, (event, (pixels, wavelength, peaks, name, absent)) in enumerate(found):
        assert (event.timestamp, event.index, event.step) == (STAMP + number, number, number // 2)
        assert (event.run, event.experiment) == (3, "tst000124")
        if number == 2:
            # Numbers that mean nothing are not told from others.
            assert pixels is None or dtype == "u2"
        else:
            assert pixels.dtype == np.dtype(dtype)
            assert np.array_equal(pixels, stack(number, dtype))
        assert wavelength == 1.25 + number
        assert np.array_equal(peaks, np.arange(6).reshape(3, 2) * number)
        assert name == "é" * number
        assert absent == (None if number % 2 else -7)


def test_the_streamer_turns_a_series_into_files(
    document: dict[str, Any], push: Push, start: Start, tmp_path: Path
) -> None:
    detector = push()
    document["source_identifier"] = address(detector)
    document["event_source"] = {"type": "SimplonEventSource", "detector": "eiger"}
    document["data_sources"] = {
        "timestamp": {"type": "Psana2Timestamp"},
        "frame": {"type": "Psana2DetectorInterface", "psana_name": "eiger",
                  "psana_fields": "raw.raw"},
    }  # fmt: skip
    document["data_handlers"] = [
        {"type": "BinaryFileWritingDataHandler", "write_directory": str(tmp_path / "out")}
    ]
    process = start(document)
    send(detector, start_of(number_of_images=4), *map(image, range(4)), end_of())
    assert process.wait(40) == 0, process.communicate()[1]
    frames = []
    for path in sorted((tmp_path / "out").glob("*.h5")):
        with h5py.File(path) as file:
            frames += list(file["frame"][...])
            assert file["lclstream/timestamp"].dtype == np.uint64
    assert np.array_equal(frames, [frame(number) for number in range(4)])


def test_inspect_shows_the_beginning_of_a_stream(push: Push) -> None:
    detector = push()
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(describe(address(detector))))
    reader.start()
    send(detector, start_of(goniometer={"omega": {"start": 0.5}}, table=np.zeros((3, 4), "f4")))
    send(detector, image(7, user_data={"run": 5}))
    reader.join()
    assert [line.strip() for line in lines if not line.startswith("message")] == [
        "start of series 4 u4", "channels: ['threshold_1', 'threshold_2']",
        "incident_wavelength: 1.3", "goniometer.omega.start: 0.5", "table: float32, 3 x 4",
        "image 7 of series 4 u4", "raw.threshold_1: uint16, 8 x 9, bslz4",
        "raw.threshold_2: uint16, 8 x 9", "user_data.run: 5",
    ]  # fmt: skip
    assert lines[0].startswith("message 1, ")
    assert lines[0].endswith(" bytes, taken out of the stream:")


def test_inspect_shows_messages_in_files(tmp_path: Path, vectors: Path) -> None:
    (tmp_path / "r0_0.cbor").write_bytes(b"".join(simplon.encode(end_of())))
    lines = list(describe(str(tmp_path / "r0_0.cbor")))
    assert lines == [f"{tmp_path}/r0_0.cbor", "  end of series 4 u4"]
    lines = list(describe(str(vectors / "simplon-slac66cc566-f64" / "0001.bin")))
    assert lines[1] == "  lclstreamer image"
    assert "  beam_direction.angle_y: 0.2" in lines
    (tmp_path / "bad.cbor").write_bytes(b"\xd9\xd9\xf7\xa1")
    with pytest.raises(DecodeError, match=r"/bad\.cbor: CBOR, byte 4: cut off"):
        list(describe(str(tmp_path / "bad.cbor")))


def test_a_series_of_the_same_name_may_follow(document: dict[str, Any], push: Push) -> None:
    detector = push()
    source = opened(document, address(detector), series=2)
    for _ in range(2):
        send(detector, start_of(number_of_images=2), image(0), image(1), end_of())
    found = all_of(source, ("start", "incident_wavelength"))
    assert [event.index for event, _ in found] == [0, 1, 2, 3]
    assert [values for _, values in found] == [[1.3]] * 4


def test_ranks_share_one_series_only(document: dict[str, Any], push: Push) -> None:
    detector = push()
    source = opened(document, address(detector), 0, 2, ranks="share")
    send(detector, image(0, 1), image(0, 2))
    with pytest.raises(DecodeError, match="message 2: series 2: ranks can share one series only"):
        all_of(source)


def test_many_series_keep_neither_tables_nor_accounts(document: dict[str, Any], push: Push) -> None:
    detector = push()
    source = opened(document, address(detector), series=100)
    indices = []

    def take() -> None:
        indices.extend([event.index for event, _ in all_of(source)])

    thread = threading.Thread(target=take)
    thread.start()
    for number in range(100):
        send(detector, start_of(number), image(0, number), image(1, number), end_of(number))
    thread.join()
    assert indices == list(range(200))
    known = source._book._series.values()
    assert len(known) <= MAX_SERIES
    assert sum(series.start is not None for series in known) == 1
