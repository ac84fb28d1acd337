"""A message that is spliced: the two connections between which it goes, and who hears of it."""

import array
import fcntl
import logging
import socket
import termios
from collections.abc import Iterable
from typing import Protocol

from lclstream.buffer.commons import Commons
from lclstream.buffer.loop import READ, WRITE
from lclstream.buffer.peers import Consumer, Producer
from lclstream.buffer.retention import Keep
from lclstream.buffer.sp import header
from lclstream.buffer.splice import Pipe, Splice
from lclstream.core.ledger import Tally

logger = logging.getLogger(__name__)

# So much of it must have come: nobody should wait in the middle of a message for its producer.
LEAST_HERE_BYTES = 64 * 1024
# Others want to be served as well.
BYTES_PER_EVENT = 8 << 20
# A consumer that takes nothing for so long holds up its producer no longer.
STALLED_AFTER_S = 0.5


class Source(Protocol):
    """Hears what becomes of the producer."""

    def watch(self, producer: Producer, events: int) -> None:
        """Ask for events of its connection; 0 looks away."""

    def read_whole(self, producer: Producer, tally: Tally, *, is_wanted: bool) -> None:
        """The message has come from the producer, which is free for the next."""

    def broken(self, producer: Producer, problem: str) -> None:
        """Its connection is of no more use."""


class Target(Protocol):
    """Hears what becomes of the consumer."""

    def watch(self, consumer: Consumer, events: int) -> None:
        """Ask for events of its connection."""

    def sent_whole(self, consumer: Consumer, tally: Tally, begin: int) -> None:
        """The message has gone to the consumer, which is free for the next."""

    def crossed(self, crossing: "Crossing") -> None:
        """It is over, one way or the other."""

    def left(self, consumer: Consumer, problem: str) -> None:
        """Its connection is of no more use."""


def choose(producer: Producer, consumers: Iterable[Consumer]) -> Consumer | None:
    """Return an idle consumer to which the message that begins now may be spliced, if any."""
    size = producer.intake.bodiless_bytes
    if size is None or not producer.wire.can_splice:
        return None
    if _waiting_bytes(producer.sock) < min(size, LEAST_HERE_BYTES):
        return None
    return next((consumer for consumer in consumers if takes_splices(consumer)), None)


def takes_splices(consumer: Consumer) -> bool:
    """Return whether messages may be spliced to a consumer: nothing of them can be kept for it."""
    retention = consumer.retention
    return (
        consumer.wire.can_splice
        and consumer.framing == "sp"
        and retention.settled
        and retention.keep is Keep.NOTHING
    )


def _waiting_bytes(sock: socket.socket) -> int:
    count = array.array("i", [0])
    fcntl.ioctl(sock.fileno(), termios.FIONREAD, count)
    return count[0]


class Crossing:
    """One message between one producer and one consumer, until both are done with it.

    Raises:
        OSError: there are no descriptors left for a pipe.
    """

    def __init__(
        self,
        commons: Commons,
        producer: Producer,
        consumer: Consumer,
        source: Source,
        target: Target,
    ) -> None:
        size = producer.intake.bodiless_bytes
        assert size is not None  # noqa: S101
        self._commons = commons
        pipe = commons.pipes.take()
        self._pipe: Pipe | None = pipe
        self._splice = Splice(header(size), size, pipe)
        self._producer: Producer | None = producer
        self._consumer: Consumer | None = consumer
        self._source = source
        self._target = target
        self._begin = consumer.sent_bytes
        self._sent_at = commons.now
        producer.crossing = consumer.crossing = self

    @property
    def stalled_at(self) -> float | None:
        """When its producer is to be freed of a consumer that takes nothing; None if it is."""
        if self._producer is None or self._consumer is None or self._splice.tail is not None:
            return None
        return self._sent_at + STALLED_AFTER_S

    def move(self) -> None:
        """Move what can be moved now."""
        budget = BYTES_PER_EVENT
        while (moved := self._read() + self._send()) and budget > 0:
            budget -= moved
        self._settle()

    def relieve(self) -> None:
        """Take the rest into memory, if there is some: the producer goes on."""
        block = self._commons.memory.take(self._splice.unread, stuck=False)
        if block is not None:
            self._splice.give_tail(block)
            self.move()
        else:
            self._sent_at = self._commons.now

    def source_left(self) -> None:
        """The producer has gone: who has got a part of the message can use nothing that follows."""
        producer, self._producer = self._producer, None
        consumer, self._consumer = self._consumer, None
        if producer is not None:
            producer.crossing = None
        if consumer is not None:
            consumer.crossing = None
            self._target.left(consumer, "its producer broke off inside a message")
        self._close()

    def target_left(self) -> None:
        """The consumer has gone with a part of the message: the rest is of no use."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            consumer.crossing = None
        self._splice.has_target = False
        if self._producer is None:
            self._commons.counters.undelivered += 1
            self._close()
        else:
            self._settle()

    def _read(self) -> int:
        splice, producer = self._splice, self._producer
        if producer is None or not splice.can_read:
            return 0
        try:
            count = splice.read(producer.sock)
        except BlockingIOError:
            return 0
        except OSError as error:
            self._source.broken(producer, str(error))
            return 0
        if not count:
            self._source.broken(producer, "closed inside a message")
            return 0
        self._commons.moved()
        producer.moved_at = self._commons.now
        return count

    def _send(self) -> int:
        splice, consumer = self._splice, self._consumer
        if consumer is None or not splice.can_send:
            return 0
        try:
            count = splice.send(consumer.sock)
        except BlockingIOError:
            return 0
        except OSError as error:
            self._target.left(consumer, str(error))
            return 0
        consumer.sent_bytes += count
        self._sent_at = self._commons.now
        self._commons.moved()
        return count

    def _settle(self) -> None:
        """Let go of who is done, and ask for what the others need."""
        splice, producer, consumer = self._splice, self._producer, self._consumer
        tally = Tally(1, splice.size_bytes, 0, None)
        if producer is not None:
            if splice.is_read:
                self._producer = producer.crossing = None
                self._source.watch(producer, READ)
                self._source.read_whole(producer, tally, is_wanted=consumer is not None)
            else:
                # While the consumer takes nothing there is no room for more.
                wanted = splice.tail is not None or consumer is None or not splice.can_send
                self._source.watch(producer, READ if wanted else 0)
        if consumer is not None:
            if splice.is_sent:
                self._consumer = consumer.crossing = None
                self._target.watch(consumer, READ)
                self._target.sent_whole(consumer, tally, self._begin)
            else:
                self._target.watch(consumer, READ | WRITE if splice.can_send else READ)
        if self._producer is None and self._consumer is None:
            self._close()

    def _close(self) -> None:
        if self._pipe is not None:
            self._commons.pipes.give_back(self._pipe, is_empty=not self._splice.piped)
            self._pipe = None
            self._splice.close()
            self._target.crossed(self)
