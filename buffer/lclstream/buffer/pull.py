"""A consumer's end of a stream: pulls whole messages from buffers or producers."""

import logging
import select
import time
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from lclstream.buffer import tcp
from lclstream.buffer.links import FIRST_CONNECT_S, Link, Links, Target
from lclstream.buffer.sp import Protocol
from lclstream.buffer.views import Memories, MessageReader
from lclstream.core.errors import BufferClosedError, EndOfStream, StreamError

logger = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 1 << 30
# A dead buffer is restarted at the same address within this time, or not at all.
RECONNECT_TIMEOUT_S = 5.0
LONGEST_WAIT_S = 3600.0


class ReceiveTimeoutError(StreamError, TimeoutError):
    """No message came in time; more may come."""

    transient = True


class Pull:
    """Receives messages from one or more pushing peers; speaks SP as an NNG Pull0 socket does.

    A peer that half-closes or closes its connection between two messages has ended its stream.
    When all have, `recv` raises EndOfStream. A connection that breaks in any other way (reset,
    or closed inside a message) is dialled again; if then nobody listens for 5 s the stream is
    broken and `recv` raises BufferClosedError. Before its first connection a URL is dialled for
    as long as it takes.

    Resource handling: a context manager without threads; owns its sockets. Not for use by
    several threads at once.

    Args:
        urls: one address or several, `tcp://HOST:PORT`.
        listen: wait for peers at the addresses instead of dialling them.
        reconnect: False ends with BufferClosedError as soon as a connection breaks.
        peers: when listening, how many peers must have come before the end of all that came
            is the end of the stream.
        max_message_bytes: a peer that announces more is cut off.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        *,
        listen: bool = False,
        reconnect: bool = True,
        peers: int = 1,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        self._reconnect = reconnect
        self._peers = peers
        self._max_message_bytes = max_message_bytes
        self._memories = Memories()
        self._readers: dict[Link, MessageReader] = {}
        self._messages: deque[memoryview] = deque()
        self._broken: str | None = None
        self._closed = False
        self.partial = 0
        """Messages that began and never became whole because their connection broke."""
        self._links = Links(urls, listening=listen, protocol=Protocol.PULL)
        try:
            self._links.attempt(FIRST_CONNECT_S)
        except BaseException:
            self._links.close()
            raise

    @property
    def urls(self) -> Sequence[str]:
        """The addresses that are dialled or listened at, with the real port in place of 0."""
        return self._links.urls

    @property
    def connections(self) -> int:
        """How many connections stand now."""
        return len(self._links.ready)

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
        deadline = time.monotonic() + (LONGEST_WAIT_S if timeout_s is None else timeout_s)
        while not self._messages:
            if self._closed:
                raise BufferClosedError("receive after close")
            if self._read_all():
                continue
            self._raise_if_over()
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0 and timeout_s is not None:
                raise ReceiveTimeoutError(f"no message within {timeout_s} s")
            self._links.wait(
                min(max(remaining_s, 0.0), self._patience_s()),
                [(link, select.POLLIN) for link in self._links.ready],
            )
        return self._messages.popleft()

    def close(self) -> None:
        """Close all connections; a peer learns when messages were left unread."""
        if self._closed:
            return
        self._closed = True
        if self._messages:
            for link in self._links.ready:
                tcp.reset_on_close(link.sock)
        self._links.close()
        self._readers.clear()
        self._messages.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _read_all(self) -> bool:
        """Read from every connection that has something; return whether one had."""
        # A copy: a connection may end while it is read.
        return any([self._read(link) for link in list(self._links.ready)])  # noqa: C419

    def _read(self, link: Link) -> bool:
        reader = self._readers.get(link)
        if reader is None:
            reader = self._readers[link] = MessageReader(self._memories, self._max_message_bytes)
        try:
            count = link.sock.recv_into(reader.space())
            if count:
                self._messages.extend(reader.filled(count))
        except BlockingIOError:
            return False
        except OSError as error:
            self._lost(link, str(error))
        else:
            if reader.fault is not None:
                self._lost(link, str(reader.fault))
            elif count:
                pass
            elif reader.partial:
                self._lost(link, "closed inside a message")
            else:
                self._ended(link)
        return True

    def _ended(self, link: Link) -> None:
        logger.info("stream_ended", extra={"peer": link.peer})
        self._readers.pop(link)
        self._links.drop(link, redial=False)

    def _lost(self, link: Link, problem: str) -> None:
        logger.warning("connection_lost", extra={"peer": link.peer, "reason": problem})
        self.partial += self._readers.pop(link).partial
        self._links.drop(link, redial=self._reconnect, problem=problem)
        if not self._reconnect:
            self._broken = f"connection to {link.peer} lost: {problem}"

    def _raise_if_over(self) -> None:
        if self._broken:
            raise BufferClosedError(self._broken)
        for target in self._links.targets:
            if self._is_gone(target):
                raise BufferClosedError(
                    f"connection to {target.address} lost and not taken up again: {target.problem}"
                )
        if self._links.targets:
            over = all(target.ended for target in self._links.targets)
        else:
            over = self._links.ever >= self._peers and not self._links.ready
        if over:
            raise EndOfStream("every peer has ended its stream")

    def _is_gone(self, target: Target) -> bool:
        return (
            target.lost_at is not None
            and not target.ended
            and target.refused
            and time.monotonic() - target.lost_at >= RECONNECT_TIMEOUT_S
        )

    def _patience_s(self) -> float:
        """Return how long nothing needs to be decided."""
        lost = any(target.lost_at and not target.ended for target in self._links.targets)
        return RECONNECT_TIMEOUT_S / 10 if lost else LONGEST_WAIT_S
