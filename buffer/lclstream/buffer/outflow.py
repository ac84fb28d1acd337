"""The consumers' side of the engine: writes, hears acknowledgements, takes back."""

from collections import deque
from functools import partial
from typing import TYPE_CHECKING

from lclstream.buffer import tcp
from lclstream.buffer.commons import Commons
from lclstream.buffer.config import Delivery
from lclstream.buffer.control import ControlReader, Frame, frame
from lclstream.buffer.crossing import Crossing, Source, choose, takes_splices
from lclstream.buffer.loop import READ, WRITE
from lclstream.buffer.peers import Consumer, Newcomer, Producer, Side
from lclstream.buffer.retention import Keep, Retention
from lclstream.buffer.segments import Outlet, Segment, SpOutlet, Words, minus
from lclstream.buffer.sp import header
from lclstream.buffer.stored import DiskSegment
from lclstream.buffer.transport import CutOffError
from lclstream.buffer.zmtp import CommandReader
from lclstream.buffer.zmtp_outlet import ZmtpOutlet
from lclstream.core.errors import DecodeError
from lclstream.core.ledger import Tally

if TYPE_CHECKING:
    from collections.abc import Sequence

# How often to look whether consumers that take nothing are still there, at least.
CHECK_INTERVAL_S = 5.0
CHECKS_IN_TIME = 4
# A consumer that will acknowledge says so at once; its word may be a moment on its way.
SETTLED_AFTER_S = 0.1
# Nobody waits for a consumer that has taken nothing for so long.
STALLED_AFTER_S = 0.02
# No event tells that a kernel has acknowledged: ask again after a pause that grows.
FIRST_ASKING_S = 0.001
LAST_ASKING_S = 0.05
# Of the memory; beyond, only consumers that hold nothing get something.
RETAINED_FRACTION = 0.5


class Outflow:
    """All consumers."""

    def __init__(self, commons: Commons) -> None:
        self.consumers: dict[Outlet, Consumer] = {}
        self.crossings: set[Crossing] = set()
        self.source: Source
        """Hears of messages that are spliced; set once, before anything is."""
        self._commons = commons
        self._held_back: list[Consumer] = []
        self._unsettled: deque[Consumer] = deque()
        self._check_at: float | None = None
        self._ask_at: float | None = None
        self._ask_pause_s = FIRST_ASKING_S
        # What is on disk is not given up for less.
        self._is_safe = commons.config.delivery is Delivery.SAFE or commons.queue.is_durable
        # What is spliced can be neither kept nor hashed.
        self._may_splice = not (self._is_safe or commons.config.digests)
        limits = (commons.config.dead_after_s, commons.config.ack_timeout_s)
        self._check_interval_s = min(
            [CHECK_INTERVAL_S, *(limit / CHECKS_IN_TIME for limit in limits if limit)]
        )

    # What others want to know.

    @property
    def is_busy(self) -> bool:
        """Whether a message is on its way, or may have to be sent again."""
        return bool(self.crossings) or self.is_retaining()

    def is_retaining(self) -> bool:
        """Whether messages are held until they are acknowledged."""
        return any(consumer.retention.bytes for consumer in self.consumers.values())

    def retained_messages(self) -> int:
        """Return how many messages are held until they are acknowledged."""
        return sum(
            consumer.retention.messages
            for consumer in self.consumers.values()
            if consumer.retention.bytes
        )

    def has_unacknowledged(self) -> bool:
        """Whether something was written that is not known to have arrived."""
        return any(consumer.unacknowledged_messages() for consumer in self.consumers.values())

    def deadline(self) -> float | None:
        """Return when `expire` has something to do."""
        times = [self._check_at, self._ask_at]
        if self._unsettled:
            times.append(self._unsettled[0].since + SETTLED_AFTER_S)
        times += [crossing.stalled_at for crossing in self.crossings]
        return min((moment for moment in times if moment is not None), default=None)

    # Consumers that come and go.

    def welcome(self, newcomer: Newcomer, *, is_over: bool) -> None:
        """Take over a connection that has completed its handshake."""
        commons = self._commons
        is_zmtp = newcomer.framing == "zmtp"
        outlet: Outlet = ZmtpOutlet() if is_zmtp else SpOutlet()
        consumer = Consumer(
            wire=newcomer.wire,
            address=newcomer.address,
            since=commons.now,
            framing=newcomer.framing,
            identity=newcomer.identity,
            handshake_bytes=newcomer.handshake_bytes,
            sent_bytes=newcomer.handshake_bytes,
            outlet=outlet,
            reader=CommandReader() if is_zmtp else ControlReader(),
            acknowledged_at=commons.now,
            retention=Retention(
                Keep.TCP if self._is_safe else Keep.NOTHING,
                settled=newcomer.framing != "sp",
                whole_messages=outlet.whole_messages,
            ),
        )
        self.consumers[outlet] = consumer
        commons.counters.consumers_seen += 1
        commons.loop.watch(consumer.sock, READ, partial(self._on_event, consumer))
        consumer.watched = READ
        if not consumer.retention.settled:
            self._unsettled.append(consumer)
        # What it has to say has mostly come along with its handshake.
        if not self._listen(consumer):
            return
        if is_over:
            self.half_close(consumer)
        else:
            self._rest(consumer)

    def half_close(self, consumer: Consumer) -> None:
        """Tell a consumer that has got everything that the stream has ended."""
        commons = self._commons
        consumer.half_closed = True
        commons.queue.leave(consumer.outlet)
        last = b""
        if consumer.greeting is not None and not consumer.greeted:
            last += frame(Frame.HELLO, consumer.greeting)
        if commons.config.sentinel and not consumer.internal:
            last += header(0)
            consumer.retention.given += 1
        if consumer.greeting is not None:
            last += frame(Frame.BYE, consumer.retention.given)
        if last and consumer.outlet.segment is None:
            consumer.outlet.give(Segment(Words(last), 0, len(last), Tally(1)))
            self._write(consumer)
        else:
            self._end(consumer)

    def retire(self, consumer: Consumer) -> None:
        """Give a consumer nothing more; half-close it when what has begun is whole."""
        consumer.retiring = True
        self._commons.queue.leave(consumer.outlet)
        if consumer.outlet.segment is None and consumer.crossing is None:
            self.half_close(consumer)

    def left(self, consumer: Consumer, problem: str) -> None:
        """Close a consumer's connection; what it did not get goes to another one."""
        commons = self._commons
        if consumer.dead:
            return
        consumer.dead = True
        if consumer.crossing is not None:
            consumer.crossing.target_left()
        if consumer.outlet.segment is not None and not consumer.half_closed:
            commons.queue.finished()
        departure = consumer.leave()
        commons.sent.merge(departure.counted)
        commons.sent = minus(commons.sent, departure.uncounted)
        consumer.tally = minus(consumer.tally, departure.uncounted)
        if consumer.half_closed:
            # Only the sentinel can be left over.
            for segment in departure.back:
                segment.release()
        else:
            commons.counters.requeued += sum(each.tally.messages for each in departure.back)
            commons.queue.put_back(departure.back)
        commons.counters.possibly_lost += departure.lost
        is_unclear = consumer.retention.keep is not Keep.ACK and consumer.tally.messages
        if problem and not departure.lost and is_unclear:
            commons.counters.consumers_broken += 1
        commons.queue.leave(consumer.outlet)
        del self.consumers[consumer.outlet]
        if consumer.held_back:
            self._held_back.remove(consumer)
        if consumer in self._unsettled:
            self._unsettled.remove(consumer)
        commons.left_behind(consumer, Side.OUT, problem)

    # Writing.

    def dispatch(self) -> None:
        """Give what waits to consumers that have nothing to write."""
        for outlet in self._commons.queue.matches():
            consumer = self.consumers[outlet]
            segment = outlet.segment
            assert segment is not None  # noqa: S101
            if not consumer.retention.bytes:
                consumer.acknowledged_at = self._commons.now
            consumer.retention.given += segment.tally.messages
            self._write(consumer)

    def could_cross(self, producer: Producer) -> bool:
        """Return whether a consumer that is busy now may soon take a message by splicing."""
        commons = self._commons
        if not (self._may_splice and producer.wire.can_splice):
            return False
        lately = commons.now - STALLED_AFTER_S
        return any(
            takes_splices(consumer)
            and (consumer.blocked_since is None or consumer.blocked_since > lately)
            for consumer in self.consumers.values()
        )

    def is_consumer_free(self) -> bool:
        """Return whether a consumer waits to which a message could be spliced."""
        queue = self._commons.queue
        return not queue.has_waiting and any(
            takes_splices(self.consumers[outlet]) for outlet in queue.idle()
        )

    def begin_crossing(self, producer: Producer) -> Crossing | None:
        """Take the message that begins now straight to an idle consumer, if there is one."""
        commons = self._commons
        if not self._may_splice or commons.queue.has_waiting:
            return None
        consumer = choose(producer, (self.consumers[outlet] for outlet in commons.queue.idle()))
        if consumer is None:
            return None
        crossing = Crossing(commons, producer, consumer, self.source, self)
        self.crossings.add(crossing)
        commons.queue.leave(consumer.outlet)
        return crossing

    def sent_whole(self, consumer: Consumer, tally: Tally, begin: int) -> None:
        """Take note that a message was spliced to a consumer."""
        commons = self._commons
        commons.counters.spliced += not consumer.internal
        consumer.tally.merge(tally)
        consumer.retention.spliced(tally, begin, consumer.sent_bytes)
        commons.sent.merge(tally)
        self._rest(consumer)

    def crossed(self, crossing: Crossing) -> None:
        """Take note that a crossing is over."""
        self.crossings.discard(crossing)
        self._commons.progressed()

    def watch(self, consumer: Consumer, events: int) -> None:
        """Ask for events of a connection."""
        if consumer.watched != events and not consumer.dead:
            self._commons.loop.change(consumer.sock, events)
            consumer.watched = events
            waits = bool(events & WRITE)
            consumer.blocked_since = self._commons.now if waits else None

    def _on_event(self, consumer: Consumer, events: int) -> None:
        if consumer.dead or (events & ~WRITE and not self._listen(consumer)):
            return
        if events & WRITE:
            if consumer.crossing is not None:
                consumer.crossing.move()
            elif consumer.half_closed and consumer.outlet.segment is None:
                self._end(consumer)
            else:
                self._write(consumer)

    def _write(self, consumer: Consumer) -> None:
        commons = self._commons
        on_disk = self._on_disk(consumer)
        if on_disk is not None and not self._takes_files(consumer):
            # Somebody else waits for the disk.
            self.watch(consumer, READ)
            commons.queue.load(on_disk, partial(self._loaded, consumer, on_disk))
            return
        parts: Sequence[memoryview] = () if on_disk is not None else consumer.outlet.to_write()
        is_writing = on_disk is not None or bool(parts)
        try:
            if on_disk is not None:
                count = on_disk.send(consumer.sock, consumer.outlet.wire_bytes)
            elif len(parts) == 1:
                count = consumer.wire.send(parts[0])
            else:
                count = consumer.wire.sendmsg(parts) if parts else 0
        except BlockingIOError:
            count = 0
        except OSError as error:
            self.left(consumer, str(error))
            return
        consumer.sent_bytes += count
        if count:
            commons.moved()
            consumer.blocked_since = None
        if self._check_at is None:
            self._check_at = commons.now + self._check_interval_s
        segment = consumer.outlet.written(count) if is_writing else None
        self.watch(consumer, READ if segment or not is_writing else READ | WRITE)
        if consumer.watched & WRITE and consumer.blocked_since is None:
            consumer.blocked_since = commons.now
        if segment is None:
            return
        if consumer.half_closed:
            segment.release()
            self._end(consumer)
            return
        if segment.tally.messages:
            commons.sent.merge(segment.tally)
            consumer.wrote(segment)
            commons.queue.written(segment)
        commons.queue.finished()
        self._rest(consumer)

    def _on_disk(self, consumer: Consumer) -> DiskSegment | None:
        """Return the segment in hand if it has to be fetched from disk."""
        segment = consumer.outlet.segment
        if not isinstance(segment, DiskSegment):
            return None
        stored = segment.stored
        if stored.is_loaded and not self._takes_files(consumer):
            # Parts of it will be looked at until it is written.
            stored.is_pinned = True
        return None if stored.is_loaded else segment

    def _takes_files(self, consumer: Consumer) -> bool:
        """Whether the kernel can send it what is in a file, as it is there."""
        return consumer.framing == "sp" and consumer.wire.can_splice

    def _loaded(self, consumer: Consumer, segment: DiskSegment) -> None:
        """Go on with a segment that was read from disk."""
        if consumer.dead or consumer.outlet.segment is not segment:
            segment.stored.unload()
        elif segment.stored.broken:
            self.left(consumer, "its next messages cannot be read from disk")
        else:
            self._write(consumer)

    def _rest(self, consumer: Consumer) -> None:
        """It has nothing to write: give it more, unless it holds too much already."""
        if consumer.greeting is not None and not consumer.greeted:
            self._greet(consumer)
        elif consumer.retiring:
            self.half_close(consumer)
        elif self._may_have_more(consumer):
            self._commons.queue.ready(consumer.outlet)
        else:
            consumer.held_back = True
            self._held_back.append(consumer)
            if self._ask_at is None:
                # Nothing may happen that would bring it back: look soon.
                self._ask_at = self._commons.now + FIRST_ASKING_S
        self._commons.progressed()

    def _may_have_more(self, consumer: Consumer) -> bool:
        commons = self._commons
        held = consumer.retention.bytes
        if not held:
            return True
        if held >= commons.config.ack_window_bytes:
            return False
        retained = sum(each.retention.bytes for each in self.consumers.values())
        return retained < RETAINED_FRACTION * commons.memory.capacity_bytes

    def _release_held_back(self) -> None:
        for consumer in [each for each in self._held_back if self._may_have_more(each)]:
            self._held_back.remove(consumer)
            consumer.held_back = False
            if not consumer.half_closed:
                self._commons.queue.ready(consumer.outlet)

    def _end(self, consumer: Consumer) -> None:
        try:
            is_told = consumer.wire.end()
        except OSError as error:
            self.left(consumer, str(error))
        else:
            self.watch(consumer, READ if is_told else READ | WRITE)

    # Listening.

    def _listen(self, consumer: Consumer) -> bool:
        """Hear what a consumer says; return whether it is still there."""
        data = bytearray(4096)
        try:
            count = consumer.wire.recv_into(memoryview(data))
            frames = consumer.reader.received(memoryview(data)[:count]) if count else []
            for kind, number in frames:
                self._heard(consumer, kind, number)
            if isinstance(consumer.reader, CommandReader):
                self._answer(consumer, consumer.reader.answers)
        except BlockingIOError:
            return True
        except DecodeError as error:
            self._commons.counters.refused_peers += 1
            self.left(consumer, str(error))
            return False
        except CutOffError:
            count = 0
        except OSError as error:
            self.left(consumer, str(error))
            return False
        if not count:
            self.left(consumer, "")
            return False
        if consumer.wire.pending():
            return self._listen(consumer)
        return True

    def _answer(self, consumer: Consumer, answers: bytearray) -> None:
        """Send what the framing asks for."""
        outlet = consumer.outlet
        if answers and isinstance(outlet, ZmtpOutlet) and not consumer.half_closed:
            outlet.answer(bytes(answers))
            self.watch(consumer, READ | WRITE)
        answers.clear()

    def _greet(self, consumer: Consumer) -> None:
        """Say between two messages that the end of the stream will be said."""
        assert consumer.greeting is not None  # noqa: S101
        words = frame(Frame.HELLO, consumer.greeting)
        consumer.greeted = True
        consumer.outlet.give(Segment(Words(words), 0, len(words), Tally()))
        self._commons.queue.writing += 1
        self._write(consumer)

    def _heard(self, consumer: Consumer, kind: Frame, number: int) -> None:
        if kind is Frame.HELLO and consumer.retention.keep is Keep.ACK:
            self._heard_hello(consumer, number)
            return
        if kind is not Frame.ACK or consumer.framing != "sp":
            raise DecodeError(f"a consumer has no {kind.name} to say")
        commons, retention = self._commons, consumer.retention
        if not retention.settled:
            self._unsettled.remove(consumer)
        before = retention.acknowledged
        retention.done(number)
        commons.counters.acknowledged += number - before
        segment = consumer.outlet.segment
        if segment is not None:
            partly = number - (retention.given - segment.tally.messages)
            if partly > 0:
                segment.progressed(partly)
        consumer.acknowledged_at = commons.now
        commons.moved()
        commons.progressed()
        self._release_held_back()

    def _heard_hello(self, consumer: Consumer, number: int) -> None:
        if consumer.greeting is not None:
            raise DecodeError("a consumer says HELLO once")
        consumer.greeting = number
        if consumer.outlet in self._commons.queue.idle():
            self._commons.queue.leave(consumer.outlet)
            self._greet(consumer)

    # Time.

    def expire(self, *, is_pressing: bool) -> None:
        """Do what time has brought.

        Args:
            is_pressing: somebody waits for memory, or for the end: kernels are asked often.
        """
        commons = self._commons
        now = commons.now
        while self._unsettled and self._unsettled[0].since + SETTLED_AFTER_S <= now:
            self._unsettled.popleft().retention.settle()
            commons.progressed()
            self._release_held_back()
        if self._check_at is not None and self._check_at <= now:
            self._check()
        self._ask_kernels(is_pressing=is_pressing)
        for crossing in list(self.crossings):
            stalled_at = crossing.stalled_at
            if stalled_at is not None and stalled_at <= now:
                crossing.relieve()

    def _ask_kernels(self, *, is_pressing: bool) -> None:
        """Look what kernels have acknowledged, if somebody waits for it."""
        if self._ask_at is not None and self._ask_at > self._commons.now:
            return
        asked = [
            consumer
            for consumer in self.consumers.values()
            if consumer.retention.bytes and consumer.retention.keep is Keep.TCP
        ]
        if not asked or not (is_pressing or self._held_back):
            self._ask_at, self._ask_pause_s = None, FIRST_ASKING_S
            return
        before = sum(consumer.retention.bytes for consumer in asked)
        for consumer in asked:
            consumer.ask_kernel()
        after = sum(consumer.retention.bytes for consumer in asked)
        if after < before:
            self._ask_pause_s = FIRST_ASKING_S
            self._commons.progressed()
            self._release_held_back()
        if after:
            self._ask_at = self._commons.now + self._ask_pause_s
            self._ask_pause_s = min(2 * self._ask_pause_s, LAST_ASKING_S)
        else:
            self._ask_at = None

    def _check(self) -> None:
        """Cut consumers whose hosts have vanished, or that acknowledge nothing."""
        commons = self._commons
        patience_s = commons.config.ack_timeout_s
        pending = False
        for consumer in list(self.consumers.values()):
            is_late = (
                patience_s
                and consumer.retention.keep is Keep.ACK
                and consumer.retention.bytes
                and consumer.acknowledged_at + patience_s <= commons.now
            )
            if tcp.is_dead(consumer.sock, commons.config.dead_after_s):
                self.left(consumer, "host does not answer")
            elif is_late:
                self.left(consumer, f"nothing acknowledged for {patience_s:g} s")
            elif (
                consumer.outlet.segment
                or consumer.retention.bytes
                or tcp.unacknowledged_bytes(consumer.sock)
            ):
                pending = True
        self._check_at = commons.now + self._check_interval_s if pending else None
