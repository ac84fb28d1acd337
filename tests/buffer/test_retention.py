"""What comes back of a consumer that leaves, against a model too simple to be wrong."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lclstream.buffer.memory import MIB, Memory
from lclstream.buffer.retention import Departure, Keep, Retention
from lclstream.buffer.segments import Segment
from lclstream.buffer.sp import HANDSHAKE_BYTES, HEADER_BYTES, header
from lclstream.core.errors import DecodeError
from lclstream.core.ledger import Tally

SIZES = st.lists(st.integers(0, 30), min_size=1, max_size=5)


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


def messages_of(segments: list[Segment]) -> list[bytes]:
    messages = []
    for one in segments:
        data = bytes(one.block.view[one.start : one.end])
        while data:
            end = HEADER_BYTES + int.from_bytes(data[:HEADER_BYTES], "big")
            messages.append(data[HEADER_BYTES:end])
            data = data[end:]
        one.release()
    return messages


class Consumer(RuleBasedStateMachine):
    """One consumer: what it was written, in whole and in part, and what it acknowledged."""

    keep: Keep
    settled: bool

    @initialize(keep=st.sampled_from([Keep.NOTHING, Keep.TCP]), settled=st.booleans())
    def begin(self, keep: Keep, settled: bool) -> None:
        self.memory = Memory(64 * MIB)
        self.retention = Retention(
            keep, settled=settled, whole_messages=lambda one, count: one.whole_messages(count)
        )
        self.keep, self.settled, self.counter = keep, settled, 0
        self.written: list[bytes] = []
        self.acked_messages = self.acked_bytes = 0

    def make(self, sizes: list[int]) -> list[bytes]:
        made = []
        for size in sizes:
            self.counter += 1
            made.append(self.counter.to_bytes(4, "big") + bytes(size))
        return made

    @property
    def sent_bytes(self) -> int:
        return HANDSHAKE_BYTES + sum(HEADER_BYTES + len(one) for one in self.written)

    @rule(sizes=SIZES)
    def write(self, sizes: list[int]) -> None:
        messages = self.make(sizes)
        begin = self.sent_bytes
        self.retention.given += len(messages)
        self.written += messages
        self.retention.wrote(segment(self.memory, messages), begin, self.sent_bytes)

    @precondition(lambda self: self.keep is Keep.ACK or not self.settled)
    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        self.acked_messages = data.draw(st.integers(self.acked_messages, len(self.written)))
        self.retention.done(self.acked_messages)
        self.keep, self.settled = Keep.ACK, True

    @precondition(lambda self: not self.settled)
    @rule()
    def settle(self) -> None:
        self.retention.settle()
        self.settled = True

    @rule(data=st.data())
    def kernel_acknowledges(self, data: st.DataObject) -> None:
        low = max(self.acked_bytes, HANDSHAKE_BYTES)
        self.acked_bytes = data.draw(st.integers(low, self.sent_bytes))
        self.retention.arrived(self.acked_bytes)

    @rule()
    def nonsense_is_refused(self) -> None:
        with pytest.raises(DecodeError):
            self.retention.done(len(self.written) + 1)

    @rule(sizes=SIZES, data=st.data())
    def leave(self, sizes: list[int], data: st.DataObject) -> None:
        """It leaves while a segment is being written; begin again with a new one."""
        messages = self.make(sizes)
        total = sum(HEADER_BYTES + len(one) for one in messages)
        wire_bytes = data.draw(st.integers(0, total - 1))
        begin = self.sent_bytes
        self.retention.given += len(messages)
        departure = self.retention.leave(
            self.acked_bytes, segment(self.memory, messages), begin, wire_bytes
        )
        self.check(departure, messages, begin, wire_bytes)
        assert self.memory.held_bytes == 0
        self.memory.close()
        self.begin(data.draw(st.sampled_from([Keep.NOTHING, Keep.TCP])), data.draw(st.booleans()))

    def check(self, departure: Departure, now: list[bytes], begin: int, wire_bytes: int) -> None:
        everything = self.written + now
        ends = []
        position = HANDSHAKE_BYTES
        for one in everything:
            position += HEADER_BYTES + len(one)
            ends.append(position)
        back = messages_of(departure.back)
        in_kernel = sum(end <= self.acked_bytes for end in ends)
        whole_now = sum(end <= begin + wire_bytes for end in ends[len(self.written) :])
        if self.keep is Keep.ACK:
            first = self.acked_messages
        elif self.keep is Keep.TCP:
            first = min(in_kernel, len(self.written))
        else:
            first = len(self.written)
        expected = everything[first:]
        if self.keep is Keep.NOTHING:
            # At most once: what was written whole of the last segment stays away.
            expected = self.written[first:] + now[whole_now:]
        assert back == expected
        uncounted = expected[: max(len(self.written) - first, 0)]
        assert departure.uncounted == tally(uncounted)
        assert departure.counted.messages == len(now) - (len(expected) - len(uncounted))
        if self.keep is not Keep.NOTHING:
            assert departure.lost == 0

    @invariant()
    def holds_only_what_it_must(self) -> None:
        if not hasattr(self, "retention"):
            return
        if self.keep is Keep.NOTHING and self.settled:
            assert self.retention.bytes == 0
            assert self.memory.held_bytes == 0
        if self.keep is Keep.ACK and self.acked_messages == len(self.written):
            assert self.retention.is_empty
            assert self.memory.held_bytes == 0

    def teardown(self) -> None:
        if hasattr(self, "retention"):
            messages_of(self.retention.leave(0, None, 0, 0).back)
            assert self.memory.held_bytes == 0


TestConsumer = Consumer.TestCase


@given(st.integers(1, 4))
def test_what_was_lost_of_a_plain_consumer_is_counted(count: int) -> None:
    memory = Memory(8 * MIB)
    retention = Retention(
        Keep.NOTHING, settled=True, whole_messages=lambda one, size: one.whole_messages(size)
    )
    position = HANDSHAKE_BYTES
    for _ in range(count):
        retention.wrote(segment(memory, [b"abc"]), position, position + 11)
        position += 11
    retention.spliced(Tally(1, 5000, 0, None), position, position + 5008)
    assert retention.leave(HANDSHAKE_BYTES + 11, None, 0, 0).lost == count
    assert memory.held_bytes == 0
