"""The connections of a producer: who is at their other ends, and which stream goes over which.

A stream outlives its connection. When that breaks another one is made, and the buffer at its end
is told which stream it is and asked where it is to go on.
"""

import logging
import math
import select
import time
from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum

from lclstream.buffer import tcp
from lclstream.buffer.control import ControlReader, Frame, frame
from lclstream.buffer.links import WRITE, Link, Links
from lclstream.buffer.outgoing import Stream, StreamNumbers, skip
from lclstream.buffer.sp import HANDSHAKE_BYTES
from lclstream.core.errors import DecodeError, InvalidConfigError

logger = logging.getLogger(__name__)

# The kernel takes at most 1024 pieces in one call.
PIECES_PER_CALL = 512
# How often to look whether a peer that takes nothing is still there.
CHECK_INTERVAL_S = 5.0
# A buffer greets with its handshake, and answers at once where a stream is to go on.
HELLO_TIMEOUT_S = 5.0
READ_BYTES = 64 * 1024
HOST_SILENT = "peer's host does not answer"


class ChannelState(StrEnum):
    """What is known of the peer of a connection."""

    UNDECIDED = "undecided"
    """It may still greet; when messages are sent before, it is a plain peer."""
    WAITING = "waiting"
    """It has to greet before anything is sent."""
    PLAIN = "plain"
    """It may be any NNG program."""
    RESUMING = "resuming"
    """A buffer; where to go on is asked."""
    OPEN = "open"
    """A buffer, which knows the stream."""


USABLE = frozenset({ChannelState.UNDECIDED, ChannelState.PLAIN, ChannelState.OPEN})


@dataclass(slots=True, eq=False)
class Channel:
    """One connection, seen from the producer."""

    link: Link
    stream: Stream | None
    """None if the peer has dialled us: who it is cannot be said twice."""
    state: ChannelState
    answer_by: float
    """When the peer must have greeted or answered."""
    reader: ControlReader = field(default_factory=ControlReader)
    sent_bytes: int = HANDSHAKE_BYTES
    """All bytes written to the connection."""
    ends: deque[int] = field(default_factory=deque)
    """Value of `sent_bytes` at the end of each message that may not be acknowledged yet."""
    outbox: deque[memoryview] = field(default_factory=deque)
    """What is to be written next."""
    said_bye: bool = False
    half_closed: bool = False
    problem: str = ""
    gate: select.poll = field(default_factory=select.poll)

    def __post_init__(self) -> None:
        self.gate.register(self.link.sock, select.POLLOUT)

    @property
    def is_open(self) -> bool:
        """Whether the connection stands."""
        return self.link.is_open

    @property
    def is_usable(self) -> bool:
        """Whether messages may be sent."""
        return self.state in USABLE

    def is_writable(self) -> bool:
        """Return whether the kernel has room for more than a few bytes."""
        return not self.outbox and bool(self.gate.poll(0))

    def acknowledged(self) -> int:
        """Forget the messages that the peer's kernel has; return how many bytes it has."""
        acked = self.link.wire.acknowledged_bytes(self.sent_bytes)
        while self.ends and self.ends[0] <= acked:
            self.ends.popleft()
        return acked

    def lost(self) -> int:
        """Return how many messages were written whole and are not acknowledged."""
        self.acknowledged()
        return sum(end <= self.sent_bytes for end in self.ends)


class ProducerChannels:
    """The connections and streams of a producer.

    Args:
        links: the connections; owned by this object from now on.
        is_safe: whether the streams hold messages until a buffer has accepted them.
        reconnect_timeout_s: how long a broken connection is waited for.
        dead_after_s: after how long a host that does not answer counts as gone.
    """

    def __init__(
        self, links: Links, *, is_safe: bool, reconnect_timeout_s: float, dead_after_s: float
    ) -> None:
        self.links = links
        self.changes = 0
        """How often a connection came, went or learned something."""
        self._is_safe = is_safe
        self._reconnect_timeout_s = reconnect_timeout_s
        self._dead_after_s = dead_after_s
        self._check_interval_s = min(CHECK_INTERVAL_S, dead_after_s / 4)
        self._check_at = time.monotonic() + self._check_interval_s
        # Who was served goes to the end.
        self._channels: list[Channel] = []
        self._of_link: dict[Link, Channel] = {}
        self._numbers = StreamNumbers()
        self._streams = {target: Stream(self._numbers.take()) for target in links.targets}
        # Messages that are lost, of which nobody was told yet, and why.
        self._lost = 0
        self._problem = ""
        self._refusal: InvalidConfigError | None = None
        self._finishing = False
        self._scratch = memoryview(bytearray(READ_BYTES))

    @property
    def unaccepted(self) -> int:
        """Messages that were sent and that the buffer has not accepted; 0 in fast delivery."""
        return sum(stream.unaccepted for stream in self._streams.values()) if self._is_safe else 0

    @property
    def is_calm(self) -> bool:
        """Whether nothing is to be done before something happens on a standing connection."""
        return not any(
            channel.outbox or channel.state not in USABLE for channel in self._channels
        ) and not any(stream.lost_at is not None for stream in self._streams.values())

    def needs_care(self, seen: int) -> bool:
        """Return whether something waits to be written, or `changes` is not what was seen."""
        return self.changes != seen or any(channel.outbox for channel in self._channels)

    def step(self, timeout_s: float) -> None:
        """Wait for events, at most for a time, and deal with them."""
        for link, events in self.links.wait(timeout_s):
            if not link.is_open:
                continue
            channel = self._of_link.get(link) or self._welcome(link)
            if events & ~WRITE and channel.is_open:
                self._listen(channel)
            if events & WRITE and channel.is_open:
                self._pump(channel)
        self._expire(time.monotonic())

    def look(self) -> bool:
        """Deal with what has happened while nobody waits; return True: that was all."""
        self.step(0.0)
        return True

    def due_s(self) -> float | None:
        """Return after how long `step` has something to do although nothing happens."""
        now = time.monotonic()
        times = self._deadlines()
        if self._channels:
            times.append(self._check_at)
        waits = [max(moment - now, 0.0) for moment in times]
        patience_s = self.links.patience_s(now)
        if patience_s is not None:
            waits.append(patience_s)
        return min(waits, default=None)

    def abort(self) -> None:
        """Close all connections without waiting; what the kernel has still goes out."""
        for channel in list(self._channels):
            # Unread bytes would make the kernel throw away what it has not sent yet.
            self._listen(channel)
        self.links.close()

    def _patience_s(self, until: float) -> float:
        soonest = min([until, self._check_at, *self._deadlines()])
        return min(max(soonest - time.monotonic(), 0.0), self._check_interval_s)

    def _deadlines(self) -> list[float]:
        times = [
            channel.answer_by
            for channel in self._channels
            if channel.state not in USABLE and self._refusal is None
        ]
        times += [
            stream.lost_at + self._reconnect_timeout_s
            for stream in self._streams.values()
            if stream.lost_at is not None
        ]
        return times

    def _is_returning(self, now: float) -> bool:
        """Return whether a connection is on its way back and messages wait for that."""
        return any(
            stream.lost_at is not None and now < stream.lost_at + self._reconnect_timeout_s
            for stream in self._streams.values()
        )

    def _welcome(self, link: Link) -> Channel:
        stream = self._streams[link.target] if link.target is not None else None
        must_greet = self._is_safe or (stream is not None and stream.begun)
        channel = Channel(
            link,
            stream,
            ChannelState.WAITING if must_greet else ChannelState.UNDECIDED,
            time.monotonic() + HELLO_TIMEOUT_S,
        )
        self._channels.append(channel)
        self._of_link[link] = channel
        self.changes += 1
        return channel

    def _listen(self, channel: Channel) -> None:
        """Read what the peer says."""
        try:
            while True:
                count = channel.link.wire.recv_into(self._scratch)
                if not count:
                    self._drop(channel, "closed by the peer")
                    return
                self._heard(channel, self._scratch[:count])
                if count < READ_BYTES and not channel.link.wire.pending():
                    return
        except BlockingIOError:
            return
        except (OSError, DecodeError) as error:
            self._drop(channel, str(error))

    def _heard(self, channel: Channel, data: memoryview) -> None:
        if channel.state is ChannelState.PLAIN:
            return
        greets = channel.state in (ChannelState.UNDECIDED, ChannelState.WAITING)
        try:
            frames = channel.reader.received(data)
        except DecodeError:
            if not greets:
                raise
            self._is_plain(channel)
            return
        for kind, number in frames:
            if kind is Frame.HELLO and channel.stream is not None and greets:
                self._introduce(channel, channel.stream, number)
                greets = False
            elif kind is Frame.ACK and channel.stream is not None and not greets:
                self._acknowledged(channel, channel.stream, number)
            elif greets:
                # It may be a consumer that acknowledges to whoever wants to know.
                self._is_plain(channel)
                return
            else:
                raise DecodeError(f"{kind.name} has no place here")

    def _is_plain(self, channel: Channel) -> None:
        if channel.stream is not None:
            channel.stream.lost_at = None
        if not self._is_safe:
            channel.state = ChannelState.PLAIN
        else:
            channel.answer_by = math.inf
            self._refusal = InvalidConfigError(
                f"delivery 'safe' needs a buffer, and {channel.link.peer} does not acknowledge: "
                "push to a buffer, or choose delivery 'fast'"
            )

    def _introduce(self, channel: Channel, stream: Stream, nonce: int) -> None:
        """Tell a buffer which stream this is, and in safe delivery where it goes on."""
        words = frame(Frame.HELLO, nonce) + frame(Frame.STREAM, stream.number)
        if self._is_safe:
            words += frame(Frame.FROM, stream.accepted)
        # Nothing of the stream can be on its way, so there is nothing to be asked.
        is_new = not stream.begun
        stream.begun = True
        self.changes += 1
        channel.outbox.append(memoryview(words))
        if self._is_safe and not is_new:
            channel.state = ChannelState.RESUMING
        else:
            channel.state = ChannelState.OPEN
            stream.lost_at = None
        self._pump(channel)

    def _acknowledged(self, channel: Channel, stream: Stream, number: int) -> None:
        stream.accept(number)
        if channel.state is not ChannelState.RESUMING:
            return
        channel.state = ChannelState.OPEN
        self.changes += 1
        stream.lost_at = None
        backlog = stream.backlog()
        logger.info(
            "stream_resumed",
            extra={"peer": channel.link.peer, "unaccepted_messages": stream.unaccepted},
        )
        channel.outbox.extend(backlog)
        self._pump(channel)

    def _pump(self, channel: Channel) -> None:
        """Write what waits, as far as the kernel takes it."""
        outbox, sendmsg = channel.outbox, channel.link.wire.sendmsg
        try:
            while outbox:
                if len(outbox) <= PIECES_PER_CALL:
                    count = sendmsg(list(outbox))
                else:
                    count = sendmsg([outbox[i] for i in range(PIECES_PER_CALL)])
                channel.sent_bytes += count
                skip(outbox, count)
        except BlockingIOError:
            self.links.want_write(channel.link, True)
        except OSError as error:
            self._drop(channel, str(error))
        except BaseException:
            # Interrupted: how much was written is not known.
            self._drop(channel, "interrupted")
            raise
        else:
            self.links.want_write(channel.link, False)

    def _drop(self, channel: Channel, problem: str) -> None:
        """Close a connection, and count what it had not delivered and nobody holds."""
        link, stream = channel.link, channel.stream
        lost = 0 if self._is_safe else channel.lost()
        self._lost += lost
        done = channel.half_closed and channel.acknowledged() >= channel.sent_bytes
        if not done:
            logger.warning(
                "connection_lost",
                extra={"peer": link.peer, "reason": problem, "lost_messages": lost},
            )
            if stream is not None and stream.begun:
                stream.lost_at = stream.lost_at or time.monotonic()
        self.changes += 1
        self._channels.remove(channel)
        del self._of_link[link]
        wanted = not self._finishing or (stream is not None and stream.lost_at is not None)
        self.links.drop(link, redial=wanted, problem=problem)
        channel.problem = problem
        self._problem = f"connection to {link.peer} lost: {problem}"

    def _expire(self, now: float) -> None:
        """Give up what has taken too long."""
        for channel in [one for one in self._channels if one.state not in USABLE]:
            if channel.answer_by > now:
                continue
            if channel.state is ChannelState.RESUMING:
                self._drop(channel, f"no answer within {HELLO_TIMEOUT_S} s")
            else:
                self._is_plain(channel)
        for target, stream in self._streams.items():
            if stream.lost_at is None or now < stream.lost_at + self._reconnect_timeout_s:
                continue
            stream.lost_at = None
            lost = stream.unaccepted if self._is_safe else 0
            if not lost:
                continue
            self._lost += lost
            self._problem = (
                f"{target.address} not reached again within {self._reconnect_timeout_s} s: "
                f"{target.problem}"
            )
            logger.error(
                "stream_given_up", extra={"peer": str(target.address), "lost_messages": lost}
            )
            # What it has lost cannot be made good: who goes on begins anew.
            self._streams[target] = Stream(self._numbers.take())
        if now >= self._check_at:
            self._check_at = now + self._check_interval_s
            for channel in list(self._channels):
                if tcp.is_dead(channel.link.sock, self._dead_after_s):
                    self._drop(channel, HOST_SILENT)
