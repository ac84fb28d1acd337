"""Queue, outlets and retention against a model that is nothing but lists of messages."""

from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from tests.buffer.loss.scale import pick

from lclstream.buffer.memory import Block, Memory
from lclstream.buffer.retention import Keep, Retention
from lclstream.buffer.segments import Queue, Segment, SpOutlet
from lclstream.buffer.sp import header
from lclstream.core.ledger import Tally

CAPACITY = 1 << 30
HANDSHAKE_BYTES = 8


def framed(messages: list[bytes]) -> bytes:
    return b"".join(header(len(message)) + message for message in messages)


def tally(messages: list[bytes]) -> Tally:
    made = Tally()
    for message in messages:
        made.add(message)
    return made


@dataclass(eq=False)
class Consumer:
    """A consumer's side of the buffer, and beside it what the model knows of it."""

    keep: Keep
    outlet: SpOutlet = field(default_factory=SpOutlet)
    sent_bytes: int = HANDSHAKE_BYTES
    acked_bytes: int = 0
    acked_messages: int = 0
    given: list[bytes] = field(default_factory=list)
    """Messages that it was given, in order."""
    wire: bytearray = field(default_factory=bytearray)
    """What was written to it, without the handshake."""

    def __post_init__(self) -> None:
        self.retention = Retention(
            self.keep, settled=True, whole_messages=self.outlet.whole_messages
        )

    def whole(self, size_bytes: int) -> int:
        """Return how many messages lie in so many bytes of what it was given."""
        ends = [len(framed(self.given[: count + 1])) for count in range(len(self.given))]
        return sum(end <= size_bytes for end in ends)

    def stays_with_it(self) -> int:
        """Return how many of the messages that it was given nobody else gets."""
        if self.keep is Keep.ACK:
            return self.acked_messages
        if self.keep is Keep.TCP:
            return self.whole(self.acked_bytes - HANDSHAKE_BYTES)
        return self.whole(len(self.wire))


class Dispatch(RuleBasedStateMachine):
    """Whatever happens, each message is where the model has it, and in its order."""

    @initialize()
    def begin(self) -> None:
        self.memory = Memory(CAPACITY)
        self.queue = Queue()
        self.consumers: list[Consumer] = []
        self.waiting: deque[bytes] = deque()
        self.block: Block | None = None
        self.last: Segment | None = None

    # Producers.

    @rule(messages=st.lists(st.binary(max_size=30), min_size=1, max_size=5), fresh=st.booleans())
    def receive(self, messages: list[bytes], *, fresh: bool) -> None:
        """A run of messages comes in, in a chunk of its own or behind the one before."""
        data = framed(messages)
        start = self.last.end if self.last is not None else 0
        if fresh or self.block is None or start + len(data) > self.block.size_bytes:
            self._forget_block()
            self.block, start = self.memory.take(1, stuck=True), 0
        assert self.block is not None
        self.block.view[start : start + len(data)] = data
        segment = Segment(self.block, start, start + len(data), tally(messages))
        if self.last is None or not self.queue.extend(self.last, segment):
            self.queue.put(segment)
            self.last = segment
        self.waiting.extend(messages)

    def _forget_block(self) -> None:
        if self.block is not None:
            self.block.release()
        self.block = self.last = None

    # Consumers.

    @rule(keep=st.sampled_from(Keep))
    def join(self, keep: Keep) -> None:
        consumer = Consumer(keep)
        self.consumers.append(consumer)
        self.queue.ready(consumer.outlet)

    @rule()
    def dispatch(self) -> None:
        idle = list(self.queue.idle())
        for outlet in self.queue.matches():
            # Who has waited the longest comes first.
            assert outlet is idle.pop(0)
            (consumer,) = [each for each in self.consumers if each.outlet is outlet]
            segment = outlet.segment
            assert segment is not None
            messages = [self.waiting.popleft() for _ in range(segment.tally.messages)]
            assert bytes(segment.block.view[segment.start : segment.end]) == framed(messages)
            assert segment.tally == tally(messages)
            consumer.given += messages
            consumer.retention.given += len(messages)
        assert not self.waiting or not idle

    @precondition(lambda self: any(each.outlet.segment for each in self.consumers))
    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        """The socket of somebody takes some bytes, or all."""
        busy = [each for each in self.consumers if each.outlet.segment]
        consumer = data.draw(st.sampled_from(busy))
        (view,) = consumer.outlet.to_write()
        count = data.draw(st.one_of(st.just(len(view)), st.integers(0, len(view))))
        consumer.wire += view[:count]
        consumer.sent_bytes += count
        segment = consumer.outlet.written(count)
        assert (segment is not None) == (count == len(view))
        if segment is not None:
            begin = consumer.sent_bytes - segment.size_bytes
            consumer.retention.wrote(segment, begin, consumer.sent_bytes)
            self.queue.finished()
            self.queue.ready(consumer.outlet)

    @precondition(lambda self: self.consumers)
    @rule(data=st.data())
    def kernel_acknowledges(self, data: st.DataObject) -> None:
        consumer = data.draw(st.sampled_from(self.consumers))
        consumer.acked_bytes = data.draw(st.integers(consumer.acked_bytes, consumer.sent_bytes))
        consumer.retention.arrived(consumer.acked_bytes)

    @precondition(lambda self: any(each.keep is Keep.ACK for each in self.consumers))
    @rule(data=st.data())
    def consumer_acknowledges(self, data: st.DataObject) -> None:
        """It is done with messages, at most with those that are whole on its side."""
        consumer = data.draw(
            st.sampled_from([each for each in self.consumers if each.keep is Keep.ACK])
        )
        done = data.draw(st.integers(consumer.acked_messages, consumer.whole(len(consumer.wire))))
        consumer.acked_messages = done
        consumer.retention.done(done)

    @precondition(lambda self: self.consumers)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        self._leave(data.draw(st.sampled_from(self.consumers)))

    def _leave(self, consumer: Consumer) -> None:
        self.consumers.remove(consumer)
        outlet = consumer.outlet
        in_hand, wire_bytes = outlet.segment, outlet.wire_bytes
        if in_hand is not None:
            outlet.segment = None
            self.queue.finished()
        begin = consumer.sent_bytes - (wire_bytes if in_hand is not None else 0)
        departure = consumer.retention.leave(consumer.acked_bytes, in_hand, begin, wire_bytes)
        self.queue.put_back(departure.back)
        self.queue.leave(outlet)
        kept = consumer.stays_with_it()
        back = consumer.given[kept:]
        self.waiting.extendleft(reversed(back))
        assert sum(segment.tally.messages for segment in departure.back) == len(back)
        # An upper bound: it may count all of a run of which a part has arrived.
        if consumer.keep is Keep.NOTHING:
            arrived = consumer.whole(max(consumer.acked_bytes - HANDSHAKE_BYTES, 0))
            assert kept - arrived <= departure.lost <= kept
        else:
            assert departure.lost == 0

    # What holds always.

    @invariant()
    def queue_is_as_the_model(self) -> None:
        assert self.queue.messages == len(self.waiting)
        assert self.queue.bytes == sum(map(len, self.waiting))
        assert self.queue.writing == sum(each.outlet.segment is not None for each in self.consumers)
        assert b"".join(
            bytes(segment.block.view[segment.start : segment.end])
            for segment in self.queue._segments
        ) == framed(list(self.waiting))

    @invariant()
    def consumers_get_what_they_were_given(self) -> None:
        for consumer in self.consumers:
            assert framed(consumer.given).startswith(consumer.wire)

    def teardown(self) -> None:
        for consumer in list(self.consumers):
            self._leave(consumer)
        self.queue_is_as_the_model()
        dropped = self.queue.clear()
        assert dropped == tally(list(self.waiting))
        self._forget_block()
        # Nothing holds on to memory that is of no more use.
        assert self.memory.held_bytes == 0
        self.memory.close()


Dispatch.TestCase.settings = settings(
    max_examples=pick(60, 3000), stateful_step_count=30, deadline=None
)
TestDispatch = pytest.mark.timeout(900)(Dispatch.TestCase)
