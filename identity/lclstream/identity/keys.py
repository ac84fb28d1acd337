"""Private keys: made in one of a few kinds, written so that only their owner reads them."""

import os
from enum import StrEnum
from pathlib import Path

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from lclstream.core.errors import ConflictError, IdentityError
from lclstream.core.tls import check_private, is_file

PrivateKey = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey

KEY_MODE = 0o600


class KeyType(StrEnum):
    """Which kind of key to make; `secp256r1` suits peers without Ed25519."""

    ED25519 = "ed25519"
    SECP256R1 = "secp256r1"
    SECP384R1 = "secp384r1"


def generate(kind: KeyType = KeyType.ED25519) -> PrivateKey:
    """Make a new private key."""
    match kind:
        case KeyType.ED25519:
            return ed25519.Ed25519PrivateKey.generate()
        case KeyType.SECP256R1:
            return ec.generate_private_key(ec.SECP256R1())
        case KeyType.SECP384R1:
            return ec.generate_private_key(ec.SECP384R1())


def signature_hash(key: PrivateKey) -> hashes.SHA256 | hashes.SHA384 | None:
    """Return the hash that signatures of this key use; None where the key brings its own."""
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return None
    return hashes.SHA384() if key.key_size > 256 else hashes.SHA256()


def kind_of(key: PrivateKey) -> KeyType:
    """Return which kind a key is; a curve that is none of ours counts as the nearest one."""
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return KeyType.ED25519
    return KeyType.SECP384R1 if key.key_size > 256 else KeyType.SECP256R1


def to_pem(key: PrivateKey) -> bytes:
    """Return the key as unencrypted PKCS#8 PEM, the form that certified writes."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def load(path: Path) -> PrivateKey:
    """Read a private key.

    Error handling: raises `IdentityError` when others could read the file too, when it is not
    there, or when it holds no key of a kind that we use.
    """
    if not is_file(path):
        raise IdentityError(f"no private key {str(path)!r}")
    check_private(path)
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise IdentityError(f"cannot read {str(path)!r}: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise IdentityError(f"no unencrypted PEM private key in {str(path)!r}: {error}") from error
    if not isinstance(key, ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey):
        raise IdentityError(f"unsupported kind of key in {str(path)!r}: {type(key).__name__}")
    return key


def write_private(path: Path, content: bytes) -> None:
    """Write a new file with mode 0600, never readable by others and never over another file."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, KEY_MODE)
    except FileExistsError as error:
        raise ConflictError(f"{str(path)!r} exists already, keys are not overwritten") from error
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
