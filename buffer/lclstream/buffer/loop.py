"""An epoll loop for one thread, which others can wake."""

import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager

Handler = Callable[[int], None]
READ = select.EPOLLIN
WRITE = select.EPOLLOUT
EVENTS_PER_TURN = 256


class Loop:
    """Calls a handler for each socket on which something happens.

    A socket that is closed through `close_later` keeps its number until the next turn begins,
    so an event that is already at hand can never reach a newer socket with the same number.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake, READ)
        self._handlers: dict[int, Handler] = {self._wake: self._woken}
        self._posted: deque[Callable[[], None]] = deque()
        self._again: list[Callable[[], None]] = []
        self._closing: list[socket.socket] = []

    def watch(self, sock: socket.socket, events: int, handler: Handler) -> None:
        """Call the handler with the events that happen."""
        self._epoll.register(sock, events)
        self._handlers[sock.fileno()] = handler

    def change(self, sock: socket.socket, events: int) -> None:
        """Ask for other events."""
        self._epoll.modify(sock, events)

    def ignore(self, sock: socket.socket) -> None:
        """Look away: not even errors are seen."""
        if self._handlers.pop(sock.fileno(), None):
            self._epoll.unregister(sock)

    def close_later(self, sock: socket.socket) -> None:
        """Ignore a socket and close it before the next wait."""
        self.ignore(sock)
        self._closing.append(sock)

    def again(self, work: Callable[[], None]) -> None:
        """Have something done in the next turn, which then does not wait; from this thread."""
        self._again.append(work)

    def post(self, work: Callable[[], None]) -> None:
        """Have the loop's thread do something; from any thread or signal handler."""
        self._posted.append(work)
        os.eventfd_write(self._wake, 1)

    def turn(self, deadline: float | None, lock: AbstractContextManager[object]) -> None:
        """Wait for events, at most until a time, and handle them while holding a lock."""
        self._close_sockets()
        again, self._again = self._again, []
        if again:
            timeout_s = 0.0
        else:
            timeout_s = -1.0 if deadline is None else max(deadline - time.monotonic(), 0.0)
        happened = self._epoll.poll(timeout_s, EVENTS_PER_TURN)
        with lock:
            for number, events in happened:
                # An earlier handler may have closed this one's socket.
                handler = self._handlers.get(number)
                if handler is not None:
                    handler(events)
            for work in again:
                work()
            while self._posted:
                self._posted.popleft()()

    def close(self) -> None:
        """Close what the loop itself has opened, and what is still to be closed."""
        self._close_sockets()
        self._epoll.close()

    def close_wake(self) -> None:
        """Close what `post` writes to, once nobody can call it any more."""
        os.close(self._wake)

    def _close_sockets(self) -> None:
        for sock in self._closing:
            sock.close()
        self._closing.clear()

    def _woken(self, events: int) -> None:
        del events
        os.eventfd_read(self._wake)
