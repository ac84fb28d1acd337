"""What Linux tells of changes in folders: inotify, through the C library."""

import ctypes
import logging
import os
import select
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Self

logger = logging.getLogger(__name__)

_CLOSE_WRITE, _MOVED_TO, _MODIFY, _CREATE = 0x8, 0x80, 0x2, 0x100
_DELETE_SELF, _MOVE_SELF, _ONLY_DIRECTORIES = 0x400, 0x800, 0x01000000
_WATCHED = (
    _CLOSE_WRITE | _MOVED_TO | _MODIFY | _CREATE | _DELETE_SELF | _MOVE_SELF | _ONLY_DIRECTORIES
)
# Watch, mask, cookie, length of the name behind it.
_EVENT = struct.Struct("iIII")
_BUFFER_BYTES = 1 << 16


class Notices:
    """Tells which files of some folders were closed or renamed; others are not told.

    What another machine does on a shared file system is not told either.

    Resource handling: owns a descriptor; a context manager.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        """Watch the folders.

        Raises:
            OSError: the system cannot watch them, or not so many.
        """
        library = ctypes.CDLL(None, use_errno=True)
        self.descriptor = library.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.descriptor < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        self._folders: dict[int, Path] = {}
        for folder in folders:
            path = os.fsencode(folder)
            watch = library.inotify_add_watch(self.descriptor, path, ctypes.c_uint32(_WATCHED))
            if watch < 0:
                number = ctypes.get_errno()
                self.close()
                raise OSError(number, os.strerror(number), str(folder))
            self._folders[watch] = folder
        self.closed: set[Path] = set()
        """Files that were closed or renamed since, and not written to after."""

    def close(self) -> None:
        """Stop watching."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def wait(self, timeout_s: float) -> bool:
        """Wait until something changes, or the time has passed; return whether it has changed."""
        readable, _, _ = select.select([self.descriptor], [], [], timeout_s)
        if readable:
            self._take()
        return bool(readable)

    def _take(self) -> None:
        try:
            data = os.read(self.descriptor, _BUFFER_BYTES)
        except BlockingIOError:
            return
        at = 0
        while at < len(data):
            watch, mask, _, length = _EVENT.unpack_from(data, at)
            at += _EVENT.size
            name = data[at : at + length].rstrip(b"\0")
            at += length
            folder = self._folders.get(watch)
            # Without a folder it says that more has happened than it could remember.
            if folder is None or not name:
                continue
            path = folder / os.fsdecode(name)
            if mask & (_CLOSE_WRITE | _MOVED_TO):
                self.closed.add(path)
            else:
                self.closed.discard(path)


def notices_of(folders: Sequence[Path]) -> Notices | None:
    """Return what tells of changes; None where the system cannot."""
    try:
        return Notices(folders)
    except (OSError, AttributeError) as error:
        logger.warning("folder_not_watched", extra={"reason": str(error)})
        return None
