"""What a producer holds until the buffer has it, against a trivial model."""

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lclstream.buffer.outgoing import Stream, StreamNumbers, kept, pieces_of, skip
from lclstream.buffer.sp import header
from lclstream.core.errors import DecodeError


def framed(message: bytes) -> bytes:
    return header(len(message)) + message


@settings(max_examples=200, deadline=None)
@given(st.data(), st.lists(st.lists(st.binary(max_size=30), min_size=1, max_size=5), max_size=10))
def test_stream_against_a_list(data: st.DataObject, runs: list[list[bytes]]) -> None:
    stream = Stream(1)
    messages: list[bytes] = []
    for run in runs:
        wires = [framed(message) for message in run]
        together = data.draw(st.booleans())
        pieces = [b"".join(wires)] if together else wires
        stream.hold([memoryview(piece) for piece in pieces], [len(wire) for wire in wires])
        messages += wires
        accepted = data.draw(st.integers(0, len(messages)))
        before = stream.accepted
        stream.accept(accepted)
        assert stream.accepted == max(before, accepted)
        assert b"".join(stream.backlog()) == b"".join(messages[stream.accepted :])
        assert (stream.count, stream.unaccepted) == (
            len(messages),
            len(messages) - stream.accepted,
        )
        # What is held is more than that by part of one run at most.
        rest = sum(len(wire) for wire in messages[stream.accepted :])
        assert 0 <= stream.held_bytes - rest <= 5 * 38
    stream.accept(len(messages))
    assert stream.held_bytes == 0
    assert not stream.backlog()
    with pytest.raises(DecodeError, match=r"messages acknowledged, but only \d+ were sent$"):
        stream.accept(len(messages) + 1)


def test_only_what_can_change_is_copied() -> None:
    constant, variable = b"constant", bytearray(b"variable")
    (view,) = pieces_of(constant)
    assert kept(view).obj is constant
    (part,) = pieces_of(memoryview(constant)[2:5])
    assert kept(part).obj is constant
    copies = [kept(view) for view in pieces_of([variable, memoryview(variable).toreadonly()])]
    variable[:] = b"changed!"
    assert copies == [b"variable", b"variable"]


def test_skip_leaves_no_empty_piece_in_front() -> None:
    pieces = deque(memoryview(piece) for piece in (b"abc", b"", b"de"))
    skip(pieces, 3)
    assert list(pieces) == [b"de"]
    skip(pieces, 1)
    assert list(pieces) == [b"e"]
    skip(pieces, 1)
    assert not pieces


def test_streams_of_a_producer_differ_in_the_lower_bits() -> None:
    numbers = StreamNumbers()
    first, second = numbers.take(), numbers.take()
    assert (first >> 16, first & 0xFFFF, second) == (second >> 16, 0, first + 1)
    assert first < 1 << 64
    assert StreamNumbers().take() >> 16 != first >> 16
