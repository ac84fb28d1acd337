"""Messages that lie on disk, with or without a copy in memory, as the queue handles them."""

import os
from typing import TYPE_CHECKING, Protocol

from lclstream.buffer.disklog import Place, Span
from lclstream.buffer.memory import Block, Memory
from lclstream.buffer.segments import Segment
from lclstream.core.ledger import Tally

if TYPE_CHECKING:
    import socket


class Owner(Protocol):
    """Hears what becomes of records."""

    def consumed(self, spans: list[Span]) -> None:
        """Parts are not wanted any more."""

    def progressed(self, position: int, messages: int) -> None:
        """So many messages from a position on are done with, in a part that still is wanted."""


class Stored:
    """A record on disk, in place of a block of memory; for the loop's thread.

    It knows which parts of it are still wanted by a segment: what no segment wants any more has
    been consumed.

    Args:
        place: of the record.
        memory: where a copy in memory comes from.
        owner: hears of what is not wanted any more.
    """

    __slots__ = (
        "_base",
        "_block",
        "_memory",
        "_owner",
        "_wanted",
        "broken",
        "is_loading",
        "is_pinned",
        "place",
    )

    def __init__(self, place: Place, memory: Memory, owner: Owner) -> None:
        self.place = place
        self.is_pinned = False
        """Whether somebody looks at the copy in memory."""
        self.is_loading = False
        """Whether a copy in memory is on its way."""
        self.broken = False
        """Whether the disk does not give it back."""
        self._memory = memory
        self._owner = owner
        self._block: Block | None = None
        self._base = 0
        self._wanted: list[tuple[int, int]] = []

    @property
    def is_loaded(self) -> bool:
        """Whether there is a copy in memory."""
        return self._block is not None

    @property
    def is_wanted(self) -> bool:
        """Whether any segment refers to it."""
        return bool(self._wanted)

    @property
    def view(self) -> memoryview:
        """The bytes; read from the disk, now, if there is no copy in memory.

        Raises:
            OSError: the disk does not give them back.
        """
        if self._block is None:
            block = self._memory.take(self.place.length, stuck=True)
            if block is None:
                raise MemoryError(f"no memory for {self.place.length} bytes")
            try:
                read(self.place, block)
            except OSError:
                block.release()
                raise
            self.loaded(block, 0)
        assert self._block is not None  # noqa: S101
        return self._block.view[self._base : self._base + self.place.length]

    def loaded(self, block: Block, base: int) -> None:
        """Take over a copy in memory that begins at `base` of a block, and a reference to it."""
        if self._block is not None or not self._wanted:
            block.release()
            return
        self._block, self._base = block, base

    def unload(self) -> None:
        """Let the copy in memory go."""
        self.is_pinned = False
        if self._block is not None:
            self._block.release()
            self._block = None

    def want(self, start: int, end: int) -> None:
        """Take note of a segment that refers to a part."""
        self._wanted.append((start, end))

    def let_go(self, start: int, end: int, *, is_consumed: bool) -> None:
        """Take note of a segment that refers to a part no more."""
        self._wanted.remove((start, end))
        if is_consumed:
            parts = [(start, end)]
            for other in self._wanted:
                parts = [piece for part in parts for piece in _without(part, other)]
            if parts:
                self._owner.consumed([Span(self.place, *part) for part in parts])
        if not self._wanted:
            self.unload()

    def progressed(self, start: int, messages: int) -> None:
        """Take note that the first messages of a part are done with."""
        self._owner.progressed(self.place.position + start, messages)

    def hold(self) -> None:
        """Nothing: segments say what they want with `want`."""

    def release(self) -> None:
        """Nothing: segments say what they want no more with `let_go`."""


def _without(part: tuple[int, int], other: tuple[int, int]) -> list[tuple[int, int]]:
    """Return what of a range lies outside another one."""
    start, end = part
    pieces = [(start, min(end, other[0])), (max(start, other[1]), end)]
    return [(begin, stop) for begin, stop in pieces if begin < stop]


class DiskSegment(Segment):
    """Whole messages of a record on disk."""

    __slots__ = ("stored",)

    def __init__(
        self, stored: Stored, start: int, end: int, tally: Tally, since: float = 0.0
    ) -> None:
        stored.want(start, end)
        super().__init__(stored, start, end, tally, since)
        self.stored = stored

    def release(self) -> None:
        """The messages are consumed: they are not needed any more."""
        self.stored.let_go(self.start, self.end, is_consumed=True)

    def forget(self) -> None:
        """Let go of it without saying that the messages are consumed."""
        self.stored.let_go(self.start, self.end, is_consumed=False)

    def progressed(self, messages: int) -> None:
        """Take note that so many of its messages are done with, and not all."""
        self.stored.progressed(self.start, messages)

    def whole_messages(self, size_bytes: int) -> int:
        """Return how many messages lie whole in so many bytes from its start."""
        if size_bytes < self.size_bytes and self.tally.messages == 1:
            return 0
        try:
            return super().whole_messages(size_bytes)
        except OSError:
            # Rather twice than not at all.
            self.stored.broken = True
            return 0

    def cut(self, messages: int) -> tuple[Tally, Segment | None]:
        """Part it after so many messages and let go of it."""
        if not messages:
            return Tally(), self
        try:
            return super().cut(messages)
        except OSError:
            self.stored.broken = True
            return Tally(), self

    def part(self, start: int, tally: Tally) -> Segment:
        """Return what begins at `start`, as a segment of its own."""
        return DiskSegment(self.stored, start, self.end, tally, self.since)

    def send(self, sock: "socket.socket", done: int) -> int:
        """Have the kernel send what follows after so many bytes; return how many it took.

        Raises:
            BlockingIOError: the connection takes nothing now.
            OSError: the connection is broken, or, if `broken` is set then, the disk is.
        """
        place = self.stored.place
        offset = place.offset + self.start + done
        try:
            count = os.sendfile(sock.fileno(), place.file.fd, offset, self.size_bytes - done)
        except (BlockingIOError, ConnectionError):
            raise
        except OSError:
            self.stored.broken = True
            raise
        if not count:
            self.stored.broken = True
            raise OSError("the file is too short")
        return count


def read(place: Place, block: Block) -> None:
    """Read a record to the beginning of a block; from any thread.

    Raises:
        OSError: the disk does not give it back.
    """
    done = 0
    while done < place.length:
        view = block.view[done : place.length]
        count = os.preadv(place.file.fd, [view], place.offset + done)
        if not count:
            raise OSError("the file is too short")
        done += count
