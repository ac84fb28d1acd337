"""Messages of every kind and form become batches of events; damaged ones become errors."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import hdf5plugin
import numpy as np
import pytest
from tests.client.messages import frames, message

from lclstream.client.decode import decode
from lclstream.core.errors import DecodeError, NotFoundError
from lclstream.streamer.batching import Batcher
from lclstream.streamer.config import parse_parameters
from lclstream.streamer.rank import Place
from lclstream.streamer.serializers.hdf5 import HDF5BinarySerializer
from lclstream.streamer.sources.simulated import expected_event

if TYPE_CHECKING:
    from lclstream.streamer.values import Array

VECTORS = Path(__file__).parents[3] / "shared/vectors/streamer"


@pytest.mark.parametrize(
    "filters",
    [{}, {"compression": "gzip"}, dict(hdf5plugin.Bitshuffle(cname="lz4"))],
    ids=["plain", "gzip", "bitshuffle"],
)
def test_events_of_a_message(filters: dict[str, Any]) -> None:
    payload = message(first=6, count=3, **filters)
    batch = decode(memoryview(payload))
    assert len(batch) == 3
    assert (batch["data/data"] == frames(6, 3)).all()
    assert batch["data"].dtype == np.float32
    assert (batch.experiment, batch.run, batch.rank, batch.sequence) == ("mfx1", 42, 1, 2)
    assert batch.size_bytes == len(payload)
    events = list(batch)
    assert [event.index for event in events] == [6, 7, 8]
    assert [event.timestamp for event in events] == [6 + (1 << 40), 7 + (1 << 40), 8 + (1 << 40)]
    assert [event.is_valid("data") for event in events] == [False, True, False]
    assert events[0].is_valid("never missing")
    assert (events[2]["data"] == frames(8, 1)[0]).all()
    assert "data/timestamp" in batch
    assert "lclstream/event_index" not in batch


def test_mask_is_found_by_data_source_and_by_dataset() -> None:
    memory = io.BytesIO(message(first=6, count=3))
    with h5py.File(memory, "r+") as file:
        file["lclstream/valid/frame"] = np.array([1, 1, 0], np.uint8)
        file["lclstream/valid/frame"].attrs["dataset"] = "/data/data"
    events = list(decode(memory.getvalue()))
    for name in ("frame", "/data/data", "data/data"):
        assert [event.is_valid(name) for event in events] == [True, True, False]
    # Without the attribute a mask is of the dataset of its name, and a slash asks for a dataset.
    assert [event.is_valid("data") for event in events] == [False, True, False]
    assert [event.is_valid("/data") for event in events] == [True, True, False]


def test_uncompressed_data_are_not_copied() -> None:
    payload = message()
    values = decode(payload)["data"]
    assert np.shares_memory(values, np.frombuffer(payload, np.uint8))
    assert not values.flags.writeable


def test_only_the_fields_that_are_asked_for() -> None:
    batch = decode(message(), fields=["data/data", "absent"])
    assert list(batch.arrays) == ["data/data"]
    assert [event.index for event in batch] == [0, 1, 2]
    assert len(decode(message(), fields=())) == 3


def test_unknown_and_ambiguous_names() -> None:
    memory = io.BytesIO()
    with h5py.File(memory, "w") as file:
        file["a/x"] = file["b/x"] = np.zeros(2)
        file["a/energy"] = np.zeros(2)
    batch = decode(memory.getvalue())
    with pytest.raises(NotFoundError, match=r"^several datasets are named 'x': a/x, b/x$"):
        batch["x"]
    with pytest.raises(NotFoundError, match=r"^the message has no dataset 'a/enrgy'.*a/energy"):
        batch["a/enrgy"]


def sent(serializer: HDF5BinarySerializer, batch: Any) -> bytes:
    (message,) = serializer.messages(batch)
    return message.tobytes()


@pytest.mark.parametrize("compression", [None, "bitshuffle_with_lz4", "gzip_with_shuffle"])
@pytest.mark.parametrize("events", [4, 3], ids=["full batch", "short batch"])
def test_messages_of_our_streamer(compression: str | None, events: int) -> None:
    parameters = parse_parameters(
        {
            "source_identifier": "exp=mfx1,run=7",
            "event_source": {
                "type": "SimulatedDetectorEventSource", "shape": [16, 32], "missing_frames": 0.4,
            },
            "data_sources": {
                "frame": {
                    "type": "Psana2DetectorInterface",
                    "psana_name": "jungfrau",
                    "psana_fields": "raw.calib",
                },
                "hit": {"type": "EventValue", "name": "truth", "field": "hit"},
            },
            "processing_pipeline": {"type": "BatchProcessingPipeline", "batch_size": 4},
            "data_serializer": {"type": "HDF5BinarySerializer", "compression": compression},
        }
    )  # fmt: skip
    config: Any = parameters.event_source
    serializer = HDF5BinarySerializer(
        parameters.data_serializer,  # type: ignore[arg-type]
        parameters,
        Place(1, 4),
    )
    batcher = Batcher(serializer.labels, 4, with_masks=True, make=serializer.new_batch)
    made = []
    expected = [expected_event(config, index, "mfx1", 7) for index in range(20, 20 + events)]
    for event in expected:
        values: dict[str, Array | None] = {}
        for label, name, field in (("frame", "jungfrau", "raw.calib"), ("hit", "truth", "hit")):
            value = event.read(name, field)
            values[label] = None if value is None else np.asarray(value)
        made += [sent(serializer, batch) for batch in batcher.add(event, values)]
    made += [sent(serializer, batch) for batch in batcher.finish()]
    serializer.close()
    got = [event for payload in made for event in decode(payload)]
    assert [event.index for event in got] == [event.index for event in expected]
    assert [event.timestamp for event in got] == [event.timestamp for event in expected]
    for mine, theirs in zip(got, expected, strict=True):
        frame = theirs.read("jungfrau", "raw.calib")
        assert mine.is_valid("frame") is (frame is not None)
        if frame is not None:
            assert mine["frame"].tobytes() == np.asarray(frame).tobytes()
        assert mine["hit"] == theirs.read("truth", "hit")
        assert (mine.batch.experiment, mine.batch.run, mine.batch.rank) == ("mfx1", 7, 1)


@pytest.mark.skipif(not VECTORS.is_dir(), reason="no golden messages on this machine")
@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("hdf5-slac66cc566-None", "data/data"),
        ("hdf5-v0.3.0-nng-bitshuffle_with_lz4", "data/data"),
        ("hdf5-lclstream_ba23c1c-gzip_with_shuffle", "jungfrau.raw.calib"),
    ],
)
def test_messages_of_other_streamers(folder: str, name: str) -> None:
    event = 0
    for path in sorted((VECTORS / folder).glob("*.bin")):
        batch = decode(path.read_bytes())
        assert batch.indices is None
        assert batch.run is None
        for one in batch:
            frame = np.random.default_rng(1000 + event).poisson(2.0, (2, 16, 32))
            assert (one[name] == frame).all()
            assert one["timestamp"] == np.float64(((1700000000 + event) << 32) | 123456789)
            event += 1
    assert event == 5


def ragged_message(offsets: Any = (0, 2, 2, 5), **more: Any) -> bytes:
    memory = io.BytesIO()
    with h5py.File(memory, "w") as file:
        file["a/peaks"] = np.arange(10, dtype=np.float32).reshape(5, 2)
        file["a/peaks"].attrs.update({"offsets": "/a/peaks_offsets", "units": "keV"})
        file["a/peaks_offsets"] = np.array(offsets)
        file["lclstream/step"] = np.array([4, 4, 5], np.uint32)
        for path, values in more.items():
            file[path] = values
    return memory.getvalue()


def test_readings_whose_number_differs_come_back_by_event() -> None:
    batch = decode(ragged_message())
    assert (len(batch), batch["peaks"].shape) == (3, (5, 2))
    assert [event["a/peaks"].tolist() for event in batch] == [
        [[0, 1], [2, 3]],
        [],
        [[4, 5], [6, 7], [8, 9]],
    ]
    assert [event.step for event in batch] == [4, 4, 5]
    assert batch.units == {"a/peaks": "keV"}
    assert not batch.arrays
    assert not decode(ragged_message(), fields=()).ragged


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (ragged_message((0, 2, 2, 6)), "do not fit its 5 values"),
        (ragged_message((1, 2, 2, 5)), "do not fit its 5 values"),
        (ragged_message((0, 4, 2, 5)), "do not fit its 5 values"),
        (ragged_message((0, -1, 2, 5)), "do not fit its 5 values"),
        (ragged_message((0.0, 2.0, 2.0, 5.0)), "must hold integers"),
        (ragged_message((0, 2, 5)), "no common event axis"),
        (ragged_message(np.zeros((4, 1), int)), "no common event axis"),
        (ragged_message(b=np.zeros(4)), "no common event axis"),
    ],
)
def test_offsets_that_do_not_fit(payload: bytes, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        decode(payload)


def test_values_without_their_offsets() -> None:
    memory = io.BytesIO(ragged_message())
    with h5py.File(memory, "r+") as file:
        del file["a/peaks_offsets"]
    with pytest.raises(DecodeError, match=r"'a/peaks' of the message has no offsets at 'a/peaks_"):
        decode(memory.getvalue())


@pytest.mark.parametrize("payload", [b"", b"\x89HDF", b"PK\x03\x04 zip", b"x" * 100])
def test_other_formats(payload: bytes) -> None:
    with pytest.raises(DecodeError, match=r"^expected an HDF5 message, got \d+ bytes that begin"):
        decode(payload)


@pytest.mark.parametrize("length", [8, 48, 96, 600, 2000])
def test_truncated_message(length: int) -> None:
    with pytest.raises(DecodeError, match=r"^damaged HDF5 message of \d+ bytes: "):
        decode(message()[:length])


@pytest.mark.parametrize("payload", [message(), ragged_message()], ids=["fixed", "ragged"])
def test_any_damage_is_an_error_or_harmless(payload: bytes) -> None:
    generator = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(payload)
        for place in generator.integers(0, len(payload), 8):
            damaged[place] = generator.integers(256)
        try:
            decode(bytes(damaged))
        except DecodeError:
            continue


def test_no_common_event_axis() -> None:
    memory = io.BytesIO()
    with h5py.File(memory, "w") as file:
        file["a"], file["b"] = np.zeros(2), np.zeros(3)
    with pytest.raises(DecodeError, match=r"no common event axis: \{'a': 2, 'b': 3\}$"):
        decode(memory.getvalue())


def test_file_without_datasets() -> None:
    memory = io.BytesIO()
    with h5py.File(memory, "w") as file:
        file.create_group("empty")
    with pytest.raises(DecodeError, match=r"holds no dataset$"):
        decode(memory.getvalue())


def test_message_cannot_make_us_read_a_local_file(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"0123456789abcdef")
    memory = io.BytesIO()
    with h5py.File(memory, "w") as file:
        file.create_dataset("a", (16,), "u1", external=[(str(secret), 0, 16)])
    with pytest.raises(DecodeError, match=r"lies in another file$"):
        decode(memory.getvalue())


def test_absurd_size_is_refused_before_memory_is_taken() -> None:
    memory = io.BytesIO()
    with h5py.File(memory, "w") as file:
        file.create_dataset("a", (1, 1 << 36), "u1", chunks=(1, 1 << 20), compression="gzip")
    with pytest.raises(DecodeError, match=r"claims 68719476736 bytes$"):
        decode(memory.getvalue())
