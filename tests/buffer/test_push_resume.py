"""A producer that holds what a buffer has not accepted, and sends it again."""

import random
import socket
import threading
from collections import Counter

import pynng
import pytest
from tests.buffer.peers import PULL_HANDSHAKE, drain, in_thread, pynng_url, until
from tests.buffer.proxy import breaking
from tests.buffer.relayed import END_S, MIB, QUICK, SAFE, numbered, pull_all

from lclstream.buffer.control import Frame, frame
from lclstream.buffer.endpoints import Pull, Push
from lclstream.buffer.relay import Buffer
from lclstream.core.errors import DeliveryError, InvalidConfigError, UnavailableError


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
