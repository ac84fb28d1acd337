"""ZeroMQ, NNG and our own programs on the same two ports."""

import random
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pynng
import pytest
import zmq
from tests.buffer.peers import PUSH_HANDSHAKE, drain, until
from tests.buffer.test_relay import PynngConsumer, md5, random_messages

from lclstream.buffer import Buffer, BufferConfig, Pull, Push
from lclstream.buffer.config import Delivery
from lclstream.buffer.sp import Protocol
from lclstream.buffer.zmtp import GREETING, command, ready

MIB = 1 << 20
QUICK = BufferConfig(grace_s=0.1, linger_s=0.3, farewell_timeout_s=5.0)
END_S = 30.0
TIMEOUT_MS = 30_000


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    with zmq.Context() as made:
        yield made


Context = zmq.Context[zmq.Socket[bytes]]


@contextmanager
def dialled(context: Context, kind: int, url: str, **options: int) -> Iterator[zmq.Socket[bytes]]:
    with context.socket(kind) as sock:
        # What it was given is sent before it is gone.
        sock.linger = TIMEOUT_MS
        sock.rcvtimeo = sock.sndtimeo = TIMEOUT_MS
        for name, value in options.items():
            setattr(sock, name, value)
        sock.connect(url)
        yield sock


class ZmqConsumer:
    """A plain pyzmq consumer in a thread, which ends when its connection has gone."""

    def __init__(self, context: Context, url: str) -> None:
        self.messages: list[bytes] = []
        self._socket = context.socket(zmq.PULL)
        self._socket.linger = 0
        self._socket.reconnect_ivl = -1
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._socket.connect(url)
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._monitor, zmq.POLLIN)
        while True:
            ready_now = dict(poller.poll())
            while self._socket in ready_now:
                try:
                    self.messages.append(self._socket.recv(zmq.NOBLOCK))
                except zmq.Again:
                    break
            if ready_now.keys() == {self._monitor}:
                return

    def __enter__(self) -> "ZmqConsumer":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.join()
        self._socket.disable_monitor()
        self._monitor.close()
        self._socket.close()


@pytest.mark.parametrize("delivery", Delivery)
def test_every_message_reaches_exactly_one_consumer(context: Context, delivery: Delivery) -> None:
    """Two producers and two consumers of each kind; the bound is small enough to be hit."""
    streams = {seed: random_messages(seed, 40) for seed in range(6)}
    total = sum(map(len, streams.values()))

    def produce_nng(seed: int) -> None:
        with pynng.Push0(dial=buffer.push_urls[0], send_timeout=TIMEOUT_MS) as push:
            for message in streams[seed]:
                push.send(message)
            # It has no linger: stay until the buffer has taken everything.
            until(lambda: buffer.statistics().received.messages == total, 60.0)

    def produce_zmq(seed: int) -> None:
        with dialled(context, zmq.PUSH, buffer.push_urls[0]) as push:
            for message in streams[seed]:
                push.send(message)
        # Its context sends the rest.

    def produce_ours(seed: int) -> None:
        with Push(buffer.push_urls) as push:
            for message in streams[seed]:
                push.send(message)

    received: list[str] = []
    lock = threading.Lock()

    def consume_ours() -> None:
        with Pull(buffer.pull_urls) as pull:
            digests = [md5(message) for message in drain(pull, END_S)]
        with lock:
            received.extend(digests)

    config = replace(QUICK, memory_bytes=MIB, delivery=delivery, expect_producers=6)
    with Buffer(config) as buffer, ExitStack() as stack:
        url = buffer.pull_urls[0]
        nng = [stack.enter_context(PynngConsumer(url)) for _ in range(2)]
        zeromq = [stack.enter_context(ZmqConsumer(context, url)) for _ in range(2)]
        kinds = [produce_nng, produce_zmq, produce_ours]
        work: list[threading.Thread] = [
            threading.Thread(target=kinds[seed % 3], args=(seed,)) for seed in streams
        ]
        work += [threading.Thread(target=consume_ours) for _ in range(2)]
        for thread in work:
            thread.start()
        for thread in work:
            thread.join()
        assert buffer.wait(END_S)
        assert buffer.is_complete
        final = buffer.statistics()
    received += [md5(message) for consumer in zeromq for message in consumer.messages]
    received += [digest for consumer in nng for digest in consumer.digests]
    expected = [md5(message) for messages in streams.values() for message in messages]
    assert Counter(received) == Counter(expected)
    assert final.received == final.sent
    assert final.received.messages == total
    assert {peer.framing for peer in final.peers} == {"sp", "zmtp"}


SIZES = [0, 1, 100, 255, 256, 4095, 4096, 16_384, 70_000, 131_072, MIB, 3_000_000]


@pytest.mark.parametrize("kinds", ["zmq to zmq", "nng to zmq", "zmq to nng"])
def test_order_of_one_producer_is_kept(context: Context, kinds: str) -> None:
    source = random.Random(7)  # noqa: S311
    messages = [bytes([i % 251]) * source.choice(SIZES) for i in range(60)]
    messages += [i.to_bytes(4, "big") for i in range(3000)] + messages[:20]
    start, _, end = kinds.split()
    with Buffer(replace(QUICK, memory_bytes=MIB)) as buffer, ExitStack() as stack:
        if start == "zmq":
            push = stack.enter_context(dialled(context, zmq.PUSH, buffer.push_urls[0]))
        else:
            push = stack.enter_context(
                pynng.Push0(dial=buffer.push_urls[0], send_timeout=TIMEOUT_MS)
            )
        if end == "zmq":
            recv: Callable[[], bytes] = stack.enter_context(
                dialled(context, zmq.PULL, buffer.pull_urls[0])
            ).recv
        else:
            pull = stack.enter_context(
                pynng.Pull0(dial=buffer.pull_urls[0], recv_timeout=TIMEOUT_MS)
            )

            def recv() -> bytes:
                message = pull.recv_msg()
                return bytes(message._buffer or b"")

        sending = threading.Thread(target=lambda: [push.send(message) for message in messages])
        sending.start()
        received = [recv() for _ in messages]
        sending.join()
    assert [md5(message) for message in received] == [md5(message) for message in messages]


def test_z4_messages_of_several_parts_are_refused(context: Context) -> None:
    with Buffer(QUICK) as buffer:
        with dialled(context, zmq.PUSH, buffer.push_urls[0], linger=0) as push:
            for _ in range(50):
                push.send_multipart([b"first", b"second"])
            until(lambda: buffer.statistics().counters.refused_messages > 0)
        with Push(buffer.push_urls) as ours:
            ours.send(b"whole")
        with Pull(buffer.pull_urls) as pull:
            assert bytes(pull.recv(10.0)) == b"whole"
            buffer.drain()
            assert drain(pull) == []
        assert buffer.wait(END_S)
        assert not buffer.is_complete
        ends = {peer.end for peer in buffer.statistics().peers if peer.framing == "zmtp"}
    assert any("a message of several frames" in end for end in ends)


def test_message_above_the_limit_is_refused(context: Context) -> None:
    with Buffer(replace(QUICK, max_message_bytes=1000)) as buffer:
        with dialled(context, zmq.PUSH, buffer.push_urls[0], linger=0) as push:
            push.send(bytes(1000))
            push.send(bytes(1001))
            until(lambda: buffer.statistics().counters.refused_messages > 0)
        assert buffer.statistics().received.messages == 1
        buffer.stop()


def test_heartbeats_of_both_sides_are_answered(context: Context) -> None:
    """A peer that hears nothing for so long closes its connection."""
    beats = {"heartbeat_ivl": 50, "heartbeat_timeout": 300, "reconnect_ivl": -1}
    with (
        Buffer(QUICK) as buffer,
        dialled(context, zmq.PUSH, buffer.push_urls[0], **beats) as push,
        dialled(context, zmq.PULL, buffer.pull_urls[0], **beats) as pull,
        socket.create_connection(address(buffer.push_urls[0]), timeout=10) as raw,
    ):
        push.send(b"begin")
        assert pull.recv() == b"begin"
        # What libzmq does on its own time, done here to be seen: ask and be answered.
        raw.sendall(GREETING + ready(Protocol.PUSH) + command(b"PING", b"\0\x0aknock"))
        expected = GREETING + ready(Protocol.PULL) + command(b"PONG", b"knock")
        assert read_exactly(raw, len(expected)) == expected
        raw.sendall(b"\x00\x03raw")
        assert pull.recv() == b"raw"
        began = buffer.statistics().peers
        until(lambda: min(peer.seconds for peer in buffer.statistics().peers) > 1.0)
        assert [peer.address for peer in buffer.statistics().peers] == [p.address for p in began]
        push.send(b"end")
        assert pull.recv() == b"end"
        buffer.stop()


def address(url: str) -> tuple[str, int]:
    host, port = url.removeprefix("tcp://").split(":")
    return host, int(port)


def read_exactly(sock: socket.socket, count: int) -> bytes:
    received = bytearray()
    while len(received) < count:
        piece = sock.recv(min(count - len(received), MIB))
        assert piece
        received += piece
    return bytes(received)


def test_consumer_that_asks_in_the_middle_of_a_message_is_answered_after_it() -> None:
    message = bytes(8 * MIB)
    with (
        Buffer(QUICK) as buffer,
        socket.create_connection(address(buffer.pull_urls[0]), timeout=10) as raw,
    ):
        raw.sendall(GREETING + ready(Protocol.PULL))
        assert read_exactly(raw, 92) == GREETING + ready(Protocol.PUSH)
        with Push(buffer.push_urls) as push:
            push.send(message)
            until(lambda: buffer.statistics().queue_bytes > 0)
            raw.sendall(command(b"PING", b"\0\x0aknock"))
            push.send(b"next")
        wire = b"\x02" + len(message).to_bytes(8, "big") + message
        wire += command(b"PONG", b"knock") + b"\x00\x04next"
        assert read_exactly(raw, len(wire)) == wire
        buffer.drain()
        assert raw.recv(1) == b""
        raw.close()
        assert buffer.wait(END_S)
        assert buffer.is_complete


@pytest.mark.parametrize("delivery", Delivery)
def test_consumer_that_has_read_everything_and_leaves_gets_nothing_twice(
    context: Context, delivery: Delivery
) -> None:
    with Buffer(replace(QUICK, delivery=delivery)) as buffer:
        with Push(buffer.push_urls) as push:
            for i in range(100):
                push.send(bytes([i]) * 10_000)
            with dialled(context, zmq.PULL, buffer.pull_urls[0]) as pull:
                received = [pull.recv()[0] for _ in range(100)]
        assert received == list(range(100))
        until(lambda: buffer.statistics().consumers == 0)
        counters = buffer.statistics().counters
        assert (counters.requeued, counters.possibly_lost) == (0, 0)
        with Pull(buffer.pull_urls) as ours:
            buffer.drain()
            assert drain(ours) == []
        assert buffer.wait(END_S)
        assert buffer.is_complete


def test_what_the_kernel_of_a_dead_consumer_has_not_goes_to_another_one() -> None:
    """Message by message, although its frames have other lengths than ours in memory."""
    # In runs of many, and more of them than kernels hold.
    messages = [i.to_bytes(2, "big") * (500 + i % 50) for i in range(12_000)]
    config = replace(QUICK, delivery=Delivery.SAFE, memory_bytes=64 * MIB)
    with Buffer(config) as buffer:
        with socket.create_connection(address(buffer.pull_urls[0]), timeout=10) as raw:
            raw.sendall(GREETING + ready(Protocol.PULL))
            assert read_exactly(raw, 92) == GREETING + ready(Protocol.PUSH)
            with Push(buffer.push_urls) as push:
                for message in messages:
                    push.send(message)
            until(lambda: buffer.statistics().received.messages == len(messages))
            read_exactly(raw, MIB)
        with Pull(buffer.pull_urls) as pull:
            buffer.drain()
            rest = drain(pull)
        assert buffer.wait(END_S)
        final = buffer.statistics()
    # Nothing is left out, nothing comes out of its place, and not all comes again.
    assert rest == messages[len(messages) - len(rest) :]
    assert 0 < len(rest) < len(messages)
    assert final.sent.messages == len(messages)


OPENINGS = {
    "half a greeting": GREETING[:40],
    "CURVE": GREETING[:12] + b"CURVE".ljust(20, b"\0") + bytes(32),
    "PLAIN": GREETING[:12] + b"PLAIN".ljust(20, b"\0") + bytes(32),
    "ZMTP 2": GREETING[:10] + b"\x01\x08" + bytes(52),
    "HTTP after the greeting": GREETING + b"GET / HTTP/1.1\r\n\r\n",
    "same type": GREETING + ready(Protocol.PULL),
    "SUB": GREETING + command(b"READY", b"\x0bSocket-Type\0\0\0\x03SUB"),
    "message before READY": GREETING + b"\x00\x05hello",
    "huge READY": GREETING + b"\x06" + b"\xff" * 8,
    "zeros": b"\xff" + bytes(100),
    "TLS": bytes.fromhex("16030100c8010000c4"),
}


def test_who_is_not_wanted_is_refused_and_others_are_served(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("lclstream.buffer.door.HANDSHAKE_TIMEOUT_S", 0.3)
    with Buffer(QUICK) as buffer:
        for said in OPENINGS.values():
            with socket.create_connection(address(buffer.push_urls[0]), timeout=10) as sock:
                sock.sendall(said)
                read_to_the_end(sock)
        assert buffer.statistics().counters.refused_peers == len(OPENINGS)
        # As many frames as went through were understood: the next one does not belong there.
        for claim in (2**63, 2**64 - 1, 2**40):
            with socket.create_connection(address(buffer.push_urls[0]), timeout=10) as sock:
                sock.sendall(GREETING + ready(Protocol.PUSH) + b"\x02" + claim.to_bytes(8, "big"))
                read_to_the_end(sock)
        assert buffer.statistics().counters.refused_messages == 3
        with Push(buffer.push_urls) as push, Pull(buffer.pull_urls) as pull:
            push.send(b"still here")
            assert bytes(pull.recv(10.0)) == b"still here"
        buffer.stop()
    reasons = [vars(record).get("reason", "") for record in caplog.records]
    for part in ("'CURVE'", "'PLAIN'", "older revision 1", "'SUB'", "TLS is not served here"):
        assert any(part in reason for reason in reasons), part


def read_to_the_end(sock: socket.socket) -> None:
    try:
        while sock.recv(4096):
            pass
    except ConnectionError:
        pass


def test_wrong_socket_type_of_libzmq_is_refused(context: Context) -> None:
    with Buffer(QUICK) as buffer, context.socket(zmq.PULL) as pull:
        pull.linger = 0
        pull.connect(buffer.push_urls[0])
        until(lambda: buffer.statistics().counters.refused_peers > 0)
        with socket.create_connection(address(buffer.push_urls[0]), timeout=10) as sock:
            sock.sendall(PUSH_HANDSHAKE)
            assert sock.recv(8, socket.MSG_WAITALL)[:4] == b"\x00SP\x00"
        buffer.stop()
