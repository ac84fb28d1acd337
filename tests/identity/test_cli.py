"""The command line, from an authority to a revoked user."""

import json
from pathlib import Path
from typing import Any

import pytest

from lclstream.cli.main import main


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> Any:
    assert main(["identity", *map(str, arguments)]) == 0
    return json.loads(capsys.readouterr().out)


def test_from_authority_to_revocation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site, service, user = (tmp_path / name for name in ("site", "service", "user"))
    made = run(capsys, "init", site, "--name", "Our Site", "--host", "127.0.0.1")
    assert made["authority"][0]["subject"] == "P=Signing Certificate,CN=Our Site"
    assert made["authority"][0]["uses"] == ["signs certificates"]
    options = ["--name", "transfers", "--host", "127.0.0.1", "--host", "dtn.example.org"]
    issued = run(capsys, "issue-service", site, service, *options)["identity"][0]
    assert issued["uses"] == ["client", "server"]
    assert issued["names"] == ["127.0.0.1", "dtn.example.org"]
    options = ["--name", "Mona Lisa", "--uid", "mona", "--email", "mona@example.org"]
    issued = run(capsys, "issue-user", site, user, *options)["identity"][0]
    assert issued["subject"] == "UID=mona,CN=Mona Lisa"
    assert run(capsys, "show", user)["identity"] == [issued]
    arguments = ["revoke", str(site), issued["serial"], "--publish", str(service)]
    assert main(["identity", *arguments]) == 0
    written = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert written == [site / "revoked.crl", service / "revoked.crl"]
    assert written[0].read_bytes() == written[1].read_bytes()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["show", "nowhere"], 2, "no certificate in 'nowhere'"),
        (["issue-user", "nowhere", "x", "--name", "X", "--uid", "x"], 2, "cannot read certificate"),
        (["revoke", "nowhere", "zz"], 1, "expected a hexadecimal number, got 'zz'"),
        (["init", "nowhere", "--name", "X", "--days", "nan"], 1, "a certificate holds more than 0"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["identity", *arguments]) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_what_the_file_system_refuses_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["identity", "init", str(tmp_path / "file" / "x"), "--name", "X"]) == 1
    assert capsys.readouterr().err.startswith("lclstream: [Errno 20] Not a directory")
