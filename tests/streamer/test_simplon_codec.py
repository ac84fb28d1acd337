"""Messages of DECTRIS Stream V2 and of lclstreamer's dialect, judged by other people's decoders."""

import datetime
import json
import math
import os
import random
import subprocess
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cbor2
import h5py
import hdf5plugin
import numcodecs.lz4
import numpy as np
import pytest
from dectris.compression import decompress
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.helpers.oracles import oracle

from lclstream.core.errors import DecodeError
from lclstream.streamer import simplon
from lclstream.streamer.simplon import (
    DateTime,
    EndMessage,
    ImageMessage,
    PackedArray,
    Rational,
    StartMessage,
    Tagged,
    cbor,
    compression,
    lclstreamer,
    stream1,
)

FUZZ_INPUTS = 1_000_000 if os.environ.get("LCLSTREAM_SOAK") else 2000
DTYPES = ("u1", "<u2", "<u4", "<u8", "i1", "<i2", "<i4", "<i8", "<f2", "<f4", "<f8", ">u2", ">f4")


def image_of(dtype: str, shape: tuple[int, ...] = (37, 53)) -> np.ndarray[Any, Any]:
    values = np.random.default_rng(5).poisson(2.0, shape)
    return values.astype(dtype)


def message_of(array: Any, compress: Any = None, **keys: Any) -> ImageMessage:
    return ImageMessage(data={"threshold_1": PackedArray.pack(array, compress)}, **keys)


def joined(pieces: tuple[memoryview, ...]) -> bytes:
    return b"".join(pieces)


def by_others(message: bytes) -> dict[str, Any]:
    """Decode a message with cbor2 and the vendor's decompression."""

    def understand(tag: cbor2.CBORTag, immutable: bool = False) -> Any:
        del immutable
        value = tag.value
        if tag.tag == 56500:
            return decompress(bytes(value[2]), value[0], elem_size=value[1])
        if tag.tag == 40:
            return value[1].reshape(value[0])
        dtypes = {64: "u1", 65: ">u2", 69: "<u2", 70: "<u4", 71: "<u8", 72: "i1", 77: "<i2",
                  78: "<i4", 79: "<i8", 81: ">f4", 84: "<f2", 85: "<f4", 86: "<f8"}  # fmt: skip
        return np.frombuffer(value, dtypes[tag.tag])

    return dict(cbor2.loads(message, tag_hook=understand))


@pytest.fixture(scope="module")
def detector_files() -> Path:
    """Return the folder of what was recorded of EIGER2 16M detectors."""
    python = oracle("tickit-devices", ["tickit-devices==0.4.1"], without=[
        "tickit", "softioc", "pydantic", "apischema", "cbor2", "typing_extensions",
    ])  # fmt: skip
    code = "import importlib.util as u; print(u.find_spec('tickit_devices').origin)"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return Path(done.stdout.strip()).parent / "eiger" / "data"


@pytest.fixture(scope="module")
def detector(detector_files: Path) -> dict[str, bytes]:
    """Return the messages of a series."""
    folder = detector_files / "stream2"
    return {name: (folder / f"{name}.cbor").read_bytes() for name in ("start", "image", "end")}


# The first test makes the oracle's environment, which may need a download.
@pytest.mark.timeout(300)
def test_a_detectors_own_image_is_unpacked(detector: dict[str, bytes]) -> None:
    image = simplon.decode(detector["image"])
    assert isinstance(image, ImageMessage)
    assert (image.series_id, image.image_id) == (15614, 0)
    assert image.series_date is not None
    assert image.series_date.ns() == 1_696_348_069_434_000_000
    assert image.stop_time == Rational(215873, 50_000_000)
    array = image.data["threshold_1"].unpack()
    assert array.shape == (4362, 4148)
    assert array.dtype == np.uint16
    assert np.array_equal(array, by_others(detector["image"])["data"]["threshold_1"])


def test_a_detectors_own_start_lacks_the_magic_and_some_arrays(detector: dict[str, bytes]) -> None:
    start = simplon.decode(detector["start"])
    assert isinstance(start, StartMessage)
    assert start.series_unique_id == "01HBV3JPF9T4ZDPADX6EMK6XMZ"
    assert start.fields["channels"] == ["threshold_1"]
    assert start.fields["pixel_mask"]["threshold_1"] == b"\0\0\0\0"
    assert start.fields["arm_date"] == DateTime("2023-10-03T17:47:48.329000+02:00")
    assert "image_dtype" not in start.fields


def test_a_detectors_own_messages_are_written_again_byte_for_byte(
    detector: dict[str, bytes],
) -> None:
    for message in detector.values():
        written = joined(simplon.encode(simplon.decode(message)))
        assert written.removeprefix(cbor.MAGIC) == message.removeprefix(cbor.MAGIC)


@pytest.mark.parametrize("compress", [None, "bslz4"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_others_read_our_images(dtype: str, compress: Any) -> None:
    array = image_of(dtype)
    message = joined(simplon.encode(message_of(array, compress, series_id=3, image_id=9)))
    assert message.startswith(cbor.MAGIC)
    found = by_others(message)
    assert next(iter(found)) == "type"
    assert (found["type"], found["series_id"], found["image_id"]) == ("image", 3, 9)
    assert found["data"]["threshold_1"].dtype == np.dtype(dtype)
    assert np.array_equal(found["data"]["threshold_1"], array)
    ours = simplon.decode(message)
    assert isinstance(ours, ImageMessage)
    back = ours.data["threshold_1"].unpack()
    assert back.dtype == np.dtype(dtype)
    assert np.array_equal(back, array)


def test_what_must_be_a_float_is_one() -> None:
    fields = {
        "beam_center_x": 512, "detector_translation": [0, 0, np.float32(0.25)],
        "goniometer": {"omega": {"start": 0, "increment": 1}}, "image_size_x": 1030,
        "threshold_energy": {"threshold_1": 6000}, "count_time": np.int64(1), "user_data": 7,
    }  # fmt: skip
    found = by_others(joined(simplon.encode(StartMessage(fields=fields))))
    assert list(found) == ["type", "series_id", "series_unique_id", *fields]
    floats = [
        found["beam_center_x"], *found["detector_translation"], found["count_time"],
        found["threshold_energy"]["threshold_1"], *found["goniometer"]["omega"].values(),
    ]  # fmt: skip
    assert [type(value) for value in floats] == [float] * len(floats)
    assert floats == [512.0, 0.0, 0.0, 0.25, 1.0, 6000.0, 0.0, 1.0]
    assert type(found["image_size_x"]) is type(found["user_data"]) is int


def test_what_goes_in_comes_out() -> None:
    image = ImageMessage(
        series_id=2**40, series_unique_id="run 7", image_id=5,
        data={"default": PackedArray.pack(np.arange(6, dtype="u4").reshape(2, 3))},
        series_date=DateTime.of_ns(1_700_000_000_123_456_789), start_time=Rational(1, 120),
        stop_time=Rational(2, 120), real_time=Rational(1, 240),
        user_data={"timestamp": 2**64 - 1, "text": "é", "negative": -(2**64), "none": None},
        fields={"of_ours": True},
    )  # fmt: skip
    back = simplon.decode(joined(simplon.encode(image)))
    assert isinstance(back, ImageMessage)
    assert np.array_equal(back.data["default"].unpack(), [[0, 1, 2], [3, 4, 5]])
    for name in ("series_id", "series_unique_id", "image_id", "series_date", "start_time",
                 "stop_time", "real_time", "user_data", "fields"):  # fmt: skip
        assert getattr(back, name) == getattr(image, name)
    arrays = {"a": np.eye(3, dtype="f4")}
    table = {"countrate_correction_lookup_table": np.arange(9)}
    start = StartMessage(series_id=1, fields={"flatfield": arrays, **table})
    found = simplon.decode(joined(simplon.encode(start)))
    assert np.array_equal(found.fields["flatfield"]["a"].unpack(), np.eye(3))
    assert found.fields["countrate_correction_lookup_table"].unpack().tolist() == list(range(9))
    end = EndMessage(series_id=9, series_unique_id="x")
    assert simplon.decode(joined(simplon.encode(end))) == end


@pytest.mark.parametrize("shape", [(1, 1), (0, 4), (3, 8193), (2, 3, 4, 5), (7,), (4096,)])
def test_any_shape_is_packed(shape: tuple[int, ...]) -> None:
    for compress in (None, "bslz4"):
        message = joined(simplon.encode(message_of(image_of("<u2", shape), compress)))
        back = simplon.decode(message)
        assert isinstance(back, ImageMessage)
        array = back.data["threshold_1"].unpack()
        assert array.shape == shape
        assert np.array_equal(array, image_of("<u2", shape))


def test_an_image_is_not_copied() -> None:
    array = image_of("<u2", (100, 100))
    pieces = simplon.encode(message_of(array))
    assert any(np.shares_memory(np.frombuffer(piece, np.uint8), array) for piece in pieces)
    received = joined(pieces)
    back = simplon.decode(received)
    assert isinstance(back, ImageMessage)
    unpacked = back.data["threshold_1"].unpack()
    assert np.shares_memory(unpacked, np.frombuffer(received, np.uint8))
    turned = np.asfortranarray(array)
    assert (
        by_others(joined(simplon.encode(message_of(turned))))["data"]["threshold_1"][7, 3]
        == (array[7, 3])
    )


@pytest.mark.parametrize("codec", ["bslz4", "lz4"])
@pytest.mark.parametrize("dtype", ["u1", "<u2", "<u4", "<f8"])
def test_the_filters_of_hdf5_write_what_we_unpack(tmp_path: Path, codec: str, dtype: str) -> None:
    array = image_of(dtype, (211, 97))
    chosen = hdf5plugin.Bitshuffle() if codec == "bslz4" else hdf5plugin.LZ4(nbytes=8192)
    with h5py.File(tmp_path / "one.h5", "w") as file:
        made = file.create_dataset("d", data=array, chunks=array.shape, **chosen)
        chunk = made.id.read_direct_chunk((0, 0))[1]
    packed = PackedArray(array.dtype, array.shape, (chunk,), codec, array.itemsize)
    assert np.array_equal(packed.unpack(), array)


def test_a_column_major_array_is_turned() -> None:
    array = np.arange(6, dtype="u1").reshape(2, 3)
    typed = cbor2.CBORTag(64, array.tobytes(order="F"))
    data = {"a": cbor2.CBORTag(1040, [[2, 3], typed])}
    message = simplon.decode(cbor2.dumps({"type": "image", "data": data}))
    assert isinstance(message, ImageMessage)
    assert np.array_equal(message.data["a"].unpack(), array)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**64), 2**64 - 1) | st.text() | st.binary()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    | st.builds(lambda value: cbor2.CBORTag(60000, value), inner),
    max_leaves=30,
)  # fmt: skip


def ours(value: Any) -> Any:
    if isinstance(value, cbor2.CBORTag):
        return Tagged(value.tag, ours(value.value))
    if isinstance(value, dict):
        return {key: ours(each) for key, each in value.items()}
    return [ours(each) for each in value] if isinstance(value, list) else value


@given(value=values)
@settings(deadline=None)
def test_cbor_is_that_of_others(value: Any) -> None:
    written = cbor2.dumps(value)
    assert cbor.loads(written) == ours(value)
    assert joined(cbor.dumps(ours(value))) == written


@pytest.mark.parametrize(
    ("message", "value"),
    [
        ("f97c00", math.inf), ("fa47c35000", 100000.0), ("f93c00", 1.0), ("f7", None),
        ("9f0102ff", [1, 2]), ("bf616101ff", {"a": 1}), ("7f616161626163ff", "abc"),
        ("5f41014102ff", b"\x01\x02"), ("9fff", []), ("1bffffffffffffffff", 2**64 - 1),
        ("3bffffffffffffffff", -(2**64)), ("1818", 24), ("d9d9f7a0", {}),
    ],
)  # fmt: skip
def test_every_form_of_cbor_is_read(message: str, value: Any) -> None:
    assert cbor.loads(bytes.fromhex(message)) == value


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ("", r"byte 0: cut off: 1 bytes are announced, 0 are there"),
        ("5b00ffffffffffffff00", r"byte 9: cut off: 72057594037927935 bytes are announced, 1"),
        ("9bffffffffffffffff01", r"byte 10: cut off"),
        ("a1", r"byte 1: cut off"), ("0102", r"byte 1: 1 bytes behind the end"),
        ("a2616101616102", r"byte 4: a map with key 'a' twice"),
        ("a1f601", r"byte 1: a map with unusable key"), ("a1ff", r"byte 1: ends before"),
        ("ff", r"byte 0: an end of nothing"), ("81ff", r"byte 1: ends before it is complete"),
        ("62c328", r"byte 0: text that is not UTF-8"), ("f8ff", r"byte 0: unknown simple value 24"),
        ("1c", r"byte 0: malformed: additional information 28"),
        ("5f6161ff", r"byte 1: a string of indefinite length holds something else"),
        ("81" * 30 + "01", r"nested deeper than 24"), ("d9d9f7" * 40, r"nested deeper than 24"),
        ("9a0002ffff" + "00" * 0x2FFFF, "too many items"),
    ],
)  # fmt: skip
def test_damaged_cbor_is_refused(message: str, text: str) -> None:
    with pytest.raises(DecodeError, match=text):
        cbor.loads(bytes.fromhex(message))


def array_map(content: Any, shape: Any = (2, 2), tag: int = 40) -> dict[str, Any]:
    return {"type": "image", "data": {"a": cbor2.CBORTag(tag, [list(shape), content])}}


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ([1], "a message is a map, not list"),
        ({"a": 1}, "a message of type None; start, image and end are known"),
        ({"type": "stop"}, "a message of type 'stop'"),
        ({"type": "end", "series_id": "x"}, "series_id must be a number, 0 or more, got 'x'"),
        ({"type": "end", "series_id": -1}, "series_id must be a number, 0 or more, got -1"),
        ({"type": "end", "series_unique_id": 3}, "series_unique_id must be text, got 3"),
        ({"type": "image"}, "data must map channels to arrays"),
        ({"type": "image", "data": {"a": b""}}, "data must map channels to arrays"),
        ({"type": "image", "data": {}, "start_time": [1, 0]}, "start_time must be two numbers"),
        (array_map(b"1234"), "tag 40: the content is no typed array"),
        (array_map(cbor2.CBORTag(76, b"1234")), "tag 40: the content is no typed array"),
        (array_map(cbor2.CBORTag(64, "1234")), "tag 64: the content is no byte string"),
        (array_map(cbor2.CBORTag(64, b"1234"), [-1, 4]), "not the shape of an array"),
        (array_map(cbor2.CBORTag(64, b"1"), [1] * 9), "not the shape of an array"),
        (array_map(cbor2.CBORTag(64, cbor2.CBORTag(56500, ["bslz4", 1]))), "needs an algorithm"),
    ],
)  # fmt: skip
def test_a_message_that_makes_no_sense_is_refused(message: Any, text: str) -> None:
    with pytest.raises(DecodeError, match=text):
        simplon.decode(cbor2.dumps(message))


def packed(data: bytes, algorithm: str = "bslz4", item_bytes: int = 2) -> PackedArray:
    return PackedArray(np.dtype("<u2"), (37, 53), (data,), algorithm, item_bytes)


def damaged(change: Callable[[bytearray], Any]) -> bytes:
    header, blocks = compression.compress(image_of("<u2"))
    data = bytearray(header + blocks.tobytes())
    changed = change(data)
    return bytes(data if changed is None else changed)


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (packed(damaged(lambda d: d[:-1])), "bslz4: 1 blocks do not fit into"),
        (packed(damaged(lambda d: d + b"x")), "bslz4: 1 blocks do not fit into"),
        (packed(damaged(lambda d: d[:11])), "compressed data of 11 bytes have no header"),
        (packed(damaged(lambda d: d.__setitem__(slice(12, 14), b"\xff\xff"))), "do not fit"),
        (packed(damaged(lambda d: d.__setitem__(slice(8, 12), bytes(4)))), "blocks of 0 bytes"),
        (packed(damaged(lambda d: d.__setitem__(slice(16, 60), b"\xff" * 44))), "damaged blocks"),
        (packed(damaged(lambda d: d.__setitem__(7, d[7] + 1))), "3923 bytes are announced, 3922"),
        (packed(damaged(lambda d: d.__setitem__(7, d[7] - 2))), "blocks do not fit|for an array"),
        (packed(damaged(lambda d: d), item_bytes=0), "no items of 0"),
        (packed(damaged(lambda d: d), item_bytes=3), "no items of 3"),
        (packed(damaged(lambda d: d), "zstd"), "compression 'zstd' is not known; bslz4 and lz4"),
        (packed(damaged(lambda d: d), "lz4"), "lz4: "),
        (PackedArray(np.dtype("u1"), (3,), (b"ab",)), "2 bytes for an array of 3"),
        (PackedArray(np.dtype("<u2"), None, (b"abc",)), "3 bytes are no items of uint16"),
    ],
)  # fmt: skip
def test_damaged_arrays_are_refused(array: PackedArray, text: str) -> None:
    with pytest.raises(DecodeError, match=text):
        array.unpack()


@pytest.mark.parametrize("codec", ["bslz4", "lz4"])
@pytest.mark.parametrize("shape", [(1 << 15, 1 << 14), (1 << 40, 1 << 40), None])
def test_a_bomb_does_not_take_memory(codec: str, shape: Any) -> None:
    size = 1 << 29 if shape is None else math.prod(shape)
    header = (size & (1 << 64) - 1).to_bytes(8, "big") + (8192).to_bytes(4, "big")
    array = PackedArray(np.dtype("u1"), shape, (header + b"\0\0\0\1\xff" * 100,), codec, 1)
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError, match=r"cannot be in|above the limit"):
            array.unpack()
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("1970-01-01T00:00:00Z", 0), ("1970-01-01T00:00:00.000000001Z", 1),
        ("2023-10-03T17:47:49.434+02:00", 1_696_348_069_434_000_000),
        ("2023-10-03t15:47:49.43400000099z", 1_696_348_069_434_000_000),
        ("1969-12-31T23:59:59.5Z", -500_000_000),
    ],
)  # fmt: skip
def test_times_are_exact(text: str, ns: int) -> None:
    assert DateTime(text).ns() == ns
    assert DateTime.of_ns(ns).ns() == ns


def test_times_are_those_of_others() -> None:
    text = DateTime.of_ns(1_700_000_000_123_456_000).text
    found = datetime.datetime.fromisoformat(text)
    assert found.timestamp() == pytest.approx(1_700_000_000.123456, abs=1e-6)
    assert Rational(10**18, 3).ns() == 10**27 // 3


@pytest.mark.parametrize("text", ["", "yesterday", "2023-13-01T00:00:00Z", "2023-01-01T00:00:00"])
def test_no_time_is_refused(text: str) -> None:
    with pytest.raises(DecodeError, match="not a time"):
        DateTime(text).ns()


def test_lclstreamers_messages_are_read_and_written_again(vectors: Path) -> None:
    folder = vectors / "simplon-slac66cc566-f64"
    messages = [(folder / f"{number:04}.bin").read_bytes() for number in range(7)]
    assert {lclstreamer.dialect_of(message) for message in messages} == {"lclstreamer"}
    start, *images, stop = map(lclstreamer.decode, messages)
    assert isinstance(start, lclstreamer.RunStart)
    assert isinstance(stop, lclstreamer.RunStop)
    assert (start.run, start.shape, stop.run) == ("51", (2, 16, 32), "51")
    assert start.dtype == np.float64
    for number, image in enumerate(images):
        assert isinstance(image, lclstreamer.RunImage)
        array = image.unpack(start)
        expected = np.random.default_rng(1000 + number).poisson(2.0, (2, 16, 32))
        assert np.array_equal(array, expected)
        assert image.fields["sum"] == array.sum()
        assert image.timestamp == int(float(((1_700_000_000 + number) << 32) | 123_456_789))
        blocks = compression.compress_blocks(array, lclstreamer.BLOCK_ITEMS * array.itemsize)
        head = {"type": "image", "run": "51", "compressed_data": blocks.data}
        written = lclstreamer.encode(head | dict(image.fields), lclstreamer.IMAGE)
        again = {**cbor2.loads(joined(written)[1:])}
        assert again == cbor2.loads(messages[number + 1][1:])
    assert joined(lclstreamer.encode(start.fields, lclstreamer.CONTROL)) == messages[0]


def test_the_variant_without_a_first_byte_is_told_apart() -> None:
    array = image_of("<f4", (4, 8))
    blocks = compression.compress_blocks(array, lclstreamer.BLOCK_ITEMS * 4).tobytes()
    stamp = (1 << 63) + 1
    messages = [
        {"type": "start", "run_id": "r", "image_dtype": "float32", "shape": [4, 8]},
        {"type": "image", "run_id": "r", "compressed_data": blocks, "timestamp": stamp},
        {"type": "end", "run_id": "r", "timestamp": 1.0},
    ]
    written = [cbor2.dumps(message) for message in messages]
    assert {lclstreamer.dialect_of(each) for each in written} == {"lclstreamer-pr51"}
    start, image, end = map(lclstreamer.decode, written)
    assert isinstance(start, lclstreamer.RunStart)
    assert isinstance(image, lclstreamer.RunImage)
    assert isinstance(end, lclstreamer.RunStop)
    assert np.array_equal(image.unpack(start), array)
    assert image.timestamp == stamp
    assert lclstreamer.dialect_of(joined(simplon.encode(EndMessage()))) == "stream2"
    assert lclstreamer.dialect_of(cbor2.dumps({"type": "start", "series_id": 1})) == "stream2"


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (b"\x00", "neither Stream V2 nor lclstreamer: begins with 00"),
        (b"", "neither Stream V2 nor lclstreamer"),
    ],
)
def test_foreign_messages_are_refused(message: bytes, text: str) -> None:
    with pytest.raises(DecodeError, match=text):
        lclstreamer.dialect_of(message)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"type": "image"}, "compressed_data must be a byte string"),
        ({"type": "image", "compressed_data": b"", "timestamp": -1}, "must have 64 bits, got -1"),
        ({"type": "image", "compressed_data": b"", "timestamp": math.nan}, "64 bits, got nan"),
        ({"type": "start", "datatype": "object"}, "dtype must be that of numbers, got 'object'"),
        ({"type": "start", "shape": "2xtwo"}, "shape must be e.g. 2x512x1024, got '2xtwo'"),
        ({"type": "start", "shape": "-2"}, "shape must be"), ({"type": "x"}, "of type 'x'"),
    ],
)  # fmt: skip
def test_a_message_of_the_dialect_that_makes_no_sense_is_refused(message: Any, text: str) -> None:
    with pytest.raises(DecodeError, match=text):
        lclstreamer.decode(b"m" + cbor2.dumps(message))


def stream1_image(data: bytes, shape: list[int], dtype: str, encoding: str) -> list[memoryview]:
    about = {"htype": "dimage_d-1.0", "shape": shape, "type": dtype, "encoding": encoding}
    parts = [
        json.dumps({"htype": "dimage-1.0", "series": 4, "frame": 9, "hash": ""}).encode(),
        json.dumps(about | {"size": len(data)}).encode(), data,
        b'{"htype": "dconfig-1.0", "start_time": 1, "stop_time": 1500000000, "real_time": 2}',
    ]  # fmt: skip
    return [memoryview(part) for part in parts]


def test_a_detectors_own_image_of_the_older_stream_is_unpacked(detector_files: Path) -> None:
    blob = (detector_files / "frame_sample").read_bytes()
    image = stream1.decode(stream1_image(blob, [4148, 4362], "uint16", "bs16-lz4<"))
    assert isinstance(image, ImageMessage)
    assert (image.series_id, image.image_id) == (4, 9)
    assert image.stop_time is not None
    assert image.stop_time.ns() == 1_500_000_000
    array = image.data["default"].unpack()
    assert array.shape == (4362, 4148)
    assert np.array_equal(
        array.ravel(), np.frombuffer(decompress(blob, "bslz4", elem_size=2), "u2")
    )


@pytest.mark.parametrize("encoding", ["<", ">", "lz4<", "bs32-lz4<"])
def test_every_encoding_of_the_older_stream_is_unpacked(encoding: str) -> None:
    array = image_of(f"{encoding[-1]}u4")
    data = array.tobytes()
    if encoding == "lz4<":
        data = numcodecs.lz4.compress(data)[4:]
    elif encoding == "bs32-lz4<":
        header, blocks = compression.compress(array)
        data = header + blocks.tobytes()
    image = stream1.decode(stream1_image(data, [53, 37], "uint32", encoding))
    assert isinstance(image, ImageMessage)
    assert np.array_equal(image.data["default"].unpack(), array)


def test_the_start_of_the_older_stream_has_todays_names() -> None:
    config = {"wavelength": 1.3, "nimages": 3, "ntrigger": 2, "bit_depth_image": 16, "omega": 1}
    flatfield = np.arange(6, dtype="<f4").reshape(2, 3)
    parts = [
        {"htype": "dheader-1.0", "series": 7, "header_detail": "all"}, config,
        {"htype": "flatfield-1.0", "shape": [3, 2], "type": "float32"}, flatfield.tobytes(),
        {"appendix": 1},
    ]  # fmt: skip
    encoded = [each if isinstance(each, bytes) else json.dumps(each).encode() for each in parts]
    start = stream1.decode([memoryview(each) for each in encoded])
    assert isinstance(start, StartMessage)
    assert start.series_id == 7
    assert np.array_equal(start.fields["flatfield"].unpack(), flatfield)
    assert {key: start.fields[key] for key in start.fields if key != "flatfield"} == {
        **config, "incident_wavelength": 1.3, "image_dtype": "uint16", "number_of_images": 6,
    }  # fmt: skip
    end = stream1.decode([memoryview(b'{"htype": "dseries_end-1.0", "series": 7}')])
    assert end == EndMessage(series_id=7)


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ([], "a message of 0 parts"), ([b"{"], "part 1: no JSON"), ([b"[]"], "must be a JSON obj"),
        ([b"[" * 100_000], "part 1: no JSON"), ([b"{}"], "part 1: htype None is not known"),
        ([b'{"htype": "dimage-1.0"}'], "an image of 1 parts"),
        ([b'{"htype": "dheader-1.0", "series": -1}'], "series must be a number"),
        (stream1_image(b"", [1], "uint16", "zip<"), "part 2: encoding 'zip<' is not known"),
        (stream1_image(b"", [1], "text", "<"), "type must be that of numbers, got 'text'"),
        (stream1_image(b"", [-1], "int8", "<"), "shape must be"),
    ],
)  # fmt: skip
def test_a_message_of_the_older_stream_that_makes_no_sense_is_refused(
    parts: list[Any], text: str
) -> None:
    with pytest.raises(DecodeError, match=text):
        stream1.decode([memoryview(part) for part in parts])


@pytest.mark.parametrize("data", [b"", b"\xff" * 50, bytes(50)])
def test_a_damaged_block_of_the_older_stream_is_refused(data: bytes) -> None:
    for shape in ([53, 37], [1 << 15, 1 << 15]):
        image = stream1.decode(stream1_image(data, shape, "uint32", "lz4<"))
        assert isinstance(image, ImageMessage)
        with pytest.raises(DecodeError):
            image.data["default"].unpack(1 << 33)


def seeds() -> list[bytes]:
    """Return small messages of every kind, to be damaged."""
    full = {
        "channels": ["a"], "detector_translation": [0, 0, 0.1], "arm_date": DateTime.of_ns(1),
        "pixel_mask": {"a": np.zeros((4, 4), "u4")}, "countrate_correction_lookup_table": np.eye(2),
        "goniometer": {"omega": {"start": 0.0}}, "user_data": {"list": [1, -1, None, "é"]},
    }  # fmt: skip
    image = image_of("<u2", (9, 70))
    chunk = b"\x00" * 6 + (1260).to_bytes(2, "big") + (512).to_bytes(4, "big")
    for begin in range(0, 1260, 512):
        part = image.tobytes()[begin : begin + 512]
        chunk += len(part).to_bytes(4, "big") + part
    lz4 = PackedArray(image.dtype, image.shape, (chunk,), "lz4", 0)
    times = {"series_date": DateTime.of_ns(10**18), "start_time": Rational(1, 3)}
    blocks = compression.compress_blocks(image, lclstreamer.BLOCK_ITEMS * 2).data
    return [
        joined(simplon.encode(StartMessage(series_id=4, series_unique_id="x", fields=full))),
        joined(simplon.encode(message_of(image, "bslz4", image_id=1, **times))),
        joined(simplon.encode(message_of(image, None, image_id=1, user_data={"a": 1}))),
        joined(simplon.encode(ImageMessage(data={"b": lz4}, image_id=7))),
        joined(simplon.encode(EndMessage(series_id=2**33))),
        joined(lclstreamer.encode({"type": "start", "shape": "9x70", "dtype": "uint16"}, b"c")),
        joined(lclstreamer.encode({"type": "image", "compressed_data": blocks, "dtype": "uint16",
                                   "timestamp": 1.5}, b"m")),
    ]  # fmt: skip


def mutated(chance: random.Random, message: bytes) -> bytes:
    data = bytearray(message)
    for _ in range(chance.choice((1, 1, 1, 2, 4, 16))):
        at = chance.randrange(len(data))
        # Most of what can go wrong is in front of the pixels.
        at = at if chance.random() < 0.5 else min(at, chance.randrange(160))
        match chance.randrange(6):
            case 0:
                data[at] ^= 1 << chance.randrange(8)
            case 1:
                data[at] = chance.choice((0, 0xFF, 0x7F, 0x80, 0x1B, 0x5B, 0x9B, 0xBB, 0x9F, 0xD8))
            case 2:
                del data[at : at + chance.choice((1, 2, 8, 100))]
            case 3:
                data[at:at] = chance.randbytes(chance.choice((1, 2, 8)))
            case 4:
                data = data[: at + 1]
            case _:
                end = at + chance.randrange(40)
                data[at:at] = data[at:end]
        if not data:
            break
    return bytes(data)


def digest(message: bytes) -> None:
    """Decode a message in every way, and use all that it says."""
    start = lclstreamer.RunStart(shape=(9, 70), dtype=np.dtype("<u2"))
    if lclstreamer.dialect_of(message) != "stream2":
        found = lclstreamer.decode(message)
        if isinstance(found, lclstreamer.RunImage):
            found.unpack(start, 1 << 20)
        return
    said = simplon.decode(message)
    arrays = said.data if isinstance(said, ImageMessage) else said.fields
    for each in arrays.values():
        if isinstance(each, PackedArray):
            each.unpack(1 << 20)
        if isinstance(each, DateTime):
            each.ns()
    if isinstance(said, ImageMessage) and said.series_date is not None:
        said.series_date.ns()


def test_no_damage_does_more_than_be_refused() -> None:
    chance = random.Random(20260101)  # noqa: S311
    originals = seeds()
    for message in originals:
        digest(message)
    outcomes = {"read": 0, "refused": 0}
    for _ in range(FUZZ_INPUTS):
        message = mutated(chance, chance.choice(originals))
        try:
            digest(message)
        except DecodeError:
            outcomes["refused"] += 1
        else:
            outcomes["read"] += 1
    assert min(outcomes.values()) > FUZZ_INPUTS / 100, outcomes
