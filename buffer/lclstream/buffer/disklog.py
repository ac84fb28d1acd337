"""A log of runs of messages in files: appended at one end, given back from the other.

The files of a log that only extends memory are unlinked while they are open: nothing is left of
them when the process ends, however that happens. Those of a log that is to survive keep their
names. A file goes away when everything in it has been consumed; what was consumed from its
beginning on is given back before that where the file system can do it.

For one thread, which may wait for the disk. Others may read what has been written and is not
consumed.
"""

import ctypes
import errno
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import xxhash

from lclstream.buffer.ranges import Ranges
from lclstream.buffer.records import HEAD_BYTES, Record, pack
from lclstream.core.ledger import Tally

FILE_BYTES = 256 << 20
# A record has two parts, and the kernel takes 1024.
RECORDS_PER_WRITE = 500
BYTES_PER_WRITE = 8 << 20
# A hole never ends inside a huge page of the page cache: the kernel would fill a part of that page
# with zeros, and a socket may still be sending it.
PUNCH_BYTES = 4 << 20
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 1, 2
NAME_FORMAT = "messages-{:012d}.log"

_fallocate = ctypes.CDLL(None, use_errno=True).fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong)


class Entry(NamedTuple):
    """A run of messages that is to be appended."""

    view: memoryview
    tally: Tally
    stream: int = 0
    sequence: int = 0


class LogFile:
    """One file of a log."""

    __slots__ = (
        "begin",
        "committed_size",
        "end",
        "fd",
        "path",
        "pending",
        "punched",
        "released",
        "sealed",
        "size",
    )

    def __init__(self, fd: int, path: Path | None, position: int) -> None:
        self.fd = fd
        self.path = path
        """None if it has no name any more."""
        self.begin = self.end = position
        """Positions of the messages in it."""
        self.size = 0
        """Bytes, heads included."""
        self.committed_size = 0
        """How many of them are on disk for certain."""
        self.pending = 0
        """Bytes of messages that are not consumed."""
        self.sealed = False
        """Whether nothing more is appended to it."""
        self.released = Ranges()
        self.punched = 0

    @property
    def disk_bytes(self) -> int:
        """What it takes of the disk."""
        return self.size - self.punched

    def punch(self) -> None:
        """Give back what was consumed from the beginning on."""
        length = self.released.floor // PUNCH_BYTES * PUNCH_BYTES - self.punched
        if not length:
            return
        mode = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
        if not _fallocate(self.fd, mode, self.punched, length):
            self.punched += length


class Place(NamedTuple):
    """Where a run of messages lies."""

    file: LogFile
    offset: int
    """Of its first message's header in the file."""
    position: int
    length: int


class Span(NamedTuple):
    """Messages of a place that were consumed."""

    place: Place
    start: int
    """Relative to the place, as is `end`."""
    end: int


class Log:
    """Appends, and gives back.

    Args:
        folder: for the files.
        key: seed of the checksums.
        named: whether files survive the process; then `append` returns when they are on disk.
        file_bytes: size of a file, unless one record is larger.
        limit_bytes: bound on what the files take; 0: none.
    """

    def __init__(
        self,
        folder: Path,
        *,
        key: int,
        named: bool,
        file_bytes: int = FILE_BYTES,
        limit_bytes: int = 0,
    ) -> None:
        self.folder = folder
        self.key = key
        self.files: list[LogFile] = []
        self.end = 0
        """Position after everything that was appended."""
        self.committed = 0
        """Position up to which everything is on disk for certain; only if files have names."""
        self._named = named
        self._file_bytes = file_bytes
        self._limit_bytes = limit_bytes

    @property
    def disk_bytes(self) -> int:
        """What all files take of the disk."""
        return sum(file.disk_bytes for file in tuple(self.files))

    def append(self, entries: Sequence[Entry]) -> tuple[list[Place], OSError | None]:
        """Append as many of the entries as the disk takes.

        Returns:
            The places of those that were written, and what the disk had against the next one.
        """
        places: list[Place] = []
        refusal: OSError | None = None
        try:
            while len(places) < len(entries):
                self._append_some(entries[len(places) :], places)
        except OSError as error:
            refusal = error
            # That it can go away as soon as it is consumed.
            self.seal()
        try:
            self._commit()
        except OSError as error:
            refusal = error
        places = [place for place in places if place.position + place.length <= self.end]
        return places, refusal

    def consumed(self, spans: Sequence[Span]) -> list[LogFile]:
        """Take note of what is not needed any more; return files of which nothing is."""
        for place, start, end in spans:
            file = place.file
            file.pending -= end - start
            # The head goes with the beginning of the run.
            begin = place.offset + start if start else place.offset - HEAD_BYTES
            file.released.add(begin, place.offset + end)
        if not self._named:
            for file in {id(span.place.file): span.place.file for span in spans}.values():
                file.punch()
        return [file for file in self.files if file.sealed and not file.pending]

    def retire(self, file: LogFile) -> None:
        """Delete a file."""
        self.files.remove(file)
        os.close(file.fd)
        if file.path is not None:
            file.path.unlink(missing_ok=True)

    def seal(self) -> None:
        """Append to another file from now on."""
        if self.files:
            self.files[-1].sealed = True

    def close(self) -> None:
        """Close all files; those with names stay."""
        for file in self.files:
            os.close(file.fd)
        self.files.clear()

    def _append_some(self, entries: Sequence[Entry], places: list[Place]) -> None:
        """Append what one write takes; add the places of what was written also if it fails."""
        file = self._current()
        parts: list[memoryview | bytes] = []
        group: list[Place] = []
        offset, position = file.size, self.end
        for entry in entries[:RECORDS_PER_WRITE]:
            length = entry.view.nbytes
            if group and (
                offset - file.size + length > BYTES_PER_WRITE
                or offset + length + HEAD_BYTES > self._file_bytes
            ):
                break
            self._check_limit(offset - file.size + length + HEAD_BYTES)
            parts += (self._head(entry, position), entry.view)
            group.append(Place(file, offset + HEAD_BYTES, position, length))
            offset, position = offset + HEAD_BYTES + length, position + length
        end, refusal = _write(file, parts)
        for place in group:
            if place.offset + place.length > end:
                break
            places.append(place)
            file.size = place.offset + place.length
            file.pending += place.length
            file.end = self.end = place.position + place.length
        if refusal is not None:
            # Half a record is of no use.
            with suppress(OSError):
                os.ftruncate(file.fd, file.size)
            raise refusal
        if file.size >= self._file_bytes:
            file.sealed = True

    def _check_limit(self, size: int) -> None:
        if self._limit_bytes and self.disk_bytes + size > self._limit_bytes:
            raise OSError(errno.EDQUOT, f"the limit of {self._limit_bytes} bytes is reached")

    def _head(self, entry: Entry, position: int) -> bytes:
        checksum = xxhash.xxh3_64_intdigest(entry.view) if self._named else None
        tally = entry.tally
        return pack(
            Record(
                position,
                entry.view.nbytes,
                entry.stream,
                entry.sequence,
                tally.messages,
                tally.digest,
                checksum,
                self.committed,
            ),
            self.key,
        )

    def _current(self) -> LogFile:
        """Return the file to append to."""
        if self.files and not self.files[-1].sealed:
            return self.files[-1]
        # What lies in a file that is not the last one was finished.
        self._commit()
        if self.files and self.files[-1].begin == self.end:
            self.retire(self.files[-1])
        if not self._named:
            fd, name = tempfile.mkstemp(prefix="lclstream-spill-", dir=self.folder)
            Path(name).unlink()
            file = LogFile(fd, None, self.end)
        else:
            path = self.folder / NAME_FORMAT.format(self.end)
            flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            file = LogFile(os.open(path, flags, 0o600), path, self.end)
            sync_folder(self.folder)
        self.files.append(file)
        return file

    def _commit(self) -> None:
        if not self._named or self.committed == self.end:
            return
        file = self.files[-1]
        try:
            os.fdatasync(file.fd)
        except OSError:
            # Nobody knows what of the rest is there now: it is written again, to another file.
            file.pending -= self.end - self.committed
            file.end = self.end = self.committed
            file.size = file.committed_size
            file.sealed = True
            with suppress(OSError):
                os.ftruncate(file.fd, file.size)
            raise
        self.committed, file.committed_size = self.end, file.size


def _write(file: LogFile, parts: list[memoryview | bytes]) -> tuple[int, OSError | None]:
    """Write all parts at the end of a file; return how far that came, and what went wrong."""
    end = file.size
    try:
        while parts:
            count = os.pwritev(file.fd, parts, end)
            end += count
            while parts and count >= len(parts[0]):
                count -= len(parts.pop(0))
            if count:
                parts[0] = memoryview(parts[0])[count:]
    except OSError as error:
        return end, error
    return end, None


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on disk."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
