"""Bytes that are passed on: counted by messages, and never taken for control frames."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lclstream.buffer.control import FRAME_BYTES, Frame, frame
from lclstream.buffer.forward_scan import Scanner
from lclstream.buffer.outgoing import LITERAL
from lclstream.buffer.sp import HEADER_BYTES, header

CONTROL = frame(Frame.BYE, 7)[HEADER_BYTES:]

payloads = st.one_of(
    st.binary(max_size=40),
    st.binary(min_size=13, max_size=13),
    st.just(CONTROL),
    st.binary(max_size=12).map(lambda rest: b"LCLB" + rest),
)


def scanned(wire: bytes, cuts: Sequence[int]) -> tuple[bytes, Scanner]:
    """Pass bytes through a scanner in pieces; return what comes out."""
    scanner, sent, kept, position = Scanner(), b"", b"", 0
    for size in [*cuts, len(wire)]:
        data = kept + wire[position : position + size]
        position += size
        pieces, stop = scanner.scan(memoryview(data), 0, len(data))
        sent += b"".join(pieces)
        kept = data[stop:]
        assert len(kept) < FRAME_BYTES
        if position >= len(wire):
            break
    assert not kept
    return sent, scanner


@given(st.lists(payloads, max_size=12), st.lists(st.integers(1, 60), max_size=40))
def test_what_looks_like_control_is_announced_and_nothing_else_changes(
    messages: list[bytes], cuts: list[int]
) -> None:
    sent, scanner = scanned(b"".join(header(len(each)) + each for each in messages), cuts)
    expected = b""
    for each in messages:
        is_like_control = len(each) == 13 and each.startswith(b"LCLB")
        expected += (LITERAL if is_like_control else b"") + header(len(each)) + each
    assert sent == expected
    assert scanner.messages == len(messages)
    assert scanner.rest_bytes == 0


def test_a_message_that_is_not_whole_does_not_count() -> None:
    scanner = Scanner()
    begun = header(1000) + bytes(100)
    scanner.scan(memoryview(begun), 0, len(begun))
    assert (scanner.messages, scanner.rest_bytes) == (0, 900)
    scanner.passed(899)
    assert scanner.messages == 0
    scanner.passed(1)
    assert (scanner.messages, scanner.rest_bytes) == (1, 0)


@pytest.mark.parametrize("here", range(1, FRAME_BYTES))
def test_a_control_like_message_is_held_back_until_it_is_whole(here: int) -> None:
    whole = header(len(CONTROL)) + CONTROL
    scanner = Scanner()
    pieces, stop = scanner.scan(memoryview(whole), 0, here)
    assert (pieces, stop) == ([], 0)
    pieces, stop = scanner.scan(memoryview(whole), 0, len(whole))
    assert b"".join(pieces) == LITERAL + whole
    assert stop == len(whole)
