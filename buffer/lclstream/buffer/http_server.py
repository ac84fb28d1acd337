"""A small HTTP/1.1 server: a few endpoints, short requests, short answers.

Everything a client may use up has a bound: connections, bytes of a request, time for each of
its steps. So nobody can tie it up by being slow, large or many.
"""

import asyncio
import contextlib
import json
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import h11

from lclstream.core.errors import LclstreamError, RequestError, TooLargeError

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 64
MAX_HEAD_BYTES = 16 * 1024
MAX_BODY_BYTES = 64 * 1024
READ_BYTES = 16 * 1024
TLS_TIMEOUT_S = 5.0
# From the first byte of a request to its last.
REQUEST_TIMEOUT_S = 10.0
# Between two requests of one connection.
IDLE_TIMEOUT_S = 60.0
ANSWER_TIMEOUT_S = 10.0
BACKLOG = 64

JSON = "application/json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a client asks."""

    method: str
    path: str
    body: bytes
    certificate: Mapping[str, Any] | None
    """As `ssl` gives it; None if the connection is not inside TLS."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What it gets."""

    status: int = 200
    content: bytes = b""
    media_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, values: Any, status: int = 200) -> "Answer":
        """Return an answer in JSON."""
        return cls(status=status, content=json.dumps(values).encode() + b"\n")

    @classmethod
    def to_error(cls, error: LclstreamError) -> "Answer":
        """Return the answer from which a client rebuilds an error."""
        return cls.of(error.body(), error.status)


Respond = Callable[[Request], Awaitable[Answer]]


class HttpServer:
    """Serves one listening socket.

    Resource handling: owns the socket and all connections; `close` ends them.

    Error handling: a client that breaks a rule is told so, if it still listens, and cut off;
    nothing of a client's doing is raised.

    Args:
        listener: a listening socket.
        respond: answers a request; an `LclstreamError` of it goes to the client.
        context: of a TLS server; None: without TLS.
    """

    def __init__(
        self, listener: socket.socket, respond: Respond, context: ssl.SSLContext | None = None
    ) -> None:
        self._listener = listener
        self._respond = respond
        self._context = context
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begin to serve."""
        is_unix = self._listener.family is socket.AF_UNIX
        start: Any = asyncio.start_unix_server if is_unix else asyncio.start_server
        tls = {"ssl": self._context, "ssl_handshake_timeout": TLS_TIMEOUT_S}
        self._server = await start(
            self._on_connection,
            sock=self._listener,
            limit=READ_BYTES,
            backlog=BACKLOG,
            **(tls if self._context else {}),
        )

    async def close(self) -> None:
        """End all connections and stop."""
        if self._server is not None:
            self._server.close()
        self._listener.close()
        for task in self._connections:
            task.cancel()
        if self._connections:
            await asyncio.wait(self._connections)

    async def _on_connection(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101
        if len(self._connections) >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        self._connections.add(task)
        # An answer is given when all of it has left.
        writer.transport.set_write_buffer_limits(0)
        try:
            await Conversation(reader, writer, self._respond).run()
        except (OSError, TimeoutError, h11.RemoteProtocolError) as error:
            logger.debug("control_connection_ended", extra={"reason": str(error)})
        except asyncio.CancelledError:
            # Only `close` does that; the task has nothing else to do.
            pass
        finally:
            self._connections.discard(task)
            # What was answered has left. To wait for a goodbye would be to wait for a client.
            writer.transport.abort()


class Conversation:
    """One connection: requests and answers by turns."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, respond: Respond
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._respond = respond
        self._protocol = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)

    async def run(self) -> None:
        """Talk until one side wants no more.

        Raises:
            TimeoutError: the client was too slow.
            OSError: the connection broke.
            RemoteProtocolError: the client does not speak HTTP.
        """
        while await self._take_turn():
            self._protocol.start_next_cycle()

    async def _take_turn(self) -> bool:
        """Serve one request; return whether another one may follow."""
        if not await self._wait_for_first_byte():
            return False
        async with asyncio.timeout(REQUEST_TIMEOUT_S):
            try:
                request = await self._receive()
            except h11.RemoteProtocolError as error:
                await self._send(Answer.to_error(RequestError(f"not HTTP: {error}")), last=True)
                return False
            except TooLargeError as error:
                await self._send(Answer.to_error(error), last=True)
                return False
        if request is None:
            return False
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            await self._send(await self._answer(request))
        return self._protocol.our_state is h11.DONE and self._protocol.their_state is h11.DONE

    async def _wait_for_first_byte(self) -> bool:
        """Wait for a request to begin; return False if none does."""
        if self._protocol.trailing_data[0]:
            return True
        async with asyncio.timeout(IDLE_TIMEOUT_S):
            data = await self._reader.read(READ_BYTES)
        self._protocol.receive_data(data)
        return bool(data)

    async def _receive(self) -> Request | None:
        head: h11.Request | None = None
        body = bytearray()
        while True:
            event = self._protocol.next_event()
            if event is h11.NEED_DATA:
                if self._protocol.they_are_waiting_for_100_continue:
                    go_on = h11.InformationalResponse(status_code=100, headers=[])
                    await self._write(self._protocol.send(go_on))
                self._protocol.receive_data(await self._reader.read(READ_BYTES))
            elif isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > MAX_BODY_BYTES:
                    raise TooLargeError(f"the request is larger than {MAX_BODY_BYTES} bytes")
            elif isinstance(event, h11.EndOfMessage) and head is not None:
                return Request(
                    method=head.method.decode("ascii"),
                    path=head.target.decode("ascii", "replace").partition("?")[0],
                    body=bytes(body),
                    certificate=self._writer.get_extra_info("peercert"),
                )
            else:
                return None

    async def _answer(self, request: Request) -> Answer:
        try:
            return await self._respond(request)
        except LclstreamError as error:
            return Answer.to_error(error)
        except Exception:
            logger.exception("request_failed", extra={"path": request.path})
            return Answer.to_error(LclstreamError("internal error, see the log"))

    async def _send(self, answer: Answer, *, last: bool = False) -> None:
        headers = {
            "Content-Type": answer.media_type,
            "Content-Length": str(len(answer.content)),
            "Cache-Control": "no-store",
            **answer.headers,
        }
        if last:
            headers["Connection"] = "close"
        head = h11.Response(status_code=answer.status, headers=list(headers.items()))
        with contextlib.suppress(h11.LocalProtocolError):
            # A client that has broken the protocol gets no more of it.
            parts = [self._protocol.send(head), self._protocol.send(h11.Data(data=answer.content))]
            parts.append(self._protocol.send(h11.EndOfMessage()))
            await self._write(b"".join(part for part in parts if part))

    async def _write(self, data: bytes | None) -> None:
        if data:
            self._writer.write(data)
            await self._writer.drain()
