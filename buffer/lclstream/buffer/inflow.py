"""The producers' side of the engine: reads, parks, acknowledges."""

from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial

from lclstream.buffer.commons import Commons
from lclstream.buffer.control import Frame, frame
from lclstream.buffer.crossing import LEAST_HERE_BYTES, Crossing
from lclstream.buffer.intake import Intake
from lclstream.buffer.loop import READ, WRITE
from lclstream.buffer.memory import Block
from lclstream.buffer.peers import Newcomer, Producer, Side
from lclstream.buffer.segments import Segment
from lclstream.buffer.store import StreamState
from lclstream.buffer.streams import Streams
from lclstream.buffer.transport import CutOffError
from lclstream.buffer.zmtp_intake import ZmtpIntake
from lclstream.core.errors import DecodeError
from lclstream.core.ledger import Tally

# A producer that was let above the bound and sends nothing for so long lets another one in.
ASLEEP_AFTER_S = 1.0
RESUME_FRACTION = 0.75
# So many messages of a producer are begun before others are looked at.
READS_PER_EVENT = 8
# A large message waits for a consumer about as long as it takes to copy it in and out.
S_PER_BYTE = 1e-9
PATIENCE_S = 0.05


class Inflow:
    """All producers.

    Args:
        commons: what the engine's parts share.
        begin_crossing: takes a large message straight to a consumer, if that is possible.
        could_cross: tells whether it may become possible soon.
        is_consumer_free: tells whether only the message's first bytes are missing for that.
        dispatch: gives what waits to consumers.
        is_retaining: tells whether consumers hold messages that they will let go of.
    """

    def __init__(
        self,
        commons: Commons,
        begin_crossing: Callable[[Producer], Crossing | None],
        could_cross: Callable[[Producer], bool],
        is_consumer_free: Callable[[], bool],
        dispatch: Callable[[], None],
        is_retaining: Callable[[], bool],
    ) -> None:
        self.producers: set[Producer] = set()
        self.streams = Streams()
        self._admit_at: float | None = None
        # When the stream that is missed the longest counts as gone.
        self._missed_until: float | None = None
        self._commons = commons
        self._begin_crossing = begin_crossing
        self._could_cross = could_cross
        self._is_consumer_free = is_consumer_free
        self._dispatch = dispatch
        self._is_retaining = is_retaining
        self._parked: deque[Producer] = deque()
        self._admitting = False
        self._unacknowledged: set[Producer] = set()
        # Those whose next message waits at its header, and until when.
        self._patient: dict[Producer, float] = {}
        commons.queue.kept = self._kept

    @property
    def paused(self) -> int:
        """How many producers are not read from because memory is full."""
        return len(self._parked)

    def welcome(self, newcomer: Newcomer) -> None:
        """Take over a connection that has completed its handshake."""
        commons = self._commons
        producer = Producer(
            wire=newcomer.wire,
            address=newcomer.address,
            since=commons.now,
            framing=newcomer.framing,
            identity=newcomer.identity,
            handshake_bytes=newcomer.handshake_bytes,
            intake=self._intake(newcomer),
        )
        self.producers.add(producer)
        self._resume(producer)

    def _intake(self, newcomer: Newcomer) -> Intake | ZmtpIntake:
        config = self._commons.config
        if newcomer.framing == "zmtp":
            return ZmtpIntake(self._take, config.max_message_bytes, digests=config.digests)
        return Intake(
            self._take,
            config.max_message_bytes,
            self._commons.memory.zeros,
            digests=config.digests,
            nonce=newcomer.nonce,
        )

    def present(self) -> int:
        """Return how many producers are connected, or may come back to finish their stream."""
        commons = self._commons
        patience_s = commons.config.resume_timeout_s
        lost = sum(
            commons.now < stream.lost_at + patience_s for stream in self.streams.unfinished()
        )
        return len(self.producers) + lost

    def deadline(self) -> float | None:
        """Return when `has_expired` or `admit` is to be asked although nothing happens."""
        times = [self._admit_at, self._missed_until, *self._patient.values()]
        return min((moment for moment in times if moment is not None), default=None)

    def has_expired(self) -> bool:
        """Return whether somebody has just been missed for too long."""
        if self._missed_until is None or self._missed_until > self._commons.now:
            return False
        patience_s = self._commons.config.resume_timeout_s
        times = [stream.lost_at + patience_s for stream in self.streams.unfinished()]
        later = [moment for moment in times if moment > self._commons.now]
        self._missed_until = min(later, default=None)
        return True

    def restore(self, states: Mapping[int, StreamState]) -> None:
        """Take over the streams of a buffer that was killed: their producers may come back."""
        commons = self._commons
        commons.counters.producers_seen += self.streams.restore(states, commons.now)
        if self.streams.unfinished():
            self._missed_until = commons.now + commons.config.resume_timeout_s

    def release(self, number: int) -> int:
        """Let another lane go on with a stream; return how many of its messages were accepted."""
        stream = self.streams.release(number)
        if stream is None:
            return 0
        if isinstance(stream.owner, Producer):
            self._left(stream.owner, "goes on over another connection")
        return stream.accepted

    def cut_all(self, problem: str) -> None:
        """Close every connection."""
        for producer in list(self.producers):
            self._left(producer, problem)

    def acknowledge(self) -> None:
        """Tell producers that want to know what was accepted since they were last told."""
        for producer in list(self._unacknowledged):
            stream = producer.stream
            if stream is not None and (owed := stream.owed) is not None:
                producer.to_say += frame(Frame.ACK, owed)
                stream.told, stream.resumed = owed, False
                self._say(producer)
        self._unacknowledged.clear()

    def _waits_for_consumer(self, producer: Producer) -> bool:
        """Let a large message wait a moment for a consumer to which it can be spliced.

        Otherwise one message in memory would lead the next one there, and so on.
        """
        size = producer.intake.bodiless_bytes
        if size is None or not self._could_cross(producer):
            self._patient.pop(producer, None)
            producer.wake_at(0)
            return False
        if self._is_consumer_free():
            # Only the first bytes are missing. If it still is so when it is looked at again, it
            # has closed.
            self._patient.pop(producer, None)
            producer.wake_at(0 if producer.low_water else min(size, LEAST_HERE_BYTES))
            self.watch(producer, READ)
            return bool(producer.low_water)
        now = self._commons.now
        until = self._patient.setdefault(producer, now + min(size * S_PER_BYTE, PATIENCE_S))
        if now < until:
            self.watch(producer, 0)
            return True
        del self._patient[producer]
        producer.wake_at(0)
        return False

    def wake(self) -> None:
        """Go on with large messages for which there may be a consumer now, or that waited long."""
        for producer, until in list(self._patient.items()):
            is_due = self._commons.now >= until
            if not producer.watched and (is_due or self._is_consumer_free()):
                self.watch(producer, READ)
                self._read(producer)

    def admit(self) -> None:
        """Go on with producers for which there is memory now, in the order of their waiting."""
        commons = self._commons
        memory = commons.memory
        room = memory.held_bytes <= RESUME_FRACTION * memory.capacity_bytes
        self._admit_at = None
        if not self._parked or not (room or not commons.queue.holds_memory):
            return
        self._admitting = True
        while self._parked and self._parked[0].intake.space() is not None:
            self._resume(self._parked.popleft())
        self._admitting = False
        asleep = self._parked and not commons.queue.holds_memory
        self._admit_at = commons.now + ASLEEP_AFTER_S if asleep else None

    def watch(self, producer: Producer, events: int) -> None:
        """Ask for events of a connection; 0 looks away, also from its errors."""
        if producer.to_say and events:
            events |= WRITE
        if events == producer.watched or producer.dead:
            return
        if not events:
            self._commons.loop.ignore(producer.sock)
        elif not producer.watched:
            self._commons.loop.watch(producer.sock, events, partial(self._on_event, producer))
        else:
            self._commons.loop.change(producer.sock, events)
        producer.watched = events

    def _resume(self, producer: Producer) -> None:
        """Read from a connection from now on."""
        producer.moved_at = self._commons.now
        self.watch(producer, READ)
        if producer.wire.pending():
            self._commons.loop.again(partial(self._on_event, producer, READ))

    def _on_event(self, producer: Producer, events: int) -> None:
        if producer.dead or not producer.watched:
            return
        if events & WRITE:
            self._say(producer)
        if events & ~WRITE:
            self._read(producer)

    def _read(self, producer: Producer) -> None:
        """Read, and again as long as something waits of which epoll does not tell.

        Behind a large message the next header is mostly there already.
        """
        reads = 0
        while self._read_once(producer):
            reads += 1
            is_next = producer.intake.is_between and reads < READS_PER_EVENT
            if not (is_next or producer.wire.pending()):
                return

    def _read_once(self, producer: Producer) -> bool:
        """Return whether it may be read again."""
        crossing = producer.crossing or self._begin_crossing(producer)
        if crossing is not None:
            self._patient.pop(producer, None)
            producer.wake_at(0)
            crossing.move()
            return producer.crossing is None and not producer.dead
        if self._waits_for_consumer(producer):
            return False
        space = producer.intake.space()
        if space is None:
            self._park(producer)
            return False
        commons = self._commons
        try:
            count = producer.wire.recv_into(space)
        except BlockingIOError:
            return False
        except CutOffError as error:
            # As without TLS: who wants to be sure says how many messages there were.
            self._left(producer, str(error))
            return False
        except OSError as error:
            self.broken(producer, str(error))
            return False
        producer.moved_at = commons.now
        commons.moved()
        if not count:
            # Inside TLS a proper end wants an answer.
            with suppress(OSError):
                producer.wire.end()
            self._left(producer, "")
            return False
        return self._filled(producer, count)

    def _filled(self, producer: Producer, count: int) -> bool:
        """Take in what was read; return whether the connection is still of use."""
        intake = producer.intake
        while True:
            segment = intake.filled(count)
            for kind, number in intake.controls:
                if not self._heard(producer, kind, number):
                    return False
            intake.controls.clear()
            if intake.answers:
                producer.to_say += bytes(intake.answers)
                intake.answers.clear()
                self._say(producer)
            if segment is not None:
                self._received(producer, segment)
            if producer.dead:
                return False
            if intake.fault is not None:
                self._commons.counters.refused_messages += 1
                self._left(producer, str(intake.fault))
                return False
            if not intake.has_more:
                return True
            count = 0

    def _heard(self, producer: Producer, kind: Frame, number: int) -> bool:
        """Obey a control frame; return whether the connection is still of use."""
        try:
            producer.stream, before = self.streams.heard(producer, producer.stream, kind, number)
        except DecodeError as error:
            self._commons.counters.refused_peers += 1
            self._left(producer, str(error))
            return False
        if isinstance(before, Producer):
            self._left(before, "goes on over another connection")
        if kind is Frame.BYE:
            self._seen(producer)
        if producer.stream is not None and kind in (Frame.STREAM, Frame.BYE):
            self._commons.queue.stream_ended(producer.stream.id, is_finished=kind is Frame.BYE)
        self._unacknowledged.add(producer)
        return True

    def _seen(self, producer: Producer) -> None:
        """Count a producer when it has delivered something, or said that there is nothing."""
        stream = producer.stream
        if self.streams.is_new(stream) if stream is not None else not producer.tally.messages:
            self._commons.counters.producers_seen += 1
            self._commons.facts_changed = True

    def _received(self, producer: Producer, segment: Segment) -> None:
        commons = self._commons
        segment.since = commons.now
        if producer.stream is not None:
            segment.stream, segment.sequence = producer.stream, producer.stream.accepted
            if commons.queue.is_durable:
                producer.stream.pending += segment.tally.messages
        self._count(producer, segment.tally)
        if producer.last is None or not commons.queue.extend(producer.last, segment):
            commons.queue.put(segment)
            producer.last = segment
        self._dispatch()

    def _count(self, producer: Producer, tally: Tally) -> None:
        self._seen(producer)
        producer.tally.merge(tally)
        self._commons.received.merge(tally)
        if producer.stream is not None:
            producer.stream.accepted += tally.messages
            if producer.stream.acknowledges:
                self._unacknowledged.add(producer)

    def _kept(self, segment: Segment) -> None:
        """Take note that messages are on disk: their producer may forget them."""
        stream = segment.stream
        if stream is not None:
            stream.pending -= segment.tally.messages
            if isinstance(stream.owner, Producer):
                self._unacknowledged.add(stream.owner)

    def read_whole(self, producer: Producer, tally: Tally, *, is_wanted: bool) -> None:
        """Count a message that did not enter memory."""
        self._count(producer, tally)
        producer.intake.body_taken()
        if not is_wanted:
            # Its consumer has left in the middle of it.
            self._commons.counters.undelivered += 1

    def broken(self, producer: Producer, problem: str) -> None:
        """Close a connection that is of no more use."""
        # A probe that resets its connection takes nothing with it; a stream may be taken up again.
        if producer.tally.messages and producer.stream is None:
            self._commons.counters.producers_broken += 1
        self._left(producer, problem)

    def _left(self, producer: Producer, problem: str) -> None:
        commons = self._commons
        intake, stream = producer.intake, producer.stream
        if (intake.partial or producer.crossing is not None) and not intake.fault:
            problem = problem or "closed inside a message"
            # A stream that goes on over another connection begins that message again there.
            if stream is None or not (stream.acknowledges or stream.owner is not producer):
                commons.counters.partial_in += 1
        if producer.crossing is not None:
            producer.crossing.source_left()
        if stream is not None:
            self.streams.left(stream, producer, commons.now)
            if not stream.finished:
                gone_at = commons.now + commons.config.resume_timeout_s
                self._missed_until = min(gone_at, self._missed_until or gone_at)
                problem = problem or "closed without a word"
        intake.close()
        producer.dead = True
        self._patient.pop(producer, None)
        self.producers.discard(producer)
        self._unacknowledged.discard(producer)
        if producer in self._parked:
            self._parked.remove(producer)
        commons.left_behind(producer, Side.IN, problem)

    def _say(self, producer: Producer) -> None:
        """Send control frames; who does not take them is waited for."""
        if producer.to_say:
            try:
                count = producer.wire.send(memoryview(producer.to_say))
                producer.to_say = producer.to_say[count:]
            except BlockingIOError:
                pass
            except OSError:
                # Reading will tell; what it has sent before still counts.
                producer.to_say = b""
        if producer.watched:
            self.watch(producer, READ)

    # Memory.

    def _take(self, size_bytes: int) -> Block | None:
        queue, memory = self._commons.queue, self._commons.memory
        # Who has waited longer comes first.
        if queue.is_short or (self._parked and not self._admitting):
            return None
        block = memory.take(size_bytes, stuck=False)
        if block is None:
            queue.make_room(size_bytes)
            block = memory.take(size_bytes, stuck=self._is_stuck())
        return block

    def _is_stuck(self) -> bool:
        """Whether no memory will become free by itself.

        What is queued goes out, what consumers hold is acknowledged, and who was let above the
        bound will finish its message, unless it has gone to sleep over it.
        """
        commons = self._commons
        return (
            not commons.queue.holds_memory
            and not self._is_retaining()
            and not any(
                producer.watched
                and producer.intake.overshoots
                and commons.now < producer.moved_at + ASLEEP_AFTER_S
                for producer in self.producers
            )
        )

    def _park(self, producer: Producer) -> None:
        """Do not read from a producer: TCP makes it wait."""
        self.watch(producer, 0)
        self._parked.append(producer)
