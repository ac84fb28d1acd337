"""The file `status.csv`: every transition of a job, one row each, shared with psik.

Readers take a shared lock (flock), writers an exclusive one, and a writer checks its row
against the rows that are there: whoever is late, is refused. The runner of a job imports
this module, so it stays on the standard library.
"""

import fcntl
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lclstream.jobs.states import JobState, Transition, check_row

COLUMNS = 4


def escape(info: str) -> str:
    """Return text that fits into one row: a line break in it would forge a row."""
    text = info.replace("\n", "\\n").replace("\r", "\\r")
    return "".join(char if char.isprintable() else "?" for char in text).strip()


def parse(text: str) -> list[Transition]:
    """Return the rows of a status file; what is not a row is left out, as psik does."""
    found = (_row(line) for line in text.splitlines())
    return [row for row in found if row is not None]


def _row(line: str) -> Transition | None:
    fields = line.strip().split(",", COLUMNS - 1)
    if len(fields) != COLUMNS:
        return None
    try:
        row = Transition(float(fields[0]), int(fields[1]), JobState(fields[2]), fields[3])
    except ValueError:
        return None
    # Scripts can write here too, and no time is infinite.
    return row if math.isfinite(row.time) else None


class OpenHistory:
    """A status file under its exclusive lock."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        text = _read(handle)
        self._torn = bool(text) and not text.endswith("\n")
        self.rows = parse(text)

    def append(self, jobndx: int, state: JobState, info: str = "") -> Transition:
        """Write one row; raises `IllegalTransitionError` when it may not follow."""
        check_row(self.rows, jobndx, state)
        row = Transition(time.time(), jobndx, state, escape(info))
        line = f"{row.time},{row.jobndx},{row.state},{row.info}\n"
        # A writer that died inside a row left no line end behind it.
        os.write(self._handle, (("\n" if self._torn else "") + line).encode())
        self._torn = False
        self.rows.append(row)
        return row


@contextmanager
def locked(path: Path) -> Iterator[OpenHistory]:
    """Hold the exclusive lock of a status file, which is created when it is missing."""
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield OpenHistory(handle)
    finally:
        os.close(handle)


def record(path: Path, jobndx: int, state: JobState, info: str = "") -> Transition:
    """Append one row; raises `IllegalTransitionError` when it may not follow."""
    with locked(path) as history:
        return history.append(jobndx, state, info)


def read(path: Path) -> list[Transition]:
    """Return all rows; raises `FileNotFoundError` when there is no such job."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH)
        return parse(_read(handle))
    finally:
        os.close(handle)


def _read(handle: int) -> str:
    size = os.fstat(handle).st_size
    return os.pread(handle, size, 0).decode("utf-8", errors="replace")
