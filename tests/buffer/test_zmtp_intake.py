"""A ZeroMQ producer's bytes become segments, however they are cut."""

from collections.abc import Iterator
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.buffer.test_intake import CUTS, message, parse, release_all

from lclstream.buffer.memory import CHUNK_BYTES, MIB, Memory
from lclstream.buffer.segments import Segment
from lclstream.buffer.sp import HEADER_BYTES, LARGE_BYTES
from lclstream.buffer.zmtp import command, header
from lclstream.buffer.zmtp_intake import BIG_BYTES, ZmtpIntake
from lclstream.core.ledger import Tally

EDGES = [255, 256, BIG_BYTES, LARGE_BYTES, CHUNK_BYTES, MIB - HEADER_BYTES, MIB - 64]
SIZES = st.one_of(
    st.integers(0, 300),
    st.integers(0, MIB),
    st.builds(lambda edge, more: edge + more, st.sampled_from(EDGES), st.integers(-10, 10)),
)
# Messages of one size take a shorter way.
REPEATS = st.sampled_from([1, 1, 1, 2, 9, 100])


def frames(messages: list[bytes]) -> bytes:
    return b"".join(header(len(one)) + one for one in messages)


def feed(intake: ZmtpIntake, data: bytes, cuts: list[int]) -> Iterator[Segment]:
    """Hand over bytes in pieces, as a socket would, until the intake is of no more use."""
    position, turn = 0, 0
    while position < len(data) and intake.fault is None:
        space = intake.space()
        assert space is not None
        assert len(space)
        count = min(cuts[turn % len(cuts)], len(space), len(data) - position)
        turn += 1
        space[:count] = data[position : position + count]
        position += count
        segment = intake.filled(count)
        if segment is not None:
            yield segment


def taken(segment: Segment) -> list[bytes]:
    messages = parse(bytes(segment.block.view[segment.start : segment.end]))
    assert segment.tally.messages == len(messages)
    segment.release()
    return messages


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(SIZES, REPEATS), max_size=6), CUTS, st.integers(0, 3), st.booleans())
def test_messages_come_out_as_they_went_in(
    kinds: list[tuple[int, int]], cuts: list[int], keep: int, digests: bool
) -> None:
    cuts = [cut if i % 5 == 0 else max(cut, 5000) for i, cut in enumerate([*cuts, 70_000])]
    sizes = [size for size, count in kinds for _ in range(count if size < 5000 else 1)]
    messages = [message(i, size) for i, size in enumerate(sizes)]
    memory = Memory(64 * MIB)
    intake = ZmtpIntake(lambda size: memory.take(size, stuck=True), 2 * MIB, digests=digests)
    kept: list[Segment] = []
    received: list[bytes] = []
    total, expected = Tally(), Tally(digest=0 if digests else None)
    for segment in feed(intake, frames(messages), cuts):
        kept.append(segment)
        total.merge(segment.tally)
        if len(kept) > keep:
            received += taken(kept.pop(0))
    for segment in kept:
        received += taken(segment)
    assert received == messages
    assert not intake.partial
    for one in messages:
        expected.add(one)
    assert total == expected or not messages
    intake.close()
    assert memory.held_bytes == 0
    memory.close()


def test_many_tiny_messages_never_outgrow_their_room() -> None:
    memory = Memory(4 * MIB)
    intake = ZmtpIntake(lambda size: memory.take(size, stuck=False), MIB)
    messages = [b"", b"a"] * 20_000
    received = [one for each in feed(intake, frames(messages), [1 << 20]) for one in taken(each)]
    assert received == messages


def test_payloads_of_large_messages_are_not_copied() -> None:
    """What follows the header is received where it stays."""
    memory = Memory(64 * MIB)
    intake = ZmtpIntake(lambda size: memory.take(size, stuck=False), 16 * MIB)
    data = frames([message(1, 3 * MIB)] * 3)
    position, spaces = 0, []
    while position < len(data):
        space = intake.space()
        assert space is not None
        spaces.append(len(space))
        count = min(len(space), len(data) - position)
        space[:count] = data[position : position + count]
        position += count
        segment = intake.filled(count)
        if segment is not None:
            assert taken(segment) == [message(1, 3 * MIB)]
    # The first read, which knows nothing; then one for each message and the next header.
    assert len(spaces) == 4
    assert intake._block is None


def test_idle_connection_holds_no_memory() -> None:
    memory = Memory(MIB)
    intake = ZmtpIntake(lambda size: memory.take(size, stuck=False), MIB)
    list(feed(intake, command(b"PING", b"\0\0"), [1 << 20]))
    assert memory.held_bytes == 0
    assert intake.answers == command(b"PONG", b"")
    assert not list(feed(intake, header(300)[:4], [4]))
    assert memory.held_bytes == 0
    assert intake.partial


def test_large_message_waits_for_its_memory_and_keeps_what_has_come() -> None:
    memory = Memory(64 * MIB)
    is_full = False
    intake = ZmtpIntake(lambda size: None if is_full else memory.take(size, stuck=False), MIB)
    data = frames([b"first", message(7, MIB)])
    (segment,) = feed(intake, data[:1000], [1000])
    assert taken(segment) == [b"first"]
    is_full = True
    assert intake.space() is None
    assert intake.space() is None
    assert intake.partial
    is_full = False
    (segment,) = feed(intake, data[1000:], [1 << 20])
    assert taken(segment) == [message(7, MIB)]
    assert intake.space() is not None


BEFORE = [[], [b"x"], [b"x"] * 20, [bytes(3 * LARGE_BYTES)]]
FAULTS = {
    "multipart": (b"\x01\x01a\x00\x01b", "a message of several frames"),
    "long multipart": (b"\x03" + (300).to_bytes(8, "big") + bytes(300), "several frames"),
    "unknown flag": (b"\x08\x01a", "unknown ZMTP frame flags 0x08"),
    "multipart command": (b"\x05\x01a", "unknown ZMTP frame flags 0x05"),
    "too large": (header(MIB + 1), f"a message of {MIB + 1} bytes is above the limit"),
    "2**63": (header(2**63), f"a message of {2**63} bytes is above the limit"),
    "2**64 - 1": (header(2**64 - 1), f"a message of {2**64 - 1} bytes is above the limit"),
    "huge command": (b"\x06" + b"\xff" * 8, "a ZMTP command of 18446744073709551615 bytes"),
}


@pytest.mark.parametrize(("said", "reason"), FAULTS.values(), ids=FAULTS)
def test_faults_end_it_after_what_was_right(said: bytes, reason: str) -> None:
    for before, cut in product(BEFORE, [1 << 20, 1]):
        memory = Memory(8 * MIB)
        intake = ZmtpIntake(lambda size: memory.take(size, stuck=False), MIB)  # noqa: B023
        received = []
        for data, count in ((frames(before), 1 << 20), (said, cut)):
            received += [one for each in feed(intake, data, [count]) for one in taken(each)]
        assert received == before
        assert reason in str(intake.fault)
        assert memory.peak_bytes <= MIB
        intake.close()
        assert memory.held_bytes == 0


def test_fault_in_the_same_read_as_good_messages() -> None:
    memory = Memory(8 * MIB)
    intake = ZmtpIntake(lambda size: memory.take(size, stuck=False), MIB)
    (segment,) = feed(intake, frames([b"a", b"b"]) + b"\x01\x01c", [1 << 20])
    assert taken(segment) == [b"a", b"b"]
    assert intake.fault is not None


def test_commands_between_messages_are_answered() -> None:
    memory = Memory(8 * MIB)
    intake = ZmtpIntake(lambda size: memory.take(size, stuck=False), MIB)
    ping = command(b"PING", b"\0\x01context")
    data = frames([b"a"]) + ping + frames([b"b"] * 20) + ping
    for cut in (1 << 20, 3):
        received = [one for each in feed(intake, data, [cut]) for one in taken(each)]
        assert received == [b"a"] + [b"b"] * 20
        assert intake.answers == 2 * command(b"PONG", b"context")
        intake.answers.clear()
    release_all(feed(intake, data, [1 << 20]))
    assert not intake.partial
