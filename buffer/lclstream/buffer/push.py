"""A producer's end of a stream: pushes whole messages to buffers or consumers."""

import atexit
import logging
import math
import os
import select
import ssl
import threading
import weakref
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from lclstream.buffer import tcp
from lclstream.buffer.config import Delivery
from lclstream.buffer.control import CONTROL_BYTES, looks_like_control
from lclstream.buffer.links import FIRST_CONNECT_S, Links, SocketOptions
from lclstream.buffer.outgoing import Payload, pieces_of
from lclstream.buffer.sending import SMALL_BYTES, Sender, Steps
from lclstream.buffer.sp import Protocol
from lclstream.core.errors import (
    BufferClosedError,
    DeliveryError,
    InvalidConfigError,
    LclstreamError,
    UnavailableError,
)
from lclstream.core.tls import Credentials

logger = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 1 << 30
IN_FLIGHT_BYTES = 64 * 1024 * 1024
CONNECT_TIMEOUT_S = 30.0
RECONNECT_TIMEOUT_S = 30.0
CLOSE_TIMEOUT_S = 60.0

_open: "weakref.WeakSet[Push]" = weakref.WeakSet()


class Push:
    """Sends messages to one or more pulling peers; speaks SP as an NNG Push0 socket does.

    Several connections take turns, those that can be written to first. A run of small messages
    is sent together; a message after a pause is never held back. A connection that breaks is
    made again. What becomes of the messages on it is chosen by `delivery`:

    - `fast`: `send` returns when the message was copied or is in the kernel: its memory may be
      used again. If messages are lost with a connection `send` (or `close`) raises DeliveryError
      with their number, the message of that call included; what only had been begun is sent
      again elsewhere. `close` waits until the peers' kernels have acknowledged every byte.
    - `safe`: the peer must be a buffer of ours. Messages are held until it has acknowledged
      them, and are sent again where it wants them when a connection was broken, so none is lost
      and none comes twice. A message is held as it is if it is `bytes`; other memory is copied
      and may be used again when `send` returns. `send` waits while `in_flight_bytes` are held.
      `close` waits until the buffer has acknowledged every message.

    A buffer is also told that the stream is complete: of a producer that was killed it knows
    that something is missing.

    Resource handling: a context manager; what is open when the interpreter exits is closed then.
    Owns its sockets, one thread from the first run of small messages on, and in safe delivery
    another one. May be used by several threads.

    Args:
        urls: one address or several, `tcp://HOST:PORT`, or `tls+tcp://HOST:PORT`.
        listen: wait for peers at the addresses instead of dialling them; not in safe delivery.
        delivery: what happens to messages that are with a connection that breaks.
        connections: how many to make to each address; a wide area network is filled by several.
        send_timeout_s: how long a message may wait for a peer to take it; None for ever.
        connect_timeout_s: how long a message may wait while there is no connection at all.
        reconnect_timeout_s: how long a broken connection to a buffer is waited for before
            what it has not acknowledged counts as lost.
        in_flight_bytes: bound on what is held in safe delivery; a larger message goes alone.
        max_message_bytes: refuse a larger message; a receiver would cut the connection and
            with it lose what follows.
        tls: for `tls+tcp`: a context, of a server to listen or of a client to dial, or our
            credentials. A dialled server must prove that it has the name in the address.
        sndbuf_bytes: size of the kernel's send buffers; None lets the kernel choose.
        congestion: the congestion control of the connections, as `bbr`; None: the system's.
        dead_after_s: after how long a host that answers nothing counts as gone. One that is
            alive and takes nothing is never cut.

    Raises:
        InvalidConfigError: an address or option cannot be used.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        *,
        listen: bool = False,
        delivery: Delivery | str = Delivery.FAST,
        connections: int = 1,
        send_timeout_s: float | None = None,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        reconnect_timeout_s: float = RECONNECT_TIMEOUT_S,
        in_flight_bytes: int = IN_FLIGHT_BYTES,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        tls: ssl.SSLContext | Credentials | None = None,
        sndbuf_bytes: int | None = None,
        congestion: str | None = None,
        dead_after_s: float = tcp.DEAD_AFTER_S,
    ) -> None:
        self._sender = make_sender(
            urls,
            listen=listen,
            delivery=delivery,
            connections=connections,
            send_timeout_s=send_timeout_s,
            connect_timeout_s=connect_timeout_s,
            reconnect_timeout_s=reconnect_timeout_s,
            in_flight_bytes=in_flight_bytes,
            max_message_bytes=max_message_bytes,
            options=SocketOptions(
                tls=tls,
                sndbuf_bytes=sndbuf_bytes,
                congestion=congestion,
                dead_after_s=dead_after_s,
            ),
        )
        self._links = self._sender.links
        self._is_safe = delivery == Delivery.SAFE
        self._lock = threading.Lock()
        self._failure: LclstreamError | None = None
        self._sent = 0
        self._closed = False
        # Not an eventfd: to write to that would let the flusher run at once, and runs be short.
        self._armed = threading.Event()
        self._flusher: threading.Thread | None = None
        self._keeper: threading.Thread | None = None
        self._wake = -1
        self._is_awake = False
        self._seen = 0
        try:
            self._links.attempt(FIRST_CONNECT_S)
        except BaseException:
            self._links.close()
            raise
        _open.add(self)
        if self._is_safe:
            self._rouse()

    @property
    def urls(self) -> Sequence[str]:
        """The addresses that are dialled or listened at, with the real port in place of 0."""
        return self._links.urls

    @property
    def undelivered(self) -> int:
        """Messages known to be lost so far."""
        return self._sender.undelivered

    @property
    def unacknowledged(self) -> int:
        """Messages that are held because the buffer has not acknowledged them yet."""
        return self._sender.unaccepted

    @property
    def settled(self) -> int:
        """How many messages, from the first one on, are safe whatever becomes of this process.

        In safe delivery the buffer has accepted them, in fast delivery the kernel has them.
        """
        with self._lock:
            if self._is_safe:
                return self._sender.settled
            return self._sent - self._sender.run_messages

    def send(self, payload: Payload) -> None:
        """Send one message.

        Args:
            payload: its bytes; a list or tuple of buffers is sent as one message without copying
                them together.

        Raises:
            UnavailableError: nobody took it in time; it was not sent and may be sent again.
            DeliveryError: a connection broke with messages on it; this one was not sent.
            TooLargeError: it is above `max_message_bytes`; nothing was sent.
            InvalidConfigError: safe delivery, and the peer does not acknowledge.
            BufferClosedError: `close` was called.
        """
        pieces = pieces_of(payload)
        size_bytes = sum([len(piece) for piece in pieces])
        sender = self._sender
        sender.check_size(size_bytes)
        with self._lock:
            self._raise_failure()
            if size_bytes >= SMALL_BYTES or (
                size_bytes == CONTROL_BYTES and looks_like_control(b"".join(pieces))
            ):
                self._drive(sender.send(pieces, size_bytes))
            elif sender.queue(pieces, size_bytes):
                try:
                    self._drive(sender.flush_run())
                except (UnavailableError, InvalidConfigError):
                    # This one was not sent, and whoever hears so may send it again.
                    sender.take_back()
                    raise
            elif not self._armed.is_set():
                self._arm()
            self._sent += 1
            if self._is_safe:
                self._leave_to_keeper()

    def flush(self) -> None:
        """Hand everything to the kernel now.

        Raises:
            UnavailableError, DeliveryError: as `send`.
        """
        with self._lock:
            self._raise_failure()
            self._drive(self._sender.flush())

    def settle(self) -> None:
        """Return when all that was sent has arrived.

        In fast delivery it is the peers' kernels that have to acknowledge, in safe delivery the
        buffer.

        Raises:
            UnavailableError: they do not acknowledge it in time.
            DeliveryError: messages were lost.
        """
        with self._lock:
            self._raise_failure()
            self._drive(self._sender.settle())

    def send_end(self) -> None:
        """Send an empty message, which receivers may take for the end, to every connected peer.

        Raises:
            UnavailableError, DeliveryError: as `send`.
        """
        with self._lock:
            self._raise_failure()
            self._drive(self._sender.send_end())

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """End the stream; returns when every message is acknowledged.

        In fast delivery it is the peers' kernels that have to acknowledge, in safe delivery the
        buffer.

        Raises:
            DeliveryError: messages were lost, now or before; `undelivered` says how many.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            try:
                if self._failure is not None and not isinstance(self._failure, UnavailableError):
                    logger.warning("run_failed", extra={"reason": str(self._failure)})
                self._drive(self._sender.finish(timeout_s))
            finally:
                self._links.close()
                _open.discard(self)
        self._stop_threads()
        if self.undelivered:
            raise DeliveryError(f"{self.undelivered} messages not delivered", self.undelivered)

    def abort(self) -> None:
        """Close all connections without waiting; what the kernel has still goes out.

        A buffer counts the stream as unfinished.
        """
        with self._lock:
            if not self._closed:
                self._closed = True
                self._sender.abort()
                _open.discard(self)
        self._stop_threads()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            # The error that is on its way says more than what would come of waiting.
            self.abort()

    def _raise_failure(self) -> None:
        if self._closed:
            raise BufferClosedError("send after close")
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _drive(self, steps: Steps) -> None:
        step = self._sender.step
        try:
            for patience_s in steps:
                step(patience_s)
        except BaseException:
            # Now, not when nobody looks at the traceback any more.
            steps.close()
            raise

    # The thread that sends runs.

    def _arm(self) -> None:
        """Have the run sent as soon as this thread pauses."""
        if self._flusher is None:
            self._flusher = threading.Thread(target=self._flush_runs, name="push", daemon=True)
            self._flusher.start()
        self._armed.set()

    def _flush_runs(self) -> None:
        while True:
            self._armed.wait()
            with self._lock:
                self._armed.clear()
                if self._closed:
                    return
                try:
                    self._drive(self._sender.flush_run())
                except LclstreamError as error:
                    # Whoever sends next is told.
                    self._failure = error
                if self._is_safe:
                    self._leave_to_keeper()

    # The thread that looks after the connections in safe delivery.

    def _leave_to_keeper(self) -> None:
        """Have the connections looked after if they need it while nobody calls."""
        if not self._is_awake and self._sender.needs_care(self._seen):
            self._rouse()

    def _rouse(self) -> None:
        if self._keeper is None:
            self._wake = os.eventfd(0, os.EFD_CLOEXEC)
            self._keeper = threading.Thread(target=self._keep, name="push-keeper", daemon=True)
            self._keeper.start()
        self._is_awake = True
        os.eventfd_write(self._wake, 1)

    def _keep(self) -> None:
        while True:
            self._sleep()
            with self._lock:
                self._is_awake = False
                if self._closed:
                    return
                self._sender.step(0.0)

    def _sleep(self) -> None:
        """Return when there is something to do that no other thread does."""
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        with self._lock:
            if self._closed:
                return
            self._seen = self._sender.changes
            due_s = self._sender.due_s()
            if self._sender.is_calm:
                # Acknowledgements can wait for the next message.
                for link in self._links.ready:
                    poll.register(link.sock, select.POLLRDHUP)
            else:
                poll.register(self._links.fileno(), select.POLLIN)
        happened = poll.poll(None if due_s is None else due_s * 1000)
        if (self._wake, select.POLLIN) in happened:
            os.eventfd_read(self._wake)

    def _stop_threads(self) -> None:
        if self._flusher is not None:
            self._armed.set()
            self._flusher.join()
        if self._keeper is not None:
            os.eventfd_write(self._wake, 1)
            self._keeper.join()
            self._keeper = None
            os.close(self._wake)


def make_sender(
    urls: str | Sequence[str],
    *,
    listen: bool,
    delivery: Delivery | str,
    connections: int,
    send_timeout_s: float | None,
    connect_timeout_s: float,
    reconnect_timeout_s: float,
    in_flight_bytes: int,
    max_message_bytes: int,
    options: SocketOptions,
) -> Sender:
    """Return what sends, for the arguments of `Push`.

    Raises:
        InvalidConfigError: names the argument.
    """
    if delivery not in list(Delivery):
        raise InvalidConfigError(f"delivery must be 'fast' or 'safe', got {delivery!r}")
    if listen and delivery == Delivery.SAFE:
        raise InvalidConfigError("delivery 'safe' dials a buffer: it cannot listen")
    if in_flight_bytes < 1:
        raise InvalidConfigError(f"in_flight_bytes must be >= 1, got {in_flight_bytes!r}")
    return Sender(
        Links(
            urls,
            listening=listen,
            protocol=Protocol.PUSH,
            options=options,
            connections=connections,
        ),
        delivery=Delivery(delivery),
        send_timeout_s=math.inf if send_timeout_s is None else send_timeout_s,
        connect_timeout_s=connect_timeout_s,
        reconnect_timeout_s=reconnect_timeout_s,
        in_flight_bytes=in_flight_bytes,
        max_message_bytes=max_message_bytes,
        dead_after_s=options.dead_after_s,
    )


def _close_all(close: Callable[["Push"], None]) -> None:
    for push in list(_open):
        try:
            close(push)
        except LclstreamError:
            logger.exception("not_delivered_at_exit")


atexit.register(_close_all, Push.close)
