"""Where connections come in: listening sockets and handshakes."""

import errno
import logging
import socket
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from lclstream.buffer import tcp
from lclstream.buffer.addresses import listen, listening_url
from lclstream.buffer.config import BufferConfig
from lclstream.buffer.loop import READ, Loop
from lclstream.buffer.opening import Opening, Terms
from lclstream.buffer.peers import Newcomer, Side
from lclstream.core.errors import InvalidConfigError, LclstreamError

logger = logging.getLogger(__name__)

# NNG gives a handshake 10 s.
HANDSHAKE_TIMEOUT_S = 5.0
ACCEPTS_PER_EVENT = 64
# Out of descriptors: wait until connections have ended.
ACCEPT_PAUSE_S = 1.0
OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
# What `accept` says of a connection that has failed while it waited, not of the listening socket.
GONE = frozenset(
    {
        errno.ECONNABORTED, errno.ECONNRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH,
        errno.ENETDOWN, errno.ENETUNREACH, errno.ENONET, errno.ENOPROTOOPT, errno.EPERM,
        errno.EPROTO, errno.ETIMEDOUT,
    }
)  # fmt: skip


class Door:
    """Accepts connections on both sides and sees them through the handshake.

    Args:
        config: where to listen.
        loop: watches the sockets.
        welcome: takes over a connection whose handshake is complete.
        refused: hears of a connection that was closed, and why.

    Raises:
        InvalidConfigError: an address cannot be bound.
    """

    def __init__(
        self,
        config: BufferConfig,
        loop: Loop,
        welcome: Callable[[Newcomer], None],
        refused: Callable[[Newcomer, str], None],
    ) -> None:
        self.urls: dict[Side, list[str]] = {Side.IN: [], Side.OUT: []}
        self._config = config
        self._terms = Terms(
            tls=config.tls, require_tls=config.require_tls, allowed_names=config.allowed_names
        )
        if config.allowed_names and config.tls is None:
            raise InvalidConfigError(
                "allowed_names need tls: without it nobody shows a certificate, and is let in"
            )
        self._only_tls: set[socket.socket] = set()
        self._loop = loop
        self._welcome = welcome
        self._refused = refused
        self._listeners: dict[Side, list[socket.socket]] = {Side.IN: [], Side.OUT: []}
        # The oldest first: all have the same time.
        self._newcomers: OrderedDict[Newcomer, None] = OrderedDict()
        self._paused: list[tuple[Side, socket.socket]] = []
        self._resume_at: float | None = None
        try:
            for side, addresses in ((Side.IN, config.inputs), (Side.OUT, config.outputs)):
                for address in addresses:
                    sock = listen(address)
                    self._listeners[side].append(sock)
                    if address.tls:
                        self._only_tls.add(sock)
                    self.urls[side].append(listening_url(sock, address, config.advertised_host))
                    self._watch(side, sock)
        except BaseException:
            for side in Side:
                for sock in self._listeners[side]:
                    sock.close()
            raise

    def newcomers(self, side: Side) -> int:
        """Return how many connections on a side are in their handshake."""
        return sum(newcomer.side is side for newcomer in self._newcomers)

    def close(self, side: Side) -> None:
        """Refuse new connections; who has connected already is let in."""
        for sock in self._listeners[side]:
            self._accept_waiting(side, sock)
            self._loop.close_later(sock)
        self._listeners[side] = []
        self._paused = [(other, sock) for other, sock in self._paused if other is not side]

    def dismiss(self, side: Side) -> None:
        """Close the connections of a side that are in their handshake."""
        for newcomer in [one for one in self._newcomers if one.side is side]:
            self._refuse(newcomer, "too late")

    def deadline(self) -> float | None:
        """Return when `expire` has something to do."""
        oldest = next(iter(self._newcomers), None)
        times = [oldest.deadline if oldest else None, self._resume_at]
        return min((moment for moment in times if moment is not None), default=None)

    def expire(self, now: float) -> None:
        """Close connections that keep silent; listen again after a pause."""
        while self._newcomers and (oldest := next(iter(self._newcomers))).deadline <= now:
            self._refuse(oldest, f"no handshake within {HANDSHAKE_TIMEOUT_S} s")
        if self._resume_at is not None and self._resume_at <= now:
            self._resume_at = None
            for side, sock in self._paused:
                self._watch(side, sock)
            self._paused = []

    def _watch(self, side: Side, sock: socket.socket) -> None:
        self._loop.watch(sock, READ, lambda _: self._accept_waiting(side, sock, ACCEPTS_PER_EVENT))

    def _accept_waiting(self, side: Side, listener: socket.socket, at_most: int = 1 << 30) -> None:
        for _ in range(at_most):
            try:
                sock, place = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in GONE:
                    logger.warning("accept_failed", extra={"side": side, "reason": str(error)})
                    continue
                if error.errno not in OUT_OF_RESOURCES:
                    raise
                self._pause(side, listener, error)
                return
            only_tls = listener in self._only_tls
            self._begin(side, sock, f"{place[0]}:{place[1]}", only_tls=only_tls)

    def _pause(self, side: Side, listener: socket.socket, error: OSError) -> None:
        logger.error("accept_paused", extra={"side": side, "reason": str(error)})
        self._loop.ignore(listener)
        self._paused.append((side, listener))
        self._resume_at = time.monotonic() + ACCEPT_PAUSE_S

    def _begin(
        self,
        side: Side,
        sock: socket.socket,
        address: str,
        *,
        only_tls: bool = False,
        trusted: bool = False,
    ) -> None:
        tcp.tune(sock, keep_unsent=side is Side.OUT, dead_after_s=self._config.dead_after_s)
        terms = Terms() if trusted else self._terms
        if only_tls:
            terms = replace(terms, require_tls=True)
        opening = Opening(sock, side.protocol, terms)
        now = time.monotonic()
        newcomer = Newcomer(
            wire=opening.wire,
            address=address,
            since=now,
            side=side,
            deadline=now + HANDSHAKE_TIMEOUT_S,
            opening=opening,
        )
        self._newcomers[newcomer] = None
        self._loop.watch(sock, READ, partial(self._on_newcomer, newcomer))

    def _on_newcomer(self, newcomer: Newcomer, events: int) -> None:
        del events
        try:
            complete = newcomer.read()
        except BlockingIOError:
            return
        except (OSError, LclstreamError) as error:
            self._refuse(newcomer, str(error))
            return
        if complete:
            del self._newcomers[newcomer]
            self._loop.ignore(newcomer.sock)
            self._welcome(newcomer)

    def _refuse(self, newcomer: Newcomer, reason: str) -> None:
        del self._newcomers[newcomer]
        self._loop.close_later(newcomer.sock)
        self._refused(newcomer, reason)
