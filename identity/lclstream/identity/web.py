"""A web service behind mutual TLS, and the clients that talk to it.

```python
app = FastAPI()
install_error_handlers(app)


@app.get("/who")
async def who(caller: CallerDep) -> str:
    return caller.name


async with WebService(app, Path("identity")) as service:
    async with client(Path("identity"), service.url) as http:
        await http.get("/who")
```
"""

import asyncio
import socket
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import uvicorn

from lclstream.core.errors import BackendError, UnavailableError
from lclstream.core.lifecycle import Service, Work
from lclstream.identity.authority import REVOKED
from lclstream.identity.client import client, sync_client
from lclstream.identity.protocol import Application, peer_protocol
from lclstream.identity.revocation import RevocationCheck
from lclstream.identity.tls import server_context, trusted_roots

__all__ = ["WebService", "client", "sync_client"]

# What a request in flight gets to end by itself; less than the service's own time to close.
GRACE_S = 5
WILDCARDS = frozenset({"0.0.0.0", "::", ""})  # noqa: S104


class WebService(Service):
    """Serves one ASGI application over HTTPS with client certificates, and nothing else.

    Resource handling: owns one listening socket, from entering to `wait_closed`. Requests in
    flight get `GRACE_S` to end. Work given besides is stopped after the web.

    Error handling: raises `UnavailableError` when the address is taken, `IdentityError` when the
    identity folder cannot be used, `BackendError` when the application does not start.
    """

    def __init__(
        self,
        app: Application,
        identity: Path,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        work: Sequence[Work] = (),
    ) -> None:
        super().__init__([*work, self._web])
        self._app = app
        self._identity = identity
        self._host = host
        self._port = port
        self._socket: socket.socket | None = None
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        """The port that it listens on; the asked one before the service is ready."""
        return self._port

    @property
    def url(self) -> str:
        """Where clients find the service, without a slash at the end."""
        host = socket.gethostname() if self._host in WILDCARDS else self._host
        return f"https://[{host}]:{self.port}" if ":" in host else f"https://{host}:{self.port}"

    async def started(self) -> None:
        """Listen and start the application."""
        context = server_context(self._identity)
        roots = trusted_roots(self._identity, "known_clients")
        revocation = RevocationCheck(self._identity / REVOKED, roots)
        self._socket = _listen(self._host, self._port)
        self._port = self._socket.getsockname()[1]
        config = uvicorn.Config(
            self._app,
            http=peer_protocol(revocation, roots),
            ws="none",
            ssl_context_factory=lambda config, default: context,
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=GRACE_S,
        )
        self._server = _Server(config)
        self._serving = asyncio.create_task(self._server.serve([self._socket]), name="uvicorn")
        ready = asyncio.create_task(self._server.ready.wait(), name="uvicorn ready")
        await asyncio.wait({self._serving, ready}, return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            ready.cancel()
            await asyncio.wait({ready})
            await self._serving
            raise BackendError("the web server ended while it started")

    async def stopped(self) -> None:
        """Stop listening and close every connection."""
        await self._end()
        if self._socket is not None:
            self._socket.close()

    async def _web(self) -> None:
        if self._serving is None:
            raise BackendError("the web server was not started")
        try:
            await asyncio.shield(self._serving)
        finally:
            await self._end()

    async def _end(self) -> None:
        if self._server is not None and self._serving is not None:
            self._server.should_exit = True
            await asyncio.wait({self._serving})


class _Server(uvicorn.Server):
    """A server that leaves signals to `lifecycle.serve` and tells when it is ready."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        return nullcontext()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        except SystemExit as error:
            raise BackendError("the application did not start, its error is in the log") from error
        self.ready.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        for connection in list(self.server_state.connections):
            connection.transport.abort()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        raise UnavailableError(f"cannot listen on {host}:{port}: {error.strerror}") from error
