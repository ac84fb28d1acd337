"""The connections of a buffer: who they are, what they did, what they need to be served."""

import socket
from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum

from lclstream.buffer import tcp
from lclstream.buffer.intake import Intake
from lclstream.buffer.segments import Outlet, Segment
from lclstream.buffer.sp import HANDSHAKE_BYTES, HEADER_BYTES, Handshake, Protocol, handshake
from lclstream.core.errors import DecodeError
from lclstream.core.ledger import Tally

# Ask for acknowledgements rarely: it is a system call.
ENDS_BEFORE_ASKING = 64
FIRST_BYTE_OF_SP = 0x00


class Side(StrEnum):
    """On which side of the buffer a connection is."""

    IN = "in"
    OUT = "out"

    @property
    def protocol(self) -> Protocol:
        """What the buffer is on this side."""
        return Protocol.PULL if self is Side.IN else Protocol.PUSH


@dataclass(slots=True, eq=False, kw_only=True)
class Peer:
    """An accepted connection."""

    sock: socket.socket
    address: str
    since: float
    tally: Tally = field(default_factory=Tally)
    dead: bool = False
    """Closed, although events for it may still be at hand."""
    watched: int = 0
    """The epoll events that are asked for; 0 if the connection is not looked at."""


@dataclass(slots=True, eq=False, kw_only=True)
class Newcomer(Peer):
    """A connection whose protocol is not settled.

    The first byte tells the protocol. Only SP is known so far; another one would bring its own
    handshake here, and its own intake or outlet after that.
    """

    side: Side
    deadline: float
    handshake: Handshake | None = None

    def read(self) -> bool:
        """Go on with the handshake; return whether it is complete.

        Raises:
            DecodeError: the peer speaks something else, or has closed.
            OSError: the connection is broken, or (BlockingIOError) nothing has come.
        """
        if self.handshake is None:
            first = self.sock.recv(1, socket.MSG_PEEK)
            if first and first[0] != FIRST_BYTE_OF_SP:
                raise DecodeError(f"unknown protocol that begins with {first!r}")
            self.handshake = Handshake(self.side.protocol.peer)
            self.sock.send(handshake(self.side.protocol))
        data = self.sock.recv(self.handshake.missing_bytes)
        if not data:
            raise DecodeError("closed before the handshake")
        return self.handshake.received(data)


@dataclass(slots=True, eq=False, kw_only=True)
class Producer(Peer):
    """A connection that messages come from."""

    intake: Intake
    last: Segment | None = None
    """What came in last."""
    moved_at: float = 0.0
    """When a byte last came."""


@dataclass(slots=True, eq=False, kw_only=True)
class Consumer(Peer):
    """A connection that messages go to."""

    outlet: Outlet = field(default_factory=Outlet)
    sent_bytes: int = HANDSHAKE_BYTES
    half_closed: bool = False
    _ends: deque[tuple[int, int]] = field(default_factory=deque)

    def took(self, tally: Tally) -> None:
        """Take note of whole messages that were written up to `sent_bytes`."""
        self.tally.merge(tally)
        self._ends.append((self.sent_bytes, tally.messages))
        if len(self._ends) > ENDS_BEFORE_ASKING:
            self._forget_acknowledged()

    def abandon(self) -> tuple[Tally, Segment | None]:
        """Stop writing: return what was written whole of the segment, and what was not."""
        segment, position = self.outlet.segment, self.outlet.position
        sent, rest = self.outlet.abandon()
        if segment is not None and sent.messages:
            begin = self.sent_bytes - (position - segment.start)
            self.tally.merge(sent)
            wire_bytes = sent.bytes + HEADER_BYTES * sent.messages
            self._ends.append((begin + wire_bytes, sent.messages))
        return sent, rest

    def unacknowledged_messages(self) -> int:
        """Return how many messages at most were written and not acknowledged by the kernel."""
        self._forget_acknowledged()
        return sum(messages for _, messages in self._ends)

    def _forget_acknowledged(self) -> None:
        acked = tcp.acknowledged_bytes(self.sock, self.sent_bytes, dialled=False)
        while self._ends and self._ends[0][0] <= acked:
            self._ends.popleft()
