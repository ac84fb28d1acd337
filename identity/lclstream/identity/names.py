"""Names in certificates: how they are built, written and turned into a caller's name.

A certificate made here holds CN, then UID, then one DC for each domain component, and a signing
certificate ends with the pseudonym `Signing Certificate`: the form of certified 1.3. A caller
is `uid:<UID>` if the subject has a UID, else `cn:<CN>`; both spellings go into tokens and logs.
"""

import ipaddress
import re
from collections.abc import Mapping, Sequence
from typing import Any

from cryptography import x509
from cryptography.x509.oid import NameOID, ObjectIdentifier

from lclstream.core.errors import IdentityError, RequestError

SIGNING_PSEUDONYM = "Signing Certificate"
JOB_PREFIX = "job:"

# certified writes these attributes with short names that RFC 4514 does not know.
SHORT_NAMES: Mapping[ObjectIdentifier, str] = {
    NameOID.PSEUDONYM: "P",
    NameOID.DN_QUALIFIER: "DQ",
    NameOID.SERIAL_NUMBER: "S",
    NameOID.EMAIL_ADDRESS: "E",
    NameOID.TITLE: "T",
    NameOID.SURNAME: "SUR",
    NameOID.GIVEN_NAME: "NAME",
    NameOID.INITIALS: "IN",
    NameOID.GENERATION_QUALIFIER: "GEN",
}
LONGEST_CN = 64
# A last label of digits only would be an IPv4 address.
LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
HOST_NAME = re.compile(rf"(?:\*\.)?(?:{LABEL}\.)*(?!\d+$){LABEL}")


def subject(name: str, *, uid: str | None = None, domain: str | None = None) -> x509.Name:
    """Build a subject in certified's order.

    Args:
        name: common name, 1 to 64 characters.
        uid: login of a person; None for services and jobs.
        domain: domain such as `example.org`, written as one DC for each component.
    """
    _require_text("name", name)
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, name)]
    if uid is not None:
        _require_text("uid", uid)
        attributes.append(x509.NameAttribute(NameOID.USER_ID, uid))
    if domain is not None and ("*" in domain or not HOST_NAME.fullmatch(domain)):
        raise RequestError(f"expected a domain such as 'example.org', got {domain!r}")
    components = domain.split(".") if domain is not None else []
    attributes += [x509.NameAttribute(NameOID.DOMAIN_COMPONENT, part) for part in components]
    return x509.Name(attributes)


def signing_subject(name: x509.Name) -> x509.Name:
    """Return the subject of the signing certificate that belongs to a name."""
    return x509.Name([*name, x509.NameAttribute(NameOID.PSEUDONYM, SIGNING_PSEUDONYM)])


def written(name: x509.Name) -> str:
    """Return the name as certified writes it, for example `UID=tuser,CN=Test User`."""
    return name.rfc4514_string(SHORT_NAMES)


def alternative_names(hosts: Sequence[str]) -> list[x509.GeneralName]:
    """Turn host names and IP addresses into subject alternative names, in the order given."""
    return [_alternative_name(host) for host in hosts]


def email_addresses(email: str | None) -> list[x509.GeneralName]:
    """Turn an e-mail address into the subject alternative names that hold it."""
    if email is None:
        return []
    try:
        return [x509.RFC822Name(email)]
    except ValueError as error:
        raise RequestError(f"expected an e-mail address, got {email!r}: {error}") from error


def caller_name(peer: Mapping[str, Any]) -> str:
    """Return `uid:<UID>` or `cn:<CN>` of a verified peer certificate.

    Args:
        peer: what `ssl.SSLObject.getpeercert()` returned after a verified handshake.

    Error handling: raises `IdentityError` when the subject has neither, or has one of them
    twice, because then two parties could disagree on who it is.
    """
    attributes = [pair for rdn in peer.get("subject", ()) for pair in rdn]
    for key, prefix in (("userId", "uid:"), ("commonName", "cn:")):
        values = [value for name, value in attributes if name == key]
        if len(values) > 1:
            raise IdentityError(f"peer certificate has {len(values)} values of {key}, expected one")
        if values and values[0]:
            return f"{prefix}{values[0]}"
    raise IdentityError("peer certificate has neither userId nor commonName in its subject")


def _require_text(field: str, value: str) -> None:
    if not 1 <= len(value) <= LONGEST_CN or not value.isprintable() or value != value.strip():
        raise RequestError(
            f"{field} must be 1 to {LONGEST_CN} printable characters without blanks around, "
            f"got {value!r}"
        )


def _alternative_name(host: str) -> x509.GeneralName:
    if HOST_NAME.fullmatch(host):
        return x509.DNSName(host)
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError as error:
        raise RequestError(f"expected a host name or IP address, got {host!r}") from error
