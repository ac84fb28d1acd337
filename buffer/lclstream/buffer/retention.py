"""What was written to a consumer and may have to go to another one; no input or output.

How long a message is kept depends on the consumer:

- *nothing*: it is let go when it was written. If the consumer leaves, what its kernel has not
  acknowledged is counted as possibly lost.
- *tcp*: until the consumer's kernel has acknowledged its last byte.
- *ack*: until the consumer says that it is done with it.

A consumer that will acknowledge says so at once, but its word may come a moment after its
handshake: until that is settled everything is kept.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from lclstream.buffer.segments import Segment, minus
from lclstream.core.errors import DecodeError
from lclstream.core.ledger import Tally


class Keep(StrEnum):
    """Until when written messages are kept."""

    NOTHING = "nothing"
    TCP = "tcp"
    ACK = "ack"


@dataclass(slots=True, eq=False)
class Written:
    """A segment that was written whole."""

    tally: Tally
    segment: Segment | None
    """None if it was let go."""
    begin: int
    """Bytes written to the connection before it."""
    end: int
    """And with it."""
    first: int
    """Messages written to the connection before it."""

    @property
    def last(self) -> int:
        """Messages written to the connection with it."""
        return self.first + self.tally.messages


@dataclass(slots=True)
class Departure:
    """What a consumer that leaves means for the messages."""

    back: list[Segment] = field(default_factory=list)
    """To be given to others, in this order."""
    uncounted: Tally = field(default_factory=Tally)
    """Part of `back` that was counted as written."""
    counted: Tally = field(default_factory=Tally)
    """Part of the segment in hand that counts as written."""
    lost: int = 0
    """Messages that may not have arrived (an upper bound), and cannot be sent again."""


class Retention:
    """What one consumer has been written.

    Args:
        keep: until when messages are kept if nothing is heard of the consumer.
        settled: whether that can no longer change.
        whole_messages: as of the consumer's outlet.
    """

    def __init__(
        self, keep: Keep, *, settled: bool, whole_messages: Callable[[Segment, int], int]
    ) -> None:
        self.keep = keep
        self.settled = settled
        self.bytes = 0
        """Held for this consumer, headers included."""
        self.acknowledged = 0
        """Messages that the consumer said it is done with."""
        self.given = 0
        """Messages that were given to it, those in hand included."""
        self._written: deque[Written] = deque()
        self._messages = 0
        self._whole_messages = whole_messages

    @property
    def messages(self) -> int:
        """Messages written whole and not known to have arrived."""
        return sum(written.tally.messages for written in self._written)

    @property
    def is_empty(self) -> bool:
        """Whether everything written is known to have arrived."""
        return not self._written

    @property
    def entries(self) -> int:
        """How many segments are not known to have arrived."""
        return len(self._written)

    def settle(self) -> None:
        """It has not said that it will acknowledge: it will not."""
        self.settled = True
        if self.keep is Keep.NOTHING:
            for written in self._written:
                self._let_go(written)

    def wrote(self, segment: Segment, begin: int, end: int) -> None:
        """Take over a segment that was written whole to the connection."""
        kept = None
        if self.keep is Keep.NOTHING and self.settled:
            segment.release()
        else:
            kept = segment
            self.bytes += segment.size_bytes
        self._written.append(Written(segment.tally, kept, begin, end, self._messages))
        self._messages += segment.tally.messages

    def spliced(self, tally: Tally, begin: int, end: int) -> None:
        """Take note of a message that never was in memory."""
        self._written.append(Written(tally, None, begin, end, self._messages))
        self._messages += tally.messages
        self.given += tally.messages

    def arrived(self, acknowledged_bytes: int) -> None:
        """Forget what the consumer's kernel has acknowledged, unless it acknowledges itself."""
        if self.keep is Keep.ACK or not self.settled:
            return
        while self._written and self._written[0].end <= acknowledged_bytes:
            self._let_go(self._written.popleft())

    def done(self, messages: int) -> None:
        """Forget what the consumer says it is done with: the first N messages.

        Raises:
            DecodeError: it cannot be done with so many.
        """
        if not self.acknowledged <= messages <= self.given:
            raise DecodeError(
                f"acknowledged {messages} messages after {self.acknowledged}, of {self.given} given"
            )
        self.keep, self.settled = Keep.ACK, True
        self.acknowledged = messages
        while self._written and self._written[0].last <= messages:
            self._let_go(self._written.popleft())
        if self._written and (segment := self._written[0].segment) is not None:
            partly = messages - self._written[0].first
            if partly > 0:
                segment.progressed(partly)

    def leave(
        self, acknowledged_bytes: int, in_hand: Segment | None, begin: int, wire_bytes: int
    ) -> Departure:
        """Decide what happens to everything that is not known to have arrived.

        Args:
            acknowledged_bytes: how much of the connection the consumer's kernel has.
            in_hand: the segment that is being written, if any.
            begin: bytes written to the connection before it.
            wire_bytes: how much of it was written.
        """
        if not self.settled:
            # It has not said that it would acknowledge.
            self.settle()
        self.arrived(acknowledged_bytes)
        departure = Departure()
        for written in self._written:
            if written.segment is None:
                departure.lost += written.tally.messages
                continue
            arrived = self._arrived(
                written.segment, written.begin, written.first, acknowledged_bytes
            )
            first, rest = written.segment.cut(arrived)
            if rest is not None:
                departure.back.append(rest)
                departure.uncounted.merge(minus(written.tally, first))
        self._written.clear()
        self.bytes = 0
        if in_hand is not None:
            self._leave_in_hand(departure, in_hand, begin, wire_bytes, acknowledged_bytes)
        return departure

    def _leave_in_hand(
        self, departure: Departure, segment: Segment, begin: int, wire_bytes: int, acked: int
    ) -> None:
        arrived = self._arrived(segment, begin, self._messages, acked)
        whole = arrived
        if self.keep is Keep.NOTHING:
            # What was written whole is not written again: at most once.
            whole = self._whole_messages(segment, wire_bytes)
            departure.lost += whole - arrived
        departure.counted, rest = segment.cut(whole)
        if rest is not None:
            departure.back.append(rest)

    def _arrived(self, segment: Segment, begin: int, first: int, acked: int) -> int:
        """Return how many messages of a segment are known to have arrived."""
        if self.keep is Keep.ACK:
            return min(max(self.acknowledged - first, 0), segment.tally.messages)
        return self._whole_messages(segment, max(acked - begin, 0))

    def _let_go(self, written: Written) -> None:
        if written.segment is not None:
            self.bytes -= written.segment.size_bytes
            written.segment.release()
            written.segment = None
