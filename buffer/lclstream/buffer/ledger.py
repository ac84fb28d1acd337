"""What became of the messages of a journal, as lines of JSON in two files that take turns.

Both files have their room from the beginning, so that consumption can be written down on a full
disk: that is what makes room again. Each line begins with a checksum. The first line of a file
is the whole state, and each line after it what has changed; when a file is full the state goes
to the other one. The file with the higher turn, as long as its first line is intact, is valid.
"""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import xxhash

from lclstream.buffer.disklog import sync_folder

FILE_NAMES = ("ledger-a", "ledger-b")
LEDGER_BYTES = 4 << 20
SUM_CHARACTERS = 16

Entry = dict[str, Any]


class Ledger:
    """The two files; for one thread, which may wait for the disk.

    Args:
        folder: for the files.
        file_bytes: when to go over to the other file.
    """

    def __init__(self, folder: Path, file_bytes: int = LEDGER_BYTES) -> None:
        self._folder = folder
        self._file_bytes = file_bytes
        self._turn = 0
        self._line = 0
        self._size = 0
        self._state_size = 0
        self._failed = False
        self._fds: list[int] = []

    def open(self) -> list[Entry]:
        """Return the state and the changes since, or nothing if the ledger is new.

        Raises:
            OSError: the files cannot be opened, or the disk has no room for them.
        """
        found: list[tuple[int, list[Entry]]] = []
        for name in FILE_NAMES:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            fd = os.open(self._folder / name, flags, 0o600)
            self._fds.append(fd)
            os.posix_fallocate(fd, 0, self._file_bytes)
            entries = list(_entries(fd))
            if entries:
                found.append((entries[0]["turn"], entries))
        sync_folder(self._folder)
        if not found:
            return []
        self._turn, entries = max(found, key=lambda one: one[0])
        return entries

    def begin(self, state: Entry) -> None:
        """Go over to the other file with the whole state; on disk when it returns.

        Raises:
            OSError: the disk refuses; the file in use stays valid.
        """
        # After a failed attempt the same file once more: the other one is the valid one.
        self._turn += 2 if self._failed else 1
        self._line = self._size = 0
        self._failed = True
        self._write(state)
        self.sync()
        self._failed = False
        self._state_size = self._size

    @property
    def is_full(self) -> bool:
        """Whether it is time for `begin`; without it nothing can be appended after a failure."""
        return self._failed or self._size >= max(self._file_bytes // 2, 2 * self._state_size)

    def append(self, change: Entry) -> None:
        """Write a line; a killed process does not take it along, a crashed host may.

        Raises:
            OSError: the disk refuses; `begin` is needed now.
        """
        try:
            self._write(change)
        except OSError:
            self._turn -= 1
            self._failed = True
            raise

    def _write(self, change: Entry) -> None:
        line = json.dumps({"turn": self._turn, "line": self._line, **change}).encode()
        data = f"{xxhash.xxh3_64_hexdigest(line)} ".encode() + line + b"\n"
        os.pwrite(self._fd, data, self._size)
        self._line += 1
        self._size += len(data)

    def sync(self) -> None:
        """Have all lines on disk.

        Raises:
            OSError: the disk refuses.
        """
        os.fdatasync(self._fd)

    def close(self) -> None:
        """Close the files."""
        for fd in self._fds:
            os.close(fd)
        self._fds = []

    def delete(self) -> None:
        """Delete the files."""
        for name in FILE_NAMES:
            with suppress(FileNotFoundError):
                (self._folder / name).unlink()

    @property
    def _fd(self) -> int:
        return self._fds[self._turn % len(self._fds)]


def _entries(fd: int) -> Iterator[Entry]:
    """Yield the lines of a file up to the first one that is not of the same turn, or broken."""
    with os.fdopen(os.dup(fd), "rb") as file:
        file.seek(0)
        turn = None
        for number, data in enumerate(file):
            checksum, line = data[:SUM_CHARACTERS], data[SUM_CHARACTERS + 1 : -1]
            if xxhash.xxh3_64_hexdigest(line).encode() != checksum:
                return
            entry = json.loads(line)
            if turn is None:
                turn = entry["turn"]
            if entry["turn"] != turn or entry["line"] != number:
                return
            yield entry
