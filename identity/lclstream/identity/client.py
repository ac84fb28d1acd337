"""HTTP clients that show a certificate and raise our errors."""

from pathlib import Path
from typing import Any

import httpx

from lclstream.core.http import araise_for_error, raise_for_error, translate_errors
from lclstream.identity.tls import client_context


class TranslatedTransport(httpx.HTTPTransport):
    """Raises `UnavailableError` and `UntrustedPeerError` where httpx raises its own."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request."""
        with translate_errors(str(request.url)):
            return super().handle_request(request)


class AsyncTranslatedTransport(httpx.AsyncHTTPTransport):
    """The same for asynchronous clients."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request."""
        with translate_errors(str(request.url)):
            return await super().handle_async_request(request)


def client(identity: Path, base_url: str = "", **settings: Any) -> httpx.AsyncClient:
    """Return an asynchronous client that acts as the owner of an identity folder.

    Args:
        identity: the folder.
        base_url: put before relative URLs.
        settings: more arguments of `httpx.AsyncClient`, for example `timeout` in seconds.

    Error handling: an HTTP error status raises the error that the service raised; proxies and
    certificates named in environment variables are not used.
    """
    transport = AsyncTranslatedTransport(verify=client_context(identity), trust_env=False)
    hooks = {"response": [araise_for_error]}
    return httpx.AsyncClient(
        base_url=base_url, transport=transport, event_hooks=hooks, trust_env=False, **settings
    )


def sync_client(identity: Path, base_url: str = "", **settings: Any) -> httpx.Client:
    """Return the same as `client`, for code that does not use asyncio."""
    transport = TranslatedTransport(verify=client_context(identity), trust_env=False)
    hooks = {"response": [raise_for_error]}
    return httpx.Client(
        base_url=base_url, transport=transport, event_hooks=hooks, trust_env=False, **settings
    )
