"""Control frames: their bytes, and reading them from any cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lclstream.buffer.control import (
    CONTROL_BYTES,
    FRAME_BYTES,
    ControlReader,
    Frame,
    decode,
    frame,
    looks_like_control,
)
from lclstream.buffer.sp import header
from lclstream.core.errors import DecodeError

NUMBERS = st.integers(0, 2**64 - 1)


def test_bytes_of_a_frame() -> None:
    assert frame(Frame.ACK, 258) == (b"\0\0\0\0\0\0\0\x0dLCLB\x01\x00\x00\x00\x00\x00\x00\x01\x02")
    assert len(frame(Frame.BYE, 2**64 - 1)) == FRAME_BYTES == 8 + CONTROL_BYTES == 21
    assert [int(kind) for kind in Frame] == [1, 2, 3, 4, 5, 6]


@given(st.sampled_from(Frame), NUMBERS)
def test_decode_is_the_reverse(kind: Frame, number: int) -> None:
    payload = frame(kind, number)[8:]
    assert looks_like_control(payload)
    assert looks_like_control(memoryview(payload))
    assert decode(payload) == (kind, number)


@pytest.mark.parametrize("payload", [b"", b"LCLB", b"LCLB" + bytes(10), b"lclb" + bytes(9)])
def test_other_payloads_do_not_look_like_control(payload: bytes) -> None:
    assert not looks_like_control(payload)
    with pytest.raises(DecodeError, match="control frame"):
        decode(payload)


def test_unknown_type_looks_like_control_and_is_refused() -> None:
    payload = b"LCLB\x07" + bytes(8)
    assert looks_like_control(payload)
    with pytest.raises(DecodeError, match=r"^unknown control frame of type 7$"):
        decode(payload)


@given(
    st.lists(st.tuples(st.sampled_from(Frame), NUMBERS), max_size=20),
    st.lists(st.integers(1, 60), min_size=1, max_size=8),
)
def test_reader_with_any_cuts(frames: list[tuple[Frame, int]], cuts: list[int]) -> None:
    data = b"".join(frame(kind, number) for kind, number in frames)
    reader = ControlReader()
    found, position, turn = [], 0, 0
    while position < len(data):
        size = cuts[turn % len(cuts)]
        found += reader.received(memoryview(data)[position : position + size])
        position += size
        turn += 1
        assert reader.partial == (min(position, len(data)) % FRAME_BYTES != 0)
    assert found == frames


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (
            header(12),
            r"^expected a control frame, got b'\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x0c'$",
        ),
        (header(2**64 - 1), r"^expected a control frame, got b'\\xff\\xff"),
        (header(13) + b"not a control", r"^expected a control frame, got b'.*not "),
        (header(13) + b"LCLB\x00" + bytes(8), r"^unknown control frame of type 0$"),
    ],
)
def test_reader_refuses_anything_else(data: bytes, problem: str) -> None:
    reader = ControlReader()
    assert reader.received(frame(Frame.ACK, 1)) == [(Frame.ACK, 1)]
    with pytest.raises(DecodeError, match=problem):
        reader.received(data)
