"""The whole buffer with real peers over real sockets."""

import hashlib
import random
import resource
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import pynng
import pytest
from tests.buffer.peers import (
    PULL_HANDSHAKE,
    PUSH_HANDSHAKE,
    drain,
    in_thread,
    reset,
    until,
)

from lclstream.buffer import Buffer, BufferConfig, BufferState, Pull, Push
from lclstream.buffer.control import FRAME_BYTES, looks_like_control
from lclstream.buffer.memory import CHUNK_BYTES
from lclstream.buffer.sp import HANDSHAKE_BYTES, HEADER_BYTES
from lclstream.core.errors import BufferClosedError, EndOfStream, InvalidConfigError
from lclstream.core.ledger import Tally

MIB = 1024 * 1024
QUICK = BufferConfig(grace_s=0.1, linger_s=0.3, farewell_timeout_s=5.0)
END_S = 20.0


def connect(url: str, greeting: bytes) -> socket.socket:
    """Connect with a bare socket and complete the handshake."""
    host, port = url.removeprefix("tcp://").split(":")
    sock = socket.create_connection((host, int(port)), timeout=10)
    sock.sendall(greeting)
    answer = PULL_HANDSHAKE if greeting == PUSH_HANDSHAKE else PUSH_HANDSHAKE
    assert sock.recv(8, socket.MSG_WAITALL) == answer
    if greeting == PUSH_HANDSHAKE:
        # To close with something unread would be a reset.
        assert looks_like_control(sock.recv(FRAME_BYTES, socket.MSG_WAITALL)[HEADER_BYTES:])
    return sock


def push_all(buffer: Buffer, messages: list[bytes]) -> None:
    with Push(buffer.push_urls) as push:
        for message in messages:
            push.send(message)


def pull_all(buffer: Buffer) -> list[bytes]:
    with Pull(buffer.pull_urls) as pull:
        return drain(pull)


def read_exactly(sock: socket.socket, count: int) -> None:
    chunk = memoryview(bytearray(MIB))
    while count:
        size = sock.recv_into(chunk[:count])
        assert size
        count -= size


def refuses(url: str) -> bool:
    host, port = url.removeprefix("tcp://").split(":")
    with socket.socket() as sock:
        return sock.connect_ex((host, int(port))) != 0


class PynngConsumer:
    """A plain pynng consumer in a thread, which ends when its pipe has gone."""

    def __init__(self, url: str) -> None:
        self.digests: list[str] = []
        self._gone = threading.Event()
        self._socket = pynng.Pull0(recv_timeout=100)
        self._socket.add_post_pipe_remove_cb(lambda pipe: self._gone.set())
        self._socket.dial(url)
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while True:
            try:
                # Its recv() cannot return an empty message.
                message = self._socket.recv_msg()
            except pynng.Timeout:
                if self._gone.is_set():
                    return
            else:
                self.digests.append(md5(message.bytes if len(message._buffer or b"") else b""))

    def __enter__(self) -> "PynngConsumer":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.join()
        self._socket.close()


def md5(data: bytes | memoryview) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


SIZES = [0, 1, 100, 5000, 131_063, 131_064, 131_065, 131_072, 300_000, 3_000_000]


def random_messages(seed: int, count: int) -> list[bytes]:
    source = random.Random(seed)  # noqa: S311
    sizes = [source.choice(SIZES) for _ in range(count)]
    return [source.randbytes(source.choice([size, source.randrange(size + 1)])) for size in sizes]


@pytest.mark.parametrize("memory_bytes", [MIB, 16 * MIB])
def test_every_message_reaches_exactly_one_consumer(memory_bytes: int) -> None:
    """Three producers and three consumers of each kind; the bound is small enough to be hit."""
    streams = {seed: random_messages(seed, 60) for seed in range(6)}
    received: list[str] = []

    def produce_plain(seed: int) -> None:
        with pynng.Push0(dial=buffer.push_urls[0], send_timeout=60_000) as push:
            for message in streams[seed]:
                push.send(message)
            # It has no linger: stay until the buffer has taken everything.
            until(lambda: buffer.statistics().received.messages == total, 60.0)

    def consume() -> None:
        with Pull(buffer.pull_urls) as pull:
            try:
                while True:
                    received.append(md5(pull.recv(60.0)))
            except EndOfStream:
                return

    total = sum(map(len, streams.values()))
    with Buffer(replace(QUICK, memory_bytes=memory_bytes, digest=True)) as buffer:
        with ExitStack() as stack:
            plain = [stack.enter_context(PynngConsumer(buffer.pull_urls[0])) for _ in range(3)]
            for _ in range(3):
                stack.enter_context(in_thread(consume))
            with ExitStack() as producers:
                for seed in range(3):
                    producers.enter_context(in_thread(partial(produce_plain, seed)))
                for seed in range(3, 6):
                    producers.enter_context(in_thread(partial(push_all, buffer, streams[seed])))
            buffer.drain()
            assert buffer.wait(END_S)
        final = buffer.statistics()
    received += [digest for consumer in plain for digest in consumer.digests]
    sent = [message for messages in streams.values() for message in messages]
    assert Counter(received) == Counter(map(md5, sent))
    expected = Tally()
    for message in sent:
        expected.add(message)
    assert final.received == final.sent == expected.snapshot()
    assert buffer.is_complete
    # One message larger than the bound is served alone, beside what the others have begun.
    assert final.held_peak_bytes <= memory_bytes + 3 * MIB + 6 * CHUNK_BYTES
    assert (final.held_bytes, final.queue_messages) == (0, 0)
    assert {peer.end for peer in final.peers} == {"closed"}


def test_order_is_kept_with_one_consumer() -> None:
    messages = [i.to_bytes(4, "big") * (1 + i * 7919 % 60_000) for i in range(300)]
    with Buffer(replace(QUICK, expect_producers=1)) as buffer:
        received: list[bytes] = []
        with in_thread(lambda: received.extend(pull_all(buffer))):
            push_all(buffer, messages)
            assert buffer.wait(END_S)
    assert received == messages
    assert buffer.is_complete


def test_stalled_consumer_stops_producers_and_memory_stays_bounded() -> None:
    memory_bytes = 8 * MIB
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sent = 0

    def produce() -> None:
        nonlocal sent
        with Push(buffer.push_urls) as push:
            for _ in range(200):
                push.send(payload)
                sent += 1

    payload = bytes(MIB)
    with Buffer(replace(QUICK, memory_bytes=memory_bytes)) as buffer:
        with connect(buffer.pull_urls[0], PULL_HANDSHAKE) as consumer, in_thread(produce):
            until(lambda: buffer.statistics().paused_producers == 1)
            # Nothing moves: the producer is stopped although it has much more.
            stuck_at = settled(lambda: sent)
            assert stuck_at < 100
            assert buffer.statistics().held_peak_bytes <= memory_bytes
            read_exactly(consumer, 200 * (MIB + 8))
        buffer.drain()
        assert buffer.wait(END_S)
        final = buffer.statistics()
    assert final.held_peak_bytes <= memory_bytes
    assert final.sent.messages == 200
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # In KiB; the test's own payload and chunk are in it.
    assert (after - before) * 1024 < memory_bytes + 20 * MIB


def has_received(buffer: Buffer, count: int) -> bool:
    return buffer.statistics().received.messages == count


def test_tiny_messages_cost_no_more_than_their_bytes() -> None:
    with Buffer(QUICK) as buffer, connect(buffer.push_urls[0], PUSH_HANDSHAKE) as producer:
        sent = 0
        while sent < 1000:
            producer.sendall(b"\0\0\0\0\0\0\0\x01x")
            sent += 1
            # Each comes in alone.
            until(partial(has_received, buffer, sent))
        assert len(buffer._engine._commons.queue._segments) == 1
        assert buffer.statistics().held_bytes == CHUNK_BYTES


def settled(read: Callable[[], int]) -> int:
    """Return a number once it has not changed for a while."""
    last, since = read(), time.monotonic()
    while time.monotonic() - since < 0.3:
        if read() != last:
            last, since = read(), time.monotonic()
    return last


def test_fast_consumer_is_not_held_up_by_a_stalled_one() -> None:
    with (
        Buffer(QUICK) as buffer,
        connect(buffer.pull_urls[0], PULL_HANDSHAKE) as stalled,
        Pull(buffer.pull_urls) as pull,
    ):
        until(lambda: buffer.statistics().consumers == 2)
        count = 0
        with in_thread(lambda: push_all(buffer, [bytes(MIB)] * 60)):
            # What the stalled one's kernel took is lost to us; all else comes here.
            while count < 40:
                pull.recv(END_S)
                count += 1
        stalled.close()


def test_late_consumer_gets_its_share() -> None:
    with Buffer(replace(QUICK, memory_bytes=64 * MIB)) as buffer:
        push_all(buffer, [bytes(100_000)] * 100)
        until(lambda: buffer.statistics().queue_messages == 100)
        with Pull(buffer.pull_urls) as first:
            assert len(first.recv(END_S)) == 100_000
            with Pull(buffer.pull_urls) as late:
                buffer.drain()
                counts = [0, 0]
                with (
                    in_thread(lambda: counts.__setitem__(0, len(drain(first)))),
                    in_thread(lambda: counts.__setitem__(1, len(drain(late)))),
                ):
                    assert buffer.wait(END_S)
    assert sum(counts) == 99
    assert counts[1] > 0


def test_rest_of_a_killed_consumer_goes_to_another() -> None:
    messages = [bytes([i]) * MIB for i in range(30)]
    with Buffer(QUICK) as buffer:
        victim = connect(buffer.pull_urls[0], PULL_HANDSHAKE)
        push_all(buffer, messages)
        read_exactly(victim, 3 * MIB)
        settled(lambda: buffer.statistics().sent.messages)
        reset(victim)
        victim.close()
        until(lambda: buffer.statistics().consumers == 0)
        state = buffer.statistics()
        # One message was being written.
        assert state.counters.requeued == 1
        assert state.queue_messages == 30 - state.sent.messages
        received: list[bytes] = []
        with in_thread(lambda: received.extend(pull_all(buffer))):
            buffer.drain()
            assert buffer.wait(END_S)
        final = buffer.statistics()
    # In order, and the one that was begun is whole.
    assert received == messages[30 - len(received) :]
    assert final.sent.messages == 30
    assert not buffer.is_complete
    assert final.counters.possibly_lost + final.counters.consumers_broken > 0
    assert final.counters.undelivered == 0


def test_consumer_that_leaves_politely_takes_nothing_with_it() -> None:
    with Buffer(QUICK) as buffer:
        with Pull(buffer.pull_urls) as first:
            push_all(buffer, [b"one"])
            assert bytes(first.recv(END_S)) == b"one"
        until(lambda: buffer.statistics().consumers == 0)
        push_all(buffer, [b"two"])
        received: list[bytes] = []
        with in_thread(lambda: received.extend(pull_all(buffer))):
            until(lambda: buffer.statistics().sent.messages == 2)
            buffer.drain()
            assert buffer.wait(END_S)
    assert received == [b"two"]
    assert buffer.is_complete


# The loss cases.


@pytest.mark.parametrize(("count", "size"), [(8, MIB), (2, 16 * MIB)])
def test_n1_close_right_after_the_last_send(count: int, size: int) -> None:
    with Buffer(replace(QUICK, expect_producers=1)) as buffer:
        messages = [bytes([i]) * size for i in range(count)]
        push_all(buffer, messages)
        # Nobody has read yet.
        assert pull_all(buffer) == messages
        assert buffer.wait(END_S)
    assert buffer.is_complete


def test_n2_partial_message_of_a_dead_producer_is_dropped_and_counted() -> None:
    with Buffer(QUICK) as buffer:
        with connect(buffer.push_urls[0], PUSH_HANDSHAKE) as producer:
            producer.sendall(b"\0\0\0\0\0\0\0\x02ok\0\0\0\0\0\0\0\x05cut")
        received: list[bytes] = []
        with in_thread(lambda: received.extend(pull_all(buffer))):
            until(lambda: buffer.statistics().sent.messages == 1)
            until(lambda: buffer.statistics().producers == 0)
            buffer.drain()
            assert buffer.wait(END_S)
    assert received == [b"ok"]
    assert buffer.statistics().counters.partial_in == 1
    assert not buffer.is_complete


def test_n4_message_above_the_limit() -> None:
    with Buffer(replace(QUICK, max_message_bytes=1000)) as buffer:
        with connect(buffer.push_urls[0], PUSH_HANDSHAKE) as producer:
            producer.sendall(b"\0\0\0\0\0\0\0\x02ok" + struct.pack(">Q", 1001))
            # The buffer closes the connection.
            assert producer.recv(1) == b""
        assert buffer.statistics().counters.refused_messages == 1
        buffer.stop()
        assert buffer.wait(END_S)
    assert not buffer.is_complete


def test_n5_first_producer_ends_before_the_second_comes() -> None:
    with Buffer(replace(QUICK, expect_producers=2)) as buffer:
        received: list[bytes] = []
        with in_thread(lambda: received.extend(pull_all(buffer))):
            push_all(buffer, [b"a"] * 5)
            until(lambda: len(buffer.statistics().peers) == 2)
            assert not buffer.wait(0.3)
            # A probe that says hello and nothing else is not a producer.
            connect(buffer.push_urls[0], PUSH_HANDSHAKE).close()
            assert not buffer.wait(0.3)
            push_all(buffer, [b"b"] * 5)
            assert buffer.wait(END_S)
    assert sorted(received) == [b"a"] * 5 + [b"b"] * 5
    assert buffer.is_complete


def test_n6_connected_producers_finish_and_new_ones_are_refused() -> None:
    with Buffer(QUICK) as buffer, Push(buffer.push_urls) as push:
        push.send(b"before")
        until(lambda: buffer.statistics().received.messages == 1)
        received: list[bytes] = []
        with in_thread(lambda: received.extend(pull_all(buffer))):
            buffer.drain()
            until(lambda: refuses(buffer.push_urls[0]))
            assert buffer.statistics().state == BufferState.DRAINING
            for _ in range(50):
                push.send(bytes(100_000))
            push.close()
            assert buffer.wait(END_S)
    assert len(received) == 51
    assert buffer.is_complete


def test_producer_in_the_backlog_is_served_although_draining_has_begun() -> None:
    with Buffer(QUICK) as buffer:
        received: list[bytes] = []
        with in_thread(lambda: received.extend(pull_all(buffer))):
            until(lambda: buffer.statistics().consumers == 1)
            with buffer._engine._lock:
                # The engine cannot accept now.
                host, port = buffer.push_urls[0].removeprefix("tcp://").split(":")
                waiting = socket.create_connection((host, int(port)))
                buffer.drain()
            with waiting:
                waiting.sendall(PUSH_HANDSHAKE + b"\0\0\0\0\0\0\0\x04late")
                # To close with something unread would be a reset.
                greeted = waiting.recv(HANDSHAKE_BYTES + FRAME_BYTES, socket.MSG_WAITALL)
                assert greeted.startswith(PULL_HANDSHAKE)
            assert buffer.wait(END_S)
    assert received == [b"late"]
    assert buffer.is_complete


def test_n8_plain_producer_survives_the_drain() -> None:
    with Buffer(replace(QUICK, consumer_timeout_s=60.0)) as buffer:
        push_all(buffer, [b"held"])
        with pynng.Push0(reconnect_time_min=10, reconnect_time_max=10) as plain:
            plain.dial(buffer.push_urls[0])
            until(lambda: buffer.statistics().producers == 1)
            buffer.drain()
            until(lambda: refuses(buffer.push_urls[0]))
            plain.close()
        with pynng.Push0(reconnect_time_min=10, reconnect_time_max=10) as plain:
            # It dials in vain, again and again.
            plain.dial(buffer.push_urls[0], block=False)
            settled(lambda: 0)
            assert pull_all(buffer) == [b"held"]
            assert buffer.wait(END_S)
    assert buffer.is_complete


def test_z2_no_consumer_by_the_deadline() -> None:
    with Buffer(replace(QUICK, consumer_timeout_s=0.3)) as buffer:
        push_all(buffer, [b"x" * 10] * 7 + [bytes(MIB)] * 3)
        buffer.drain()
        assert buffer.wait(END_S)
    final = buffer.statistics()
    assert (final.state, final.counters.undelivered) == (BufferState.INCOMPLETE, 10)
    assert final.received.messages == final.sent.messages + final.counters.undelivered
    assert final.counters.faults() == ["10 messages were not delivered"]


def test_z1_consumer_comes_while_flushing() -> None:
    with Buffer(QUICK) as buffer:
        push_all(buffer, [bytes(1000)] * 300)
        buffer.drain()
        until(lambda: buffer.statistics().state == BufferState.FLUSHING)
        assert len(pull_all(buffer)) == 300
        assert buffer.wait(END_S)
    assert buffer.is_complete


def test_stop_counts_what_was_not_delivered() -> None:
    with Buffer(QUICK) as buffer, connect(buffer.pull_urls[0], PULL_HANDSHAKE):
        push_all(buffer, [bytes(MIB)] * 20)
        settled(lambda: buffer.statistics().sent.messages)
        buffer.stop("test")
        assert buffer.wait(END_S)
    final = buffer.statistics()
    assert final.counters.undelivered > 0
    assert final.received.messages == 20 == final.sent.messages + final.counters.undelivered
    assert final.reason == "test"


def test_empty_stream_ends_late_consumers_properly() -> None:
    with Buffer(replace(QUICK, linger_s=1.0)) as buffer:
        buffer.drain()
        until(lambda: buffer.statistics().state == BufferState.FLUSHING)
        assert pull_all(buffer) == []
        assert pull_all(buffer) == []
        assert buffer.wait(END_S)
    assert buffer.is_complete


def test_silence_is_the_end_only_if_asked_for() -> None:
    with Buffer(replace(QUICK, max_idle_s=0.2)) as buffer:
        push_all(buffer, [b"x"])
        assert pull_all(buffer) == [b"x"]
        assert buffer.wait(END_S)
    assert buffer.is_complete
    assert buffer.statistics().reason == "nothing happened for 0.2 s"


def test_buffer_that_is_stopped_breaks_the_stream_of_a_busy_consumer() -> None:
    with Buffer(QUICK) as buffer, Pull(buffer.pull_urls, reconnect=False) as pull:
        push_all(buffer, [bytes(8 * MIB)] * 3)
        until(lambda: buffer.statistics().sent.messages < 3)
        settled(lambda: buffer.statistics().sent.messages)
        buffer.stop()
        assert buffer.wait(END_S)
        with pytest.raises(BufferClosedError, match="closed inside a message"):
            drain(pull)


def test_bound_address_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = replace(QUICK, inputs=(replace(QUICK.inputs[0], first_port=port, last_port=port),))
        with pytest.raises(
            InvalidConfigError, match=rf"^cannot listen on tcp://127\.0\.0\.1:{port}: Address"
        ):
            Buffer(config)
