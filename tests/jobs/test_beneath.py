import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lclstream.core.errors import NotAuthorizedError, NotFoundError, RequestError, UnavailableError
from lclstream.jobs.beneath import Beneath


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("secret")
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "file").write_text("content")
    (root / "up").symlink_to("/")
    (root / "sub" / "out").symlink_to(tmp_path / "outside")
    (root / "alias").symlink_to(root / "sub" / "file")
    os.mkfifo(root / "fifo")
    return root


def read(root: Path, name: str) -> bytes:
    with Beneath(root) as files:
        handle = files.open_file(name)
    with os.fdopen(handle, "rb") as file:
        return file.read()


def test_file_is_read(root: Path) -> None:
    assert read(root, "sub/file") == b"content"
    assert read(root, "./sub//file") == b"content"


@pytest.mark.parametrize(
    "name",
    [
        "../outside/secret", "sub/../../outside/secret", "/etc/passwd", "up/etc/passwd",
        "sub/out/secret", "alias", "fifo", "sub", "", ".", "missing", "sub/file/below", "a\x00b",
        "x/" * 40 + "y",
    ],
)  # fmt: skip
def test_nothing_else_is(root: Path, name: str) -> None:
    with pytest.raises(RequestError):
        read(root, name)


def test_links_and_fifos_are_not_listed(root: Path) -> None:
    with Beneath(root) as files:
        assert list(files.entries("")) == ["sub"]
        assert list(files.entries("sub")) == ["file"]


def test_written_file_is_private_and_its_folders_are_made(root: Path) -> None:
    with Beneath(root) as files:
        files.write_file("identity/deep/id.key", iter([b"ke", b"y"]))
    written = root / "identity" / "deep" / "id.key"
    assert written.read_bytes() == b"key"
    assert written.stat().st_mode & 0o777 == 0o600
    assert written.parent.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in written.parent.iterdir()] == ["id.key"]


def test_file_is_replaced_and_a_link_is_not_followed(root: Path, tmp_path: Path) -> None:
    (root / "link").symlink_to(tmp_path / "outside" / "secret")
    with Beneath(root) as files:
        files.write_file("link", iter([b"mine"]))
    assert (tmp_path / "outside" / "secret").read_text() == "secret"
    assert not (root / "link").is_symlink()
    assert (root / "link").read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["../x", "up/tmp/x", "sub/out/x", "/x", "sub/", "", "sub", ".."])
def test_nothing_is_written_elsewhere(root: Path, name: str) -> None:
    before = sorted(root.parent.rglob("*"))
    with pytest.raises(RequestError), Beneath(root) as files:
        files.write_file(name, iter([b"x"]))
    assert sorted(root.parent.rglob("*")) == before


def test_interrupted_upload_leaves_nothing(root: Path) -> None:
    def broken() -> "object":
        yield b"x"
        raise OSError("connection lost")

    with pytest.raises(OSError, match="connection lost"), Beneath(root) as files:
        files.write_file("new", broken())  # type: ignore[arg-type]
    assert [path.name for path in root.iterdir() if "new" in path.name] == []


def test_missing_root(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError), Beneath(tmp_path / "no"):
        pass


def test_folder_or_not(root: Path) -> None:
    with Beneath(root) as files:
        assert files.is_folder("")
        assert files.is_folder("sub")
        assert not files.is_folder("sub/file")
        assert not files.is_folder("up")
        with pytest.raises(NotFoundError):
            files.is_folder("missing")
        with pytest.raises(NotAuthorizedError):
            files.is_folder("../root")


@pytest.mark.parametrize("name", ["x" * 300, "x" * 300 + "/below", "sub/" + "é" * 200])
def test_name_too_long_for_the_file_system(root: Path, name: str) -> None:
    with Beneath(root) as files:
        for action in (files.open_file, files.is_folder, lambda n: files.write_file(n, iter(()))):
            with pytest.raises(NotAuthorizedError, match="File name too long"):
                action(name)
    assert sorted(path.name for path in (root / "sub").iterdir()) == ["file", "out"]


def test_name_may_be_as_long_as_the_file_system_allows(root: Path) -> None:
    with Beneath(root) as files:
        files.write_file("é" * 127, iter([b"content"]))
    assert read(root, "é" * 127) == b"content"


def test_full_disk_is_said(root: Path) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"content"
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Beneath(root) as files, pytest.raises(UnavailableError, match=r"^no room for sub/new: "):
        files.write_file("sub/new", chunks())
    assert sorted(path.name for path in (root / "sub").iterdir()) == ["file", "out"]
