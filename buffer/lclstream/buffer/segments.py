"""What the buffer queues: runs of whole messages as they lie in memory, and where they go."""

from collections import deque
from collections.abc import Iterator

from lclstream.buffer.memory import Block
from lclstream.buffer.sp import HEADER, HEADER_BYTES
from lclstream.core.ledger import MODULUS, Tally, digest64


class Segment:
    """Whole messages, headers included, in one block; holds a reference to it."""

    __slots__ = ("block", "end", "queued", "start", "tally")

    def __init__(self, block: Block, start: int, end: int, tally: Tally) -> None:
        block.hold()
        self.block = block
        self.start = start
        self.end = end
        self.tally = tally
        self.queued = False
        """Whether it waits in the queue."""

    def release(self) -> None:
        """Let the memory go."""
        self.block.release()

    def cut(self, position: int) -> tuple[Tally, "Segment | None"]:
        """Part it where somebody stopped to write it.

        Args:
            position: how far of the block was written.

        Returns:
            What was written whole, and the rest, from the first message that was not.
        """
        sent = Tally()
        start = self.start
        while start + HEADER_BYTES <= position:
            (size,) = HEADER.unpack_from(self.block.view, start)
            following = start + HEADER_BYTES + size
            if following > position:
                break
            sent.add_counted(size, digest64(self.block.view[start + HEADER_BYTES : following]))
            start = following
        if start == self.end:
            return sent, None
        return sent, Segment(self.block, start, self.end, minus(self.tally, sent))


def minus(whole: Tally, part: Tally) -> Tally:
    """Return what a tally counts beyond a part of it."""
    return Tally(
        whole.messages - part.messages,
        whole.bytes - part.bytes,
        whole.events - part.events,
        (whole.digest - part.digest) % MODULUS,
    )


class Outlet:
    """One consumer as the queue sees it: idle, or writing one segment; no input or output."""

    __slots__ = ("position", "segment")

    def __init__(self) -> None:
        self.segment: Segment | None = None
        self.position = 0

    def give(self, segment: Segment) -> None:
        """Begin with a segment."""
        self.segment = segment
        self.position = segment.start

    def to_write(self) -> memoryview:
        """Return what has to be written next; empty if idle."""
        if self.segment is None:
            return memoryview(b"")
        return self.segment.block.view[self.position : self.segment.end]

    def written(self, count: int) -> Tally | None:
        """Take note of bytes written; return what the segment held once it is written whole."""
        segment = self.segment
        assert segment is not None  # noqa: S101
        self.position += count
        if self.position < segment.end:
            return None
        self.segment = None
        segment.release()
        return segment.tally

    def abandon(self) -> tuple[Tally, Segment | None]:
        """Stop in the middle: return what was written whole, and what has to go elsewhere."""
        segment = self.segment
        if segment is None:
            return Tally(), None
        self.segment = None
        sent, rest = segment.cut(self.position)
        segment.release()
        return sent, rest


class Queue:
    """First in, first out; each segment to the consumer that has been idle the longest."""

    def __init__(self) -> None:
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

    def put_back(self, segment: Segment) -> None:
        """Put what a consumer did not take before all others."""
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
