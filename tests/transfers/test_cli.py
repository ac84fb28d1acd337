import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from tests.transfers.world import Service, internal, pull_all, wait_for

from lclstream.cli.main import main
from lclstream.transfers.client import TransfersClient

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def mona(service: Service, monkeypatch: pytest.MonkeyPatch) -> Iterator[TransfersClient]:
    monkeypatch.setenv("LCLSTREAM_SERVER", service.url)
    monkeypatch.setenv("LCLSTREAM_IDENTITY", str(service.world.identity("mona")))
    with service.client() as client:
        yield client


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = main(["transfer", *words])
    return code, capsys.readouterr().out


def test_a_transfer_from_the_command_line(
    mona: TransfersClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request = {"experiment": "mfx1", "run": 7, "streamer": internal()}
    (tmp_path / "request.yaml").write_text(yaml.safe_dump(request))
    code, number = run(capsys, "create", str(tmp_path / "request.yaml"), "--key", "once")
    assert code == 0
    number = number.strip()
    assert (
        run(capsys, "create", str(tmp_path / "request.yaml"), "--key", "once")[1] == f"{number}\n"
    )
    info = wait_for(mona, int(number), lambda seen: bool(seen.url), "listening")
    pull_all(info.url, 10)
    code, text = run(capsys, "watch", number)
    assert code == 0
    assert f"transfer {number} completed (mfx1 7)" in text
    code, text = run(capsys, "show", number)
    lines = text.splitlines()
    assert sum(line.startswith(("  producers.sent", "  buffer.")) for line in lines) == 3
    assert "10 messages" in text
    assert "50 events" in text
    assert lines[-1] == "  balanced"
    code, text = run(capsys, "ls", "--all")
    assert f"{number} completed  mfx1" in text
    code, text = run(capsys, "logs", number)
    assert "==> buffer buffer-0" in text
    assert '"complete": true' in text


def test_cancel_of_a_reservation(
    mona: TransfersClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bare.yaml").write_text(yaml.safe_dump(internal()))
    _, number = run(capsys, "create", str(tmp_path / "bare.yaml"), "--hold")
    assert run(capsys, "drain", number.strip())[0] == 1
    code, text = run(capsys, "cancel", number.strip(), "--now")
    assert (code, text) == (0, f"transfer {number.strip()} is canceled\n")
    code, text = run(capsys, "watch", number.strip())
    assert code == 1
    assert "reason   canceled by uid:mona" in text


def test_clients_need_no_server_libraries() -> None:
    absent = ["fastapi", "starlette", "uvicorn", "sqlalchemy", "numpy", "h5py", "pynng"]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({absent}))\n"
        "import lclstream.transfers.cli, lclstream.transfers.client"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_wrong_configuration_exits_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("identity: x\nsites: []\nprot: 3\n")
    assert main(["transfer", "serve", str(path)]) == 2
    error = capsys.readouterr().err
    assert f"{path}: 4 problems" in error
    assert "prot: unknown field (did you mean 'port'?)" in error
    assert main(["transfer", "ls"]) == 2
    assert "--server: is required, or set LCLSTREAM_SERVER" in capsys.readouterr().err


@pytest.mark.parametrize(
    "verb", ["serve", "create", "ls", "show", "watch", "drain", "cancel", "logs"]
)
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["transfer", verb, "--help"])
    assert caught.value.code == 0
    assert "example" in capsys.readouterr().out
