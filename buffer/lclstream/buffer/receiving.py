"""How a consumer receives: what it reads, what it acknowledges, and when the stream is over.

Whatever has to wait is a generator, as in `lclstream.buffer.sending`.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from lclstream.buffer import tcp
from lclstream.buffer.control import CONTROL, MAGIC, Frame, frame, looks_like_control
from lclstream.buffer.links import WRITE, Link, Links, Target
from lclstream.buffer.views import Memories, MessageReader
from lclstream.core.errors import BufferClosedError, EndOfStream, StreamError

logger = logging.getLogger(__name__)

LONGEST_WAIT_S = 3600.0
# New connections come up between two reads only if somebody looks.
READS_PER_LOOK = 64
# Acknowledge together what is finished, but let nobody wait for it.
FINISHED_MESSAGES = 64
FINISHED_BYTES = 128 * 1024
# How long a buffer may take to close a connection that was ended properly.
FAREWELL_S = 1.0
CHECK_INTERVAL_S = 5.0

Steps = Generator[float, None, None]


class ReceiveTimeoutError(StreamError, TimeoutError):
    """No message came in time; more may come."""

    transient = True


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkCount:
    """What came over a connection, or over all to one peer that have ended."""

    peer: str
    is_open: bool
    messages: int
    bytes: int
    """On the wire, without handshakes."""
    acknowledged: int
    """Messages that the peer was told are finished."""


@dataclass(slots=True, eq=False)
class Source:
    """One connection, seen from the consumer."""

    link: Link
    reader: MessageReader
    recv_into: Callable[[memoryview], int]
    """The wire's; set to one that has nothing when the peer has ended."""
    messages: int = 0
    wire_bytes: int = 0
    finished: int = 0
    """Messages that the program is done with."""
    finished_bytes: int = 0
    """Payload of those that were not acknowledged yet."""
    told: int = 0
    """Messages that were acknowledged."""
    unsent: bytes = b""
    """What of the last acknowledgement the kernel did not take."""
    ended: bool = False
    """Whether the peer has ended its stream; we may still have to acknowledge."""
    greeted: bool = False
    """Whether the peer has said that it will say when its stream has ended."""
    farewell: memoryview | None = None
    """A message that says so, unless another one follows it: then it was data."""

    def count(self) -> LinkCount:
        """Return its figures."""
        return LinkCount(
            peer=self.link.peer,
            is_open=self.link.is_open and not self.ended,
            messages=self.messages,
            bytes=self.wire_bytes,
            acknowledged=self.told,
        )


@dataclass(slots=True)
class Run:
    """Messages that were read together and not handed out."""

    source: Source
    count: int


class Receiver:
    """The connections of a consumer and what comes over them; not for several threads.

    Args:
        links: the connections; owned by the receiver from now on.
        acknowledge: whether to tell the peers what is finished.
        nonce: what they were greeted with then; a buffer answers with the same.
        reconnect: whether a connection that breaks is made again.
        reconnect_timeout_s: how long it is tried where nobody listens.
        peers: when listening, how many must have come before the end of all is the end.
        max_message_bytes: a peer that announces more is cut off.
        dead_after_s: after how long a host that does not answer counts as gone.
    """

    def __init__(
        self,
        links: Links,
        *,
        acknowledge: bool,
        nonce: int,
        reconnect: bool,
        reconnect_timeout_s: float,
        peers: int,
        max_message_bytes: int,
        dead_after_s: float,
    ) -> None:
        self._hello = CONTROL.pack(MAGIC, Frame.HELLO, nonce)
        self.links = links
        self.messages: deque[memoryview] = deque()
        """What was read and not handed out."""
        self.closed = False
        self.partial = 0
        """Messages that began and never became whole because their connection broke."""
        self.returned = 0
        """Messages that were read, not handed out, and left to the buffer to send again."""
        self._acknowledge = acknowledge
        self._reconnect = reconnect
        self._reconnect_timeout_s = reconnect_timeout_s
        self._peers = peers
        self._max_message_bytes = max_message_bytes
        self._dead_after_s = dead_after_s
        self._check_interval_s = min(CHECK_INTERVAL_S, dead_after_s / 4)
        self._memories = Memories()
        self._sources: dict[Link, Source] = {}
        self._past: dict[str, LinkCount] = {}
        # Where the messages in `messages` are from, and those that were handed out.
        self._runs: deque[Run] = deque()
        self._in_hand: deque[tuple[Source, int]] = deque()
        self._broken: str | None = None
        # Of connections that were made to us: how many broke, and when those that did not
        # come back yet.
        self._losses = 0
        self._absent: deque[tuple[float, str]] = deque()
        self._reads = 0

    @property
    def in_hand(self) -> int:
        """Messages that were handed out and are not finished."""
        return len(self._in_hand)

    def counts(self) -> Sequence[LinkCount]:
        """Return the figures of every connection that stands, and by peer of those before."""
        return [*(source.count() for source in self._sources.values()), *self._past.values()]

    def read(self) -> bool:
        """Read until there is a message or nothing can be read now; return whether there is."""
        messages = self.messages
        while not messages:
            self._reads += 1
            if self._reads % READS_PER_LOOK == 0:
                self.step(0.0)
            came = False
            # A copy: a connection may end while it is read.
            for source in [*self._sources.values()]:
                came |= self._read(source)
            if not came:
                return False
        return True

    def more(self, timeout_s: float | None) -> Steps:
        """Wait until there is a message; to be called when `read` has found none.

        Raises:
            EndOfStream, ReceiveTimeoutError, BufferClosedError: as of `Pull.recv`.
        """
        deadline = time.monotonic() + (LONGEST_WAIT_S if timeout_s is None else timeout_s)
        while True:
            if self.closed:
                raise BufferClosedError("receive after close")
            self._tell_all()
            self._raise_if_over()
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0 and timeout_s is not None:
                raise ReceiveTimeoutError(f"no message within {timeout_s} s")
            yield min(max(remaining_s, 0.0), self._patience_s())
            if self.read():
                return

    def step(self, timeout_s: float) -> None:
        """Wait for events, at most for a time; what can be read is left to `more`."""
        events = self.links.wait(timeout_s)
        self._heed(events)
        if not events and self._acknowledge and timeout_s:
            for source in list(self._sources.values()):
                if tcp.is_dead(source.link.sock, self._dead_after_s):
                    self._lost(source, "peer's host does not answer")

    def look(self) -> bool:
        """Let peers in while nobody wants a message; return whether none waits to be read."""
        before = set(self._sources)
        events = self.links.wait(0.0)
        self._heed(events)
        return not any(link in before for link, _ in events)

    def _heed(self, events: Sequence[tuple[Link, int]]) -> None:
        for link, mask in events:
            source = self._sources.get(link)
            if source is None and link.is_open:
                source = self._sources[link] = Source(
                    link,
                    MessageReader(self._memories, self._max_message_bytes),
                    link.wire.recv_into,
                )
                if link.target is None and self._absent:
                    self._absent.popleft()
            elif source is not None and mask & WRITE:
                self._say(source)

    # Acknowledging.

    def take(self) -> memoryview:
        """Hand out a message that is to be acknowledged."""
        run = self._runs[0]
        run.count -= 1
        if not run.count:
            self._runs.popleft()
        message = self.messages.popleft()
        self._in_hand.append((run.source, len(message)))
        return message

    def done(self, count: int) -> None:
        """Take note that the program has finished so many messages, the oldest first."""
        for _ in range(min(count, len(self._in_hand))):
            source, size_bytes = self._in_hand.popleft()
            source.finished += 1
            source.finished_bytes += size_bytes
            if (
                source.finished_bytes >= FINISHED_BYTES
                or source.finished - source.told >= FINISHED_MESSAGES
            ):
                self._tell(source)

    def _tell_all(self) -> None:
        for source in list(self._sources.values()):
            if source.finished > source.told:
                self._tell(source)

    def _tell(self, source: Source) -> None:
        """Acknowledge what is finished."""
        if source.link.is_open and source.finished > source.told and len(source.unsent) == 0:
            source.unsent = frame(Frame.ACK, source.finished)
            source.told, source.finished_bytes = source.finished, 0
            self._say(source)

    def _say(self, source: Source) -> None:
        while source.unsent:
            try:
                count = source.link.wire.send(memoryview(source.unsent))
            except BlockingIOError:
                self.links.want_write(source.link, True)
                return
            except OSError as error:
                # Reading tells more, but where the peer has ended nothing is read any more.
                source.unsent = b""
                if source.ended:
                    self._drop(source, redial=False, problem=str(error))
                return
            source.unsent = source.unsent[count:]
        self.links.want_write(source.link, False)
        if source.ended and source.told == source.messages:
            self._drop(source, redial=False)
        else:
            self._tell(source)

    # Reading.

    def _read(self, source: Source) -> bool:
        """Read once; return whether something was to be read."""
        reader = source.reader
        try:
            count = source.recv_into(reader.space())
        except BlockingIOError:
            return False
        except OSError as error:
            self._lost(source, str(error))
        else:
            if count:
                messages = reader.filled(count)
                if self._acknowledge:
                    messages = self._without_control(source, messages)
                self.messages.extend(messages)
                source.wire_bytes += count
                source.messages += len(messages)
                if self._acknowledge and messages:
                    self._runs.append(Run(source, len(messages)))
                if reader.fault is not None:
                    self._lost(source, str(reader.fault))
            elif reader.partial:
                self._lost(source, "closed inside a message")
            else:
                self._ended(source)
        return True

    def _without_control(
        self, source: Source, messages: Sequence[memoryview]
    ) -> Sequence[memoryview]:
        """Take out what a buffer says between the messages."""
        if source.farewell is not None and messages:
            messages, source.farewell = [source.farewell, *messages], None
        if not any(looks_like_control(message) for message in messages):
            return messages
        data = list(messages)
        if not source.greeted and self._hello in data:
            data.remove(memoryview(self._hello))
            source.greeted = True
        total = source.messages + len(data) - 1
        if source.greeted and data and data[-1] == CONTROL.pack(MAGIC, Frame.BYE, total):
            source.farewell = data.pop()
        return data

    def _ended(self, source: Source) -> None:
        if source.greeted and source.farewell is None:
            # The buffer was killed, perhaps; another one may go on with what it has kept.
            self._lost(source, "closed without a farewell")
            return
        logger.info("stream_ended", extra={"peer": source.link.peer})
        source.ended = True
        source.recv_into = _nothing
        if self._acknowledge and source.told < source.messages:
            # The buffer waits for the rest of the acknowledgements.
            self.links.ignore(source.link)
            if source.link.target is not None:
                source.link.target.ended = True
        else:
            self._drop(source, redial=False)

    def _lost(self, source: Source, problem: str) -> None:
        logger.warning("connection_lost", extra={"peer": source.link.peer, "reason": problem})
        self.partial += source.reader.partial
        if self._acknowledge:
            self._return_unread(source)
        self._drop(source, redial=self._reconnect, problem=problem)
        story = f"connection to {source.link.peer} lost: {problem}"
        if not self._reconnect:
            self._broken = story
        elif source.link.target is None:
            self._losses += 1
            self._absent.append((time.monotonic(), story))

    def _return_unread(self, source: Source) -> None:
        """Forget what was not handed out: it was not acknowledged, so it will come again."""
        kept: deque[memoryview] = deque()
        runs: deque[Run] = deque()
        for run in self._runs:
            messages = [self.messages.popleft() for _ in range(run.count)]
            if run.source is source:
                self.returned += run.count
            else:
                kept.extend(messages)
                runs.append(run)
        self.messages.extend(kept)
        self._runs = runs

    def _drop(self, source: Source, *, redial: bool, problem: str = "closed by the peer") -> None:
        self._remember(source)
        del self._sources[source.link]
        self.links.drop(source.link, redial=redial, problem=problem)

    def _remember(self, source: Source) -> None:
        """Add the figures of a connection that ends to those before."""
        link = source.link
        before = self._past.get(link.peer)
        self._past[link.peer] = LinkCount(
            peer=link.peer,
            is_open=False,
            messages=source.messages + (before.messages if before else 0),
            bytes=source.wire_bytes + (before.bytes if before else 0),
            acknowledged=source.told + (before.acknowledged if before else 0),
        )

    def _raise_if_over(self) -> None:
        if self._broken:
            raise BufferClosedError(self._broken)
        for target in self.links.targets:
            if self._is_gone(target):
                raise BufferClosedError(
                    f"connection to {target.address} lost and not taken up again: {target.problem}"
                )
        if self.links.targets:
            over = all(target.ended for target in self.links.targets)
        else:
            if self._absent and self._absent[0][0] + self._reconnect_timeout_s <= time.monotonic():
                raise BufferClosedError(f"{self._absent[0][1]}, and it did not come back")
            standing = any(not source.ended for source in self._sources.values())
            over = self.links.ever - self._losses >= self._peers and not standing
        if over:
            raise EndOfStream("every peer has ended its stream")

    def _is_gone(self, target: Target) -> bool:
        return (
            target.lost_at is not None
            and not target.ended
            and target.refused
            and time.monotonic() - target.lost_at >= self._reconnect_timeout_s
        )

    def _patience_s(self) -> float:
        """Return how long nothing needs to be decided."""
        lost = any(target.lost_at and not target.ended for target in self.links.targets)
        if lost or self._absent:
            return self._reconnect_timeout_s / 10
        return self._check_interval_s if self._acknowledge else LONGEST_WAIT_S

    # The end.

    def close(self) -> None:
        """Close all connections; a peer learns when messages were left unread."""
        self.closed = True
        if self.messages and not self._acknowledge:
            for link in self.links.ready:
                tcp.reset_on_close(link.sock)
        for source in self._sources.values():
            self._remember(source)
        self.links.close()
        self._sources.clear()
        self.messages.clear()
        self._runs.clear()
        self._in_hand.clear()

    def leave(self) -> Steps:
        """Acknowledge what is finished and part from the peers properly."""
        self.closed = True
        if not self._acknowledge:
            return
        self._tell_all()
        deadline = time.monotonic() + FAREWELL_S
        scratch = memoryview(bytearray(FINISHED_BYTES))
        leaving = list(self._sources.values())
        told: set[Source] = set()
        while leaving:
            for source in list(leaving):
                if not self._part(source, scratch, told):
                    leaving.remove(source)
            if time.monotonic() >= deadline:
                return
            if leaving:
                yield max(deadline - time.monotonic(), 0.0)

    def _part(self, source: Source, scratch: memoryview, told: set[Source]) -> bool:
        """Go on with leaving a peer; return whether there is more to wait for."""
        if source.ended or not source.link.is_open:
            # Unless the last word is still to be taken, nothing is.
            return bool(source.unsent) and source.link.is_open
        try:
            if source not in told and not source.unsent and source.link.wire.end():
                told.add(source)
            # What is unread would make the kernel reset the connection, and with it take the
            # acknowledgement away from the peer.
            while source.link.wire.recv_into(scratch):
                pass
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False


def _nothing(view: memoryview) -> int:
    raise BlockingIOError
