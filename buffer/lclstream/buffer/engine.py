"""The buffer's engine: one thread, one epoll loop, all connections.

Everything that decides is elsewhere: `sp` and `intake` cut bytes into messages, `segments`
says who gets what, `memory` says who may go on, `ending` and `states` say what follows. Here
bytes move and deadlines are kept. The loop sleeps until something happens or the next deadline.
"""

import logging
import socket
import threading
import time
from collections import deque
from dataclasses import replace
from functools import partial

from lclstream.buffer import tcp
from lclstream.buffer.config import BufferConfig
from lclstream.buffer.door import Door
from lclstream.buffer.ending import Action, Ending, Facts
from lclstream.buffer.intake import Intake
from lclstream.buffer.loop import READ, WRITE, Loop
from lclstream.buffer.memory import Block, Memory
from lclstream.buffer.peers import Consumer, Newcomer, Peer, Producer, Side
from lclstream.buffer.segments import Outlet, Queue, Segment
from lclstream.buffer.states import BufferState
from lclstream.buffer.statistics import Counters, PeerRecord, Statistics
from lclstream.core.ledger import Tally

logger = logging.getLogger(__name__)

# How often to look whether consumers that take nothing are still there.
CHECK_INTERVAL_S = 5.0
# A producer that was let above the bound and sends nothing for so long lets another one in.
ASLEEP_AFTER_S = 1.0
RESUME_FRACTION = 0.75
REMEMBERED_PEERS = 1000


class Engine:
    """Moves messages from producers to consumers until it has ended.

    All methods but `post` and `statistics` belong to the thread that calls `run`.

    Resource handling: the constructor binds the addresses; `run` closes everything.

    Error handling: a fault of a peer closes its connection and is counted.
    """

    def __init__(self, config: BufferConfig) -> None:
        self.received = Tally()
        self.sent = Tally()
        self.counters = Counters()
        self.ending = Ending(config)
        self._config = config
        self._lock = threading.Lock()
        self._loop = Loop()
        self._memory = Memory(config.memory_bytes)
        self._queue = Queue()
        self._producers: set[Producer] = set()
        self._consumers: dict[Outlet, Consumer] = {}
        self._parked: deque[Producer] = deque()
        self._admitting = False
        self._admit_at: float | None = None
        self._left: deque[PeerRecord] = deque(maxlen=REMEMBERED_PEERS)
        self._now = self._last_activity = time.monotonic()
        self._check_at: float | None = None
        self._ending_at: float | None = None
        self._facts_changed = True
        try:
            self.door = Door(config, self._loop, self._welcome, self._refused)
        except BaseException:
            self._loop.close()
            self._loop.close_wake()
            raise

    # For other threads.

    def drain(self, reason: str, deadline_s: float | None = None) -> None:
        """Have the loop begin to drain."""
        self._loop.post(lambda: self._ask_to_drain(reason, deadline_s))

    def stop(self, reason: str) -> None:
        """Have the loop end now."""
        self._loop.post(lambda: self._ask_to_stop(reason))

    def statistics(self) -> Statistics:
        """Return consistent figures of this moment."""
        with self._lock:
            return self._statistics()

    # The loop.

    def run(self) -> None:
        """Serve until the end."""
        try:
            while self._step():
                self._loop.turn(self._next_deadline(), self._lock)
                self._now = time.monotonic()
                self._follow_up()
        finally:
            self._close_everything()

    def _ask_to_drain(self, reason: str, deadline_s: float | None) -> None:
        self.ending.drain(self._now, reason, deadline_s)
        self._facts_changed = True

    def _ask_to_stop(self, reason: str) -> None:
        self.ending.stop(reason)
        self._facts_changed = True

    def _step(self) -> bool:
        """Do what the state of affairs asks for; return whether to go on."""
        is_due = self._ending_at is not None and self._ending_at <= self._now
        if not self._facts_changed and not is_due:
            return True
        self._facts_changed = False
        while actions := self.ending.step(facts := self._facts()):
            with self._lock:
                for action in actions:
                    self._do(action)
        # It can only move to a later time as long as the facts stay: that is found out then.
        self._ending_at = self.ending.deadline(facts)
        return not self.ending.is_over

    def _facts(self) -> Facts:
        return Facts(
            now=self._now,
            producers=len(self._producers) + self.door.newcomers(Side.IN),
            producers_seen=self.counters.producers_seen,
            consumers=len(self._consumers) + self.door.newcomers(Side.OUT),
            consumers_seen=self.counters.consumers_seen,
            is_empty=self._queue.is_empty,
            last_activity=self._last_activity,
            has_faults=bool(self.counters.faults()) or self._has_unacknowledged(),
        )

    def _has_unacknowledged(self) -> bool:
        """Whether consumers that are told the end have not got all; matters only then."""
        return self.ending.farewell_said and any(
            consumer.unacknowledged_messages() for consumer in self._consumers.values()
        )

    def _next_deadline(self) -> float | None:
        times = (self._ending_at, self.door.deadline(), self._check_at, self._admit_at)
        return min((moment for moment in times if moment is not None), default=None)

    def _follow_up(self) -> None:
        """Do what events, or the time, have made possible."""
        with self._lock:
            self.door.expire(self._now)
            if self._check_at is not None and self._check_at <= self._now:
                self._check_consumers()
            self._dispatch()
            self._admit()

    def _do(self, action: Action) -> None:
        if action is Action.CLOSE_INPUT:
            self.door.close(Side.IN)
        elif action is Action.CUT_PRODUCERS:
            for producer in list(self._producers):
                self.counters.producers_cut += 1
                self._producer_left(producer, "cut at the deadline")
            self.door.dismiss(Side.IN)
        elif action is Action.SAY_FAREWELL:
            self.door.close(Side.OUT)
            for consumer in list(self._consumers.values()):
                self._half_close(consumer)

    # Connections that come.

    def _welcome(self, newcomer: Newcomer) -> None:
        """Take over a connection that has completed its handshake."""
        self._last_activity = self._now
        self._facts_changed = True
        if newcomer.side is Side.IN:
            intake = Intake(self._take, self._config.max_message_bytes, self._memory.zeros)
            producer = Producer(
                sock=newcomer.sock, address=newcomer.address, since=self._now, intake=intake
            )
            self._producers.add(producer)
            self._watch_producer(producer)
            return
        consumer = Consumer(sock=newcomer.sock, address=newcomer.address, since=self._now)
        self._consumers[consumer.outlet] = consumer
        self.counters.consumers_seen += 1
        self._loop.watch(consumer.sock, READ, partial(self._on_consumer, consumer))
        consumer.watched = READ
        if self.ending.farewell_said:
            self._half_close(consumer)
        else:
            self._queue.ready(consumer.outlet)

    def _refused(self, newcomer: Newcomer, reason: str) -> None:
        self.counters.refused_peers += 1
        self._facts_changed = True
        logger.warning(
            "peer_refused",
            extra={"peer": newcomer.address, "side": newcomer.side, "reason": reason},
        )

    # Producers.

    def _watch_producer(self, producer: Producer) -> None:
        self._loop.watch(producer.sock, READ, partial(self._on_producer, producer))
        producer.watched = READ
        producer.moved_at = self._now

    def _on_producer(self, producer: Producer, events: int) -> None:
        del events
        space = producer.intake.space()
        if space is None:
            self._park(producer)
            return
        try:
            count = producer.sock.recv_into(space)
            segment = producer.intake.filled(count) if count else None
        except BlockingIOError:
            return
        except OSError as error:
            # A probe that resets its connection takes nothing with it.
            self.counters.producers_broken += bool(producer.tally.messages)
            self._producer_left(producer, str(error))
        else:
            self._last_activity = producer.moved_at = self._now
            if segment is not None:
                self._received(producer, segment)
            if producer.intake.fault is not None:
                self.counters.refused_messages += 1
                self._producer_left(producer, str(producer.intake.fault))
            elif not count:
                self._producer_left(producer, "")

    def _received(self, producer: Producer, segment: Segment) -> None:
        if not producer.tally.messages:
            self.counters.producers_seen += 1
            self._facts_changed = True
        producer.tally.merge(segment.tally)
        self.received.merge(segment.tally)
        if producer.last is None or not self._queue.extend(producer.last, segment):
            self._queue.put(segment)
            producer.last = segment
        self._dispatch()

    def _producer_left(self, producer: Producer, problem: str) -> None:
        if producer.intake.partial and not producer.intake.fault:
            self.counters.partial_in += 1
            problem = problem or "closed inside a message"
        producer.intake.close()
        self._producers.discard(producer)
        if producer in self._parked:
            self._parked.remove(producer)
        self._left_behind(producer, Side.IN, problem)

    # Memory.

    def _take(self, size_bytes: int) -> Block | None:
        # Who has waited longer comes first.
        if self._parked and not self._admitting:
            return None
        return self._memory.take(size_bytes, stuck=self._is_stuck())

    def _is_stuck(self) -> bool:
        """Whether no memory will become free by itself.

        What is queued goes out, and who was let above the bound will finish its message, unless
        it has gone to sleep over it.
        """
        return self._queue.is_empty and not any(
            producer.watched
            and producer.intake.overshoots
            and self._now < producer.moved_at + ASLEEP_AFTER_S
            for producer in self._producers
        )

    def _park(self, producer: Producer) -> None:
        """Do not read from a producer: TCP makes it wait."""
        self._loop.ignore(producer.sock)
        producer.watched = 0
        self._parked.append(producer)

    def _admit(self) -> None:
        """Go on with producers for which there is memory now, in the order of their waiting."""
        room = self._memory.held_bytes <= RESUME_FRACTION * self._memory.capacity_bytes
        self._admit_at = None
        if not self._parked or not (room or self._queue.is_empty):
            return
        self._admitting = True
        while self._parked and self._parked[0].intake.space() is not None:
            self._watch_producer(self._parked.popleft())
        self._admitting = False
        asleep = self._parked and self._queue.is_empty
        self._admit_at = self._now + ASLEEP_AFTER_S if asleep else None

    # Consumers.

    def _dispatch(self) -> None:
        for outlet in self._queue.matches():
            self._write(self._consumers[outlet])

    def _on_consumer(self, consumer: Consumer, events: int) -> None:
        if events & ~WRITE and not self._is_listening(consumer):
            return
        if events & WRITE:
            self._write(consumer)

    def _write(self, consumer: Consumer) -> None:
        view = consumer.outlet.to_write()
        try:
            count = consumer.sock.send(view) if view else 0
        except BlockingIOError:
            count = 0
        except OSError as error:
            self._consumer_left(consumer, str(error))
            return
        consumer.sent_bytes += count
        if count:
            self._last_activity = self._now
        if self._check_at is None:
            self._check_at = self._now + CHECK_INTERVAL_S
        done = consumer.outlet.written(count) if view else None
        self._watch_consumer(consumer, READ if done or not view else READ | WRITE)
        if done:
            consumer.took(done)
            self.sent.merge(done)
            self._queue.finished()
            self._queue.ready(consumer.outlet)
            if self.ending.state is not BufferState.OPEN:
                self._facts_changed = True

    def _watch_consumer(self, consumer: Consumer, events: int) -> None:
        if consumer.watched != events:
            self._loop.change(consumer.sock, events)
            consumer.watched = events

    def _is_listening(self, consumer: Consumer) -> bool:
        """Look what a consumer says: only that it closes its connection is expected."""
        try:
            data = consumer.sock.recv(64)
        except BlockingIOError:
            return True
        except OSError as error:
            self._consumer_left(consumer, str(error))
            return False
        if data:
            self.counters.refused_peers += 1
            self._consumer_left(consumer, f"consumer sent {data[:16]!r}")
        else:
            self._consumer_left(consumer, "")
        return False

    def _half_close(self, consumer: Consumer) -> None:
        """Tell a consumer that has got everything that the stream has ended."""
        consumer.half_closed = True
        self._queue.leave(consumer.outlet)
        try:
            consumer.sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._consumer_left(consumer, str(error))

    def _consumer_left(self, consumer: Consumer, problem: str) -> None:
        """Close a consumer's connection; what it was not sent goes to another one."""
        busy = consumer.outlet.segment is not None
        sent, rest = consumer.abandon()
        self.sent.merge(sent)
        if busy:
            self._queue.finished()
        if rest is not None:
            self.counters.requeued += rest.tally.messages
            self._queue.put_back(rest)
        lost = consumer.unacknowledged_messages()
        self.counters.possibly_lost += lost
        if problem and not lost and consumer.tally.messages:
            self.counters.consumers_broken += 1
        self._queue.leave(consumer.outlet)
        del self._consumers[consumer.outlet]
        self._left_behind(consumer, Side.OUT, problem)

    def _check_consumers(self) -> None:
        """Cut consumers whose hosts have vanished."""
        pending = False
        for consumer in list(self._consumers.values()):
            if tcp.is_dead(consumer.sock):
                self._consumer_left(consumer, "host does not answer")
            elif consumer.outlet.segment or tcp.unacknowledged_bytes(consumer.sock):
                pending = True
        self._check_at = self._now + CHECK_INTERVAL_S if pending else None

    # Figures and the end.

    def _left_behind(self, peer: Peer, side: Side, problem: str) -> None:
        self._last_activity = self._now
        self._facts_changed = True
        record = self._record(peer, side, problem or "closed")
        self._left.append(record)
        level = logging.WARNING if problem else logging.INFO
        logger.log(
            level,
            "peer_left",
            extra={
                "peer": peer.address,
                "side": side,
                "messages": record.messages,
                "reason": record.end,
            },
        )
        self._loop.close_later(peer.sock)

    def _record(self, peer: Peer, side: Side, end: str) -> PeerRecord:
        return PeerRecord(
            side=side,
            address=peer.address,
            messages=peer.tally.messages,
            bytes=peer.tally.bytes,
            seconds=round(self._now - peer.since, 3),
            end=end,
        )

    def _statistics(self) -> Statistics:
        writing = [c.outlet.segment.tally for c in self._consumers.values() if c.outlet.segment]
        peers = [self._record(producer, Side.IN, "") for producer in self._producers]
        peers += [self._record(consumer, Side.OUT, "") for consumer in self._consumers.values()]
        return Statistics(
            state=self.ending.state,
            reason=self.ending.reason,
            received=self.received.snapshot(),
            sent=self.sent.snapshot(),
            queue_messages=self._queue.messages + sum(tally.messages for tally in writing),
            queue_bytes=self._queue.bytes + sum(tally.bytes for tally in writing),
            queue_peak_bytes=self._queue.peak_bytes,
            held_bytes=self._memory.held_bytes,
            held_peak_bytes=self._memory.peak_bytes,
            capacity_bytes=self._memory.capacity_bytes,
            producers=len(self._producers),
            consumers=len(self._consumers),
            paused_producers=len(self._parked),
            counters=replace(self.counters),
            peers=(*peers, *self._left),
        )

    def _close_everything(self) -> None:
        """Close all connections; what is still held counts as undelivered."""
        with self._lock:
            self._now = time.monotonic()
            self.door.close(Side.IN)
            self.door.close(Side.OUT)
            for side in Side:
                self.door.dismiss(side)
            for producer in list(self._producers):
                self._producer_left(producer, "the buffer has ended")
            for consumer in list(self._consumers.values()):
                self._consumer_left(consumer, "")
            self.counters.undelivered += self._queue.clear().messages
            self._memory.close()
            self._loop.close()

    def close(self) -> None:
        """Give up the means to be woken; nobody may call `drain` or `stop` any more."""
        self._loop.close_wake()
