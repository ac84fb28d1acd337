"""Processes of this host as `/proc` shows them: who is who, who came from whom.

A process id alone says nothing after a restart: the kernel uses it again. With the time of
its start and the boot of the machine it is unique. The runner imports this module, so it
stays on the standard library.
"""

import os
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
DEAD = frozenset({"Z", "X"})


class Process(NamedTuple):
    """One line of the process table."""

    pid: int
    state: str
    parent: int
    session: int
    start: int
    """Clock ticks between boot and its start."""

    @property
    def is_alive(self) -> bool:
        """Whether it can still do anything; a zombie cannot."""
        return self.state not in DEAD


def look(pid: int) -> Process | None:
    """Return a process; None when there is no such one, zombies are returned."""
    try:
        text = (PROC / str(pid) / "stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command may hold blanks and brackets; what follows its last bracket does not.
    fields = text.rpartition(")")[2].split()
    return Process(pid, fields[0], int(fields[1]), int(fields[3]), int(fields[19]))


def everyone() -> Iterator[Process]:
    """Yield all processes."""
    for name in os.listdir(PROC):  # noqa: PTH208
        found = look(int(name)) if name.isdigit() else None
        if found is not None:
            yield found


def boot_id() -> str:
    """Return what names this boot of the machine."""
    return (PROC / "sys/kernel/random/boot_id").read_text().strip()


def started_at(process: Process) -> float:
    """Return when a process started, in seconds since 1970, give or take one."""
    for line in (PROC / "stat").read_text().splitlines():
        if line.startswith("btime "):
            return int(line.split()[1]) + process.start / os.sysconf("SC_CLK_TCK")
    raise OSError("/proc/stat has no btime")


def descendants(ancestor: int) -> list[int]:
    """Return the living processes that came from a process, in no order."""
    table = list(everyone())
    children: dict[int, list[Process]] = {}
    for process in table:
        children.setdefault(process.parent, []).append(process)
    found: list[int] = []
    waiting = [ancestor]
    while waiting:
        for child in children.get(waiting.pop(), ()):
            waiting.append(child.pid)
            if child.is_alive:
                found.append(child.pid)
    return found


def of_run(folder: Path, jobndx: int, session: int | None) -> list[int]:
    """Return the living processes of a run, also those that left its session.

    Args:
        folder: the job's folder, which every process of it has in its environment as `base`.
        jobndx: the run, in the environment as `jobndx`.
        session: the session of its runner, if the runner was the last process known to lead it.
    """
    marks = (f"base={folder}".encode(), f"jobndx={jobndx}".encode())
    found = []
    for process in everyone():
        if not process.is_alive or process.pid == os.getpid():
            continue
        if (session is not None and process.session == session) or _has(process.pid, marks):
            found.append(process.pid)
    return found


def _has(pid: int, marks: tuple[bytes, ...]) -> bool:
    try:
        variables = (PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        # Gone by now, or somebody else's.
        return False
    return all(mark in variables for mark in marks)


def send(pids: Iterable[int], number: signal.Signals) -> None:
    """Send a signal to processes; those that are gone by now need none."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends (Linux subreaper)."""
    import ctypes

    set_child_subreaper = 36
    if ctypes.CDLL(None).prctl(set_child_subreaper, 1, 0, 0, 0) != 0:
        sys.stderr.write("cannot adopt orphans: processes that detach may outlive the job\n")
