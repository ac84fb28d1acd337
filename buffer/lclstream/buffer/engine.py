"""The buffer's engine: one thread, one epoll loop, all connections.

Everything that decides is elsewhere: `sp` and `intake` cut bytes into messages, `segments`
says who gets what, `retention` what comes back, `memory` who may go on, `ending` and `states`
what follows. In `inflow`, `outflow` and `crossing` bytes move; here the loop turns and deadlines
are kept. It sleeps until something happens or the next deadline.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol

from lclstream.buffer.commons import Commons
from lclstream.buffer.config import BufferConfig
from lclstream.buffer.door import Door
from lclstream.buffer.ending import Action, Ending, Facts
from lclstream.buffer.inflow import Inflow
from lclstream.buffer.journal import Recovered, on_remembered_ports, remember_ports
from lclstream.buffer.loop import Loop
from lclstream.buffer.outflow import Outflow
from lclstream.buffer.peers import Newcomer, Side
from lclstream.buffer.segments import minus
from lclstream.buffer.states import BufferState
from lclstream.buffer.statistics import Counters, Statistics

logger = logging.getLogger(__name__)


class Entrance(Protocol):
    """Where connections come in, and are seen through their handshake."""

    @property
    def urls(self) -> Mapping[Side, list[str]]:
        """Where it listens."""

    def newcomers(self, side: Side) -> int:
        """Return how many connections on a side are in their handshake."""

    def close(self, side: Side) -> None:
        """Refuse new connections; who has connected already is let in."""

    def dismiss(self, side: Side) -> None:
        """Close the connections of a side that are in their handshake."""

    def deadline(self) -> float | None:
        """Return when `expire` has something to do."""

    def expire(self, now: float) -> None:
        """Do what time has brought."""


MakeEntrance = Callable[
    [BufferConfig, Loop, Callable[[Newcomer], None], Callable[[Newcomer, str], None]], Entrance
]


class Engine:
    """Moves messages from producers to consumers until it has ended.

    All methods but `drain`, `stop` and `statistics` belong to the thread that calls `run`.

    Resource handling: the constructor binds the addresses; `run` closes everything.

    Error handling: a fault of a peer closes its connection and is counted.

    Args:
        config: how to work.
        entrance: makes what lets connections in, from the configuration, the loop, and what
            takes over a connection whose handshake is complete or hears that one was refused.
    """

    def __init__(self, config: BufferConfig, entrance: MakeEntrance = Door) -> None:
        self.ending = Ending(config)
        self._config = config
        self._lock = threading.Lock()
        self._commons = commons = Commons(config)
        self._outflow = Outflow(commons)
        self._inflow = Inflow(
            commons,
            self._outflow.begin_crossing,
            self._outflow.could_cross,
            self._outflow.is_consumer_free,
            self._outflow.dispatch,
            self._outflow.is_retaining,
        )
        self._outflow.source = self._inflow
        recovered = commons.queue.recover(commons.now)
        if recovered is not None:
            self._recover(recovered)
        self._ending_at: float | None = None
        try:
            self.door = entrance(
                on_remembered_ports(config), commons.loop, self._welcome, self._refused
            )
            # A lane has none: who listens for it remembers.
            if config.durable is not None and any(self.door.urls.values()):
                remember_ports(config.durable, self.door.urls)
        except BaseException:
            commons.queue.clear()
            commons.queue.close(is_complete=False)
            commons.loop.close()
            commons.loop.close_wake()
            raise

    # For other threads.

    def drain(self, reason: str, deadline_s: float | None = None) -> None:
        """Have the loop begin to drain."""
        self._commons.loop.post(lambda: self._ask_to_drain(reason, deadline_s))

    def stop(self, reason: str) -> None:
        """Have the loop end now."""
        self._commons.loop.post(lambda: self._ask_to_stop(reason))

    def statistics(self) -> Statistics:
        """Return consistent figures of this moment."""
        with self._lock:
            return self._statistics()

    # The loop.

    def run(self) -> None:
        """Serve until the end."""
        commons = self._commons
        try:
            while self._step():
                commons.loop.turn(self._next_deadline(), self._lock)
                commons.now = time.monotonic()
                self._follow_up()
        finally:
            self._close_everything()

    def _ask_to_drain(self, reason: str, deadline_s: float | None) -> None:
        self.ending.drain(self._commons.now, reason, deadline_s)
        self._commons.facts_changed = True

    def _ask_to_stop(self, reason: str) -> None:
        self.ending.stop(reason)
        self._commons.facts_changed = True

    def _step(self) -> bool:
        """Do what the state of affairs asks for; return whether to go on."""
        commons = self._commons
        is_due = self._ending_at is not None and self._ending_at <= commons.now
        if not commons.facts_changed and not is_due:
            return True
        commons.facts_changed = False
        while actions := self.ending.step(facts := self._facts()):
            with self._lock:
                for action in actions:
                    self._do(action)
        commons.is_ending = self.ending.state is not BufferState.OPEN
        # It can only move to a later time as long as the facts stay: that is found out then.
        self._ending_at = self.ending.deadline(facts)
        return not self.ending.is_over

    def _facts(self) -> Facts:
        commons = self._commons
        return Facts(
            now=commons.now,
            producers=self._inflow.present() + self.door.newcomers(Side.IN),
            producers_seen=commons.counters.producers_seen,
            consumers=len(self._outflow.consumers) + self.door.newcomers(Side.OUT),
            consumers_seen=commons.counters.consumers_seen,
            is_empty=commons.queue.is_empty and not self._outflow.is_busy,
            last_activity=commons.last_activity,
            has_faults=bool(self._counters().faults()) or self._has_unacknowledged(),
        )

    def _has_unacknowledged(self) -> bool:
        """Whether consumers that are told the end have not got all; matters only then."""
        return self.ending.farewell_said and self._outflow.has_unacknowledged()

    def _next_deadline(self) -> float | None:
        times = (
            self._ending_at,
            self.door.deadline(),
            self._inflow.deadline(),
            self._outflow.deadline(),
            self._commons.queue.deadline(),
        )
        return min((moment for moment in times if moment is not None), default=None)

    def _follow_up(self) -> None:
        """Do what events, or the time, have made possible."""
        with self._lock:
            self.door.expire(self._commons.now)
            self._commons.queue.expire(self._commons.now)
            # What a kernel has is not to be delivered again by a process that is started again.
            is_pressing = self._commons.is_ending or bool(self._inflow.paused)
            self._outflow.expire(is_pressing=is_pressing or self._commons.queue.is_durable)
            self._outflow.dispatch()
            self._inflow.wake()
            self._inflow.admit()
            self._inflow.acknowledge()
            if self._inflow.has_expired():
                self._commons.facts_changed = True

    def _do(self, action: Action) -> None:
        if action is Action.CLOSE_INPUT:
            self.door.close(Side.IN)
        elif action is Action.CUT_PRODUCERS:
            self._commons.counters.producers_cut += len(self._inflow.producers)
            self._inflow.cut_all("cut at the deadline")
            self._inflow.streams.give_up()
            self.door.dismiss(Side.IN)
        elif action is Action.SAY_FAREWELL:
            self.door.close(Side.OUT)
            for consumer in list(self._outflow.consumers.values()):
                self._outflow.half_close(consumer)

    def _recover(self, recovered: Recovered) -> None:
        """Count what was before as if this process had received it, and sent what is gone."""
        commons = self._commons
        commons.received.merge(recovered.received)
        gone = minus(recovered.received, recovered.waiting)
        commons.sent.merge(minus(gone, recovered.lost))
        commons.counters.lost_on_disk = recovered.lost.messages
        self._inflow.restore(recovered.streams)

    def _welcome(self, newcomer: Newcomer) -> None:
        """Take over a connection that has completed its handshake."""
        self._commons.changed()
        if newcomer.side is Side.IN:
            self._inflow.welcome(newcomer)
        else:
            self._outflow.welcome(newcomer, is_over=self.ending.farewell_said)

    def _refused(self, newcomer: Newcomer, reason: str) -> None:
        self._commons.counters.refused_peers += 1
        self._commons.facts_changed = True
        logger.warning(
            "peer_refused",
            extra={"peer": newcomer.address, "side": newcomer.side, "reason": reason},
        )

    # Figures and the end.

    def _counters(self) -> Counters:
        streams = self._inflow.streams
        return replace(
            self._commons.counters,
            producers_unfinished=len(streams.unfinished()),
            missing_in=streams.missing,
        )

    def _statistics(self) -> Statistics:
        commons, outflow = self._commons, self._outflow
        # The loop may have slept for long.
        commons.now = time.monotonic()
        consumers = outflow.consumers.values()
        writing = [each.outlet.segment.tally for each in consumers if each.outlet.segment]
        peers = [commons.record(producer, Side.IN, "") for producer in self._inflow.producers]
        peers += [commons.record(consumer, Side.OUT, "") for consumer in consumers]
        oldest = commons.queue.oldest
        return Statistics(
            state=self.ending.state,
            reason=self.ending.reason,
            received=commons.received.snapshot(),
            sent=commons.sent.snapshot(),
            queue_messages=commons.queue.messages + sum(tally.messages for tally in writing),
            queue_bytes=commons.queue.bytes + sum(tally.bytes for tally in writing),
            queue_peak_bytes=commons.queue.peak_bytes,
            held_bytes=commons.memory.held_bytes,
            held_peak_bytes=commons.memory.peak_bytes,
            capacity_bytes=commons.memory.capacity_bytes,
            producers=len(self._inflow.producers),
            consumers=len(consumers),
            retained_messages=outflow.retained_messages(),
            oldest_s=0.0 if oldest is None else round(max(commons.now - oldest, 0.0), 3),
            paused_producers=self._inflow.paused,
            disk_messages=commons.queue.messages_on_disk,
            spilled_bytes=commons.queue.disk_bytes,
            alarm=commons.queue.alarm,
            counters=self._counters(),
            peers=(*peers, *commons.left),
        )

    def _close_everything(self) -> None:
        """Close all connections; what is still held counts as undelivered."""
        commons = self._commons
        with self._lock:
            commons.now = time.monotonic()
            self.door.close(Side.IN)
            self.door.close(Side.OUT)
            for side in Side:
                self.door.dismiss(side)
            self._inflow.cut_all("the buffer has ended")
            for consumer in list(self._outflow.consumers.values()):
                self._outflow.left(consumer, "")
            commons.counters.undelivered += commons.queue.clear().messages
            commons.queue.close(is_complete=self.ending.state is BufferState.COMPLETE)
            commons.memory.close()
            commons.pipes.close()
            commons.loop.close()

    def close(self) -> None:
        """Give up the means to be woken; nobody may call `drain` or `stop` any more."""
        self._commons.loop.close_wake()
