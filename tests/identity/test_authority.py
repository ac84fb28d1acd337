"""What an authority writes, and what it refuses to certify."""

import datetime
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from lclstream.core.errors import ConflictError, IdentityError, RequestError
from lclstream.core.tls import Credentials
from lclstream.identity import certificates, keys, names
from lclstream.identity.authority import Authority
from lclstream.identity.keys import KeyType
from lclstream.identity.revocation import load_lists

CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH


def uses(certificate: x509.Certificate) -> list[x509.ObjectIdentifier]:
    return list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)


def alternatives(certificate: x509.Certificate) -> list[str]:
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return [str(name.value) for name in found.value]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_authority_folder_is_laid_out_as_certified_does(authority: Authority) -> None:
    files = {str(p.relative_to(authority.folder)) for p in authority.folder.rglob("*.*")}
    expected = {"CA.crt", "CA.key", "id.crt", "id.key"}
    assert files == expected | {"known_clients/self.crt", "known_servers/self.crt"}
    assert mode(authority.folder / "CA.key") == mode(authority.folder / "id.key") == 0o600
    pem = (authority.folder / "known_clients/self.crt").read_bytes()
    assert pem == (authority.folder / "CA.crt").read_bytes() == authority.certificate_pem


def test_signing_certificate_has_the_profile(authority: Authority) -> None:
    certificate = authority.certificate
    assert names.written(certificate.subject) == "P=Signing Certificate,CN=Test Authority"
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert constraints.value == x509.BasicConstraints(ca=True, path_length=0)
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.key_cert_sign
    assert usage.crl_sign


def test_user_is_a_client_with_a_uid(authority: Authority, tmp_path: Path) -> None:
    authority.issue_user(
        tmp_path / "u", "Test User", "tuser", "tuser@example.org", domain="example.org"
    )
    certificate = certificates.load(tmp_path / "u/id.crt")
    assert names.written(certificate.subject) == "DC=org,DC=example,UID=tuser,CN=Test User"
    assert uses(certificate) == [CLIENT]
    assert alternatives(certificate) == ["tuser@example.org"]
    certificate.verify_directly_issued_by(authority.certificate)


def test_service_is_client_and_server_without_a_uid(server: Path) -> None:
    certificate = certificates.load(server / "id.crt")
    assert uses(certificate) == [CLIENT, SERVER]
    assert alternatives(certificate) == ["127.0.0.1", "localhost"]
    assert not certificate.subject.get_attributes_for_oid(NameOID.USER_ID)
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    assert not usage.key_encipherment
    assert {p.name for p in server.iterdir()} == {"id.crt", "id.key", "ca.crt"}
    assert mode(server / "id.key") == 0o600
    Credentials.from_folder(server).client_context()


@pytest.mark.parametrize("server", [False, True])
def test_job_is_short_lived_and_a_server_only_if_asked(authority: Authority, server: bool) -> None:
    hosts = ["127.0.0.1"] if server else []
    issued = authority.issue_job("job:t-1:buffer", hours=2, server=server, hosts=hosts)
    certificate = x509.load_pem_x509_certificate(issued.cert_pem)
    assert uses(certificate) == ([CLIENT, SERVER] if server else [CLIENT])
    left = certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    assert datetime.timedelta(hours=1.9) < left <= datetime.timedelta(hours=2)
    assert issued.serial == certificate.serial_number
    assert set(issued.files()) == {"id.crt", "id.key", "ca.crt"}


def test_nothing_outlives_its_authority(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "a", "Short", days=0.5)
    issued = authority.issue_user(tmp_path / "u", "Test User", "tuser", days=1000)
    certificate = x509.load_pem_x509_certificate(issued.cert_pem)
    assert certificate.not_valid_after_utc == authority.certificate.not_valid_after_utc
    assert certificate.not_valid_before_utc >= authority.certificate.not_valid_before_utc


@pytest.mark.parametrize("hours", [0, -1, float("nan"), float("inf"), 1e12])
def test_lifetime_must_be_one(authority: Authority, hours: float) -> None:
    with pytest.raises(RequestError, match=r"^a certificate holds more than 0 and at most"):
        authority.issue_job("job:t-1:buffer", hours=hours)


@pytest.mark.parametrize(
    "wrong",
    [{"name": "job:x"}, {"name": ""}, {"hosts": ["not a host"]}, {"days": float("nan")}],
)
def test_refused_authority_leaves_nothing_behind(tmp_path: Path, wrong: dict[str, Any]) -> None:
    given: dict[str, Any] = {"name": "Test Authority", **wrong}
    with pytest.raises(RequestError):
        Authority.create(tmp_path / "a", **given)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    "wrong", [{"domain": "a..b"}, {"domain": "é.org"}, {"domain": ""}, {"email": "é@example.org"}]
)
def test_bad_address_of_a_person(
    authority: Authority, tmp_path: Path, wrong: dict[str, Any]
) -> None:
    with pytest.raises(RequestError, match=r"^expected (a domain|an e-mail address)"):
        authority.issue_user(tmp_path / "u", "Test User", "tuser", **wrong)
    assert not (tmp_path / "u").exists()


def test_folder_with_an_identity_becomes_no_authority(authority: Authority, tmp_path: Path) -> None:
    authority.issue_user(tmp_path / "u", "Test User", "tuser")
    with pytest.raises(ConflictError, match=r"holds an identity already$"):
        Authority.create(tmp_path / "u", "Test Authority")
    assert sorted(path.name for path in (tmp_path / "u").iterdir()) == [
        "ca.crt",
        "id.crt",
        "id.key",
    ]


def test_serial_number_is_positive(authority: Authority) -> None:
    with pytest.raises(RequestError, match=r"^a serial number must be > 0"):
        authority.revoke(-5)
    assert not (authority.folder / "revoked.crl").exists()


@pytest.mark.parametrize("kind", list(KeyType))
def test_identities_use_the_kind_of_key_of_their_authority(tmp_path: Path, kind: KeyType) -> None:
    Authority.create(tmp_path / "a", "Test Authority", key_type=kind)
    authority = Authority.load(tmp_path / "a")
    authority.issue_service(tmp_path / "s", "Test Service", ["127.0.0.1"])
    assert keys.kind_of(keys.load(tmp_path / "s/id.key")) == kind
    Credentials.from_folder(tmp_path / "s").server_context()


def test_names_of_jobs_are_for_jobs(authority: Authority, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"^the name of a service must not begin with 'job:'"):
        authority.issue_service(tmp_path / "s", "job:t-1:buffer", ["127.0.0.1"])
    with pytest.raises(RequestError, match=r"^the name of a job must begin with 'job:'"):
        authority.issue_job("transfers")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("host", ["", "a b", "-x.org", "x..org", "1.2.3", "127.0.0.1/8", "x\n.org"])
def test_bad_host(authority: Authority, tmp_path: Path, host: str) -> None:
    with pytest.raises(RequestError, match=r"^expected a host name or IP address, got"):
        authority.issue_service(tmp_path / "s", "Test Service", [host])


@pytest.mark.parametrize("uid", ["", " root", "ro\not", "x" * 65])
def test_bad_uid(authority: Authority, tmp_path: Path, uid: str) -> None:
    with pytest.raises(RequestError, match=r"^uid must be 1 to 64 printable characters"):
        authority.issue_user(tmp_path / "u", "Test User", uid)


def test_service_without_hosts(authority: Authority, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="at least one host"):
        authority.issue_service(tmp_path / "s", "Test Service", [])


def test_nothing_is_overwritten(authority: Authority, user: Path) -> None:
    key = (user / "id.key").read_bytes()
    with pytest.raises(ConflictError, match="keys are not overwritten"):
        authority.issue_user(user, "Test User", "tuser")
    with pytest.raises(ConflictError, match="holds an authority already"):
        Authority.create(authority.folder, "Other")
    assert (user / "id.key").read_bytes() == key


def test_authority_with_the_key_of_another(authority: Authority, tmp_path: Path) -> None:
    Authority.create(tmp_path / "other", "Other")
    (tmp_path / "other/CA.crt").write_bytes(authority.certificate_pem)
    with pytest.raises(IdentityError, match=r"^CA\.key does not belong to CA\.crt"):
        Authority.load(tmp_path / "other")


def test_authority_key_that_others_can_read(authority: Authority) -> None:
    (authority.folder / "CA.key").chmod(0o640)
    with pytest.raises(IdentityError, match=r"CA\.key"):
        Authority.load(authority.folder)


def test_missing_authority(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match=r"^cannot read certificate .* No such file"):
        Authority.load(tmp_path)


def test_lists_of_two_authorities_live_in_one_file(
    authority: Authority, server: Path, tmp_path: Path
) -> None:
    other = Authority.create(tmp_path / "other", "Other Site")
    for number in (1, 2, 2):
        authority.revoke(number)
    other.revoke(3)
    authority.publish(server)
    other.publish(server)
    authority.publish(server)
    lists = load_lists(server / "revoked.crl")
    serials = {names.written(one.issuer): sorted(r.serial_number for r in one) for one in lists}
    assert serials == {
        "P=Signing Certificate,CN=Test Authority": [1, 2],
        "P=Signing Certificate,CN=Other Site": [3],
    }


def test_openssl_agrees(authority: Authority, server: Path, user: Path) -> None:
    def verify(purpose: str, folder: Path) -> bool:
        trust = ["-CAfile", str(folder / "ca.crt"), "-x509_strict", "-purpose", purpose]
        command = ["openssl", "verify", *trust, str(folder / "id.crt")]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    assert verify("sslclient", user)
    assert not verify("sslserver", user)
    assert verify("sslclient", server)
    assert verify("sslserver", server)
