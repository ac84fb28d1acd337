"""Producers and consumers as processes: pynng, pyzmq and our own, which write down what they do.

One line for each event goes to the log at once, so that it also tells what a killed one did:

    local PORT          the port of a connection to the buffer, as the buffer sees it
    begin N, sent N     before and after message N was handed to the library
    got MD5 SIZE        a message, before the library is asked for the next one
    tally N BYTES SUM   instead of these, at the end of who only counts
    stalled             reads nothing more until it is told to `go`
    end HOW             the last line of who was not killed
"""

import contextlib
import json
import os
import socket
import stat
import struct
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import xxhash
from tests.buffer.loss.oracle import md5, payload

POLL_S = 0.02
PATIENCE_S = 60.0
TCP_INFO_BYTES = 192
BYTES_ACKED_OFFSET = 120


@dataclass(frozen=True, kw_only=True)
class Orders:
    """What a peer is to do."""

    role: str
    """`produce` or `consume`."""
    kind: str
    """`pynng`, `pyzmq`, `own` (without acknowledgements) or `safe` (our own, with them)."""
    url: str
    folder: str
    """Where the files `log`, `go` and `stop` are."""
    producer: int = 0
    sizes: list[int] = field(default_factory=list)
    first: int = 0
    """Number of the first message that is sent."""
    pause_before: int = -1
    """Wait for `go` before this message."""
    ending: str = "close"
    """`close`, `exit` without closing, `_exit`, or `stay` until `stop`."""
    stall_after: int = -1
    """Stop to read after so many messages."""
    send_buffer: int = 0
    reconnect_ms: int = 100
    close_timeout_s: float = PATIENCE_S
    tallies: bool = False
    """Write down the sum of the hashes at the end instead of each message."""
    seconds: float = 0.0
    """Send messages of these sizes again and again for so long."""
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments of our own end point."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))


class Peer:
    """What all kinds have in common."""

    def __init__(self, orders: Orders) -> None:
        self.orders = orders
        self.folder = Path(orders.folder)
        self.port = int(orders.url.rpartition(":")[2])
        self._log = os.open(self.folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._ports: set[int] = set()
        self.sent_bytes = 0
        """With the headers of SP."""
        self.held: object = None

    def say(self, *words: object) -> None:
        os.write(self._log, (" ".join(map(str, words)) + "\n").encode())

    def told(self, word: str) -> bool:
        return (self.folder / word).exists()

    def wait(self, condition: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_S)
        return True

    def stall_at(self, count: int) -> None:
        if count == self.orders.stall_after:
            # A library without threads connects no sooner than it is asked for a message.
            self.say("stalled")
            self.wait(lambda: self.told("go"))

    def say_ports(self) -> None:
        for _, number in connections(self.port):
            if number not in self._ports:
                self._ports.add(number)
                self.say("local", number)


def connections(port: int) -> Iterator[tuple[int, int]]:
    """Yield how many bytes were acknowledged on each connection to a port, and its own port.

    Looks at the descriptors of this process, since no library tells.
    """
    for path in Path("/proc/self/fd").iterdir():
        # It may be closed at any moment.
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(int(path.name)).st_mode):
                with socket.socket(fileno=os.dup(int(path.name))) as sock:
                    if sock.family == socket.AF_INET and sock.getpeername()[1] == port:
                        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES)
                        (acked,) = struct.unpack_from("=Q", info, BYTES_ACKED_OFFSET)
                        yield acked, sock.getsockname()[1]


# Producers.


def produce(peer: Peer) -> None:
    orders = peer.orders
    send, close = {
        "pynng": pynng_producer,
        "pyzmq": pyzmq_producer,
        "own": own_producer,
        "safe": own_producer,
    }[orders.kind](peer)
    if orders.seconds:
        flow(peer, send)
    for number, size in enumerate(orders.sizes[orders.first :], orders.first):
        if orders.seconds:
            break
        if number == orders.pause_before:
            peer.say("paused")
            peer.wait(lambda: peer.told("go"))
        peer.say("begin", number)
        try:
            send(payload(orders.producer, number, size))
        except Exception as error:
            peer.say("failed", number, type(error).__name__, error)
            continue
        peer.say("sent", number)
        if number == orders.first:
            peer.say_ports()
    if orders.ending == "_exit":
        peer.say("end _exit")
        os._exit(0)
    if orders.ending == "exit":
        peer.say("end exit")
        return
    if orders.ending == "stay":
        peer.wait(lambda: peer.told("stop"))
    try:
        close()
    except Exception as error:
        peer.say("end", type(error).__name__, error)
    else:
        peer.say("end closed")


Send = Callable[[bytes], object]
Close = Callable[[], object]


class Sum:
    """Counts messages as the ledger does, with code of its own."""

    def __init__(self) -> None:
        self.messages = self.bytes = self.digest = 0

    def add(self, message: bytes | memoryview) -> None:
        self.messages += 1
        self.bytes += len(message)
        self.digest = (self.digest + xxhash.xxh3_64_intdigest(message)) % 2**64

    def __str__(self) -> str:
        return f"{self.messages} {self.bytes} {self.digest:016x}"


def flow(peer: Peer, send: Send) -> None:
    """Send for a time; the messages of one producer all differ."""
    orders, total, number = peer.orders, Sum(), 0
    until = time.monotonic() + orders.seconds
    while time.monotonic() < until:
        message = payload(orders.producer, number, orders.sizes[number % len(orders.sizes)])
        send(message)
        total.add(message)
        number += 1
    peer.sent_bytes = 8 * total.messages + total.bytes
    peer.say("tally", total)


def pynng_producer(peer: Peer) -> tuple[Send, Close]:
    import pynng

    push = pynng.Push0(send_timeout=int(PATIENCE_S * 1000))
    push.send_buffer_size = peer.orders.send_buffer
    push.reconnect_time_min = push.reconnect_time_max = peer.orders.reconnect_ms
    push.dial(peer.orders.url, block=False)
    if not peer.orders.seconds:
        peer.sent_bytes = sum(8 + size for size in peer.orders.sizes[peer.orders.first :])

    def close() -> None:
        # It has no linger: stay until the other kernel has everything.
        peer.wait(
            lambda: (
                sum(acked for acked, _ in connections(peer.port)) >= 8 + peer.sent_bytes
                or peer.told("stop")
            )
        )
        push.close()

    return push.send, close


def pyzmq_producer(peer: Peer) -> tuple[Send, Close]:
    import zmq

    context = zmq.Context()
    push = context.socket(zmq.PUSH)
    push.set_hwm(10)
    push.setsockopt(zmq.SNDTIMEO, int(PATIENCE_S * 1000))
    push.connect(peer.orders.url)

    def close() -> None:
        push.close()
        context.term()

    return push.send, close


def own_producer(peer: Peer) -> tuple[Send, Close]:
    from lclstream.buffer import Push

    push = Push(peer.orders.url, **peer.orders.options)
    # As a program's own variable it is still there when the interpreter exits.
    peer.held = push
    return push.send, lambda: push.close(peer.orders.close_timeout_s)


# Consumers.


def consume(peer: Peer) -> None:
    receive: Callable[[], bytes | memoryview | None] = {
        "pynng": pynng_consumer,
        "pyzmq": pyzmq_consumer,
        "own": own_consumer,
        "safe": own_consumer,
    }[peer.orders.kind](peer)
    peer.say("ready")
    count = 0
    total = Sum()
    try:
        peer.stall_at(0)
        while (message := receive()) is not None:
            if not count:
                peer.say_ports()
            if peer.orders.tallies:
                total.add(message)
            else:
                peer.say("got", md5(message), len(message))
            message = None
            count += 1
            peer.stall_at(count)
    except Exception as error:
        peer.say("end", type(error).__name__, error)
    else:
        if peer.orders.tallies:
            peer.say("tally", total)
        peer.say("end closed")


def is_over(peer: Peer) -> bool:
    """Whether a library that never tells of the end of a stream need not be asked any more."""
    peer.say_ports()
    return peer.told("stop") and not list(connections(peer.port))


def pynng_consumer(peer: Peer) -> Callable[[], bytes | None]:
    import pynng

    pull = pynng.Pull0(recv_timeout=100, **peer.orders.options)
    pull.reconnect_time_min = pull.reconnect_time_max = peer.orders.reconnect_ms
    pull.dial(peer.orders.url, block=False)

    def receive() -> bytes | None:
        over = False
        while True:
            try:
                message = pull.recv_msg()
            except pynng.Timeout:
                # What was there when the connection ended can be had at once.
                if over:
                    pull.close()
                    return None
                over = is_over(peer)
            else:
                # Its `bytes` fails for an empty message.
                return message.bytes if len(message._buffer or b"") else b""

    return receive


def pyzmq_consumer(peer: Peer) -> Callable[[], bytes | None]:
    import zmq

    context = zmq.Context()
    pull = context.socket(zmq.PULL)
    pull.set_hwm(10)
    pull.setsockopt(zmq.RCVTIMEO, 100)
    pull.setsockopt(zmq.RECONNECT_IVL, peer.orders.reconnect_ms)
    pull.setsockopt(zmq.LINGER, 0)
    pull.connect(peer.orders.url)

    def receive() -> bytes | None:
        over = False
        while True:
            try:
                return bytes(pull.recv())
            except zmq.Again:
                if over:
                    pull.close()
                    context.term()
                    return None
                over = is_over(peer)

    return receive


def own_consumer(peer: Peer) -> Callable[[], memoryview | None]:
    from lclstream.buffer import Pull, ReceiveTimeoutError
    from lclstream.core.errors import EndOfStream

    pull = Pull(peer.orders.url, **peer.orders.options)

    def receive() -> memoryview | None:
        while True:
            try:
                return pull.recv(0.2)
            except ReceiveTimeoutError:
                # It came too late for the stream, and would go on dialling.
                if not is_over(peer):
                    continue
            except EndOfStream:
                pass
            pull.close()
            return None

    return receive


held: list[Peer] = []


def run(orders: Orders) -> None:
    peer = Peer(orders)
    held.append(peer)
    (produce if orders.role == "produce" else consume)(peer)


if __name__ == "__main__":
    run(Orders(**json.loads(sys.argv[1])))
