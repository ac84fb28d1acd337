"""Where a buffer is watched and told what to do: a Unix socket, or HTTPS."""

import contextlib
import errno
import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from lclstream.buffer.addresses import Address, listen
from lclstream.core.errors import InvalidConfigError

UNIX = "unix:"
HTTPS = "https://"
EXPECTED = "unix:PATH, https://HOST:PORT, https://HOST:FIRST-LAST or PORT (0 = any free port)"
MODE = 0o600
BACKLOG = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlAddress:
    """One of the two kinds."""

    path: Path | None = None
    address: Address | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an address.

        Raises:
            InvalidConfigError: the text has another form.
        """
        if text.startswith(UNIX):
            if not text.removeprefix(UNIX):
                raise InvalidConfigError(f"control address must be {EXPECTED}, got {text!r}")
            return cls(path=Path(text.removeprefix(UNIX)))
        whole = "tcp://" + text.removeprefix(HTTPS) if text.startswith(HTTPS) else text
        try:
            return cls(address=Address.parse(whole))
        except InvalidConfigError:
            message = f"control address must be {EXPECTED}, got {text!r}"
            raise InvalidConfigError(message) from None

    def listen(self) -> tuple[socket.socket, str]:
        """Return a listening socket and the URL by which others reach it.

        Raises:
            InvalidConfigError: it cannot be bound, or not safely.
        """
        if self.path is not None:
            path = self.path.absolute()
            return _listen_unix(path), f"{UNIX}{path}"
        assert self.address is not None  # noqa: S101
        listener = listen(self.address)
        host = socket.gethostname() if self.address.is_wildcard else self.address.host
        shown = f"[{host}]" if ":" in host else host
        return listener, f"{HTTPS}{shown}:{listener.getsockname()[1]}"

    def unlink(self) -> None:
        """Remove the Unix socket from the file system."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def _listen_unix(path: Path) -> socket.socket:
    _check_folder(path.parent)
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # Nobody else may connect, not even in the moment before its permissions are set.
    before = os.umask(0o777 & ~MODE)
    try:
        listener.bind(str(path))
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise InvalidConfigError(f"cannot listen on {UNIX}{path}: {error}") from error
    finally:
        os.umask(before)
    return listener


def _check_folder(folder: Path) -> None:
    """Refuse a folder in which others could put a socket of their own in the place of ours."""
    try:
        found = folder.stat()
    except OSError as error:
        raise InvalidConfigError(f"no folder for the control socket: {error}") from error
    if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise InvalidConfigError(
            f"the control socket must lie in a folder that is yours and that nobody else may "
            f"write to, {folder} is not: make one with mkdir -m 700"
        )


def _remove_stale(path: Path) -> None:
    """Remove the socket of a buffer that was killed; not that of one that runs."""
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        found = probe.connect_ex(str(path))
    if found == errno.ECONNREFUSED:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
