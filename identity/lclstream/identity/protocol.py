"""The uvicorn protocol that tells an application who is at the other end.

It uses only `connection_made`, `shutdown`, `app` and `transport` of uvicorn's H11 protocol:
the application is wrapped once for each connection, with the certificate that TLS verified.
HTTP/1.1 only; WebSocket upgrades would go round the wrapper and are switched off in `web`.
"""

import asyncio
import datetime
import json
import logging
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping, Sequence
from typing import Any

from cryptography import x509
from uvicorn.protocols.http.h11_impl import H11Protocol

from lclstream.core.errors import IdentityError, NotAuthenticatedError
from lclstream.identity.caller import PEER_KEY, Peer
from lclstream.identity.certificates import authority_of
from lclstream.identity.names import caller_name
from lclstream.identity.revocation import RevocationCheck

logger = logging.getLogger(__name__)
access = logging.getLogger("lclstream.access")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

TLS_1_3 = 0x0304


def verified_peer(connection: ssl.SSLObject, roots: Iterable[x509.Certificate]) -> Peer:
    """Return who is at the other end; raises `IdentityError` when TLS verified nobody.

    Args:
        connection: after its handshake.
        roots: the authorities that the handshake trusted.
    """
    certificate: Mapping[str, Any] | None = connection.getpeercert()
    encoded = connection.getpeercert(binary_form=True)
    if not certificate or not encoded:
        raise IdentityError("peer showed no certificate")
    try:
        authority = authority_of(x509.load_der_x509_certificate(encoded), roots)
    except ValueError as error:
        raise IdentityError(f"peer certificate cannot be read: {error}") from error
    not_after = ssl.cert_time_to_seconds(str(certificate["notAfter"]))
    return Peer(
        name=caller_name(certificate),
        subject=_attributes(certificate["subject"]),
        issuer=_attributes(certificate["issuer"]),
        authority=authority,
        serial=int(str(certificate["serialNumber"]), 16),
        not_after=datetime.datetime.fromtimestamp(not_after, datetime.UTC),
        cipher=" ".join(str(part) for part in connection.cipher() or ()),
    )


def _attributes(name: Iterable[Iterable[tuple[str, str]]]) -> tuple[tuple[str, str], ...]:
    return tuple(pair for rdn in name for pair in rdn)


class IdentifiedApplication:
    """An application that sees in every request's scope who sent it.

    A certificate is valid for a moment, a connection may live for days: validity and revocation
    are looked at again for every request.
    """

    def __init__(self, app: Application, peer: Peer | None, revocation: RevocationCheck) -> None:
        self._app = app
        self._peer = peer
        self._revocation = revocation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request and write one access line."""
        began = time.monotonic()
        status = 0

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            reason = self.refusal()
            if reason:
                await refuse(counted, reason)
            else:
                scope.setdefault("extensions", {})[PEER_KEY] = self._peer
                scope["extensions"]["tls"] = self._tls()
                await self._app(scope, receive, counted)
        except Exception:
            # The server answers so, unless an answer had begun.
            status = status or 500
            raise
        finally:
            access.info("request", extra=self._line(scope, status, time.monotonic() - began))

    def refusal(self) -> str:
        """Return why the peer is not served now; empty when it is."""
        if self._peer is None:
            return "the client certificate names nobody"
        if datetime.datetime.now(datetime.UTC) > self._peer.not_after:
            return "the client certificate has expired"
        if self._revocation.is_revoked(self._peer.serial):
            return "the client certificate is revoked"
        return ""

    def _tls(self) -> dict[str, Any]:
        # The keys of the ASGI specification's TLS extension.
        subject = reversed(self._peer.subject if self._peer else ())
        return {
            "server_cert": None,
            "client_cert_chain": [],
            "client_cert_name": ",".join(f"{key}={value}" for key, value in subject),
            "client_cert_error": None,
            "tls_version": TLS_1_3,
            "cipher_suite": None,
        }

    def _line(self, scope: Scope, status: int, elapsed_s: float) -> dict[str, Any]:
        headers = {key: value.decode("latin-1") for key, value in scope.get("headers", ())}
        host, port = scope.get("client") or ("", 0)
        return {
            "method": scope.get("method", ""),
            "path": scope.get("path", ""),
            "status": status,
            "caller": self._peer.name if self._peer else "",
            "remote_user": list(self._peer.subject) if self._peer else [],
            "client_serial": f"{self._peer.serial:x}" if self._peer else "",
            "remote_addr": host,
            "remote_port": port,
            "user_agent": headers.get(b"user-agent", ""),
            "ssl_cipher": self._peer.cipher if self._peer else "",
            "process_time_s": round(elapsed_s, 6),
        }


async def refuse(send: Send, reason: str) -> None:
    """Answer 401 and close the connection."""
    error = NotAuthenticatedError(reason)
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(error.body()).encode()})


def peer_protocol(
    revocation: RevocationCheck, roots: Sequence[x509.Certificate]
) -> type[H11Protocol]:
    """Return the protocol class of a server.

    Args:
        revocation: whom not to serve.
        roots: the authorities that the server trusts.
    """

    class PeerProtocol(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            peer = _peer_of(transport, roots)
            identified = IdentifiedApplication(self.app, peer, revocation)
            self.app = identified
            reason = identified.refusal()
            if reason:
                name = peer.name if peer else ""
                extra = {"reason": reason, "caller": name, "remote_addr": self.client}
                logger.warning("peer_refused", extra=extra)
                transport.abort()

        def shutdown(self) -> None:
            super().shutdown()
            # TLS would wait for a farewell that an idle client never sends.
            if self.transport.is_closing() and not self.transport.get_write_buffer_size():
                self.transport.abort()

    return PeerProtocol


def _peer_of(transport: asyncio.Transport, roots: Sequence[x509.Certificate]) -> Peer | None:
    connection = transport.get_extra_info("ssl_object")
    if connection is None:
        return None
    try:
        return verified_peer(connection, roots)
    except IdentityError as error:
        logger.warning("peer_unnamed", extra={"reason": str(error)})
        return None
