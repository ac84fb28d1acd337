"""A large message that goes from one connection to another without entering this process."""

import contextlib
import fcntl
import os
import socket

from lclstream.buffer.memory import Block

PIPE_BYTES = 1 << 20
# How much a message that nobody wants any more is read at a time.
SCRATCH_BYTES = 256 * 1024
FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


class Pipe:
    """Kernel memory between two connections."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # Unprivileged users get only so much pipe memory; a small pipe works as well.
        with contextlib.suppress(PermissionError):
            fcntl.fcntl(self.write_end, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self.size_bytes = fcntl.fcntl(self.write_end, fcntl.F_GETPIPE_SZ)

    def close(self) -> None:
        """Close both ends."""
        os.close(self.read_end)
        os.close(self.write_end)


class Pipes:
    """Empty pipes, kept for use again."""

    def __init__(self) -> None:
        self._free: list[Pipe] = []

    def take(self) -> Pipe:
        """Return an empty pipe.

        Raises:
            OSError: there are no descriptors left.
        """
        return self._free.pop() if self._free else Pipe()

    def give_back(self, pipe: Pipe, *, is_empty: bool) -> None:
        """Keep a pipe unless something is left in it."""
        if is_empty:
            self._free.append(pipe)
        else:
            pipe.close()

    def close(self) -> None:
        """Close all pipes that are not in use."""
        for pipe in self._free:
            pipe.close()
        self._free.clear()


class Splice:
    """One message on its way: header, then what is in the pipe, then what is in the tail.

    The tail is memory for the rest of the message, for a consumer that does not go on taking
    it: the producer need not wait for that.

    Args:
        header: precedes the payload.
        size_bytes: of the payload.
        pipe: an empty one.
    """

    def __init__(self, header: bytes, size_bytes: int, pipe: Pipe) -> None:
        self.size_bytes = size_bytes
        self.pipe = pipe
        self.unread = size_bytes
        """Bytes that are still to come from the producer."""
        self.piped = 0
        self.has_target = True
        """Whether there is still somebody to send it to."""
        self.tail: Block | None = None
        self._header = header
        self._tail_end = self._tail_sent = 0

    @property
    def is_read(self) -> bool:
        """Whether everything has come from the producer."""
        return not self.unread

    @property
    def is_sent(self) -> bool:
        """Whether everything has gone to the consumer."""
        return not (self.unread or self._header or self.piped or self._tail_sent < self._tail_end)

    @property
    def can_send(self) -> bool:
        """Whether something is here that could go to the consumer."""
        return bool(self._header or self.piped or self._tail_sent < self._tail_end)

    @property
    def can_read(self) -> bool:
        """Whether there is room for more from the producer."""
        return bool(self.unread) and (
            not self.has_target or self.tail is not None or self.piped < self.pipe.size_bytes
        )

    def give_tail(self, block: Block) -> None:
        """Have the rest of the message received into memory; takes over the reference."""
        self.tail = block

    def read(self, sock: socket.socket) -> int:
        """Move bytes from the producer; 0 means that it has closed.

        Raises:
            BlockingIOError: nothing has come, or the pipe is full.
            OSError: the connection is broken.
        """
        if not self.has_target:
            count = len(sock.recv(min(self.unread, SCRATCH_BYTES)))
        elif self.tail is not None:
            end = self._tail_end + self.unread
            count = sock.recv_into(self.tail.view[self._tail_end : end])
            self._tail_end += count
        else:
            room = min(self.unread, self.pipe.size_bytes - self.piped)
            count = os.splice(sock.fileno(), self.pipe.write_end, room, flags=FLAGS)
            self.piped += count
        self.unread -= count
        return count

    def send(self, sock: socket.socket) -> int:
        """Move bytes to the consumer; return how many.

        Raises:
            BlockingIOError: it takes nothing now.
            OSError: the connection is broken.
        """
        if self._header:
            count = sock.send(self._header, socket.MSG_MORE)
            self._header = self._header[count:]
        elif self.piped:
            # More of the message follows: let the kernel fill its packets.
            more = os.SPLICE_F_MORE if self.unread or self._tail_end else 0
            count = os.splice(self.pipe.read_end, sock.fileno(), self.piped, flags=FLAGS | more)
            self.piped -= count
        elif self.tail is not None:
            count = sock.send(self.tail.view[self._tail_sent : self._tail_end])
            self._tail_sent += count
        else:
            count = 0
        return count

    def close(self) -> None:
        """Let the tail go."""
        if self.tail is not None:
            self.tail.release()
            self.tail = None
