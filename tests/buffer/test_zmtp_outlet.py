"""Segments become ZMTP frames, however little a socket takes at once."""

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.buffer.test_segments import segment

from lclstream.buffer.memory import MIB, Memory
from lclstream.buffer.zmtp import header
from lclstream.buffer.zmtp_outlet import COPIED_BYTES, MAX_PARTS, ZmtpOutlet

SIZES = st.one_of(
    st.integers(0, 20),
    st.sampled_from([255, 256, 1000, COPIED_BYTES - 1, COPIED_BYTES, 50_000]),
)
REPEATS = st.sampled_from([1, 1, 2, 10, 300])


def frames(messages: list[bytes]) -> bytes:
    return b"".join(header(len(one)) + one for one in messages)


def write(outlet: ZmtpOutlet, counts: list[int]) -> bytes:
    """Write what the outlet has, not more at once than the counts say."""
    out, turn = b"", 0
    while parts := outlet.to_write():
        assert len(parts) <= MAX_PARTS
        data = b"".join(parts)
        count = min(counts[turn % len(counts)], len(data))
        turn += 1
        out += data[:count]
        if outlet.written(count) is not None:
            break
    return out


@settings(deadline=None)
@given(
    st.lists(st.tuples(SIZES, REPEATS), min_size=1, max_size=5),
    st.lists(st.integers(0, 1 << 20), min_size=1),
)
def test_frames_come_out_as_the_protocol_says(
    kinds: list[tuple[int, int]], counts: list[int]
) -> None:
    counts = [*(max(count, 2000) if i % 3 else count for i, count in enumerate(counts)), 9000]
    messages = [
        bytes([i % 251]) * size
        for size, count in kinds
        for i in range(count if size < 1000 else min(count, 2))
    ]
    memory = Memory(4 * MIB)
    whole = segment(memory, messages)
    outlet = ZmtpOutlet()
    outlet.give(whole)
    assert write(outlet, counts) == frames(messages)
    assert outlet.segment is None
    assert not outlet.to_write()
    assert outlet.wire_bytes == len(frames(messages))
    whole.release()
    assert memory.held_bytes == 0


@given(st.lists(st.integers(0, 600), min_size=1, max_size=6), st.data())
def test_messages_are_whole_where_their_frames_end(sizes: list[int], data: st.DataObject) -> None:
    memory = Memory(4 * MIB)
    messages = [bytes(size) for size in sizes]
    whole = segment(memory, messages)
    written = data.draw(st.integers(0, len(frames(messages)) + 5))
    expected = sum(len(frames(messages[: i + 1])) <= written for i in range(len(messages)))
    assert ZmtpOutlet().whole_messages(whole, written) == expected
    whole.release()


def test_large_payloads_are_not_copied() -> None:
    memory = Memory(4 * MIB)
    whole = segment(memory, [bytes(MIB // 4)] * 3)
    outlet = ZmtpOutlet()
    outlet.give(whole)
    parts = outlet.to_write()
    assert len(parts) == 6
    whole.block.view[8] = 7
    assert parts[1][8] == 7
    whole.release()


def test_answers_go_between_segments() -> None:
    memory = Memory(4 * MIB)
    outlet = ZmtpOutlet()
    outlet.answer(b"idle")
    assert write(outlet, [3, 1]) == b"idle"
    first = segment(memory, [b"abc"])
    outlet.give(first)
    outlet.answer(b"before")
    assert b"".join(outlet.to_write()) == b"before"
    assert outlet.written(6) is None
    assert outlet.wire_bytes == 0
    # What was offered once comes first also if nothing was taken.
    assert b"".join(outlet.to_write()) == b"\x00\x03abc"
    assert outlet.written(0) is None
    outlet.answer(b"after")
    assert write(outlet, [2]) == b"\x00\x03abc"
    assert write(outlet, [9]) == b"after"
    first.release()
