"""The command as a whole: help, exit codes, what is missing."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from lclstream.cli.main import COMPONENT_OF, EXTRA_OF, main

ROOT = Path(__file__).parents[2]
# An installation without a library, as far as an import can tell.
WITHOUT = "import sys; sys.modules[{library!r}] = None; from lclstream.cli.main import main; "


def run(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    listed = capsys.readouterr().out
    assert all(f"    {command} " in listed for command in COMPONENT_OF)


@pytest.mark.parametrize("arguments", [["nonsense"], ["pull", "--nonsense"], ["transfer", "fly"]])
def test_wrong_use_is_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: lclstream" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("library", "arguments", "extra"),
    [
        ("rich", ["demo"], "demo"),
        ("uvicorn", ["transfer", "serve", "x.yaml"], "server"),
        ("scipy", ["analyse", "peaks", "--url", "tcp://127.0.0.1:1", "--output", "o"], "analysis"),
        ("confluent_kafka", ["elog", "standin", "--kafka", "h:1", "--identity", "i"], "elog"),
    ],
)
def test_missing_library_names_its_extra(library: str, arguments: list[str], extra: str) -> None:
    done = run(WITHOUT.format(library=library) + f"sys.exit(main({arguments!r}))")
    assert done.returncode == 2, done.stderr
    assert "is not installed: pip install 'lclstream[" + extra + "]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_extras_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(EXTRA_OF.values()) <= set(project["optional-dependencies"])


@pytest.mark.parametrize("heavy", ["airflow", "fastapi", "h5py", "mpi4py", "numpy", "scipy"])
def test_help_of_one_command_loads_nothing_heavy(heavy: str) -> None:
    code = "import sys; from lclstream.cli.main import build_parser; build_parser('pull'); "
    assert run(code + f"sys.exit({heavy!r} in sys.modules)").returncode == 0
