"""Data addresses: `tcp://HOST:PORT`, a range of ports to try, or port 0 for any free one.

With `tls+tcp` in place of `tcp` the connections are inside TLS.
"""

import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self

from lclstream.core.errors import InvalidConfigError

FORM = re.compile(
    r"(?P<scheme>tls\+tcp|tcp)://(?P<host>\[[0-9A-Fa-f:.]+\]|[^\[\]:/]+):(?P<first>\d+)(-(?P<last>\d+))?/?"
)
PORTS_ONLY = re.compile(r"\d+(-\d+)?")
EXPECTED = (
    "tcp://HOST:PORT, tcp://HOST:FIRST-LAST or PORT (0 = any free port), with tls+tcp:// for TLS"
)
WILDCARDS = frozenset({"0.0.0.0", "::", "*"})  # noqa: S104
MAX_PORT = 65535
BACKLOG = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where to listen or to dial; more than one port means: the first one that is free."""

    host: str
    first_port: int
    last_port: int
    tls: bool = False
    """Whether connections are inside TLS."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an address.

        Raises:
            InvalidConfigError: the text has another form.
        """
        whole = f"tcp://127.0.0.1:{text}" if PORTS_ONLY.fullmatch(text) else text
        match = FORM.fullmatch(whole)
        if not match:
            raise InvalidConfigError(f"address must be {EXPECTED}, got {text!r}")
        first = int(match["first"])
        last = int(match["last"] or first)
        if not first <= last <= MAX_PORT or (last > first == 0):
            raise InvalidConfigError(
                f"ports must be 0, or rise from 1 to {MAX_PORT}, got {text!r}",
            )
        return cls(
            host=match["host"].strip("[]"),
            first_port=first,
            last_port=last,
            tls=match["scheme"] != "tcp",
        )

    @property
    def is_wildcard(self) -> bool:
        """Whether this means every interface of the machine: nobody can dial that."""
        return self.host in WILDCARDS

    def __str__(self) -> str:
        return url(self.host, self.first_port, tls=self.tls)

    def resolve(self) -> list[tuple[socket.AddressFamily, tuple[str, int]]]:
        """Return family and socket address of the first port, for each address of the host.

        Raises:
            OSError: the host's name is not known.
        """
        host = None if self.host == "*" else self.host
        found = socket.getaddrinfo(
            host, self.first_port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        return [(family, (str(place[0]), int(place[1]))) for family, _, _, _, place in found]


def url(host: str, port: int, *, tls: bool = False) -> str:
    """Return the URL of one port."""
    scheme = "tls+tcp" if tls else "tcp"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def listen(
    address: Address, prepare: Callable[[socket.socket], object] | None = None
) -> socket.socket:
    """Return a non-blocking listening socket on the first free port of an address.

    Args:
        address: where to listen.
        prepare: sets options that accepted connections are to inherit.

    Raises:
        InvalidConfigError: no port of it can be bound; names them.
    """
    refusals = []
    for port in range(address.first_port, address.last_port + 1):
        try:
            return _bind(address, port, prepare)
        except OSError as error:
            refusals.append(f"{url(address.host, port)}: {error.strerror or error}")
    # Thousands of ports of a range all say the same.
    shown = refusals if len(refusals) <= 3 else [*refusals[:2], f"... {refusals[-1]}"]
    raise InvalidConfigError("cannot listen on " + "; ".join(shown))


def _bind(
    address: Address, port: int, prepare: Callable[[socket.socket], object] | None
) -> socket.socket:
    family, (host, _) = address.resolve()[0]
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if prepare is not None:
            prepare(sock)
        sock.bind((host, port))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def listening_url(sock: socket.socket, address: Address, advertised_host: str | None = None) -> str:
    """Return the URL by which others reach a listening socket."""
    host = advertised_host or (socket.gethostname() if address.is_wildcard else address.host)
    return url(host, sock.getsockname()[1], tls=address.tls)


def parse_all(texts: str | Iterator[str] | list[str] | tuple[str, ...]) -> list[Address]:
    """Read one address or several.

    Raises:
        InvalidConfigError: none is given, or one has another form.
    """
    addresses = [Address.parse(text) for text in ([texts] if isinstance(texts, str) else texts)]
    if not addresses:
        raise InvalidConfigError(f"at least one address is needed: {EXPECTED}")
    return addresses
