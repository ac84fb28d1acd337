"""TLS 1.3 contexts of services and clients, from an identity folder.

A folder holds `id.crt` and `id.key`. Whom its owner trusts is in `ca.crt`; a folder of certified
has the roots for incoming connections in `known_clients` and for outgoing ones in
`known_servers` instead, and where both forms are present they add up. Only certificates of
authorities are roots, not those of single parties.

A server asks every client for a certificate and checks chain, validity and use. Sessions are
not resumed, because a resumed session would skip these checks.
"""

import datetime
import logging
import ssl
from pathlib import Path

from cryptography import x509

from lclstream.core.errors import CertificateExpiredError, IdentityError
from lclstream.core.tls import NO_PASSWORD, check_private, is_file
from lclstream.identity import certificates
from lclstream.identity.authority import CERTIFICATE, KEY, REVOKED, TRUSTED
from lclstream.identity.revocation import load_lists

logger = logging.getLogger(__name__)

# Failures whose alert tells the client something; who does not speak TLS reads no alert.
ALERTED = frozenset(
    {"CERTIFICATE_VERIFY_FAILED", "PEER_DID_NOT_RETURN_A_CERTIFICATE", "UNSUPPORTED_PROTOCOL"}
)
ROOT_SUFFIXES = frozenset({".crt", ".pem"})


class CandidHandshake(ssl.SSLObject):
    """Tells the log and the client why a client is refused.

    Asyncio ends a connection whose handshake fails at once, without a word to the log and
    before the alert that OpenSSL prepared is sent. A first answer of "want to read" makes it
    send the alert; the client's answer to that, or its farewell, then gets the error.
    """

    _failed: ssl.SSLError | None = None

    def do_handshake(self) -> None:
        """Go on with the handshake."""
        if self._failed is not None:
            raise self._failed
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            logger.warning("peer_refused", extra={"reason": error.reason, "detail": str(error)})
            if error.reason not in ALERTED:
                raise
            self._failed = error
            raise ssl.SSLWantReadError from error


def server_context(folder: Path) -> ssl.SSLContext:
    """Return the context of a service; clients without a trusted certificate are refused.

    Error handling: raises `IdentityError` when the folder is incomplete or its key unsafe,
    `CertificateExpiredError` when no client would accept its certificate now.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    context.num_tickets = 0
    context.sslobject_class = CandidHandshake
    roots = trusted_roots(folder, "known_clients")
    _load(context, folder, roots)
    _check_time(folder / CERTIFICATE)
    _check_lists(context, folder / REVOKED, roots)
    return context


def client_context(folder: Path) -> ssl.SSLContext:
    """Return the context of a client that verifies the server's chain and host name.

    Error handling: as `server_context`.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _load(context, folder, trusted_roots(folder, "known_servers"))
    return context


def trusted_roots(folder: Path, known: str) -> list[x509.Certificate]:
    """Return the authorities that a folder trusts, at least one.

    Args:
        folder: the identity folder.
        known: `known_clients` or `known_servers`.
    """
    files = [folder / TRUSTED] if is_file(folder / TRUSTED) else []
    if (folder / known).is_dir():
        files += sorted(p for p in (folder / known).iterdir() if p.suffix in ROOT_SUFFIXES)
    roots = [certificate for file in files for certificate in certificates.load_all(file)]
    if not folder.is_dir():
        raise IdentityError(f"no identity folder {str(folder)!r}")
    if not roots:
        raise IdentityError(
            f"no trusted authority in {str(folder)!r}: neither {TRUSTED} nor {known}"
        )
    return roots


def _load(context: ssl.SSLContext, folder: Path, roots: list[x509.Certificate]) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    for name in (CERTIFICATE, KEY):
        if not is_file(folder / name):
            raise IdentityError(f"no {name} in the identity folder {str(folder)!r}")
    check_private(folder / KEY)
    pem = "".join(certificates.to_pem(root).decode("ascii") for root in roots)
    try:
        context.load_cert_chain(folder / CERTIFICATE, folder / KEY, NO_PASSWORD)
        context.load_verify_locations(cadata=pem)
    except OSError as error:
        raise IdentityError(f"cannot use the identity in {str(folder)!r}: {error}") from error


def _check_time(path: Path) -> None:
    certificate = certificates.load(path)
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not begin <= datetime.datetime.now(datetime.UTC) <= end:
        raise CertificateExpiredError(
            f"{path} holds only from {begin:%Y-%m-%dT%H:%MZ} to {end:%Y-%m-%dT%H:%MZ}"
        )


def _check_lists(context: ssl.SSLContext, path: Path, roots: list[x509.Certificate]) -> None:
    if not path.is_file():
        return
    listed = {one.issuer for one in load_lists(path)}
    context.load_verify_locations(path)
    # OpenSSL refuses everybody whose authority has no list; then only the check of each
    # request applies, which asks the same file.
    if all(root.subject in listed for root in roots):
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
