"""The signing authority: makes identities for services, people and jobs, and revokes them.

The authority's folder is a configuration folder of certified: `CA.crt`, `CA.key`, an identity
of its own (`id.crt`, `id.key`) and its certificate in `known_clients` and `known_servers`. A
folder it issues holds `id.crt`, `id.key` and `ca.crt`, the authorities its owner trusts.

The authority alone decides what a certificate says: names come from its operator or from our own
services, never from a request of the holder. A person's certificate carries a UID and is for
clients only; a service or a buffer may be a server too; neither of those ever has a UID.
"""

import datetime
import fcntl
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from lclstream.core.errors import ConflictError, IdentityError, RequestError
from lclstream.identity import certificates, keys, names, revocation
from lclstream.identity.certificates import Leaf, Validity, lifetime
from lclstream.identity.keys import KeyType, PrivateKey

logger = logging.getLogger(__name__)

CA_CERTIFICATE = "CA.crt"
CA_KEY = "CA.key"
CERTIFICATE = "id.crt"
KEY = "id.key"
TRUSTED = "ca.crt"
REVOKED = "revoked.crl"

AUTHORITY_DAYS = 365 * 5
IDENTITY_DAYS = 365
JOB_HOURS = 24.0


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedIdentity:
    """A new identity, in memory, for example to be uploaded to a job's work folder."""

    cert_pem: bytes
    key_pem: bytes
    """PKCS#8, not encrypted: store it with mode 0600 or not at all."""
    ca_pem: bytes
    serial: int

    def files(self) -> dict[str, bytes]:
        """Return the content of an identity folder by file name."""
        return {CERTIFICATE: self.cert_pem, KEY: self.key_pem, TRUSTED: self.ca_pem}

    def save(self, folder: Path) -> None:
        """Write an identity folder; raises `ConflictError` when it holds an identity already."""
        folder.mkdir(parents=True, exist_ok=True)
        keys.write_private(folder / KEY, self.key_pem)
        (folder / CERTIFICATE).write_bytes(self.cert_pem)
        (folder / TRUSTED).write_bytes(self.ca_pem)


class Authority:
    """Signs with the key of one folder.

    Resource handling: holds the signing key in memory; several processes may use one folder.
    """

    def __init__(self, folder: Path, certificate: x509.Certificate, key: PrivateKey) -> None:
        self.folder = folder
        self.certificate = certificate
        self._key = key

    @classmethod
    def create(
        cls,
        folder: Path,
        name: str,
        *,
        hosts: Sequence[str] = (),
        days: float = AUTHORITY_DAYS,
        key_type: KeyType = KeyType.ED25519,
    ) -> "Authority":
        """Make a new authority in a folder that has none.

        Args:
            folder: made if missing.
            name: common name of the authority and of its own identity.
            hosts: names and addresses under which its own identity may serve.
            days: how long the authority holds.
            key_type: kind of its key.
        """
        # Whatever may be refused is refused before anything is written.
        leaf = _service(name, hosts)
        validity = Validity.starting_now(lifetime(days=days))
        folder.mkdir(parents=True, exist_ok=True)
        for name_of_file, what in ((CA_CERTIFICATE, "authority"), (KEY, "identity")):
            if (folder / name_of_file).exists():
                raise ConflictError(f"{str(folder)!r} holds an {what} already")
        key = keys.generate(key_type)
        subject = names.signing_subject(leaf.subject)
        certificate = certificates.sign_authority(key, subject, validity)
        keys.write_private(folder / CA_KEY, keys.to_pem(key))
        pem = certificates.to_pem(certificate)
        for place in (CA_CERTIFICATE, "known_clients/self.crt", "known_servers/self.crt"):
            (folder / place).parent.mkdir(exist_ok=True)
            (folder / place).write_bytes(pem)
        authority = cls(folder, certificate, key)
        own = authority._issue(leaf, lifetime(days=IDENTITY_DAYS))
        keys.write_private(folder / KEY, own.key_pem)
        (folder / CERTIFICATE).write_bytes(own.cert_pem)
        return authority

    @classmethod
    def load(cls, folder: Path) -> "Authority":
        """Open an authority; raises `IdentityError` when files are missing or do not match."""
        certificate = certificates.load(folder / CA_CERTIFICATE)
        key = keys.load(folder / CA_KEY)
        if certificate.public_key() != key.public_key():
            raise IdentityError(f"CA.key does not belong to CA.crt in {str(folder)!r}")
        return cls(folder, certificate, key)

    @property
    def name(self) -> str:
        """What tells it from all others, see `Caller.authority`."""
        return certificates.authority_name(self.certificate)

    @property
    def certificate_pem(self) -> bytes:
        """The signing certificate, what others have to trust."""
        return certificates.to_pem(self.certificate)

    def issue_service(
        self, folder: Path, name: str, hosts: Sequence[str], *, days: float = IDENTITY_DAYS
    ) -> IssuedIdentity:
        """Make the identity of a service that is reached under the given hosts."""
        if not hosts:
            raise RequestError("a service needs at least one host name or address")
        issued = self._issue(_service(name, hosts), lifetime(days=days))
        issued.save(folder)
        return issued

    def issue_user(
        self,
        folder: Path,
        name: str,
        uid: str,
        email: str | None = None,
        *,
        domain: str | None = None,
        days: float = IDENTITY_DAYS,
    ) -> IssuedIdentity:
        """Make the identity of a person, for clients only.

        Args:
            folder: where to write it.
            name: full name.
            uid: login, which becomes the caller's name `uid:<uid>`.
            email: address for the alternative name.
            domain: such as `example.org`.
            days: how long it holds.
        """
        subject = names.subject(name, uid=uid, domain=domain)
        addresses = names.email_addresses(email)
        leaf = Leaf(subject=subject, alternative_names=addresses, server=False)
        issued = self._issue(leaf, lifetime(days=days))
        issued.save(folder)
        return issued

    def issue_job(
        self,
        name: str,
        *,
        hours: float = JOB_HOURS,
        server: bool = False,
        hosts: Sequence[str] = (),
    ) -> IssuedIdentity:
        """Make a short-lived identity for one job, without writing it anywhere.

        Args:
            name: must begin with `job:`, for example `job:<transfer id>:producer`.
            hours: how long it holds; clamped to the authority's own validity.
            server: whether the job also accepts TLS connections.
            hosts: where a server is reached.
        """
        if not name.startswith(names.JOB_PREFIX):
            raise RequestError(f"the name of a job must begin with 'job:', got {name!r}")
        if hosts and not server:
            raise RequestError("hosts are for jobs that are servers")
        alternatives = names.alternative_names(hosts)
        leaf = Leaf(subject=names.subject(name), alternative_names=alternatives, server=server)
        return self._issue(leaf, lifetime(hours=hours))

    def revoke(self, serial: int) -> Path:
        """Add a certificate to the authority's `revoked.crl` and return that file.

        A server obeys the copy in its own identity folder; see `publish`.
        """
        if serial <= 0:
            raise RequestError(f"a serial number must be > 0, got {serial}")
        path = self.folder / REVOKED
        with self._locked():
            entries = [one for crl in self._own_lists() for one in crl]
            if all(one.serial_number != serial for one in entries):
                entries.append(revocation.entry(serial))
            crl = revocation.sign_list(self.certificate, self._key, entries)
            revocation.save_lists(path, [crl])
        logger.info("certificate_revoked", extra={"serial": f"{serial:x}"})
        return path

    def publish(self, folder: Path) -> None:
        """Put this authority's list into a server's identity folder, beside those of others."""
        with self._locked():
            path = folder / REVOKED
            present = revocation.load_lists(path) if path.exists() else []
            others = [crl for crl in present if crl.issuer != self.certificate.subject]
            revocation.save_lists(path, [*others, *self._own_lists()])

    def _own_lists(self) -> list[x509.CertificateRevocationList]:
        path = self.folder / REVOKED
        return revocation.load_lists(path) if path.exists() else []

    @contextmanager
    def _locked(self) -> Iterator[None]:
        # Two processes that revoke at once must not lose one of the entries.
        handle = os.open(self.folder / CA_KEY, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _issue(self, leaf: Leaf, holds: datetime.timedelta) -> IssuedIdentity:
        # Peers that can check the authority's signature can check the same kind again.
        key = keys.generate(keys.kind_of(self._key))
        validity = Validity.starting_now(holds)
        certificate = certificates.sign_leaf(self.certificate, self._key, key, leaf, validity)
        logger.info(
            "certificate_issued",
            extra={
                "subject": names.written(certificate.subject),
                "serial": f"{certificate.serial_number:x}",
                "not_after": certificate.not_valid_after_utc.isoformat(),
            },
        )
        return IssuedIdentity(
            cert_pem=certificates.to_pem(certificate),
            key_pem=keys.to_pem(key),
            ca_pem=self.certificate_pem,
            serial=certificate.serial_number,
        )


def _service(name: str, hosts: Sequence[str]) -> Leaf:
    # The names of jobs tell which transfer they belong to; nobody else may have one.
    if name.startswith(names.JOB_PREFIX):
        raise RequestError(f"the name of a service must not begin with 'job:', got {name!r}")
    alternatives = names.alternative_names(hosts)
    return Leaf(subject=names.subject(name), alternative_names=alternatives, server=True)
