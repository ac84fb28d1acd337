"""What the parts of the engine share: memory, queue, counts, and what is known of the moment."""

import logging
import time
from collections import deque

from lclstream.buffer import tcp
from lclstream.buffer.config import BufferConfig
from lclstream.buffer.loop import Loop
from lclstream.buffer.memory import Memory
from lclstream.buffer.peers import Consumer, Peer, Side
from lclstream.buffer.spill import open_queue
from lclstream.buffer.splice import Pipes
from lclstream.buffer.statistics import Counters, PeerRecord
from lclstream.core.ledger import Tally

logger = logging.getLogger(__name__)

REMEMBERED_PEERS = 1000


class Commons:
    """State that belongs to the loop's thread."""

    def __init__(self, config: BufferConfig) -> None:
        self.config = config
        self.loop = Loop()
        self.memory = Memory(config.memory_bytes)
        self.pipes = Pipes()
        self.received = Tally()
        self.sent = Tally()
        self.counters = Counters()
        try:
            self.queue = open_queue(config, self.memory, self.loop, self.counters)
        except BaseException:
            self.loop.close()
            self.loop.close_wake()
            raise
        self.left: deque[PeerRecord] = deque(maxlen=REMEMBERED_PEERS)
        self.now = self.last_activity = time.monotonic()
        self.facts_changed = True
        """Whether the end may have come nearer."""
        self.is_ending = False
        """Whether everything that is delivered brings it nearer."""

    def moved(self) -> None:
        """Take note that a byte moved."""
        self.last_activity = self.now

    def progressed(self) -> None:
        """Take note that less is to be delivered than before: that matters only near the end."""
        if self.is_ending:
            self.facts_changed = True

    def changed(self) -> None:
        """Take note that a peer came or went."""
        self.last_activity = self.now
        self.facts_changed = True

    def left_behind(self, peer: Peer, side: Side, problem: str) -> None:
        """Close a connection and keep its record."""
        self.changed()
        record = self.record(peer, side, problem or "closed")
        self.left.append(record)
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
        self.loop.close_later(peer.sock)

    def record(self, peer: Peer, side: Side, end: str) -> PeerRecord:
        """Return what a connection did."""
        in_flight_bytes = unacknowledged = 0
        stalled_s = 0.0
        if isinstance(peer, Consumer):
            if not end:
                in_flight_bytes = tcp.unacknowledged_bytes(peer.sock)
                unacknowledged = peer.retention.messages
            if peer.blocked_since is not None:
                stalled_s = round(self.now - peer.blocked_since, 3)
        tally = peer.tally.snapshot()
        return PeerRecord(
            side=side,
            address=peer.address,
            identity=peer.identity,
            framing=peer.framing,
            messages=tally.messages,
            bytes=tally.bytes,
            digest=tally.digest,
            in_flight_bytes=in_flight_bytes,
            unacknowledged_messages=unacknowledged,
            stalled_s=stalled_s,
            seconds=round(self.now - peer.since, 3),
            end=end,
        )
