"""What bytes go through: a connection as it is, or inside TLS."""

import socket
from collections.abc import Callable, Sequence
from typing import Protocol


class Wire(Protocol):
    """A non-blocking connection, whatever protects it.

    Error handling: BlockingIOError means that nothing can be done now; any other OSError that
    the connection is of no more use.
    """

    sock: socket.socket
    """For epoll and what the kernel knows; not for data."""
    can_splice: bool
    """Whether the kernel may move bytes by itself."""
    recv_into: Callable[[memoryview], int]
    """Read into memory; 0 is the end of the stream."""
    send: Callable[[memoryview], int]
    sendmsg: Callable[[Sequence[memoryview]], int]

    def pending(self) -> bool:
        """Return whether something can be read of which epoll does not tell."""

    def end(self) -> None:
        """Tell the peer that nothing more will be sent."""


class PlainWire:
    """A TCP connection as it is."""

    can_splice = True

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        # The socket's own methods: nothing comes in between.
        self.recv_into: Callable[[memoryview], int] = sock.recv_into
        self.send: Callable[[memoryview], int] = sock.send
        self.sendmsg: Callable[[Sequence[memoryview]], int] = sock.sendmsg

    def pending(self) -> bool:
        """Return False: epoll tells of everything."""
        return False

    def end(self) -> None:
        """Half-close."""
        self.sock.shutdown(socket.SHUT_WR)
