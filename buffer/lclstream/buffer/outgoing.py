"""What a producer has sent and may have to send again, without any input or output."""

import secrets
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import cast

from lclstream.buffer.control import Frame, frame
from lclstream.core.errors import DecodeError

Piece = bytes | bytearray | memoryview
Payload = Piece | Sequence[Piece]

# The lower bits of a stream's number are the connection, those above name the producer.
CONNECTION_BITS = 16
PRODUCER_BITS = 48
LITERAL = frame(Frame.LITERAL, 0)


def pieces_of(payload: Payload) -> list[memoryview]:
    """Return the bytes of a payload as views; an empty one has none."""
    # Anything else than a list or tuple is one buffer, an array for instance.
    parts = payload if isinstance(payload, list | tuple) else [cast("Piece", payload)]
    views = [memoryview(part) for part in parts]
    # A view without elements cannot be cast.
    return [view.cast("B") for view in views if view.nbytes]


def kept(view: memoryview) -> memoryview:
    """Return a view of bytes that nobody changes: the same ones, or a copy."""
    return view if isinstance(view.obj, bytes) else memoryview(bytes(view))


def ends_of(base: int, sizes: Iterable[int]) -> list[int]:
    """Return where each of several messages ends that follow each other."""
    return [base + end for end in accumulate(sizes)]


def skip(pieces: deque[memoryview], count: int) -> None:
    """Drop bytes, and empty pieces, from the front."""
    while pieces and count >= len(pieces[0]):
        count -= len(pieces.popleft())
    if count:
        pieces[0] = pieces[0][count:]


class StreamNumbers:
    """Numbers the streams of one producer."""

    def __init__(self) -> None:
        self._producer = secrets.randbits(PRODUCER_BITS)
        self._next = 0

    def take(self) -> int:
        """Return a number that no other stream has."""
        number = self._producer << CONNECTION_BITS | self._next % (1 << CONNECTION_BITS)
        self._next += 1
        return number


@dataclass(frozen=True, slots=True)
class Held:
    """Messages that were given to a stream together."""

    end: int
    """Number of the first message of the stream that comes after them."""
    sizes: Sequence[int]
    """Length of each on the wire."""
    pieces: Sequence[memoryview]
    size_bytes: int


class Stream:
    """The messages of one connection of a producer, and of those that follow it when it breaks.

    It counts them. In safe delivery it also holds them until the buffer has accepted them.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.begun = False
        """Whether a buffer has heard of it."""
        self.count = 0
        """Messages that were sent, from its beginning."""
        self.accepted = 0
        """Messages that the buffer has taken over."""
        self.held_bytes = 0
        self.lost_at: float | None = None
        """When its connection broke; None while one stands or before the first."""
        self._held: deque[Held] = deque()

    @property
    def unaccepted(self) -> int:
        """How many messages are held."""
        return self.count - self.accepted

    def hold(self, pieces: Sequence[memoryview], sizes: Sequence[int]) -> None:
        """Take in whole messages, framed as they go over the wire.

        Args:
            pieces: their bytes, which nobody may change any more.
            sizes: the length of each message on the wire.
        """
        self.count += len(sizes)
        size_bytes = sum(sizes)
        self.held_bytes += size_bytes
        self._held.append(Held(self.count, sizes, pieces, size_bytes))

    def accept(self, count: int) -> None:
        """Let go of what the buffer has: so many messages from the beginning of the stream.

        Raises:
            DecodeError: there were not so many.
        """
        if count > self.count:
            raise DecodeError(f"{count} messages acknowledged, but only {self.count} were sent")
        self.accepted = max(self.accepted, count)
        while self._held and self._held[0].end <= self.accepted:
            self.held_bytes -= self._held.popleft().size_bytes

    def backlog(self) -> deque[memoryview]:
        """Return the bytes of all messages that are not accepted, in order."""
        pieces: deque[memoryview] = deque()
        for held in self._held:
            pieces.extend(held.pieces)
        if self._held:
            first = self._held[0]
            done = self.accepted - (first.end - len(first.sizes))
            skip(pieces, sum(first.sizes[:done]))
        return pieces
