"""Connections of an end point: dialled again until they stand, or accepted, then handshaken.

Nothing here has a thread: connections come up while the owner waits in `Links.wait`.
"""

import errno
import logging
import os
import select
import socket
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from lclstream.buffer import tcp
from lclstream.buffer.addresses import Address, listen, listening_url, parse_all
from lclstream.buffer.sp import HANDSHAKE_BYTES, Handshake, Protocol, handshake
from lclstream.core.errors import DecodeError

logger = logging.getLogger(__name__)

# NNG gives a handshake 10 s.
HANDSHAKE_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 10.0
# The first attempt to connect is made at once, but nobody waits long for it.
FIRST_CONNECT_S = 2.0
FIRST_RETRY_S = 0.02
LAST_RETRY_S = 1.0


@dataclass(slots=True, eq=False)
class Target:
    """A URL to dial, until it has ended."""

    address: Address
    retry_at: float = 0.0
    pause_s: float = FIRST_RETRY_S
    attempts: int = 0
    pending: bool = False
    linked: bool = False
    ended: bool = False
    """Nothing is to be dialled any more."""
    lost_at: float | None = None
    """When an established connection broke; None while one stands or before the first."""
    refused: bool = False
    """Whether the last attempt found nobody listening."""
    problem: str = "not tried yet"


@dataclass(slots=True, eq=False)
class Link:
    """One established connection."""

    sock: socket.socket
    peer: str
    target: Target | None
    """What was dialled; None if the peer did."""
    sent_bytes: int = HANDSHAKE_BYTES
    """All bytes written to the socket."""
    ends: deque[int] = field(default_factory=deque)
    """Value of `sent_bytes` at the end of each message that may not be acknowledged yet."""

    def acknowledged(self) -> int:
        """Forget the messages that the peer's kernel has; return how many bytes it has."""
        acked = tcp.acknowledged_bytes(self.sock, self.sent_bytes, dialled=self.target is not None)
        while self.ends and self.ends[0] <= acked:
            self.ends.popleft()
        return acked


@dataclass(slots=True, eq=False)
class Pending:
    """A connection that is not established yet."""

    sock: socket.socket
    peer: str
    target: Target | None
    handshake: Handshake
    deadline: float
    connected: bool


class Links:
    """All connections of one end point.

    Resource handling: owns every socket; `close` closes all of them.

    Error handling: a connection that cannot be made is tried again after a pause that grows
    from 20 ms to 1 s; the reason stands in `problems`.
    """

    def __init__(self, urls: str | Sequence[str], *, listening: bool, protocol: Protocol) -> None:
        addresses = parse_all([urls] if isinstance(urls, str) else list(urls))
        self.ready: list[Link] = []
        self.targets: list[Target] = []
        self.ever = 0
        """How many connections were established since the beginning."""
        self.urls: list[str] = []
        self._protocol = protocol
        self._listeners: list[socket.socket] = []
        self._pending: list[Pending] = []
        if not listening:
            self.targets = [Target(address) for address in addresses]
            self.urls = [str(address) for address in addresses]
            return
        try:
            for address in addresses:
                self._listeners.append(listen(address))
                self.urls.append(listening_url(self._listeners[-1], address))
        except BaseException:
            self.close()
            raise

    @property
    def problems(self) -> str:
        """Why connections that are wanted do not stand."""
        waiting = [f"{t.address}: {t.problem}" for t in self.targets if not t.linked]
        return "; ".join(waiting) or f"nobody has connected to {', '.join(self.urls)}"

    def attempt(self, timeout_s: float) -> None:
        """Try to connect to every target once, so that a peer that is there sees us at once."""
        deadline = time.monotonic() + timeout_s
        while any(not (t.pending or t.linked or t.retry_at) for t in self.targets) or any(
            not pending.connected for pending in self._pending
        ):
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0:
                return
            self.wait(remaining_s, [])

    def wait(self, timeout_s: float, watched: Sequence[tuple[Link, int]]) -> list[Link]:
        """Wait until something happens, at most for a time.

        Args:
            timeout_s: 0 only looks.
            watched: established links and the poll events that matter on them.

        Returns:
            The watched links on which something happened; none if a connection came up or
            broke before, or the time has passed.
        """
        now = time.monotonic()
        self._dial_due(now)
        poll = select.poll()
        places: dict[int, Link | Pending | socket.socket] = {}
        for listener in self._listeners:
            poll.register(listener, select.POLLIN)
            places[listener.fileno()] = listener
        for pending in self._pending:
            poll.register(pending.sock, select.POLLIN if pending.connected else select.POLLOUT)
            places[pending.sock.fileno()] = pending
        for link, events in watched:
            poll.register(link.sock, events)
            places[link.sock.fileno()] = link
        until = min([now + timeout_s, *self._deadlines()])
        happened = poll.poll(max(0.0, until - now) * 1000)
        links = self._handle([places[number] for number, _ in happened])
        self._expire(time.monotonic())
        return links

    def drop(self, link: Link, *, redial: bool, problem: str = "closed by the peer") -> None:
        """Close a link; dial its target again if that is wanted."""
        self.ready.remove(link)
        link.sock.close()
        if link.target is not None:
            link.target.linked = False
            link.target.ended = not redial
            link.target.lost_at = time.monotonic()
            link.target.problem = problem
            self._again(link.target, refused=False)

    def close(self) -> None:
        """Close all sockets, whatever their state."""
        for listener in self._listeners:
            listener.close()
        for pending in self._pending:
            pending.sock.close()
        for link in self.ready:
            link.sock.close()
        self._listeners, self._pending, self.ready = [], [], []

    def _deadlines(self) -> list[float]:
        retries = [t.retry_at for t in self.targets if not (t.linked or t.pending or t.ended)]
        return retries + [pending.deadline for pending in self._pending]

    def _handle(self, places: list[Link | Pending | socket.socket]) -> list[Link]:
        links = []
        for place in places:
            if isinstance(place, Link):
                links.append(place)
            elif isinstance(place, Pending):
                self._advance(place)
            else:
                self._accept(place)
        return links

    def _dial_due(self, now: float) -> None:
        for target in self.targets:
            if not (target.linked or target.pending or target.ended) and target.retry_at <= now:
                self._dial(target, now)

    def _dial(self, target: Target, now: float) -> None:
        try:
            # A name may stand for several addresses, of which only one is served.
            places = target.address.resolve()
            family, place = places[target.attempts % len(places)]
            target.attempts += 1
            sock = socket.socket(family, socket.SOCK_STREAM)
        except OSError as error:
            self._failed(target, error)
            return
        tcp.tune(sock)
        number = sock.connect_ex(place)
        if number not in (0, errno.EINPROGRESS):
            sock.close()
            self._failed(target, OSError(number, os.strerror(number)))
            return
        target.pending = True
        pending = Pending(
            sock,
            str(target.address),
            target,
            Handshake(self._protocol.peer),
            now + CONNECT_TIMEOUT_S,
            connected=False,
        )
        self._pending.append(pending)

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, place = listener.accept()
        except (BlockingIOError, ConnectionError):
            # It has gone already.
            return
        tcp.tune(sock)
        pending = Pending(
            sock, str(place[0]), None, Handshake(self._protocol.peer), 0.0, connected=True
        )
        self._pending.append(pending)
        self._greet(pending)

    def _advance(self, pending: Pending) -> None:
        """Go on with a connection that can be read from or written to."""
        try:
            if not pending.connected:
                number = pending.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if number:
                    raise OSError(number, os.strerror(number))  # noqa: TRY301
                self._greet(pending)
                return
            data = pending.sock.recv(pending.handshake.missing_bytes)
            if not data:
                raise ConnectionError("closed before the handshake")
            if pending.handshake.received(data):
                self._established(pending)
        except BlockingIOError:
            return
        except (OSError, DecodeError) as error:
            self._abandon(pending, error)

    def _greet(self, pending: Pending) -> None:
        pending.connected = True
        pending.deadline = time.monotonic() + HANDSHAKE_TIMEOUT_S
        try:
            # Eight bytes always fit into an empty socket.
            pending.sock.send(handshake(self._protocol))
        except OSError as error:
            self._abandon(pending, error)

    def _established(self, pending: Pending) -> None:
        self._pending.remove(pending)
        self.ready.append(Link(pending.sock, pending.peer, pending.target))
        self.ever += 1
        if pending.target is not None:
            target = pending.target
            target.pending, target.linked, target.lost_at = False, True, None
            target.pause_s = FIRST_RETRY_S

    def _abandon(self, pending: Pending, error: Exception) -> None:
        self._pending.remove(pending)
        pending.sock.close()
        if pending.target is None:
            logger.warning("peer_refused", extra={"peer": pending.peer, "reason": str(error)})
            return
        pending.target.pending = False
        self._failed(pending.target, error)

    def _failed(self, target: Target, error: Exception) -> None:
        target.problem = (error.strerror if isinstance(error, OSError) else None) or str(error)
        self._again(
            target, refused=isinstance(error, OSError) and error.errno == errno.ECONNREFUSED
        )

    def _again(self, target: Target, *, refused: bool) -> None:
        target.refused = refused
        target.retry_at = time.monotonic() + target.pause_s
        target.pause_s = min(2 * target.pause_s, LAST_RETRY_S)

    def _expire(self, now: float) -> None:
        for pending in [pending for pending in self._pending if pending.deadline <= now]:
            self._abandon(pending, TimeoutError("no answer in time"))
