"""Incoming messages as views into large memories that are used again once nobody looks.

A `memoryview` of a memory keeps it alive; a memory without views is free to be overwritten.
CPython's reference counts tell: each view that was made from the memory itself holds exactly
one reference, also on behalf of all its slices and of arrays made from them.
"""

import mmap
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lclstream.buffer.sp import HEADER_BYTES, LARGE_BYTES, check_size, split

if TYPE_CHECKING:
    from lclstream.core.errors import DecodeError

CHUNK_BYTES = 256 * 1024
HUGE_PAGE_BYTES = 2 * 1024 * 1024
# So many memories are remembered for use again; others end with their last view.
KEPT_MEMORIES = 8


def allocate(size_bytes: int) -> mmap.mmap:
    """Return zeroed private memory, in huge pages where that pays."""
    memory = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if size_bytes >= HUGE_PAGE_BYTES:
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def references(memories: list[mmap.mmap], index: int) -> int:
    """Return how many references a memory has, those of this question included."""
    return sys.getrefcount(memories[index])


# What `references` says of a memory that only its list knows.
REFERENCES_WHEN_FREE = references([allocate(mmap.PAGESIZE)], 0)


class Memories:
    """Hands out memory that no view refers to; for one thread."""

    def __init__(self) -> None:
        self._kept: list[mmap.mmap] = []

    def take(self, size_bytes: int) -> memoryview:
        """Return a view of that size; its memory comes back by itself when all views are gone."""
        for index in range(len(self._kept)):
            fits = size_bytes <= len(self._kept[index]) <= 2 * size_bytes + CHUNK_BYTES
            if fits and references(self._kept, index) <= REFERENCES_WHEN_FREE:
                # Least recently used first out.
                self._kept.append(self._kept.pop(index))
                return memoryview(self._kept[-1])[:size_bytes]
        fresh = allocate(max(size_bytes, mmap.PAGESIZE))
        self._kept = [*self._kept[1 - KEPT_MEMORIES :], fresh]
        return memoryview(fresh)[:size_bytes]


class MessageReader:
    """Cuts the bytes of one connection into messages, without input or output.

    Small messages are slices of a chunk of 256 KiB, large ones get a memory of their own. Ask
    `space` where the next bytes shall go, then tell `filled` how many came.
    """

    def __init__(self, memories: Memories, max_message_bytes: int) -> None:
        self.fault: DecodeError | None = None
        """Why nothing that follows can be understood."""
        self._memories = memories
        self._max_message_bytes = max_message_bytes
        self._chunk = memories.take(CHUNK_BYTES)
        self._start = self._end = 0
        self._body: memoryview | None = None
        self._body_end = 0

    @property
    def partial(self) -> bool:
        """Whether a message has begun and is not whole."""
        return self._body is not None or self._end > self._start

    def space(self) -> memoryview:
        """Return where the next bytes go; never empty."""
        if self._body is not None:
            return self._body[self._body_end :]
        return self._chunk[self._end :]

    def filled(self, count: int) -> Sequence[memoryview]:
        """Take in bytes that were written to `space`; return the messages that are whole now.

        If `fault` is set afterwards the connection is of no more use.
        """
        if self._body is not None:
            self._body_end += count
            if self._body_end < len(self._body):
                return ()
            whole, self._body = self._body, None
            return (whole,)
        self._end += count
        messages, self._start, next_bytes = split(self._chunk, self._start, self._end)
        self.fault = check_size(next_bytes, self._max_message_bytes)
        if self.fault is not None:
            return messages
        if next_bytes is not None and next_bytes >= LARGE_BYTES:
            self._begin_body(next_bytes)
        self._make_room()
        return messages

    def _begin_body(self, size_bytes: int) -> None:
        """Give a large message its own memory and move there what has come of it."""
        here = self._chunk[self._start + HEADER_BYTES : self._end]
        self._body = self._memories.take(size_bytes)
        self._body[: len(here)] = here
        self._body_end = len(here)
        self._start = self._end

    def _make_room(self) -> None:
        """Leave enough of the chunk free for a message that has begun, or for many."""
        rest = self._chunk[self._start : self._end]
        needed = HEADER_BYTES + LARGE_BYTES if rest else CHUNK_BYTES // 2
        if CHUNK_BYTES - self._start >= needed:
            return
        # Messages in the old chunk may still be looked at.
        chunk = self._memories.take(CHUNK_BYTES)
        chunk[: len(rest)] = rest
        self._chunk, self._start, self._end = chunk, 0, len(rest)
