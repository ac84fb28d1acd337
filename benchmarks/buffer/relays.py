"""The relays that are measured: our buffer as its users run it, and what others would take."""

import functools
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.buffer.library_relays import KINDS
from benchmarks.buffer.measure import BrokenMeasurementError, cpu_s, memory_bytes, processes, until

LCLSTREAM = [sys.executable, "-m", "lclstream.cli"]
FASTCACHE = "lclstream-fastcache"
START_TIMEOUT_S = 20.0
ASK_AGAIN_S = 1.0
STOP_TIMEOUT_S = 4.0

# Below the ports that the kernel gives to those who connect.
_ports = itertools.cycle(range(20000, 30000))


def free_port() -> int:
    """Return a port that nobody listens at and that was not returned lately."""
    for port in _ports:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise AssertionError("unreachable")


@dataclass(frozen=True, slots=True, kw_only=True)
class Relay:
    """How to start a relay."""

    name: str
    protocol: str
    """What the ends at the speed of C speak to it, `sp` or `zmtp`."""
    command: Callable[[int, int, Path], list[str]]
    """Takes the two ports and a folder."""
    needs: Sequence[str] = ()
    """Options of `lclstream buffer serve` without which it cannot be measured."""
    announces: bool = False
    """Whether it writes its ready file; else it is ready when it listens."""

    def check(self) -> None:
        """Make sure that it can be started.

        Raises:
            BrokenMeasurementError: it cannot.
        """
        lacking = [option for option in self.needs if option not in serve_options()]
        if lacking:
            raise BrokenMeasurementError(f"`lclstream buffer serve` has no {', '.join(lacking)}")


@dataclass(slots=True)
class Running:
    """A relay that has been started."""

    process: subprocess.Popen[bytes]
    port_in: int
    port_out: int
    idle_rss_bytes: int = field(default=0)

    def cpu_s(self) -> float:
        """Return what all its processes have used so far."""
        return cpu_s(processes(self.process.pid))

    def memory_bytes(self, name: str) -> int:
        """Return the sum over its processes of `VmRSS` or `VmHWM`."""
        return memory_bytes(processes(self.process.pid), name)


@functools.cache
def serve_options() -> frozenset[str]:
    """Return the options that `lclstream buffer serve` has."""
    printed = subprocess.run(
        [*LCLSTREAM, "buffer", "serve", "--help"], capture_output=True, text=True, check=True
    ).stdout
    return frozenset(word.strip("[],") for word in printed.split() if word.lstrip("[")[:2] == "--")


def buffer(name: str, *options: str, memory: str = "256MiB") -> Relay:
    """Return our buffer with options."""

    def command(port_in: int, port_out: int, folder: Path) -> list[str]:
        return [
            *LCLSTREAM, "buffer", "serve",
            "--ready-file", str(ready_file(folder, port_in)),
            "--in", f"tcp://127.0.0.1:{port_in}",
            "--out", f"tcp://127.0.0.1:{port_out}",
            "--memory", memory,
            *options,
        ]  # fmt: skip

    needs = [option for option in options if option.startswith("--")]
    return Relay(name=name, protocol="sp", command=command, needs=needs, announces=True)


def ready_file(folder: Path, port_in: int) -> Path:
    """Return what a relay that announces itself writes when it is ready."""
    return folder / f"ready-{port_in}"


def library(kind: str) -> Relay:
    """Return a relay of library sockets."""

    def command(port_in: int, port_out: int, folder: Path) -> list[str]:
        del folder
        urls = [f"tcp://127.0.0.1:{port}" for port in (port_in, port_out)]
        return [sys.executable, "-m", "benchmarks.buffer.library_relays", kind, *urls]

    return Relay(name=kind, protocol="zmtp" if "zmq" in kind else "sp", command=command)


def fastcache(hwm: int) -> Relay:
    """Return the C++ cache on libzmq."""

    def command(port_in: int, port_out: int, folder: Path) -> list[str]:
        path = folder / f"fastcache-{port_in}.json"
        urls = {"inurl": f"tcp://127.0.0.1:{port_in}", "outurl": f"tcp://127.0.0.1:{port_out}"}
        path.write_text(json.dumps({**urls, "type": 4, "hwm": hwm, "timeout": -1}))
        return [FASTCACHE, str(path)]

    return Relay(name=f"fastcache hwm {hwm}", protocol="zmtp", command=command)


def libraries() -> list[Relay]:
    """Return all that our buffer is measured beside."""
    relays = [library(kind) for kind in KINDS]
    return [*relays, fastcache(10)] if shutil.which(FASTCACHE) else relays


@contextmanager
def running(relay: Relay, folder: Path) -> Iterator[Running]:
    """Start a relay, wait until it listens, and stop it in the end.

    Raises:
        BrokenMeasurementError: it cannot be started, or does not listen in time.
    """
    relay.check()
    port_in, port_out = free_port(), free_port()
    log, ready = folder / f"relay-{port_in}.log", ready_file(folder, port_in)
    ready.unlink(missing_ok=True)
    with ExitStack() as stack:
        output = stack.enter_context(log.open("wb"))
        process = subprocess.Popen(
            relay.command(port_in, port_out, folder), stdout=output, stderr=output
        )
        stack.callback(stop, [process])
        until(
            ready.exists if relay.announces else lambda: _listens(port_in) and _listens(port_out),
            START_TIMEOUT_S,
            f"{relay.name} does not listen (see {log})",
            [process],
        )
        relayed = Running(process, port_in, port_out)
        relayed.idle_rss_bytes = relayed.memory_bytes("VmRSS")
        yield relayed


def stop(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """End processes: ask, ask again (a buffer that drains ends at the second time), kill."""
    for process in children:
        process.terminate()
    for timeout_s, further in ((ASK_AGAIN_S, signal.SIGTERM), (STOP_TIMEOUT_S, signal.SIGKILL)):
        deadline = time.monotonic() + timeout_s
        for process in children:
            try:
                process.wait(max(deadline - time.monotonic(), 0.01))
            except subprocess.TimeoutExpired:
                _signal(process.pid, further)
    for process in children:
        process.wait()


def _signal(pid: int, number: signal.Signals) -> None:
    """Send a signal; to all that descend from a process too if it ends it."""
    everyone = list(processes(pid)) if number is signal.SIGKILL else [pid]
    for process in everyone:
        with suppress(ProcessLookupError):
            os.kill(process, number)


def _listens(port: int) -> bool:
    """Look without connecting: a probe would be a peer to some."""
    wanted = f"0100007F:{port:04X} 00000000:0000 0A"
    return wanted in Path("/proc/self/net/tcp").read_text()
