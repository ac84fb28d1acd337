"""The journal of a durable buffer: messages survive the process that holds them.

A folder for one buffer, or for one of its lanes:

- `lock`: held by the process that uses the folder.
- `ports.json`: where it listened, so that one that is started again listens there.
- `messages-N.log`: the messages, from position N on (see `records`).
- `ledger-a`, `ledger-b`: what has become of them (see `ledger`): which were consumed, what the
  deleted files held, how far each stream of a producer is.

A message is in the journal's custody when `append` has returned its place: then it is on disk.
What was not finished when the process or its host died is found by its checksum and dropped:
nobody was told that it was accepted. What was damaged later is named, counted and passed over.
"""

import fcntl
import json
import logging
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from lclstream.buffer.addresses import Address
from lclstream.buffer.book import Book
from lclstream.buffer.config import BufferConfig
from lclstream.buffer.disklog import FILE_BYTES, Entry, Log, LogFile, Place, Span, sync_folder
from lclstream.buffer.ledger import LEDGER_BYTES, Ledger
from lclstream.buffer.peers import Side
from lclstream.buffer.ranges import Ranges
from lclstream.buffer.records import HEAD_BYTES, Damage, Reader, Record
from lclstream.buffer.store import (
    KEY_BITS,
    Consumption,
    Extent,
    Found,
    Outcome,
    StreamState,
    end_of,
    find,
    tally_of,
)
from lclstream.core.errors import InvalidConfigError
from lclstream.core.ledger import Tally

logger = logging.getLogger(__name__)

LOCK_NAME = "lock"
PORTS_NAME = "ports.json"
FILE_PATTERN = "messages-*.log"
FOLDER_MODE = 0o700
FILE_MODE = 0o600
# A killed process holds its lock until its last writing to the disk is over.
LOCK_PATIENCE_S = 3.0
LOCK_PAUSE_S = 0.01


@dataclass(slots=True)
class Recovered:
    """What a journal held when it was opened."""

    received: Tally = field(default_factory=Tally)
    """Everything that was ever accepted."""
    waiting: Tally = field(default_factory=Tally)
    """What of it can be read and was not consumed."""
    extents: list[Extent] = field(default_factory=list)
    """Where that lies."""
    streams: dict[int, StreamState] = field(default_factory=dict)
    """How far each stream is that a producer has named."""
    lost: Tally = field(default_factory=Tally)
    """Messages that were accepted and cannot be read any more (at least)."""


class Journal:
    """Keeps messages in a folder until they are consumed.

    `append`, `consume` and `close` are for one thread, `read` is for another one.

    Resource handling: the constructor creates the folder if need be, and locks it; `close`
    releases it and, if nothing is left in it, empties it.

    Args:
        folder: of this buffer alone.
        file_bytes: size of a file of messages.
        limit_bytes: bound on what these files take together; 0: none.
        ledger_bytes: size of each file of the ledger, which is never given up.

    Raises:
        InvalidConfigError: another buffer uses the folder, or what it holds cannot be read, or
            it cannot be written.
    """

    is_durable = True

    def __init__(
        self,
        folder: Path,
        *,
        file_bytes: int = FILE_BYTES,
        limit_bytes: int = 0,
        ledger_bytes: int = LEDGER_BYTES,
    ) -> None:
        self.folder = folder
        self.recovered = Recovered()
        self._book = Book()
        self._holes = Ranges()
        self._lock = _lock(folder)
        self._ledger = Ledger(folder, ledger_bytes)
        self._log = Log(folder, key=0, named=True, file_bytes=file_bytes, limit_bytes=limit_bytes)
        try:
            self._recover()
        except BaseException as error:
            self._close_files()
            if isinstance(error, OSError):
                raise InvalidConfigError(f"durable: {folder} cannot be used: {error}") from error
            raise

    @property
    def disk_bytes(self) -> int:
        """What the messages take of the disk, about; for any thread."""
        return self._log.disk_bytes

    def append(self, entries: Sequence[Entry]) -> Outcome:
        """Take messages into custody, in this order, as many as the disk takes."""
        places, refusal = self._log.append(entries)
        for entry, _ in zip(entries, places, strict=False):
            self._book.accept(entry.stream, entry.sequence, entry.tally)
        return Outcome(places, refusal)

    def consume(self, consumption: Consumption) -> OSError | None:
        """Let go of messages.

        Returns:
            What the disk had against taking note of it; it is made up for the next time.
        """
        change = self._book.consume(consumption)
        empty = self._log.consumed(consumption.spans)
        try:
            if empty or self._ledger.is_full:
                # The tally of a deleted file lives on in the state.
                self._ledger.begin(self._book.state(self._log.committed))
            else:
                self._ledger.append(change)
            self._retire(empty)
        except OSError as error:
            return error
        return None

    def read(self, extent: Extent, most: int) -> tuple[list[Found], Extent | None]:
        """Find the next messages of an extent; return them, and what is left of it."""
        return find(extent, most, self._log.key, self._holes)

    def close(self, *, is_complete: bool) -> None:
        """Release the folder; empty it if the stream has ended and nothing is left."""
        if is_complete and not any(file.pending for file in self._log.files):
            # Without the ledger the rest says nothing.
            with suppress(OSError):
                self._retire(list(self._log.files))
            self._ledger.delete()
            (self.folder / PORTS_NAME).unlink(missing_ok=True)
        self._close_files()

    def _close_files(self) -> None:
        self._log.close()
        self._ledger.close()
        os.close(self._lock)

    def _retire(self, files: Sequence[LogFile]) -> None:
        for file in files:
            self._log.retire(file)
        if files:
            sync_folder(self.folder)

    def _recover(self) -> None:
        book, log = self._book, self._log
        paths = sorted(self.folder.glob(FILE_PATTERN))
        entries = self._ledger.open()
        if entries:
            book.restore(entries)
        elif paths:
            raise InvalidConfigError(
                f"durable: {self.folder} holds messages and no ledger that can be read: move it "
                f"away, or name another folder"
            )
        else:
            book.key = secrets.randbits(KEY_BITS)
        log.key = book.key
        expected = book.consumed.floor
        recovered = self.recovered
        for path in paths:
            file = _open(path)
            log.files.append(file)
            _lose(book, expected, file.begin, path, 0)
            recovery = FileRecovery(book, file, path, is_last=path == paths[-1])
            recovery.run()
            recovered.waiting.merge(recovery.waiting)
            if file.pending:
                recovered.extents.append(Extent(file, 0, file.size))
            expected = max(expected, file.end)
        # Positions are never used twice, also if files have vanished.
        _lose(book, expected, book.checkpoint, self.folder, 0)
        log.end = log.committed = max(expected, book.checkpoint)
        self._holes = book.consumed.copy()
        recovered.received = replace(book.received)
        recovered.streams = {name: replace(state) for name, state in book.streams.items()}
        recovered.lost = replace(book.lost)
        self._ledger.begin(book.state(log.end))
        self._retire(log.consumed(()))


class FileRecovery:
    """Goes through one file of a journal that was not closed, a window of it at a time."""

    def __init__(self, book: Book, file: LogFile, path: Path, *, is_last: bool) -> None:
        self.waiting = Tally()
        """What was not consumed."""
        self._book = book
        self._file = file
        self._path = path
        self._is_last = is_last
        self._reader = Reader(file.fd, book.key)
        self._committed = book.checkpoint

    def run(self) -> None:
        """Count what is in the file, and cut off what was not finished."""
        file, size = self._file, os.fstat(self._file.fd).st_size
        if self._is_last:
            self._committed = max(self._committed, self._last_committed(size))
        offset = 0
        for item in self._reader.heads(0, size):
            if isinstance(item, Damage):
                if self._is_torn(file.end):
                    break
                offset = item.begin
                continue
            begin, record = item
            _lose(self._book, file.end, record.position, self._path, offset)
            if not self._take(begin, record):
                break
            file.end = record.end
            offset = file.size = begin + HEAD_BYTES + record.length
        if self._is_last:
            _lose(self._book, file.end, self._committed, self._path, offset)
            file.end = max(file.end, self._committed)
            os.ftruncate(file.fd, file.size)
        elif file.size < size:
            logger.error("journal_damaged", extra={"file": str(self._path), "offset": file.size})
        os.fdatasync(file.fd)
        file.committed_size = file.size
        file.sealed = True

    def _last_committed(self, size: int) -> int:
        """Return up to where everything was on disk when the last of the records was written."""
        heads = Reader(self._file.fd, self._book.key, HEAD_BYTES).heads(0, size)
        return max((item[1].committed for item in heads if not isinstance(item, Damage)), default=0)

    def _is_torn(self, position: int) -> bool:
        """Whether what cannot be read there was never finished."""
        return self._is_last and position >= self._committed

    def _take(self, offset: int, record: Record) -> bool:
        """Count a record; return False if it was never finished."""
        book = self._book
        left = book.consumed.missing(record.position, record.end)
        is_broken = bool(left) and not self._reader.is_intact(offset, record)
        if is_broken and self._is_torn(record.position):
            return False
        place = Place(self._file, offset + HEAD_BYTES, record.position, record.length)
        whole = tally_of(Span(place, 0, record.length), record)
        if record.position >= book.checkpoint:
            book.accept(record.stream, record.sequence, whole)
        if is_broken:
            _lose(book, record.position, record.end, self._path, offset, whole)
            return True
        for start, end in left:
            span = Span(place, start - record.position, end - record.position)
            done = book.partly.pop(start, 0)
            if done:
                first = end_of(span, done)
                book.consumed.add(start, start + first - span.start)
                span = Span(place, first, span.end)
            if span.start < span.end:
                self._file.pending += span.end - span.start
                self.waiting.merge(tally_of(span, record))
        return True


def _lose(
    book: Book, start: int, end: int, path: Path, offset: int, tally: Tally | None = None
) -> None:
    """Pass over positions that cannot be read, if there are any."""
    # How many messages there were may not be known.
    lost = book.lose(start, end, Tally(1, 0, 0, None) if tally is None else tally)
    if lost:
        logger.error(
            "journal_damaged",
            extra={
                "file": str(path),
                "offset": offset,
                "lost_bytes": lost,
                "lost_messages": "unknown" if tally is None else tally.messages,
            },
        )


def check_free(folder: Path) -> None:
    """Make sure that a journal can be opened by a process that is about to be started.

    Raises:
        InvalidConfigError: another process uses the folder, or it cannot be made.
    """
    os.close(_lock(folder))


def _lock(folder: Path) -> int:
    """Create the folder and lock it; waits a moment for a process that is being killed.

    Raises:
        InvalidConfigError: another process uses it, or it cannot be made.
    """
    try:
        folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        fd = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
    except OSError as error:
        raise InvalidConfigError(f"durable: {folder} cannot be used: {error}") from error
    deadline = time.monotonic() + LOCK_PATIENCE_S
    while not _try_lock(fd):
        if time.monotonic() >= deadline:
            owner = os.pread(fd, 20, 0).decode(errors="replace").strip()
            os.close(fd)
            raise InvalidConfigError(
                f"durable: {folder} is in use by another buffer (process {owner}): "
                f"name another folder"
            )
        time.sleep(LOCK_PAUSE_S)
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _open(path: Path) -> LogFile:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    return LogFile(fd, path, int(path.stem.removeprefix("messages-")))


def remember_ports(folder: Path, urls: Mapping[Side, Sequence[str]]) -> None:
    """Write down on which ports a durable buffer listens.

    Args:
        folder: of its journal.
        urls: for each side, in the order of the configured addresses.

    Raises:
        InvalidConfigError: the folder cannot be written.
    """
    ports = {side.value: [int(url.rpartition(":")[2]) for url in urls[side]] for side in urls}
    path = folder / PORTS_NAME
    new = path.with_suffix(".new")
    try:
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, FILE_MODE)
        with os.fdopen(fd, "w") as file:
            json.dump(ports, file)
            file.flush()
            os.fsync(file.fileno())
        new.rename(path)
        sync_folder(folder)
    except OSError as error:
        raise InvalidConfigError(f"durable: {path} cannot be written: {error}") from error


def on_remembered_ports(config: BufferConfig) -> BufferConfig:
    """Return the configuration with the ports on which a durable buffer listened before.

    Raises:
        InvalidConfigError: what was written down cannot be read.
    """
    if config.durable is None:
        return config
    path = config.durable / PORTS_NAME
    try:
        ports = json.loads(path.read_text())
        inputs = _on_ports(config.inputs, ports["in"])
        outputs = _on_ports(config.outputs, ports["out"])
    except FileNotFoundError:
        return config
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidConfigError(f"durable: {path} cannot be read: {error!r}") from error
    return replace(config, inputs=inputs, outputs=outputs)


def _on_ports(addresses: tuple[Address, ...], ports: Sequence[int]) -> tuple[Address, ...]:
    """Return the addresses, each with its port of before if it still allows it."""
    if len(ports) != len(addresses):
        return addresses
    return tuple(
        replace(address, first_port=port, last_port=port)
        if address.first_port == 0 or address.first_port <= port <= address.last_port
        else address
        for address, port in zip(addresses, ports, strict=True)
    )
