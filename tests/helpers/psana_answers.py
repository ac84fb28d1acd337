"""What psana2 reads from XTC2 files, asked of one process for many files."""

import base64
import json
import math
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from tests.helpers.xtc2_runs import same

READER = Path(__file__).with_name("psana_reader.py")
END_TIMEOUT_S = 30


class Psana:
    """A process that answers what psana2 reads.

    Resource handling: a context manager; owns the process.
    """

    def __init__(self, python: Path, folder: Path) -> None:
        self._messages = (folder / "psana.log").open("w+")
        self._process = subprocess.Popen(
            # Without the folder of the script on the path, where other files lie.
            [python, "-P", READER],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._messages,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.communicate(timeout=END_TIMEOUT_S)
        self._messages.close()

    def ask(self, **request: Any) -> list[dict[str, Any]]:
        """Return the runs of a data source; see `psana_reader`."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps({"variables": [], "detectors": [], **request}) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, self._said()
        found: list[dict[str, Any]] = json.loads(answer)["runs"]
        return found

    def _said(self) -> str:
        self._process.wait(END_TIMEOUT_S)
        self._messages.seek(0)
        return f"psana2 ended with {self._process.returncode}: {self._messages.read()[-2000:]}"


def value_of(plain: Any) -> Any:
    """Return a value that came as JSON."""
    if isinstance(plain, dict):
        raw = base64.b64decode(plain["data"])
        return np.frombuffer(raw, plain["dtype"]).reshape(plain["shape"])
    return plain


def agree(theirs: Any, ours: Any) -> bool:
    """Return whether psana2's value is ours; it gives scalars as Python's own numbers."""
    theirs = value_of(theirs)
    if isinstance(ours, np.ndarray):
        return same(theirs, ours)
    ours = ours.item() if isinstance(ours, np.generic) else ours
    both_nan = isinstance(ours, float) and math.isnan(ours) and math.isnan(theirs)
    return bool(both_nan or (type(theirs) is type(ours) and theirs == ours))
