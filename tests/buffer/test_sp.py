"""The SP framing, against a parser too simple to be wrong."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lclstream.buffer.control import Frame
from lclstream.buffer.control import frame as control_frame
from lclstream.buffer.runs import walk
from lclstream.buffer.sp import Handshake, Protocol, check_size, handshake, header, split
from lclstream.core.errors import DecodeError
from lclstream.core.ledger import Tally

LIMIT = 1000


def frame(messages: list[bytes]) -> bytes:
    return b"".join(header(len(message)) + message for message in messages)


def test_handshake_bytes() -> None:
    assert handshake(Protocol.PUSH) == bytes.fromhex("0053500000500000")
    assert handshake(Protocol.PULL) == bytes.fromhex("0053500000510000")


@given(st.integers(1, 7))
def test_handshake_may_come_in_pieces(cut: int) -> None:
    waiting = Handshake(Protocol.PUSH)
    assert not waiting.received(handshake(Protocol.PUSH)[:cut])
    assert waiting.missing_bytes == 8 - cut
    assert waiting.received(handshake(Protocol.PUSH)[cut:])


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(handshake(Protocol.PULL), id="same side"),
        pytest.param(b"\x00SP\x00\x00\x50\x00\x01", id="reserved bytes"),
        pytest.param(b"\x00SP\x01", id="version"),
        pytest.param(b"G", id="http"),
    ],
)
def test_wrong_handshake_is_refused_at_its_first_wrong_byte(wrong: bytes) -> None:
    with pytest.raises(DecodeError, match=r"^expected the handshake b'\\x00SP\\x00\\x00P"):
        Handshake(Protocol.PUSH).received(wrong)


MESSAGES = st.one_of(
    st.lists(st.binary(max_size=30)),
    # Mostly of one size, as a stream has them.
    st.builds(
        lambda count, size, odd: [bytes([i % 256]) * size for i in range(count)] + odd,
        st.integers(0, 40),
        st.integers(0, 20),
        st.lists(st.binary(max_size=30), max_size=3),
    ),
)


@given(MESSAGES, st.binary(max_size=20), st.integers(0, 5), st.booleans())
def test_walk_and_split_find_the_run(
    messages: list[bytes], rest: bytes, before: int, digests: bool
) -> None:
    # What follows begins a message that is longer than what is here.
    data = b"x" * before + frame(messages) + (header(500) + rest)[: len(rest)]
    memory = memoryview(data)
    run = walk(memory, before, len(data), digests=digests)
    expected = Tally()
    for message in messages:
        expected.add(message)
    assert (run.messages, run.payload_bytes, run.digest) == (
        expected.messages,
        expected.bytes,
        expected.digest if digests else None,
    )
    assert not run.is_control
    assert run.stop == before + len(frame(messages))
    assert run.next_bytes == (500 if len(rest) >= 8 else None)
    views, stop, next_bytes = split(memory, before, len(data))
    assert ([bytes(view) for view in views], stop, next_bytes) == (
        messages,
        run.stop,
        run.next_bytes,
    )


@pytest.mark.parametrize("claim", [LIMIT + 1, 2**32, 2**60, 2**63, 2**64 - 1])
def test_huge_claims_are_found_after_the_good_messages(claim: int) -> None:
    data = memoryview(frame([b"good"]) + header(claim))
    run = walk(data, 0, len(data), digests=True)
    assert (run.messages, run.next_bytes) == (1, claim)
    fault = check_size(run.next_bytes, LIMIT)
    assert str(fault) == f"a message of {claim} bytes is above the limit of {LIMIT}"
    assert split(data, 0, len(data))[1:] == (12, claim)


@pytest.mark.parametrize("size", [None, 0, LIMIT])
def test_sizes_within_the_limit_are_fine(size: int | None) -> None:
    assert check_size(size, LIMIT) is None


@pytest.mark.parametrize("digests", [False, True])
@pytest.mark.parametrize("size", [13, 5])
def test_walk_stops_at_a_control_frame_only_if_asked_to(digests: bool, size: int) -> None:
    before = frame([b"x" * size] * 20)
    data = memoryview(before + control_frame(Frame.BYE, 20) + frame([b"after"]))
    run = walk(data, 0, len(data), digests=digests, controls=True)
    assert (run.messages, run.stop, run.next_bytes, run.is_control) == (20, len(before), 13, True)
    assert walk(data, 0, len(data), digests=digests).messages == 22
