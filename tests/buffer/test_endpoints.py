"""Push and Pull against each other and against pynng."""

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pynng
import pytest
from tests.buffer.peers import drain, in_thread, pynng_url, reset, until

from lclstream.buffer.endpoints import Pull, Push, ReceiveTimeoutError
from lclstream.core.errors import (
    BufferClosedError,
    DeliveryError,
    TooLargeError,
    UnavailableError,
)

MESSAGES = [bytes([i % 251]) * size for i, size in enumerate([1, 3, 1000, 131071, 131072, 131073])]
MESSAGES += [bytes([i % 256]) * (1 + i * 977 % 300_000) for i in range(200)]


def test_push_listens_and_pull_dials() -> None:
    with Push("tcp://127.0.0.1:0", listen=True) as push, Pull(push.urls) as pull:
        received: list[bytes] = []
        with in_thread(lambda: received.extend(drain(pull))):
            for message in [*MESSAGES, b""]:
                push.send(message)
            push.close()
    assert received == [*MESSAGES, b""]


def test_pull_listens_and_two_push_dial() -> None:
    with Pull("tcp://127.0.0.1:0", listen=True, peers=2) as pull:

        def produce(mark: bytes) -> None:
            with Push(pull.urls) as push:
                for i in range(100):
                    push.send(mark * (i * 3000))

        with in_thread(lambda: produce(b"a")), in_thread(lambda: produce(b"b")):
            received = drain(pull)
    # The order is kept per connection.
    for mark in (b"a", b"b"):
        assert [m for m in received if m[:1] == mark] == [mark * (i * 3000) for i in range(1, 100)]
    assert len(received) == 200


def test_many_small_messages_arrive_in_order() -> None:
    with Push("tcp://127.0.0.1:0", listen=True) as push, Pull(push.urls) as pull:
        received: list[bytes] = []
        with in_thread(lambda: received.extend(drain(pull))):
            for i in range(20_000):
                push.send(i.to_bytes(4, "big") * (i % 50))
            push.close()
    assert received == [i.to_bytes(4, "big") * (i % 50) for i in range(20_000)]


def test_last_message_of_a_burst_is_not_held_back() -> None:
    with Push("tcp://127.0.0.1:0", listen=True) as push, Pull(push.urls) as pull:
        received: list[bytes] = []
        for message in (b"one", b"two", b"three"):
            push.send(message)
        # Nothing else is sent and nothing is closed.
        while len(received) < 3:
            received.append(bytes(pull.recv(5.0)))
        assert received == [b"one", b"two", b"three"]


def test_parts_arrive_as_one_message() -> None:
    with Push("tcp://127.0.0.1:0", listen=True) as push, Pull(push.urls) as pull:
        received: list[bytes] = []
        with in_thread(lambda: received.extend(drain(pull))):
            push.send([b"head", b"", memoryview(b"ab" * 200_000), bytearray(b"tail")])
            push.send([b"x"] * 5000)
            push.send([b"y" * 20] * 3000)
            push.close()
    assert received == [b"head" + b"ab" * 200_000 + b"tail", b"x" * 5000, b"y" * 60_000]


def test_views_stay_valid_while_more_comes() -> None:
    sizes = [i * 10_007 % 400_000 for i in range(150)]
    with Push("tcp://127.0.0.1:0", listen=True) as push, Pull(push.urls) as pull:
        views: list[memoryview] = []

        def collect() -> None:
            # Every third one is kept: the others' memory may be used again.
            for i in range(len(sizes)):
                view = pull.recv(20.0)
                if i % 3 == 0:
                    views.append(view)

        with in_thread(collect):
            for i, size in enumerate(sizes):
                push.send(bytes([i]) * size)
    assert [bytes(view) for view in views] == [
        bytes([i]) * sizes[i] for i in range(0, len(sizes), 3)
    ]


def test_pynng_consumer_that_listens() -> None:
    with pynng.Pull0(listen="tcp://127.0.0.1:0", recv_timeout=20_000) as consumer:

        def produce() -> None:
            with Push(pynng_url(consumer)) as push:
                for message in MESSAGES:
                    push.send(message)

        with in_thread(produce):
            assert [consumer.recv() for _ in MESSAGES] == MESSAGES


def test_pynng_consumer_that_dials() -> None:
    with Push("tcp://127.0.0.1:0", listen=True) as push:

        def produce() -> None:
            for message in MESSAGES:
                push.send(message)
            push.close()

        with in_thread(produce), pynng.Pull0(dial=push.urls[0], recv_timeout=20_000) as consumer:
            assert [consumer.recv() for _ in MESSAGES] == MESSAGES


def test_pynng_producer_that_listens() -> None:
    with pynng.Push0(listen="tcp://127.0.0.1:0", send_timeout=20_000) as producer:

        def produce() -> None:
            for message in MESSAGES:
                producer.send(message)

        with in_thread(produce), Pull(pynng_url(producer)) as pull:
            assert [bytes(pull.recv(20.0)) for _ in MESSAGES] == MESSAGES


def test_pynng_producer_that_dials() -> None:
    received: list[bytes] = []
    with Pull("tcp://127.0.0.1:0", listen=True) as pull:
        with (
            in_thread(lambda: received.extend(bytes(pull.recv(20.0)) for _ in MESSAGES)),
            pynng.Push0(dial=pull.urls[0], send_timeout=20_000) as producer,
        ):
            for message in MESSAGES:
                producer.send(message)
            # It has no linger: stay until the other side has everything.
            until(lambda: len(received) == len(MESSAGES))
        assert drain(pull) == []
    assert received == MESSAGES


def test_send_without_listener_fails_and_names_the_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    push = Push(f"tcp://127.0.0.1:{port}", send_timeout_s=0.2)
    with pytest.raises(
        UnavailableError,
        match=rf"^no connection within 0\.2 s: tcp://127\.0\.0\.1:{port}: Connection refused$",
    ):
        push.send(b"x")
    # It was not sent, and whoever was told so decides what becomes of it.
    push.close(timeout_s=0.2)


def test_message_that_is_sent_again_after_a_failure_arrives_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"tcp://127.0.0.1:{port}"
    push = Push(url, send_timeout_s=0.1)
    with pytest.raises(UnavailableError):
        push.send(b"x")
    with Pull(url, listen=True) as pull, in_thread(lambda: send_until_taken(push, b"x")):
        received = drain(pull)
    assert received == [b"x"]


def send_until_taken(push: Push, message: bytes) -> None:
    while True:
        try:
            push.send(message)
        except UnavailableError:
            continue
        push.close()
        return


def test_name_of_several_addresses_is_tried_with_each(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(*_args: object, **_options: object) -> list[tuple[object, ...]]:
        place = ("127.0.0.1", pull_port)
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.2", pull_port)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", place),
        ]

    with Pull("tcp://127.0.0.1:0", listen=True) as pull:
        pull_port = int(pull.urls[0].rpartition(":")[2])
        monkeypatch.setattr(socket, "getaddrinfo", resolve)

        def produce() -> None:
            with Push(f"tcp://several.example.org:{pull_port}") as push:
                push.send(b"found")

        with in_thread(produce):
            assert drain(pull) == [b"found"]


def test_push_waits_for_a_buffer_that_comes_later() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"tcp://127.0.0.1:{port}"

    def produce() -> None:
        with Push(url) as push:
            push.send(b"early")

    with in_thread(produce), Pull(url, listen=True) as pull:
        assert drain(pull) == [b"early"]


def test_close_returns_only_when_the_peer_has_everything() -> None:
    sent = [b"m" * (1 << 20)] * 8
    with Pull("tcp://127.0.0.1:0", listen=True) as pull:
        done = threading.Event()

        def produce() -> None:
            with Push(pull.urls) as push:
                for message in sent:
                    push.send(message)
            done.set()

        with in_thread(produce):
            assert drain(pull) == sent
        assert done.is_set()


def test_close_counts_what_a_peer_does_not_take() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        push = Push(f"tcp://127.0.0.1:{listener.getsockname()[1]}", send_timeout_s=0.5)
        peer = accept_pull(listener)
        with peer:
            # Nobody reads: the kernels' buffers fill up.
            with pytest.raises(UnavailableError):
                send_for_ever(push)
            with pytest.raises(DeliveryError) as caught:
                push.close(timeout_s=0.5)
            assert 0 < caught.value.undelivered < 100


def send_for_ever(push: Push) -> None:
    while True:
        push.send(b"z" * (1 << 20))


def accept_pull(listener: socket.socket) -> socket.socket:
    """Accept a connection as a pulling peer that never reads."""
    peer, _ = listener.accept()
    peer.sendall(b"\x00SP\x00\x00\x51\x00\x00")
    assert peer.recv(8) == b"\x00SP\x00\x00\x50\x00\x00"
    return peer


def test_message_above_the_limit_is_refused_before_sending() -> None:
    with (
        Push("tcp://127.0.0.1:0", listen=True, max_message_bytes=100) as push,
        Pull(push.urls) as pull,
    ):
        with pytest.raises(
            TooLargeError, match=r"^a message of 101 bytes is above the limit of 100$"
        ):
            push.send(b"x" * 101)
        push.send(b"x" * 100)
        assert bytes(pull.recv(5.0)) == b"x" * 100


def test_recv_times_out_and_goes_on() -> None:
    with Push("tcp://127.0.0.1:0", listen=True) as push, Pull(push.urls) as pull:
        with pytest.raises(ReceiveTimeoutError, match=r"^no message within 0\.05 s$"):
            pull.recv(0.05)
        push_later = threading.Timer(0.05, lambda: push.send(b"late"))
        push_later.start()
        assert bytes(pull.recv(5.0)) == b"late"
        push_later.join()


def serve_once(listener: socket.socket, data: bytes, *, broken: bool) -> None:
    """Play a pushing peer that ends its connection after some bytes."""
    peer, _ = listener.accept()
    with peer:
        peer.sendall(b"\x00SP\x00\x00\x50\x00\x00")
        assert len(peer.recv(8)) == 8
        peer.sendall(data)
        if broken:
            reset(peer)


ONE_MESSAGE = b"\0\0\0\0\0\0\0\x03abc"


@pytest.mark.parametrize(
    ("first", "broken"),
    [
        pytest.param(ONE_MESSAGE + b"\0\0\0\0\0\0\0\x05de", False, id="closed inside a message"),
        pytest.param(b"", True, id="reset"),
    ],
)
def test_pull_reconnects_after_an_abnormal_end(first: bytes, broken: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            serve_once(listener, first, broken=broken)
            serve_once(listener, ONE_MESSAGE, broken=False)

        with in_thread(serve), Pull(f"tcp://127.0.0.1:{listener.getsockname()[1]}") as pull:
            received = drain(pull)
    assert received == [b"abc"] * (2 if first else 1)


def test_pull_without_reconnect_names_the_loss() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        with (
            in_thread(lambda: serve_once(listener, ONE_MESSAGE[:-1], broken=False)),
            Pull(url, reconnect=False) as pull,
            pytest.raises(
                BufferClosedError, match=rf"^connection to {url} lost: closed inside a message$"
            ),
        ):
            pull.recv(5.0)
        assert pull.partial == 1


def test_pull_gives_up_a_broken_stream_when_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"tcp://127.0.0.1:{listener.getsockname()[1]}"

        def serve() -> None:
            serve_once(listener, ONE_MESSAGE[:-1], broken=False)
            listener.close()

        with (
            in_thread(serve),
            Pull(url, reconnect_timeout_s=0.2) as pull,
            pytest.raises(BufferClosedError, match="lost"),
        ):
            pull.recv(10.0)


def test_broken_connection_without_loss_is_made_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        push = Push(f"tcp://127.0.0.1:{listener.getsockname()[1]}", send_timeout_s=10)
        with accept_pull(listener) as peer:
            push.send(b"q")
            assert peer.recv(9) == b"\0\0\0\0\0\0\0\x01q"
            (channel,) = push._sender._channels
            # The peer's kernel may take 40 ms to acknowledge.
            until(lambda: channel.acknowledged() == channel.sent_bytes)
            reset(peer)
        with accept_in_background(listener) as received:
            push.send(b"r" * 100_000)
            push.close()
        assert received == [100_008]


def test_lost_messages_are_counted_and_raised() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 10_000)
        push = Push(f"tcp://127.0.0.1:{listener.getsockname()[1]}", send_timeout_s=10)
        with accept_pull(listener) as peer:
            # More than the peer's kernel takes, less than ours does.
            for _ in range(4):
                push.send(b"q" * 100_000)
            reset(peer)
        with pytest.raises(DeliveryError, match="messages not delivered: connection to") as sending:
            push.send(b"r")
        assert 1 < sending.value.undelivered <= 5
        with pytest.raises(DeliveryError) as closing:
            push.close()
        assert closing.value.undelivered == sending.value.undelivered


@contextmanager
def accept_in_background(listener: socket.socket) -> Iterator[list[int]]:
    """Accept one more connection and count its bytes."""
    counts: list[int] = []

    def read() -> None:
        with accept_pull(listener) as peer:
            counts.append(sum(iter(lambda: len(peer.recv(65536)), 0)))

    with in_thread(read):
        yield counts


UNCLOSED = """
import sys
from lclstream.buffer import Push
push = Push(sys.argv[1])
for i in range(2000):
    push.send(i.to_bytes(4, "big") * 250)
push.send(b"x" * 3_000_000)
push.send(b"last")
"""


def test_program_that_ends_without_close_loses_nothing() -> None:
    with Pull("tcp://127.0.0.1:0", listen=True) as pull:
        received: list[bytes] = []
        with in_thread(lambda: received.extend(drain(pull))):
            subprocess.run([sys.executable, "-c", UNCLOSED, pull.urls[0]], check=True, timeout=30)
    assert len(received) == 2002
    assert received[-1] == b"last"


def test_interrupted_send_never_mixes_two_messages() -> None:
    with Push("tcp://127.0.0.1:0", listen=True) as push, Pull(push.urls) as pull:
        push.send(b"first")
        assert bytes(pull.recv(5.0)) == b"first"
        before = signal.signal(signal.SIGALRM, interrupt)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            with pytest.raises(KeyboardInterrupt):
                # More than the kernels take, and nobody reads.
                push.send(bytes(200_000_000))
        finally:
            signal.signal(signal.SIGALRM, before)
        received: list[bytes] = []
        with in_thread(lambda: received.extend(drain(pull))):
            push.send(b"second")
            push.close()
    assert received == [b"second"]
    assert pull.partial == 1


def test_interruption_loses_no_small_messages_that_wait() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    push = Push(url, connect_timeout_s=60)
    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(KeyboardInterrupt):
            # Nobody is there to take it.
            push.send(b"waits")
    finally:
        signal.signal(signal.SIGALRM, before)
    with Pull(url, listen=True) as pull, in_thread(push.close):
        assert drain(pull) == [b"waits"]


def interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def test_use_after_close() -> None:
    push = Push("tcp://127.0.0.1:0", listen=True)
    push.close()
    push.close()
    with pytest.raises(BufferClosedError, match=r"^send after close$"):
        push.send(b"x")
    pull = Pull("tcp://127.0.0.1:0", listen=True)
    pull.close()
    pull.close()
    with pytest.raises(BufferClosedError, match=r"^receive after close$"):
        pull.recv(0.1)
