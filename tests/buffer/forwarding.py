"""Buffers as processes, linked with each other, and what stands between them in the tests."""

import contextlib
import hashlib
import json
import math
import os
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pynng

from lclstream.buffer import Push

PATIENCE_S = 60.0
COMMAND = [sys.executable, "-m", "lclstream.cli", "buffer", "serve"]
ENDS_QUICKLY = ("--grace", "0.3")


def until(condition: Callable[[], bool], what: str = "") -> None:
    """Wait for a condition without taking the processor from who is to make it true."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"did not come true: {what or condition}"
        time.sleep(0.005)


def md5(message: bytes | bytearray | memoryview) -> str:
    return hashlib.md5(message, usedforsecurity=False).hexdigest()


class Served:
    """One buffer."""

    def __init__(self, folder: Path, name: str, *options: str) -> None:
        self._ready = folder / f"{name}.ready"
        self._stdout = folder / f"{name}.stdout"
        self._log = folder / f"{name}.log"
        self._options = options
        self.urls: dict[str, list[str]] = {}
        self._start()

    def _start(self) -> None:
        self._ready.unlink(missing_ok=True)
        with self._stdout.open("w") as stdout, self._log.open("a") as log:
            self.process = subprocess.Popen(
                [*COMMAND, "--ready-file", str(self._ready), *self._options],
                stdout=stdout,
                stderr=log,
            )

    def wait_ready(self) -> Self:
        until(lambda: self._ready.exists() or self.process.poll() is not None)
        assert self._ready.exists(), self.log()
        self.urls = json.loads(self._ready.read_text())
        return self

    @property
    def push_url(self) -> str:
        return self.urls["in"][0]

    @property
    def pull_url(self) -> str:
        return self.urls["out"][0]

    def log(self) -> str:
        return self._log.read_text()

    def events(self, name: str) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self.log().splitlines() if f'"{name}"' in line]
        return [event for event in found if event.get("event") == name]

    def kill_links(self) -> None:
        """Kill the process that forwards."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")

        def kill_one() -> bool:
            for pid in children.read_text().split():
                # What has ended has no command line any more.
                if "forward_worker" in Path(f"/proc/{pid}/cmdline").read_text():
                    os.kill(int(pid), signal.SIGKILL)
                    return True
            return False

        until(kill_one)

    def crash(self) -> None:
        """Kill it and start it again with the same options."""
        self.process.kill()
        self.process.wait()
        self._start()
        self.wait_ready()

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def finish(self, timeout_s: float = PATIENCE_S) -> tuple[int, dict[str, Any]]:
        """Wait for the end; return exit code and report."""
        code = self.process.wait(timeout_s)
        return code, json.loads(self._stdout.read_text().splitlines()[-1])

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


class Buffers:
    """The buffers of a test; all are gone at its end."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._served: list[Served] = []

    def serve(self, *options: str) -> Served:
        self._served.append(Served(self._folder, f"buffer-{len(self._served)}", *options))
        return self._served[-1].wait_ready()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for served in self._served:
            if error is not None:
                print(f"--- {served.urls}\n{served.log()}", file=sys.stderr)  # noqa: T201
            served.close()


# Peers.


class Producers:
    """pynng producers, each in a thread; they close when the buffer has everything.

    Args:
        url: of the buffer.
        count: how many.
        messages: that each sends.
        pause_s: between two messages.
        safe: use our own producer with acknowledgements instead.
    """

    def __init__(
        self, url: str, count: int, messages: int, *, pause_s: float = 0.0, safe: bool = False
    ) -> None:
        self.sent: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._url, self._messages, self._pause_s, self._safe = url, messages, pause_s, safe
        self._threads = [threading.Thread(target=self._work, args=(n,)) for n in range(count)]
        for thread in self._threads:
            thread.start()

    @property
    def count(self) -> int:
        return self.sent.total()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()

    def _work(self, number: int) -> None:
        rng = random.Random(number)  # noqa: S311
        with Push(self._url, delivery="safe") if self._safe else pynng_push(self._url) as push:
            for index in range(self._messages):
                message = b"%d/%d/" % (number, index) + _body(rng)
                if index % 17 == 3:
                    # It must not be taken for a control frame.
                    message = b"LCLB" + struct.pack(">BII", index % 7, number, index)
                with self._lock:
                    self.sent[md5(message)] += 1
                push.send(message)
                time.sleep(self._pause_s)


def _body(rng: random.Random) -> bytes:
    return rng.randbytes(rng.choice([0, 5, 1000, 60_000, 200_000, 1 << 20]))


@contextmanager
def pynng_push(url: str) -> Iterator[pynng.Push0]:
    with pynng.Push0(dial=url, send_timeout=int(PATIENCE_S * 1000)) as push:
        yield push
        port = int(url.rpartition(":")[2])
        until(lambda: not _unacknowledged(port))


def _unacknowledged(port: int) -> int:
    """Return what connections of this machine to a port have not delivered."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return sum(
        int(fields[4].split(":")[0], 16)
        for fields in map(str.split, lines)
        if int(fields[2].split(":")[1], 16) == port
    )


class Consumers:
    """pynng consumers, each in a thread, until the buffer has ended.

    Args:
        served: the buffer.
        count: how many.
    """

    def __init__(self, served: Served, count: int) -> None:
        self.got: Counter[str] = Counter()
        self._served = served
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._work) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    @property
    def count(self) -> int:
        return self.got.total()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()

    def _work(self) -> None:
        with pynng.Pull0(recv_timeout=200) as pull:
            pull.reconnect_time_min = pull.reconnect_time_max = 50
            pull.dial(self._served.pull_url, block=False)
            is_over = False
            while True:
                try:
                    message = pull.recv_msg()
                except pynng.Timeout:
                    if is_over:
                        return
                    is_over = self._served.process.poll() is not None
                    continue
                with self._lock:
                    # Its `bytes` fails for an empty message.
                    self.got[md5(message._buffer or b"")] += 1


# Networks.


class Way:
    """One direction of a connection through the network.

    Args:
        source: where bytes come from.
        sink: where they go.
        delay_s: how long they are on their way.
        window_bytes: how much may be on its way and not acknowledged.
    """

    def __init__(
        self, source: socket.socket, sink: socket.socket, delay_s: float, window_bytes: int
    ) -> None:
        self.source, self.sink = source, sink
        self.has_ended = self.is_over = False
        self._delay_s = delay_s
        self._room = window_bytes
        self._line: deque[tuple[float, bytes]] = deque()
        self._returns: deque[tuple[float, int]] = deque()

    @property
    def wants_more(self) -> bool:
        return self._room > 0 and not self.has_ended

    @property
    def due(self) -> float:
        ends = [self._line[0][0] if self._line else math.inf]
        ends.append(self._returns[0][0] if self._returns else math.inf)
        return min(ends)

    def take(self) -> None:
        with contextlib.suppress(BlockingIOError):
            data = self.source.recv(min(self._room, 1 << 16))
            self.has_ended = not data
            self._room -= len(data)
            self._line.append((time.monotonic() + self._delay_s, data))

    def move(self) -> None:
        now = time.monotonic()
        while self._returns and self._returns[0][0] <= now:
            self._room += self._returns.popleft()[1]
        while self._line and self._line[0][0] <= now:
            due, data = self._line.popleft()
            if not data:
                self.sink.shutdown(socket.SHUT_WR)
                self.is_over = True
                continue
            try:
                count = self.sink.send(data)
            except BlockingIOError:
                count = 0
            # The acknowledgement has to come back.
            self._returns.append((now + self._delay_s, count))
            if count < len(data):
                # Full: a moment later again.
                self._line.appendleft((max(due, now + 0.002), data[count:]))
                return


class Network:
    """A proxy that can be cut: what is on its way is thrown away, both sides are reset.

    Args:
        url: where it leads.
        delay_s: how long bytes are on their way, in each direction.
        window_bytes: how much a connection may have on its way.
    """

    def __init__(self, url: str, *, delay_s: float = 0.0, window_bytes: int = 1 << 20) -> None:
        scheme, _, place = url.partition("://")
        host, _, port = place.rpartition(":")
        self._there = (host, int(port))
        self._delay_s, self._window_bytes = delay_s, window_bytes
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.url = f"{scheme}://127.0.0.1:{self._listener.getsockname()[1]}"
        self._ways: list[Way] = []
        self._lock = threading.Lock()
        self._is_open = True
        self._stopped = False
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopped = True
        self._thread.join()
        self.cut()
        self._listener.close()

    @property
    def connections(self) -> int:
        return len(self._ways) // 2

    def cut(self) -> None:
        """Reset all connections; new ones are let through."""
        with self._lock:
            for way in self._ways:
                reset(way.source)
            self._ways.clear()

    def close(self) -> None:
        """Reset all connections; new ones are reset too."""
        self._is_open = False
        self.cut()

    def open(self) -> None:
        """Let new connections through again."""
        self._is_open = True

    def _run(self) -> None:
        while not self._stopped:
            with self._lock:
                wanted = [way.source for way in self._ways if way.wants_more]
                due = min((way.due for way in self._ways), default=math.inf)
            pause_s = min(max(due - time.monotonic(), 0.0), 0.02)
            try:
                readable, _, _ = select.select([self._listener, *wanted], [], [], pause_s)
            except (OSError, ValueError):
                # Cut meanwhile.
                continue
            with self._lock:
                if self._listener in readable:
                    self._accept()
                for way in list(self._ways):
                    self._serve(way, is_readable=way.source in readable)

    def _serve(self, way: Way, *, is_readable: bool) -> None:
        if way not in self._ways:
            return
        back = next(each for each in self._ways if each.source is way.sink)
        try:
            if is_readable and way.wants_more:
                way.take()
            way.move()
        except OSError:
            is_broken = True
        else:
            is_broken = False
        if is_broken or (way.is_over and back.is_over):
            for each in (way, back):
                self._ways.remove(each)
                if is_broken:
                    reset(each.source)
                else:
                    each.source.close()

    def _accept(self) -> None:
        here, _ = self._listener.accept()
        try:
            if not self._is_open:
                raise ConnectionRefusedError
            there = socket.create_connection(self._there)
        except OSError:
            reset(here)
            return
        for sock in (here, there):
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._ways.append(Way(here, there, self._delay_s, self._window_bytes))
        self._ways.append(Way(there, here, self._delay_s, self._window_bytes))


def reset(sock: socket.socket) -> None:
    """Close a connection so that the other side sees that it broke."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
