"""Counts that the ends keep and the benchmark reads, in memory that both map."""

import mmap
import struct
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

# Bytes, messages, whether it is connected, messages acknowledged; the rest fills a cache line.
SLOT = struct.Struct("4Q32x")


class Count(NamedTuple):
    """What one end, or several, have sent or received so far."""

    bytes: int
    messages: int
    ready: int
    acknowledged: int


class Counters:
    """A file of slots, one for each end.

    Resource handling: a context manager; the creator makes the file, the ends only open it.
    """

    def __init__(self, path: Path, slots: int = 0) -> None:
        self.path = path
        if slots:
            path.write_bytes(bytes(slots * SLOT.size))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._map.close()

    def read(self, slots: range) -> Count:
        """Return the sum over some ends."""
        counts = [SLOT.unpack_from(self._map, slot * SLOT.size) for slot in slots]
        return Count(*(sum(column) for column in zip(*counts, strict=True)))

    def write(self, slot: int, count: Count) -> None:
        """Set the counts of one end."""
        SLOT.pack_into(self._map, slot * SLOT.size, *count)

    def clear(self, slots: range) -> None:
        """Begin anew."""
        for slot in slots:
            self.write(slot, Count(0, 0, 0, 0))
