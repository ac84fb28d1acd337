"""Certificates for tests, of an authority that is made on the spot."""

import datetime as dt
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from lclstream.core.tls import Credentials

Key = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


class Authority:
    """Signs certificates; `p256` because Mbed TLS, and so pynng, knows no Ed25519."""

    def __init__(self, folder: Path, kind: str = "ed25519") -> None:
        self._folder = folder
        self._kind = kind
        self._key = self._new_key()
        self.certificate = self._sign("authority", self._key, [], is_authority=True)

    def issue(self, name: str, *alternatives: x509.GeneralName) -> Credentials:
        """Write the credentials of a party into a folder of that name."""
        key = self._new_key()
        certificate = self._sign(name, key, list(alternatives), is_authority=False)
        folder = self._folder / name
        folder.mkdir(parents=True)
        (folder / "id.crt").write_bytes(certificate.public_bytes(Encoding.PEM))
        (folder / "ca.crt").write_bytes(self.certificate.public_bytes(Encoding.PEM))
        (folder / "id.key").touch(0o600)
        (folder / "id.key").write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        )
        return Credentials.from_folder(folder)

    def _new_key(self) -> Key:
        if self._kind == "p256":
            return ec.generate_private_key(ec.SECP256R1())
        return ed25519.Ed25519PrivateKey.generate()

    def _sign(
        self, name: str, key: Key, names: list[x509.GeneralName], *, is_authority: bool
    ) -> x509.Certificate:
        now = dt.datetime.now(dt.UTC)
        issuer = name if is_authority else "authority"
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(is_authority, None), critical=True)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, hashes.SHA256() if self._kind == "p256" else None)


def anonymous_context(server: Credentials) -> ssl.SSLContext:
    """Return the context of a client that trusts a server and shows no certificate."""
    context = ssl.create_default_context(cafile=str(server.authorities))
    context.check_hostname = False
    return context
