"""What a log on disk offers to the queue, whether it survives the process or not."""

import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from lclstream.buffer.disklog import FILE_BYTES, Entry, Log, LogFile, Place, Span
from lclstream.buffer.ranges import Ranges
from lclstream.buffer.records import HEAD_BYTES, Damage, Reader, Record
from lclstream.buffer.runs import walk
from lclstream.buffer.sp import HEADER, HEADER_BYTES
from lclstream.core.errors import InvalidConfigError
from lclstream.core.ledger import Tally

KEY_BITS = 64
# Heads of short runs lie close together; what is read beyond those of long ones is wasted.
HEADS_WINDOW_BYTES = 4096


class Extent(NamedTuple):
    """Records that lie one after the other in a file."""

    file: LogFile
    begin: int
    """Offset of the first head, and `end` of what follows the last record."""
    end: int


class Found(NamedTuple):
    """Messages on disk that wait for a consumer."""

    span: Span
    tally: Tally
    offset: int
    """Of the record's head in its file."""


@dataclass(slots=True)
class Outcome:
    """What came of an attempt to write."""

    places: list[Place]
    """Of the first entries, as many as were written."""
    refusal: OSError | None
    """Why there are not more."""


@dataclass(slots=True)
class Consumption:
    """What has become of messages since a store was last told."""

    spans: list[Span] = field(default_factory=list)
    """Not needed any more."""
    partly: dict[int, int] = field(default_factory=dict)
    """How many messages from a position on are done with, in parts that are still needed."""
    finished: list[tuple[int, bool]] = field(default_factory=list)
    """Streams that have ended, or go on after all."""

    def __bool__(self) -> bool:
        return bool(self.spans or self.partly or self.finished)


@dataclass(slots=True)
class StreamState:
    """How far a stream is."""

    accepted: int = 0
    """Messages in custody, from its beginning."""
    finished: bool = False
    """Whether its producer has said that there is nothing more."""


class Store(Protocol):
    """A log on disk. All but `read` belong to one thread, `read` to another one."""

    is_durable: bool
    """Whether messages outlive the process."""

    @property
    def disk_bytes(self) -> int:
        """What the messages take of the disk, about; for any thread."""

    def append(self, entries: Sequence[Entry]) -> Outcome:
        """Write messages, in this order, as many as the disk takes."""

    def consume(self, consumption: Consumption) -> OSError | None:
        """Let go of messages; return what the disk had against taking note of it."""

    def read(self, extent: Extent, most: int) -> tuple[list[Found], Extent | None]:
        """Find the next messages of an extent; return them, and what is left of it."""

    def close(self, *, is_complete: bool) -> None:
        """Close all files; what is durable stays unless all is consumed and nothing follows."""


class Spill:
    """Files without names: what does not fit into memory, as long as the process lives.

    Args:
        folder: for the files; is created if need be.
        file_bytes: size of one of them.
        limit_bytes: bound on all of them; 0: none.

    Raises:
        InvalidConfigError: no file can be made there.
    """

    is_durable = False

    def __init__(self, folder: Path, *, file_bytes: int = FILE_BYTES, limit_bytes: int = 0) -> None:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidConfigError(f"spill: {folder} cannot be made: {error}") from error
        if not os.access(folder, os.W_OK | os.X_OK):
            raise InvalidConfigError(f"spill: {folder} cannot be written")
        self._log = Log(
            folder,
            key=secrets.randbits(KEY_BITS),
            named=False,
            file_bytes=file_bytes,
            limit_bytes=limit_bytes,
        )
        self._holes = Ranges()

    @property
    def disk_bytes(self) -> int:
        """What the messages take of the disk, about; for any thread."""
        return self._log.disk_bytes

    def append(self, entries: Sequence[Entry]) -> Outcome:
        """Write messages, in this order, as many as the disk takes."""
        places, refusal = self._log.append(entries)
        return Outcome(places, refusal)

    def consume(self, consumption: Consumption) -> OSError | None:
        """Give the space of messages back."""
        for file in self._log.consumed(consumption.spans):
            self._log.retire(file)
        return None

    def read(self, extent: Extent, most: int) -> tuple[list[Found], Extent | None]:
        """Find the next messages of an extent; return them, and what is left of it."""
        return find(extent, most, self._log.key, self._holes)

    def close(self, *, is_complete: bool) -> None:
        """Close all files: they are gone with that."""
        del is_complete
        self._log.close()


def find(
    extent: Extent, most: int, key: int, consumed: Ranges
) -> tuple[list[Found], Extent | None]:
    """Find at least so many messages of an extent, if there are as many, that are not consumed.

    Returns:
        Parts of records, and what is left of the extent, if anything.

    Raises:
        OSError: the disk cannot be read.
    """
    found: list[Found] = []
    file, begin, end = extent
    for item in Reader(file.fd, key, HEADS_WINDOW_BYTES).heads(begin, end):
        if isinstance(item, Damage):
            # Whoever counts finds that something is missing.
            begin = item.end
            continue
        offset, record = item
        place = Place(file, offset + HEAD_BYTES, record.position, record.length)
        for start, stop in consumed.missing(record.position, record.end):
            span = Span(place, start - record.position, stop - record.position)
            found.append(Found(span, tally_of(span, record), offset))
        begin = place.offset + place.length
        if len(found) >= most:
            break
    return found, Extent(file, begin, end) if begin < end else None


def tally_of(span: Span, record: Record) -> Tally:
    """Count what lies in a part of a record.

    Raises:
        OSError: the disk cannot be read.
    """
    place, start, end = span
    if end - start == place.length:
        size = record.length - HEADER_BYTES * record.messages
        return Tally(record.messages, size, 0, record.digest)
    # Only runs of short messages are consumed in parts.
    data = memoryview(os.pread(place.file.fd, end - start, place.offset + start))
    run = walk(data, 0, len(data), digests=record.digest is not None)
    return Tally(run.messages, run.payload_bytes, 0, run.digest)


def end_of(span: Span, messages: int) -> int:
    """Return where so many messages of a part end, relative to the place.

    Raises:
        OSError: the disk cannot be read.
    """
    place, position, end = span
    while messages and position < end:
        size = HEADER.unpack(os.pread(place.file.fd, HEADER_BYTES, place.offset + position))[0]
        position += HEADER_BYTES + size
        messages -= 1
    return min(position, end)
