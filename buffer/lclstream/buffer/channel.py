"""Objects and sockets between the serving process and one of its lanes.

Both ends are of the same program and the same user, so objects travel pickled. Nothing that
came from a peer of the buffer does: of those only sockets are passed, unread, and counts.
"""

import pickle
import socket
import struct
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# Length of what follows, and how many sockets come with it.
HEAD = struct.Struct(">IB")
READ_BYTES = 1 << 18
MAX_SOCKETS = 16


@dataclass(slots=True, eq=False)
class Parcel:
    """What is still to be sent of one message."""

    view: memoryview
    socks: Sequence[socket.socket]


class Channel:
    """One end of a Unix stream socket that carries objects, in order; never blocks.

    Resource handling: owns its socket, and every socket that is handed to `send`: each is
    closed here when it is on its way.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._parcels: deque[Parcel] = deque()
        self._received = bytearray()
        self._numbers: deque[int] = deque()

    @property
    def waiting(self) -> int:
        """How many messages the other side has not taken yet."""
        return len(self._parcels)

    def send(self, message: object, socks: Sequence[socket.socket] = ()) -> None:
        """Send an object, and sockets with it, now or when `flush` is called.

        Raises:
            OSError: the other side has gone.
        """
        self.put(message, socks)
        self.flush()

    def put(self, message: object, socks: Sequence[socket.socket] = ()) -> None:
        """Have an object, and sockets with it, sent by the next `flush`."""
        body = pickle.dumps(message)
        self._parcels.append(Parcel(memoryview(HEAD.pack(len(body), len(socks)) + body), socks))

    def flush(self) -> bool:
        """Send what waits as far as the other side takes it; return whether that was all.

        Raises:
            OSError: the other side has gone.
        """
        while self._parcels:
            parcel = self._parcels[0]
            try:
                count = self._write(parcel)
            except BlockingIOError:
                return False
            parcel.view = parcel.view[count:]
            if not parcel.view:
                self._parcels.popleft()
        return True

    def receive(self) -> list[tuple[Any, list[socket.socket]]]:
        """Return the objects that have come, each with its sockets.

        Raises:
            EOFError: the other side has gone.
        """
        try:
            while True:
                data, numbers, _, _ = socket.recv_fds(
                    self.sock, READ_BYTES, MAX_SOCKETS, socket.MSG_CMSG_CLOEXEC
                )
                self._numbers += numbers
                self._received += data
                if not data:
                    raise EOFError("the other side has gone")
                if len(data) < READ_BYTES and not numbers:
                    break
        except BlockingIOError:
            pass
        except ConnectionError as error:
            raise EOFError(str(error)) from error
        return self._unpacked()

    def close(self) -> None:
        """Close the socket, and all that are still to be sent or were not taken."""
        self.sock.close()
        for parcel in self._parcels:
            for sock in parcel.socks:
                sock.close()
        self._parcels.clear()
        while self._numbers:
            socket.socket(fileno=self._numbers.popleft()).close()

    def _write(self, parcel: Parcel) -> int:
        if not parcel.socks:
            return self.sock.send(parcel.view, socket.MSG_NOSIGNAL)
        count = socket.send_fds(
            self.sock, [parcel.view], [sock.fileno() for sock in parcel.socks], socket.MSG_NOSIGNAL
        )
        for sock in parcel.socks:
            sock.close()
        parcel.socks = ()
        return count

    def _unpacked(self) -> list[tuple[Any, list[socket.socket]]]:
        messages = []
        position = 0
        while position + HEAD.size <= len(self._received):
            size, socks = HEAD.unpack_from(self._received, position)
            end = position + HEAD.size + size
            if end > len(self._received):
                break
            message = pickle.loads(self._received[position + HEAD.size : end])  # noqa: S301
            taken = [socket.socket(fileno=self._numbers.popleft()) for _ in range(socks)]
            messages.append((message, taken))
            position = end
        del self._received[:position]
        return messages
