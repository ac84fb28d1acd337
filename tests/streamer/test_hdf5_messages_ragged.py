"""HDF5 messages of readings whose number differs from event to event."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.streamer.hdf5_messages import messages_of, opened, parameters_of, reused_batches
from tests.streamer.serializing import Given, events, sent, tables

from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.values import Ragged


def read_back(message: bytes, label: str, path: str) -> tuple[list[Any], list[int]]:
    """Return the readings and the mask of one label as a plain reader finds them."""
    with opened(message) as file:
        values = file[path][...]
        if "offsets" in file[path].attrs:
            assert file[path].attrs["offsets"] == f"/{path}_offsets"
            ends = file[file[path].attrs["offsets"]]
            assert (ends.dtype, ends[0], ends[-1]) == (np.uint64, 0, len(values))
            values = [values[int(a) : int(b)] for a, b in pairwise(ends)]
        masks = file.get("lclstream/valid", {})
        valid = masks[label][...].tolist() if label in masks else [1] * len(values)
        return list(values), valid


@settings(max_examples=60, deadline=None)
@given(
    table=tables(),
    batch_size=st.integers(1, 5),
    codec=st.sampled_from([None, "gzip", "bitshuffle_with_lz4", "blosc2_with_zstd", "zstd"]),
)
def test_any_readings_come_back(table: list[Given], batch_size: int, codec: str | None) -> None:
    names = list(table[0])
    result = sent(parameters_of(names, batch_size, compression=codec), events(table))
    at = 0
    for message, batch in zip(result.payloads, result.batches, strict=True):
        there = {column.label for column in batch.form.columns}
        for name in names:
            wanted = [each[name] for each in table[at : at + batch.count]]
            if name not in there:
                assert wanted == [None] * batch.count
                continue
            found, valid = read_back(message, name, name)
            assert len(found) == batch.count
            for value, expected, is_valid in zip(found, wanted, valid, strict=True):
                assert bool(is_valid) is (expected is not None)
                if expected is not None:
                    array = expected.array if isinstance(expected, Ragged) else expected
                    assert np.array_equal(value, np.asarray(array), equal_nan=True)
                elif isinstance(wanted[0], Ragged):
                    assert len(value) == 0
        at += batch.count
    assert at == len(table)


@pytest.mark.parametrize("codec", [None, "gzip_with_shuffle", "bitshuffle_with_zstd", "zfp"])
def test_long_ragged_readings(codec: str | None) -> None:
    """Many chunks, the last one not full, in batches that are used again."""
    generator = np.random.default_rng(0)
    counts = [0, 70_000, 3, 0, 0, 1, 40_000, 5, 9, 100_000, 0, 2]
    waves = [np.rint(generator.normal(0, 100, (n, 2))).astype(np.float32) for n in counts]
    parameters = parameters_of(["w"], 3, compression=codec, compression_threads=2)
    found: list[Any] = []
    given_events = zip(
        events([{"w": each} for each in waves]),
        ({"w": Ragged(each)} for each in waves),
        strict=True,
    )
    for _, message in reused_batches(parameters, given_events, lasting=False):
        content = message.tobytes()
        found += read_back(content, "w", "w")[0]
        with opened(content) as file:
            assert file["w"].maxshape == file["w"].shape
    for value, wave in zip(found, waves, strict=True):
        assert np.allclose(value, wave, atol=1e-2)


def test_offsets_must_have_room() -> None:
    values: list[Given] = [{"a": Ragged(np.zeros(3)), "b": 1.0}]
    fields = {"a": "/x/a", "b": "/x/a_offsets"}
    with pytest.raises(InvalidConfigError, match=r"^two datasets would be at /x/a_offsets: "):
        messages_of(parameters_of(["a", "b"], 1, fields=fields), events(values))
