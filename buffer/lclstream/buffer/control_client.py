"""Ask a running buffer, and tell it what to do."""

import socket
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from lclstream.buffer.control_address import EXPECTED, HTTPS, UNIX
from lclstream.core.errors import IdentityError, InvalidConfigError, UnavailableError
from lclstream.core.http import raise_for_error, translate_errors
from lclstream.core.tls import Credentials

TIMEOUT_S = 15.0
# Of a Unix socket the name of the host says nothing.
NO_HOST = "http://buffer"


class ControlClient:
    """A connection to the control plane of a buffer.

    Resource handling: a context manager that owns an HTTP client.

    Error handling: raises what the buffer answers, `UnavailableError` if it does not, and
    `UntrustedPeerError` if one side refuses the other's certificate.

    Args:
        url: what the buffer told as `control`: `unix:PATH` or `https://HOST:PORT`.
        identity: folder with our certificate, for HTTPS.
    """

    def __init__(self, url: str, identity: Path | None = None) -> None:
        self.url = url
        if url.startswith(UNIX):
            _check_reachable(url)
            transport = httpx.HTTPTransport(uds=url.removeprefix(UNIX))
            base = NO_HOST
        elif url.startswith(HTTPS):
            if identity is None:
                raise IdentityError(f"{url} wants a certificate: give your folder with --identity")
            context = Credentials.from_folder(identity).client_context()
            transport = httpx.HTTPTransport(verify=context)
            base = url
        else:
            raise InvalidConfigError(f"control address must be {EXPECTED}, got {url!r}")
        self._client = httpx.Client(
            transport=transport,
            base_url=base,
            timeout=TIMEOUT_S,
            trust_env=False,
            event_hooks={"response": [raise_for_error]},
        )

    def statistics(self) -> dict[str, Any]:
        """Return all figures."""
        with translate_errors(self.url):
            values: dict[str, Any] = self._client.get("/v1/statistics").json()
        return values

    def metrics(self) -> str:
        """Return the figures as Prometheus reads them."""
        with translate_errors(self.url):
            return self._client.get("/metrics").text

    def drain(self, reason: str, deadline_s: float | None = None) -> None:
        """Have the buffer refuse new producers, deliver everything, and end."""
        with translate_errors(self.url):
            self._client.post("/v1/drain", json={"reason": reason, "deadline_s": deadline_s})

    def stop(self, reason: str) -> None:
        """Have it end now."""
        with translate_errors(self.url):
            self._client.post("/v1/stop", json={"reason": reason})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client.close()


def _check_reachable(url: str) -> None:
    """Say plainly that nobody is there; httpx would also leave a socket behind."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(TIMEOUT_S)
        try:
            probe.connect(url.removeprefix(UNIX))
        except OSError as error:
            raise UnavailableError(f"no buffer at {url}: {error.strerror or error}") from error
