"""Other people's programs that judge our files and messages, each in its own environment.

An oracle is a released program from PyPI that reads what we write, or writes what we read. Its
dependencies must not meet ours, so it lives in `build/oracles/<name>`, made once by uv and kept:
the next run of the tests finds it there.
"""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "build" / "oracles"

# Tests see a fresh HOME and no proxy; uv needs its cache and its settings as they were before.
_ENVIRONMENT = dict(os.environ)


def oracle(name: str, requirements: Sequence[str], *, without: Sequence[str] = ()) -> Path:
    """Return the Python of an environment that holds the requirements; skip where it cannot be.

    Only one process makes the environment, others wait. Give the first test that asks for it a
    `pytest.mark.timeout` that allows for a download.

    Args:
        name: Folder below `build/oracles`.
        requirements: What to install, as for pip. Changing them makes the environment anew.
        without: Dependencies to leave out, such as one that has to be compiled and is not needed.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = FOLDER / name
        python = folder / "bin" / "python"
        wanted = json.dumps([list(requirements), list(without), sys.version])
        # Written last: an environment without it was not finished.
        stamp = folder / "oracle.json"
        if not stamp.is_file() or stamp.read_text() != wanted:
            _make(folder, python, requirements, without)
            stamp.write_text(wanted)
    return python


def _make(folder: Path, python: Path, requirements: Sequence[str], without: Sequence[str]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    _uv("venv", "--quiet", "--python", sys.executable, str(folder))
    overrides = folder / "overrides.txt"
    overrides.write_text("".join(f"{each} ; python_version < '3'\n" for each in without))
    options = ["--quiet", "--python", str(python), "--override", str(overrides)]
    _uv("pip", "install", *options, *requirements)


def _uv(*arguments: str) -> None:
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.is_file() else shutil.which("uv", path=_ENVIRONMENT.get("PATH"))
    if uv is None:
        pytest.skip("uv is not installed, so no oracle's environment can be made")
    command = [uv, *arguments]
    done = subprocess.run(command, env=_ENVIRONMENT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = " ".join(done.stderr.split())[:500]
        pytest.skip(f"uv {arguments[0]} cannot make the oracle's environment: {reason}")
