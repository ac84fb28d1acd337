"""Who calls: the identity that TLS verified, as an argument of a FastAPI route.

Write `caller: CallerDep` and the route gets a `Caller`, or the request ends with 401. The
identity comes from the TLS layer through the ASGI scope, never from a header, so an
application that is served in any other way than by `WebService` refuses every request.
"""

import datetime
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, Request

from lclstream.core.errors import NotAuthenticatedError
from lclstream.identity.names import JOB_PREFIX

PEER_KEY = "lclstream.peer"
CN_PREFIX = "cn:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """The verified certificate at the other end of a connection."""

    name: str
    """`uid:<UID>` or `cn:<CN>`."""
    subject: tuple[tuple[str, str], ...]
    """Attributes by OpenSSL long name, in the certificate's order, repeated ones kept."""
    issuer: tuple[tuple[str, str], ...]
    """Of the authority that says so; several authorities may know the same name."""
    authority: str
    """Which of the trusted authorities signed: `Authority.name` of it, empty if none did so
    itself. Unlike `issuer` it cannot be chosen by another authority."""
    serial: int
    not_after: datetime.datetime
    cipher: str = ""
    """Cipher, protocol and bits, blank-separated."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The verified party behind a request."""

    name: str
    """`uid:<UID>` if the certificate has a UID, else `cn:<CN>`."""
    peer: Peer | None = field(default=None, compare=False, repr=False)

    @property
    def authority(self) -> str:
        """Which authority says who this is; empty when that is not known."""
        return self.peer.authority if self.peer is not None else ""

    @property
    def job(self) -> tuple[str, str] | None:
        """Transfer id and role if the caller is named like a job of a transfer, else None.

        Every trusted authority can give such a name. Whoever grants rights for it asks for
        `authority` too.
        """
        prefix = CN_PREFIX + JOB_PREFIX
        if not self.name.startswith(prefix):
            return None
        transfer, _, role = self.name.removeprefix(prefix).rpartition(":")
        return (transfer, role) if transfer and role else None


def caller(request: Request) -> Caller:
    """Return who calls; raises `NotAuthenticatedError` when TLS did not verify anybody."""
    extensions: dict[str, Any] = request.scope.get("extensions") or {}
    peer = extensions.get(PEER_KEY)
    if not isinstance(peer, Peer):
        raise NotAuthenticatedError("this request needs a client certificate")
    return Caller(peer.name, peer)


CallerDep = Annotated[Caller, Depends(caller)]
