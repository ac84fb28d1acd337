"""Records of messages on disk: a head of 80 bytes, then a run of messages as on the wire.

    magic 8s | position u64 | length u64 | stream u64 | sequence u64 | messages u32 | flags u32
    | digest u64 | checksum u64 | committed u64 | checksum of the head u64        little endian

Positions count the bytes of the runs, heads left out, from the beginning of the log on; they
number messages and parts of runs alike. `committed` is the position up to which everything was
on disk for certain when the record was written, so that what is damaged below it was damaged
later, and what is damaged above it was merely never finished. The checksum of the head is
seeded with a key of the log: no payload can pretend to be a record.

No input or output here but reading.
"""

import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

import xxhash

MAGIC = b"LCLRUN1\n"
HEAD = struct.Struct("<8sQQQQIIQQQ")
SEAL = struct.Struct("<Q")
HEAD_BYTES = HEAD.size + SEAL.size
HAS_DIGEST = 1
HAS_CHECKSUM = 2
WINDOW_BYTES = 1 << 20


class Record(NamedTuple):
    """What a head says."""

    position: int
    length: int
    """Bytes of the run that follows."""
    stream: int
    """The stream that it came over; 0 if the producer named none."""
    sequence: int
    """Number of its first message in the stream."""
    messages: int
    digest: int | None
    """Sum of the digests of the payloads; None if it was not computed."""
    checksum: int | None
    """Hash of the run; None if it was not computed."""
    committed: int

    @property
    def end(self) -> int:
        """Position after it."""
        return self.position + self.length


def pack(record: Record, key: int) -> bytes:
    """Return the head of a record."""
    flags = HAS_DIGEST * (record.digest is not None) + HAS_CHECKSUM * (record.checksum is not None)
    head = HEAD.pack(
        MAGIC,
        record.position,
        record.length,
        record.stream,
        record.sequence,
        record.messages,
        flags,
        record.digest or 0,
        record.checksum or 0,
        record.committed,
    )
    return head + SEAL.pack(xxhash.xxh3_64_intdigest(head, key))


def unpack(data: bytes | memoryview, key: int) -> Record | None:
    """Return what the head at the beginning says; None if there is no intact one."""
    if len(data) < HEAD_BYTES or data[: len(MAGIC)] != MAGIC:
        return None
    (seal,) = SEAL.unpack_from(data, HEAD.size)
    if xxhash.xxh3_64_intdigest(data[: HEAD.size], key) != seal:
        return None
    _, position, length, stream, sequence, messages, flags, digest, checksum, committed = (
        HEAD.unpack_from(data)
    )
    return Record(
        position,
        length,
        stream,
        sequence,
        messages,
        digest if flags & HAS_DIGEST else None,
        checksum if flags & HAS_CHECKSUM else None,
        committed,
    )


class Damage(NamedTuple):
    """A stretch of a file in which no record can be read."""

    begin: int
    end: int


class Reader:
    """Reads the records of a file one after the other; never more than a window of it at once.

    Args:
        fd: the file.
        key: of the log.
        window_bytes: how much to read at once: little if only the heads of long runs are wanted.

    Error handling: an OSError of the disk is passed on.
    """

    def __init__(self, fd: int, key: int, window_bytes: int = WINDOW_BYTES) -> None:
        self._fd = fd
        self._key = key
        self._window_bytes = window_bytes
        self._begin = 0
        self._window = memoryview(b"")

    def heads(self, begin: int, end: int) -> Iterator[tuple[int, Record] | Damage]:
        """Yield offset and content of each head, and what is damaged in between."""
        while begin < end:
            record = unpack(self._at(begin, HEAD_BYTES), self._key)
            if record is not None and begin + HEAD_BYTES + record.length <= end:
                yield begin, record
                begin += HEAD_BYTES + record.length
                continue
            following = self._next_head(begin + 1, end)
            yield Damage(begin, following)
            begin = following

    def is_intact(self, offset: int, record: Record) -> bool:
        """Return whether the run of a record is what was written."""
        if record.checksum is None:
            return True
        state = xxhash.xxh3_64()
        position, left = offset + HEAD_BYTES, record.length
        while left:
            piece = self._at(position, min(left, self._window_bytes))
            if not piece:
                return False
            state.update(piece)
            position, left = position + len(piece), left - len(piece)
        return bool(state.intdigest() == record.checksum)

    def _next_head(self, begin: int, end: int) -> int:
        """Return where the next intact head lies; `end` if there is none."""
        while begin < end:
            data = bytes(self._at(begin, self._window_bytes))[: end - begin]
            found = data.find(MAGIC)
            while found >= 0:
                if unpack(self._at(begin + found, HEAD_BYTES), self._key) is not None:
                    return begin + found
                found = data.find(MAGIC, found + 1)
            # The magic may lie across the edge.
            begin += max(len(data) - len(MAGIC) + 1, 1)
        return end

    def _at(self, offset: int, size: int) -> memoryview:
        """Return so many bytes of the file, or fewer at its end."""
        first = offset - self._begin
        if first < 0 or first + size > len(self._window):
            self._window = memoryview(os.pread(self._fd, max(size, self._window_bytes), offset))
            self._begin, first = offset, 0
        return self._window[first : first + size]
