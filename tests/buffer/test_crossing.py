"""Large messages that are spliced, and what happens when one of the two ends lets go of them."""

import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from tests.buffer.peers import until

from lclstream.buffer import Buffer, BufferConfig, Pull
from lclstream.buffer.config import Delivery
from lclstream.buffer.control import FRAME_BYTES, Frame, frame
from lclstream.buffer.sp import HANDSHAKE_BYTES, Protocol, handshake, header

MIB = 1 << 20
CONFIG = BufferConfig(grace_s=0.1, linger_s=0.3, farewell_timeout_s=5.0)
PAYLOAD = random.Random(1).randbytes(8 * MIB)  # noqa: S311
SMALL = b"small enough for a chunk"


def connect(url: str, greeting: bytes, answer_bytes: int) -> socket.socket:
    host, port = url.removeprefix("tcp://").split(":")
    sock = socket.create_connection((host, int(port)), timeout=20)
    sock.sendall(greeting)
    assert len(sock.recv(answer_bytes, socket.MSG_WAITALL)) == answer_bytes
    return sock


def producer(buffer: Buffer) -> socket.socket:
    """A plain one, that hears the buffer's greeting and does not care."""
    return connect(buffer.push_urls[0], handshake(Protocol.PUSH), HANDSHAKE_BYTES + FRAME_BYTES)


@contextmanager
def consumer(buffer: Buffer) -> Iterator[socket.socket]:
    """A plain one, as soon as it is settled that it will not acknowledge."""
    known = buffer.statistics().consumers
    with connect(buffer.pull_urls[0], handshake(Protocol.PULL), HANDSHAKE_BYTES) as sock:
        until(lambda: buffer.statistics().consumers > known)
        settled = buffer.statistics
        until(lambda: all(peer.seconds > 0.3 for peer in settled().peers if peer.side == "out"))
        yield sock


def receive(sock: socket.socket) -> bytes:
    size = int.from_bytes(sock.recv(8, socket.MSG_WAITALL), "big")
    data = bytearray(size)
    view = memoryview(data)
    while view:
        count = sock.recv_into(view)
        assert count
        view = view[count:]
    return bytes(data)


def begin_message(sock: socket.socket, buffer: Buffer, part: bytes) -> None:
    """Send the header of a message, after one that leaves the buffer waiting for a header."""
    sock.sendall(header(len(PAYLOAD)))
    sock.sendall(part)


@pytest.fixture
def buffer() -> Iterator[Buffer]:
    with Buffer(CONFIG) as serving:
        yield serving


def prime(sock: socket.socket, sink: socket.socket) -> None:
    """Let one large message through memory: the next one's header is read by itself."""
    sock.sendall(header(MIB) + bytes(MIB))
    assert receive(sink) == bytes(MIB)


def test_large_messages_pass_by(buffer: Buffer) -> None:
    with producer(buffer) as source, consumer(buffer) as sink:
        prime(source, sink)
        for i in range(5):
            source.sendall(header(len(PAYLOAD)) + PAYLOAD)
            assert receive(sink) == PAYLOAD
            source.sendall(header(len(SMALL)) + SMALL)
            assert receive(sink) == SMALL
            prime(source, sink)
            assert buffer.statistics().counters.spliced > i
    state = buffer.statistics()
    assert state.received.messages == state.sent.messages == 16
    assert state.received.bytes == state.sent.bytes
    assert state.received.digest == ""


@pytest.mark.parametrize("change", [{"digest": True}, {"delivery": Delivery.SAFE}])
def test_nothing_passes_by_where_it_must_be_seen_or_kept(change: dict[str, object]) -> None:
    with (
        Buffer(replace(CONFIG, **change)) as buffer,  # type: ignore[arg-type]
        producer(buffer) as source,
        consumer(buffer) as sink,
    ):
        for _ in range(3):
            source.sendall(header(len(PAYLOAD)) + PAYLOAD)
            assert receive(sink) == PAYLOAD
        state = buffer.statistics()
    assert state.counters.spliced == 0
    assert state.received.digest == state.sent.digest != ""


def test_nothing_passes_by_to_a_consumer_that_acknowledges(buffer: Buffer) -> None:
    with producer(buffer) as source, Pull(buffer.pull_urls, acknowledge=True) as sink:
        for _ in range(4):
            source.sendall(header(len(PAYLOAD)) + PAYLOAD)
            assert sink.recv(20.0) == PAYLOAD
        assert buffer.statistics().counters.spliced == 0


def test_producer_that_breaks_off(buffer: Buffer) -> None:
    with producer(buffer) as source, consumer(buffer) as sink:
        prime(source, sink)
        begin_message(source, buffer, PAYLOAD[:MIB])
        # The head of the message has come through: it is on its way.
        assert sink.recv(8, socket.MSG_WAITALL) == header(len(PAYLOAD))
        source.close()
        received = 0
        while count := len(sink.recv(MIB)):
            received += count
        assert received <= MIB
    state = buffer.statistics()
    assert state.counters.partial_in == 1
    assert state.received.messages == state.sent.messages == 1
    with producer(buffer) as source, consumer(buffer) as sink:
        source.sendall(header(len(SMALL)) + SMALL)
        assert receive(sink) == SMALL


def test_consumer_that_leaves_in_the_middle(buffer: Buffer) -> None:
    with producer(buffer) as source, consumer(buffer) as other:
        with consumer(buffer) as sink:
            # They take turns.
            for _ in range(2):
                source.sendall(header(MIB) + bytes(MIB))
            assert receive(other) == receive(sink) == bytes(MIB)
            begin_message(source, buffer, PAYLOAD[: 4 * MIB])
            first, second = other, sink
            first.settimeout(1.0)
            second.settimeout(1.0)
            try:
                assert first.recv(8, socket.MSG_PEEK | socket.MSG_WAITALL)
            except TimeoutError:
                first, second = second, first
            second.settimeout(20.0)
            assert first.recv(8, socket.MSG_WAITALL) == header(len(PAYLOAD))
            first.close()
            source.sendall(PAYLOAD[4 * MIB :])
            # What follows is in order again, at the other consumer.
            source.sendall(header(len(SMALL)) + SMALL)
            assert receive(second) == SMALL
        state = buffer.statistics()
    assert state.received.messages == 4
    assert state.sent.messages + state.counters.undelivered == 4
    assert state.counters.undelivered == 1


def test_consumer_that_stalls_does_not_hold_up_its_producer(buffer: Buffer) -> None:
    with producer(buffer) as source, consumer(buffer) as sink:
        prime(source, sink)
        # More than all kernel memory on the way.
        for _ in range(8):
            source.sendall(header(len(PAYLOAD)) + PAYLOAD)
        until(lambda: buffer.statistics().received.messages == 9)
        for _ in range(8):
            assert receive(sink) == PAYLOAD
    assert buffer.statistics().sent.messages == 9


def test_a_word_that_comes_late_still_counts(buffer: Buffer) -> None:
    """A consumer that acknowledges may have been given something before it says so."""
    with producer(buffer) as source:
        source.sendall(header(len(SMALL)) + SMALL)
        until(lambda: buffer.statistics().queue_messages == 1)
        with connect(buffer.pull_urls[0], handshake(Protocol.PULL), HANDSHAKE_BYTES) as sink:
            assert receive(sink) == SMALL
            sink.sendall(frame(Frame.ACK, 0))
            until(lambda: buffer.statistics().consumers == 1)
        # It left without having acknowledged: the next one gets it.
        with Pull(buffer.pull_urls) as other:
            assert other.recv(20.0) == SMALL
    assert buffer.statistics().counters.requeued == 1
