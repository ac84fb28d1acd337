"""Segments become frames for a ZeroMQ consumer, without input or output.

Both framings count long messages in eight bytes, so one byte before its SP header makes a long
frame of a message, and the payload goes out from where it lies. Small messages are copied
together: that costs less than two entries each in the list of what is to be sent.
"""

from collections.abc import Sequence

from lclstream.buffer.runs import LEAST_UNIFORM
from lclstream.buffer.segments import Segment
from lclstream.buffer.sp import HEADER, HEADER_BYTES
from lclstream.buffer.zmtp import (
    LONG_DATA,
    LONG_HEADER_BYTES,
    SHORT_BYTES,
    SHORT_HEADER_BYTES,
    header,
    repeats,
)

# Entries of one call of sendmsg; the system's limit is 1024.
MAX_PARTS = 512
# Messages below are copied together, so much at a time: beside the buffer's memory, but only
# while it is being written.
COPIED_BYTES = 4096
BATCH_BYTES = 128 * 1024

LONG_PREFIX = memoryview(bytes((LONG_DATA,)))


class ZmtpOutlet:
    """Writes segments as ZMTP frames; used like `SpOutlet`."""

    __slots__ = ("_answer", "_parts", "_position", "segment", "wire_bytes")

    def __init__(self) -> None:
        self.segment: Segment | None = None
        self.wire_bytes = 0
        self._position = 0
        """How far of the segment's block is written or in `_parts`."""
        self._parts: list[memoryview] = []
        self._answer = b""

    def answer(self, commands: bytes | bytearray) -> None:
        """Send commands, after the segment in hand."""
        self._answer += commands

    def give(self, segment: Segment) -> None:
        """Begin with a segment."""
        self.segment = segment
        self.wire_bytes = 0
        self._position = segment.start

    def to_write(self) -> Sequence[memoryview]:
        """Return what has to be written next; empty if idle."""
        if self._is_answering():
            return (memoryview(self._answer),)
        if not self._parts and self.segment is not None:
            self._prepare(self.segment)
        return self._parts

    def written(self, count: int) -> Segment | None:
        """Take note of bytes written; return the segment, and forget it, once it is whole."""
        if self._is_answering():
            self._answer = self._answer[count:]
            return None
        segment = self.segment
        assert segment is not None  # noqa: S101
        self.wire_bytes += count
        parts, done = self._parts, 0
        while count and count >= len(parts[done]):
            count -= len(parts[done])
            done += 1
        del parts[:done]
        if count:
            parts[0] = parts[0][count:]
        if parts or self._position < segment.end:
            return None
        self.segment = None
        return segment

    def whole_messages(self, segment: Segment, wire_bytes: int) -> int:
        """Return how many messages of a segment are whole after so many bytes of it."""
        position, count = segment.start, 0
        while position < segment.end:
            (size,) = HEADER.unpack_from(segment.block.view, position)
            wire_bytes -= size + (SHORT_HEADER_BYTES if size < SHORT_BYTES else LONG_HEADER_BYTES)
            if wire_bytes < 0:
                break
            count += 1
            position += HEADER_BYTES + size
        return count

    def _is_answering(self) -> bool:
        """Whether commands go next: what was offered to be written once must stay the next."""
        is_between = self.segment is None or not (self.wire_bytes or self._parts)
        return bool(self._answer) and is_between

    def _prepare(self, segment: Segment) -> None:
        """Frame as many of the next messages as are worth one call."""
        view, position, end = segment.block.view, self._position, segment.end
        parts = self._parts
        while position < end and len(parts) < MAX_PARTS - 1:
            (size,) = HEADER.unpack_from(view, position)
            if size >= COPIED_BYTES:
                parts += (LONG_PREFIX, view[position : position + HEADER_BYTES + size])
                position += HEADER_BYTES + size
            elif parts:
                # They are copied when these are gone.
                break
            else:
                stop = min(end, position + BATCH_BYTES)
                position, copy = _copy_small(view, position, stop)
                parts.append(memoryview(copy))
                break
        self._position = position


def _copy_small(view: memoryview, start: int, end: int) -> tuple[int, bytes]:
    """Frame small messages; return where the first begins that is not, and the frames."""
    (size,) = HEADER.unpack_from(view, start)
    stride = HEADER_BYTES + size
    count = (end - start) // stride
    if count >= LEAST_UNIFORM and repeats(view, start, HEADER_BYTES, stride, count):
        stop = start + count * stride
        # An empty payload lies where its header ends.
        payloads = [view[at - size : at] for at in range(start + stride, stop + 1, stride)]
        # A separator goes before each but the first.
        return stop, header(size).join([b"", *payloads])
    parts: list[bytes | memoryview] = []
    unpack_from, position = HEADER.unpack_from, start
    while position < end:
        (size,) = unpack_from(view, position)
        following = position + HEADER_BYTES + size
        if size >= COPIED_BYTES:
            break
        if size < SHORT_BYTES:
            parts += (bytes((0, size)), view[position + HEADER_BYTES : following])
        else:
            parts += (LONG_PREFIX, view[position:following])
        position = following
    return position, b"".join(parts)
