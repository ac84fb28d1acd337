"""All lanes of a buffer, as one: who gets what, when it ends, what it did altogether.

Each lane is a process with an engine of its own, so a buffer uses as many cores as it has
lanes. Messages stay in the lane that they came in by unless it has no consumers: order and
turns are kept in each lane, not over all.

Lives in an event loop. Nothing here is on the way of a message.
"""

import asyncio
import contextlib
import logging
import math
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lclstream.buffer import balance
from lclstream.buffer.balance import Route
from lclstream.buffer.config import BufferConfig
from lclstream.buffer.custody import Custody
from lclstream.buffer.ending import Action, Ending, Facts
from lclstream.buffer.lane_process import LaneProcess
from lclstream.buffer.orders import (
    Ask,
    Claim,
    Connection,
    Count,
    Failed,
    Figures,
    Grant,
    Link,
    LinkEnded,
    Order,
    Ready,
    Release,
    Released,
    Setup,
    Told,
    Unlink,
)
from lclstream.buffer.pairs import connected_pair
from lclstream.buffer.peers import Side
from lclstream.buffer.rounds import Rounds
from lclstream.buffer.states import BufferState
from lclstream.buffer.statistics import Statistics
from lclstream.buffer.totals import rest_of, total
from lclstream.core.errors import LclstreamError, StreamError, from_body
from lclstream.core.ledger import TallyModel

logger = logging.getLogger(__name__)

START_TIMEOUT_S = 60.0
# The lanes close connections and add up, nothing more.
END_TIMEOUT_S = 30.0
ANSWER_TIMEOUT_S = 10.0
# Who looks more often gets the same figures again.
COUNT_INTERVAL_S = 0.05
# When a link cannot be made, it is tried again after so long.
LINK_PAUSE_S = 1.0
# More than that is not bad luck.
MAX_LANES_LOST = 5
# So many connections may wait for lanes that do not take them.
MAX_WAITING = 256


@dataclass(slots=True, eq=False)
class LinkState:
    """A link between two lanes, until both have closed their ends."""

    route: Route
    ends: set[int]
    """The lanes whose end is open."""
    unlinked: bool = False


class Lanes:
    """The lanes of one buffer.

    Resource handling: owns the processes; all are gone when `run` returns.

    Error handling: a lane that dies takes with it what it held. That is a fault, which is
    counted, and another one takes its place.

    Args:
        config: of the whole buffer; memory and the like are shared out.
        count: how many lanes.
        identity: folder with the certificate for TLS; lanes read it themselves.
        act: does what has to be done with the listening sockets.
    """

    def __init__(
        self, config: BufferConfig, count: int, identity: Path | None, act: Callable[[Action], None]
    ) -> None:
        self.ending = Ending(config)
        self.ready = asyncio.Event()
        """Set when all lanes have begun to work."""
        self._config = config
        self._count = count
        self._identity = identity
        self._act = act
        self._lanes: dict[int, LaneProcess] = {}
        self._waiting: deque[tuple[socket.socket, Connection]] = deque()
        self._links: dict[int, LinkState] = {}
        self._next_lane = self._next_link = 0
        self._rounds = Rounds()
        self._custody = Custody(self._have_released, self._grant)
        self._named_in_past: frozenset[int] = frozenset()
        self._named_count = 0
        """How often those were counted."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._refreshing = self._refresh_again = False
        self._counting: dict[bool, asyncio.Task[None]] = {}
        self._counted_at = dict.fromkeys((True, False), -math.inf)
        self._timer: asyncio.TimerHandle | None = None
        self._link_after = self._last_activity = time.monotonic()
        self._ordered: Order | None = None
        self._over = asyncio.Event()
        self._all_gone = asyncio.Event()
        self._failure: LclstreamError | None = None
        self._past: list[Statistics] = []
        """The last figures of lanes that are gone."""
        self._lost = 0
        self._deaths = 0
        self._undelivered = 0
        """Messages that dead lanes held."""

    @property
    def is_complete(self) -> bool:
        """Whether everything has ended and was delivered."""
        return self.ending.state is BufferState.COMPLETE and not self._lost

    @property
    def has_faults(self) -> bool:
        """Whether something is known to be missing."""
        return self._lost > 0 or any(
            lane.told is not None and lane.told.facts.has_faults for lane in self._lanes.values()
        )

    @property
    def pids(self) -> list[int]:
        """The process ids of the lanes."""
        return [lane.pid for lane in self._lanes.values()]

    @property
    def is_pressed(self) -> bool:
        """Whether lanes are behind with the connections that they were passed."""
        return len(self._waiting) > MAX_WAITING or any(
            lane.channel.waiting > MAX_WAITING for lane in self._lanes.values()
        )

    async def run(self) -> None:
        """Serve until the end.

        Raises:
            StreamError: the lanes cannot be kept running.
            InvalidConfigError: they cannot work as they are configured.
        """
        try:
            for _ in range(self._count):
                self._start_lane()
            self._look()
            await self._over.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(END_TIMEOUT_S):
                    await self._all_gone.wait()
        finally:
            self._close()
        if self._failure is not None:
            raise self._failure

    def take(self, sock: socket.socket, connection: Connection) -> None:
        """Give a new connection to a lane."""
        self._last_activity = time.monotonic()
        self._waiting.append((sock, connection))
        self._pass_on()

    def drain(self, reason: str, deadline_s: float | None = None) -> None:
        """Refuse new producers, deliver everything, end."""
        self.ending.drain(time.monotonic(), reason, deadline_s)
        self._look()

    def stop(self, reason: str) -> None:
        """End now; what was not delivered is counted."""
        self.ending.stop(reason)
        self._look()

    async def statistics(self, *, peers: bool = True) -> Statistics:
        """Return the figures of this moment, or of the end.

        Args:
            peers: False: those of connections may be older.
        """
        is_stale = time.monotonic() > self._counted_at[peers] + COUNT_INTERVAL_S
        if is_stale and not self.ending.is_over:
            counting = self._counting.get(peers)
            if counting is None or counting.done():
                counting = self._counting[peers] = self._spawn(self._count_all(peers=peers))
            # Who goes away leaves the counting to the others.
            await asyncio.shield(counting)
        return self.last_statistics()

    def last_statistics(self) -> Statistics:
        """Return the figures as they were last told."""
        told = [lane.figures for lane in self._lanes.values() if lane.figures is not None]
        whole = total([*self._past, *told] or [self._nothing()])
        counters = replace(whole.counters, lanes_lost=self._lost)
        counters.undelivered += self._undelivered
        counters.producers_seen -= self._known_twice()
        state = self.ending.state
        if state is BufferState.COMPLETE and not self.is_complete:
            state = BufferState.INCOMPLETE
        return replace(whole, state=state, reason=self.ending.reason, counters=counters)

    # Lanes that come and go.

    def _start_lane(self) -> None:
        lane = LaneProcess(self._next_lane)
        self._next_lane += 1
        self._lanes[lane.number] = lane
        asyncio.get_running_loop().add_reader(lane.channel.sock, self._hear, lane)
        config = self._share(lane.number)
        self._send(
            lane,
            Setup(
                number=lane.number,
                parent=os.getpid(),
                config=config,
                identity=self._identity,
                # A lane does not know at which address a connection came in.
                require_tls=self._config.require_tls
                or any(each.tls for each in (*self._config.inputs, *self._config.outputs)),
                allowed_names=self._config.allowed_names,
                several=self._count > 1,
            ),
        )
        if config.durable is None:
            # How long it takes to look through a journal is not known.
            asyncio.get_running_loop().call_later(START_TIMEOUT_S, self._check_start, lane)

    def _share(self, number: int) -> BufferConfig:
        """Return what one lane gets of the whole."""
        config, count = self._config, self._count
        return replace(
            config,
            inputs=(),
            outputs=(),
            tls=None,
            require_tls=False,
            allowed_names=(),
            memory_bytes=max(config.memory_bytes // count, 1),
            spill=config.spill if count == 1 or not config.spill else config.spill / str(number),
            spill_bytes=config.spill_bytes // count,
        )

    def _check_start(self, lane: LaneProcess) -> None:
        if not lane.ready and lane.number in self._lanes:
            logger.error("lane_does_not_start", extra={"lane": lane.number})
            lane.kill()

    def _gone(self, lane: LaneProcess) -> None:
        """The process of a lane has ended."""
        asyncio.get_running_loop().remove_reader(lane.channel.sock)
        asyncio.get_running_loop().remove_writer(lane.channel.sock)
        del self._lanes[lane.number]
        for name in list(self._links):
            self._end_closed(name, lane.number)
        if lane.figures is not None:
            self._named_in_past |= lane.producers
            self._named_count += len(lane.producers)
        status = lane.close()
        if not lane.finished:
            self._died(lane, status)
        elif lane.figures is not None:
            self._past.append(lane.figures)
        self._rounds.gone(lane.number)
        self._custody.gone(lane.number)
        if not self._lanes:
            self._all_gone.set()
        self._look()

    def _died(self, lane: LaneProcess, status: int) -> None:
        self._deaths += 1
        logger.error("lane_died", extra={"lane": lane.number, "status": status})
        if self._config.durable is None:
            self._lost_with(lane)
        if self._failure is not None:
            self.ending.stop("it cannot work as it is configured")
        elif not lane.ready or self._deaths > MAX_LANES_LOST:
            self._failure = StreamError("the lanes of the buffer do not stay alive, see its log")
            self.ending.stop("lanes do not stay alive")
        elif not self._over.is_set():
            self._start_lane()

    def _lost_with(self, lane: LaneProcess) -> None:
        """Count what a lane held; from a journal the next lane would take it over."""
        self._lost += 1
        if lane.figures is not None:
            # What it told last is all that will ever be known of it.
            figures = lane.figures
            held = figures.received.messages - figures.sent.messages
            self._undelivered += max(held - figures.counters.undelivered, 0)
            self._past.append(rest_of(figures))

    def _close(self) -> None:
        self._over.set()
        if self._timer is not None:
            self._timer.cancel()
        for task in list(self._tasks):
            task.cancel()
        for lane in list(self._lanes.values()):
            # They had their time.
            self._gone(lane)
        for sock, _ in self._waiting:
            sock.close()
        self._waiting.clear()

    # What lanes tell.

    def _hear(self, lane: LaneProcess) -> None:
        try:
            messages = lane.channel.receive()
        except EOFError:
            self._gone(lane)
            return
        for message, _ in messages:
            self._heard(lane, message)

    def _heard(self, lane: LaneProcess, message: Any) -> None:
        if isinstance(message, Told):
            lane.told = message
            lane.producers = message.producers
            if message.token is not None:
                self._rounds.answered(message.token, lane.number)
            else:
                self._look()
        elif isinstance(message, Figures):
            before = lane.figures.peers if lane.figures is not None else ()
            lane.figures = message.statistics
            if not lane.figures.peers:
                lane.figures = replace(lane.figures, peers=before)
            lane.producers = message.producers
            lane.finished = message.token is None
            self._rounds.answered(message.token, lane.number)
        elif isinstance(message, LinkEnded):
            self._end_closed(message.name, lane.number)
            self._look()
        elif isinstance(message, Claim):
            self._custody.claimed(message.stream, lane.number)
        elif isinstance(message, Released):
            self._custody.released(message.stream, message.accepted)
        elif isinstance(message, Failed):
            self._failure = self._failure or from_body(message.error)
        elif isinstance(message, Ready):
            lane.ready = True
            if self._ordered is not None:
                self._send(lane, replace(self._ordered, actions=()))
            if all(each.ready for each in self._lanes.values()):
                self.ready.set()
            self._pass_on()

    # What lanes are told.

    def _send(
        self, lane: LaneProcess, message: object, socks: Sequence[socket.socket] = ()
    ) -> None:
        if not lane.send(message, socks):
            asyncio.get_running_loop().add_writer(lane.channel.sock, self._flush, lane)

    def _have_released(self, stream: int, number: int) -> None:
        self._send(self._lanes[number], Release(stream))

    def _grant(self, stream: int, number: int, accepted: int) -> None:
        if number in self._lanes:
            self._send(self._lanes[number], Grant(stream, accepted))

    def _flush(self, lane: LaneProcess) -> None:
        if lane.flush():
            asyncio.get_running_loop().remove_writer(lane.channel.sock)

    def _tell_all(self, message: object) -> None:
        for lane in self._ready_lanes():
            self._send(lane, message)

    def _ready_lanes(self) -> list[LaneProcess]:
        return [lane for lane in self._lanes.values() if lane.ready]

    def _pass_on(self) -> None:
        # The first to be ready would get them all.
        lanes = self._ready_lanes() if self.ready.is_set() else []
        while lanes and self._waiting:
            sock, connection = self._waiting.popleft()
            lane = self._lanes[balance.choose([each.load for each in lanes], connection.side)]
            lane.passed[connection.side] += 1
            self._send(lane, connection, [sock])

    # How it ends.

    def _look(self, fresh_at: float | None = None) -> None:
        """Decide what follows from what is known, and have it done.

        Args:
            fresh_at: everything that is known holds for this time or a later one; None: it may
                be older. While the buffer is open that does, deadlines apart.
        """
        if self._over.is_set():
            return
        if not self.ending.is_over and any(lane.told is None for lane in self._lanes.values()):
            # A lane that has not begun cannot obey, and it may find a journal full of messages.
            # It will tell.
            return
        self._balance()
        facts = self._facts(time.monotonic() if fresh_at is None else fresh_at)
        deadline = self.ending.deadline(facts)
        is_due = deadline is not None and deadline <= facts.now
        is_open = self.ending.state is BufferState.OPEN
        is_stale = fresh_at is None and (is_due or not is_open)
        actions = [] if is_stale else self.ending.step(facts)
        for action in actions:
            self._act(action)
        self._order(actions)
        if self.ending.is_over:
            self._over.set()
        elif is_stale or actions or (is_open and self.ending.state is not BufferState.OPEN):
            self._refresh()
        else:
            self._wake_at(self.ending.deadline(facts))

    def _order(self, actions: list[Action]) -> None:
        """Tell the lanes what was decided, if that is new."""
        ending = self.ending
        order = Order(
            state=ending.state,
            reason=ending.reason,
            farewell_said=ending.farewell_said,
            actions=tuple(actions),
        )
        if self._ordered is None or order != replace(self._ordered, actions=()):
            self._ordered = order
            self._tell_all(order)

    def _facts(self, now: float) -> Facts:
        loads = [lane.load for lane in self._lanes.values()]
        told = [lane.told.facts for lane in self._lanes.values() if lane.told is not None]
        sides = [connection.side for _, connection in self._waiting]
        return Facts(
            now=now,
            producers=sum(load.producers for load in loads) + sides.count(Side.IN),
            producers_seen=sum(facts.producers_seen for facts in told)
            + sum(past.counters.producers_seen for past in self._past)
            - self._known_twice(),
            consumers=sum(load.consumers for load in loads) + sides.count(Side.OUT),
            consumers_seen=sum(facts.consumers_seen for facts in told)
            + sum(past.counters.consumers_seen for past in self._past),
            is_empty=all(load.is_empty for load in loads) and not self._links,
            last_activity=max([self._last_activity, *(facts.last_activity for facts in told)]),
            has_faults=self.has_faults,
        )

    def _known_twice(self) -> int:
        """Return how many producers too many a sum over the lanes counts."""
        named = [lane.producers for lane in self._lanes.values()]
        several = sum(map(len, named)) + self._named_count
        return several - len(self._named_in_past.union(*named))

    def _wake_at(self, deadline: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if deadline is not None:
            self._timer = asyncio.get_running_loop().call_at(deadline, self._refresh)

    def _refresh(self) -> None:
        """Ask all lanes for their facts, then look again."""
        self._refresh_again = True
        if not self._refreshing:
            self._refreshing = True
            self._spawn(self._ask_all())

    async def _ask_all(self) -> None:
        while self._refresh_again and not self._over.is_set():
            self._refresh_again = False
            asked_at = time.monotonic()
            lanes = self._ready_lanes()
            token, answers = self._rounds.begin(lane.number for lane in lanes)
            for lane in lanes:
                self._send(lane, Ask(token))
            await answers.wait(ANSWER_TIMEOUT_S)
            self._rounds.end(token)
            if not self._refresh_again:
                self._look(asked_at)
        self._refreshing = False

    async def _count_all(self, *, peers: bool) -> None:
        lanes = self._ready_lanes()
        token, answers = self._rounds.begin(lane.number for lane in lanes)
        for lane in lanes:
            self._send(lane, Count(token, peers))
        if not await answers.wait(ANSWER_TIMEOUT_S):
            logger.warning("lanes_do_not_answer", extra={"timeout_s": ANSWER_TIMEOUT_S})
        self._rounds.end(token)
        self._counted_at[peers] = time.monotonic()

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # Links.

    def _balance(self) -> None:
        """Have no lane sit on messages that another one's consumers would take."""
        loads = [lane.load for lane in self._ready_lanes()]
        routes = [link.route for link in self._links.values()]
        numbers = {load.number for load in loads}
        in_use = {
            link.route: name
            for name, link in self._links.items()
            if not link.unlinked and {link.route.source, link.route.target} <= numbers
        }
        is_ending = self.ending.state is not BufferState.OPEN
        for route in balance.obsolete(loads, in_use, ending=is_ending):
            name = in_use[route]
            self._links[name].unlinked = True
            self._send(self._lanes[route.source], Unlink(name))
        if time.monotonic() >= self._link_after:
            for route in balance.missing(loads, routes):
                self._link(route)

    def _link(self, route: Route) -> None:
        try:
            # Who sends is the accepted side: it can see exactly what has arrived.
            source, target = connected_pair()
        except OSError as error:
            logger.error("link_failed", extra={"reason": str(error)})  # noqa: TRY400
            self._link_after = time.monotonic() + LINK_PAUSE_S
            asyncio.get_running_loop().call_later(LINK_PAUSE_S, self._look)
            return
        name, self._next_link = self._next_link, self._next_link + 1
        self._links[name] = LinkState(route, {route.source, route.target})
        self._send(self._lanes[route.target], Link(side=Side.IN, name=name), [target])
        self._send(self._lanes[route.source], Link(side=Side.OUT, name=name), [source])
        logger.info("lanes_linked", extra={"source": route.source, "target": route.target})

    def _end_closed(self, name: int, lane: int) -> None:
        link = self._links.get(name)
        if link is not None:
            link.ends.discard(lane)
            if not link.ends:
                del self._links[name]

    def _nothing(self) -> Statistics:
        """Return the figures of a buffer of which no lane has told any."""
        zero = TallyModel()
        return Statistics(
            state=self.ending.state, reason=self.ending.reason, received=zero, sent=zero,
            queue_messages=0, queue_bytes=0, queue_peak_bytes=0, held_bytes=0, held_peak_bytes=0,
            capacity_bytes=self._config.memory_bytes, producers=0, consumers=0,
            retained_messages=0, oldest_s=0.0, paused_producers=0,
        )  # fmt: skip
