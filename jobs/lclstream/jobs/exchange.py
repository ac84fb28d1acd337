"""Files and logs of a job over HTTP: listing, reading in pieces, storing."""

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote

from lclstream.core.errors import NotAuthorizedError, NotFoundError, RequestError
from lclstream.jobs import layout
from lclstream.jobs.admission import root_of
from lclstream.jobs.beneath import Beneath
from lclstream.jobs.models import FileStat
from lclstream.jobs.store import Job

CHUNK_BYTES = 1 << 18
MAX_LOGS = 64
"""Logs shown at once: those of the newest runs."""
RUN_LOG = re.compile(r"(stdout|stderr)\.([0-9]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Part of a file."""

    data: bytes
    offset: int
    size: int
    """Of the whole file, in bytes."""


class JobFiles:
    """What a caller may see and change of one job's directory.

    Args:
        job: the job.
        roots: folders that the directories of jobs may lie below.
    """

    def __init__(self, job: Job, roots: tuple[Path, ...]) -> None:
        own = job.folder / layout.WORK
        if job.directory == own:
            # The folder of the job is ours; a script could put a link in place of its `work`.
            self._root, self._below = job.folder, layout.WORK
        else:
            self._root, self._below = root_of(str(job.directory), roots)

    def _name(self, name: str) -> str:
        return f"{self._below}/{name}" if name else self._below

    def listing(self, name: str = "") -> dict[str, FileStat]:
        """Return the files and folders in a folder."""
        _refuse_absolute(name)
        with Beneath(self._root) as files:
            found = files.entries(self._name(name))
        return {key: stat_of(value) for key, value in found.items()}

    def is_folder(self, name: str) -> bool:
        """Return whether a name is a folder; raises `NotFoundError` when it is nothing."""
        _refuse_absolute(name)
        with Beneath(self._root) as files:
            return files.is_folder(self._name(name))

    def open_file(self, name: str) -> int:
        """Return a descriptor to read a file; the caller closes it."""
        _refuse_absolute(name)
        with Beneath(self._root) as files:
            return files.open_file(self._name(name))

    def store(self, name: str, content: BinaryIO) -> None:
        """Store an uploaded file under the name that its sender gave it.

        Folders above it are made. psik sends `sub/b.txt` as `sub%2Fb.txt`.
        """
        plain = unquote(name)
        _refuse_absolute(plain)
        with Beneath(self._root) as files:
            files.write_file(self._name(plain), chunks_of(content))


def _refuse_absolute(name: str) -> None:
    # Put behind the folder's own name, an absolute one would look relative.
    if name.startswith("/"):
        raise NotAuthorizedError("invalid path")


def stat_of(found: os.stat_result) -> FileStat:
    """Return how a file or folder goes over the wire."""
    return FileStat(
        size=found.st_size,
        atime=int(found.st_atime),
        mtime=int(found.st_mtime),
        children=stat.S_ISDIR(found.st_mode),
    )


def chunks_of(content: BinaryIO) -> Iterator[bytes]:
    """Yield a file in pieces."""
    while chunk := content.read(CHUNK_BYTES):
        yield chunk


def read_log(job: Job, name: str, offset: int | None, limit: int) -> Piece:
    """Return part of one log.

    Args:
        job: the job.
        name: `console`, `stdout.1`, ...
        offset: first byte, from 0; None: the last `limit` bytes.
        limit: most bytes to return.
    """
    if "/" in name:
        raise NotFoundError(f"log {name} not found")
    # From the job's folder on: a script could put a link in place of its `log`.
    with Beneath(job.folder) as files:
        handle = files.open_file(f"{layout.LOG}/{name}")
    try:
        size = os.fstat(handle).st_size
        first = max(0, size - limit) if offset is None else min(offset, size)
        return Piece(data=os.pread(handle, limit, first), offset=first, size=size)
    finally:
        os.close(handle)


def log_names(job: Job) -> list[str]:
    """Return the names of the logs, those of the newest runs last."""
    with Beneath(job.folder) as files:
        entries = files.entries(layout.LOG)
    found = [name for name, status in entries.items() if stat.S_ISREG(status.st_mode)]
    return sorted(found, key=_run_of)[-MAX_LOGS:]


def _run_of(name: str) -> tuple[int, str]:
    found = RUN_LOG.fullmatch(name)
    # The console belongs to all runs and is always shown.
    return (int(found.group(2)), name) if found else (1 << 31, name)


def read_logs(job: Job, limit: int) -> dict[str, Piece]:
    """Return the end of every log, at most `limit` bytes of each."""
    return {name: read_log(job, name, None, limit) for name in log_names(job)}


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Return first byte and number of bytes that a Range header asks for; None: everything.

    Raises:
        RequestError: the range lies outside the file; other forms are ignored, as HTTP allows.
    """
    found = re.fullmatch(r"bytes=([0-9]*)-([0-9]*)", header or "")
    if found is None or found.group(0) == "bytes=-":
        return None
    first, last = found.groups()
    if not first:
        count = min(int(last), size)
        return size - count, count
    end = min(int(last), size - 1) if last else size - 1
    if int(first) > end:
        raise RequestError(f"range {header!r} is outside the file of {size} bytes")
    return int(first), end - int(first) + 1
