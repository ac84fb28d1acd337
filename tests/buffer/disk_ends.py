"""Producers and consumers for the tests with disks: raw, and our own ones that keep their word."""

import hashlib
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

from tests.buffer.peers import PULL_HANDSHAKE, PUSH_HANDSHAKE

from lclstream.buffer.control import Frame, frame
from lclstream.buffer.endpoints import Pull, Push, ReceiveTimeoutError
from lclstream.buffer.sp import header
from lclstream.core.errors import LclstreamError

PATIENCE_S = 60.0
# HELLO follows the handshake of the buffer.
GREETING_BYTES = 8 + 21


def place(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("tcp://").rpartition(":")
    return host, int(port)


def until(condition: Callable[[], bool], what: str, timeout_s: float = PATIENCE_S) -> None:
    """Wait for a condition without taking the processor from who is to make it true."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"did not come true: {what}"
        time.sleep(0.005)


def numbered(number: int, size: int) -> bytes:
    """Return a message that says which one it is, and can be checked."""
    return number.to_bytes(8) + hashlib.shake_128(number.to_bytes(8)).digest(size)


class PlainProducer(threading.Thread):
    """Pushes messages as any SP program would; `error` tells what went wrong."""

    def __init__(self, url: str, messages: Iterator[bytes]) -> None:
        super().__init__()
        self.sent = 0
        """Messages that the kernel has taken."""
        self.error: OSError | None = None
        self._messages = messages
        self._sock = socket.create_connection(place(url))
        self.start()

    def run(self) -> None:
        with self._sock as sock:
            try:
                sock.sendall(PUSH_HANDSHAKE)
                for message in self._messages:
                    sock.sendall(header(len(message)) + message)
                    self.sent += 1
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(1 << 12):
                    pass
            except OSError as error:
                self.error = error


def pull_plain(url: str, *, acknowledge: bool = False) -> Generator[bytes]:
    """Yield messages until the end; with `acknowledge` each is finished when the next is asked."""
    with socket.create_connection(place(url), timeout=PATIENCE_S) as sock:
        sock.sendall(PULL_HANDSHAKE)
        count = 0
        if acknowledge:
            sock.sendall(frame(Frame.ACK, 0))
        with sock.makefile("rb") as stream:
            assert stream.read(8) == PUSH_HANDSHAKE
            while head := stream.read(8):
                size = int.from_bytes(head)
                message = stream.read(size)
                assert len(message) == size
                yield message
                count += 1
                if acknowledge:
                    sock.sendall(frame(Frame.ACK, count))


class SafeProducer(threading.Thread):
    """One of ours, which sends again what a buffer has not accepted."""

    def __init__(self, url: str, messages: list[bytes]) -> None:
        super().__init__()
        self.error: BaseException | None = None
        self._url, self._messages = url, messages
        self.start()

    def run(self) -> None:
        try:
            with Push(self._url, delivery="safe", reconnect_timeout_s=PATIENCE_S) as push:
                for message in self._messages:
                    push.send(message)
        except BaseException as error:
            self.error = error


class AcknowledgingConsumer(threading.Thread):
    """One of ours, which comes again when its connection ends, until it is told to stop."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.got: list[bytes] = []
        self.error: BaseException | None = None
        self._url = url
        self._stop_asked = threading.Event()
        self.start()

    def stop(self) -> None:
        self._stop_asked.set()
        self.join()

    def run(self) -> None:
        while not self._stop_asked.is_set():
            try:
                with Pull(self._url, acknowledge=True, reconnect=False) as pull:
                    self._pull(pull)
            except (LclstreamError, EOFError):
                # The buffer was killed, or has ended.
                continue
            except BaseException as error:
                self.error = error
                return

    def _pull(self, pull: Pull) -> None:
        while not self._stop_asked.is_set():
            try:
                self.got.append(bytes(pull.recv(0.05)))
            except ReceiveTimeoutError:
                continue


def peak_bytes(pid: int) -> int:
    """Return the most memory that a process ever had."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")
