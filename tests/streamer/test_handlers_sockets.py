"""Sockets beside the plain case: pieces, mirrors, ends, ranges of ports, TLS, CrystFEL."""

import ipaddress
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pynng
import pytest
import zmq
from cryptography import x509
from tests.buffer.certificates import Authority
from tests.streamer.conftest import wait_until
from zmq.utils.garbage import gc as collector

from lclstream.buffer.endpoints import Pull
from lclstream.core.errors import (
    DeliveryError,
    EndOfStream,
    InvalidConfigError,
    UnavailableError,
)
from lclstream.core.tls import Credentials
from lclstream.streamer.config import (
    BinaryDataStreamingDataHandlerConfig,
    CrystfelRequestDataHandlerConfig,
    Parameters,
    parse_parameters,
)
from lclstream.streamer.handlers import Handler, open_handler, open_handlers
from lclstream.streamer.handlers.crystfel import CrystfelRequestDataHandler
from lclstream.streamer.handlers.nng import NngPushHandler
from lclstream.streamer.handlers.zeromq import ZmqPushHandler
from lclstream.streamer.message import Message
from lclstream.streamer.rank import Place

ONLY = Place(0, 1)
WAIT_MS = 20_000
SIZES = [0, 1, 3000, 40_000, 1, 700_000]


@pytest.fixture(autouse=True)
def zmq_collector() -> Iterator[None]:
    """End the thread that pyzmq keeps for the whole process."""
    yield
    collector.stop()


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    with zmq.Context() as made:
        yield made


def message(*parts: bytes, events: int = 1) -> Message:
    return Message(tuple(memoryview(part) for part in parts), events)


def socket_config(*urls: str, **options: Any) -> BinaryDataStreamingDataHandlerConfig:
    return BinaryDataStreamingDataHandlerConfig.model_validate({"urls": list(urls), **options})


def with_handlers(*handlers: dict[str, Any]) -> Parameters:
    return parse_parameters(
        {
            "event_source": {"type": "InternalEventSource", "number_of_events_to_generate": 1},
            "data_sources": {"x": {"type": "FloatValue", "value": 1}},
            "processing_pipeline": {"type": "BatchProcessingPipeline", "batch_size": 1},
            "data_serializer": {"type": "HDF5BinarySerializer"},
            "data_handlers": list(handlers),
        }
    )


@contextmanager
def pulling(library: str) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yield the address of a receiver of another program, and its `recv`."""
    if library == "nng":
        with pynng.Pull0(recv_timeout=WAIT_MS) as nng:
            nng.listen("tcp://127.0.0.1:0")

            def receive_nng() -> bytes:
                try:
                    return bytes(nng.recv())
                except RuntimeError:
                    # How pynng takes an empty message.
                    return b""

            yield f"tcp://{nng.listeners[0].local_address}", receive_nng
        return
    with zmq.Context() as context, context.socket(zmq.PULL) as pull:
        pull.set(zmq.RCVTIMEO, WAIT_MS)
        port = pull.bind_to_random_port("tcp://127.0.0.1")

        def receive() -> bytes:
            (frame,) = pull.recv_multipart()
            return frame

        yield f"tcp://127.0.0.1:{port}", receive


@pytest.mark.parametrize("library", ["nng", "zmq"])
def test_pieces_arrive_as_one_message(library: str) -> None:
    pieces = [tuple(bytes([n]) * size for n, size in enumerate(SIZES[:k])) for k in range(7)]
    memories = [[bytearray(piece) for piece in each] for each in pieces]
    with pulling(library) as (url, receive):
        handler = open_handler(socket_config(url, library=library), ONLY)
        got: list[bytes] = []
        for memory in memories:
            handler.send(Message(tuple(memoryview(piece) for piece in memory), 1))
            # It belongs to the next message now.
            for piece in memory:
                piece[:] = b"\xff" * len(piece)
            got.append(receive())
        handler.close()
    assert got == [b"".join(each) for each in pieces]


@pytest.mark.parametrize("library", ["nng", "zmq"])
def test_a_mirror_gives_everything_to_every_url(library: str) -> None:
    with pulling(library) as (one, receive_one), pulling(library) as (two, receive_two):
        document = {
            "type": "BinaryDataStreamingDataHandler", "urls": [one, two], "library": library,
            "mirror": True,
        }  # fmt: skip
        opened = list(open_handlers(with_handlers(document), ONLY))
        assert [name for name, _ in opened] == ["0.0", "0.1"]
        for number in range(20):
            for _, handler in opened:
                handler.send(message(b"%d" % number))
        wanted = [b"%d" % number for number in range(20)]
        assert [receive_one() for _ in wanted] == [receive_two() for _ in wanted] == wanted
        for _, handler in opened:
            handler.close()


def test_mirror_and_distribute_exclude_each_other() -> None:
    with pytest.raises(ValueError, match=r"mirror gives every url every message"):
        socket_config("tcp://127.0.0.1:1", mirror=True, distribute=True)


@pytest.mark.parametrize("library", ["nng", "zmq"])
def test_an_empty_message_says_the_end_to_every_url(library: str) -> None:
    with pulling(library) as (one, receive_one), pulling(library) as (two, receive_two):
        handler = open_handler(socket_config(one, two, library=library, end_of_stream=True), ONLY)
        for number in range(20):
            handler.send(message(b"%d" % number))
        handler.close()
        received: list[bytes] = []
        for receive in (receive_one, receive_two):
            while received[-1:] != [b""]:
                received.append(receive())
            received.pop()
    assert sorted(received, key=int) == [b"%d" % number for number in range(20)]


@pytest.mark.parametrize("complete", [True, False])
def test_no_end_is_said_unless_it_is_one_and_asked_for(complete: bool) -> None:
    with Pull("tcp://127.0.0.1:0", listen=True) as pull:
        config = socket_config(pull.urls[0], library="nng", end_of_stream=not complete)
        handler = open_handler(config, ONLY)

        def produce() -> None:
            handler.send(message(b"one"))
            handler.close(complete=complete)

        with in_thread(produce):
            assert bytes(pull.recv(20)) == b"one"
            with pytest.raises(EndOfStream):
                pull.recv(20)


def test_an_end_is_told_to_everybody_who_has_dialled() -> None:
    handler = open_handler(
        socket_config("tcp://127.0.0.1:0", library="nng", role="server", end_of_stream=True), ONLY
    )
    assert isinstance(handler, NngPushHandler)
    got: list[list[bytes]] = [[], [], []]

    def consume(messages: list[bytes]) -> None:
        with Pull(handler.urls) as pull:
            while not messages or messages[-1]:
                messages.append(bytes(pull.recv(20)))

    with ExitStack() as stack:
        for each in got:
            stack.enter_context(in_thread(partial(consume, each)))
        wait_until(lambda: handler._push._sender.look() and len(handler._push._links.ready) == 3)
        for number in range(9):
            handler.send(message(b"%d" % number))
        handler.close()
    assert all(messages[-1] == b"" and b"" not in messages[:-1] for messages in got)
    assert sorted(part for messages in got for part in messages[:-1]) == [
        b"%d" % n for n in range(9)
    ]


def test_an_end_without_messages_waits_for_a_receiver() -> None:
    with pulling("nng") as (url, receive):
        handler = open_handler(socket_config(url, library="nng", end_of_stream=True), ONLY)
        handler.close()
        assert receive() == b""


@pytest.mark.parametrize("library", ["nng", "zmq"])
def test_ranks_of_a_host_share_a_range_of_ports(library: str) -> None:
    with pynng.Pull0() as taken:
        taken.listen("tcp://127.0.0.1:0")
        first = int(str(taken.listeners[0].local_address).rpartition(":")[2])
        url = f"tcp://127.0.0.1:{first}-{min(first + 40, 65535)}"
        config = socket_config(url, library=library, role="server")
        handlers = [open_handler(config, Place(rank, 3)) for rank in range(3)]
        found = []
        for handler in handlers:
            assert isinstance(handler, NngPushHandler | ZmqPushHandler)
            found.append(int(handler.urls[0].rpartition(":")[2]))
            handler.abort()
    assert first not in found
    assert found == sorted(set(found))
    assert found[-1] <= first + 40


@pytest.mark.parametrize("library", ["nng", "zmq"])
def test_ranks_that_want_the_same_port_are_told_of_ranges(library: str) -> None:
    with pynng.Pull0() as taken:
        taken.listen("tcp://127.0.0.1:0")
        url = f"tcp://{taken.listeners[0].local_address}"
        config = socket_config(url, library=library, role="server")
        text = rf"^cannot listen on {url}: Address already in use: ranks of one host .* range"
        with pytest.raises(InvalidConfigError, match=text):
            open_handler(config, Place(1, 2))


@pytest.mark.parametrize(
    "url",
    ["tcp://host:70000", "tcp://host:9-8", "tcp://host", "tcp://:5", "tcp://h:a", "tcp://h:1-"],
)
def test_addresses_that_cannot_be(url: str) -> None:
    with pytest.raises(ValueError, match=r"must be tcp://HOST:PORT"):
        socket_config(url, role="server")


def test_only_a_server_has_a_range() -> None:
    with pytest.raises(ValueError, match=r"only a server can have a range of ports"):
        socket_config("tcp://127.0.0.1:5-9")


# TLS.


@pytest.fixture
def local(tmp_path: Path) -> Credentials:
    name = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    return Authority(tmp_path / "authority").issue("local", name)


@pytest.mark.parametrize("job", [False, True])
def test_messages_go_through_tls(
    local: Credentials, job: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = local.certificate.parent
    if job:
        monkeypatch.setenv("LCLSTREAM_IDENTITY", str(folder))
    with Pull("tls+tcp://127.0.0.1:0", listen=True, tls=local) as pull:
        identity = "" if job else str(folder)
        config = socket_config(pull.urls[0], library="nng", identity=identity)

        def produce() -> None:
            handler = open_handler(config, ONLY)
            handler.send(message(b"secret", b"ly"))
            handler.close()

        with in_thread(produce):
            assert bytes(pull.recv(20)) == b"secretly"
            with pytest.raises(EndOfStream):
                pull.recv(20)


@contextmanager
def in_thread(work: Callable[[], None]) -> Iterator[None]:
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join(20)
        assert not thread.is_alive()


def test_tls_needs_an_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LCLSTREAM_IDENTITY", raising=False)
    config = socket_config("tls+tcp://127.0.0.1:1", library="nng")
    with pytest.raises(InvalidConfigError, match=r"^tls\+tcp needs an identity: the folder with"):
        open_handler(config, ONLY)


# CrystFEL.


class Worker:
    """One worker of indexamajig: a REQ socket, which asks and waits."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", url: str) -> None:
        self.socket = context.socket(zmq.REQ)
        self.socket.set(zmq.RCVTIMEO, WAIT_MS)
        self.socket.set(zmq.LINGER, 0)
        self.socket.connect(url)

    def ask(self, request: bytes = b"next") -> None:
        self.socket.send(request)

    def get(self) -> bytes:
        return self.socket.recv()


def crystfel(**options: Any) -> CrystfelRequestDataHandler:
    config = CrystfelRequestDataHandlerConfig.model_validate(
        {"url": "tcp://127.0.0.1:0", "send_timeout_s": 20, **options}
    )
    handler: Handler = open_handler(config, ONLY)
    assert isinstance(handler, CrystfelRequestDataHandler)
    return handler


def event(number: int) -> bytes:
    return b"event number %09d" % number


def test_workers_share_the_events(context: "zmq.Context[zmq.Socket[bytes]]") -> None:
    handler = crystfel()
    workers = [Worker(context, handler.url) for _ in range(3)]
    # They ask long before there is anything, and go on waiting.
    for worker in workers:
        worker.ask()
    for number in range(3):
        handler.send(message(event(number)[:9], event(number)[9:]))
    assert sorted(worker.get() for worker in workers) == [event(number) for number in range(3)]
    for number in range(3, 12):
        asking = workers[number % 2]
        asking.ask()
        handler.send(message(event(number)))
        assert asking.get() == event(number)
    # An answer that has left is received although nobody is there any more.
    workers[2].ask()
    handler.send(message(event(12)))
    handler.close()
    assert workers[2].get() == event(12)
    for worker in workers:
        worker.socket.close()


def test_an_event_of_a_worker_that_is_gone_goes_to_the_next(
    context: "zmq.Context[zmq.Socket[bytes]]",
) -> None:
    handler = crystfel()
    gone = Worker(context, handler.url)
    gone.ask()
    # Its request has arrived.
    assert handler._socket.poll(WAIT_MS)
    gone.socket.close()
    late = Worker(context, handler.url)
    late.ask()
    sent = threading.Event()

    def send_all() -> None:
        for number in range(3):
            handler.send(message(event(number)))
        sent.set()

    with in_thread(send_all):
        got: list[bytes] = []
        while not sent.is_set() or len(got) < 2:
            got.append(late.get())
            if len(got) < 3:
                late.ask()
            if got[-1] == event(2):
                break
    handler.close()
    late.socket.close()
    # At most the one that was on the way when it went.
    assert got in ([event(0), event(1), event(2)], [event(1), event(2)])


def test_what_nobody_asks_for_is_not_delivered() -> None:
    handler = crystfel(send_timeout_s=0.1)
    with pytest.raises(UnavailableError, match=r"^no worker has asked within 0\.1 s: tcp://"):
        handler.send(message(event(0)))
    handler.abort()


def test_other_requests_get_no_event(context: "zmq.Context[zmq.Socket[bytes]]") -> None:
    handler = crystfel()
    stranger, worker = Worker(context, handler.url), Worker(context, handler.url)
    stranger.ask(b"give me all")
    assert handler._socket.poll(WAIT_MS)
    worker.ask()
    handler.send(message(event(7)))
    assert worker.get() == event(7)
    handler.close()
    for each in (stranger, worker):
        each.socket.close()


def test_messages_that_crystfel_cannot_take() -> None:
    handler = crystfel()
    with pytest.raises(DeliveryError, match=r"^CrystFEL takes one event each, not 3 together$"):
        handler.send(message(event(0), events=3))
    with pytest.raises(DeliveryError, match=r"^CrystFEL ignores messages of 15 bytes$"):
        handler.send(message(b"x" * 15))
    # What only accompanies the events is not for it.
    handler.send(message(b"header", events=0))
    handler.abort()


def test_batches_for_crystfel_are_a_mistake() -> None:
    handler = {"type": "CrystfelRequestDataHandler", "url": "tcp://127.0.0.1:0"}
    document = with_handlers(handler).model_dump(mode="json")
    document["processing_pipeline"]["batch_size"] = 2
    with pytest.raises(InvalidConfigError, match=r"one event in each message: set batch_size to 1"):
        parse_parameters(document)
