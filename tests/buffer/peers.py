"""Peers for the tests of the buffer, and waiting for what they do."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pynng

from lclstream.buffer.endpoints import Pull
from lclstream.core.errors import EndOfStream

PUSH_HANDSHAKE = b"\x00SP\x00\x00\x50\x00\x00"
PULL_HANDSHAKE = b"\x00SP\x00\x00\x51\x00\x00"


def drain(pull: Pull, timeout_s: float = 20.0) -> list[bytes]:
    """Return all messages until the end of the stream."""
    messages = []
    try:
        while True:
            messages.append(bytes(pull.recv(timeout_s)))
    except EndOfStream:
        return messages


@contextmanager
def in_thread(work: Callable[[], object]) -> Iterator[None]:
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def pynng_url(sock: pynng.Socket) -> str:
    return f"tcp://{sock.listeners[0].local_address}"


def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "condition did not come true"


def reset(sock: socket.socket) -> None:
    """Have the connection end with a reset when it is closed."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
