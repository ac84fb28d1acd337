"""Peers that are mistaken or mean; the buffer goes on for the others."""

import errno
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.buffer.peers import PULL_HANDSHAKE, PUSH_HANDSHAKE, drain, reset, until

from lclstream.buffer import Buffer, BufferConfig, Pull, Push
from lclstream.buffer.addresses import listen

CONFIG = BufferConfig(memory_bytes=1 << 20, max_message_bytes=1 << 20, grace_s=0.1)
HUGE = [(1 << 20) + 1, 2**32, 2**60, 2**63, 2**64 - 1]


@pytest.fixture
def buffer() -> Iterator[Buffer]:
    with Buffer(CONFIG) as made:
        yield made
        if not made.has_ended:
            assert_works(made)


def assert_works(buffer: Buffer) -> None:
    """Send one message through, and end."""
    with Pull(buffer.pull_urls) as pull, Push(buffer.push_urls) as push:
        push.send(b"still here")
        assert bytes(pull.recv(10.0)) == b"still here"
        push.close()
        buffer.drain()
        assert drain(pull) == []
        assert buffer.wait(10.0)


def dial(url: str) -> socket.socket:
    host, port = url.removeprefix("tcp://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def is_closed_by_peer(sock: socket.socket) -> bool:
    """Read to the end; a reset is an end, too."""
    try:
        while sock.recv(4096):
            pass
    except ConnectionError:
        pass
    return True


OPENINGS = {
    "http probe": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "tls hello": bytes.fromhex("16030100c8010000c4"),
    "zmtp greeting": b"\xff" + bytes(8) + b"\x7f",
    "wrong magic": b"\x00SX\x00\x00\x50\x00\x00",
    "wrong version": b"\x00SP\x01\x00\x50\x00\x00",
    "unknown socket type": b"\x00SP\x00\x00\x10\x00\x00",
    "reserved bytes": b"\x00SP\x00\x00\x50\x00\x01",
    "only zeros": bytes(64),
}


@pytest.mark.parametrize("opening", OPENINGS.values(), ids=OPENINGS)
@pytest.mark.parametrize("side", ["in", "out"])
def test_other_protocols_are_closed_and_counted(buffer: Buffer, side: str, opening: bytes) -> None:
    url = (buffer.push_urls if side == "in" else buffer.pull_urls)[0]
    with dial(url) as sock:
        sock.sendall(opening)
        assert is_closed_by_peer(sock)
    assert buffer.statistics().counters.refused_peers == 1


@pytest.mark.parametrize("side", ["in", "out"])
def test_same_side_is_refused(buffer: Buffer, side: str) -> None:
    url, wrong = (
        (buffer.push_urls[0], PULL_HANDSHAKE)
        if side == "in"
        else (buffer.pull_urls[0], PUSH_HANDSHAKE)
    )
    with dial(url) as sock:
        sock.sendall(wrong)
        assert is_closed_by_peer(sock)
    assert buffer.statistics().counters.refused_peers == 1


@pytest.mark.parametrize("said", [b"", b"\x00", b"\x00SP\x00\x00"])
def test_silence_is_closed_after_a_while(monkeypatch: pytest.MonkeyPatch, said: bytes) -> None:
    monkeypatch.setattr("lclstream.buffer.door.HANDSHAKE_TIMEOUT_S", 0.1)
    with Buffer(CONFIG) as buffer:
        with dial(buffer.push_urls[0]) as one, dial(buffer.pull_urls[0]) as other:
            one.sendall(said)
            other.sendall(said)
            assert is_closed_by_peer(one)
            assert is_closed_by_peer(other)
        assert buffer.statistics().counters.refused_peers == 2
        assert_works(buffer)


def test_half_a_handshake_and_away(buffer: Buffer) -> None:
    for url in (*buffer.push_urls, *buffer.pull_urls):
        with dial(url) as sock:
            sock.sendall(b"\x00SP")
        with dial(url) as sock:
            sock.sendall(b"\x00SP")
            reset(sock)
    until(lambda: buffer.statistics().counters.refused_peers == 4)


@pytest.mark.parametrize("claim", HUGE)
@pytest.mark.parametrize("before", [b"", bytes(7) + b"\x01x"], ids=["first", "second"])
def test_huge_lengths_close_the_connection_only(buffer: Buffer, claim: int, before: bytes) -> None:
    with dial(buffer.push_urls[0]) as sock:
        sock.sendall(PUSH_HANDSHAKE)
        assert sock.recv(8, socket.MSG_WAITALL) == PULL_HANDSHAKE
        sock.sendall(before + claim.to_bytes(8, "big") + b"data")
        assert is_closed_by_peer(sock)
    state = buffer.statistics()
    assert state.counters.refused_messages == 1
    assert state.held_peak_bytes <= 1 << 20
    if before:
        with Pull(buffer.pull_urls) as pull:
            assert bytes(pull.recv(10.0)) == b"x"


def test_consumer_that_talks_is_closed_and_its_message_saved(buffer: Buffer) -> None:
    with dial(buffer.pull_urls[0]) as sock:
        sock.sendall(PULL_HANDSHAKE + b"hello")
        assert is_closed_by_peer(sock)
    assert buffer.statistics().counters.refused_peers == 1


NOISE = st.tuples(
    st.sampled_from(["in", "out"]), st.booleans(), st.binary(max_size=200), st.booleans()
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(NOISE, min_size=1, max_size=8))
def test_noise_on_both_ports(visits: list[tuple[str, bool, bytes, bool]]) -> None:
    with Buffer(CONFIG) as buffer:
        for side, greets, noise, breaks in visits:
            is_in = side == "in"
            greeting = PUSH_HANDSHAKE if is_in else PULL_HANDSHAKE
            with dial((buffer.push_urls if is_in else buffer.pull_urls)[0]) as sock:
                sock.sendall((greeting if greets else b"") + noise)
                if breaks:
                    reset(sock)
        # It still serves.
        with Push(buffer.push_urls) as push:
            push.send(b"still here")
        until(lambda: buffer.statistics().received.messages > 0)
        buffer.stop()
        assert buffer.wait(10.0)
    final = buffer.statistics()
    assert final.held_bytes == 0
    assert final.received.messages == final.sent.messages + final.counters.undelivered


class Faltering(socket.socket):
    """A listening socket at which a connection has failed before it was accepted."""

    failed = False

    def accept(self) -> tuple[socket.socket, Any]:
        if not self.failed:
            self.failed = True
            raise OSError(errno.EPROTO, "Protocol error")
        return super().accept()


def test_connection_that_failed_while_it_waited_ends_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "lclstream.buffer.door.listen", lambda address: Faltering(fileno=listen(address).detach())
    )
    with Buffer() as buffer, Pull(buffer.pull_urls) as pull:
        with Push(buffer.push_urls) as push:
            push.send(b"after")
        buffer.drain()
        assert drain(pull) == [b"after"]
