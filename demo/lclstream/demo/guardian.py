"""Clears up after a demo that could not: one that was killed with SIGKILL, or whose host ran dry.

`Guardian` starts a process that waits for the end of its standard input. The demo holds the
other end, so it comes when the demo has ended, however that was. Then everything that still
belongs to the demo's folder is killed, and the folder removed.

A process belongs to a demo if its environment says so (`MARK`, which all services, Airflow and
the SLURM daemons inherit), if it is a job (`base`, the job's folder, lies in the demo's), or
if it is the step daemon of a SLURM job, whose environment knows nothing but SLURM's own paths,
or if it works in the folder without a terminal: Airflow's processes write titles over theirs.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

MARK = "LCLSTREAM_DEMO"
STEP_DAEMON = "slurmstepd"
END_TIMEOUT_S = 20.0
ROUND_S = 0.1


class Guardian:
    """Guards a folder as long as it is open; a context manager.

    Everything that is started while it is open inherits the mark.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(self.folder)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        os.environ[MARK] = str(self.folder)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        del os.environ[MARK]
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait(END_TIMEOUT_S)


def belonging(folder: Path) -> Iterator[int]:
    """Yield the living processes that belong to a demo's folder."""
    mark, base = f"{MARK}={folder}".encode(), f"base={folder}{os.sep}".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            environment = (entry / "environ").read_bytes()
            name = (entry / "comm").read_text().strip()
            place = (entry / "cwd").readlink()
            terminal = (entry / "stat").read_text().rpartition(")")[2].split()[4]
        except OSError:
            # Ended in this moment, or not ours.
            continue
        marked = any(each == mark or each.startswith(base) for each in environment.split(b"\0"))
        is_step = name == STEP_DAEMON and bytes(folder) + b"/" in environment
        if marked or is_step or (terminal == "0" and place.is_relative_to(folder)):
            yield int(entry.name)


def clear(folder: Path) -> int:
    """Kill what belongs to a folder and remove it; return how many processes there were."""
    deadline = time.monotonic() + END_TIMEOUT_S
    killed: set[int] = set()
    while (left := set(belonging(folder))) and time.monotonic() < deadline:
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        killed |= left
        time.sleep(ROUND_S)
    shutil.rmtree(folder, ignore_errors=True)
    return len(killed)


def main() -> None:
    """Wait for the demo's end, then clear up."""
    # A Ctrl-C is for the demo, which ends by itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdin.buffer.read()
    clear(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
