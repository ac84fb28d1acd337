"""The connections of a buffer: who they are, what they did, what they need to be served."""

import socket
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from lclstream.buffer.control import ControlReader
from lclstream.buffer.intake import Intake
from lclstream.buffer.opening import Opening
from lclstream.buffer.retention import Departure, Retention
from lclstream.buffer.segments import Outlet, Segment, SpOutlet
from lclstream.buffer.sp import HANDSHAKE_BYTES, Protocol
from lclstream.buffer.streams import Stream
from lclstream.buffer.transport import Wire
from lclstream.buffer.zmtp import CommandReader
from lclstream.buffer.zmtp_intake import ZmtpIntake
from lclstream.core.ledger import Tally

if TYPE_CHECKING:
    from lclstream.buffer.crossing import Crossing

# Ask for acknowledgements rarely: it is a system call.
ENTRIES_BEFORE_ASKING = 64


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

    wire: Wire
    address: str
    since: float
    framing: str = "sp"
    """What frames its messages: `sp` or `zmtp`."""
    identity: str = ""
    """The name in its certificate, if it showed one."""
    handshake_bytes: int = HANDSHAKE_BYTES
    """What was written to it before any message."""
    tally: Tally = field(default_factory=Tally)
    dead: bool = False
    """Closed, although events for it may still be at hand."""
    watched: int = 0
    """The epoll events that are asked for; 0 if the connection is not looked at."""
    internal: bool = False
    """Whether this is a link to another lane of the same buffer."""

    @property
    def sock(self) -> socket.socket:
        """For epoll and what the kernel knows; data goes through the wire."""
        return self.wire.sock


@dataclass(slots=True, eq=False, kw_only=True)
class Newcomer(Peer):
    """A connection whose protocol is not settled."""

    side: Side
    deadline: float
    opening: Opening | None = None
    """None if it needs no handshake."""
    nonce: int | None = None
    """What a producer was greeted with."""

    def read(self) -> bool:
        """Go on with the handshake; return whether it is complete.

        Raises:
            LclstreamError: the peer speaks something else, has closed, or is not let in.
            OSError: the connection is broken, or (BlockingIOError) nothing has come.
        """
        opening = self.opening
        if opening is None:
            return True
        is_complete = opening.read()
        self.wire, self.framing = opening.wire, opening.framing
        self.identity, self.nonce = opening.identity, opening.nonce
        self.handshake_bytes = opening.handshake_bytes
        return is_complete


@dataclass(slots=True, eq=False, kw_only=True)
class Producer(Peer):
    """A connection that messages come from."""

    intake: Intake | ZmtpIntake
    last: Segment | None = None
    """What came in last."""
    moved_at: float = 0.0
    """When a byte last came."""
    stream: Stream | None = None
    """If it speaks control frames."""
    crossing: "Crossing | None" = None
    """The message that goes through without entering memory."""
    low_water: int = 0
    """How many bytes must have come before it can be read; 0 if any will do."""
    to_say: bytes = b""
    """Control frames that it did not take yet."""

    def wake_at(self, low_water: int) -> None:
        """Have epoll tell only when so many bytes have come, or it has closed; 0: any."""
        if low_water != self.low_water:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, max(low_water, 1))
            self.low_water = low_water


@dataclass(slots=True, eq=False, kw_only=True)
class Consumer(Peer):
    """A connection that messages go to."""

    retention: Retention
    outlet: Outlet = field(default_factory=SpOutlet)
    reader: ControlReader | CommandReader = field(default_factory=ControlReader)
    sent_bytes: int = 0
    """All bytes written to the connection, the handshake too."""
    half_closed: bool = False
    retiring: bool = False
    """Whether it gets nothing more than what it is being written."""
    greeting: int | None = None
    """What it has greeted with and is to be greeted with; it is told the end of its stream."""
    greeted: bool = False
    """Whether it has been."""
    crossing: "Crossing | None" = None
    """The message that goes to it without entering memory."""
    held_back: bool = False
    """Whether it gets nothing more before it has acknowledged something."""
    acknowledged_at: float = 0.0
    """When it last did, or was given something while it held nothing."""
    blocked_since: float | None = None
    """Since when it has taken nothing of what is being written to it."""

    def begin(self) -> int:
        """Return how many bytes were written to the connection before the segment in hand."""
        return self.sent_bytes - self.outlet.wire_bytes

    def ask_kernel(self) -> None:
        """Take note of what its kernel has."""
        self.retention.arrived(self._acknowledged_bytes())

    def wrote(self, segment: Segment) -> None:
        """Take note of a segment that was written whole."""
        self.tally.merge(segment.tally)
        self.retention.wrote(segment, self.begin(), self.sent_bytes)
        if self.retention.entries > ENTRIES_BEFORE_ASKING:
            self.ask_kernel()

    def leave(self) -> Departure:
        """Decide what becomes of what it has not acknowledged."""
        segment, begin = self.outlet.segment, self.begin()
        self.outlet.segment = None
        departure = self.retention.leave(
            self._acknowledged_bytes(), segment, begin, self.outlet.wire_bytes
        )
        self.tally.merge(departure.counted)
        return departure

    def unacknowledged_messages(self) -> int:
        """Return how many messages at most were written and are not known to have arrived."""
        self.ask_kernel()
        return self.retention.messages

    def _acknowledged_bytes(self) -> int:
        return self.wire.acknowledged_bytes(self.sent_bytes)
