"""What the ends lose, and what they know of it, when processes, connections and peers fail."""

import random
import socket
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace

import pynng
import pytest
from tests.buffer.peers import PULL_HANDSHAKE, drain, in_thread, pynng_url, until
from tests.buffer.proxy import breaking

from lclstream.buffer.config import BufferConfig, Delivery
from lclstream.buffer.control import Frame, frame
from lclstream.buffer.endpoints import Pull, Push
from lclstream.buffer.relay import Buffer
from lclstream.core.errors import DeliveryError, InvalidConfigError, UnavailableError

MIB = 1 << 20
END_S = 30.0
QUICK = BufferConfig(
    expect_producers=1, grace_s=0.1, resume_timeout_s=20.0, consumer_timeout_s=20.0, linger_s=0.1
)
SAFE = replace(QUICK, delivery=Delivery.SAFE)
MODES = {"fast": QUICK, "safe": SAFE}


def numbered(count: int, sizes: list[int]) -> list[bytes]:
    return [i.to_bytes(4, "big") + bytes(sizes[i % len(sizes)]) for i in range(count)]


def pull_all(buffer: Buffer, *, acknowledge: bool = True) -> list[bytes]:
    with Pull(buffer.pull_urls[0], acknowledge=acknowledge) as pull:
        return drain(pull, END_S)


# The end of a producer.


@pytest.mark.parametrize("delivery", ["fast", "safe"])
@pytest.mark.parametrize(("count", "size"), [(8, MIB), (2, 16 * MIB), (200, 1000), (0, 0)])
def test_close_right_after_the_last_send_loses_nothing(
    delivery: str, count: int, size: int
) -> None:
    with Buffer(MODES[delivery]) as buffer:
        with Push(buffer.push_urls[0], delivery=delivery, connections=2) as push:
            for i in range(count):
                push.send(bytes([i % 256]) * size)
        # Nobody has read anything yet.
        assert sorted(pull_all(buffer)) == sorted(bytes([i % 256]) * size for i in range(count))
        assert buffer.wait(END_S)
        assert buffer.is_complete
        assert buffer.statistics().counters.producers_seen == 1


ENDINGS = """
import os, sys
from lclstream.buffer import Push
push = Push(sys.argv[1], delivery=sys.argv[2])
for i in range(int(sys.argv[4])):
    push.send(i.to_bytes(4, "big") * int(sys.argv[5]))
if sys.argv[3] == "close":
    push.close()
elif sys.argv[3] == "_exit":
    os._exit(0)
"""


@pytest.mark.parametrize("delivery", ["fast", "safe"])
@pytest.mark.parametrize("ending", ["close", "exit", "_exit"])
@pytest.mark.parametrize(("count", "size"), [(200, 1000), (20, MIB), (1000, 100_000)])
def test_only_a_killed_producer_is_incomplete(
    delivery: str, ending: str, count: int, size: int
) -> None:
    with Buffer(replace(MODES[delivery], resume_timeout_s=0.2)) as buffer:
        received: list[bytes] = []
        with in_thread(lambda: received.extend(pull_all(buffer))):
            words = [delivery, ending, str(count), str(size // 4)]
            program = [sys.executable, "-c", ENDINGS, buffer.push_urls[0], *words]
            subprocess.run(program, check=True, timeout=50)
        assert buffer.wait(END_S)
        final = buffer.statistics()
    # In order, and nothing in between is missing.
    assert received == [i.to_bytes(4, "big") * (size // 4) for i in range(len(received))]
    assert final.received.messages == final.sent.messages == len(received)
    if ending == "_exit":
        assert not buffer.is_complete
        assert final.counters.producers_unfinished == 1
    else:
        assert buffer.is_complete
        assert len(received) == count


def test_leaving_by_an_error_is_incomplete() -> None:
    with Buffer(replace(QUICK, resume_timeout_s=0.1)) as buffer:
        with pytest.raises(ZeroDivisionError), Push(buffer.push_urls[0]) as push:
            send_badly(push)
        pull_all(buffer)
        assert buffer.wait(END_S)
        assert not buffer.is_complete


def send_badly(push: Push) -> None:
    push.send(b"x")
    push.send(bytes(1 // 0))


@pytest.mark.parametrize("delivery", ["fast", "safe"])
def test_what_looks_like_control_is_delivered(delivery: str) -> None:
    sent = [frame(kind, 1)[8:] for kind in Frame] * 3
    sent[4:4] = [b"small", b"large" * 50_000]
    with Buffer(MODES[delivery]) as buffer:
        with Push(buffer.push_urls[0], delivery=delivery) as push:
            for message in sent:
                push.send([message[:5], message[5:]])
        assert pull_all(buffer) == sent
        assert buffer.wait(END_S)
        assert buffer.is_complete


def test_plain_consumer_gets_it_without_any_sign() -> None:
    lookalike = frame(Frame.BYE, 1)[8:]
    with pynng.Pull0(listen="tcp://127.0.0.1:0", recv_timeout=20_000) as consumer:

        def produce() -> None:
            with Push(pynng_url(consumer)) as push:
                push.send(lookalike)
                push.send(b"after")

        with in_thread(produce):
            assert [consumer.recv(), consumer.recv()] == [lookalike, b"after"]


# Broken connections.


@pytest.mark.parametrize("seed", range(6))
def test_safe_producer_over_a_bad_network(seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311
    sizes = [chance.choice([0, 20, 900, 40_000, 300_000]) for _ in range(29)]
    sent = numbered(600, sizes)
    connections = 1 + seed % 3
    with Buffer(SAFE) as buffer, breaking(buffer.push_urls[0], seed) as proxy:
        received: list[bytes] = []
        with in_thread(lambda: received.extend(pull_all(buffer))):
            with Push(proxy.url, delivery="safe", connections=connections) as push:
                for message in sent:
                    push.send(message)
            assert push.unacknowledged == push.undelivered == 0
        assert proxy.broken > 3
        assert buffer.wait(END_S)
        final = buffer.statistics()
    assert Counter(received) == Counter(sent)
    if connections == 1:
        assert received == sent
    assert final.counters.producers_seen == 1
    assert buffer.is_complete, final


@pytest.mark.parametrize("seed", range(4))
def test_acknowledging_consumers_over_a_bad_network(seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311
    sent = numbered(500, [chance.choice([0, 900, 40_000, 300_000]) for _ in range(29)])
    received: list[list[bytes]] = [[], []]
    with Buffer(SAFE) as buffer, breaking(buffer.pull_urls[0], seed) as proxy:

        def consume(mine: list[bytes]) -> None:
            with Pull(proxy.url, acknowledge=True) as pull:
                mine.extend(drain(pull, END_S))

        with (
            in_thread(lambda: consume(received[0])),
            in_thread(lambda: consume(received[1])),
            Push(buffer.push_urls[0], delivery="safe") as push,
        ):
            for message in sent:
                push.send(message)
        assert proxy.broken > 3
        assert buffer.wait(END_S)
        final = buffer.statistics()
    counts = Counter(received[0] + received[1])
    assert set(counts) == set(sent)
    # Twice only what was finished, or in hand, and not acknowledged when a connection broke.
    assert sum(counts.values()) - len(sent) <= final.counters.requeued


def test_idle_safe_producer_comes_back_by_itself() -> None:
    with Buffer(SAFE) as buffer, breaking(buffer.push_urls[0], 0, breaks=0) as proxy:
        with Push(proxy.url, delivery="safe") as push:
            push.send(b"one")
            until(lambda: push_reads(push))
            ever = push._links.ever
            proxy.cut()
            # Nobody calls it.
            until(lambda: push._links.ever > ever and push._sender.is_calm)
            push.send(b"two")
        assert pull_all(buffer) == [b"one", b"two"]
        assert buffer.wait(END_S)
        assert buffer.is_complete


def push_reads(push: Push) -> bool:
    with push._lock:
        push._sender.step(0.0)
    return push.unacknowledged == 0


def test_fast_producer_whose_connection_breaks_without_loss_still_finishes() -> None:
    with Buffer(QUICK) as buffer, breaking(buffer.push_urls[0], 0, breaks=0) as proxy:
        with Push(proxy.url) as push:
            push.send(b"one")
            until(lambda: buffer.statistics().received.messages == 1)
            (channel,) = push._sender._channels
            until(lambda: channel.acknowledged() == channel.sent_bytes)
            proxy.cut()
        assert pull_all(buffer) == [b"one"]
        assert buffer.wait(END_S)
        assert buffer.is_complete


def test_buffer_that_is_gone_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        push = Push(
            f"tcp://127.0.0.1:{listener.getsockname()[1]}",
            delivery="safe",
            reconnect_timeout_s=0.3,
        )
        with greet(listener, 7) as peer:
            push.send(b"held")
            assert len(read(peer, 42 + 12)) == 54
            listener.close()
    with pytest.raises(DeliveryError, match=r"not reached again within 0\.3 s: Connection ref"):
        send_until_refused(push)
    with pytest.raises(DeliveryError) as caught:
        push.close(5.0)
    assert caught.value.undelivered >= 1


def send_until_refused(push: Push) -> None:
    while True:
        push.send(bytes(100_000))


# What safe delivery asks of the peer.


def test_safe_delivery_refuses_a_plain_peer() -> None:
    with pynng.Pull0(listen="tcp://127.0.0.1:0") as consumer:
        url = pynng_url(consumer)
        push = Push(url, delivery="safe")
        with pytest.raises(
            InvalidConfigError,
            match=rf"^delivery 'safe' needs a buffer, and {url} does not acknowledge: push to a ",
        ):
            push.send(b"x")
        push.close()


def test_safe_delivery_refuses_a_consumer_that_acknowledges() -> None:
    with Pull("tcp://127.0.0.1:0", listen=True, acknowledge=True) as pull:
        push = Push(pull.urls[0], delivery="safe")
        with in_thread(lambda: drain(pull)):
            with pytest.raises(InvalidConfigError, match=r"^delivery 'safe' needs a buffer, and "):
                push.send(b"x")
            push.close()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"delivery": "sure"}, r"^delivery must be 'fast' or 'safe', got 'sure'$"),
        ({"delivery": "safe", "listen": True}, r"^delivery 'safe' dials a buffer: it cannot"),
        ({"in_flight_bytes": 0}, r"^in_flight_bytes must be >= 1, got 0$"),
        ({"connections": 0}, r"^connections must be >= 1, got 0$"),
        ({"congestion": "none"}, r"^congestion must be one that this system has, got 'none': "),
        ({"sndbuf_bytes": 0}, r"^sndbuf_bytes must be > 0, got 0$"),
        ({"dead_after_s": 0.5}, r"^dead_after_s must be >= 1, got 0\.5$"),
    ],
)
def test_options_that_cannot_be(options: dict[str, object], problem: str) -> None:
    with pytest.raises(InvalidConfigError, match=problem):
        Push("tcp://127.0.0.1:0", **options)  # type: ignore[arg-type]


def greet(listener: socket.socket, nonce: int) -> socket.socket:
    """Accept a producer as a buffer does."""
    peer, _ = listener.accept()
    peer.sendall(PULL_HANDSHAKE + frame(Frame.HELLO, nonce))
    assert read(peer, 8) == b"\0SP\0\0\x50\0\0"
    assert read(peer, 21) == frame(Frame.HELLO, nonce)
    return peer


def read(peer: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += peer.recv(size - len(data)) or pytest.fail("closed")
    return data


def test_words_on_the_wire() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(END_S)
        push = Push(f"tcp://127.0.0.1:{listener.getsockname()[1]}", delivery="safe")
        with greet(listener, 7) as peer:
            stream = read(peer, 21)
            assert stream[:13] == frame(Frame.STREAM, 0)[:13]
            assert read(peer, 21) == frame(Frame.FROM, 0)
            # A new stream does not wait for the answer.
            for message in (b"one", b"two", b"three"):
                push.send(message)
            wire = b"".join(len(m).to_bytes(8, "big") + m for m in (b"one", b"two", b"three"))
            assert read(peer, len(wire)) == wire
            peer.sendall(frame(Frame.ACK, 0) + frame(Frame.ACK, 1))
            until(lambda: push_reads(push) or push.unacknowledged == 2)
        # That connection is gone; the stream goes on where the buffer says.
        with greet(listener, 8) as peer:
            assert read(peer, 42) == stream + frame(Frame.FROM, 1)
            peer.sendall(frame(Frame.ACK, 2))
            with in_thread(push.close):
                assert read(peer, 13) == b"\0\0\0\0\0\0\0\x05three"
                assert read(peer, 21) == frame(Frame.BYE, 3)
                peer.sendall(frame(Frame.ACK, 3))
                assert peer.recv(1) == b""
    assert push.undelivered == 0


def test_what_is_held_is_bounded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(END_S)
        push = Push(
            f"tcp://127.0.0.1:{listener.getsockname()[1]}",
            delivery="safe",
            in_flight_bytes=MIB,
            send_timeout_s=0.3,
        )
        with greet(listener, 7) as peer:
            taking = threading.Thread(
                target=lambda: [None for _ in iter(lambda: peer.recv(MIB), b"")]
            )
            taking.start()
            for _ in range(10):
                push.send(bytes(100_000))
            with pytest.raises(UnavailableError, match=r"in_flight_bytes = 1048576 are reached$"):
                push.send(bytes(100_000))
            peer.sendall(frame(Frame.ACK, 3))
            push.send(bytes(200_000))
            assert push.unacknowledged == 8
            with pytest.raises(DeliveryError) as caught:
                push.close(0.5)
            assert caught.value.undelivered == 8
            taking.join()


def test_memory_that_is_used_again_is_copied() -> None:
    with Buffer(SAFE) as buffer, breaking(buffer.push_urls[0], 3, least=MIB, most=MIB) as proxy:
        memory = bytearray(300_000)
        with Push(proxy.url, delivery="safe") as push:
            for i in range(40):
                memory[:] = bytes([i]) * len(memory)
                push.send(memory)
        assert proxy.broken
        assert pull_all(buffer) == [bytes([i]) * len(memory) for i in range(40)]


# What a consumer has finished.


def test_unfinished_messages_go_to_another_consumer() -> None:
    sent = numbered(300, [1000])
    with Buffer(SAFE) as buffer:
        with Push(buffer.push_urls[0], delivery="safe") as push:
            for message in sent:
                push.send(message)
        with (
            pytest.raises(ZeroDivisionError),
            Pull(buffer.pull_urls[0], acknowledge=True) as pull,
        ):
            analyse_badly(pull)
        # The hundredth was in hand, and what was read besides was never looked at.
        assert pull.counts[0].acknowledged == 99
        rest = pull_all(buffer)
        assert buffer.wait(END_S)
        assert buffer.is_complete
    assert rest == sent[99:]


def analyse_badly(pull: Pull) -> list[bytes]:
    return [bytes(pull.recv(END_S)) for i in range(100)] + [bytes(1 // 0)]


def test_leaving_properly_finishes_what_is_in_hand() -> None:
    sent = numbered(10, [1000])
    with Buffer(SAFE) as buffer:
        with Push(buffer.push_urls[0], delivery="safe") as push:
            for message in sent:
                push.send(message)
        with Pull(buffer.pull_urls[0], acknowledge=True) as pull:
            first = [bytes(pull.recv(END_S)) for _ in range(4)]
        assert first + pull_all(buffer) == sent


def test_program_that_works_ahead_says_itself_what_is_done() -> None:
    sent = numbered(20, [1000])
    with Buffer(SAFE) as buffer:
        with Push(buffer.push_urls[0], delivery="safe") as push:
            for message in sent:
                push.send(message)
        with Pull(buffer.pull_urls[0], acknowledge=True, auto=False) as pull:
            for _ in range(10):
                pull.recv(END_S)
            assert pull.in_hand == 10
            pull.done(6)
            pull.done()
            assert pull.in_hand == 3
        assert pull_all(buffer) == sent[7:]


def test_end_of_stream_comes_before_the_last_is_done() -> None:
    with Buffer(SAFE) as buffer:
        with Push(buffer.push_urls[0], delivery="safe") as push:
            push.send(b"last")
        with Pull(buffer.pull_urls[0], acknowledge=True, auto=False) as pull:
            message = pull.recv(END_S)
            assert bytes(message) == b"last"
            assert buffer.statistics().counters.acknowledged == 0
            pull.done()
            assert drain(pull, END_S) == []
        assert buffer.wait(END_S)
        assert buffer.is_complete


def test_acknowledgements_disturb_no_plain_producer() -> None:
    with (
        pynng.Push0(listen="tcp://127.0.0.1:0", send_timeout=20_000) as producer,
        Pull(pynng_url(producer), acknowledge=True) as pull,
    ):
        for i in range(300):
            producer.send(i.to_bytes(4, "big"))
            assert bytes(pull.recv(20.0)) == i.to_bytes(4, "big")
