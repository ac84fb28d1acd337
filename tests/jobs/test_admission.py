from pathlib import Path

import pytest

from lclstream.core.errors import InvalidConfigError, NotAuthorizedError, RequestError
from lclstream.jobs import admission

HOSTS = ["127.0.0.1", "transfers.slac.stanford.edu:14500", "*.ornl.gov", "http://10.0.0.1:8000"]


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1/cb",
        "https://127.0.0.1:9999/cb?x=1",
        "https://transfers.slac.stanford.edu:14500/v1/callback",
        "https://a.b.ornl.gov/",
        "http://10.0.0.1:8000/",
    ],
)
def test_allowed_callbacks(url: str) -> None:
    admission.check_callback(url, HOSTS)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/cb",
        "https://transfers.slac.stanford.edu/",
        "https://ornl.gov.evil.example/",
        "https://ornl.gov/",
        "https://evil.example/?127.0.0.1",
        "https://127.0.0.1.evil.example/",
        "http://10.0.0.1:8001/",
        "https://169.254.169.254/latest/meta-data",
    ],
)
def test_other_hosts_are_refused(url: str) -> None:
    with pytest.raises(NotAuthorizedError, match="not at an allowed host"):
        admission.check_callback(url, HOSTS)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd", "ftp://127.0.0.1/", "127.0.0.1", "https://", "https://h:port/",
        "https://127.0.0.1@evil.example/", "", "https://evil.example\\.ornl.gov/",
        "https://evil.example%2f.ornl.gov/", "https://127.0.0.1\\@evil.example/",
    ],
)  # fmt: skip
def test_what_is_not_a_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidConfigError):
        admission.check_callback(url, HOSTS)


def test_without_a_list_no_callback_is_allowed() -> None:
    with pytest.raises(NotAuthorizedError, match="allowed: none"):
        admission.check_callback("https://127.0.0.1/", [])


def test_directory_below_a_root(tmp_path: Path) -> None:
    (tmp_path / "root" / "sub").mkdir(parents=True)
    admission.check_directory(str(tmp_path / "root" / "sub"), [tmp_path / "root"])
    admission.check_directory(str(tmp_path / "root"), [tmp_path / "root"])


@pytest.mark.parametrize("name", ["../outside", "link", "link/below", "missing", "file", "sub/.."])
def test_directory_outside_the_roots(tmp_path: Path, name: str) -> None:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (tmp_path / "outside" / "below").mkdir(parents=True)
    (root / "link").symlink_to(tmp_path / "outside")
    (root / "file").touch()
    with pytest.raises(RequestError):
        admission.check_directory(f"{root}/{name}", [root])


def test_etc_is_nobodys_directory(tmp_path: Path) -> None:
    for roots in ([], [tmp_path]):
        with pytest.raises(NotAuthorizedError, match="not below an allowed one"):
            admission.check_directory("/etc", roots)


@pytest.mark.parametrize(
    ("root", "kept"),
    [
        ("jobs", "jobs"), ("", "jobs"), ("jobs/7/work", "jobs"), ("link", "jobs"),
    ],
)  # fmt: skip
def test_roots_keep_away_from_what_callers_may_not_see(
    tmp_path: Path, root: str, kept: str
) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "link").symlink_to(tmp_path)
    folders = {"prefix": tmp_path / kept}
    with pytest.raises(InvalidConfigError, match=r"the prefix .* overlap"):
        admission.check_roots([tmp_path / root], folders)
    admission.check_roots([tmp_path / "shared", tmp_path / "jobs2"], folders)
