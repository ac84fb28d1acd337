"""Files that are whole or absent."""

import json
from pathlib import Path

import pytest

from lclstream.core.files import announce, write_atomically


def test_content_mode_and_no_leftovers(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    write_atomically(path, b"one", mode=0o600)
    write_atomically(path, b"two", mode=0o600)
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.mkdir()
    with pytest.raises(OSError, match="directory"):
        write_atomically(path, b"one")
    assert list(tmp_path.iterdir()) == [path]


def test_announcement_is_one_json_object(tmp_path: Path) -> None:
    announce(None, {"url": "x"})
    announce(tmp_path / "ready", {"url": "https://127.0.0.1:1"})
    assert json.loads((tmp_path / "ready").read_text()) == {"url": "https://127.0.0.1:1"}
