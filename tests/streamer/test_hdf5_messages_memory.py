"""HDF5 messages are sent from where their data lie: copies are made once or never."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest
from tests.streamer.hdf5_messages import (
    as_array,
    messages_of,
    opened,
    parameters_of,
    reused_batches,
)
from tests.streamer.serializing import Given, document_of, events, sent

from lclstream.streamer.config import parse_parameters
from lclstream.streamer.events import Event
from lclstream.streamer.values import Array, Values


def given(frames: Sequence[Array]) -> Iterable[tuple[Event, Values]]:
    found = events([{"frame": frame} for frame in frames])
    return ((event, {"frame": frame}) for event, frame in zip(found, frames, strict=True))


@pytest.mark.parametrize("batch_size", [1, 4])
def test_lasting_frames_are_sent_from_where_they_lie(batch_size: int) -> None:
    """Not one copy from the source's array to the socket, also when the batch is not full."""
    frames = [np.full((128, 256), number, np.float32) for number in range(9)]
    parameters, index = parameters_of(["frame"], batch_size), 0
    for batch, message in reused_batches(parameters, given(frames), lasting=True):
        parts = message.parts
        for part in parts[-batch.count :]:
            assert np.shares_memory(as_array(part), frames[index])
            assert part.nbytes == frames[index].nbytes
            index += 1
        # All else together is small.
        assert sum(part.nbytes for part in parts[: -batch.count]) < 20_000
        with opened(message.tobytes()) as file:
            assert file["frame"][:, 0, 0].tolist() == list(range(index - batch.count, index))
    assert index == 9


def test_other_frames_are_copied_once_into_memory_that_is_used_again() -> None:
    frames = [np.full((128, 256), number, np.float32) for number in range(8)]
    places = set()
    batches = reused_batches(parameters_of(["frame"], 4), given(frames), lasting=False)
    for number, (batch, message) in enumerate(batches):
        header, rows = message.parts
        assert not any(np.shares_memory(as_array(rows), frame) for frame in frames)
        places.add((as_array(header).ctypes.data, as_array(rows).ctypes.data))
        assert batch.image is not None
        assert np.shares_memory(as_array(header), batch.image)
        with opened(message.tobytes()) as file:
            assert file["frame"][:, 5, 5].tolist() == [4.0 * number + row for row in range(4)]
    # No page is touched for the first time but with the first batch.
    assert len(places) == 1


def test_frames_that_lie_otherwise_are_copied() -> None:
    whole = np.arange(256 * 256 * 2, dtype=np.float32).reshape(256, 256, 2)
    frames = [whole[..., 0], whole[..., 1], np.ascontiguousarray(whole[..., 0])]
    parameters = parameters_of(["frame"], 3)
    for batch, message in reused_batches(parameters, given(frames), lasting=True):
        parts = message.parts
        assert [part.nbytes for part in parts[1:]] == [2 * frames[0].nbytes, frames[2].nbytes]
        assert np.shares_memory(as_array(parts[2]), frames[2])
        with opened(message.tobytes()) as file:
            assert np.array_equal(file["frame"][...], np.stack(frames))
        assert batch.count == 3


def test_missing_frames_among_lasting_ones() -> None:
    values: list[Given] = [
        {"frame": np.full((64, 256), index, np.float32) if index % 3 else None}
        for index in range(1, 9)
    ]
    for codec in (None, "bitshuffle_with_lz4"):
        parameters = parameters_of(["frame"], 4, compression=codec)
        found: list[Any] = []
        for message in messages_of(parameters, events(values)):
            with opened(message) as file:
                found += list(file["frame"][...])
        for frame, each in zip(found, values, strict=True):
            given_frame = each["frame"]
            if given_frame is None:
                assert np.isnan(frame).all()
            else:
                assert np.array_equal(frame, np.asarray(given_frame))


def test_small_rows_live_in_the_message() -> None:
    values: list[Given] = [{"w": np.arange(512, dtype=np.uint16) + row, "e": 1.0 * row}
                           for row in range(6)]  # fmt: skip
    result = sent(parameters_of(["w", "e"], 3), events(values))
    for (message,), batch in zip(result.messages, result.batches, strict=True):
        assert len(message.parts) == 1
        for array in (*batch.arrays.values(), batch.index, batch.timestamp, *batch.valid.values()):
            assert np.shares_memory(as_array(message.parts[0]), array)


@pytest.mark.parametrize(("library", "pieces"), [("zmq", 1), ("nng", 2)])
def test_zeromq_gets_one_piece(library: str, pieces: int) -> None:
    """Else its handler would have to copy the pieces together."""
    document = document_of(["frame"], 3, type="HDF5BinarySerializer")
    handler = {"type": "BinaryDataStreamingDataHandler", "urls": ["tcp://127.0.0.1:1"]}
    document["data_handlers"] = [{**handler, "library": library}]
    frames = [np.full((128, 256), number, np.float32) for number in range(6)]
    made = reused_batches(parse_parameters(document), given(frames), lasting=False)
    for number, (batch, message) in enumerate(made):
        assert len(message.parts) == pieces
        assert batch.image is not None
        assert np.shares_memory(as_array(message.parts[0]), batch.image)
        with opened(message.tobytes()) as file:
            assert file["frame"][:, 3, 3].tolist() == [3.0 * number + row for row in range(3)]


def test_data_begin_at_multiples_of_64() -> None:
    values: list[Given] = [{"a": np.zeros((33, 1001), np.uint8), "b": np.uint8(1),
                            "c": np.zeros((99, 501), np.float32)}] * 3  # fmt: skip
    (message,) = messages_of(parameters_of(values[0], 3), events(values))
    with opened(message) as file:
        for name in ("a", "b", "c"):
            assert file[name].id.get_chunk_info(0).byte_offset % 64 == 0
        assert file["lclstream/event_index"].id.get_offset() % 64 == 0
