"""Who gets which segment, and what becomes of one that was not written whole."""

from hypothesis import given
from hypothesis import strategies as st

from lclstream.buffer.memory import MIB, Memory
from lclstream.buffer.segments import Queue, Segment, SpOutlet
from lclstream.buffer.sp import header
from lclstream.core.ledger import Tally


def segment(memory: Memory, messages: list[bytes]) -> Segment:
    block = memory.take(MIB, stuck=True)
    assert block is not None
    data = b"".join(header(len(message)) + message for message in messages)
    block.view[: len(data)] = data
    made = Segment(block, 0, len(data), tally(messages))
    block.release()
    return made


def tally(messages: list[bytes]) -> Tally:
    total = Tally()
    for message in messages:
        total.add(message)
    return total


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=6), st.data())
def test_cut_loses_and_doubles_nothing(messages: list[bytes], data: st.DataObject) -> None:
    memory = Memory(4 * MIB)
    whole = segment(memory, messages)
    outlet = SpOutlet()
    outlet.give(whole)
    position = data.draw(st.integers(0, whole.end - 1))
    assert outlet.written(position) is None
    assert outlet.wire_bytes == position
    ends = [sum(8 + len(m) for m in messages[: i + 1]) for i in range(len(messages))]
    count = sum(end <= position for end in ends)
    assert outlet.whole_messages(whole, position) == count
    sent, rest = whole.cut(count)
    assert sent == tally(messages[:count])
    assert rest is not None
    assert rest.tally == tally(messages[count:])
    expected = b"".join(header(len(message)) + message for message in messages[count:])
    assert bytes(rest.block.view[rest.start : rest.end]) == expected
    assert rest.cut(len(messages)) == (tally(messages[count:]), None)
    assert memory.held_bytes == 0


def test_round_robin_among_idle_consumers() -> None:
    memory, queue = Memory(16 * MIB), Queue()
    outlets = [SpOutlet() for _ in range(3)]
    for outlet in outlets:
        queue.ready(outlet)
    for i in range(4):
        queue.put(segment(memory, [bytes([i])]))
    assert list(queue.matches()) == outlets
    assert queue.messages == 1
    # The one that is done first gets the next.
    done = outlets[1].written(9)
    assert done is not None
    queue.finished()
    queue.ready(outlets[1])
    assert list(queue.matches()) == [outlets[1]]
    assert (queue.messages, queue.writing, queue.is_empty) == (0, 3, False)


def test_what_was_not_taken_comes_first_again() -> None:
    memory, queue = Memory(16 * MIB), Queue()
    first, second = SpOutlet(), SpOutlet()
    for text in (b"a", b"b"):
        queue.put(segment(memory, [text, text + b"2"]))
    queue.ready(first)
    assert list(queue.matches()) == [first]
    first.written(9)
    assert first.segment is not None
    sent, rest = first.segment.cut(1)
    queue.finished()
    assert sent.messages == 1
    assert rest is not None
    queue.put_back([rest])
    queue.ready(second)
    assert list(queue.matches()) == [second]
    assert bytes(second.to_write()[0]) == header(2) + b"a2"
    assert queue.clear() == tally([b"b", b"b2"])
    assert not queue.messages


def test_idle_outlet_has_nothing_to_write() -> None:
    outlet = SpOutlet()
    assert not outlet.to_write()
    queue = Queue()
    queue.ready(outlet)
    queue.leave(outlet)
    queue.leave(outlet)
    assert not list(queue.matches())


def test_what_lies_behind_a_waiting_segment_joins_it() -> None:
    memory, queue, outlet = Memory(16 * MIB), Queue(), SpOutlet()
    whole = segment(memory, [b"a", b"bb", b"ccc"])
    first = Segment(whole.block, 0, 9, tally([b"a"]))
    queue.put(first)
    second = Segment(whole.block, 9, 19, tally([b"bb"]))
    assert queue.extend(first, second)
    assert (queue.messages, queue.bytes, first.end) == (2, 3, 19)
    queue.ready(outlet)
    assert list(queue.matches()) == [outlet]
    # Its end is settled now.
    third = Segment(whole.block, 19, 30, tally([b"ccc"]))
    assert not queue.extend(first, third)
    written = outlet.written(19)
    assert written is first
    assert written.tally == tally([b"a", b"bb"])
    for held in (first, third, whole):
        held.release()
    assert memory.held_bytes == 0
