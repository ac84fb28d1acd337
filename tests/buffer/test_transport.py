"""What connections promise, as they are and inside TLS."""

import select
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import cycle
from pathlib import Path

import pytest
from cryptography import x509
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.buffer.certificates import Authority, anonymous_context
from tests.buffer.peers import reset, until

from lclstream.buffer.transport import (
    ClientCertificates,
    PlainWire,
    TlsWire,
    Wire,
    _plain_within,
    certified_names,
    server_context,
)
from lclstream.core.tls import Credentials

MIB = 1 << 20


@pytest.fixture(scope="module")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Credentials:
    authority = Authority(tmp_path_factory.mktemp("authority"))
    return authority.issue("localhost", x509.DNSName("localhost"), x509.RFC822Name("a@b.c"))


Pair = tuple[Wire, Wire]


def sockets() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    for sock in (client, server):
        sock.setblocking(False)
    return server, client


def shake_hands(*wires: TlsWire) -> None:
    missing = list(wires)

    def is_done() -> bool:
        for wire in list(missing):
            with suppress(BlockingIOError):
                wire.shake_hands()
                missing.remove(wire)
        return not missing

    until(is_done)


@pytest.fixture(params=["plain", "tls"])
def make_pair(
    request: pytest.FixtureRequest, credentials: Credentials
) -> Iterator[Callable[[], Pair]]:
    opened: list[socket.socket] = []

    def make() -> Pair:
        server, client = sockets()
        opened.extend((server, client))
        if request.param == "plain":
            return PlainWire(server), PlainWire(client, dialled=True)
        pair = (
            TlsWire(server, server_context(credentials)),
            TlsWire(client, credentials.client_context(), "localhost"),
        )
        shake_hands(*pair)
        return pair

    yield make
    for sock in opened:
        sock.close()


def read_some(wire: Wire, size: int) -> bytes | None:
    """Return what can be read now; None if that is nothing."""
    data = bytearray(size)
    try:
        count = wire.recv_into(memoryview(data))
    except BlockingIOError:
        return None
    return bytes(data[:count])


def carry(source: Wire, target: Wire, pieces: list[bytes], reads: Iterator[int]) -> bytes:
    """Send pieces, several at once, and the end; return what arrives.

    The reader looks only when epoll tells of something, or it was told that more is pending.
    """
    views = [memoryview(piece) for piece in pieces]
    received = bytearray()
    ended = False
    with select.epoll() as epoll:
        epoll.register(target.sock, select.EPOLLIN)
        while True:
            if views:
                with suppress(BlockingIOError):
                    count = source.sendmsg(views[:100])
                    while views and count >= len(views[0]):
                        count -= len(views.pop(0))
                    if count:
                        views[0] = views[0][count:]
            elif not ended:
                ended = source.end()
            if target.pending() or epoll.poll(1.0 if ended else 0.0):
                data = read_some(target, next(reads))
                if data == b"":
                    return bytes(received)
                received += data or b""


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.one_of(st.integers(1, 50), st.integers(1, 40_000), st.just(MIB)), min_size=1, max_size=9
    ),
    st.lists(st.integers(1, MIB), min_size=1, max_size=5),
)
def test_bytes_arrive_as_they_were_sent(
    make_pair: Callable[[], Pair], sizes: list[int], reads: list[int]
) -> None:
    server, client = make_pair()
    pieces = [(i.to_bytes(2, "big") * (size // 2 + 1))[:size] for i, size in enumerate(sizes)]
    sizes_of_reads = cycle([*reads, 100_000])
    assert carry(client, server, pieces, sizes_of_reads) == b"".join(pieces)
    # The other direction is still open.
    assert carry(server, client, pieces[:2], sizes_of_reads) == b"".join(pieces[:2])


def test_many_small_pieces(make_pair: Callable[[], Pair]) -> None:
    server, client = make_pair()
    pieces = [bytes([i % 251]) * (i % 7 + 1) for i in range(5000)]
    assert carry(server, client, pieces, cycle([1000])) == b"".join(pieces)


def fill(wire: Wire, view: memoryview) -> int:
    """Send until nothing more is taken; return how much was."""
    sent = 0
    with suppress(BlockingIOError):
        while True:
            sent += wire.send(view[sent:])
    return sent


def test_a_peer_that_does_not_read_is_waited_for(make_pair: Callable[[], Pair]) -> None:
    server, client = make_pair()
    data = memoryview(bytes(range(256)) * (64 * 4096))
    sent = fill(server, data)
    assert 0 < sent < len(data)
    with pytest.raises(BlockingIOError):
        server.send(data[sent:])
    received = bytearray()

    def is_done() -> bool:
        nonlocal sent
        if sent < len(data):
            with suppress(BlockingIOError):
                sent += server.send(data[sent:])
        received.extend(read_some(client, MIB) or b"")
        return len(received) == len(data)

    until(is_done, 30.0)
    assert received == data


def test_end_of_stream_reaches_a_peer_that_was_slow(make_pair: Callable[[], Pair]) -> None:
    """However full the connection is, nothing is cut off."""
    server, client = make_pair()
    data = memoryview(bytes(64 * MIB))
    sent = fill(server, data)
    rest = data[sent : sent + MIB]
    received = 0
    ended = False

    def is_done() -> bool:
        nonlocal received, rest, ended
        if rest:
            with suppress(BlockingIOError):
                rest = rest[server.send(rest) :]
        elif not ended:
            ended = server.end()
        data = read_some(client, 100_000)
        received += len(data or b"")
        return data == b""

    until(is_done, 30.0)
    assert received == sent + MIB


def test_kernel_acknowledgements_are_told_in_bytes_of_ours(make_pair: Callable[[], Pair]) -> None:
    server, client = make_pair()
    assert server.acknowledged_bytes(0) == 0
    data = memoryview(bytes(64 * MIB))
    sent = fill(server, data)
    assert server.acknowledged_bytes(sent) < sent
    received = 0

    def is_done() -> bool:
        nonlocal received
        received += len(read_some(client, MIB) or b"")
        # What TLS holds back was not reported as sent.
        assert server.acknowledged_bytes(sent) <= sent
        return server.acknowledged_bytes(sent) == sent

    until(is_done, 30.0)
    assert received >= sent - 16 * MIB
    client.send(memoryview(b"back"))
    until(lambda: client.acknowledged_bytes(4) == 4)


def test_reset_is_no_end(make_pair: Callable[[], Pair]) -> None:
    server, client = make_pair()
    client.send(memoryview(b"some"))
    reset(client.sock)
    client.sock.close()
    with pytest.raises(ConnectionError):
        until(lambda: read_some(server, 100) == b"")


@pytest.fixture
def tls_pair(credentials: Credentials) -> Iterator[tuple[TlsWire, TlsWire]]:
    server_sock, client_sock = sockets()
    with server_sock, client_sock:
        server = TlsWire(server_sock, server_context(credentials))
        client = TlsWire(client_sock, credentials.client_context(), "localhost")
        shake_hands(server, client)
        yield server, client


def test_tls_that_is_cut_is_no_end(tls_pair: tuple[TlsWire, TlsWire]) -> None:
    server, client = tls_pair
    client.send(memoryview(b"some"))
    client.sock.shutdown(socket.SHUT_WR)
    until(lambda: read_some(server, 4) == b"some")
    with pytest.raises(ConnectionResetError, match="closed without the end of TLS"):
        server.recv_into(memoryview(bytearray(9)))


def test_bytes_that_are_not_tls_break_it(tls_pair: tuple[TlsWire, TlsWire]) -> None:
    server, client = tls_pair
    client.send(memoryview(b"before"))
    client.sock.send(b"\x17\x03\x03\x00\x20" + bytes(32))
    client.sock.send(b"GET / HTTP/1.1")
    received = bytearray()

    def read_on() -> bool:
        received.extend(read_some(server, 100) or b"")
        return False

    with pytest.raises(ssl.SSLError):
        until(read_on)
    assert received == b"before"


def test_end_keeps_what_has_come_for_the_reader(tls_pair: tuple[TlsWire, TlsWire]) -> None:
    server, client = tls_pair
    client.send(memoryview(bytes(3000)))
    until(lambda: read_some(server, 1000) is not None)
    assert server.pending()
    assert server.end()
    assert read_some(server, 1500) == bytes(1500)
    assert read_some(server, 1500) == bytes(500)
    client.send(memoryview(b"later"))
    until(lambda: read_some(server, 9) == b"later")
    assert client.end()
    until(lambda: read_some(server, 9) == b"")


def test_names_of_the_peer(tls_pair: tuple[TlsWire, TlsWire]) -> None:
    for wire in tls_pair:
        assert wire.peer_names() == ["localhost", "a@b.c", "localhost"]
    assert certified_names({}) == []


def test_who_closes_in_the_handshake(credentials: Credentials) -> None:
    server, client = sockets()
    with server:
        wire = TlsWire(server, server_context(credentials))
        with client, pytest.raises(BlockingIOError):
            wire.shake_hands()
        with pytest.raises(ConnectionAbortedError, match="closed in the handshake"):
            until(wire.shake_hands)


@pytest.mark.parametrize("clients", ClientCertificates)
def test_client_certificates(
    credentials: Credentials, tmp_path: Path, clients: ClientCertificates
) -> None:
    stranger = Authority(tmp_path).issue("stranger")
    foreign = ssl.create_default_context(cafile=str(credentials.authorities))
    foreign.load_cert_chain(stranger.certificate, stranger.key)
    contexts = {
        "trusted": credentials.client_context(),
        "none": anonymous_context(credentials),
        "foreign": foreign,
    }
    is_let_in = {}
    for kind, context in contexts.items():
        server, client = sockets()
        with server, client:
            wire = TlsWire(server, server_context(credentials, clients))
            try:
                shake_hands(wire, TlsWire(client, context, "localhost"))
            except OSError:
                is_let_in[kind] = False
            else:
                is_let_in[kind] = True
                shown = ["localhost", "a@b.c", "localhost"] if kind == "trusted" else []
                if clients is ClientCertificates.NONE:
                    shown = []
                assert wire.peer_names() == shown
    assert is_let_in == {
        "trusted": True,
        "none": clients is not ClientCertificates.REQUIRED,
        "foreign": clients is ClientCertificates.NONE,
    }


@pytest.mark.parametrize(
    ("raw", "raw_size", "size", "plain"),
    [
        (16_405, 40_066, 40_000, 0),
        (16_406, 40_066, 40_000, 16_384),
        (40_065, 40_066, 40_000, 32_768),
        # Another word of TLS lies somewhere in it.
        (40_065, 40_099, 40_000, 0),
        (99, 122, 100, 0),
    ],
)
def test_whole_records_tell_what_has_arrived(
    raw: int, raw_size: int, size: int, plain: int
) -> None:
    assert _plain_within(raw, raw_size, size) == plain
