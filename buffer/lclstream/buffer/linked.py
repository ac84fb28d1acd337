"""An engine that hands messages on to another lane, or gets them from one.

A link is a connection between two lanes: at one end a consumer, at the other a producer. What
goes over it is in no total, so that the totals of all lanes add up.
"""

import socket
import time
from collections.abc import Callable
from dataclasses import replace

from lclstream.buffer import tcp
from lclstream.buffer.config import BufferConfig
from lclstream.buffer.ending import Facts
from lclstream.buffer.engine import Engine, MakeEntrance
from lclstream.buffer.loop import Handler
from lclstream.buffer.peers import Consumer, Newcomer, Peer, Producer, Side
from lclstream.buffer.retention import Keep
from lclstream.buffer.segments import minus
from lclstream.buffer.statistics import Counters, Statistics
from lclstream.buffer.transport import PlainWire
from lclstream.core.ledger import Tally

LINK_ADDRESS = "link:"


class LinkedEngine(Engine):
    """Counts only what comes and goes over connections of others.

    Everything here belongs to the thread of the loop.

    Args:
        config: how to work.
        entrance: makes what lets connections in.
        link_ended: hears the name of a link whose end here is closed.
    """

    def __init__(
        self, config: BufferConfig, entrance: MakeEntrance, link_ended: Callable[[int], None]
    ) -> None:
        super().__init__(config, entrance)
        self._link_ended = link_ended
        self._links: dict[int, Peer] = {}
        self._links_seen = dict.fromkeys(Side, 0)
        """Those that are over; a producer counts only if it has delivered something."""
        self._over_links = {side: Tally() for side in Side}
        """What went over them."""

    @property
    def ready_consumers(self) -> int:
        """How many consumers, links left out, can be given messages."""
        return sum(
            not (consumer.internal or consumer.half_closed)
            for consumer in self._outflow.consumers.values()
        )

    @property
    def named_producers(self) -> frozenset[int]:
        """Producers that named themselves; with several lanes others may know them too."""
        return frozenset(self._inflow.streams.producers)

    def share_streams(self, claim: Callable[[int], int]) -> None:
        """Have other lanes asked for streams that are new here."""
        self._inflow.streams.claim = claim

    def release(self, stream: int) -> int:
        """Let another lane go on with a stream; return how many of its messages were accepted."""
        return self._inflow.release(stream)

    def watch(self, sock: socket.socket, events: int, handler: Handler) -> None:
        """Have the loop watch something else as well."""
        self._commons.loop.watch(sock, events, handler)

    def change(self, sock: socket.socket, events: int) -> None:
        """Ask for other events of it."""
        self._commons.loop.change(sock, events)

    def again(self, work: Callable[[], None]) -> None:
        """Have something done in the loop's next turn."""
        self._commons.loop.again(work)

    def look_again(self) -> None:
        """Have the state of affairs looked at before the loop sleeps."""
        self._commons.facts_changed = True

    def link(self, side: Side, sock: socket.socket, name: int) -> None:
        """Take over an end of a link; IN is where messages come from."""
        tcp.tune(sock, keep_unsent=side is Side.OUT, dead_after_s=self._config.dead_after_s)
        now = time.monotonic()
        newcomer = Newcomer(
            wire=PlainWire(sock),
            address=f"{LINK_ADDRESS}{name}",
            since=now,
            handshake_bytes=0,
            side=side,
            deadline=now,
        )
        self._welcome(newcomer)
        peer = self._peer(side, sock)
        if peer is None:
            self._link_ended(name)
            return
        peer.internal = True
        self._links[name] = peer
        if isinstance(peer, Consumer):
            # What goes to another lane is in the same hands as before.
            peer.retention.keep = Keep.NOTHING

    def unlink(self, name: int) -> None:
        """Give nothing more to a link; it ends when what has begun is whole."""
        peer = self._links.get(name)
        if isinstance(peer, Consumer) and not peer.dead:
            self._outflow.retire(peer)

    def external_statistics(self) -> Statistics:
        """Return the figures of this moment, for the loop's own thread."""
        return self._statistics()

    def _follow_up(self) -> None:
        super()._follow_up()
        for name in [name for name, peer in self._links.items() if peer.dead]:
            peer = self._links.pop(name)
            side = Side.OUT if isinstance(peer, Consumer) else Side.IN
            self._over_links[side].merge(peer.tally)
            self._links_seen[side] += self._is_seen(peer)
            self.look_again()
            self._link_ended(name)

    def _facts(self) -> Facts:
        facts = super()._facts()
        return replace(
            facts,
            producers=facts.producers - self._links_now(Side.IN),
            producers_seen=facts.producers_seen - self._links_ever(Side.IN),
            consumers=facts.consumers - self._links_now(Side.OUT),
            consumers_seen=facts.consumers_seen - self._links_ever(Side.OUT),
        )

    def _counters(self) -> Counters:
        counters = super()._counters()
        counters.producers_seen -= self._links_ever(Side.IN)
        counters.consumers_seen -= self._links_ever(Side.OUT)
        return counters

    def _statistics(self) -> Statistics:
        statistics = super()._statistics()
        return replace(
            statistics,
            received=minus(self._commons.received, self._tally(Side.IN)).snapshot(),
            sent=minus(self._commons.sent, self._tally(Side.OUT)).snapshot(),
            producers=statistics.producers - self._links_now(Side.IN),
            consumers=statistics.consumers - self._links_now(Side.OUT),
            peers=tuple(
                peer for peer in statistics.peers if not peer.address.startswith(LINK_ADDRESS)
            ),
        )

    def _peer(self, side: Side, sock: socket.socket) -> Peer | None:
        peers: list[Peer] = [*(self._inflow.producers if side is Side.IN else ())]
        peers += self._outflow.consumers.values() if side is Side.OUT else ()
        return next((peer for peer in peers if peer.sock is sock), None)

    def _of(self, side: Side) -> list[Peer]:
        kind = Producer if side is Side.IN else Consumer
        return [peer for peer in self._links.values() if isinstance(peer, kind)]

    def _links_now(self, side: Side) -> int:
        return sum(not peer.dead for peer in self._of(side))

    def _links_ever(self, side: Side) -> int:
        return self._links_seen[side] + sum(self._is_seen(peer) for peer in self._of(side))

    @staticmethod
    def _is_seen(peer: Peer) -> bool:
        return isinstance(peer, Consumer) or bool(peer.tally.messages)

    def _tally(self, side: Side) -> Tally:
        tally = replace(self._over_links[side])
        for peer in self._of(side):
            tally.merge(peer.tally)
        return tally
