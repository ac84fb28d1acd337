"""How other services are reached: certificates, passwords, and what may go unencrypted."""

import ipaddress
import json
import ssl
from pathlib import Path

from lclstream.core.errors import InvalidConfigError
from lclstream.core.tls import Credentials


def is_loopback(host: str | None) -> bool:
    """Return whether a host name means this machine, without asking anybody."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def tls_context(identity: Path | None, ca: Path | None) -> ssl.SSLContext:
    """Return the context of a client, with its own certificate when there is an identity.

    Raises:
        InvalidConfigError: the file of authorities is not usable.
        IdentityError: the identity folder is not usable.
    """
    if identity is not None:
        return Credentials.from_folder(identity).client_context()
    try:
        return ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise InvalidConfigError(f"cannot read the certificate authorities {ca}: {error}") from None


def read_password(path: Path, username: str) -> str:
    """Return a password from a file: its text, or its entry in a JSON object by user name.

    Raises:
        InvalidConfigError: the file is not readable, empty or without this user.
    """
    text = read_secret(path)
    try:
        data = json.loads(text)
    except ValueError:
        return text
    if not isinstance(data, dict):
        return text
    if not isinstance(data.get(username), str):
        raise InvalidConfigError(f"{path} has no password of {username!r}")
    return str(data[username])


def read_secret(path: Path) -> str:
    """Return the text of a file without the white space around it.

    Raises:
        InvalidConfigError: the file is not readable, or empty.
    """
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidConfigError(f"cannot read {path}: {error}") from None
    if not text:
        raise InvalidConfigError(f"{path} is empty")
    return text
