"""A producer's bytes become segments, however they are cut."""

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lclstream.buffer.intake import Intake
from lclstream.buffer.memory import CHUNK_BYTES, MIB, Memory
from lclstream.buffer.segments import Segment
from lclstream.buffer.sp import LARGE_BYTES, header
from lclstream.core.ledger import Tally

SIZES = st.one_of(
    st.integers(0, 40),
    st.integers(0, 3 * CHUNK_BYTES),
    st.sampled_from([LARGE_BYTES + i for i in range(-10, 3)]),
    st.sampled_from([CHUNK_BYTES + i for i in range(-18, 2)]),
)
CUTS = st.lists(
    st.one_of(st.integers(1, 30), st.integers(1, CHUNK_BYTES), st.just(1 << 30)), min_size=1
)


def message(index: int, size: int) -> bytes:
    return (index.to_bytes(2, "big") * (size // 2 + 1))[:size]


def parse(data: bytes) -> list[bytes]:
    """Cut a whole stream in the most simple way."""
    messages = []
    while data:
        end = 8 + int.from_bytes(data[:8], "big")
        messages.append(data[8:end])
        data = data[end:]
    return messages


def feed(intake: Intake, data: bytes, cuts: list[int]) -> Iterator[Segment]:
    """Hand over bytes in pieces, as a socket would."""
    position, turn = 0, 0
    while position < len(data):
        space = intake.space()
        assert space is not None
        assert len(space)
        count = min(cuts[turn % len(cuts)], len(space), len(data) - position)
        # Single bytes for a whole stream take too long.
        turn += 1
        space[:count] = data[position : position + count]
        position += count
        segment = intake.filled(count)
        if segment is not None:
            yield segment


@settings(max_examples=150, deadline=None)
@given(st.lists(SIZES, max_size=12), CUTS, st.integers(0, 3))
def test_messages_come_out_as_they_went_in(sizes: list[int], cuts: list[int], keep: int) -> None:
    cuts = [cut if i % 5 == 0 else max(cut, 5000) for i, cut in enumerate([*cuts, 70_000])]
    messages = [message(i, size) for i, size in enumerate(sizes)]
    data = b"".join(header(len(one)) + one for one in messages)
    memory = Memory(64 * MIB)
    intake = Intake(lambda size: memory.take(size, stuck=True), MIB, memory.zeros)
    kept: list[Segment] = []
    received: list[bytes] = []
    total = Tally()
    for segment in feed(intake, data, cuts):
        kept.append(segment)
        total.merge(segment.tally)
        if len(kept) > keep:
            received += release(kept.pop(0))
    for segment in kept:
        received += release(segment)
    assert received == messages
    assert not intake.partial
    expected = Tally()
    for one in messages:
        expected.add(one)
    assert total == expected
    # An idle connection between two messages holds nothing.
    assert memory.held_bytes == 0 or intake._block is not None
    intake.close()
    assert memory.held_bytes == 0
    memory.close()


def release(segment: Segment) -> list[bytes]:
    messages = parse(bytes(segment.block.view[segment.start : segment.end]))
    assert segment.tally.messages == len(messages)
    segment.release()
    return messages


def release_all(segments: Iterator[Segment]) -> None:
    for segment in segments:
        segment.release()


def test_idle_connection_holds_no_memory() -> None:
    memory = Memory(MIB)
    intake = Intake(lambda size: memory.take(size, stuck=False), MIB, memory.zeros)
    for segment in feed(intake, (header(5) + b"hello") * 3, [1 << 20]):
        # Queued: the chunk is needed.
        assert memory.held_bytes == CHUNK_BYTES
        segment.release()
    assert intake.space() is not None
    assert not list(feed(intake, header(300)[:4], [4]))
    assert intake.partial


def test_no_memory_means_wait() -> None:
    memory = Memory(CHUNK_BYTES)
    intake = Intake(lambda size: memory.take(size, stuck=False), MIB, memory.zeros)
    other = memory.take(1, stuck=False)
    assert other is not None
    assert intake.space() is None
    other.release()
    assert intake.space() is not None


@pytest.mark.parametrize("after_large", [False, True])
def test_large_message_waits_for_its_memory_and_keeps_what_has_come(after_large: bool) -> None:
    memory = Memory(64 * MIB)
    is_full = False
    intake = Intake(
        lambda size: None if is_full else memory.take(size, stuck=False), MIB, memory.zeros
    )
    if after_large:
        release_all(feed(intake, header(LARGE_BYTES * 3) + bytes(LARGE_BYTES * 3), [1 << 20]))
    data = header(MIB) + message(7, MIB)
    space = intake.space()
    assert space is not None
    count = min(1000, len(space))
    space[:count] = data[:count]
    assert intake.filled(count) is None
    is_full = True
    assert intake.space() is None
    assert intake.partial or after_large
    is_full = False
    (segment,) = feed(intake, data[count:], [1 << 20])
    assert bytes(segment.block.view[segment.start : segment.end]) == data
    segment.release()


@pytest.mark.parametrize("claim", [MIB + 1, 2**63, 2**64 - 1])
@pytest.mark.parametrize("after_large", [False, True])
def test_claims_are_checked_before_any_memory_is_taken(claim: int, after_large: bool) -> None:
    memory = Memory(4 * MIB)
    intake = Intake(lambda size: memory.take(size, stuck=False), MIB, memory.zeros)
    start = header(LARGE_BYTES * 3) + bytes(LARGE_BYTES * 3) if after_large else b""
    release_all(feed(intake, start + header(claim), [1 << 20]))
    assert str(intake.fault) == f"a message of {claim} bytes is above the limit of {MIB}"
    assert memory.peak_bytes <= MIB
    intake.close()
    assert memory.held_bytes == 0


def test_limit_holds_for_messages_that_come_whole() -> None:
    memory = Memory(4 * MIB)
    intake = Intake(lambda size: memory.take(size, stuck=False), 100, memory.zeros, digests=False)
    data = (header(100) + bytes(100)) * 20 + header(101) + bytes(101)
    (segment,) = feed(intake, data, [1 << 20])
    assert segment.tally.messages == 20
    assert str(intake.fault) == "a message of 101 bytes is above the limit of 100"
    segment.release()
