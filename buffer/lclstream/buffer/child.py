"""Processes that are parts of ours: how they begin, hear and tell, and die with their parent."""

import ctypes
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from lclstream.buffer.channel import Channel
from lclstream.buffer.loop import READ, WRITE

PR_SET_PDEATHSIG = 1
EXIT_ORPHANED = 3
SIGNALS = (signal.SIGTERM, signal.SIGINT)

Received = tuple[Any, list[socket.socket]]
Kind = TypeVar("Kind")


# The parent's side.


def start_child(module: str, there: socket.socket) -> subprocess.Popen[bytes]:
    """Run one of our modules as a process that gets a socket, which is closed here."""
    with there, _signals_held_back():
        return subprocess.Popen(
            [sys.executable, "-m", module, str(there.fileno())],
            stdin=subprocess.DEVNULL,
            # What it prints by mistake must not get among our reports.
            stdout=sys.stderr.fileno() if _has_number(sys.stderr) else subprocess.DEVNULL,
            pass_fds=[there.fileno()],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )


def _has_number(file: object) -> bool:
    try:
        file.fileno()  # type: ignore[attr-defined]
    except (AttributeError, OSError, ValueError):
        return False
    return True


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """Start a process that is not to die of signals before it can ignore them.

    Who ends a job often signals every process in it, and the children are needed to drain.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# The child's side.


class Tether:
    """The child's end of the channel to its parent, whose end is its own.

    Args:
        channel: to the parent.
        early: what came before there was anybody to hear it.
    """

    def __init__(self, channel: Channel, early: Sequence[Received] = ()) -> None:
        self.sock = channel.sock
        self._channel = channel
        self._early = list(early)
        self._watched = READ
        self._change: Callable[[socket.socket, int], None] | None = None

    def watched_by(self, change: Callable[[socket.socket, int], None]) -> list[Received]:
        """Return what came early.

        Args:
            change: asks the loop, which watches our socket for READ, for other events.
        """
        self._change = change
        early, self._early = self._early, []
        return early

    def wait(self) -> None:
        """Wait until something has come, or something more can be told."""
        poll = select.poll()
        poll.register(self.sock, select.POLLIN | (select.POLLOUT * bool(self._channel.waiting)))
        poll.poll()

    def receive(self) -> list[Received]:
        """Return what has come; ends the process when its parent is no more."""
        try:
            return self._channel.receive()
        except EOFError:
            # Nobody is left who could be told anything.
            os._exit(EXIT_ORPHANED)

    def send(self, message: object) -> None:
        """Tell something, now or when there is room; ends the process as `receive` does."""
        try:
            self._channel.send(message)
        except OSError:
            os._exit(EXIT_ORPHANED)
        self.flush()

    def send_last(self, message: object, timeout_s: float) -> None:
        """Tell the last thing; waits until the parent takes it."""
        self.sock.settimeout(timeout_s)
        self._channel.send(message)

    def flush(self) -> None:
        """Tell what waits, as far as there is room."""
        events = READ if self._channel.flush() else READ | WRITE
        if events != self._watched and self._change is not None:
            self._change(self.sock, events)
            self._watched = events


def begin_child(kind: type[Kind], parent_of: Callable[[Kind], int]) -> tuple[Tether, Kind]:
    """Become a child: return the way to the parent, and the setup that it has sent first.

    Signals are ignored: who started us decides when we end, and signals to a whole job mean it.
    The kernel kills this process when its parent dies.

    Args:
        kind: of the setup.
        parent_of: returns the parent's process id from it.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    tether = Tether(channel)
    while True:
        tether.wait()
        if messages := tether.receive():
            break
    (setup, _), *others = messages
    if not isinstance(setup, kind):
        raise TypeError(f"expected the setup first, got {setup!r}")
    _die_with(parent_of(setup))
    return Tether(channel, others), setup


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent dies, and at once if it has."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(EXIT_ORPHANED)
