"""A tar file written member by member to a pipe, complete whatever happens in between."""

import tarfile
import time
from types import TracebackType
from typing import BinaryIO, Self

from lclstream.core.errors import InvalidConfigError

ZERO_BLOCK = bytes(tarfile.BLOCKSIZE)


class TarWriter:
    """Writes messages as numbered members.

    Resource handling: a context manager; leaving it writes the trailer, after an error too, so
    that `tar` can read all members. Does not close the file.

    Args:
        file: where to write; need not be seekable.
        names: printf pattern of the members' names with one number, such as `%05d.h5`.

    Raises:
        InvalidConfigError: the pattern does not take exactly one number.
    """

    def __init__(self, file: BinaryIO, names: str = "%05d.h5") -> None:
        try:
            different = names % 1 != names % 2
        except (TypeError, ValueError):
            different = False
        if not different:
            raise InvalidConfigError(f"expected a pattern with one number, as %05d.h5: {names!r}")
        self._file = file
        self._names = names
        self._size = 0
        self._whole = True
        self.count = 0
        """Members written so far."""

    def __enter__(self) -> Self:
        return self

    def add(self, payload: memoryview | bytes) -> None:
        """Write one member."""
        info = tarfile.TarInfo(self._names % self.count)
        info.size = memoryview(payload).nbytes
        info.mtime = int(time.time())
        self._whole = False
        self._write(info.tobuf(tarfile.PAX_FORMAT))
        self._write(payload)
        self._write(bytes(-info.size % tarfile.BLOCKSIZE))
        self._whole = True
        self.count += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # After half a member no trailer can help: the pipe is gone.
        if self._whole:
            self._write(2 * ZERO_BLOCK)
            self._write(bytes(-self._size % tarfile.RECORDSIZE))
            self._file.flush()

    def _write(self, content: memoryview | bytes) -> None:
        left = memoryview(content)
        self._size += left.nbytes
        # An unbuffered pipe may take less than it is given.
        while left:
            left = left[self._file.write(left) :]
