"""The service processes of the demo: started, awaited, and ended whatever happens."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lclstream.core.errors import UnavailableError

# A service on a loaded two-core machine imports and binds within a few seconds.
READY_TIMEOUT_S = 60.0
TERM_TIMEOUT_S = 15.0
POLL_S = 0.05
PR_SET_PDEATHSIG = 1


class ServiceProcess:
    """One process in a group of its own, with its log in a file.

    Resource handling: `stop` ends the whole group, TERM first; a process whose parent was
    killed gets TERM from the kernel.

    Error handling: a process that ends before it is ready raises with the end of its log.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        folder: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.ready_file = folder / f"{name}.ready"
        self.log = folder / f"{name}.log"
        self._command = list(command)
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Start the process and return at once."""
        self.ready_file.unlink(missing_ok=True)
        libc = ctypes.CDLL(None)

        def die_with_parent() -> None:
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        return self

    @property
    def pid(self) -> int:
        """Process id; also the id of its group."""
        if self._process is None:
            raise UnavailableError(f"{self.name} was not started")
        return self._process.pid

    def is_running(self) -> bool:
        """Return whether the process lives."""
        return self._process is not None and self._process.poll() is None

    def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> dict[str, Any]:
        """Wait for the process's ready file and return what it announces.

        Raises:
            UnavailableError: the process ended, or was not ready in time.
        """
        deadline = time.monotonic() + timeout_s
        while not self.ready_file.exists():
            if not self.is_running():
                raise UnavailableError(f"{self.name} ended while starting:\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise UnavailableError(
                    f"{self.name} was not ready after {timeout_s:.0f} s:\n{self.log_tail()}"
                )
            time.sleep(POLL_S)
        announced: dict[str, Any] = json.loads(self.ready_file.read_text())
        return announced

    def log_tail(self, lines: int = 15) -> str:
        """Return the last lines of the log."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def kill(self) -> None:
        """End the process group at once, as a crash would."""
        if self._process is not None:
            self._signal(signal.SIGKILL)
            self._process.wait()

    def stop(self, timeout_s: float = TERM_TIMEOUT_S) -> int | None:
        """Ask the process to end, then make it; return its exit code."""
        if self._process is None:
            return None
        if self.is_running():
            self._process.terminate()
            try:
                self._process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self._signal(signal.SIGKILL)
        # What it started and left behind is in its group.
        self._signal(signal.SIGKILL)
        return self._process.wait()

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            return

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def lclstream_command(*words: str) -> list[str]:
    """Return the command line of a verb, run by the same interpreter as this process."""
    return [sys.executable, "-m", "lclstream.cli", *words]
