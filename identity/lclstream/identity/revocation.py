"""Certificate revocation lists: written by an authority, asked by a server for every request.

A server reads `revoked.crl` in its identity folder, one PEM list for each authority. It looks
again whenever the file changes, so a revocation takes effect without a restart, on connections
that are open already too.
"""

import datetime
import logging
from collections.abc import Iterable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from lclstream.core.errors import IdentityError
from lclstream.core.files import write_atomically
from lclstream.identity.keys import PrivateKey, signature_hash

logger = logging.getLogger(__name__)

END_OF_LIST = b"-----END X509 CRL-----"


def sign_list(
    issuer: x509.Certificate, key: PrivateKey, revoked: Iterable[x509.RevokedCertificate]
) -> x509.CertificateRevocationList:
    """Make a list that holds as long as its issuer does."""
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    builder = x509.CertificateRevocationListBuilder(
        issuer_name=issuer.subject, last_update=now, next_update=issuer.not_valid_after_utc
    )
    issuer_id = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_id), critical=False
    )
    for entry in revoked:
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(key, signature_hash(key))


def entry(serial: int) -> x509.RevokedCertificate:
    """Return the entry of a certificate that is revoked now."""
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    return x509.RevokedCertificateBuilder(serial_number=serial, revocation_date=now).build()


def load_lists(path: Path) -> list[x509.CertificateRevocationList]:
    """Read every PEM list of a file; raises `IdentityError` when one is damaged."""
    blocks = path.read_bytes().split(END_OF_LIST)[:-1]
    if not blocks:
        raise IdentityError(f"no PEM revocation list in {str(path)!r}")
    try:
        return [x509.load_pem_x509_crl(block + END_OF_LIST) for block in blocks]
    except ValueError as error:
        raise IdentityError(f"damaged revocation list in {str(path)!r}: {error}") from error


def save_lists(path: Path, lists: Iterable[x509.CertificateRevocationList]) -> None:
    """Replace a file of lists in one step, so that a server never reads half of it."""
    write_atomically(path, b"".join(one.public_bytes(Encoding.PEM) for one in lists))


class RevocationCheck:
    """Answers whether a serial number is revoked, from a file that may change at any time.

    Serial numbers are random 160-bit values, so the lists of several authorities are one set.

    Error handling: lists must be signed by one of the trusted authorities, else
    `IdentityError`. A file that becomes unreadable or damaged later keeps the last good state
    and is logged; it never forgets a revocation.
    """

    def __init__(self, path: Path, trusted: Iterable[x509.Certificate]) -> None:
        self._path = path
        self._trusted = {certificate.subject: certificate for certificate in trusted}
        self._seen: tuple[int, int, int] | None = None
        self._revoked: frozenset[int] = frozenset()
        stamp = self._stamp()
        if stamp is not None:
            self._revoked = self._read()
            self._seen = stamp

    def is_revoked(self, serial: int) -> bool:
        """Return whether the file lists the serial number by now."""
        stamp = self._stamp()
        if stamp is not None and stamp != self._seen:
            self._seen = stamp
            try:
                self._revoked = self._read()
            except (IdentityError, OSError):
                logger.exception("revocation_list_unusable", extra={"path": str(self._path)})
        return serial in self._revoked

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _read(self) -> frozenset[int]:
        lists = load_lists(self._path)
        for one in lists:
            issuer = self._trusted.get(one.issuer)
            if issuer is None or not one.is_signature_valid(issuer.public_key()):  # type: ignore[arg-type]
                raise IdentityError(f"revocation list in {str(self._path)!r} has an unknown issuer")
        return frozenset(revoked.serial_number for one in lists for revoked in one)
