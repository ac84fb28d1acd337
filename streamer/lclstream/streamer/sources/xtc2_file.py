"""One XTC2 file: where its dgrams begin, and what is in them."""

import errno
import mmap
import os
import stat
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TypeAlias

from lclstream.core.errors import DecodeError, NotFoundError
from lclstream.streamer.sources.xtc2_dgram import Dgram, Window, dgram_problem
from lclstream.streamer.sources.xtc2_format import (
    DGRAM_HEADER,
    STAMP_BYTES,
    XTC_HEADER,
    NamesTable,
    Service,
)

Access = Literal["map", "read"]
"""`map`: arrays are views of the mapped file. `read`: each dgram is read into memory of its own,
so that a file that fails or shrinks meanwhile is an error and not the end of the process."""

KEPT_BYTES = 64 << 20
"""How much of a mapped file stays in the process behind the place that is read."""
PREFETCH_BYTES = 256 << 10
"""From which size on it is worth asking the system to read a dgram ahead."""

_HEADER_BYTES = DGRAM_HEADER.size
_NOT_WRITTEN = bytes(_HEADER_BYTES)
_unpack_dgram = DGRAM_HEADER.unpack_from

Head: TypeAlias = tuple[int, int, int]
"""Of a dgram: its timestamp, its service, and the byte of the file at which it ends."""


class Xtc2File:
    """Yields the dgrams of a file; only their headers are read until values are asked for.

    Reading ends at the last whole dgram. A file whose writer died has the beginning of another
    one behind it: `truncated_at` then says where. A Configure dgram replaces the Names for what
    follows it, so a file may hold several.

    Resource handling: a map lives as long as a dgram or an array taken from it. The file itself
    stays open only with `access="read"`, until `close` or the end of the object.

    Error handling: `NotFoundError` when the file cannot be read, `DecodeError` when what is in
    it is not XTC2.

    Args:
        path: the file.
        names: what the previous file of the same stream ended with; a continuation file has no
            Configure of its own.
        access: how bytes are got at.
        grows: whether somebody may still be writing it; `grow` then looks for more. It is not
            mapped, for every map would be one of the few files that a process can have open.
        hint: `SEQUENTIAL` when all of it will be read, `NORMAL` when only a share.
    """

    def __init__(
        self,
        path: Path,
        names: NamesTable | None = None,
        *,
        access: Access = "map",
        grows: bool = False,
        hint: int = mmap.MADV_NORMAL,
    ) -> None:
        self.path = path
        self.names: NamesTable = names or {}
        self.truncated_at: int | None = None
        self.size_bytes = 0
        self._names_before = self.names
        self._kept = 0
        self._unwritten_at: int | None = None
        """Where room was made for what is to come, if it was."""
        self._map: mmap.mmap | None = None
        self._window = Window(b"", str(path))
        self._grows = grows
        try:
            # What is no file must not make us wait.
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            self._closer = weakref.finalize(self, os.close, self._file)
            self.size_bytes = _size_of(self._file)
            # An empty file cannot be mapped.
            if access == "map" and not grows and self.size_bytes:
                self._map = mmap.mmap(self._file, self.size_bytes, prot=mmap.PROT_READ)
                self._map.madvise(hint)
                self._window = Window(self._map, str(path))
        except OSError as error:
            self.close()
            raise NotFoundError(f"cannot read {path}: {error.strerror}") from error
        if access == "map" and not grows:
            self._closer()

    def close(self) -> None:
        """Close the file; what was taken from it stays valid."""
        if "_closer" in self.__dict__:
            self._closer()

    def grow(self) -> bool:
        """Return whether there is more in the file than before; it can be read then.

        Raises:
            DecodeError: there is less.
        """
        if not self._closer.alive:
            return False
        before, self.size_bytes = self.size_bytes, os.fstat(self._file).st_size
        if self.size_bytes < before:
            raise self._bad(self.size_bytes, f"{before} bytes were there, the rest is gone")
        if self._unwritten_at is not None and not self._is_not_written(self._unwritten_at):
            self._unwritten_at = None
            return True
        return self.size_bytes > before

    def is_over(self, at: int) -> bool:
        """Return whether nothing has been written from a byte on."""
        return at == self.size_bytes or at == self._unwritten_at

    @property
    def identity(self) -> tuple[int, int]:
        """Device and number of the file, which a change of its name leaves alone."""
        found = os.fstat(self._file)
        return found.st_dev, found.st_ino

    def head(self, at: int) -> Head | None:
        """Return the header of the dgram at a byte, None when the file has no whole one there.

        Raises:
            DecodeError: none begins there.
        """
        if at + _HEADER_BYTES > self.size_bytes:
            return None
        if self._map is not None:
            timestamp, env, _, _, contains, extent = _unpack_dgram(self._map, at)
        else:
            header = self._bytes(at, _HEADER_BYTES)
            timestamp, env, _, _, contains, extent = _unpack_dgram(header)
        service, end = env >> 24 & 0xF, at + STAMP_BYTES + extent
        if extent < XTC_HEADER.size or contains & 0xFFF or service > Service.L1ACCEPT:
            if self._grows and self._is_not_written(at):
                self._unwritten_at = at
                return None
            raise self._bad(at, dgram_problem(service, contains, extent))
        if end > self.size_bytes:
            return None
        if at - self._kept > 2 * KEPT_BYTES:
            self._release(at - KEPT_BYTES)
        return timestamp, service, end

    def dgram(self, at: int, end: int, names: NamesTable) -> Dgram:
        """Return the dgram between two bytes, as `head` found them.

        Raises:
            DecodeError: the file has become shorter.
        """
        if self._map is not None:
            return Dgram(self._window, at, names)
        return Dgram(Window(self._bytes(at, end - at), str(self.path), at), 0, names)

    def prefetch(self, at: int, end: int) -> None:
        """Let the system read some bytes, which will be needed, while we do other things."""
        if self._map is not None and end - at >= PREFETCH_BYTES:
            start = at & -mmap.PAGESIZE
            self._map.madvise(mmap.MADV_WILLNEED, start, end - start)

    def __iter__(self) -> Iterator[Dgram]:
        self.names, self.truncated_at = self._names_before, None
        at = 0
        while (head := self.head(at)) is not None:
            dgram = self.dgram(at, head[2], self.names)
            if dgram.service is Service.CONFIGURE:
                self.names = dgram.names = dgram.described()
            at = head[2]
            yield dgram
        if at < self.size_bytes:
            self.truncated_at = at

    def _bytes(self, at: int, size: int) -> bytes:
        if not self._closer.alive:
            # Its number may be that of another file by now.
            raise self._bad(at, "the file is closed")
        try:
            found = os.pread(self._file, size, at)
            # One call reads at most 2 GiB, and may be interrupted.
            while len(found) < size:
                more = os.pread(self._file, size - len(found), at + len(found))
                if not more:
                    raise self._bad(at + len(found), "the file has become shorter")
                found += more
        except OSError as error:
            raise self._bad(at, f"cannot be read: {error.strerror}") from error
        return found

    def _bad(self, at: int, what: str) -> DecodeError:
        return Window(b"", str(self.path)).bad(at, what)

    def _is_not_written(self, at: int) -> bool:
        """Return whether the room was made, but nothing is there yet."""
        return self._bytes(at, _HEADER_BYTES) == _NOT_WRITTEN

    def _release(self, until: int) -> None:
        """Let go of pages that were read; whoever still looks at them gets them again."""
        if self._map is not None:
            until &= -mmap.PAGESIZE
            self._map.madvise(mmap.MADV_DONTNEED, self._kept, until - self._kept)
            self._kept = until


def _size_of(file: int) -> int:
    """Return how many bytes an open file has.

    Raises:
        OSError: it is something else than a file.
    """
    status = os.fstat(file)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a file")
    return status.st_size
