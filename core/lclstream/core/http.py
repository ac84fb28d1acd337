"""Errors across HTTP: raised in a service, rebuilt in its client."""

import json
import logging
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx

from lclstream.core.errors import (
    InvalidConfigError,
    LclstreamError,
    UnavailableError,
    UntrustedPeerError,
    from_body,
)
from lclstream.core.models import line

if TYPE_CHECKING:
    from fastapi import FastAPI, Request
    from fastapi.responses import Response

logger = logging.getLogger(__name__)

# What OpenSSL writes when one side does not accept the other's certificate.
REFUSALS = ("certificate", "unknown ca", "access denied")


def install_error_handlers(app: "FastAPI") -> None:
    """Let an application answer every `LclstreamError` with its status and body.

    What FastAPI itself finds wrong with a request goes out as its clients know it (a list in
    `detail`) with what ours want besides it.
    """
    from fastapi.exceptions import RequestValidationError

    async def answer(request: "Request", error: Exception) -> "Response":
        if not isinstance(error, LclstreamError):
            raise error
        if error.status >= 500:
            logger.error(
                "request_failed",
                extra={"method": request.method, "path": request.url.path, "detail": str(error)},
            )
        headers = {"Retry-After": "1"} if error.transient else None
        return _json_answer(error.body(), error.status, headers)

    async def answer_invalid(request: "Request", error: Exception) -> "Response":
        if not isinstance(error, RequestValidationError):
            raise error
        found = error.errors()
        ours = InvalidConfigError.counted("request", [line(each) for each in found])
        return _json_answer(ours.body() | {"detail": _plain(found)}, ours.status)

    app.add_exception_handler(LclstreamError, answer)
    app.add_exception_handler(RequestValidationError, answer_invalid)


def _json_answer(
    body: dict[str, Any], status: int, headers: dict[str, str] | None = None
) -> "Response":
    from fastapi.responses import Response

    # In pure ASCII: a message may quote text that no encoding has, such as half a surrogate pair.
    return Response(json.dumps(body), status, headers, media_type="application/json")


def _plain(found: Sequence[Any]) -> Any:
    """Return FastAPI's list of faults as data that JSON has, without the values if it must."""
    from fastapi.encoders import jsonable_encoder

    listed = jsonable_encoder(found)
    try:
        json.dumps(listed, allow_nan=False)
    except ValueError:
        # JSON has no NaN and no infinity, though Python reads them.
        return [{key: each[key] for key in ("type", "loc", "msg")} for each in listed]
    return listed


def raise_for_error(response: httpx.Response) -> None:
    """Raise the error that a server answered; a hook for `httpx.Client`."""
    if response.is_error:
        response.read()
        raise _rebuilt(response)


async def araise_for_error(response: httpx.Response) -> None:
    """Raise the error that a server answered; a hook for `httpx.AsyncClient`."""
    if response.is_error:
        await response.aread()
        raise _rebuilt(response)


def _rebuilt(response: httpx.Response) -> LclstreamError:
    try:
        body: Any = response.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        text = " ".join(response.text.split())[:200]
        body = {"detail": text or f"HTTP {response.status_code}"}
    return from_body(body, response.status_code)


@contextmanager
def translate_errors(url: str) -> Iterator[None]:
    """Turn failures of the transport into ours, naming the service.

    Raises:
        UntrustedPeerError: one side refused the other's certificate.
        UnavailableError: no connection, no answer in time, or a broken one.
    """
    try:
        yield
    # The asynchronous client lets an alert that comes after the handshake through as it is.
    except (httpx.TransportError, ssl.SSLError) as error:
        text = str(error) or type(error).__name__
        if any(word in text.lower() for word in REFUSALS):
            raise UntrustedPeerError(f"{url}: {text}") from error
        raise UnavailableError(f"no answer from {url}: {text}") from error
