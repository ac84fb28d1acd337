"""`lclstream buffer serve` as a process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.buffer.peers import until

END_S = 40.0
COMMAND = [sys.executable, "-m", "lclstream.cli", "buffer", "serve"]


@contextmanager
def serving(
    folder: Path, *options: str, environment: dict[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[str], dict[str, list[str]]]]:
    """Run a buffer; yields its process and its addresses."""
    ready = folder / "ready.json"
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*COMMAND, "--ready-file", str(ready), *options],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, **(environment or {})},
            cwd=folder,
        )
    try:
        until(lambda: ready.exists() or process.poll() is not None, END_S)
        assert process.poll() is None, (folder / "log").read_text()
        yield process, json.loads(ready.read_text())
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def finish(process: subprocess.Popen[str]) -> tuple[int, dict[str, Any]]:
    """Wait for the end; return the exit code and the report on standard output."""
    output, _ = process.communicate(timeout=END_S)
    return process.returncode, json.loads(output.splitlines()[-1])


def children(pid: int) -> list[int]:
    """Return the child processes of a process."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


def is_running(pid: int) -> bool:
    """Return whether there is a process, and it is not only waited for."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"
