"""Arrow messages: what pyarrow reads is what went in."""

from typing import Any

import numpy as np
import pyarrow as pa
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
from lclstream.streamer.config.canonical import configuration_hash
from lclstream.streamer.values import Ragged

TYPE = "ArrowSerializer"
TENSOR = "arrow.fixed_shape_tensor"


def read(payload: bytes) -> pa.RecordBatch:
    with pa.ipc.open_stream(payload) as stream:
        (batch,) = stream
        batch.validate(full=True)
        return batch


def reading(column: pa.Array, row: int, field: pa.Field, ragged: bool) -> Any:
    """Return the reading of one event as the array that was sent; None for null."""
    if not column[row].is_valid:
        return None
    if ragged:
        assert pa.types.is_large_list(column.type)
        found = tensor(column[row].values)
    else:
        found = tensor(column[row : row + 1])[0]
    metadata = field.metadata or {}
    dtype = np.dtype(metadata.get(b"lclstream.dtype", b"").decode() or found.dtype)
    if dtype.kind == "c":
        found = np.ascontiguousarray(found).view(dtype.newbyteorder("="))[..., 0]
    return np.asarray(found).astype(dtype)


def tensor(column: pa.Array) -> Any:
    """Return rows as one array; pyarrow's own conversion needs rows without nulls."""
    if isinstance(column, pa.FixedShapeTensorArray):
        shape = column.type.shape
        values = column.storage.flatten().to_numpy(zero_copy_only=False)
        return values.reshape(len(column), *shape)
    return column.to_numpy(zero_copy_only=False)


@settings(max_examples=60, deadline=None)
@given(values=tables(), batch_size=st.integers(1, 5), codec=st.sampled_from([None, "lz4", "zstd"]))
def test_any_events_come_back(values: list[Given], batch_size: int, codec: str | None) -> None:
    parameters = parameters_of(values[0], batch_size, type=TYPE, compression=codec)
    index = 0
    for payload in sent(parameters, events(values)).payloads:
        batch = read(payload)
        for row in range(batch.num_rows):
            assert batch["lclstream/event_index"][row].as_py() == index
            assert batch["lclstream/timestamp"][row].as_py() == STAMP + index
            assert batch["lclstream/step"][row].as_py() == index // 2
            for name, wanted in values[index].items():
                ragged = isinstance(values[0][name], Ragged)
                found = reading(batch[name], row, batch.schema.field(name), ragged)
                assert found is None if wanted is None else same(found, wanted)
            index += 1
    assert index == len(values)


def test_types_are_those_that_tools_know() -> None:
    values: list[Given] = [
        {
            "number": np.float32(1),
            "flag": np.bool_(1),
            "frame": np.arange(6, dtype=np.uint16).reshape(2, 3) + i,
            "text": "µ" * (2 - i),
            "raw": np.bytes_(b"\xff"),
            "names": np.array(["a", "bc"]),
            "peaks": Ragged(np.arange(i * 2.0).reshape(i, 2)),
            "codes": Ragged(np.arange(i, dtype=np.int32)),
            "wave": np.complex64(1 + 2j),
            "later": None,
        }
        for i in range(2)
    ]
    (payload,) = sent(parameters_of(values[0], 2, type=TYPE), events(values)).payloads
    batch = read(payload)
    assert {field.name: str(field.type) for field in batch.schema} == {
        "number": "float",
        "flag": "bool",
        "frame": f"extension<{TENSOR}[value_type=uint16, shape=[2,3]]>",
        "text": "string",
        "raw": "binary",
        "names": "fixed_size_list<item: string>[2]",
        "peaks": f"large_list<item: extension<{TENSOR}[value_type=double, shape=[2]]>>",
        "codes": "large_list<item: int32>",
        "wave": f"extension<{TENSOR}[value_type=float, shape=[2]]>",
        "later": "null",
        "lclstream/event_index": "uint64",
        "lclstream/timestamp": "uint64",
        "lclstream/step": "uint32",
    }
    assert batch["text"].to_pylist() == ["µµ", "µ"]
    assert batch["raw"].to_pylist() == [b"\xff", b"\xff"]
    assert batch["names"].to_pylist() == [["a", "bc"]] * 2
    assert batch["codes"].to_pylist() == [[], [0]]
    assert batch["frame"].to_numpy_ndarray()[1].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert batch["later"].null_count == 2


def test_missing_readings_are_null() -> None:
    values: list[Given] = [
        {"a": 1.0, "frame": np.ones(3), "text": "x", "names": np.array(["y"]), "flag": np.bool_(1)},
        dict.fromkeys(("a", "frame", "text", "names", "flag"), None),
    ]
    (payload,) = sent(parameters_of(values[0], 2, type=TYPE), events(values)).payloads
    batch = read(payload)
    for name in values[0]:
        assert batch[name].is_valid().to_pylist() == [True, False]


def test_what_identifies_a_message() -> None:
    values: list[Given] = [{"a": float(i)} for i in range(3)]
    parameters = parameters_of(["a"], 2, type=TYPE)
    _, payload = sent(parameters, events(values)).payloads
    assert read(payload).schema.metadata == {
        b"lclstream.sequence": b"1",
        b"lclstream.run": b"3",
        b"lclstream.rank": b"1",
        b"lclstream.ranks": b"3",
        b"lclstream.format": b"1",
        b"lclstream.experiment": b"tst000124",
        b"lclstream.source_identifier": b"exp=tst000124,run=3",
        b"lclstream.configuration_sha256": configuration_hash(parameters).encode(),
    }
    plain = parameters_of(["a"], 2, type=TYPE, identification=False)
    batch = read(sent(plain, events(values)).payloads[0])
    assert (batch.schema.names, batch.schema.metadata) == (["a"], None)


def test_arrays_are_sent_from_where_they_are() -> None:
    values: list[Given] = [
        {"frame": np.zeros((64, 64), np.float32), "a": 1.0, "x": Ragged(np.zeros((300, 4)))}
    ] * 3
    result = sent(parameters_of(values[0], 3, type=TYPE), events(values))
    (((message,),), (batch,)) = (result.messages, result.batches)
    assert shares_memory(message, batch.arrays["frame"])
    assert shares_memory(message, batch.ragged["x"].room)


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_compression_makes_smaller(codec: str) -> None:
    frames = np.random.default_rng(1).poisson(0.1, (4, 128, 256)).astype(np.uint16)
    values: list[Given] = [{"frame": frame} for frame in frames]
    parameters = parameters_of(["frame"], 4, type=TYPE, compression=codec)
    (payload,) = sent(parameters, events(values)).payloads
    assert len(payload) < frames.nbytes / 2
    assert np.array_equal(read(payload)["frame"].to_numpy_ndarray(), frames)


def test_names_of_ours_are_refused() -> None:
    with pytest.raises(InvalidConfigError, match=r"value 'lclstream/x': lclstream/ is where our"):
        parameters_of(["lclstream/x"], 1, type=TYPE)
