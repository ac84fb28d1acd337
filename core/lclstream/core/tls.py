"""TLS 1.3 with certificates on both sides, from three files.

A folder with credentials holds `id.crt`, `id.key` (readable by its owner only) and `ca.crt`,
the authorities that the other side must chain to.
"""

import ssl
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from lclstream.core.errors import IdentityError

# OpenSSL would ask the terminal for the password of an encrypted key, and wait.
NO_PASSWORD = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """Where the certificate, key and trusted authorities of a party lie."""

    certificate: Path
    key: Path
    authorities: Path

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """Return the credentials in a folder.

        Raises:
            IdentityError: a file is missing, or others may read the key.
        """
        found = cls(
            certificate=folder / "id.crt", key=folder / "id.key", authorities=folder / "ca.crt"
        )
        for path in (found.certificate, found.key, found.authorities):
            if not is_file(path):
                raise IdentityError(f"no {path.name} in the identity folder {folder}")
        check_private(found.key)
        return found

    def client_context(self) -> ssl.SSLContext:
        """Return the context of a client that verifies the server and shows its certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        return self._complete(context)

    def server_context(self) -> ssl.SSLContext:
        """Return the context of a server that refuses clients without a trusted certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.verify_mode = ssl.CERT_REQUIRED
        return self._complete(context)

    def _complete(self, context: ssl.SSLContext) -> ssl.SSLContext:
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        try:
            context.load_cert_chain(self.certificate, self.key, NO_PASSWORD)
            context.load_verify_locations(self.authorities)
        except OSError as error:
            folder = self.certificate.parent
            raise IdentityError(f"cannot use the identity in {folder}: {error}") from error
        return context


def is_file(path: Path) -> bool:
    """Return whether there is a file.

    Raises:
        IdentityError: we may not even look.
    """
    try:
        return path.is_file()
    except PermissionError as error:
        raise IdentityError(f"cannot read {path}: {error.strerror}") from error


def check_private(key: Path) -> None:
    """Refuse a key file that others than its owner may read.

    Raises:
        IdentityError: names the file and the cure.
    """
    if key.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise IdentityError(f"others may read the key {key}: chmod 600 it, or make a new key")
