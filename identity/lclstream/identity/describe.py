"""What the certificates in a folder say, for people."""

from pathlib import Path
from typing import Any

from cryptography import x509

from lclstream.core.errors import IdentityError
from lclstream.identity import certificates, names
from lclstream.identity.authority import CA_CERTIFICATE, CERTIFICATE, TRUSTED

USES = {certificates.CLIENT: "client", certificates.SERVER: "server"}


def describe_folder(folder: Path) -> dict[str, Any]:
    """Return what the authority's, own and trusted certificates say, as JSON data.

    Error handling: raises `IdentityError` when the folder holds no certificate.
    """
    files = {"authority": CA_CERTIFICATE, "identity": CERTIFICATE, "trusts": TRUSTED}
    found = {
        part: [describe(one) for one in certificates.load_all(folder / name)]
        for part, name in files.items()
        if (folder / name).is_file()
    }
    if not found:
        raise IdentityError(f"no certificate in {str(folder)!r}")
    return {"folder": str(folder), **found}


def describe(certificate: x509.Certificate) -> dict[str, Any]:
    """Return what one certificate says, as JSON data."""
    return {
        "subject": names.written(certificate.subject),
        "issuer": names.written(certificate.issuer),
        "serial": f"{certificate.serial_number:x}",
        "not_before": certificate.not_valid_before_utc.isoformat(),
        "not_after": certificate.not_valid_after_utc.isoformat(),
        "uses": _uses(certificate),
        "names": _alternative_names(certificate),
    }


def _uses(certificate: x509.Certificate) -> list[str]:
    try:
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    except x509.ExtensionNotFound:
        return ["signs certificates"]
    return [USES.get(oid, oid.dotted_string) for oid in usage.value]


def _alternative_names(certificate: x509.Certificate) -> list[str]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return [str(name.value) for name in found.value]
