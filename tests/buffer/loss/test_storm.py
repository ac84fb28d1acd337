"""Noise of every kind on both ports, while one honest pair goes on exchanging messages."""

import random
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from tests.buffer.loss.nursery import Nursery, RelayProcess, until, until_still
from tests.buffer.loss.oracle import MIB, md5
from tests.buffer.loss.scale import pick
from tests.buffer.peers import reset

from lclstream.buffer import Pull, Push
from lclstream.core.errors import StreamError
from lclstream.identity.authority import Authority

pytestmark = pytest.mark.timeout(1800)
ROUNDS = pick(120, 3000)
PUSH, PULL = b"\x00SP\x00\x00\x50\x00\x00", b"\x00SP\x00\x00\x51\x00\x00"
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16) + b"\x00" + bytes(31)
LENGTHS = [2**20 + 1, 2**31, 2**32, 2**40, 2**60, 2**63 - 1, 2**63, 2**64 - 9, 2**64 - 1]
OPEN_AT_ONCE = 40
GROWTH_BYTES = 48 * MIB
PATIENCE_S = 60.0


def ready(socket_type: bytes) -> bytes:
    body = b"\x05READY\x0bSocket-Type" + len(socket_type).to_bytes(4, "big") + socket_type
    return bytes([4, len(body)]) + body


def client_hello() -> bytes:
    """Return what a TLS client says first."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing).do_handshake()
    return outgoing.read()


class Noise:
    """Makes bytes that no sound peer would send."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)  # noqa: S311
        self._hello = client_hello()

    def opening(self, side: str) -> bytes:
        """Return what one connection says; never the whole handshake of a consumer."""
        kind = self.random.choice([self._sp, self._zmtp, self._tls, self._http, self._random])
        said = kind(side)
        if side == "out":
            whole = (PULL, GREETING + ready(b"PULL"))
            # It would take messages away from the honest ones.
            said = next((said[: len(each) - 1] for each in whole if said.startswith(each)), said)
            if said.startswith(b"\xff"):
                said = said[:63]
        return said

    def _mutated(self, data: bytes) -> bytes:
        out = bytearray(data)
        for _ in range(self.random.randrange(4)):
            if out:
                out[self.random.randrange(len(out))] ^= 1 << self.random.randrange(8)
        if self.random.random() < 0.3:
            del out[self.random.randrange(len(out) + 1) :]
        return bytes(out)

    def _length(self) -> int:
        return self.random.choice([*LENGTHS, self.random.getrandbits(64)])

    def _sp(self, side: str) -> bytes:
        if side == "in" and self.random.random() < 0.5:
            return PUSH + self._length().to_bytes(8, "big") + self._random(side)
        return self._mutated(self.random.choice([PUSH, PULL]) + self._random(side))

    def _zmtp(self, side: str) -> bytes:
        start = GREETING + ready(self.random.choice([b"PUSH", b"PULL", b"", b"X" * 200]))
        flags = bytes([self.random.randrange(256)])
        frame = flags + self._length().to_bytes(8, "big") + self._random(side)
        return start + frame if self.random.random() < 0.5 else self._mutated(start + frame)

    def _tls(self, side: str) -> bytes:
        del side
        return self._mutated(self._hello)

    def _http(self, side: str) -> bytes:
        del side
        return self.random.choice([b"GET", b"POST"]) + b" / HTTP/1.1\r\nHost: x\r\n\r\n"

    def _random(self, side: str) -> bytes:
        del side
        return self.random.randbytes(self.random.choice([0, 1, 8, 100, 5000]))


def dial(url: str) -> socket.socket:
    host, port = url.removeprefix("tcp://").split(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE_S)


class Storm:
    """Visits of both ports; some stay open and say nothing, or a byte now and then."""

    def __init__(self, relay: RelayProcess, seed: int) -> None:
        self.urls = {"in": relay.push_url, "out": relay.pull_url}
        self.noise = Noise(seed)
        self.random = self.noise.random
        self.slow: list[tuple[socket.socket, bytes]] = []

    def visit(self) -> None:
        side = self.random.choice(["in", "out"])
        way = self.random.choice(
            [self._talk, self._talk, self._talk, self._linger, self._burst, self._secret]
        )
        with suppress(OSError):
            way(side)
        self._drip()

    def close(self) -> None:
        for sock, _ in self.slow:
            sock.close()

    def _talk(self, side: str) -> None:
        """Say something and leave, politely or not, at once or after an answer."""
        with dial(self.urls[side]) as sock:
            sock.sendall(self.noise.opening(side))
            if self.random.random() < 0.5:
                sock.settimeout(0.01)
                with suppress(OSError):
                    sock.recv(4096)
            if self.random.random() < 0.5:
                reset(sock)

    def _linger(self, side: str) -> None:
        """Stay, half open or as slow as a loris."""
        self.slow.append((dial(self.urls[side]), self.noise.opening(side)))
        if len(self.slow) > OPEN_AT_ONCE:
            self.slow.pop(0)[0].close()

    def _drip(self) -> None:
        for index, (sock, rest) in enumerate(self.slow):
            if rest and self.random.random() < 0.2:
                with suppress(OSError):
                    sock.send(rest[:1])
                self.slow[index] = (sock, rest[1:])

    def _burst(self, side: str) -> None:
        """Connect and reset, many times."""
        for _ in range(20):
            with dial(self.urls[side]) as sock:
                reset(sock)

    def _secret(self, side: str) -> None:
        """Complete a TLS handshake, or break it off, and talk nonsense inside."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with dial(self.urls[side]) as sock:
            sock.settimeout(PATIENCE_S)
            with context.wrap_socket(sock) as inside:
                inside.sendall(self.noise.opening(side))
                if self.random.random() < 0.5:
                    # Bytes that are no record.
                    sock_fd = socket.socket(fileno=socket.dup(inside.fileno()))
                    with sock_fd:
                        sock_fd.sendall(self.noise.random.randbytes(50))


class Honest:
    """A pair that exchanges one message after the other, and verifies each."""

    def __init__(self, relay: RelayProcess) -> None:
        self.exchanged = 0
        self.problem = ""
        self._relay = relay
        self._enough = threading.Event()
        self._random = random.Random(1)  # noqa: S311

    def run(self) -> None:
        try:
            with Pull(self._relay.pull_url) as pull, Push(self._relay.push_url) as push:
                while not self._enough.is_set():
                    self._exchange(push, pull)
        except (StreamError, OSError) as error:
            self.problem = repr(error)

    def _exchange(self, push: Push, pull: Pull) -> None:
        sent = b"honest" + self._random.randbytes(self._random.choice([0, 100, 10_000, 300_000]))
        push.send(sent)
        # What others sent as a message is one.
        while md5(pull.recv(PATIENCE_S)) != md5(sent):
            pass
        self.exchanged += 1

    def stop(self) -> None:
        self._enough.set()


@contextmanager
def exchanging(relay: RelayProcess) -> Iterator[Honest]:
    honest = Honest(relay)
    thread = threading.Thread(target=honest.run)
    thread.start()
    try:
        until(lambda: honest.exchanged > 0 or bool(honest.problem))
        yield honest
    finally:
        honest.stop()
        thread.join()


@pytest.fixture
def identity(tmp_path: Path) -> Path:
    authority = Authority.create(tmp_path / "ca", "Test CA")
    authority.issue_service(tmp_path / "service", "buffer", hosts=["127.0.0.1"])
    return tmp_path / "service"


@pytest.mark.parametrize("lanes", [1, 2])
def test_storm_on_both_ports(nursery: Nursery, identity: Path, lanes: int) -> None:
    relay = nursery.relay(
        "--tls", str(identity), "--max-message", "1MiB", "--memory", "16MiB", "--lanes", str(lanes)
    )
    warm, storm = Storm(relay, 0), Storm(relay, 1)
    with ExitStack() as stack:
        stack.callback(warm.close)
        stack.callback(storm.close)
        honest = stack.enter_context(exchanging(relay))
        # What is allocated once is not growth.
        for _ in range(ROUNDS // 4):
            warm.visit()
        warm.close()
        # Handshakes that never come are given up after 5 s.
        settled = until_still(relay.descriptors, 6.0)
        resident = relay.resident_bytes()
        family = relay.family()
        for _ in range(ROUNDS):
            before = honest.exchanged
            storm.visit()
            until(lambda before=before: honest.exchanged > before or bool(honest.problem))  # type: ignore[misc]
            assert not honest.problem
        storm.close()
        assert relay.poll() is None
        assert relay.family() == family
        until(lambda: relay.descriptors() <= settled, what="descriptors are given back")
        assert relay.resident_bytes() <= resident + GROWTH_BYTES
    relay.terminate()
    code, report = relay.finish()
    assert code in {0, 1}
    assert report["counters"]["undelivered"] == 0
    assert report["counters"]["refused_peers"] > 0
    assert "Traceback" not in relay.log()
