"""An authority with a server and a user, in folders of the test."""

from pathlib import Path

import pytest

from lclstream.identity.authority import Authority

HOSTS = ["127.0.0.1", "localhost"]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "authority", "Test Authority")


@pytest.fixture
def server(authority: Authority, tmp_path: Path) -> Path:
    authority.issue_service(tmp_path / "server", "Test Service", HOSTS)
    return tmp_path / "server"


@pytest.fixture
def user(authority: Authority, tmp_path: Path) -> Path:
    authority.issue_user(tmp_path / "user", "Test User", "tuser", "tuser@example.org")
    return tmp_path / "user"
