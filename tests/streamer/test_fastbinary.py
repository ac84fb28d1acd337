"""FastBinary messages: a reader written from the layout alone gets back what went in."""

import struct
from typing import Any

import blosc2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.streamer.serializing import (
    STAMP,
    Given,
    events,
    parameters_of,
    same,
    sent,
    shares_memory,
    tables,
)

from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.values import Ragged

TYPE = "FastBinarySerializer"
OWN = "/lclstream/"


def read(message: bytes) -> dict[Any, Any]:
    """Return the arrays of a message, and of each its compression at the key (name,)."""
    at = 0

    def take(form: str) -> Any:
        nonlocal at
        at += struct.calcsize(form)
        values = struct.unpack_from(form, message, at - struct.calcsize(form))
        return values[0] if len(values) == 1 else values

    assert message[:4] == b"YAPN"
    magic, version, fields = take("<III")
    assert (magic, version) == (0x4E504159, 1)
    found: dict[Any, Any] = {}
    for _ in range(fields):
        name, dtype = (take(f"<{take('<I')}s").decode() for _ in range(2))
        shape = [take("<q") for _ in range(take("<I"))]
        codec, size, stored = take("<BQQ")
        body = message[at : at + stored]
        at += stored
        assert len(body) == stored
        if codec:
            # Bits 5 to 7 of the flags name the codec that the container needs.
            assert body[2] >> 5 == {1: 1, 2: 4}[codec]
            body = blosc2.decompress(body)
        assert len(body) == size
        assert name not in found
        found[name] = np.frombuffer(body, dtype).reshape(shape)
        found[name,] = codec
    assert at == len(message)
    return found


@settings(max_examples=60, deadline=None)
@given(
    values=tables(),
    batch_size=st.integers(1, 5),
    codec=st.sampled_from([None, "none", "lz4", "zstd"]),
)
def test_any_events_come_back(values: list[Given], batch_size: int, codec: str | None) -> None:
    parameters = parameters_of(values[0], batch_size, type=TYPE, compression=codec)
    index = 0
    for payload in sent(parameters, events(values)).payloads:
        arrays = read(payload)
        for row in range(len(arrays[f"{OWN}event_index"])):
            assert arrays[f"{OWN}event_index"][row] == index
            assert arrays[f"{OWN}timestamp"][row] == STAMP + index
            for name, wanted in values[index].items():
                exists = wanted is not None
                assert arrays[f"{OWN}valid/{name}"][row] == exists
                found = arrays[name]
                if isinstance(values[0][name], Ragged):
                    offsets = arrays[f"{OWN}offsets/{name}"]
                    part = found[offsets[row] : offsets[row + 1]]
                    assert same(part, wanted) if exists else not len(part)
                elif exists:
                    assert same(found[row, ...], wanted)
            index += 1
    assert index == len(values)


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
@pytest.mark.parametrize("threads", [1, 3])
def test_large_arrays_are_compressed(codec: str, threads: int) -> None:
    frames = np.random.default_rng(1).poisson(2.0, (4, 128, 256)).astype(np.uint16)
    values: list[Given] = [{"frame": frame, "number": i} for i, frame in enumerate(frames)]
    parameters = parameters_of(values[0], 4, type=TYPE, compression=codec, n_threads=threads)
    (payload,) = sent(parameters, events(values)).payloads
    found = read(payload)
    assert np.array_equal(found["frame"], frames)
    assert found["frame",] == {"lz4": 1, "zstd": 2}[codec]
    assert len(payload) < frames.nbytes / 3
    # What is small would only grow.
    assert found["number",] == 0


def test_what_does_not_become_smaller_is_sent_as_it_is() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (64, 64), np.uint8)
    values: list[Given] = [{"noise": noise}]
    for options in ({"compression": "zstd"}, {"compression": "lz4", "compression_level": 0}):
        (payload,) = sent(
            parameters_of(["noise"], 1, type=TYPE, **options), events(values)
        ).payloads
        found = read(payload)
        assert found["noise",] == 0
        assert np.array_equal(found["noise"][0], noise)


def test_layout_of_upstream() -> None:
    # The two events of which the branch that introduced the format makes 16613 bytes.
    values: list[Given] = [
        {
            "timestamp": np.float64(7301444403323456789 + i),
            "detector_data": np.random.default_rng(1000 + i).poisson(2.0, (2, 16, 32)) * 1.0,
            "wavelength": 1.30 + 0.001 * i,
            "unsent": 1,
        }
        for i in range(2)
    ]
    fields = {
        "timestamp": "/data/timestamp",
        "detector_data": "/data/data",
        "wavelength": "/data/wavelength",
    }
    (payload,) = sent(
        parameters_of(values[0], 2, type=TYPE, fields=fields, identification=False), events(values)
    ).payloads
    assert len(payload) == 16613
    found = {name: array for name, array in read(payload).items() if isinstance(name, str)}
    assert list(found) == list(fields.values())
    assert payload[:48] == (
        b"YAPN\1\0\0\0\3\0\0\0\x0f\0\0\0/data/timestamp\3\0\0\0<f8\1\0\0\0\2\0\0\0\0\0"
    )
    for label, name in fields.items():
        assert np.array_equal(found[name], [np.asarray(each[label]) for each in values])


def test_fields_are_in_their_order_and_masks_go_by_their_names() -> None:
    values: list[Given] = [{"a": 1.0, "b": None}, {"a": None, "b": Ragged(np.arange(3))}]
    fields = {"b": "/x/b", "a": "/x/a"}
    result = sent(parameters_of(values[0], 2, type=TYPE, fields=fields), events(values))
    _, payload = result.payloads
    found = read(payload)
    assert [name for name in found if isinstance(name, str)][:3] == [
        "/x/b", "/x/a", f"{OWN}offsets/x/b",
    ]  # fmt: skip
    assert found[f"{OWN}valid/x/a"].tolist() == [0]
    assert found[f"{OWN}valid/x/b"].tolist() == [1]
    assert found[f"{OWN}offsets/x/b"].tolist() == [0, 3]
    assert found[f"{OWN}experiment"] == b"tst000124"


def test_arrays_are_sent_from_where_they_are() -> None:
    values: list[Given] = [{"frame": np.zeros((64, 64), np.float32), "a": 1.0}] * 3
    result = sent(parameters_of(values[0], 3, type=TYPE), events(values))
    (((message,),), (batch,)) = (result.messages, result.batches)
    assert shares_memory(message, batch.arrays["frame"][2])
    # The small ones are joined: three pieces are cheaper than thirty.
    assert len(message.parts) == 3


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"frime": "/a"}, r"fields\.frime: there is no value of this name \(did you mean 'frame'"),
        ({"frame": "/lclstream/x"}, r"fields\.frame: lclstream/ is where our own metadata lie"),
        ({"frame": "/x", "a": "/x"}, r"fields\.a: is the name of 'frame' too"),
        ({"frame": "//"}, r"fields\.frame: must be a name"),
    ],
)
def test_wrong_fields_are_named(fields: dict[str, str], problem: str) -> None:
    with pytest.raises(InvalidConfigError, match=problem):
        parameters_of(["frame", "a"], 1, type=TYPE, fields=fields)


def test_values_that_are_not_sent_are_noticed() -> None:
    parameters = parameters_of(["frame", "a"], 1, type=TYPE, fields={"a": "/a"})
    assert parameters.notices == ("data_serializer: 'frame' is not in fields and is not sent",)
    assert parameters_of(["frame", "a"], 1, type=TYPE).notices == ()
