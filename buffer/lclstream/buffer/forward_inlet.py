"""A link's connection to its own buffer: a consumer that acknowledges."""

import socket
from collections.abc import Callable
from contextlib import suppress

from lclstream.buffer import tcp
from lclstream.buffer.control import Frame, frame
from lclstream.buffer.loop import READ, Loop
from lclstream.buffer.sp import Handshake, Protocol, handshake

DISCARDED_BYTES = 256 * 1024
# What waits here is withheld from the other links; the kernel would let it grow without end.
WAITING_BYTES = 512 * 1024


class Inlet:
    """What comes from the own buffer.

    Resource handling: owns the socket; after `part` or `close` it is not to be used any more.

    Args:
        sock: connected to the own buffer.
        loop: watches it.
        on_readable: hears that something has come; while `watch` is in force.
        base: messages of the link's stream that went before those of this connection.
    """

    def __init__(
        self, sock: socket.socket, loop: Loop, on_readable: Callable[[], None], base: int
    ) -> None:
        self.sock = sock
        self.base = base
        self.has_ended = False
        """Whether nothing more will come."""
        self._loop = loop
        self._on_readable = on_readable
        self._watched = False
        self._told = 0
        self._handshake: Handshake | None = Handshake(Protocol.PUSH)
        tcp.tune(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, WAITING_BYTES)
        # In one write: so the buffer knows from the beginning that this is acknowledged.
        self._say(handshake(Protocol.PULL) + frame(Frame.ACK, 0))

    def receive(self, view: memoryview) -> int:
        """Read messages; 0 means that nothing more will come.

        Raises:
            OSError: the connection is broken, or (BlockingIOError) nothing is there.
            DecodeError: what answers is not a buffer.
        """
        while self._handshake is not None:
            data = self.sock.recv(self._handshake.missing_bytes)
            if not data:
                return 0
            if self._handshake.received(data):
                self._handshake = None
        return self.sock.recv_into(view)

    def acknowledge(self, accepted: int) -> None:
        """Pass on that so many messages of the stream are in the custody of the next buffer."""
        count = accepted - self.base
        if count > self._told:
            self._told = count
            self._say(frame(Frame.ACK, count))

    def watch(self, wanted: bool) -> None:
        """Hear of what comes, or not any more."""
        if wanted and not self._watched and not self.has_ended:
            self._loop.watch(self.sock, READ, lambda _: self._on_readable())
        elif self._watched and not wanted:
            self._loop.ignore(self.sock)
        self._watched = wanted and not self.has_ended

    def part(self) -> None:
        """Leave: what was not acknowledged goes to others.

        What is unread would make the kernel reset the connection, and with it take the last
        acknowledgement away from the buffer: read on until it closes.
        """
        self.watch(False)
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.close()
            return
        scratch = bytearray(DISCARDED_BYTES)
        self._loop.watch(self.sock, READ, lambda _: self._discard(scratch))

    def close(self) -> None:
        """Close at once."""
        self._loop.close_later(self.sock)

    def _discard(self, scratch: bytearray) -> None:
        try:
            count = self.sock.recv_into(scratch)
        except BlockingIOError:
            return
        except OSError:
            count = 0
        if not count:
            self.close()

    def _say(self, data: bytes) -> None:
        # The buffer reads whatever we say: if there is no room it is of no use any more, and
        # reading will tell.
        try:
            is_said = self.sock.send(data) == len(data)
        except BlockingIOError:
            is_said = False
        except OSError:
            return
        if not is_said:
            with suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)
