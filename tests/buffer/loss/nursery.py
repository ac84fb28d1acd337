"""Starts processes quickly: one that has imported everything forks the others.

Run as a program it is that process, which takes one JSON object a line and answers likewise;
`Nursery` is the side of the tests.
"""

import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.buffer.loss.peers import Orders, run

ROOT = Path(__file__).parents[3]
PATIENCE_S = 60.0
POLL_S = 0.01


def until(condition: Callable[[], bool], timeout_s: float = PATIENCE_S, what: str = "") -> None:
    """Wait for a condition without taking the processor from who is to make it true."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"did not come true: {what or condition}"
        time.sleep(POLL_S)


def until_still(read: Callable[[], int], still_s: float = 0.5) -> int:
    """Return a number once it has not changed for a while."""
    last, since = read(), time.monotonic()
    while time.monotonic() - since < still_s:
        time.sleep(POLL_S)
        if read() != last:
            last, since = read(), time.monotonic()
    return last


class Process:
    """One of the processes."""

    def __init__(self, nursery: "Nursery", pid: int) -> None:
        self._nursery = nursery
        self._code: int | None = None
        self.pid = pid

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while it runs."""
        if self._code is None:
            self._code = self._nursery.ask({"do": "poll", "pid": self.pid})
        return self._code

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        until(lambda: self.poll() is not None, timeout_s, f"end of process {self.pid}")
        assert self._code is not None
        return self._code

    def send_signal(self, number: signal.Signals) -> None:
        # Until `poll` has told of its end nobody else can have its number.
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
        self.wait()

    def family(self) -> list[int]:
        """Return the numbers of the process and of all that it has started."""
        family = [self.pid]
        for pid in family:
            for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
                with contextlib.suppress(OSError):
                    family += map(int, tasks.read_text().split())
        return family

    def descriptors(self) -> int:
        """Return how many descriptors they have open."""
        return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in self.family())

    def resident_bytes(self) -> int:
        """Return how much memory they take."""
        pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self.family())
        return pages * os.sysconf("SC_PAGE_SIZE")


class PeerProcess(Process):
    """A producer or consumer."""

    def __init__(self, nursery: "Nursery", pid: int, orders: Orders) -> None:
        super().__init__(nursery, pid)
        self.orders = orders
        self.folder = Path(orders.folder)
        self.killed = False

    def lines(self) -> list[list[str]]:
        """Return the words of each whole line that it wrote."""
        with contextlib.suppress(FileNotFoundError):
            text = (self.folder / "log").read_text()
            return [line.split() for line in text[: text.rfind("\n") + 1].splitlines()]
        return []

    def said(self, word: str) -> list[list[str]]:
        return [line[1:] for line in self.lines() if line[0] == word]

    def got(self) -> list[str]:
        """Return the md5 of each message that it got."""
        return [digest for digest, _ in self.said("got")]

    @property
    def ports(self) -> list[int]:
        return [int(port) for (port,) in self.said("local")]

    @property
    def how(self) -> str:
        """How it ended."""
        return " ".join(" ".join(words) for words in self.said("end"))

    def tell(self, word: str) -> None:
        (self.folder / word).touch()

    def kill(self) -> None:
        self.killed = self.poll() is None
        super().kill()


class RelayProcess(Process):
    """A buffer as a process of its own."""

    def __init__(self, nursery: "Nursery", pid: int, folder: Path) -> None:
        super().__init__(nursery, pid)
        self.folder = folder
        ready = folder / "ready"
        until(lambda: ready.exists() or self.poll() is not None, what="ready file")
        assert self._code is None, self.log()
        self.addresses: dict[str, Any] = json.loads(ready.read_text())

    @property
    def push_url(self) -> str:
        return str(self.addresses["in"][0])

    @property
    def pull_url(self) -> str:
        return str(self.addresses["out"][0])

    def log(self) -> str:
        return (self.folder / "stderr").read_text()

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the events of its log that have a name."""
        return [
            event
            for line in self.log().splitlines()
            if line.startswith("{") and name in line
            for event in [json.loads(line)]
            if event.get("event") == name
        ]

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def finish(self, timeout_s: float = PATIENCE_S) -> tuple[int, dict[str, Any]]:
        """Wait for the end; return the exit code and the final report."""
        code = self.wait(timeout_s)
        return code, json.loads((self.folder / "stdout").read_text().splitlines()[-1])


class Nursery:
    """Starts peers and buffers; all that are left are killed at the end.

    Args:
        folder: each process gets a folder of its own in it.
        within: a command that runs another one, in a network namespace for instance.
    """

    def __init__(self, folder: Path, within: Sequence[str] = ()) -> None:
        self.folder = folder
        self._within = within
        self.peers: list[PeerProcess] = []
        self._count = 0

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [*self._within, sys.executable, "-m", "tests.buffer.loss.nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            text=True,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        # It kills all that are left.
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def ask(self, request: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def relay(
        self,
        *options: str,
        folder: Path | None = None,
        environment: dict[str, str] | None = None,
    ) -> RelayProcess:
        """Start a buffer with options of `lclstream buffer serve`; returns when it listens."""
        process = self.unready_relay(*options, folder=folder, environment=environment)
        return RelayProcess(self, process.pid, process.folder)

    def unready_relay(
        self,
        *options: str,
        folder: Path | None = None,
        environment: dict[str, str] | None = None,
    ) -> "UnreadyProcess":
        folder = folder or self._new_folder("relay")
        (folder / "ready").unlink(missing_ok=True)
        words = ["buffer", "serve", "--ready-file", str(folder / "ready"), *options]
        pid = self.ask(
            {"do": "relay", "words": words, "folder": str(folder), "environ": environment or {}}
        )
        return UnreadyProcess(self, pid, folder)

    def start(self, **orders: Any) -> PeerProcess:
        """Start a peer; the arguments are those of `Orders` without the folder."""
        made = replace(Orders(folder="", **orders), folder=str(self._new_folder(orders["kind"])))
        pid = self.ask({"do": "peer", "orders": json.loads(made.to_json())})
        peer = PeerProcess(self, pid, made)
        self.peers.append(peer)
        return peer

    def produce(self, kind: str, url: str, **orders: Any) -> PeerProcess:
        return self.start(role="produce", kind=kind, url=url, **orders)

    def consume(self, kind: str, url: str, **orders: Any) -> PeerProcess:
        return self.start(role="consume", kind=kind, url=url, **orders)

    def _new_folder(self, name: str) -> Path:
        self._count += 1
        folder = self.folder / f"{self._count:03d}-{name}"
        folder.mkdir()
        return folder


class UnreadyProcess(Process):
    """A buffer that may never listen."""

    def __init__(self, nursery: Nursery, pid: int, folder: Path) -> None:
        super().__init__(nursery, pid)
        self.folder = folder

    def log(self) -> str:
        return (self.folder / "stderr").read_text()


@contextmanager
def nursery_at(folder: Path, within: Sequence[str] = ()) -> Iterator[Nursery]:
    folder.mkdir(exist_ok=True)
    with Nursery(folder, within) as nursery:
        yield nursery


# The program.


def main() -> None:
    # What the children share need never be looked at by their collectors.
    import pynng
    import zmq

    import lclstream.buffer.service
    import lclstream.cli.main

    del pynng, zmq, lclstream
    gc.collect()
    gc.freeze()
    children: dict[int, int | None] = {}
    try:
        for line in sys.stdin:
            sys.stdout.write(json.dumps(answer(json.loads(line), children)) + "\n")
            sys.stdout.flush()
    finally:
        for pid in [pid for pid, code in children.items() if code is None]:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def answer(request: dict[str, Any], children: dict[int, int | None]) -> int | None:
    if request["do"] == "poll":
        pid = int(request["pid"])
        if children[pid] is None:
            done, status = os.waitpid(pid, os.WNOHANG)
            children[pid] = os.waitstatus_to_exitcode(status) if done else None
        return children[pid]
    pid = os.fork()
    if not pid:
        be_child(request)
    children[pid] = None
    return pid


def be_child(request: dict[str, Any]) -> None:
    code = 99
    try:
        folder = Path(request.get("folder") or request["orders"]["folder"])
        os.chdir(folder)
        for number, name, flags in (
            (0, os.devnull, os.O_RDONLY),
            (1, "stdout", os.O_WRONLY | os.O_CREAT | os.O_APPEND),
            (2, "stderr", os.O_WRONLY | os.O_CREAT | os.O_APPEND),
        ):
            os.dup2(os.open(name, flags, 0o644), number)
        if request["do"] == "relay":
            os.environ.update(request["environ"])
            from lclstream.cli.main import main as lclstream_main

            code = lclstream_main(request["words"])
        else:
            run(Orders(**request["orders"]))
            code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
