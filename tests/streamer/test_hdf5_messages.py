"""HDF5 messages: what goes in comes out, for every codec; and the messages of upstream."""

import hashlib
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.streamer.hdf5_messages import filters, messages_of, opened, parameters_of
from tests.streamer.serializing import STAMP, Given, document_of, events

from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.config import load_parameters, parse_parameters
from lclstream.streamer.config.canonical import canonical_json
from lclstream.streamer.events import Event

SHAPE = (2, 16, 33)
CODECS: dict[str | None, dict[str, tuple[int, ...]]] = {
    None: {},
    "gzip": {"1": (5,)},
    "gzip_with_shuffle": {"2": (4,), "1": (5,)},
    "bitshuffle_with_lz4": {"32008": (0, 4, 4, 0, 2)},
    "bitshuffle_with_zstd": {"32008": (0, 4, 4, 0, 3, 5)},
    "blosc2_with_lz4": {"32026": (1, 0, 4, 4224, 5, 2, 1, 4, 1, 2, 16, 33)},
    "blosc2_with_zstd": {"32026": (1, 0, 4, 4224, 5, 2, 5, 4, 1, 2, 16, 33)},
    "zstd": {"32015": (5,)},
}


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_masks_name_the_datasets_that_they_speak_of(compression: str | None) -> None:
    paths = {"a": "/data/frame", "b.c": "deep/er/"}
    parameters = parameters_of(list(paths), 2, fields=paths, compression=compression)
    values: list[Given] = [{"a": 1.5, "b.c": None}]
    (payload,) = messages_of(parameters, events(values))
    with opened(payload) as file:
        masks = file["lclstream/valid"]
        assert {name: masks[name].attrs["dataset"] for name in masks} == {
            "a": "/data/frame",
            "b.c": "/deep/er",
        }
        assert (masks["a"][0], masks["b.c"][0]) == (1, 0)
        # It joins the messages with its first reading.
        assert "deep" not in file


def frames(count: int) -> list[Given]:
    generator = np.random.default_rng(1)
    return [
        {
            "frame": generator.poisson(2.0, SHAPE).astype(np.float32),
            "energy": None if index % 4 == 1 else np.float64(9.5 + index),
            "number": index,
            "flag": np.bool_(index % 2),
            "note": "µ" * (index % 3 + 1) if index else "µµµ",
        }
        for index in range(count)
    ]


@pytest.mark.parametrize("codec", CODECS)
def test_every_codec_gives_back_what_it_got(codec: str | None) -> None:
    values = frames(10)
    parameters = parameters_of(list(values[0]), 4, compression=codec, compression_level=5)
    messages = messages_of(parameters, events(values))
    assert len(messages) == 3
    index = 0
    for sequence, message in enumerate(messages):
        with opened(message) as file:
            frame = file["frame"]
            assert (frame.dtype, frame.chunks) == (np.float32, (1, *SHAPE))
            assert filters(frame) == CODECS[codec]
            # Scalars are filtered too, as by upstream; our own group is not.
            assert len(filters(file["energy"])) == len(CODECS[codec])
            own = file["lclstream"]
            assert own["sequence"][...] == [sequence]
            assert not filters(own["event_index"])

            for row in range(len(frame)):
                wanted = values[index]
                assert np.array_equal(frame[row], np.asarray(wanted["frame"]))
                assert own["event_index"][row] == index
                assert own["timestamp"][row] == STAMP + index
                assert own["step"][row] == index // 2
                assert own["valid/energy"][row] == (wanted["energy"] is not None)
                assert own["valid/frame"][row] == 1
                energy = file["energy"][row]
                assert np.isnan(energy) if wanted["energy"] is None else energy == wanted["energy"]
                assert (file["number"][row], file["flag"][row]) == (index, bool(index % 2))
                assert file["note"][row].decode() == wanted["note"]
                index += 1
    assert index == 10


def test_zfp_keeps_time_stamps_and_small_numbers() -> None:
    values: list[Given] = [
        {"frame": np.full((4, 8), 1.5, np.float32), "stamp": np.uint64((1 << 63) + 12345)}
    ] * 2
    (message,) = messages_of(
        parameters_of(["frame", "stamp"], 2, compression="zfp"), events(values)
    )
    with opened(message) as file:
        assert list(filters(file["frame"])) == ["32013"]
        assert np.allclose(file["frame"][...], 1.5)
        assert not filters(file["stamp"])
        assert file["stamp"][...].tolist() == [(1 << 63) + 12345] * 2


@pytest.mark.parametrize("count", [1, 64, 65, 500])
def test_batches_of_many_small_events(count: int) -> None:
    values: list[Given] = [
        {"spectrum": np.arange(3, dtype=np.uint8) + index % 200, "energy": float(index)}
        for index in range(count)
    ]
    (message,) = messages_of(parameters_of(["spectrum", "energy"], count), events(values))
    with opened(message) as file:
        assert file["spectrum"].chunks == (1, 3)
        assert np.array_equal(
            file["spectrum"][...], [np.asarray(each["spectrum"]) for each in values]
        )
        assert file["energy"][...].tolist() == [float(index) for index in range(count)]


def test_layouts() -> None:
    values = frames(1)
    fields = {"frame": "/data/data", "energy": "data/energy"}
    names = ["frame", "energy", "number"]
    for options, expected in (
        ({"fields": fields}, {"data/data", "data/energy"}),
        ({"fields": fields, "hdf5_layout": "flat"}, {"frame", "energy", "number"}),
        ({}, {"frame", "energy", "number"}),
    ):
        parameters = parameters_of(names, 1, identification=False, **options)
        with opened(messages_of(parameters, events(values))[0]) as file:
            found: set[str] = set()
            file.visititems(
                lambda name, item, found=found: (
                    found.add(name) if isinstance(item, h5py.Dataset) else None
                )
            )
            assert found == expected
            assert not file.attrs


def test_form_changes_close_the_batch_and_lose_nothing() -> None:
    values: list[Given] = [
        {"a": None, "b": 1},
        {"a": None, "b": 2},
        {"a": np.zeros(3), "b": 3},
        {"a": np.ones(3), "b": 4},
        {"a": np.ones(5), "b": 5},
        {"a": None, "b": 6},
        {"a": np.ones(5), "b": 7},
    ]
    messages = messages_of(parameters_of(["a", "b"], 3), events(values))
    shapes, numbers, valid = [], [], []
    for message in messages:
        with opened(message) as file:
            shapes.append(file["a"].shape if "a" in file else None)
            numbers += file["b"][...].tolist()
            valid += file["lclstream/valid/a"][...].tolist()
    assert shapes == [None, (2, 3), (3, 5)]
    assert numbers == [1, 2, 3, 4, 5, 6, 7]
    assert valid == [0, 0, 1, 1, 1, 0, 1]


def test_missing_readings_are_filled_as_documented() -> None:
    first: Given = {
        "i4": np.int32(1), "i1": np.int8(1), "u2": np.uint16(1), "f4": np.float32(1),
        "s": "long text", "c": np.complex64(1),
    }  # fmt: skip
    (message,) = messages_of(
        parameters_of(list(first), 2), events([first, dict.fromkeys(first, None)])
    )
    with opened(message) as file:
        filled = {name: file[name][1] for name in first}
        assert [file[f"lclstream/valid/{name}"][...].tolist() for name in first] == [[1, 0]] * 6
    assert (filled["i4"], filled["i1"], filled["u2"], filled["s"]) == (-999, -128, 0, b"None")
    assert np.isnan(filled["f4"])
    assert np.isnan(filled["c"])


@settings(max_examples=30, deadline=None)
@given(
    dtype=st.sampled_from(["<u2", ">f4", "<f8", "|i1", "|b1", "<c8"]),
    shape=st.lists(st.integers(1, 5), max_size=3).map(tuple),
    batch_size=st.integers(1, 5),
    count=st.integers(1, 12),
    codec=st.sampled_from([None, "gzip"]),
)
def test_any_form_comes_back(
    dtype: str, shape: tuple[int, ...], batch_size: int, count: int, codec: str | None
) -> None:
    generator = np.random.default_rng(count)
    values: list[Given] = [
        {"odd": np.uint8(index), "x": np.asarray(generator.integers(0, 2, shape)).astype(dtype)}
        for index in range(count)
    ]
    messages = messages_of(
        parameters_of(["odd", "x"], batch_size, compression=codec), events(values)
    )
    assert len(messages) == -(-count // batch_size)
    found: list[Any] = []
    for message in messages:
        with opened(message) as file:
            assert file["x"].dtype == np.dtype(dtype)
            found += list(file["x"][...])
    assert all(np.array_equal(a, np.asarray(b["x"])) for a, b in zip(found, values, strict=True))


def test_what_cannot_be_sent_is_named() -> None:
    with pytest.raises(InvalidConfigError, match=r"^data source 'x' gives object values, which"):
        messages_of(parameters_of(["x"], 1), events([{"x": object()}]))  # type: ignore[dict-item]


GOLDEN: dict[str, type[np.floating[Any]]] = {
    "hdf5-lclstream_ba23c1c-gzip_with_shuffle": np.float32,
    "hdf5-slac66cc566-None": np.float32,
    "hdf5-v0.3.0-nng-bitshuffle_with_lz4": np.float64,
    "peaknet-slac66cc566-center-c3": np.float64,
}


@pytest.mark.parametrize("folder", GOLDEN)
def test_golden_messages_of_upstream(vectors: Path, folder: str) -> None:
    """Our messages for the same events and configuration hold what the golden ones hold."""
    source = GOLDEN[folder]
    values: list[Given] = []
    for index in range(5):
        frame = np.random.default_rng(1000 + index).poisson(2.0, (2, 16, 32)).astype(source)
        wave = 1.30 + 0.001 * index
        values.append(
            {
                "jungfrau.raw.calib": frame,
                "jungfrau.raw.image": frame[0],
                "SIOC:SYS0:ML00:AO192": np.float64(wave),
            }
        )
    parameters = load_parameters(vectors / folder / "lclstreamer.yaml")
    stamped = (
        Event(
            timestamp=((1700000000 + each.index) << 32) | 123456789,
            index=each.index,
            run=51,
            experiment="mfx100852324",
            readings=each.readings,
        )
        for each in events(values)
    )
    messages = messages_of(parameters, stamped)
    golden = sorted((vectors / folder).glob("*.bin"))
    assert len(messages) == len(golden) == 3
    for message, path in zip(messages, golden, strict=True):
        compare(message, path, source)


def compare(message: bytes, path: Path, source: type[np.floating[Any]]) -> None:
    # The version in question named the datasets otherwise than its configuration says.
    other = {
        "/data/data": "/jungfrau.raw.calib",
        "/data/timestamp": "/timestamp",
        "/data/wavelength": "/SIOC:SYS0:ML00:AO192",
    }
    flat = "lclstream_" in str(path)
    with opened(message) as ours, h5py.File(path) as theirs:
        for name in other:
            mine, golden = ours[name], theirs[other[name] if flat else name]
            assert mine.shape == golden.shape
            assert mine.chunks == golden.chunks
            assert list(filters(mine)) == list(filters(golden))
            if name == "/data/timestamp":
                # Ours are exact; theirs were rounded to doubles.
                assert mine.dtype == np.uint64
                assert np.array_equal(mine[...].astype(np.float64), golden[...])
            elif name == "/data/data":
                assert mine.dtype == source
                assert np.array_equal(mine[...], golden[...])
            else:
                assert mine.dtype == golden.dtype
                assert np.array_equal(mine[...], golden[...])
            if mine.dtype == golden.dtype:
                assert filters(mine) == filters(golden)


# Where the messages come from.


def test_messages_say_where_they_come_from() -> None:
    document = document_of(["a", "b"], 2, type="HDF5BinarySerializer", compression="gzip")
    document["data_sources"]["a"]["units"] = "keV"
    document["data_handlers"] = [{"type": "BinaryFileWritingDataHandler", "file_prefix": "xyz"}]
    parameters = parse_parameters(document)
    values: list[Given] = [{"a": 1.0, "b": 2.0}] * 2
    (message,) = messages_of(parameters, events(values, run=11))
    with opened(message) as file:
        own = dict(file["lclstream"].attrs)
        assert dict(file["a"].attrs) == {"units": "keV"}
        assert not file["b"].attrs
    configuration = own.pop("configuration")
    assert own.pop("configuration_sha256") == hashlib.sha256(configuration.encode()).hexdigest()
    versions = json.loads(own.pop("versions"))
    assert versions["h5py"] == h5py.__version__
    assert set(versions) == {"lclstream", "numpy", "h5py", "hdf5"}
    assert own == {
        "experiment": "tst000124", "format": 1, "rank": 1, "ranks": 3, "run": 11,
        "source_identifier": "exp=tst000124,run=3",
    }  # fmt: skip
    # It is the whole configuration, apart from where the messages go and who makes them.
    assert "xyz" not in configuration
    document["data_serializer"]["compression_threads"] = 7
    document["data_handlers"] = []
    assert canonical_json(parse_parameters(document)) == configuration
    again = json.loads(configuration)
    assert again["data_serializer"]["compression"] == "gzip"
    assert parse_parameters(again).data_sources == parameters.data_sources


def test_without_identification_there_is_nothing_but_data() -> None:
    document = document_of(["a"], 2, type="HDF5BinarySerializer", identification=False)
    document["data_sources"]["a"]["units"] = "keV"
    values: list[Given] = [{"a": np.zeros((100, 100))}, {"a": None}, {"a": np.ones((100, 100))}]
    for message in messages_of(parse_parameters(document), events(values)):
        with opened(message) as file:
            assert list(file) == ["a"]
            assert not file["a"].attrs
            assert not file.attrs


def test_steps_of_a_scan_are_sent() -> None:
    values: list[Given] = [{"a": float(index)} for index in range(5)]
    messages = messages_of(parameters_of(["a"], 3), events(values))
    found: list[int] = []
    for message in messages:
        with opened(message) as file:
            found += file["lclstream/step"][...].tolist()
    assert found == [0, 0, 1, 1, 2]
