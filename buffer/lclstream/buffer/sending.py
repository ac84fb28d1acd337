"""How a producer sends: which connection gets the next messages, and what becomes of them.

Whatever has to wait is a generator that yields for how long at most; who drives it lets that
time pass, or less if something happens, and calls `Sender.step` before it goes on. So the
blocking and the asynchronous end are the same but for how they wait.
"""

import logging
import time
from collections import deque
from collections.abc import Generator, Sequence

from lclstream.buffer.config import Delivery
from lclstream.buffer.control import CONTROL_BYTES, Frame, frame, looks_like_control
from lclstream.buffer.links import Links
from lclstream.buffer.outgoing import LITERAL, Stream, ends_of, kept, skip
from lclstream.buffer.producer_channels import Channel, ChannelState, ProducerChannels
from lclstream.buffer.sp import HEADER_BYTES, header
from lclstream.core.errors import (
    DeliveryError,
    InvalidConfigError,
    LclstreamError,
    TooLargeError,
    UnavailableError,
)

logger = logging.getLogger(__name__)

# Smaller messages that follow each other closely are copied together and sent as one run.
SMALL_BYTES = 32 * 1024
RUN_BYTES = 256 * 1024
# A message that comes later than this after the one before is sent at once.
LONE_AFTER_S = 0.0001
# Ask for acknowledgements rarely: it is a system call.
ENDS_BEFORE_ASKING = 1024
FIRST_LOOK_S = 0.0005
LAST_LOOK_S = 0.02

Steps = Generator[float, None, None]


class Sender(ProducerChannels):
    """What goes over the connections of a producer; not for several threads at once.

    Args:
        links: the connections; owned by the sender from now on.
        delivery: whether to hold messages until a buffer has accepted them.
        send_timeout_s: how long a message may wait for a peer to take it.
        connect_timeout_s: how long it may wait while there is no connection at all.
        reconnect_timeout_s: how long a broken connection with messages on it is waited for.
        in_flight_bytes: bound on what is held.
        max_message_bytes: refuse a larger message.
        dead_after_s: after how long a host that does not answer counts as gone.
    """

    def __init__(
        self,
        links: Links,
        *,
        delivery: Delivery,
        send_timeout_s: float,
        connect_timeout_s: float,
        reconnect_timeout_s: float,
        in_flight_bytes: int,
        max_message_bytes: int,
        dead_after_s: float,
    ) -> None:
        super().__init__(
            links,
            is_safe=delivery is Delivery.SAFE,
            reconnect_timeout_s=reconnect_timeout_s,
            dead_after_s=dead_after_s,
        )
        self.undelivered = 0
        """Messages known to be lost."""
        self.run_messages = 0
        """Small messages that wait to be sent together."""
        self._send_timeout_s = send_timeout_s
        self._connect_timeout_s = min(connect_timeout_s, send_timeout_s)
        self._in_flight_bytes = in_flight_bytes
        self._max_message_bytes = max_message_bytes
        self._run = bytearray()
        self._run_sizes: list[int] = []
        self._last = 0.0
        # In the order of sending: a stream, how many messages it had then, and how many of
        # them were new. Only what is not known to be accepted.
        self._entrusted: deque[tuple[Stream, int, int]] = deque()
        self._settled = 0

    @property
    def settled(self) -> int:
        """How many messages a buffer has accepted, up to the first that none has."""
        self._settle_accepted()
        return self._settled

    def _settle_accepted(self) -> None:
        entrusted = self._entrusted
        while entrusted and entrusted[0][0].accepted >= entrusted[0][1]:
            self._settled += entrusted.popleft()[2]

    def _remember(self, stream: Stream, messages: int) -> None:
        """Note that so many messages are now the last ones of a stream."""
        self._settle_accepted()
        streams = self._streams.values()
        # What comes behind a message whose stream was given up will not count any more.
        if not self._entrusted or any(self._entrusted[0][0] is each for each in streams):
            self._entrusted.append((stream, stream.count, messages))

    def check_size(self, size_bytes: int) -> None:
        """Refuse a message that is too large.

        Raises:
            TooLargeError: a receiver would cut the connection and lose what follows.
        """
        if size_bytes > self._max_message_bytes:
            raise TooLargeError(
                f"a message of {size_bytes} bytes is above the limit of {self._max_message_bytes}"
            )

    # Messages.

    def queue(self, pieces: Sequence[memoryview], size_bytes: int) -> bool:
        """Add a small message to the run; return whether the run is to be flushed now."""
        now = time.monotonic()
        lone = now - self._last > LONE_AFTER_S
        self._last = now
        self._run += header(size_bytes)
        for piece in pieces:
            self._run += piece
        self._run_sizes.append(HEADER_BYTES + size_bytes)
        self.run_messages += 1
        return lone or len(self._run) >= RUN_BYTES

    def take_back(self) -> None:
        """Take the last message out of the run: it was not sent."""
        if self._run_sizes:
            del self._run[-self._run_sizes.pop() :]
            self.run_messages -= 1

    def send(self, pieces: Sequence[memoryview], size_bytes: int) -> Steps:
        """Send one message by itself, and before it the run.

        Raises:
            UnavailableError, DeliveryError: as of `Push.send`.
        """
        yield from self.flush_run()
        literal = size_bytes == CONTROL_BYTES and looks_like_control(b"".join(pieces))
        yield from self._write(
            deque([memoryview(header(size_bytes)), *pieces]),
            deque([HEADER_BYTES + size_bytes]),
            literal=literal,
        )

    def settle(self) -> Steps:
        """Wait until all that was sent is acknowledged.

        Raises:
            UnavailableError, DeliveryError: as of `Push.settle`.
        """
        yield from self.flush()
        deadline = time.monotonic() + self._send_timeout_s
        pause_s = FIRST_LOOK_S
        while self.unaccepted or not all(self._has_arrived(each) for each in self._channels):
            self._raise_if_lost(0)
            if time.monotonic() >= deadline:
                raise UnavailableError(f"nothing acknowledged within {self._send_timeout_s} s")
            # No event tells that the kernel has got an acknowledgement.
            yield min(pause_s, self._patience_s(deadline))
            pause_s = min(2 * pause_s, LAST_LOOK_S)
        self._raise_if_lost(0)

    def _has_arrived(self, channel: Channel) -> bool:
        return self._is_safe or channel.acknowledged() >= channel.sent_bytes

    def send_end(self) -> Steps:
        """Send an empty message to every peer that is connected, or to the first that will be.

        Raises:
            UnavailableError, DeliveryError: as of `Push.send`.
        """
        yield from self.flush()
        deadline = time.monotonic() + self._send_timeout_s
        connect_deadline = time.monotonic() + self._connect_timeout_s
        self.step(0.0)
        while self.links.is_greeting or self.links.is_attempting:
            if time.monotonic() >= connect_deadline:
                break
            yield self._patience_s(connect_deadline)
        if not self._channels:
            yield from self._write(deque([memoryview(header(0))]), deque([HEADER_BYTES]))
            return
        for channel in list(self._channels):
            while channel.is_open and not channel.is_usable:
                if time.monotonic() >= deadline:
                    raise UnavailableError(f"no answer from {channel.link.peer}")
                yield self._patience_s(deadline)
            if channel.is_open:
                left, sizes = deque([memoryview(header(0))]), deque([HEADER_BYTES])
                yield from self._give(channel, left, sizes, deadline)

    def flush_run(self) -> Steps:
        """Send the run of small messages.

        Raises:
            UnavailableError, DeliveryError: as of `Push.send`.
        """
        if not self._run_sizes:
            return
        left = deque([memoryview(self._run)])
        sizes = deque(self._run_sizes)
        self._run, self._run_sizes, self.run_messages = bytearray(), [], 0
        try:
            yield from self._write(left, sizes)
        except DeliveryError:
            # They are counted already.
            raise
        except BaseException:
            # What was not sent, be it for an interruption, goes out with the next run.
            self._run, self._run_sizes = bytearray().join(left), list(sizes)
            self.run_messages = len(sizes)
            raise

    def flush(self) -> Steps:
        """Hand everything to the kernel.

        Raises:
            UnavailableError, DeliveryError: as of `Push.send`.
        """
        yield from self.flush_run()
        deadline = time.monotonic() + self._send_timeout_s
        while any(channel.outbox for channel in self._channels):
            if time.monotonic() >= deadline:
                raise UnavailableError(f"messages not taken within {self._send_timeout_s} s")
            yield self._patience_s(deadline)
        self._raise_if_lost(0)

    def _write(self, left: deque[memoryview], sizes: deque[int], *, literal: bool = False) -> Steps:
        """Write whole messages to one connection, or the rest of them to another.

        Args:
            left: their bytes, headers included; those that were sent are taken away.
            sizes: the length of each message on the wire, likewise.
            literal: whether this is one message that looks like a control frame.
        """
        deadline = time.monotonic() + self._send_timeout_s
        size_bytes = sum(sizes)
        while sizes:
            channel = yield from self._turn(deadline, size_bytes)
            if channel is None:
                self._raise_if_lost(len(sizes))
                raise self._unavailable(size_bytes)
            yield from self._give(channel, left, sizes, deadline, literal=literal)

    def _give(
        self,
        channel: Channel,
        left: deque[memoryview],
        sizes: deque[int],
        deadline: float,
        *,
        literal: bool = False,
    ) -> Steps:
        """Give whole messages to one connection, as far as it takes them."""
        if channel.state is ChannelState.UNDECIDED:
            channel.state = ChannelState.PLAIN
        prefix = LITERAL if literal and channel.state is ChannelState.OPEN else b""
        if self._is_safe and channel.stream is not None:
            yield from self._entrust(channel, channel.stream, left, sizes, prefix, deadline)
        else:
            yield from self._hand_over(channel, left, sizes, prefix, deadline)

    def _entrust(
        self,
        channel: Channel,
        stream: Stream,
        left: deque[memoryview],
        sizes: deque[int],
        prefix: bytes,
        deadline: float,
    ) -> Steps:
        """Give messages to a stream, which keeps them until they are accepted."""
        pieces = [kept(piece) if len(sizes) == 1 else piece for piece in left]
        wire_sizes = list(sizes)
        if prefix:
            pieces.insert(0, memoryview(prefix))
            wire_sizes[0] += len(prefix)
        stream.hold(pieces, wire_sizes)
        self._remember(stream, len(sizes))
        left.clear()
        sizes.clear()
        channel.outbox.extend(pieces)
        self._pump(channel)
        # Whatever happens now: they are in the stream's care. To wait keeps the pace.
        while channel.outbox and channel.is_open and not self._has_alternative():
            if time.monotonic() >= deadline:
                return
            yield self._patience_s(deadline)

    def _has_alternative(self) -> bool:
        """Return whether the next message could go out at once over another connection."""
        return len(self._channels) > 1 and any(
            channel.is_usable and channel.is_writable() for channel in self._channels
        )

    def _hand_over(
        self,
        channel: Channel,
        left: deque[memoryview],
        sizes: deque[int],
        prefix: bytes,
        deadline: float,
    ) -> Steps:
        """Write messages to a connection as far as it takes them."""
        begun = channel.sent_bytes
        ends = ends_of(begun + len(prefix), sizes)
        channel.ends.extend(ends)
        if prefix:
            channel.outbox.append(memoryview(prefix))
        channel.outbox.extend(left)
        problem = "interrupted"
        try:
            self._pump(channel)
            while channel.outbox and channel.is_open:
                if time.monotonic() >= deadline:
                    taken = channel.sent_bytes - begun
                    problem = f"only {taken} bytes taken within {self._send_timeout_s} s"
                    break
                yield self._patience_s(deadline)
        finally:
            is_whole = not channel.outbox
            self._settle(channel, left, sizes, begun, ends, problem)
        if not is_whole:
            self._raise_if_lost(len(sizes))
            if time.monotonic() >= deadline:
                if channel.is_open:
                    raise self._unavailable(0)
                raise UnavailableError(
                    f"connection to {channel.link.peer} given up: {channel.problem}"
                )

    def _settle(
        self,
        channel: Channel,
        left: deque[memoryview],
        sizes: deque[int],
        begun: int,
        ends: Sequence[int],
        problem: str,
    ) -> None:
        """Forget what was written whole; a message that was only begun ends its connection."""
        whole = sum(end <= channel.sent_bytes for end in ends)
        if channel.stream is not None and channel.state is ChannelState.OPEN:
            channel.stream.count += whole
        if whole == len(ends):
            left.clear()
            sizes.clear()
        for _ in range(min(whole, len(sizes))):
            skip(left, sizes.popleft())
        if channel.outbox and channel.is_open:
            # What OpenSSL has seen it must get again.
            if channel.link.wire.can_splice and channel.sent_bytes in (begun, *ends):
                channel.outbox.clear()
                while channel.ends and channel.ends[-1] > channel.sent_bytes:
                    channel.ends.pop()
            else:
                self._drop(channel, problem)
        elif len(channel.ends) >= ENDS_BEFORE_ASKING and channel.is_open:
            channel.acknowledged()

    def _turn(self, deadline: float, size_bytes: int) -> Generator[float, None, Channel | None]:
        """Return the connection whose turn it is; None if messages were lost or none in time."""
        connect_deadline = time.monotonic() + self._connect_timeout_s
        self.step(0.0)
        while True:
            if self._refusal is not None:
                raise self._refusal
            usable = [channel for channel in self._channels if channel.is_usable]
            has_room = self._has_room(size_bytes)
            if has_room:
                for channel in usable:
                    if channel.is_writable():
                        if len(usable) > 1:
                            self._channels.remove(channel)
                            self._channels.append(channel)
                        return channel
            now = time.monotonic()
            patient = usable or self._is_returning(now)
            until = deadline if patient else min(deadline, connect_deadline)
            if self._lost or now >= until:
                return None
            if has_room:
                for channel in usable:
                    self.links.want_write(channel.link, True)
            try:
                yield self._patience_s(until)
            finally:
                for channel in usable:
                    self.links.want_write(channel.link, bool(channel.outbox))

    def _has_room(self, size_bytes: int) -> bool:
        if not self._is_safe:
            return True
        held_bytes = sum(stream.held_bytes for stream in self._streams.values())
        # One message that is larger than the bound goes alone.
        return not held_bytes or held_bytes + size_bytes <= self._in_flight_bytes

    def _unavailable(self, size_bytes: int) -> LclstreamError:
        if not any(channel.is_usable for channel in self._channels):
            return UnavailableError(
                f"no connection within {self._connect_timeout_s} s: {self.links.problems}"
            )
        urls = ", ".join(self.links.urls)
        if not self._has_room(size_bytes):
            return UnavailableError(
                f"nothing acknowledged within {self._send_timeout_s} s by {urls}, and "
                f"in_flight_bytes = {self._in_flight_bytes} are reached"
            )
        return UnavailableError(f"no message taken within {self._send_timeout_s} s by {urls}")

    def _raise_if_lost(self, unsent: int) -> None:
        if self._lost:
            count, self._lost = self._lost + unsent, 0
            self.undelivered += count
            raise DeliveryError(f"{count} messages not delivered: {self._problem}", count)

    # The end.

    def finish(self, timeout_s: float) -> Steps:
        """Send the rest, end every stream, wait until all has arrived; counts what does not.

        In fast delivery the peers' kernels must have acknowledged every byte, in safe delivery
        the buffer every message.
        """
        deadline = time.monotonic() + timeout_s
        try:
            self._send_timeout_s = max(deadline - time.monotonic(), 0.0)
            self._connect_timeout_s = min(self._connect_timeout_s, self._send_timeout_s)
            yield from self.flush_run()
        except (DeliveryError, InvalidConfigError) as error:
            logger.warning("flush_failed", extra={"reason": str(error)})
        except UnavailableError as error:
            logger.warning("flush_failed", extra={"reason": str(error)})
        self.undelivered += len(self._run_sizes)
        # A connection may have come up that nobody has looked at.
        self.step(0.0)
        self._finishing = True
        for target in self.links.targets:
            # Who was never there is not waited for any more.
            target.ended = not (target.linked or self._streams[target].lost_at is not None)
        pause_s = FIRST_LOOK_S
        while True:
            for channel in list(self._channels):
                self._end(channel)
            now = time.monotonic()
            if not (self._channels or self._is_worth_waiting()):
                break
            if self._refusal is not None or now >= deadline:
                break
            # No event tells that the kernel has got an acknowledgement.
            yield min(pause_s, self._patience_s(deadline))
            pause_s = min(2 * pause_s, LAST_LOOK_S)
        if not self._is_safe:
            self._lost += sum(channel.lost() for channel in self._channels)
        self.undelivered += self._lost + self.unaccepted
        self._lost = 0

    def _is_worth_waiting(self) -> bool:
        """Return whether a connection has to come up before all is said."""
        for target, stream in self._streams.items():
            if (
                stream.lost_at is not None
                and target.refused
                and not (self._is_safe and stream.unaccepted)
            ):
                # It has everything; that nothing more comes it cannot be told.
                stream.lost_at = None
        return self.links.is_greeting or self._is_returning(time.monotonic())

    def _end(self, channel: Channel) -> None:
        """Go on with the end of a connection's stream."""
        stream = channel.stream
        if channel.state is ChannelState.OPEN and stream is not None and not channel.said_bye:
            channel.outbox.append(memoryview(frame(Frame.BYE, stream.count)))
            channel.said_bye = True
            self._pump(channel)
        if not channel.is_open or channel.outbox or not channel.is_usable:
            return
        if self._is_safe and stream is not None and stream.unaccepted:
            return
        try:
            channel.half_closed = channel.half_closed or channel.link.wire.end()
        except OSError as error:
            self._drop(channel, str(error))
            return
        if channel.half_closed and channel.acknowledged() >= channel.sent_bytes:
            # Unread bytes would make the kernel reset the connection.
            self._listen(channel)
            if channel.is_open:
                self._drop(channel, "done")
