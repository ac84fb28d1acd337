"""The bytes of one ZeroMQ producer become segments in SP framing, without input or output.

Bytes are received behind what a block holds already:

    | whole messages, given out | tail: SP header and a part of the payload | here |

The rest of the tail comes to its place and is never copied. Frames behind it are rewritten
where they lie; small ones get longer, up to four times, so no more is read than is certain to
fit then. Behind a message of some size only the header of the next one is read, so that its
payload comes to its place, too. A header that is not whole waits outside of the block.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import xxhash

from lclstream.buffer.memory import CHUNK_BYTES, Block
from lclstream.buffer.runs import LEAST_UNIFORM
from lclstream.buffer.segments import Segment
from lclstream.buffer.sp import HEADER, HEADER_BYTES, LARGE_BYTES, check_size
from lclstream.buffer.zmtp import (
    LONG_DATA,
    LONG_HEADER_BYTES,
    SHORT_HEADER_BYTES,
    Flag,
    answer,
    command_span,
    repeats,
)
from lclstream.core.errors import DecodeError
from lclstream.core.ledger import Tally, digest64

if TYPE_CHECKING:
    from lclstream.buffer.control import Frame

# Behind messages from here on nothing but the next header is read.
BIG_BYTES = 16 * 1024
HEADER_ROOM_BYTES = 64
# An empty message is so much longer in SP framing.
GROWTH = HEADER_BYTES // SHORT_HEADER_BYTES
LEAST_ROOM_BYTES = CHUNK_BYTES // 4
# Where in its block a large message begins. The kernel copies it almost twice as slowly to where
# it is a few bytes further into a page than it was, as a ZMTP header makes it be.
OWN_START = 2048

Take = Callable[[int], Block | None]


class ZmtpIntake:
    """Receives the messages of one connection; used like `Intake`.

    Args:
        take: returns a block of at least so many bytes, with a reference, or None.
        max_message_bytes: a header that claims more is refused before anything is allocated.
        digests: whether to compute the digest of what comes.
    """

    def __init__(self, take: Take, max_message_bytes: int, *, digests: bool = True) -> None:
        self.fault: DecodeError | None = None
        """Why nothing that follows can be understood."""
        self.controls: list[tuple[Frame, int]] = []
        self.has_more = False
        self.answers = bytearray()
        """What is to be sent to the producer: take it out."""
        self._take = take
        self._max_message_bytes = max_message_bytes
        self._digests = digests
        self._block: Block | None = None
        self._is_own = False
        """Whether the block was taken for the tail alone."""
        self._start = self._end = 0
        self._size = 0
        """Payload of the tail, or of the last message."""
        self._missing = 0
        """How much of the tail's payload has not come; 0 if there is no tail."""
        self._head = b""
        # The same hash as core.ledger.digest64, piece by piece.
        self._digest = xxhash.xxh3_64()

    @property
    def partial(self) -> bool:
        """Whether a message has begun and is not whole."""
        return self._missing > 0 or bool(self._head)

    @property
    def is_between(self) -> bool:
        """Return False: what is next lies with what has come, or epoll tells of it."""
        return False

    @property
    def bodiless_bytes(self) -> int | None:
        """None: what has not come must come this way."""
        return None

    def body_taken(self) -> None:
        """Never happens: nobody is offered a body."""
        raise AssertionError

    @property
    def overshoots(self) -> bool:
        """Whether it holds memory above the bound."""
        return self._block is not None and self._block.overshoot

    def space(self) -> memoryview | None:
        """Return where the next bytes go, or None if there is no memory now; never empty."""
        if not self._make_room():
            return None
        block = self._block
        assert block is not None  # noqa: S101
        begin = self._end + len(self._head)
        block.view[self._end : begin] = self._head
        room = block.size_bytes - self._end - self._missing
        if self._is_own or self._size >= BIG_BYTES:
            behind = LONG_HEADER_BYTES if room >= HEADER_ROOM_BYTES else 0
        else:
            behind = room // GROWTH
        limit = self._end + self._missing + behind
        if not self._missing:
            limit = max(limit, begin + LONG_HEADER_BYTES)
        return block.view[begin:limit]

    def filled(self, count: int) -> Segment | None:
        """Take in bytes that were written to `space`; return the messages that are whole now.

        If `fault` is set afterwards the connection is of no more use.
        """
        block = self._block
        assert block is not None  # noqa: S101
        received, self._head = self._end + len(self._head) + count, b""
        tally = Tally(digest=0 if self._digests else None)
        if self._missing:
            came = min(self._missing, count)
            if self._is_own and self._digests:
                # What has just come is still in the processor's cache.
                self._digest.update(block.view[self._end : self._end + came])
            self._missing -= came
            self._end += came
            if self._missing:
                return None
            tally.add_counted(self._size, self._tail_digest(block))
            self._is_own = False
        return self._rewrite(block, received, tally)

    def close(self) -> None:
        """Let all memory go."""
        if self._block is not None:
            self._block.release()
            self._block = None

    def _tail_digest(self, block: Block) -> int | None:
        if not self._digests:
            return None
        if self._is_own:
            return self._digest.intdigest()
        return digest64(block.view[self._start + HEADER_BYTES : self._end])

    def _rewrite(self, block: Block, received: int, tally: Tally) -> Segment | None:
        """Rewrite the frames behind a tail that is whole; the one that is not is the new tail."""
        frames = translate(
            block.view, self._end, received, self._max_message_bytes, self.answers, tally
        )
        end = self._end
        for piece in frames.pieces:
            block.view[end : end + len(piece)] = piece
            end += len(piece)
        segment = Segment(block, self._start, end, tally) if tally.messages else None
        self.fault = frames.fault
        self._start = self._end = end
        self._size = frames.size if frames.size is not None else self._size
        if frames.tail is None:
            self._head = frames.rest
        else:
            self._end += len(frames.tail)
            block.view[self._start : self._end] = frames.tail
            self._missing = HEADER_BYTES + self._size - len(frames.tail)
        if not self._missing and (block.references == 1 or block.size_bytes > CHUNK_BYTES):
            # Nobody needs it: an idle connection holds nothing.
            self.close()
            self._start = self._end = 0
        return segment

    def _make_room(self) -> bool:
        """Have a block with room for the tail and what follows."""
        block = self._block
        if self._missing and self._size >= LARGE_BYTES:
            return self._is_own or self._begin_own()
        if block is not None and block.size_bytes == CHUNK_BYTES:
            if block.references == 1 and not self._missing:
                self._start = self._end = 0
            needed = HEADER_ROOM_BYTES if self._missing else len(self._head) + LEAST_ROOM_BYTES
            if CHUNK_BYTES - self._end >= self._missing + needed:
                return True
            if block.references == 1:
                # What was before is sent: the tail can move to the front.
                self._move_to(block)
                return True
        chunk = self._take(CHUNK_BYTES)
        if chunk is None:
            return False
        self._move_to(chunk)
        return True

    def _begin_own(self) -> bool:
        own = self._take(OWN_START + HEADER_BYTES + self._size)
        if own is None:
            return False
        self._move_to(own, OWN_START)
        self._is_own = True
        if self._digests:
            self._digest.reset()
            self._digest.update(own.view[OWN_START + HEADER_BYTES : self._end])
        return True

    def _move_to(self, block: Block, start: int = 0) -> None:
        """Go on at a place in a block."""
        if self._block is not None:
            end = start + self._end - self._start
            block.view[start:end] = self._block.view[self._start : self._end]
            self._start, self._end = start, end
        if block is not self._block:
            self.close()
            self._block = block


class Translation(NamedTuple):
    """Frames in SP framing."""

    pieces: list[bytes]
    """Whole messages."""
    size: int | None
    """Payload of the message that comes last; None if there is none."""
    tail: bytes | None
    """That message as far as it has come, if it is not whole."""
    rest: bytes
    """Begin of a frame of which not even the header is whole, or of a command."""
    fault: DecodeError | None


def translate(
    view: memoryview,
    start: int,
    end: int,
    max_message_bytes: int,
    answers: bytearray,
    tally: Tally,
) -> Translation:
    """Translate frames; nothing of the result refers to the memory they are in.

    Args:
        view: the memory.
        start: where a frame begins.
        end: where nothing was received yet.
        max_message_bytes: a larger message is a fault.
        answers: answers to commands are appended.
        tally: whole messages are added; its digest is None if it is not to be computed.
    """
    pieces: list[bytes] = []
    size: int | None = None
    position = start
    run = _uniform(view, start, end, max_message_bytes)
    if run is not None:
        size, payloads, position = run
        digest = None if tally.digest is None else sum(map(digest64, payloads))
        tally.merge(Tally(len(payloads), size * len(payloads), 0, digest))
        # A separator goes before each but the first.
        pieces.append(HEADER.pack(size).join([b"", *payloads]))
    parts: list[bytes | memoryview] = []
    tail, rest, fault = None, b"", None
    unpack_from, pack = HEADER.unpack_from, HEADER.pack
    while position < end:
        flags = view[position]
        if flags == LONG_DATA:
            payload = position + LONG_HEADER_BYTES
        elif not flags:
            payload = position + SHORT_HEADER_BYTES
        elif flags & ~Flag.LONG == Flag.COMMAND:
            try:
                payload, following = command_span(view, position, end)
            except DecodeError as error:
                fault = error
                break
            if following > end:
                rest = bytes(view[position:end])
                break
            answer(answers, view[payload:following])
            position = following
            continue
        else:
            fault = _bad_flags(flags)
            break
        if payload > end:
            rest = bytes(view[position:end])
            break
        size = unpack_from(view, position + 1)[0] if flags else view[position + 1]
        fault = check_size(size, max_message_bytes)
        if fault is not None:
            break
        following = payload + size
        if following > end:
            tail = pack(size) + view[payload:end]
            break
        parts += (pack(size), view[payload:following])
        digest = None if tally.digest is None else digest64(view[payload:following])
        tally.add_counted(size, digest)
        position = following
    pieces.append(b"".join(parts))
    return Translation(pieces, size, tail, rest, fault)


def _bad_flags(flags: int) -> DecodeError:
    if flags & Flag.MORE and flags <= Flag.MORE | Flag.LONG:
        return DecodeError(
            "a message of several frames: send it as one, or it would not arrive as it was sent"
        )
    return DecodeError(f"unknown ZMTP frame flags {flags:#04x}")


def _uniform(
    view: memoryview, start: int, end: int, max_message_bytes: int
) -> tuple[int, list[memoryview], int] | None:
    """Return payload size, payloads and end of a run of messages of one size, if there is one."""
    if end - start < LONG_HEADER_BYTES or view[start] not in {0, LONG_DATA}:
        return None
    if view[start]:
        header_bytes, size = LONG_HEADER_BYTES, HEADER.unpack_from(view, start + 1)[0]
    else:
        header_bytes, size = SHORT_HEADER_BYTES, view[start + 1]
    stride = header_bytes + size
    count = (end - start) // stride
    if count < LEAST_UNIFORM or size > max_message_bytes:
        return None
    if not repeats(view, start, header_bytes, stride, count):
        return None
    stop = start + count * stride
    # An empty payload lies where its header ends.
    payloads = [view[at - size : at] for at in range(start + stride, stop + 1, stride)]
    return size, payloads, stop
