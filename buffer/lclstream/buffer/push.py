"""A producer's end of a stream: pushes whole messages to buffers or consumers."""

import atexit
import contextlib
import logging
import math
import select
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from types import TracebackType
from typing import Self, cast

from lclstream.buffer import tcp
from lclstream.buffer.links import FIRST_CONNECT_S, Link, Links
from lclstream.buffer.sp import HEADER_BYTES, Protocol, header
from lclstream.core.errors import (
    BufferClosedError,
    DeliveryError,
    LclstreamError,
    TooLargeError,
    UnavailableError,
)

logger = logging.getLogger(__name__)

Piece = bytes | bytearray | memoryview
Payload = Piece | Sequence[Piece]

MAX_MESSAGE_BYTES = 1 << 30
# Smaller messages that follow each other closely are copied together and sent as one run.
SMALL_BYTES = 32 * 1024
RUN_BYTES = 256 * 1024
# A message that comes later than this after the one before is sent at once.
LONE_AFTER_S = 0.0001
# The kernel takes at most 1024 pieces in one call.
PIECES_PER_CALL = 512
# Ask for acknowledgements rarely: it is a system call.
ENDS_BEFORE_ASKING = 1024
CONNECT_TIMEOUT_S = 30.0
# How often to look whether a peer that takes nothing is still there.
CHECK_INTERVAL_S = 5.0
HOST_SILENT = "peer's host does not answer"
CLOSE_TIMEOUT_S = 60.0

_open: "weakref.WeakSet[Push]" = weakref.WeakSet()


class Push:
    """Sends messages to one or more pulling peers; speaks SP as an NNG Push0 socket does.

    `send` returns when the message was copied or is in the kernel: its memory may be used
    again. Several connections take turns, those that can be written to first. A run of small
    messages is sent together; a message after a pause is never held back.

    A connection that breaks is made again. If messages are lost with it `send` (or `close`)
    raises DeliveryError with their number, the message of that call included; what only had
    been begun is sent again elsewhere.

    Resource handling: a context manager; `close` waits until the peer's kernel has acknowledged
    every byte. Owns its sockets, and one thread from the first run of small messages on. May be
    used by several threads.

    Args:
        urls: one address or several, `tcp://HOST:PORT`.
        listen: wait for peers at the addresses instead of dialling them.
        send_timeout_s: how long a message may wait for a peer to take it; None for ever.
        connect_timeout_s: how long a message may wait while there is no connection at all.
        max_message_bytes: refuse a larger message; a receiver would cut the connection and
            with it lose what follows.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        *,
        listen: bool = False,
        send_timeout_s: float | None = None,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        self._send_timeout_s = math.inf if send_timeout_s is None else send_timeout_s
        self._connect_timeout_s = min(connect_timeout_s, self._send_timeout_s)
        self._max_message_bytes = max_message_bytes
        self._lock = threading.Lock()
        self._run = bytearray()
        self._run_sizes: list[int] = []
        self._last = 0.0
        self._undelivered = 0
        self._lost = 0
        self._problem = ""
        self._failure: LclstreamError | None = None
        self._closed = False
        self._flusher: threading.Thread | None = None
        self._armed = threading.Event()
        self._links = Links(urls, listening=listen, protocol=Protocol.PUSH)
        try:
            self._links.attempt(FIRST_CONNECT_S)
        except BaseException:
            self._links.close()
            raise
        _open.add(self)

    @property
    def urls(self) -> Sequence[str]:
        """The addresses that are dialled or listened at, with the real port in place of 0."""
        return self._links.urls

    @property
    def undelivered(self) -> int:
        """Messages known to be lost so far."""
        return self._undelivered

    def send(self, payload: Payload) -> None:
        """Send one message.

        Args:
            payload: its bytes; a list or tuple of buffers is sent as one message without copying
                them together.

        Raises:
            UnavailableError: nobody took it in time; it was not sent and may be sent again.
            DeliveryError: a connection broke with messages on it; this one was not sent.
            TooLargeError: it is above `max_message_bytes`; nothing was sent.
            BufferClosedError: `close` was called.
        """
        pieces = _pieces(payload)
        size_bytes = sum(len(piece) for piece in pieces)
        if size_bytes > self._max_message_bytes:
            raise TooLargeError(
                f"a message of {size_bytes} bytes is above the limit of {self._max_message_bytes}"
            )
        with self._lock:
            self._raise_failure()
            if size_bytes >= SMALL_BYTES:
                self._flush()
                self._write(
                    deque([memoryview(header(size_bytes)), *pieces]),
                    deque([HEADER_BYTES + size_bytes]),
                )
            else:
                self._send_small(pieces, size_bytes)

    def flush(self) -> None:
        """Hand everything to the kernel now.

        Raises:
            UnavailableError, DeliveryError: as `send`.
        """
        with self._lock:
            self._raise_failure()
            self._flush()

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """End the stream; returns when every byte is acknowledged by the peers' kernels.

        Raises:
            DeliveryError: messages were lost, now or before; `undelivered` says how many.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            deadline = time.monotonic() + timeout_s
            try:
                self._finish(deadline)
            finally:
                self._links.close()
                _open.discard(self)
        self._stop_flusher()
        if self._undelivered:
            raise DeliveryError(f"{self._undelivered} messages not delivered", self._undelivered)

    def abort(self) -> None:
        """Close all connections without waiting; what the kernel has still goes out."""
        with self._lock:
            self._closed = True
            self._links.close()
            _open.discard(self)
        self._stop_flusher()

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
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    # Runs of small messages.

    def _send_small(self, pieces: Sequence[memoryview], size_bytes: int) -> None:
        now = time.monotonic()
        lone = now - self._last > LONE_AFTER_S
        self._last = now
        self._run += header(size_bytes)
        for piece in pieces:
            self._run += piece
        self._run_sizes.append(HEADER_BYTES + size_bytes)
        if lone or len(self._run) >= RUN_BYTES:
            try:
                self._flush()
            except UnavailableError:
                # This one was not sent, and whoever hears so may send it again.
                del self._run[-self._run_sizes.pop() :]
                raise
        elif not self._armed.is_set():
            self._arm()

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
                    self._flush()
                except LclstreamError as error:
                    self._failure = error

    def _stop_flusher(self) -> None:
        if self._flusher is not None:
            self._armed.set()
            self._flusher.join()

    def _flush(self) -> None:
        if not self._run_sizes:
            return
        left = deque([memoryview(self._run)])
        sizes = deque(self._run_sizes)
        self._run, self._run_sizes = bytearray(), []
        try:
            self._write(left, sizes)
        except DeliveryError:
            # They are counted already.
            raise
        except BaseException:
            # What was not sent, be it for an interruption, goes out with the next run.
            self._run, self._run_sizes = bytearray().join(left), list(sizes)
            raise

    # Writing to the connections.

    def _write(self, left: deque[memoryview], sizes: deque[int]) -> None:
        """Write whole messages to one connection, or the rest of them to another.

        Args:
            left: their bytes, headers included; those that were sent are taken away.
            sizes: the length of each message on the wire, likewise.
        """
        deadline = time.monotonic() + self._send_timeout_s
        while sizes:
            link = self._writable_link(deadline)
            if link is None:
                self._raise_if_lost(len(sizes))
                raise self._unavailable()
            ends = _ends(link.sent_bytes, sizes)
            link.ends.extend(ends)
            try:
                problem = self._write_to(link, deque(left), deadline)
            except BaseException:
                # Interrupted: what is half written can never be finished.
                _forget_written(left, sizes, ends, link)
                self._drop(link, "interrupted")
                raise
            if problem is None:
                if len(link.ends) >= ENDS_BEFORE_ASKING:
                    link.acknowledged()
                return
            _forget_written(left, sizes, ends, link)
            self._drop(link, problem)
            self._raise_if_lost(len(sizes))
            if time.monotonic() >= deadline:
                raise UnavailableError(f"connection to {link.peer} given up: {problem}")

    def _writable_link(self, deadline: float) -> Link | None:
        """Return the connection whose turn it is; None if messages were lost or none in time."""
        connect_deadline = time.monotonic() + self._connect_timeout_s
        while True:
            ready = self._links.ready
            events = [(link, select.POLLIN | select.POLLOUT) for link in ready]
            now = time.monotonic()
            until = deadline if ready else min(deadline, connect_deadline)
            patience_s = min(max(until - now, 0.0), CHECK_INTERVAL_S)
            for link in self._links.wait(patience_s, events):
                if self._alive(link):
                    # Who was served goes to the end of the queue.
                    ready.remove(link)
                    ready.append(link)
                    return link
            for link in [link for link in self._links.ready if tcp.is_dead(link.sock)]:
                self._drop(link, HOST_SILENT)
            if self._lost or time.monotonic() >= until:
                return None

    def _unavailable(self) -> LclstreamError:
        if self._links.ready:
            return UnavailableError(
                f"no message taken within {self._send_timeout_s} s by {', '.join(self.urls)}"
            )
        return UnavailableError(
            f"no connection within {self._connect_timeout_s} s: {self._links.problems}"
        )

    def _alive(self, link: Link) -> bool:
        """Look whether the peer has closed; what it sends is discarded."""
        try:
            if link.sock.recv(4096):
                return True
        except BlockingIOError:
            return True
        except OSError as error:
            self._drop(link, str(error))
        else:
            self._drop(link, "closed by the peer")
        return False

    def _write_to(self, link: Link, left: deque[memoryview], deadline: float) -> str | None:
        """Write everything to one connection; return what went wrong with it, if anything."""
        begun = link.sent_bytes
        while left:
            try:
                count = link.sock.sendmsg([left[i] for i in range(min(len(left), PIECES_PER_CALL))])
                link.sent_bytes += count
                _skip(left, count)
            except BlockingIOError:
                remaining_s = deadline - time.monotonic()
                if remaining_s <= 0:
                    taken = link.sent_bytes - begun
                    return f"only {taken} bytes taken within {self._send_timeout_s} s"
                if tcp.is_dead(link.sock):
                    return HOST_SILENT
                self._links.wait(min(remaining_s, CHECK_INTERVAL_S), [(link, select.POLLOUT)])
            except OSError as error:
                return str(error)
        return None

    def _drop(self, link: Link, problem: str) -> None:
        """Close a broken connection and count what it had not delivered."""
        lost = _lost(link)
        self._lost += lost
        logger.warning(
            "connection_lost", extra={"peer": link.peer, "reason": problem, "lost_messages": lost}
        )
        self._links.drop(link, redial=True, problem=problem)
        self._problem = f"connection to {link.peer} lost: {problem}"

    def _raise_if_lost(self, unsent: int) -> None:
        if self._lost:
            count, self._lost = self._lost + unsent, 0
            self._undelivered += count
            raise DeliveryError(f"{count} messages not delivered: {self._problem}", count)

    # The end.

    def _finish(self, deadline: float) -> None:
        """Send the rest and wait for the acknowledgements; counts what does not get through."""
        try:
            self._send_timeout_s = max(deadline - time.monotonic(), 0.0)
            self._connect_timeout_s = min(self._connect_timeout_s, self._send_timeout_s)
            self._flush()
        except DeliveryError as error:
            logger.warning("flush_failed", extra={"reason": str(error)})
        except UnavailableError as error:
            logger.warning("flush_failed", extra={"reason": str(error)})
            self._undelivered += len(self._run_sizes)
        if self._failure is not None and not isinstance(self._failure, UnavailableError):
            logger.warning("run_failed", extra={"reason": str(self._failure)})
        for link in list(self._links.ready):
            if not self._drained(link, deadline):
                self._undelivered += _lost(link)
        self._undelivered += self._lost

    def _drained(self, link: Link, deadline: float) -> bool:
        """Half-close and wait until everything is acknowledged; False if that fails."""
        pause_s = 0.0005
        # A reset by the peer shows in the acknowledgements.
        with contextlib.suppress(OSError):
            link.sock.shutdown(1)
        while link.acknowledged() < link.sent_bytes:
            if _is_over(link) or time.monotonic() >= deadline:
                return link.acknowledged() >= link.sent_bytes
            # No event tells of an acknowledgement.
            poll = select.poll()
            poll.register(link.sock, select.POLLRDHUP)
            poll.poll(pause_s * 1000)
            pause_s = min(2 * pause_s, 0.02)
        return True


def _pieces(payload: Payload) -> list[memoryview]:
    # Anything else than a list or tuple is one buffer, an array for instance.
    parts = payload if isinstance(payload, list | tuple) else [cast("Piece", payload)]
    views = [memoryview(part) for part in parts]
    # A view without elements cannot be cast.
    return [view.cast("B") for view in views if view.nbytes]


def _ends(base: int, sizes: Iterable[int]) -> list[int]:
    return [base + end for end in accumulate(sizes)]


def _skip(pieces: deque[memoryview], count: int) -> None:
    """Drop bytes, and empty pieces, from the front."""
    while pieces and count >= len(pieces[0]):
        count -= len(pieces.popleft())
    if count:
        pieces[0] = pieces[0][count:]


def _forget_written(
    left: deque[memoryview], sizes: deque[int], ends: Sequence[int], link: Link
) -> None:
    """Keep only the messages that were not written whole."""
    for _ in range(sum(end <= link.sent_bytes for end in ends)):
        _skip(left, sizes.popleft())


def _lost(link: Link) -> int:
    """Return how many messages were written whole and are not acknowledged."""
    link.acknowledged()
    return sum(end <= link.sent_bytes for end in link.ends)


def _is_over(link: Link) -> bool:
    """Look whether the peer has closed or reset the connection."""
    try:
        while True:
            if not link.sock.recv(4096):
                return True
    except BlockingIOError:
        return False
    except OSError:
        return True


def _close_all(close: Callable[["Push"], None]) -> None:
    for push in list(_open):
        try:
            close(push)
        except LclstreamError:
            logger.exception("not_delivered_at_exit")


atexit.register(_close_all, Push.close)
