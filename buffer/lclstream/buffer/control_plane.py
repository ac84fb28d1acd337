"""Watch a buffer and tell it what to do, over HTTP.

| request | answer |
|---|---|
| `GET /v1/statistics` | all figures, JSON |
| `GET /metrics` | the same for Prometheus |
| `GET /health` | whether it works, and its state |
| `POST /v1/drain` | `{"reason": TEXT, "deadline_s": SECONDS}`, both optional |
| `POST /v1/stop` | `{"reason": TEXT}` |

Over a Unix socket, which only its owner can connect to, everything is allowed. Over HTTPS a
client shows a certificate, and a POST is for those whose name is on a list.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

from pydantic import Field, ValidationError

from lclstream.buffer import metrics
from lclstream.buffer.control_address import ControlAddress
from lclstream.buffer.http_server import Answer, HttpServer, Request
from lclstream.buffer.transport import certified_names
from lclstream.core.errors import (
    InvalidConfigError,
    NotAuthorizedError,
    NotFoundError,
    RequestError,
)
from lclstream.core.models import StrictModel, line
from lclstream.core.prometheus import MEDIA_TYPE
from lclstream.core.tls import Credentials

logger = logging.getLogger(__name__)

LONGEST_REASON = 1000

Model = TypeVar("Model", bound=StrictModel)


class StopRequest(StrictModel):
    """Body of `POST /v1/stop`."""

    reason: str = Field(default="asked to stop", min_length=1, max_length=LONGEST_REASON)


class DrainRequest(StrictModel):
    """Body of `POST /v1/drain`."""

    reason: str = Field(default="asked to drain", min_length=1, max_length=LONGEST_REASON)
    deadline_s: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """End in any case after so long; none: as long as there is progress."""


class Controlled(Protocol):
    """What is watched and told."""

    async def summary(self) -> dict[str, Any]:
        """Return all figures, ready for JSON."""

    def drain(self, reason: str, deadline_s: float | None) -> None:
        """Refuse new producers, deliver everything, end."""

    def stop(self, reason: str) -> None:
        """End now."""


class MethodNotAllowedError(RequestError):
    """The path exists, for another method."""

    status = 405


class ControlPlane:
    """Serves the requests, at any number of addresses.

    Resource handling: `bind` opens the sockets; `close` ends all and removes Unix sockets.

    Args:
        controlled: the buffer.
        credentials: for HTTPS; None: only Unix sockets can be served.
        allowed_names: who may POST over HTTPS: names in certificates.
    """

    def __init__(
        self,
        controlled: Controlled,
        credentials: Credentials | None = None,
        allowed_names: Sequence[str] = (),
    ) -> None:
        self.urls: list[str] = []
        self._controlled = controlled
        self._credentials = credentials
        self._allowed_names = frozenset(allowed_names)
        self._addresses: list[ControlAddress] = []
        self._servers: list[HttpServer] = []
        self._routes: dict[str, tuple[str, Callable[[Request], Awaitable[Answer]]]] = {
            "/v1/statistics": ("GET", self._statistics),
            "/metrics": ("GET", self._metrics),
            "/health": ("GET", self._health),
            "/v1/drain": ("POST", self._drain),
            "/v1/stop": ("POST", self._stop),
        }

    def bind(self, addresses: Sequence[ControlAddress]) -> None:
        """Listen; requests wait until `start`.

        Raises:
            InvalidConfigError: an address cannot be bound, or not safely.
            IdentityError: the certificate cannot be used.
        """
        for address in addresses:
            context = None
            if address.path is None:
                if self._credentials is None:
                    raise InvalidConfigError(
                        "control over HTTPS needs a certificate: give the identity with --tls"
                    )
                context = self._credentials.server_context()
            listener, url = address.listen()
            self._addresses.append(address)
            self._servers.append(HttpServer(listener, self.respond, context))
            self.urls.append(url)

    async def start(self) -> None:
        """Begin to answer."""
        for server in self._servers:
            await server.start()

    async def close(self) -> None:
        """Answer no more."""
        for server in self._servers:
            await server.close()
        for address in self._addresses:
            address.unlink()
        self._servers, self._addresses = [], []

    async def respond(self, request: Request) -> Answer:
        """Answer one request.

        Raises:
            LclstreamError: what is wrong with it.
        """
        if request.path not in self._routes:
            raise NotFoundError(f"no {request.path}; there are {', '.join(self._routes)}")
        method, answer = self._routes[request.path]
        if request.method != method:
            error = MethodNotAllowedError(f"{request.path} takes {method}, not {request.method}")
            refusal = Answer.to_error(error)
            return Answer(status=refusal.status, content=refusal.content, headers={"Allow": method})
        if method == "POST":
            self._check_allowed(request)
        return await answer(request)

    def _check_allowed(self, request: Request) -> None:
        if request.certificate is None:
            # Of a Unix socket: who could connect is its owner.
            return
        names = certified_names(request.certificate)
        if self._allowed_names.isdisjoint(names):
            shown = ", ".join(sorted(names)) or "nobody"
            logger.warning("control_refused", extra={"path": request.path, "names": shown})
            raise NotAuthorizedError(f"{shown} may not POST to this buffer")

    async def _statistics(self, request: Request) -> Answer:
        del request
        return Answer.of(await self._controlled.summary())

    async def _metrics(self, request: Request) -> Answer:
        del request
        text = metrics.prometheus(await self._controlled.summary())
        return Answer(content=text.encode(), media_type=MEDIA_TYPE)

    async def _health(self, request: Request) -> Answer:
        del request
        summary = await self._controlled.summary()
        return Answer.of({name: summary[name] for name in ("state", "reason")})

    async def _drain(self, request: Request) -> Answer:
        wanted = _parsed(DrainRequest, request.body)
        logger.info("asked_to_drain", extra={"by": _who(request), "reason": wanted.reason})
        self._controlled.drain(wanted.reason, wanted.deadline_s)
        return Answer.of({"accepted": True}, 202)

    async def _stop(self, request: Request) -> Answer:
        wanted = _parsed(StopRequest, request.body)
        logger.info("asked_to_stop", extra={"by": _who(request), "reason": wanted.reason})
        self._controlled.stop(wanted.reason)
        return Answer.of({"accepted": True}, 202)


def _who(request: Request) -> str:
    if request.certificate is None:
        return "the owner of the control socket"
    return ", ".join(sorted(certified_names(request.certificate)))


def _parsed(model: type[Model], body: bytes) -> Model:
    try:
        return model.model_validate_json(body or b"{}")
    except ValidationError as error:
        problems = [line(each) for each in error.errors()]
        raise InvalidConfigError.counted("request", problems) from None
