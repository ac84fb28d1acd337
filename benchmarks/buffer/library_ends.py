"""Ends in Python: of pynng, of pyzmq, and our own.

Run as a module: `KIND push|pull URL SIZE SLOT COUNTERS [--listen] [--batch]`. SIGTERM ends it.
"""

import argparse
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.buffer.counters import Count, Counters

TIMEOUT_MS = 100

# Called with the payload of a push, or with None; returns bytes, or None when there was nothing.
Step = Callable[[], int | None]


class Stop:
    """Whether SIGTERM has come."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.asked = True


@contextmanager
def pynng_end(role: str, url: str, payload: bytes, *, listen: bool) -> Iterator[Step]:
    """Use NNG; messages are received without a copy."""
    import pynng

    kind = pynng.Push0 if role == "push" else pynng.Pull0
    with kind(send_timeout=TIMEOUT_MS, recv_timeout=TIMEOUT_MS, reconnect_time_min=10) as sock:
        if listen:
            sock.listen(url)
        else:
            sock.dial(url, block=False)

        def push() -> int | None:
            try:
                sock.send(payload)
            except pynng.Timeout:
                return None
            return len(payload)

        def pull() -> int | None:
            try:
                return len(sock.recv_msg()._buffer)  # noqa: SLF001
            except pynng.Timeout:
                return None

        yield push if role == "push" else pull


@contextmanager
def pyzmq_end(role: str, url: str, payload: bytes, *, listen: bool) -> Iterator[Step]:
    """Use libzmq, without copies where it pays."""
    import zmq

    copy = len(payload) < zmq.COPY_THRESHOLD
    with zmq.Context() as context, context.socket(zmq.PUSH if role == "push" else zmq.PULL) as sock:
        sock.linger = 0
        sock.sndtimeo = sock.rcvtimeo = TIMEOUT_MS
        (sock.bind if listen else sock.connect)(url)

        # Its overloads know no copy that is decided later.
        send: Any = sock.send

        def push() -> int | None:
            try:
                send(payload, copy=copy)
            except zmq.Again:
                return None
            return len(payload)

        def pull() -> int | None:
            try:
                frame: Any = sock.recv(copy=copy)
            except zmq.Again:
                return None
            return len(frame)

        yield push if role == "push" else pull


@contextmanager
def own_end(role: str, url: str, payload: bytes, *, listen: bool) -> Iterator[Step]:
    """Use the ends that come with the buffer."""
    from lclstream.buffer import Pull, Push, ReceiveTimeoutError
    from lclstream.core.errors import EndOfStream, StreamError, UnavailableError

    timeout_s = TIMEOUT_MS / 1000
    if role == "push":
        sender = Push(url, listen=listen, send_timeout_s=timeout_s, connect_timeout_s=5.0)

        def push() -> int | None:
            try:
                sender.send(payload)
            except UnavailableError:
                return None
            return len(payload)

        try:
            yield push
        finally:
            sender.abort()
        return

    with Pull(url, listen=listen) as receiver:

        def pull() -> int | None:
            try:
                return len(receiver.recv(timeout_s))
            except (ReceiveTimeoutError, EndOfStream, StreamError):
                return None

        yield pull


KINDS = {"pynng": pynng_end, "pyzmq": pyzmq_end, "own": own_end}


def main() -> None:
    """Push or pull until SIGTERM; a puller goes on until nothing has come for a while."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("role", choices=["push", "pull"])
    parser.add_argument("url")
    parser.add_argument("size", type=int)
    parser.add_argument("slot", type=int)
    parser.add_argument("counters", type=Path)
    parser.add_argument("--listen", action="store_true")
    args = parser.parse_args()
    stop = Stop()
    payload = bytes(args.size)
    with (
        Counters(args.counters) as counters,
        KINDS[args.kind](args.role, args.url, payload, listen=args.listen) as step,
    ):
        total = messages = 0
        counters.write(args.slot, Count(0, 0, 1, 0))
        while True:
            size = step()
            if size is not None:
                total += size
                messages += 1
                counters.write(args.slot, Count(total, messages, 1, 0))
            if stop.asked and (size is None or args.role == "push"):
                return


if __name__ == "__main__":
    main()
