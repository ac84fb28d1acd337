"""The list of revoked certificates under a running server."""

from pathlib import Path

import pytest

from lclstream.core.errors import IdentityError
from lclstream.identity.authority import Authority
from lclstream.identity.revocation import RevocationCheck


def test_no_file_means_nobody_is_revoked(authority: Authority, tmp_path: Path) -> None:
    assert not RevocationCheck(tmp_path / "revoked.crl", [authority.certificate]).is_revoked(7)


def test_change_is_seen(authority: Authority) -> None:
    path = authority.folder / "revoked.crl"
    check = RevocationCheck(path, [authority.certificate])
    authority.revoke(7)
    assert check.is_revoked(7)
    assert not check.is_revoked(8)
    authority.revoke(8)
    assert check.is_revoked(7)
    assert check.is_revoked(8)


@pytest.mark.parametrize("damage", [b"", b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----"])
def test_damage_later_forgets_nothing(
    authority: Authority, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = authority.revoke(7)
    check = RevocationCheck(path, [authority.certificate])
    path.write_bytes(damage)
    assert check.is_revoked(7)
    assert "revocation_list_unusable" in caplog.messages
    path.unlink()
    assert check.is_revoked(7)


def test_damage_at_the_start_is_refused(authority: Authority) -> None:
    path = authority.folder / "revoked.crl"
    path.write_bytes(b"nonsense")
    with pytest.raises(IdentityError, match=r"^no PEM revocation list in"):
        RevocationCheck(path, [authority.certificate])


def test_list_of_a_stranger_is_refused(authority: Authority, tmp_path: Path) -> None:
    # Same name, another key.
    other = Authority.create(tmp_path / "other", "Test Authority")
    with pytest.raises(IdentityError, match=r"has an unknown issuer$"):
        RevocationCheck(other.revoke(7), [authority.certificate])
