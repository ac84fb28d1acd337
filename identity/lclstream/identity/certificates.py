"""The certificate profile: what a signing certificate and an end-entity certificate hold.

Follows certified 1.3 except where its profile is unsafe: a user's certificate is for clients
only, no certificate is for code signing or key encipherment, and none outlives its issuer.
"""

import datetime
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from lclstream.core.errors import IdentityError, RequestError
from lclstream.identity.keys import PrivateKey, signature_hash

CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH
SERVER = ExtendedKeyUsageOID.SERVER_AUTH

# Clocks of two hosts may differ by this much without a fresh certificate being refused.
CLOCK_SKEW = datetime.timedelta(minutes=5)


LONGEST_DAYS = 365 * 100


def lifetime(*, days: float = 0.0, hours: float = 0.0) -> datetime.timedelta:
    """Return how long a certificate shall hold; raises `RequestError` when that is no time."""
    wanted = days + hours / 24
    # Written so that it refuses NaN too.
    if not 0 < wanted <= LONGEST_DAYS:
        raise RequestError(
            f"a certificate holds more than 0 and at most {LONGEST_DAYS} days, got {wanted:g}"
        )
    return datetime.timedelta(days=days, hours=hours)


@dataclass(frozen=True, slots=True, kw_only=True)
class Validity:
    """When a certificate holds; both ends in UTC, to the second."""

    begin: datetime.datetime
    end: datetime.datetime

    @classmethod
    def starting_now(cls, holds: datetime.timedelta) -> "Validity":
        """Hold from a little before now, against clocks that differ, for a time from now."""
        now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
        return cls(begin=now - CLOCK_SKEW, end=now + holds)

    def within(self, issuer: x509.Certificate) -> "Validity":
        """Return the part of this time in which the issuer holds too.

        Error handling: raises `IdentityError` when there is none, that is, the issuer expired.
        """
        begin = max(self.begin, issuer.not_valid_before_utc)
        end = min(self.end, issuer.not_valid_after_utc)
        if begin >= end or end <= datetime.datetime.now(datetime.UTC):
            raise IdentityError(
                f"signing certificate holds only until {issuer.not_valid_after_utc:%Y-%m-%dT%H:%MZ}"
            )
        return Validity(begin=begin, end=end)


def sign_authority(key: PrivateKey, name: x509.Name, validity: Validity) -> x509.Certificate:
    """Make the self-signed certificate of an authority."""
    public = key.public_key()
    builder = _builder(name, name, validity).public_key(public)
    builder = builder.add_extension(x509.BasicConstraints(True, 0), critical=True)
    builder = builder.add_extension(_key_usage(signs_certificates=True), critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), False)
    return builder.sign(key, signature_hash(key))


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """What an authority decided to certify. Nothing of it is copied from a request."""

    subject: x509.Name
    alternative_names: Sequence[x509.GeneralName]
    server: bool
    """Whether the holder may also be a server; every holder may be a client."""


def sign_leaf(
    issuer: x509.Certificate,
    issuer_key: PrivateKey,
    key: PrivateKey,
    leaf: Leaf,
    validity: Validity,
) -> x509.Certificate:
    """Make an end-entity certificate for the public half of `key`, within the issuer's validity."""
    builder = leaf_builder(issuer, key, leaf, validity.within(issuer))
    return builder.sign(issuer_key, signature_hash(issuer_key))


def leaf_builder(
    issuer: x509.Certificate, key: PrivateKey, leaf: Leaf, validity: Validity
) -> x509.CertificateBuilder:
    """Return the unsigned certificate that `sign_leaf` signs, with any validity."""
    public = key.public_key()
    usages = [CLIENT, SERVER] if leaf.server else [CLIENT]
    issuer_id = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    authority_id = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_id)
    builder = _builder(leaf.subject, issuer.subject, validity).public_key(public)
    builder = builder.add_extension(x509.BasicConstraints(False, None), critical=True)
    builder = builder.add_extension(_key_usage(signs_certificates=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), False)
    builder = builder.add_extension(authority_id, critical=False)
    if leaf.alternative_names:
        names = x509.SubjectAlternativeName(leaf.alternative_names)
        builder = builder.add_extension(names, critical=False)
    return builder


def to_pem(certificate: x509.Certificate) -> bytes:
    """Return the certificate as PEM."""
    return certificate.public_bytes(Encoding.PEM)


def load(path: Path) -> x509.Certificate:
    """Read one PEM certificate; raises `IdentityError` when there is none."""
    return load_all(path)[0]


def load_all(path: Path) -> list[x509.Certificate]:
    """Read all certificates of a PEM file, at least one; raises `IdentityError` otherwise."""
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except OSError as error:
        raise IdentityError(f"cannot read certificate {str(path)!r}: {error.strerror}") from error
    except ValueError as error:
        raise IdentityError(f"no PEM certificate in {str(path)!r}: {error}") from error


def authority_of(certificate: x509.Certificate, roots: Iterable[x509.Certificate]) -> str:
    """Return the name of the authority, one of the roots, that signed a certificate.

    Returns:
        Its `authority_name`; empty when an authority between it and a root has signed.
    """
    for root in roots:
        try:
            certificate.verify_directly_issued_by(root)
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
            continue
        return authority_name(root)
    return ""


def authority_name(certificate: x509.Certificate) -> str:
    """Return what tells an authority from all others: SHA-256 of its public key, as hex.

    Its subject does not: everybody can make an authority with the subject of another one.
    """
    key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(key).hexdigest()


def _builder(subject: x509.Name, issuer: x509.Name, validity: Validity) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .serial_number(x509.random_serial_number())
        .not_valid_before(validity.begin)
        .not_valid_after(validity.end)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
