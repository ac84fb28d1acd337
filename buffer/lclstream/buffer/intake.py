"""The bytes of one SP producer become segments, without input or output.

A mode says where the next bytes go:

- *chunk*: to the tail of a chunk of 256 KiB. The run of whole messages in it becomes a segment;
  a large message that has begun is moved to a body.
- *header*: the 8 bytes of a header to a place of their own, after a large message. What they
  say leads to a body, or to a chunk that begins with them.
- *body*: to a block of the message's size, its header in front. When whole it becomes a segment
  of one message, and a header is next.

A producer of ours puts control frames between its messages; they come out beside the segments.
"""

from collections.abc import Callable
from enum import StrEnum

import xxhash

from lclstream.buffer.control import CONTROL_BYTES, FRAME_BYTES, Frame, decode, frame
from lclstream.buffer.memory import CHUNK_BYTES, Block
from lclstream.buffer.runs import Run, walk
from lclstream.buffer.segments import Segment
from lclstream.buffer.sp import HEADER, HEADER_BYTES, LARGE_BYTES, check_size
from lclstream.core.errors import DecodeError
from lclstream.core.ledger import Tally, digest64

# What a message that has begun may need, and the least that is worth a read.
MESSAGE_ROOM_BYTES = HEADER_BYTES + LARGE_BYTES
CHUNK_ROOM_BYTES = CHUNK_BYTES // 2

Take = Callable[[int], Block | None]


class Mode(StrEnum):
    """What the next bytes are."""

    CHUNK = "chunk"
    HEADER = "header"
    BODY = "body"


class Intake:
    """Receives the messages of one connection.

    Ask `space` where the next bytes shall go; None means that there is no memory for them now:
    ask again when there may be. Then tell `filled` how many came, and call `filled(0)` as long
    as `has_more`. Control frames that came before the segment are in `controls` then: take them
    out.

    Args:
        take: returns a block of at least so many bytes, with a reference, or None.
        max_message_bytes: a header that claims more is refused before anything is allocated.
        zeros: a block that begins with zeros and stays.
        digests: whether to compute the digest of what comes.
        nonce: what the producer was greeted with; control frames are understood from one that
            begins with HELLO and the same number.
    """

    def __init__(
        self,
        take: Take,
        max_message_bytes: int,
        zeros: Block,
        *,
        digests: bool = True,
        nonce: int | None = None,
    ) -> None:
        self.fault: DecodeError | None = None
        """Why nothing that follows can be understood."""
        self.controls: list[tuple[Frame, int]] = []
        self.answers = bytearray()
        """What the framing itself has to say; SP has nothing."""
        self.has_more = False
        """Whether there is more in what was received already."""
        self._digests = digests
        self._greeting = None if nonce is None else frame(Frame.HELLO, nonce)
        self._is_ours = False
        self._is_literal = False
        self._take = take
        self._zeros = zeros
        self._max_message_bytes = max_message_bytes
        self._mode = Mode.CHUNK
        self._block: Block | None = None
        self._start = self._end = 0
        self._body_end = 0
        self._wanted_body: int | None = None
        # The same hash as core.ledger.digest64, piece by piece.
        self._digest = xxhash.xxh3_64()
        self._header = bytearray(HEADER_BYTES)
        self._header_end = 0

    @property
    def partial(self) -> bool:
        """Whether a message has begun and is not whole."""
        return self._mode is Mode.BODY or self._header_end > 0 or self._end > self._start

    @property
    def bodiless_bytes(self) -> int | None:
        """Size of a large message of which only the header has come; None if there is none."""
        return self._wanted_body if self._block is None else None

    @property
    def is_between(self) -> bool:
        """Whether a header is next, or the body that it has announced: worth another look."""
        return self._mode is Mode.HEADER or self.bodiless_bytes is not None

    def body_taken(self) -> None:
        """The body of that message was taken from the connection by somebody else."""
        self._wanted_body = None
        self._reset(Mode.HEADER)

    @property
    def overshoots(self) -> bool:
        """Whether it holds memory above the bound."""
        return self._block is not None and self._block.overshoot

    def space(self) -> memoryview | None:
        """Return where the next bytes go, or None if there is no memory now; never empty."""
        if self._mode is Mode.HEADER:
            return memoryview(self._header)[self._header_end :]
        if self._mode is Mode.BODY:
            if self._wanted_body is not None and not self._begin_body(self._wanted_body):
                return None
        elif not self._make_room():
            return None
        assert self._block is not None  # noqa: S101
        limit = self._body_end if self._mode is Mode.BODY else self._block.size_bytes
        return self._block.view[self._end : limit]

    def filled(self, count: int) -> Segment | None:
        """Take in bytes that were written to `space`; return the messages that are whole now.

        If `fault` is set afterwards the connection is of no more use.
        """
        if self._mode is Mode.HEADER:
            return self._filled_header(count)
        begin, self._end = self._end, self._end + count
        return self._filled_body(begin) if self._mode is Mode.BODY else self._filled_chunk()

    def close(self) -> None:
        """Let all memory go."""
        if self._block is not None:
            self._block.release()
            self._block = None

    def _filled_header(self, count: int) -> Segment | None:
        self._header_end += count
        if self._header_end < HEADER_BYTES:
            return None
        (size,) = HEADER.unpack(self._header)
        self.fault = check_size(size, self._max_message_bytes)
        if not size:
            # It is whole already, and needs no memory.
            self._reset(Mode.CHUNK)
            tally = Tally()
            tally.add_counted(0, digest64(b"") if self._digests else None)
            return Segment(self._zeros, 0, HEADER_BYTES, tally)
        if size >= LARGE_BYTES:
            self._mode, self._wanted_body = Mode.BODY, size
        else:
            self._mode = Mode.CHUNK
        return None

    def _filled_body(self, begin: int) -> Segment | None:
        block, end = self._block, self._end
        assert block is not None  # noqa: S101
        if self._digests:
            # What has just come is still in the processor's cache.
            self._digest.update(block.view[begin:end])
        if end < self._body_end:
            return None
        tally = Tally()
        digest = self._digest.intdigest() if self._digests else None
        tally.add_counted(end - HEADER_BYTES, digest)
        segment = Segment(block, 0, end, tally)
        self._reset(Mode.HEADER)
        return segment

    def _filled_chunk(self) -> Segment | None:
        block = self._block
        assert block is not None  # noqa: S101
        self.has_more = False
        if self._greeting is not None and not self._is_greeted(block.view):
            return None
        run = self._walk(block.view)
        while run.is_control and not run.messages and self.fault is None:
            self._take_control(block.view)
            run = self._walk(block.view)
        self.fault = self.fault or check_size(run.next_bytes, self._max_message_bytes)
        segment = None
        if run.messages:
            tally = Tally(run.messages, run.payload_bytes, 0, run.digest)
            segment = Segment(block, self._start, run.stop, tally)
        self._start = run.stop
        self.has_more = run.is_control and self.fault is None
        if self._start == self._end and block.references == 1:
            # Nobody needs it: an idle connection holds nothing.
            self._reset(Mode.CHUNK)
        elif run.next_bytes is not None and run.next_bytes >= LARGE_BYTES:
            self._mode, self._wanted_body = Mode.BODY, run.next_bytes
        return segment

    def _walk(self, view: memoryview) -> Run:
        if not self._is_literal:
            return walk(
                view,
                self._start,
                self._end,
                digests=self._digests,
                controls=self._is_ours,
                limit_bytes=self._max_message_bytes,
            )
        # This one message, whatever it looks like; what follows is walked when asked again.
        after = min(self._start + FRAME_BYTES, self._end)
        run = walk(view, self._start, after, digests=self._digests)
        self._is_literal = not run.messages
        return run._replace(is_control=bool(run.messages) and after < self._end)

    def _is_greeted(self, view: memoryview) -> bool:
        """Look at the first message; return whether it is settled what the producer is."""
        assert self._greeting is not None  # noqa: S101
        here = self._end - self._start
        if here < HEADER_BYTES:
            return False
        (size,) = HEADER.unpack_from(view, self._start)
        if size == CONTROL_BYTES:
            if here < FRAME_BYTES:
                return False
            if view[self._start : self._start + FRAME_BYTES] == self._greeting:
                self._is_ours = True
                self._start += FRAME_BYTES
        self._greeting = None
        return True

    def _take_control(self, view: memoryview) -> None:
        payload = view[self._start + HEADER_BYTES : self._start + FRAME_BYTES]
        try:
            kind, number = decode(payload)
        except DecodeError as error:
            self.fault = error
            return
        self._start += FRAME_BYTES
        if kind is Frame.LITERAL:
            self._is_literal = True
        else:
            self.controls.append((kind, number))

    def _reset(self, mode: Mode) -> None:
        self.close()
        self._mode = mode
        self._start = self._end = self._header_end = 0

    def _begin_body(self, size_bytes: int) -> bool:
        """Give a large message its own block and move there what has come of it."""
        body = self._take(HEADER_BYTES + size_bytes)
        if body is None:
            return False
        self._body_end = HEADER_BYTES + size_bytes
        self._wanted_body = None
        self._move_to(body)
        if self._digests:
            self._digest.reset()
            self._digest.update(body.view[HEADER_BYTES : self._end])
        return True

    def _make_room(self) -> bool:
        """Have room in a chunk for the message that has begun, or for many."""
        if self._block is not None:
            needed = MESSAGE_ROOM_BYTES if self._end > self._start else CHUNK_ROOM_BYTES
            if self._block.size_bytes - self._start >= needed:
                return True
            if self._block.references == 1:
                # What was before is sent: the rest can move to the front.
                self._move_within(self._block)
                return True
        chunk = self._take(CHUNK_BYTES)
        if chunk is None:
            return False
        self._move_to(chunk)
        return True

    def _move_within(self, block: Block) -> None:
        rest = self._end - self._start
        block.view[:rest] = block.view[self._start : self._end]
        self._start, self._end = 0, rest

    def _move_to(self, block: Block) -> None:
        """Go on in another block with what has come of the next message."""
        if self._block is None:
            here = memoryview(self._header)[: self._header_end]
        else:
            here = self._block.view[self._start : self._end]
        block.view[: len(here)] = here
        self._start, self._end, self._header_end = 0, len(here), 0
        self.close()
        self._block = block
