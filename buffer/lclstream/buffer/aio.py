"""The ends of a stream for asyncio: what `Push` and `Pull` are, without blocking or threads."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from types import TracebackType
from typing import Protocol, Self

from lclstream.buffer import tcp
from lclstream.buffer.config import Delivery
from lclstream.buffer.control import CONTROL_BYTES, looks_like_control
from lclstream.buffer.links import FIRST_CONNECT_S, Links, SocketOptions
from lclstream.buffer.outgoing import Payload, pieces_of
from lclstream.buffer.pull import MAX_MESSAGE_BYTES, make_receiver
from lclstream.buffer.pull import RECONNECT_TIMEOUT_S as PULL_RECONNECT_TIMEOUT_S
from lclstream.buffer.push import (
    CLOSE_TIMEOUT_S,
    CONNECT_TIMEOUT_S,
    IN_FLIGHT_BYTES,
    RECONNECT_TIMEOUT_S,
    make_sender,
)
from lclstream.buffer.receiving import LinkCount
from lclstream.buffer.sending import SMALL_BYTES, Steps
from lclstream.core.errors import (
    BufferClosedError,
    DeliveryError,
    EndOfStream,
    InvalidConfigError,
    LclstreamError,
    UnavailableError,
)
from lclstream.core.tls import Credentials


class Stepper(Protocol):
    """What deals with the events of an end's connections."""

    links: Links

    def step(self, timeout_s: float) -> None:
        """Deal with what has happened; with no time to wait it does not block."""

    def look(self) -> bool:
        """Deal with what can be dealt with while nobody waits; return whether that was all."""


class Driver:
    """Has the event loop wait where the blocking ends wait themselves."""

    def __init__(self, stepper: Stepper) -> None:
        self._stepper = stepper
        self._number = stepper.links.fileno()
        self._loop = asyncio.get_running_loop()
        self._waiters: set[asyncio.Future[None]] = set()
        self._watching = False
        self._closed = False

    async def run(self, steps: Steps) -> None:
        """Go through the steps of an end; cancelling is an interruption of them."""
        with closing(steps):
            for patience_s in steps:
                due_s = self._stepper.links.patience_s(time.monotonic())
                await self.wait(patience_s if due_s is None else min(patience_s, due_s))
                self._stepper.step(0.0)

    async def connect(self) -> None:
        """Try every address once."""
        await self.run(self._first_attempts())

    async def wait(self, timeout_s: float | None) -> None:
        """Return when something has happened, the time has passed or somebody was roused.

        Raises:
            BufferClosedError: this end was closed meanwhile.
        """
        self.watch()
        waiter = self._loop.create_future()
        self._waiters.add(waiter)
        timer = None if timeout_s is None else self._loop.call_later(timeout_s, _wake, waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)
            if timer is not None:
                timer.cancel()
        if self._closed:
            raise BufferClosedError("closed while it was waited for")

    def watch(self) -> None:
        """Have events noticed from now on."""
        if not self._watching and not self._closed:
            self._loop.add_reader(self._number, self._happened)
            self._watching = True

    def rouse(self) -> None:
        """Have all that wait look what there is to do."""
        for waiter in self._waiters:
            _wake(waiter)

    def close(self) -> None:
        """Watch no more; to be called before the connections are closed."""
        self._closed = True
        if self._watching:
            self._loop.remove_reader(self._number)
            self._watching = False
        self.rouse()

    def _happened(self) -> None:
        if self._waiters:
            self.rouse()
        elif not self._stepper.look():
            # Nobody asks for the rest now, and it would be told again and again.
            self._loop.remove_reader(self._number)
            self._watching = False

    def _first_attempts(self) -> Steps:
        deadline = time.monotonic() + FIRST_CONNECT_S
        self._stepper.step(0.0)
        while self._stepper.links.is_attempting and time.monotonic() < deadline:
            yield deadline - time.monotonic()


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class AsyncPush:
    """`Push` for asyncio; its arguments, promises and errors are the same.

    To be used as `async with`, which makes the first attempt to connect. Names of hosts are
    looked up without leaving the event loop in between.

    A `send` that is cancelled has not sent its message, unless in safe delivery it was only
    waiting for the kernel: then the message is in the stream, and will arrive.

    Resource handling: an asynchronous context manager; owns its sockets and one task.
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
        self._lock = asyncio.Lock()
        self._failure: LclstreamError | None = None
        self._closed = False
        self._roused = False
        self._driver: Driver | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def urls(self) -> Sequence[str]:
        """The addresses that are dialled or listened at, with the real port in place of 0."""
        return self._sender.links.urls

    @property
    def undelivered(self) -> int:
        """Messages known to be lost so far."""
        return self._sender.undelivered

    @property
    def unacknowledged(self) -> int:
        """Messages that are held because the buffer has not acknowledged them yet."""
        return self._sender.unaccepted

    async def send(self, payload: Payload) -> None:
        """Send one message; as `Push.send`."""
        pieces = pieces_of(payload)
        size_bytes = sum([len(piece) for piece in pieces])
        sender = self._sender
        sender.check_size(size_bytes)
        async with self._lock:
            driver = self._opened()
            if size_bytes >= SMALL_BYTES or (
                size_bytes == CONTROL_BYTES and looks_like_control(b"".join(pieces))
            ):
                await driver.run(sender.send(pieces, size_bytes))
            elif sender.queue(pieces, size_bytes):
                try:
                    await driver.run(sender.flush_run())
                except (UnavailableError, InvalidConfigError, asyncio.CancelledError):
                    sender.take_back()
                    raise
            else:
                if not self._roused:
                    # The task gets its turn as soon as this one pauses.
                    self._roused = True
                    driver.rouse()
                return
        # Others want to work, too, even if nobody keeps this one waiting.
        await asyncio.sleep(0)

    async def flush(self) -> None:
        """Hand everything to the kernel now; as `Push.flush`."""
        async with self._lock:
            await self._opened().run(self._sender.flush())

    async def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """End the stream; as `Push.close`."""
        async with self._lock:
            if self._closed:
                return
            self._closed = True
            try:
                if self._driver is not None:
                    await self._driver.run(self._sender.finish(timeout_s))
            finally:
                self._close_links()
        await self._end_keeper()
        if self.undelivered:
            raise DeliveryError(f"{self.undelivered} messages not delivered", self.undelivered)

    async def abort(self) -> None:
        """Close all connections without waiting; as `Push.abort`."""
        if not self._closed:
            self._closed = True
            self._sender.abort()
            self._close_links()
        await self._end_keeper()

    async def __aenter__(self) -> Self:
        self._driver = Driver(self._sender)
        try:
            await self._driver.connect()
        except BaseException:
            self._closed = True
            self._close_links()
            raise
        self._keeper = asyncio.create_task(self._keep(self._driver), name="push")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            await self.close()
        else:
            await self.abort()

    def _opened(self) -> Driver:
        if self._closed:
            raise BufferClosedError("send after close")
        if self._driver is None:
            raise BufferClosedError("send before the context was entered")
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        return self._driver

    def _close_links(self) -> None:
        if self._driver is not None:
            self._driver.close()
        self._sender.links.close()

    async def _keep(self, driver: Driver) -> None:
        """Send runs of small messages, and look after the connections."""
        while True:
            try:
                if not self._roused:
                    await driver.wait(self._sender.due_s())
            except BufferClosedError:
                return
            async with self._lock:
                self._roused = False
                if self._closed:
                    return
                try:
                    await driver.run(self._sender.flush_run())
                    self._sender.step(0.0)
                except LclstreamError as error:
                    self._failure = error

    async def _end_keeper(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])


class AsyncPull:
    """`Pull` for asyncio; its arguments, promises and errors are the same.

    To be used as `async with`, which makes the first attempt to connect; iterating gives all
    messages. A `recv` that is cancelled takes no message away.

    Resource handling: an asynchronous context manager without tasks; owns its sockets.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        *,
        listen: bool = False,
        acknowledge: bool = False,
        auto: bool = True,
        reconnect: bool = True,
        reconnect_timeout_s: float = PULL_RECONNECT_TIMEOUT_S,
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
        self._driver: Driver | None = None

    @property
    def urls(self) -> Sequence[str]:
        """The addresses that are dialled or listened at, with the real port in place of 0."""
        return self._receiver.links.urls

    @property
    def connections(self) -> int:
        """How many connections stand now."""
        return len(self._receiver.links.ready)

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

    async def recv(self, timeout_s: float | None = None) -> memoryview:
        """Return the next message; as `Pull.recv`."""
        receiver = self._receiver
        if self._driver is None:
            raise BufferClosedError("receive before the context was entered")
        if self._acknowledge and self._auto:
            receiver.done(1)
        # Another task may take what was just read.
        while not receiver.messages:
            if receiver.read():
                # Others want to work, too, even if there is always something to read.
                await asyncio.sleep(0)
            else:
                await self._driver.run(receiver.more(timeout_s))
        return receiver.take() if self._acknowledge else receiver.messages.popleft()

    def done(self, count: int = 1) -> None:
        """Tell that the program has finished messages; as `Pull.done`."""
        self._receiver.done(count)

    async def close(self) -> None:
        """Close all connections; as `Pull.close`."""
        if self._receiver.closed:
            return
        try:
            if self._driver is not None:
                await self._driver.run(self._receiver.leave())
        finally:
            if self._driver is not None:
                self._driver.close()
            self._receiver.close()

    def __aiter__(self) -> AsyncIterator[memoryview]:
        return self._all()

    async def _all(self) -> AsyncIterator[memoryview]:
        while True:
            try:
                message = await self.recv()
            except EndOfStream:
                return
            yield message

    async def __aenter__(self) -> Self:
        self._driver = Driver(self._receiver)
        try:
            await self._driver.connect()
        except BaseException:
            self._driver.close()
            self._receiver.close()
            raise
        # Peers that dial us shall not have to wait until somebody asks for a message.
        self._driver.watch()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None and self._auto:
            self._receiver.done(self._receiver.in_hand)
        await self.close()
