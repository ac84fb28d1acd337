"""Messages of every format become the same events; damaged ones become errors."""

import io
import itertools
import os
import random
import struct
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.client.messages import Producer
from tests.streamer.serializing import (
    STAMP,
    Given,
    document_of,
    events,
    parameters_of,
    same,
    sent,
    tables,
    whole_stream,
)

from lclstream.client import stream
from lclstream.client.batches import Batch
from lclstream.client.formats import Decoder, decode, format_of
from lclstream.core.errors import DecodeError, InvalidConfigError
from lclstream.streamer.config import parse_parameters
from lclstream.streamer.values import Ragged

VECTORS = Path(__file__).parents[3] / "shared/vectors/streamer"
# Chances of a fuzzed message to be understood or refused.
FUZZED = 100_000 if os.environ.get("LCLSTREAM_SOAK") else 300
BATCH_WISE: dict[str, dict[str, Any]] = {
    "decode": {"type": "HDF5BinarySerializer", "compression_threads": 1},
    "npz": {"type": "NumpyBinarySerializer", "compression_threads": 1},
    "npz stored": {"type": "NumpyBinarySerializer", "use_compression": False},
    "fastbinary": {"type": "FastBinarySerializer"},
    "fastbinary lz4": {"type": "FastBinarySerializer", "compression": "lz4", "n_threads": 1},
    "fastbinary zstd": {"type": "FastBinarySerializer", "compression": "zstd", "n_threads": 1},
    "arrow": {"type": "ArrowSerializer"},
    "arrow zstd": {"type": "ArrowSerializer", "compression": "zstd"},
}
SIMPLON: dict[str, dict[str, Any]] = {
    "stream2": {"dialect": "stream2"},
    "stream2 none": {"dialect": "stream2", "compression": "none"},
    "lclstreamer": {"dialect": "lclstreamer"},
    "lclstreamer-pr51": {"dialect": "lclstreamer-pr51"},
}
BEAM = {
    "type": "SimplonBinarySerializer", "data_source_to_serialize": "frame",
    "polarization_fraction": 0.99, "polarization_axis": [1.0, 0.0, 0.0],
    "data_collection_rate": "120Hz", "detector_name": "jungfrau", "detector_type": "AreaDetector",
    "compression_threads": 1,
}  # fmt: skip


def payloads_of(values: list[Given], batch_size: int, **serializer: Any) -> list[bytes]:
    return sent(parameters_of(values[0], batch_size, **serializer), events(values)).payloads


def check(batch: Batch, values: list[Given], first: int) -> int:
    """Compare the events of a batch with those that were given; return the number of the next."""
    assert (batch.experiment, batch.run, batch.rank) == ("tst000124", 3, 1)
    for number, event in enumerate(batch, first):
        assert (event.index, event.timestamp, event.step) == (number, STAMP + number, number // 2)
        for name, value in values[number].items():
            assert event.is_valid(name) == (value is not None)
            if isinstance(values[0][name], Ragged):
                assert same(event[name], value) if value is not None else not len(event[name])
            elif value is not None:
                # A single number would have lost its byte order.
                assert same(batch.arrays[name][event.row, ...], value)
    return first + len(batch)


@settings(max_examples=60, deadline=None)
@given(values=tables(), batch_size=st.integers(1, 5), form=st.sampled_from([*BATCH_WISE][1:]))
def test_any_events_come_back(values: list[Given], batch_size: int, form: str) -> None:
    number = 0
    for sequence, payload in enumerate(payloads_of(values, batch_size, **BATCH_WISE[form])):
        assert format_of(payload) == form.split()[0]
        batch = decode(memoryview(payload))
        assert (batch.sequence, batch.size_bytes) == (sequence, len(payload))
        number = check(batch, values, number)
    assert number == len(values)


@pytest.mark.parametrize("form", BATCH_WISE)
def test_every_format_gives_the_same_batch(form: str) -> None:
    values: list[Given] = [
        {
            "frame": np.full((3, 4), index, np.float32),
            "number": np.int64(-index),
            "flag": np.bool_(index % 2),
            "note": "µ" * (3 - index),
            "peaks": Ragged(np.arange(index * 2, dtype=np.int16).reshape(index, 2)),
            "sometimes": None if index == 1 else np.uint16(index),
            "never": None,
        }
        for index in range(3)
    ]
    (payload,) = payloads_of(values, 3, **BATCH_WISE[form])
    batch = decode(payload)
    assert {name: (array.dtype.str, array.shape) for name, array in batch.arrays.items()} == {
        "frame": ("<f4", (3, 3, 4)), "number": ("<i8", (3,)), "flag": ("|b1", (3,)),
        "note": ("|S6", (3,)), "sometimes": ("<u2", (3,)),
    }  # fmt: skip
    assert batch["note"].tolist() == ["µµµ".encode(), "µµ".encode(), "µ".encode()]
    assert batch["sometimes"].tolist() == [0, 0, 2]
    assert [batch.ragged["peaks"][row].tolist() for row in range(3)] == [
        [], [[0, 1]], [[0, 1], [2, 3]],
    ]  # fmt: skip
    assert [event.is_valid("sometimes") for event in batch] == [True, False, True]
    assert [event.is_valid("never") for event in batch] == [False] * 3
    assert check(batch, [{"frame": each["frame"]} for each in values], 0) == 3
    assert batch.steps is not None
    assert batch.steps.tolist() == [0, 0, 1]


@pytest.mark.parametrize("form", BATCH_WISE)
def test_units_are_said(form: str) -> None:
    document = document_of(["a", "b.c"], 1, **BATCH_WISE[form])
    document["data_sources"]["b.c"]["units"] = "µJ"
    given_events = events([{"a": 1, "b.c": 2.5}])
    (payload,) = sent(parse_parameters(document), given_events).payloads
    assert decode(payload).units == {"b.c": "µJ"}


@pytest.mark.parametrize("form", [*BATCH_WISE][1:])
def test_only_what_is_asked_for_is_decoded(form: str) -> None:
    values: list[Given] = [{"frame": np.zeros((9, 9)), "x": 1, "peaks": Ragged(np.zeros(2))}]
    (payload,) = payloads_of(values, 1, **BATCH_WISE[form])
    batch = decode(payload, ["x", "absent"])
    assert [*batch.arrays, *batch.ragged] == ["x"]
    assert [*decode(payload, ["peaks"]).ragged] == ["peaks"]
    nothing = decode(payload, [])
    assert (nothing.count, nothing.arrays) == (1, {})


@pytest.mark.parametrize("form", ["npz stored", "fastbinary", "arrow"])
def test_arrays_are_views_of_the_message(form: str) -> None:
    values: list[Given] = [{"frame": np.ones((64, 64), np.float32)}] * 2
    (payload,) = payloads_of(values, 2, **BATCH_WISE[form])
    batch = decode(payload)
    assert np.shares_memory(batch["frame"], np.frombuffer(payload, np.uint8))
    assert not batch["frame"].flags.writeable


@pytest.mark.parametrize("form", SIMPLON)
def test_simplon_images_are_events(form: str) -> None:
    values: list[Given] = [
        {
            "frame": np.full((5, 6), index, np.uint16),
            "x": None if index == 1 else 1.5 * index,
            "note": "µ",
            "spectrum": np.arange(4, dtype=np.int32),
        }
        for index in range(3)
    ]
    messages = whole_stream(parameters_of(values[0], 2, **BEAM | SIMPLON[form]), events(values))
    decoder = Decoder()
    assert {format_of(message) for message in messages} == {"simplon"}
    start, *images, end = (decoder.decode(message) for message in messages)
    assert (start.count, end.count, start.run) == (0, 0, 3)
    name = "image" if "lclstreamer" in form else "threshold_1"
    for index, batch in enumerate(images):
        assert (batch.count, batch.sequence) == (1, index)
        frame = values[index]["frame"]
        assert same(batch[name][0], frame)
        assert same(batch["spectrum"][0], values[index]["spectrum"])
        assert batch["note"].tolist() == ["µ".encode()]
        assert batch.indices is not None
        assert batch.timestamps is not None
        assert (batch.indices.tolist(), batch.timestamps.tolist()) == ([index], [STAMP + index])
        (event,) = batch
        assert event.is_valid("x") == (index != 1)
        assert ("x" in batch) == (index != 1)
        assert (batch.experiment, batch.run, batch.rank) == ("tst000124", 3, 1)
    if name == "threshold_1":
        assert images[0].sources == {"threshold_1": "frame"}


def test_golden_simplon_messages() -> None:
    if not VECTORS.is_dir():
        pytest.skip("no golden messages on this machine")
    messages = [path.read_bytes() for path in sorted(VECTORS.glob("simplon-*/*.bin"))]
    # Those of upstream say their shape only at the start.
    with pytest.raises(DecodeError, match=r"neither it nor the start of the run says dtype and"):
        decode(messages[1])
    decoder = Decoder()
    start, *images, stop = (decoder.decode(message) for message in messages)
    assert (start.count, stop.count) == (0, 0)
    for index, batch in enumerate(images):
        wanted = np.random.default_rng(1000 + index).poisson(2.0, (2, 16, 32)).astype(np.float64)
        assert same(batch["image"][0], wanted)
        assert batch.run == 51
        assert batch.timestamps is not None
        assert batch.timestamps[0] == np.float64(((1700000000 + index) << 32) | 123456789)


def test_a_stream_of_any_formats() -> None:
    values: list[Given] = [{"frame": np.full((2, 3), index, np.uint16)} for index in range(4)]
    simplon = parameters_of(["frame"], 2, **BEAM, dialect="stream2")
    messages = [
        *whole_stream(simplon, events(values)),
        *payloads_of(values, 4, **BATCH_WISE["decode"]),
        *payloads_of(values, 4, **BATCH_WISE["npz"]),
    ]
    with Producer(messages) as producer, stream(producer.url) as batches:
        found = [event.batch.arrays for event in batches.events()]
        # Beginning and end of the series are counted, and are no events.
        assert (batches.tally.messages, batches.tally.events) == (8, 12)
    assert len(found) == 12
    assert producer.error is None


def test_archives_of_others() -> None:
    # As the demonstration for PeakNet sends them.
    frames = np.random.default_rng(1).random((2, 1, 21, 40))
    arrays: dict[str, Any] = {
        "jungfrau.raw.image": frames,
        "timestamp": np.arange(2, dtype=np.uint64) + STAMP,
        "jungfrau.raw.image_original_shape": np.array([2, 1, 16, 32], np.int32),
    }
    memory = io.BytesIO()
    np.savez_compressed(memory, **arrays)
    batch = decode(memory.getvalue())
    assert batch.count == 2
    assert batch.indices is None
    assert np.array_equal(batch["jungfrau.raw.image"], frames)
    assert [event["jungfrau.raw.image_original_shape"].tolist() for event in batch] == [
        [1, 16, 32], [1, 16, 32],
    ]  # fmt: skip
    only = decode(memory.getvalue(), ["jungfrau.raw.image_original_shape"])
    assert only["jungfrau.raw.image_original_shape"].shape == (2, 3)


def test_original_shapes_come_back_for_each_event() -> None:
    shape = np.array([1, 16, 32], np.int32)
    values: list[Given] = [{"frame": np.zeros((1, 21, 40)), "frame_original_shape": shape}] * 4
    (payload,) = payloads_of(values, 4, **BATCH_WISE["npz"])
    assert decode(payload)["frame_original_shape"].tolist() == [[1, 16, 32]] * 4


def archive(**arrays: Any) -> bytes:
    memory = io.BytesIO()
    np.savez(memory, **arrays)
    return memory.getvalue()


def arrow(**columns: Any) -> bytes:
    sink = io.BytesIO()
    batch = pa.record_batch(columns)
    with pa.ipc.new_stream(sink, batch.schema) as file:
        file.write_batch(batch)
    return sink.getvalue()


def fastbinary(name: bytes = b"x", dtype: bytes = b"<f8", shape: Any = (1,), **more: Any) -> bytes:
    codec, size, data = (more.get(key, each) for key, each in
                         (("codec", 0), ("size", 8), ("data", bytes(8))))  # fmt: skip
    return b"".join(
        (
            b"YAPN", struct.pack("<II", 1, more.get("fields", 1)),
            struct.pack("<I", len(name)), name, struct.pack("<I", len(dtype)), dtype,
            struct.pack(f"<I{len(shape)}q", len(shape), *shape),
            struct.pack("<BQQ", codec, size, len(data)), data,
        )
    )  # fmt: skip


@pytest.mark.parametrize(
    ("payload", "problem"),
    [
        (b"", r"^no known format: 0 bytes"),
        (b"hello", r"^no known format: 5 bytes that begin with b'hello'; known are HDF5, NumPy"),
        (b"PK\x03\x04", r"^damaged archive of 4 bytes: File is not a zip file"),
        (archive(a=np.zeros(2), b=np.zeros(3)), r"no common event axis: \{'a': 2, 'b': 3\}"),
        (archive(a=np.float64(1)), r"^no array of the message has an axis of events"),
        (archive(a=np.array([object()])), r"is no array of object"),
        (
            archive(a=np.zeros(2), **{"lclstream/event_index": np.zeros(2)}),
            r"'lclstream/event_index' must be a row of integers, got float64",
        ),
        (
            archive(a=np.zeros(2), **{"lclstream/offsets/a": np.array([0, 3], "u8")}),
            r"the offsets of 'a' do not fit its 2 values",
        ),
        (
            archive(a=np.zeros(2), **{"lclstream/offsets/a": np.array([1, 2], "u8")}),
            r"the offsets of 'a' must begin with 0",
        ),
        (
            archive(a=np.zeros(2), **{"lclstream/valid/a": np.zeros(3, "u1")}),
            r"'lclstream/valid/a' is no mask of 2 events",
        ),
        (fastbinary(fields=2), r"^FastBinary, byte 61: cut off: 4 bytes are announced, 0 are"),
        (fastbinary(fields=1 << 30), r"^FastBinary: 1073741824 fields are announced"),
        (fastbinary(dtype=b"|O"), r"no dtype of numbers or text: '\|O'"),
        (fastbinary(dtype=b"zork"), r"no dtype of numbers or text: 'zork'"),
        (fastbinary(shape=(-1,)), r"8 bytes for an array of float64 \(-1,\)"),
        (fastbinary(shape=(1 << 40,)), r"8 bytes for an array of float64 \(1099511627776,\)"),
        (fastbinary(name=b"\xff"), r"a name that is not UTF-8"),
        (fastbinary() + b"x", r"1 bytes behind the end of the message"),
        (fastbinary(codec=1), r"field 'x' is no Blosc container"),
        (fastbinary(codec=1, data=bytes(32)), r"its Blosc container says other sizes"),
        (fastbinary(shape=(), size=8), r"no array of the message has an axis of events"),
        (b"\xff\xff\xff\xff\x10\0\0\0", r"^damaged Arrow message of 8 bytes"),
        (
            arrow(a=pa.array([{"x": 1}])),
            r"column 'a' of the message is of struct<x: int64>, which is not understood",
        ),
        (arrow(a=pa.array([1], pa.timestamp("s"))), r"is of timestamp\[s\], which is not"),
        (b"\xd9\xd9\xf7\xa0", r"a message of type None"),
        (b"m\xa1dtypeeimage", r"^image: compressed_data must be a byte string"),
        (b"m\xa2dtypeeimage", r"^CBOR, byte 12: cut off"),
    ],
    ids=itertools.count(),
)
def test_damaged_messages_are_named(payload: bytes, problem: str) -> None:
    with pytest.raises(DecodeError, match=problem):
        decode(payload)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    payload = samples()["arrow"][0]
    monkeypatch.delitem(sys.modules, "lclstream.client.arrow", raising=False)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        InvalidConfigError, match=r"^messages of the format arrow cannot be decoded"
    ):
        decode(payload)


def test_archives_that_claim_too_much() -> None:
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.npy", b"\x93NUMPY")
    claimed = bytearray(bomb.getvalue())
    # The size in the directory, which zipfile believes.
    struct.pack_into("<I", claimed, claimed.index(b"PK\x01\x02") + 24, 1 << 31)
    with pytest.raises(DecodeError, match=r"member 'a\.npy' claims 2147483648 bytes"):
        decode(claimed)


def samples() -> dict[str, list[bytes]]:
    values: list[Given] = [
        {
            "frame": np.arange(600, dtype=np.uint16).reshape(20, 30),
            "x": None if index == 1 else 1.5,
            "note": "µ",
            "peaks": Ragged(np.arange(index * 2.0).reshape(index, 2)),
        }
        for index in range(3)
    ]
    found = {form: payloads_of(values, 3, **options) for form, options in BATCH_WISE.items()}
    for form, options in SIMPLON.items():
        config = parameters_of(values[0], 3, **BEAM | options)
        found[form] = whole_stream(config, events(values))[:2]
    return {form: payloads for form, payloads in found.items() if form != "decode"}


@pytest.mark.parametrize("form", [*[*BATCH_WISE][1:], *SIMPLON])
def test_whatever_comes_is_decoded_or_refused(form: str) -> None:
    chance = random.Random(form)  # noqa: S311 - which bytes are wrong is no secret
    payloads = samples()[form]
    refused = 0
    for _ in range(FUZZED):
        damaged = bytearray(chance.choice(payloads))
        if chance.random() < 0.3:
            del damaged[chance.randrange(len(damaged)) :]
        for _ in range(chance.randrange(1, 6) if damaged else 0):
            # Most mistakes are to be made in what is said of the data.
            end = len(damaged) if chance.random() < 0.3 else min(len(damaged), 600)
            damaged[chance.randrange(end)] = chance.choice(
                (0, 1, 127, 128, 255, chance.randrange(256))
            )
        try:
            decode(damaged)
        except DecodeError:
            refused += 1
    assert refused > FUZZED // 10
