"""Producers and consumers inside TLS: who is let in, and that nothing is lost on the way."""

import ipaddress
import random
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pynng
import pytest
from cryptography import x509
from tests.buffer.certificates import Authority, anonymous_context
from tests.buffer.peers import PULL_HANDSHAKE, PUSH_HANDSHAKE, drain, until
from tests.buffer.test_relay import md5
from tests.buffer.test_zmtp_peers import read_exactly, read_to_the_end

from lclstream.buffer import Buffer, BufferConfig, Pull, Push
from lclstream.buffer.addresses import Address
from lclstream.buffer.config import Delivery
from lclstream.buffer.control import FRAME_BYTES, Frame, frame
from lclstream.buffer.sp import Protocol, header
from lclstream.buffer.transport import ClientCertificates, server_context
from lclstream.buffer.zmtp import GREETING, ready
from lclstream.buffer.zmtp import header as frame_header
from lclstream.core.errors import InvalidConfigError
from lclstream.core.tls import Credentials

MIB = 1 << 20
QUICK = BufferConfig(grace_s=0.1, linger_s=0.3, farewell_timeout_s=5.0)
END_S = 30.0
TIMEOUT_MS = 30_000
LOCAL = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
SPIFFE = "spiffe://example.org/alice"


@dataclass(frozen=True)
class Site:
    """Who has certificates."""

    server: Credentials
    alice: Credentials
    bob: Credentials
    stranger: Credentials

    def config(
        self,
        clients: ClientCertificates = ClientCertificates.REQUIRED,
        base: BufferConfig = QUICK,
        **changes: object,
    ) -> BufferConfig:
        """Return the configuration of a buffer of this site."""
        context = server_context(self.server, clients)
        return replace(base, tls=context, **changes)  # type: ignore[arg-type]


def build(folder: Path, kind: str) -> Site:
    authority, other = Authority(folder, kind), Authority(folder / "other", kind)
    return Site(
        authority.issue("buffer", LOCAL, x509.DNSName("localhost")),
        authority.issue("alice", x509.UniformResourceIdentifier(SPIFFE)),
        authority.issue("bob"),
        other.issue("alice"),
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return build(tmp_path_factory.mktemp("ed25519"), "ed25519")


@pytest.fixture(scope="module")
def p256(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """For pynng, whose TLS library knows no Ed25519."""
    return build(tmp_path_factory.mktemp("p256"), "p256")


def tls_url(url: str) -> str:
    return url.replace("tcp://", "tls+tcp://")


def address(url: str) -> tuple[str, int]:
    host, port = url.rpartition("//")[2].split(":")
    return host, int(port)


@contextmanager
def connected(url: str, context: ssl.SSLContext) -> Iterator[ssl.SSLSocket]:
    """Connect with the standard library; the buffer's name is checked."""
    with (
        socket.create_connection(address(url), timeout=10) as sock,
        context.wrap_socket(sock, server_hostname="127.0.0.1") as wrapped,
    ):
        yield wrapped


def pynng_tls(site: Site, who: Credentials) -> pynng.TLSConfig:
    pair = (who.certificate.read_text(), who.key.read_text())
    return pynng.TLSConfig(
        pynng.TLSConfig.MODE_CLIENT,
        server_name="localhost",
        ca_string=site.server.authorities.read_text(),
        own_key_string=pair[1],
        own_cert_string=pair[0],
        auth_mode=pynng.TLSConfig.AUTH_MODE_REQUIRED,
    )


SIZES = [0, 1, 100, 16_384, 131_064, 131_072, MIB, 3_000_000]


def some_messages(seed: int, count: int) -> list[bytes]:
    source = random.Random(seed)  # noqa: S311
    return [source.randbytes(source.choice(SIZES)) for _ in range(count)]


@pytest.mark.parametrize("delivery", Delivery)
def test_tls_and_plain_peers_of_all_kinds_together(p256: Site, delivery: Delivery) -> None:
    """NNG and ours in TLS and without, on the same ports; the bound is small enough to be hit."""
    streams = {seed: some_messages(seed, 25) for seed in range(4)}
    total = sum(map(len, streams.values()))
    received: list[str] = []
    lock = threading.Lock()

    def produce_nng(seed: int) -> None:
        url = buffer.push_urls[0]
        with ExitStack() as stack:
            push = stack.enter_context(pynng.Push0(send_timeout=TIMEOUT_MS))
            if seed == 0:
                push.tls_config = pynng_tls(p256, p256.alice)
                url = tls_url(url).replace("127.0.0.1", "localhost")
            push.dial(url, block=True)
            for message in streams[seed]:
                push.send(message)
            # It has no linger: stay until the buffer has taken everything.
            until(lambda: buffer.statistics().received.messages == total, 60.0)

    def produce_ours(seed: int) -> None:
        url = buffer.push_urls[0]
        tls = p256.bob if seed == 2 else None
        with Push(tls_url(url) if tls else url, tls=tls, delivery=delivery) as push:
            for message in streams[seed]:
                push.send(message)

    def consume_ours(tls: Credentials | None) -> None:
        url = buffer.pull_urls[0]
        with Pull(tls_url(url) if tls else url, tls=tls) as pull:
            digests = [md5(message) for message in drain(pull, END_S)]
        with lock:
            received.extend(digests)

    def consume_nng() -> None:
        gone = threading.Event()
        digests = []
        with pynng.Pull0(recv_timeout=100, tls_config=pynng_tls(p256, p256.bob)) as pull:
            pull.add_post_pipe_remove_cb(lambda pipe: gone.set())
            pull.dial(tls_url(buffer.pull_urls[0]).replace("127.0.0.1", "localhost"))
            while True:
                try:
                    message = pull.recv_msg()
                except pynng.Timeout:
                    if gone.is_set():
                        break
                else:
                    digests.append(md5(bytes(message._buffer or b"")))
        with lock:
            received.extend(digests)

    config = p256.config(memory_bytes=MIB, delivery=delivery, expect_producers=4)
    with Buffer(config) as buffer:
        work = [
            threading.Thread(target=produce_nng if seed < 2 else produce_ours, args=(seed,))
            for seed in streams
        ]
        work += [threading.Thread(target=consume_ours, args=(tls,)) for tls in (p256.alice, None)]
        work.append(threading.Thread(target=consume_nng))
        for thread in work:
            thread.start()
        for thread in work:
            thread.join()
        assert buffer.wait(END_S)
        final = buffer.statistics()
        assert buffer.is_complete, final
    expected = [md5(message) for messages in streams.values() for message in messages]
    assert Counter(received) == Counter(expected)
    assert final.received.messages == final.sent.messages == total
    identities = Counter(peer.identity for peer in final.peers)
    assert identities == {"": 3, SPIFFE: 2, "bob": 2}


def test_ed25519_and_zmtp_inside_tls(site: Site) -> None:
    messages = [b"", b"x" * 300, bytes(MIB), b"last"]
    with (
        Buffer(site.config()) as buffer,
        connected(buffer.push_urls[0], site.alice.client_context()) as push,
        connected(buffer.pull_urls[0], site.bob.client_context()) as pull,
    ):
        assert push.version() == "TLSv1.3"
        push.sendall(GREETING + ready(Protocol.PUSH))
        assert read_exactly(push, 92) == GREETING + ready(Protocol.PULL)
        pull.sendall(GREETING[:10])
        assert read_exactly(pull, 64) == GREETING
        pull.sendall(GREETING[10:] + ready(Protocol.PULL))
        assert read_exactly(pull, 28) == ready(Protocol.PUSH)
        wire = b"".join(frame_header(len(one)) + one for one in messages)
        push.sendall(wire)
        assert read_exactly(pull, len(wire)) == wire
        push.unwrap()
        until(lambda: buffer.statistics().producers == 0)
        buffer.drain()
        # The end of the stream is TLS's end, too.
        assert pull.recv(1) == b""
        pull.unwrap()
        pull.shutdown(socket.SHUT_WR)
        assert buffer.wait(END_S)
        assert buffer.is_complete


def test_stream_that_is_cut(site: Site) -> None:
    """Between two messages it may be NNG, which closes like that; inside one it is a loss."""
    with Buffer(site.config()) as buffer:
        for number, rest in enumerate([b"", header(9) + b"half"]):
            with connected(buffer.push_urls[0], site.alice.client_context()) as push:
                push.sendall(PUSH_HANDSHAKE + header(5) + b"whole" + rest)
                read_exactly(push, len(PULL_HANDSHAKE) + FRAME_BYTES)
                until(lambda: buffer.statistics().received.messages == number + 1)  # noqa: B023
            until(lambda: buffer.statistics().producers == 0)
            assert buffer.statistics().counters.partial_in == number
        assert buffer.statistics().counters.producers_broken == 0
        for record in buffer.statistics().peers:
            assert "closed without the end of TLS" in record.end
        buffer.stop()


def test_own_stream_that_is_cut_is_unfinished(site: Site) -> None:
    """It says how many messages there were, so nobody can shorten it unseen."""
    config = site.config(resume_timeout_s=0.1)
    with Buffer(config) as buffer, Pull(buffer.pull_urls) as pull:
        with connected(buffer.push_urls[0], site.alice.client_context()) as push:
            push.sendall(PUSH_HANDSHAKE)
            greeting = read_exactly(push, len(PULL_HANDSHAKE) + FRAME_BYTES)
            ours = greeting[-FRAME_BYTES:] + frame(Frame.STREAM, 77 << 16)
            push.sendall(ours + header(5) + b"whole")
            until(lambda: buffer.statistics().received.messages == 1)
        buffer.drain()
        assert drain(pull) == [b"whole"]
        assert buffer.wait(END_S)
        assert not buffer.is_complete
        assert buffer.statistics().counters.producers_unfinished == 1


def reasons_of(caplog: pytest.LogCaptureFixture) -> str:
    records = [vars(record) for record in caplog.records if record.msg == "peer_refused"]
    return " | ".join(str(record["reason"]) for record in records)


def try_to_push(url: str, context: ssl.SSLContext | None) -> None:
    """Say as much as one is let to."""
    with socket.create_connection(address(url), timeout=10) as sock:
        try:
            if context is not None:
                sock = context.wrap_socket(sock, server_hostname="127.0.0.1")
            with sock:
                sock.sendall(PUSH_HANDSHAKE)
                read_to_the_end(sock)
        except OSError:
            # That is how it should be told.
            pass


@pytest.mark.parametrize(
    ("who", "reason"),
    [
        ("anonymous", "PEER_DID_NOT_RETURN_A_CERTIFICATE"),
        ("stranger", "CERTIFICATE_VERIFY_FAILED"),
        ("plain", "TLS is required"),
        ("bob", "a certificate for bob is not on the list of allowed names"),
        ("cut", "closed in the handshake"),
        ("old", "UNSUPPORTED_PROTOCOL"),
        ("noise", "WRONG_VERSION_NUMBER"),
    ],
)
def test_who_is_refused(
    site: Site, caplog: pytest.LogCaptureFixture, who: str, reason: str
) -> None:
    contexts = {
        "anonymous": anonymous_context(site.server),
        "stranger": foreign_context(site),
        "plain": None,
        "bob": site.bob.client_context(),
        "old": old_context(site),
    }
    config = site.config(allowed_names=(SPIFFE,))
    with Buffer(config) as buffer:
        url = buffer.push_urls[0]
        if who in contexts:
            try_to_push(url, contexts[who])
        else:
            with socket.create_connection(address(url), timeout=10) as sock:
                sock.sendall(b"\x16\x03\x01\x02\x00\x01" if who == "cut" else b"\x16GET / HTTP")
                sock.shutdown(socket.SHUT_WR)
                read_to_the_end(sock)
        until(lambda: buffer.statistics().counters.refused_peers == 1)
        # Others are served.
        with (
            Push(tls_url(url), tls=site.alice) as push,
            Pull(tls_url(buffer.pull_urls[0]), tls=site.alice) as pull,
        ):
            push.send(b"still here")
            assert bytes(pull.recv(10.0)) == b"still here"
        buffer.stop()
    assert reason in reasons_of(caplog)


def foreign_context(site: Site) -> ssl.SSLContext:
    """Return the context of a client with the right name from a wrong authority."""
    context = anonymous_context(site.server)
    context.load_cert_chain(site.stranger.certificate, site.stranger.key)
    return context


def old_context(site: Site) -> ssl.SSLContext:
    context = site.alice.client_context()
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


def test_slow_handshake_is_closed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lclstream.buffer.door.HANDSHAKE_TIMEOUT_S", 0.2)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    hello = site.alice.client_context().wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    with pytest.raises(ssl.SSLWantReadError):
        hello.do_handshake()
    with Buffer(site.config()) as buffer:
        for said in (b"\x16", outgoing.read()):
            with socket.create_connection(address(buffer.push_urls[0]), timeout=10) as sock:
                sock.sendall(said)
                read_to_the_end(sock)
        with connected(buffer.push_urls[0], site.alice.client_context()) as inside:
            inside.sendall(PUSH_HANDSHAKE[:3])
            # What it says first is no longer than what it has said.
            read_to_the_end(inside)
        assert buffer.statistics().counters.refused_peers == 3
        buffer.stop()


def test_certificates_may_be_optional(site: Site) -> None:
    with Buffer(site.config(ClientCertificates.OPTIONAL)) as buffer:
        with connected(buffer.push_urls[0], anonymous_context(site.server)) as push:
            push.sendall(PUSH_HANDSHAKE + header(9) + b"anonymous")
            read_exactly(push, len(PULL_HANDSHAKE) + FRAME_BYTES)
            push.unwrap()
        with Pull(buffer.pull_urls) as pull:
            assert bytes(pull.recv(10.0)) == b"anonymous"
        buffer.stop()


def test_addresses_with_tls_take_nothing_else(site: Site) -> None:
    inputs = (Address.parse("tls+tcp://127.0.0.1:0"), Address.parse("0"))
    with Buffer(site.config(inputs=inputs)) as buffer:
        secured, either = buffer.push_urls
        assert secured.startswith("tls+tcp://")
        try_to_push(secured, None)
        until(lambda: buffer.statistics().counters.refused_peers == 1)
        with (
            Push(either) as plain,
            Push(secured, tls=site.alice) as inside,
            Pull(buffer.pull_urls) as pull,
        ):
            plain.send(b"a")
            inside.send(b"b")
            assert {bytes(pull.recv(10.0)), bytes(pull.recv(10.0))} == {b"a", b"b"}
        buffer.stop()


def test_what_needs_a_certificate_says_so() -> None:
    with pytest.raises(InvalidConfigError, match="addresses with tls\\+tcp:// need tls"):
        replace(QUICK, inputs=(Address.parse("tls+tcp://127.0.0.1:0"),))
    with pytest.raises(InvalidConfigError, match="require_tls needs tls"):
        replace(QUICK, require_tls=True)
    with pytest.raises(InvalidConfigError, match="allowed_names need tls"):
        Buffer(replace(QUICK, allowed_names=("alice",)))


def test_consumer_in_tls_that_dies_loses_nothing_its_kernel_had_not(site: Site) -> None:
    """What is acknowledged is told in encrypted bytes; requeued are messages."""
    messages = [i.to_bytes(2, "big") * 20_000 for i in range(800)]
    config = site.config(delivery=Delivery.SAFE, memory_bytes=64 * MIB)
    with Buffer(config) as buffer:
        with connected(buffer.pull_urls[0], site.alice.client_context()) as raw:
            raw.sendall(PULL_HANDSHAKE)
            assert read_exactly(raw, 8) == PUSH_HANDSHAKE
            with Push(buffer.push_urls) as push:
                for message in messages:
                    push.send(message)
            until(lambda: buffer.statistics().received.messages == len(messages))
        with Pull(buffer.pull_urls) as pull:
            buffer.drain()
            rest = drain(pull)
        assert buffer.wait(END_S)
        final = buffer.statistics()
    assert rest == messages[len(messages) - len(rest) :]
    assert 0 < len(rest) < len(messages)
    assert final.sent.messages == len(messages)
