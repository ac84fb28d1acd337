"""A consumer's end of a stream: pulls whole messages from buffers or producers."""

import secrets
import ssl
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

from lclstream.buffer import tcp
from lclstream.buffer.control import Frame, frame
from lclstream.buffer.links import FIRST_CONNECT_S, Links, SocketOptions
from lclstream.buffer.receiving import LinkCount, Receiver, ReceiveTimeoutError, Steps
from lclstream.buffer.sp import Protocol
from lclstream.core.errors import EndOfStream
from lclstream.core.tls import Credentials

__all__ = ["LinkCount", "Pull", "ReceiveTimeoutError"]

NONCE_BITS = 64
MAX_MESSAGE_BYTES = 1 << 30
# A dead buffer is restarted at the same address within this time, or not at all.
RECONNECT_TIMEOUT_S = 5.0


class Pull:
    """Receives messages from one or more pushing peers; speaks SP as an NNG Pull0 socket does.

    A peer that half-closes or closes its connection between two messages has ended its stream.
    When all have, `recv` raises EndOfStream. A connection that breaks in any other way (reset,
    or closed inside a message) is dialled again; if then nobody listens for a while the stream
    is broken and `recv` raises BufferClosedError; likewise if a peer that has dialled us does not
    come back. Before its first connection a URL is dialled for as long as it takes.

    With `acknowledge` a buffer keeps each message until it hears that this program has finished
    it, and gives it to another consumer if the connection ends before. A message is finished
    when the next one is asked for, or when `done` is called. Leaving the context without an
    exception finishes what was handed out; leaving it with one does not, and neither does
    `close`. What was received and not handed out is never acknowledged.

    Resource handling: a context manager without threads; owns its sockets. Not for use by
    several threads at once.

    Args:
        urls: one address or several, `tcp://HOST:PORT`, or `tls+tcp://HOST:PORT`.
        listen: wait for peers at the addresses instead of dialling them.
        acknowledge: tell the peers what is finished; for buffers of ours. Others take no notice.
        auto: with `acknowledge`: whether asking for a message finishes the one before. False
            leaves that to `done`, for programs that work on several at once.
        reconnect: False ends with BufferClosedError as soon as a connection breaks.
        reconnect_timeout_s: how long to wait, after a connection broke, where nobody listens or
            for the peer to come back.
        peers: when listening, how many peers must have come before the end of all that came
            is the end of the stream.
        max_message_bytes: a peer that announces more is cut off.
        tls: for `tls+tcp`: a context, of a server to listen or of a client to dial, or our
            credentials. A dialled server must prove that it has the name in the address.
        rcvbuf_bytes: size of the kernel's receive buffers; None lets the kernel choose.
        congestion: the congestion control of the connections, as `bbr`; None: the system's.
        dead_after_s: after how long a host that answers nothing counts as gone.

    Raises:
        InvalidConfigError: an address or option cannot be used.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        *,
        listen: bool = False,
        acknowledge: bool = False,
        auto: bool = True,
        reconnect: bool = True,
        reconnect_timeout_s: float = RECONNECT_TIMEOUT_S,
        peers: int = 1,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        tls: ssl.SSLContext | Credentials | None = None,
        rcvbuf_bytes: int | None = None,
        congestion: str | None = None,
        dead_after_s: float = tcp.DEAD_AFTER_S,
    ) -> None:
        self._acknowledge = acknowledge
        self._auto = auto
        self._receiver = make_receiver(
            urls,
            listen=listen,
            acknowledge=acknowledge,
            reconnect=reconnect,
            reconnect_timeout_s=reconnect_timeout_s,
            peers=peers,
            max_message_bytes=max_message_bytes,
            options=SocketOptions(
                tls=tls,
                rcvbuf_bytes=rcvbuf_bytes,
                congestion=congestion,
                dead_after_s=dead_after_s,
            ),
        )
        self._messages = self._receiver.messages
        self._links = self._receiver.links
        try:
            self._links.attempt(FIRST_CONNECT_S)
        except BaseException:
            self._receiver.close()
            raise

    @property
    def urls(self) -> Sequence[str]:
        """The addresses that are dialled or listened at, with the real port in place of 0."""
        return self._links.urls

    @property
    def connections(self) -> int:
        """How many connections stand now."""
        return len(self._links.ready)

    @property
    def partial(self) -> int:
        """Messages that began and never became whole because their connection broke."""
        return self._receiver.partial

    @property
    def returned(self) -> int:
        """Messages that were received and, unread, left to a buffer to send again."""
        return self._receiver.returned

    @property
    def in_hand(self) -> int:
        """Messages that were handed out and are not finished; 0 without `acknowledge`."""
        return self._receiver.in_hand

    @property
    def counts(self) -> Sequence[LinkCount]:
        """Figures of each connection that stands, and by peer of all that have ended."""
        return self._receiver.counts()

    def recv(self, timeout_s: float | None = None) -> memoryview:
        """Return the next message.

        The view stays valid as long as it, a slice or an array made from it exists; copy small
        messages that are kept for long, because each keeps 256 KiB of others alive.

        Args:
            timeout_s: None waits as long as it takes.

        Raises:
            EndOfStream: every peer has ended its stream, and all messages were returned.
            ReceiveTimeoutError: (a TimeoutError) no message in time.
            BufferClosedError: a connection broke and does not come back, or `close` was called.
        """
        if self._acknowledge:
            if self._auto:
                self._receiver.done(1)
            if not self._messages and not self._receiver.read():
                self._drive(self._receiver.more(timeout_s))
            return self._receiver.take()
        if not self._messages and not self._receiver.read():
            self._drive(self._receiver.more(timeout_s))
        return self._messages.popleft()

    def done(self, count: int = 1) -> None:
        """Tell that the program has finished messages, the oldest that it was handed first.

        Args:
            count: how many; more than there are means all.
        """
        self._receiver.done(count)

    def close(self) -> None:
        """Close all connections; a peer learns when messages were left unread.

        With `acknowledge` what is finished is acknowledged first.
        """
        if self._receiver.closed:
            return
        try:
            self._drive(self._receiver.leave())
        finally:
            self._receiver.close()

    def __iter__(self) -> Iterator[memoryview]:
        while True:
            try:
                message = self.recv()
            except EndOfStream:
                return
            yield message

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None and self._auto:
            self._receiver.done(self._receiver.in_hand)
        self.close()

    def _drive(self, steps: Steps) -> None:
        step = self._receiver.step
        for patience_s in steps:
            step(patience_s)


def make_receiver(
    urls: str | Sequence[str],
    *,
    listen: bool,
    acknowledge: bool,
    reconnect: bool,
    reconnect_timeout_s: float,
    peers: int,
    max_message_bytes: int,
    options: SocketOptions,
) -> Receiver:
    """Return what receives, for the arguments of `Pull`.

    Raises:
        InvalidConfigError: names the argument.
    """
    nonce = secrets.randbits(NONCE_BITS)
    greeting = b""
    if acknowledge:
        # A buffer must know before it sends anything.
        greeting = frame(Frame.ACK, 0) + frame(Frame.HELLO, nonce)
    return Receiver(
        Links(
            urls,
            listening=listen,
            protocol=Protocol.PULL,
            options=options,
            greeting=greeting,
        ),
        acknowledge=acknowledge,
        nonce=nonce,
        reconnect=reconnect,
        reconnect_timeout_s=reconnect_timeout_s,
        peers=peers,
        max_message_bytes=max_message_bytes,
        dead_after_s=options.dead_after_s,
    )
