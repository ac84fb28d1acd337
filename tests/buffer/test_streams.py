"""What a buffer knows of the streams of producers that speak control frames."""

import pytest

from lclstream.buffer.control import Frame
from lclstream.buffer.streams import Streams
from lclstream.core.errors import DecodeError

ID = 5 << 16


def test_a_stream_is_taken_up_again() -> None:
    streams = Streams()
    stream, before = streams.heard("first", None, Frame.STREAM, ID)
    assert stream is not None
    assert before is None
    streams.heard("first", stream, Frame.FROM, 0)
    stream.accepted = 7
    streams.left(stream, "first", 10.0)
    assert streams.unfinished() == [stream]
    again, before = streams.heard("second", None, Frame.STREAM, ID)
    assert (again, before) == (stream, None)
    streams.heard("second", stream, Frame.FROM, 3)
    # It is told of seven: it sends number 7 next.
    assert (stream.accepted, stream.resumed) == (7, True)
    streams.heard("second", stream, Frame.BYE, 7)
    streams.left(stream, "second", 20.0)
    assert streams.unfinished() == []
    assert streams.missing == 0


def test_a_connection_that_seems_alive_gives_way() -> None:
    streams = Streams()
    stream, _ = streams.heard("first", None, Frame.STREAM, ID)
    assert streams.heard("second", None, Frame.STREAM, ID) == (stream, "first")
    assert stream is not None
    # What is heard of the first now changes nothing.
    streams.left(stream, "first", 1.0)
    assert streams.unfinished() == []


def test_a_buffer_that_is_new_takes_the_producers_word() -> None:
    streams = Streams()
    stream, _ = streams.heard("first", None, Frame.STREAM, ID)
    assert stream is not None
    streams.heard("first", stream, Frame.FROM, 12)
    assert stream.accepted == 12


def test_what_never_came_is_counted() -> None:
    streams = Streams()
    stream, _ = streams.heard("first", None, Frame.STREAM, ID)
    assert stream is not None
    stream.accepted = 3
    streams.heard("first", stream, Frame.BYE, 5)
    assert (stream.finished, streams.missing) == (True, 2)


def test_connections_of_one_producer_count_once() -> None:
    streams = Streams()
    first, _ = streams.heard("first", None, Frame.STREAM, ID)
    second, _ = streams.heard("second", None, Frame.STREAM, ID + 1)
    other, _ = streams.heard("third", None, Frame.STREAM, 6 << 16)
    assert first is not None
    assert second is not None
    assert other is not None
    assert [streams.is_new(each) for each in (first, second, other, first)] == [
        True,
        False,
        True,
        False,
    ]


@pytest.mark.parametrize("kind", [Frame.FROM, Frame.BYE, Frame.ACK])
def test_frames_without_a_stream_are_refused(kind: Frame) -> None:
    with pytest.raises(DecodeError, match=f"{kind.name} without STREAM before it"):
        Streams().heard("first", None, kind, 0)


@pytest.mark.parametrize("kind", [Frame.STREAM, Frame.ACK, Frame.HELLO])
def test_frames_out_of_place_are_refused(kind: Frame) -> None:
    streams = Streams()
    stream, _ = streams.heard("first", None, Frame.STREAM, ID)
    with pytest.raises(DecodeError, match=f"{kind.name} has no place here"):
        streams.heard("first", stream, kind, ID)
