"""Files below a root, for names that strangers chose.

Every component of a name is opened by itself, relative to the folder before it, and never
through a symbolic link: neither `..` nor a link that a job made leads out, also not when it
is made between a check and the use.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from lclstream.core.errors import NotAuthorizedError, NotFoundError, UnavailableError

FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
MAX_DEPTH = 32


def parts_of(name: str) -> tuple[str, ...]:
    """Return the components of a relative name; empty for the root itself.

    Raises:
        NotAuthorizedError: the name is absolute or tries to climb.
    """
    path = PurePosixPath(name)
    pieces = name.split("/")
    if path.is_absolute() or ".." in pieces or "\x00" in name or len(pieces) > MAX_DEPTH:
        raise NotAuthorizedError("invalid path")
    return path.parts


class Beneath:
    """A folder whose content may be read and written by relative names.

    Resource handling: a context manager; holds one descriptor of the root.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._handle = -1

    def __enter__(self) -> "Beneath":
        try:
            # The root itself is the site's choice, and may well be a link.
            self._handle = os.open(self.root, FOLDER_FLAGS & ~os.O_NOFOLLOW)
        except (FileNotFoundError, NotADirectoryError):
            raise NotFoundError("the directory of the job does not exist") from None
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)

    @contextmanager
    def folder(self, parts: tuple[str, ...], *, create: bool = False) -> Iterator[int]:
        """Open a folder by its components and yield its descriptor."""
        handle = os.dup(self._handle)
        try:
            for part in parts:
                if create:
                    with _translated(part), suppress(FileExistsError):
                        os.mkdir(part, 0o700, dir_fd=handle)
                below = _open(part, FOLDER_FLAGS, handle)
                os.close(handle)
                handle = below
            yield handle
        finally:
            os.close(handle)

    def open_file(self, name: str) -> int:
        """Return a descriptor of a regular file to read; the caller closes it."""
        *above, last = parts_of(name) or ("",)
        with self.folder(tuple(above)) as folder:
            # Without NONBLOCK a fifo would wait for somebody to write to it.
            handle = _open(last, os.O_RDONLY | os.O_NONBLOCK, folder)
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise NotFoundError(f"file {name} not found")
        return handle

    def is_folder(self, name: str) -> bool:
        """Return whether a name is a folder; raises `NotFoundError` when there is nothing."""
        *above, last = parts_of(name) or (".",)
        with self.folder(tuple(above)) as folder, _translated(name):
            found = os.stat(last, dir_fd=folder, follow_symlinks=False)
        return stat.S_ISDIR(found.st_mode)

    def entries(self, name: str) -> dict[str, os.stat_result]:
        """Return the regular files and folders in a folder; links are left out."""
        found = {}
        with self.folder(parts_of(name)) as folder, os.scandir(folder) as listing:
            for entry in listing:
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    # Jobs make and remove files all the time.
                    continue
                if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
                    found[entry.name] = status
        return dict(sorted(found.items()))

    def write_file(self, name: str, chunks: Iterator[bytes]) -> None:
        """Write a file for its owner's eyes only, with the folders above it; it appears whole."""
        parts = parts_of(name)
        if not parts or name.endswith("/"):
            raise NotAuthorizedError("invalid path")
        *above, last = parts
        fresh = f".upload.{os.urandom(8).hex()}"
        with self.folder(tuple(above), create=True) as folder:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            handle = _open(fresh, flags, folder)
            try:
                with _room_for(name), os.fdopen(handle, "wb") as file:
                    for chunk in chunks:
                        file.write(chunk)
                _rename(fresh, last, folder)
            except BaseException:
                os.unlink(fresh, dir_fd=folder)
                raise


def _open(name: str, flags: int, folder: int) -> int:
    with _translated(name):
        return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)


def _rename(fresh: str, last: str, folder: int) -> None:
    try:
        with _translated(last):
            os.rename(fresh, last, src_dir_fd=folder, dst_dir_fd=folder)
    except NotFoundError:
        raise NotAuthorizedError(f"invalid path: {last} is a folder") from None


@contextmanager
def _translated(name: str) -> Iterator[None]:
    """Turn what the kernel says about a name into our errors."""
    try:
        with _room_for(name):
            yield
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise NotFoundError(f"file {name} not found") from None
    except OSError as error:
        # ELOOP: a symbolic link; ENAMETOOLONG: more than 255 bytes.
        raise NotAuthorizedError(f"invalid path: {error.strerror}") from None


@contextmanager
def _room_for(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise UnavailableError(f"no room for {name}: {error.strerror}") from error
        raise
