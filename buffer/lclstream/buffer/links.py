"""Connections of an end point: dialled again until they stand, or accepted, then handshaken.

Nothing here has a thread: connections come up while the owner waits in `Links.wait`, or calls it
with no time to wait after something else has seen that the descriptor of `fileno` is readable.
"""

import errno
import logging
import os
import select
import socket
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass

from lclstream.buffer import tcp
from lclstream.buffer.addresses import Address, listen, listening_url, parse_all
from lclstream.buffer.sp import Handshake, Protocol, handshake
from lclstream.buffer.transport import PlainWire, TlsWire, Wire
from lclstream.core.errors import DecodeError, InvalidConfigError
from lclstream.core.tls import Credentials

logger = logging.getLogger(__name__)

# NNG gives a handshake 10 s.
HANDSHAKE_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 10.0
# The first attempt to connect is made at once, but nobody waits long for it.
FIRST_CONNECT_S = 2.0
FIRST_RETRY_S = 0.02
LAST_RETRY_S = 1.0

READ = select.EPOLLIN
WRITE = select.EPOLLOUT


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketOptions:
    """What the connections of an end point are told."""

    tls: ssl.SSLContext | Credentials | None = None
    """For `tls+tcp` addresses; a context must fit the side: of a client to dial."""
    sndbuf_bytes: int | None = None
    """SO_SNDBUF; None lets the kernel choose, up to its `tcp_wmem`."""
    rcvbuf_bytes: int | None = None
    """SO_RCVBUF, likewise."""
    congestion: str | None = None
    """TCP_CONGESTION, as `reno` or `bbr`; None: the system's."""
    dead_after_s: float = tcp.DEAD_AFTER_S
    """After how long a host that does not answer counts as gone."""

    def context(self, *, listening: bool) -> ssl.SSLContext:
        """Return the context for TLS.

        Raises:
            InvalidConfigError: none was given.
            IdentityError: the credentials cannot be used.
        """
        if self.tls is None:
            raise InvalidConfigError("tls must be given for tls+tcp addresses")
        if isinstance(self.tls, ssl.SSLContext):
            return self.tls
        return self.tls.server_context() if listening else self.tls.client_context()

    def apply(self, sock: socket.socket) -> None:
        """Set what must be set before a socket connects or listens.

        Raises:
            InvalidConfigError: the system does not have that congestion control.
        """
        for name, option, value in (
            ("sndbuf_bytes", socket.SO_SNDBUF, self.sndbuf_bytes),
            ("rcvbuf_bytes", socket.SO_RCVBUF, self.rcvbuf_bytes),
        ):
            if value is None:
                continue
            if value <= 0:
                raise InvalidConfigError(f"{name} must be > 0, got {value!r}")
            sock.setsockopt(socket.SOL_SOCKET, option, value)
        if self.congestion is None:
            return
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, self.congestion.encode())
        except OSError as error:
            raise InvalidConfigError(
                f"congestion must be one that this system has, got {self.congestion!r}: "
                f"{error.strerror}"
            ) from error

    def check(self) -> None:
        """Refuse at once what no connection could be made with.

        Raises:
            InvalidConfigError: names the field.
        """
        if not self.dead_after_s >= 1:
            raise InvalidConfigError(f"dead_after_s must be >= 1, got {self.dead_after_s!r}")
        with socket.socket() as sock:
            self.apply(sock)


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

    wire: Wire
    peer: str
    target: Target | None
    """What was dialled; None if the peer did."""
    is_open: bool = True
    watched: int = READ
    """The epoll events that are asked for."""
    ignored: bool = False
    """Whether what comes over it does not matter any more."""

    @property
    def sock(self) -> socket.socket:
        """For what the kernel knows; data goes through the wire."""
        return self.wire.sock


@dataclass(slots=True, eq=False)
class Pending:
    """A connection that is not established yet."""

    wire: Wire
    peer: str
    target: Target | None
    handshake: Handshake
    deadline: float
    connected: bool
    unsent: bytes
    """What of our handshake was not taken yet."""
    in_tls: bool = False
    """Whether TLS has come up."""


Place = Link | Pending | tuple[Address, socket.socket]


class Links:
    """All connections of one end point.

    Resource handling: owns every socket; `close` closes all of them.

    Error handling: a connection that cannot be made is tried again after a pause that grows
    from 20 ms to 1 s; the reason stands in `problems`.

    Args:
        urls: where to dial or listen.
        listening: whether to listen.
        protocol: what this end is.
        options: for the sockets.
        connections: how many to make to each address.
        greeting: what to say in the same breath as the handshake.

    Raises:
        InvalidConfigError: an address or an option cannot be used.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        *,
        listening: bool,
        protocol: Protocol,
        options: SocketOptions,
        connections: int = 1,
        greeting: bytes = b"",
    ) -> None:
        addresses = parse_all([urls] if isinstance(urls, str) else list(urls))
        options.check()
        if connections < 1:
            raise InvalidConfigError(f"connections must be >= 1, got {connections!r}")
        self.ready: list[Link] = []
        self.targets: list[Target] = []
        self.ever = 0
        """How many connections were established since the beginning."""
        self.urls: list[str] = []
        self._protocol = protocol
        self._greeting = greeting
        self._options = options
        self._context: ssl.SSLContext | None = None
        if any(address.tls for address in addresses):
            self._context = options.context(listening=listening)
        self._listeners: list[socket.socket] = []
        self._pending: list[Pending] = []
        self._epoll = select.epoll()
        self._places: dict[int, Place] = {}
        # What was seen while nobody asked for it.
        self._events: list[tuple[Link, int]] = []
        if not listening:
            self.targets = [Target(address) for address in addresses for _ in range(connections)]
            self.urls = [str(address) for address in addresses]
            return
        try:
            for address in addresses:
                listener = listen(address, options.apply)
                self._listeners.append(listener)
                self.urls.append(listening_url(listener, address))
                self._watch(listener, READ, (address, listener))
        except BaseException:
            self.close()
            raise

    @property
    def problems(self) -> str:
        """Why connections that are wanted do not stand."""
        waiting = [f"{t.address}: {t.problem}" for t in self.targets if not t.linked]
        return "; ".join(waiting) or f"nobody has connected to {', '.join(self.urls)}"

    @property
    def is_greeting(self) -> bool:
        """Whether a connection has come up and its handshake is not complete."""
        return any(pending.connected for pending in self._pending)

    @property
    def is_attempting(self) -> bool:
        """Whether a target was not tried yet, or is just being connected to."""
        return any(not (t.pending or t.linked or t.retry_at) for t in self.targets) or any(
            not pending.connected for pending in self._pending
        )

    def fileno(self) -> int:
        """Return a descriptor that is readable when `wait` has something to do."""
        return self._epoll.fileno()

    def patience_s(self, now: float) -> float | None:
        """Return after how long `wait` has something to do although nothing happens."""
        times = [t.retry_at for t in self.targets if not (t.linked or t.pending or t.ended)]
        times += [pending.deadline for pending in self._pending]
        return max(min(times) - now, 0.0) if times else None

    def attempt(self, timeout_s: float) -> None:
        """Try to connect to every target once, so that a peer that is there sees us at once."""
        deadline = time.monotonic() + timeout_s
        seen: list[tuple[Link, int]] = []
        while self.is_attempting:
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0:
                break
            seen += self.wait(remaining_s)
        self._events = seen

    def wait(self, timeout_s: float) -> list[tuple[Link, int]]:
        """Wait until something happens, at most for a time.

        Args:
            timeout_s: 0 only looks.

        Returns:
            The links on which something happened, with the epoll events. A new link is among
            them as one that can be read from: something may have come with its handshake.
        """
        now = time.monotonic()
        events, self._events = self._events, []
        patience_s = self.patience_s(now)
        if patience_s is not None:
            self._dial_due(now)
            patience_s = self.patience_s(now)
            timeout_s = timeout_s if patience_s is None else min(timeout_s, patience_s)
        if self._context is not None:
            events += [(link, READ) for link in self.ready if link.wire.pending()]
        happened = self._epoll.poll(0.0 if events else timeout_s)
        # Numbers are used again at once when a connection ends: look up all of them before.
        for place, mask in [(self._places[number], mask) for number, mask in happened]:
            if isinstance(place, Link):
                events.append((place, mask))
            elif isinstance(place, Pending):
                self._advance(place, events)
            else:
                self._accept(*place, events)
        if self._pending:
            self._expire(time.monotonic())
        return events

    def want_write(self, link: Link, wanted: bool) -> None:
        """Have `wait` tell when a link can be written to, or not any more."""
        events = (0 if link.ignored else READ) | (WRITE if wanted else 0)
        if link.watched == events or not link.is_open:
            return
        if not events:
            self._unwatch(link.sock)
        elif link.watched:
            self._epoll.modify(link.sock, events)
        else:
            self._watch(link.sock, events, link)
        link.watched = events

    def ignore(self, link: Link) -> None:
        """Hear nothing more of a link, which stays open until it is dropped."""
        link.ignored = True
        self.want_write(link, False)

    def drop(self, link: Link, *, redial: bool, problem: str = "closed by the peer") -> None:
        """Close a link; dial its target again if that is wanted."""
        self.ready.remove(link)
        self.ignore(link)
        link.is_open = False
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
            pending.wire.sock.close()
        for link in self.ready:
            link.is_open = False
            link.sock.close()
        self._listeners, self._pending, self.ready = [], [], []
        self._places.clear()
        self._epoll.close()

    def _watch(self, sock: socket.socket, events: int, place: Place) -> None:
        self._epoll.register(sock, events)
        self._places[sock.fileno()] = place

    def _unwatch(self, sock: socket.socket) -> None:
        self._epoll.unregister(sock)
        del self._places[sock.fileno()]

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
        tcp.tune(sock, dead_after_s=self._options.dead_after_s)
        self._options.apply(sock)
        number = sock.connect_ex(place)
        if number not in (0, errno.EINPROGRESS):
            sock.close()
            self._failed(target, OSError(number, os.strerror(number)))
            return
        target.pending = True
        self._begin(self._wire(sock, target.address, dialled=True), str(target.address), target)

    def _wire(self, sock: socket.socket, address: Address, *, dialled: bool) -> Wire:
        if self._context is None or not address.tls:
            return PlainWire(sock, dialled=dialled)
        return TlsWire(sock, self._context, address.host if dialled else None)

    def _begin(self, wire: Wire, peer: str, target: Target | None) -> Pending:
        pending = Pending(
            wire,
            peer,
            target,
            Handshake(self._protocol.peer),
            time.monotonic() + (CONNECT_TIMEOUT_S if target else HANDSHAKE_TIMEOUT_S),
            connected=target is None,
            unsent=handshake(self._protocol) + self._greeting,
        )
        self._pending.append(pending)
        self._watch(wire.sock, WRITE if target else READ, pending)
        return pending

    def _accept(
        self, address: Address, listener: socket.socket, events: list[tuple[Link, int]]
    ) -> None:
        try:
            sock, place = listener.accept()
        except (BlockingIOError, ConnectionError):
            # It has gone already.
            return
        tcp.tune(sock, dead_after_s=self._options.dead_after_s)
        pending = self._begin(self._wire(sock, address, dialled=False), str(place[0]), None)
        self._advance(pending, events)

    def _advance(self, pending: Pending, events: list[tuple[Link, int]]) -> None:
        """Go on with a connection that can be read from or written to."""
        try:
            if not pending.connected:
                self._connected(pending)
            if isinstance(pending.wire, TlsWire) and not pending.in_tls:
                pending.in_tls = pending.wire.shake_hands()
            while pending.unsent:
                # So few bytes always fit into an empty socket.
                count = pending.wire.send(memoryview(pending.unsent))
                pending.unsent = pending.unsent[count:]
            data = bytearray(pending.handshake.missing_bytes)
            count = pending.wire.recv_into(memoryview(data))
            if not count:
                raise ConnectionError("closed before the handshake")
            if pending.handshake.received(bytes(data[:count])):
                events.append((self._established(pending), READ))
        except BlockingIOError:
            return
        except (OSError, DecodeError) as error:
            self._abandon(pending, error)

    def _connected(self, pending: Pending) -> None:
        number = pending.wire.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            raise OSError(number, os.strerror(number))
        pending.connected = True
        pending.deadline = time.monotonic() + HANDSHAKE_TIMEOUT_S
        self._epoll.modify(pending.wire.sock, READ)

    def _established(self, pending: Pending) -> Link:
        self._pending.remove(pending)
        link = Link(pending.wire, pending.peer, pending.target)
        self._places[link.sock.fileno()] = link
        self.ready.append(link)
        self.ever += 1
        if pending.target is not None:
            target = pending.target
            target.pending, target.linked, target.lost_at = False, True, None
            target.pause_s = FIRST_RETRY_S
        return link

    def _abandon(self, pending: Pending, error: Exception) -> None:
        self._pending.remove(pending)
        self._unwatch(pending.wire.sock)
        pending.wire.sock.close()
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
