"""What the buffer queues: runs of whole messages as they lie in memory, and where they go."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from lclstream.buffer.sp import HEADER, HEADER_BYTES
from lclstream.core.ledger import MODULUS, Tally, digest64

if TYPE_CHECKING:
    from lclstream.buffer.journal import Recovered
    from lclstream.buffer.streams import Stream


class Held(Protocol):
    """What a segment lies in: a block of memory, or a record on disk."""

    @property
    def view(self) -> memoryview:
        """The bytes."""

    def hold(self) -> None:
        """Add a reference."""

    def release(self) -> None:
        """Drop a reference."""


class Words:
    """What the buffer itself has to say; stays as long as somebody looks at it."""

    def __init__(self, text: bytes) -> None:
        self.view = memoryview(text)

    def hold(self) -> None:
        """Nothing is counted."""

    def release(self) -> None:
        """Nothing is counted."""


class Segment:
    """Whole messages, headers included, in one block; holds a reference to it."""

    __slots__ = ("block", "end", "queued", "sequence", "since", "start", "stream", "tally")

    def __init__(self, block: Held, start: int, end: int, tally: Tally, since: float = 0.0) -> None:
        block.hold()
        self.block = block
        self.start = start
        self.end = end
        self.tally = tally
        self.since = since
        """When its first message was whole."""
        self.queued = False
        """Whether it waits in the queue."""
        self.stream: Stream | None = None
        """What it came over, if the producer has named it."""
        self.sequence = 0
        """Number of its first message there."""

    @property
    def size_bytes(self) -> int:
        """Its messages with their headers."""
        return self.end - self.start

    def release(self) -> None:
        """Let the memory go."""
        self.block.release()

    def progressed(self, messages: int) -> None:
        """Take note that so many of its messages are done with, and not all."""

    def whole_messages(self, size_bytes: int) -> int:
        """Return how many messages lie whole in so many bytes from its start."""
        if size_bytes >= self.size_bytes:
            return self.tally.messages
        position, end, count = self.start, self.start + size_bytes, 0
        while end - position >= HEADER_BYTES:
            (size,) = HEADER.unpack_from(self.block.view, position)
            position += HEADER_BYTES + size
            count += position <= end
        return count

    def cut(self, messages: int) -> tuple[Tally, "Segment | None"]:
        """Part it after so many messages and let go of it.

        Returns:
            What is counted of the first part, and the second part if there is any.
        """
        if messages >= self.tally.messages:
            self.release()
            return self.tally, None
        first = Tally()
        view, position = self.block.view, self.start
        for _ in range(messages):
            (size,) = HEADER.unpack_from(view, position)
            payload, position = position + HEADER_BYTES, position + HEADER_BYTES + size
            digest = None if self.tally.digest is None else digest64(view[payload:position])
            first.add_counted(size, digest)
        if not messages:
            return first, self
        rest = self.part(position, minus(self.tally, first))
        self.release()
        return first, rest

    def part(self, start: int, tally: Tally) -> "Segment":
        """Return what begins at `start`, as a segment of its own."""
        return Segment(self.block, start, self.end, tally, self.since)


def minus(whole: Tally, part: Tally) -> Tally:
    """Return what a tally counts beyond a part of it."""
    digest = None
    if whole.digest is not None and part.digest is not None:
        digest = (whole.digest - part.digest) % MODULUS
    return Tally(
        whole.messages - part.messages,
        whole.bytes - part.bytes,
        whole.events - part.events,
        digest,
    )


class Outlet(Protocol):
    """One consumer as the queue sees it: idle, or writing one segment; no input or output."""

    segment: Segment | None
    """What is being written."""
    wire_bytes: int
    """How much of it was written, in the framing of the connection."""

    def give(self, segment: Segment) -> None:
        """Begin with a segment."""

    def to_write(self) -> Sequence[memoryview]:
        """Return what has to be written next; empty if idle."""

    def written(self, count: int) -> Segment | None:
        """Take note of bytes written; return the segment, and forget it, once it is whole."""

    def whole_messages(self, segment: Segment, wire_bytes: int) -> int:
        """Return how many messages of a segment are whole after so many bytes of it."""


class SpOutlet:
    """Writes segments as they lie in memory."""

    __slots__ = ("segment", "wire_bytes")

    def __init__(self) -> None:
        self.segment: Segment | None = None
        self.wire_bytes = 0

    def give(self, segment: Segment) -> None:
        """Begin with a segment."""
        self.segment = segment
        self.wire_bytes = 0

    def to_write(self) -> Sequence[memoryview]:
        """Return what has to be written next; empty if idle."""
        segment = self.segment
        if segment is None:
            return ()
        return (segment.block.view[segment.start + self.wire_bytes : segment.end],)

    def written(self, count: int) -> Segment | None:
        """Take note of bytes written; return the segment, and forget it, once it is whole."""
        segment = self.segment
        assert segment is not None  # noqa: S101
        self.wire_bytes += count
        if self.wire_bytes < segment.size_bytes:
            return None
        self.segment = None
        return segment

    def whole_messages(self, segment: Segment, wire_bytes: int) -> int:
        """Return how many messages of a segment are whole after so many bytes of it."""
        return segment.whole_messages(wire_bytes)


class Queue:
    """First in, first out; each segment to the consumer that has been idle the longest.

    This one lies in memory alone; `spill.ShelvedQueue` goes on in files.
    """

    is_durable = False
    """Whether what is in it outlives the process."""
    alarm = ""
    """Why it cannot take what it should; empty if nothing is wrong."""

    def __init__(self) -> None:
        self.kept: Callable[[Segment], None] = lambda _: None
        """Hears of each segment that is in the custody of a durable queue."""
        self._segments: deque[Segment] = deque()
        self._idle: deque[Outlet] = deque()
        self.messages = 0
        self.bytes = 0
        """Payload waiting to be given to a consumer."""
        self.peak_bytes = 0
        self.writing = 0
        """Segments that consumers are writing."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits and nothing is being written."""
        return not self._segments and not self.writing

    @property
    def has_waiting(self) -> bool:
        """Whether something waits to be given to a consumer."""
        return bool(self._segments)

    @property
    def disk_bytes(self) -> int:
        """What the messages take of the disk."""
        return 0

    @property
    def messages_on_disk(self) -> int:
        """How many messages wait on disk alone."""
        return 0

    @property
    def is_short(self) -> bool:
        """Whether it needs memory itself, before any that could come in."""
        return False

    @property
    def holds_memory(self) -> bool:
        """Whether memory becomes free when consumers go on, or the disk."""
        return not self.is_empty

    @property
    def oldest(self) -> float | None:
        """When the message came in that has waited the longest; None if none waits."""
        return self._segments[0].since if self._segments else None

    def put(self, segment: Segment) -> None:
        """Append a segment that came in."""
        self._segments.append(segment)
        segment.queued = True
        self._count(segment.tally)

    def extend(self, waiting: Segment, segment: Segment) -> bool:
        """Let one that came in join one that waits, if it lies right behind it.

        Without that a stalled stream of tiny messages would need more memory for the segments
        than for the messages.
        """
        if not waiting.queued or waiting.block is not segment.block or waiting.end != segment.start:
            return False
        waiting.end = segment.end
        waiting.tally.merge(segment.tally)
        self._count(segment.tally)
        segment.release()
        return True

    def put_back(self, segments: Sequence[Segment]) -> None:
        """Put what a consumer did not take before all others, in its order."""
        for segment in reversed(segments):
            self._segments.appendleft(segment)
            segment.queued = True
            self._count(segment.tally)

    def ready(self, outlet: Outlet) -> None:
        """Take note of a consumer that has nothing to write."""
        self._idle.append(outlet)

    def leave(self, outlet: Outlet) -> None:
        """Forget a consumer."""
        if outlet in self._idle:
            self._idle.remove(outlet)

    def idle(self) -> Iterable[Outlet]:
        """Return the consumers that have nothing to write, who has waited longest first."""
        return self._idle

    def matches(self) -> Iterator[Outlet]:
        """Give segments to idle consumers; yield each consumer that got one."""
        while self._segments and self._idle:
            segment = self._segments.popleft()
            segment.queued = False
            self.messages -= segment.tally.messages
            self.bytes -= segment.tally.bytes
            self.writing += 1
            outlet = self._idle.popleft()
            outlet.give(segment)
            yield outlet

    def make_room(self, size_bytes: int) -> None:
        """Have memory become free, now or soon, if that is possible."""

    def load(self, segment: Segment, then: Callable[[], None]) -> None:
        """Have a segment in memory, then go on."""
        del segment
        then()

    def written(self, segment: Segment) -> None:
        """Take note that a consumer has been written a segment."""

    def stream_ended(self, stream: int, *, is_finished: bool) -> None:
        """Take note that a stream has ended, or goes on after all."""

    def recover(self, now: float) -> "Recovered | None":
        """Begin with what a process before has left, if anything."""
        del now
        return None

    def deadline(self) -> float | None:
        """Return when `expire` has something to do."""
        return None

    def expire(self, now: float) -> None:
        """Do what time has brought."""

    def close(self, *, is_complete: bool) -> None:
        """Let go of everything else, after `clear`."""

    def finished(self) -> None:
        """Take note that a consumer is done with its segment, one way or the other."""
        self.writing -= 1

    def clear(self) -> Tally:
        """Drop everything that waits; return what it was."""
        dropped = Tally()
        for segment in self._segments:
            dropped.merge(segment.tally)
            segment.queued = False
            segment.release()
        self._segments.clear()
        self.messages = self.bytes = 0
        return dropped

    def _count(self, tally: Tally) -> None:
        self.messages += tally.messages
        self.bytes += tally.bytes
        self.peak_bytes = max(self.peak_bytes, self.bytes)
