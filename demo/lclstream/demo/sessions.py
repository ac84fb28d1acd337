"""Processes by their session, and ports that stay free: what a foreign daemon needs."""

import os
import secrets
import signal
import socket
import subprocess
from collections.abc import Collection
from pathlib import Path


def free_port() -> int:
    """Return a port that nobody listens on.

    Airflow cannot be handed a socket. A port below the range that the kernel gives to
    outgoing connections stays free until the API server asks for it, seconds later.
    """
    limits = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    upper = max(int(limits[0]), 12000)
    while True:
        port = upper - 1 - secrets.randbelow(10000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def exited(process: subprocess.Popen[bytes]) -> bool:
    """Tell whether a child has ended, without collecting it."""
    if process.returncode is not None:
        return True
    flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
    try:
        return os.waitid(os.P_PID, process.pid, flags) is not None
    except ChildProcessError:
        # Another thread has collected it in this moment.
        return True


def members(sessions: Collection[int]) -> list[int]:
    """Return the living processes of some sessions, however they are grouped."""
    everybody = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return [pid for pid in everybody if _session_of(pid) in sessions]


def _session_of(pid: int) -> int | None:
    """Return a living process's session; a zombie's is None."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name, in parentheses, may hold anything.
    state, _, _, session = stat.rpartition(")")[2].split()[:4]
    return None if state in "ZX" else int(session)


def kill(pid: int) -> None:
    """Kill a process, unless it has ended by itself."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
