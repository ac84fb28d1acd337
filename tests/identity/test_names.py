"""Names of callers and their spelling."""

import base64
from typing import Any

import pytest
from cryptography import x509

from lclstream.core.errors import IdentityError
from lclstream.identity import names

# Made by certified 1.3.0.
SIGNED_BY_CERTIFIED = (
    "MIICAjCCAbSgAwIBAgIULtzPe4dD83h9iGYuVWVRxbmWMakwBQYDK2VwMD4xHjAcBgNVBAMMFVBzaWstQVBJIE1pY3Jv"
    "c2VydmljZTEcMBoGA1UEQQwTU2lnbmluZyBDZXJ0aWZpY2F0ZTAeFw0yNjExMjAyMTM5MDdaFw0yNzExMjAyMTM5MDda"
    "MFkxEjAQBgNVBAMMCVRlc3QgVXNlcjEVMBMGCgmSJomT8ixkAQEMBXR1c2VyMRcwFQYKCZImiZPyLGQBGRYHZXhhbXBs"
    "ZTETMBEGCgmSJomT8ixkARkWA29yZzAqMAUGAytlcAMhAO-JgfYlgdcmHdy6DVB_Pe38vQzy0Sq2WoBFltiYdz20o4Go"
    "MIGlMB0GA1UdDgQWBBSIsXtXbsSRl327UuBeWme81EPBnDAMBgNVHRMBAf8EAjAAMA4GA1UdDwEB_wQEAwIFoDAnBgNV"
    "HSUEIDAeBggrBgEFBQcDAgYIKwYBBQUHAwEGCCsGAQUFBwMDMB8GA1UdIwQYMBaAFOHHavCG9uy-31NLOkhxOEArecww"
    "MBwGA1UdEQQVMBOBEXR1c2VyQGV4YW1wbGUub3JnMAUGAytlcANBAMY_auIRgwJw2KttkEzhnMeasrkAWXYG9pCNSvCj"
    "iU7hGm3oYCQCaeaOrZzFQyfITZClc4MKrjuzRW2Az6B_UwI="
)


def peer(*attributes: tuple[str, str]) -> dict[str, Any]:
    return {"subject": tuple((attribute,) for attribute in attributes)}


@pytest.mark.parametrize(
    ("subject", "name"),
    [
        (peer(("commonName", "Test User"), ("userId", "tuser")), "uid:tuser"),
        (peer(("commonName", "uid:root")), "cn:uid:root"),
        (peer(("commonName", "transfers"), ("domainComponent", "org")), "cn:transfers"),
    ],
)
def test_caller_name(subject: dict[str, Any], name: str) -> None:
    assert names.caller_name(subject) == name


@pytest.mark.parametrize(
    "subject",
    [
        {},
        peer(("domainComponent", "org")),
        peer(("commonName", "x"), ("userId", "a"), ("userId", "b")),
        peer(("commonName", "x"), ("commonName", "y")),
    ],
)
def test_nobody_in_particular(subject: dict[str, Any]) -> None:
    with pytest.raises(IdentityError, match=r"^peer certificate has"):
        names.caller_name(subject)


def test_names_are_written_as_certified_does() -> None:
    der = base64.urlsafe_b64decode(SIGNED_BY_CERTIFIED)
    certificate = x509.load_der_x509_certificate(der)
    assert names.written(certificate.subject) == "DC=org,DC=example,UID=tuser,CN=Test User"
    expected = "P=Signing Certificate,CN=Psik-API Microservice"
    assert names.written(certificate.issuer) == expected
    own = names.subject("Test User", uid="tuser", domain="example.org")
    assert own == certificate.subject
