"""How a consumer that acknowledges tells the end of its stream from the end of its buffer."""

import socket
import struct
from contextlib import ExitStack
from dataclasses import replace

import pytest
from tests.buffer.peers import drain, until

from lclstream.buffer import Buffer, BufferConfig, Pull, Push
from lclstream.buffer.addresses import Address
from lclstream.buffer.control import MAGIC, ControlReader, Frame
from lclstream.buffer.sp import HANDSHAKE_BYTES, Protocol, handshake, header
from lclstream.core.errors import BufferClosedError

CONFIG = BufferConfig(grace_s=0.1, linger_s=0.3, farewell_timeout_s=5.0)


def push(buffer: Buffer, messages: list[bytes]) -> None:
    with Push(buffer.push_urls) as source:
        for message in messages:
            source.send(message)


@pytest.mark.parametrize("sentinel", [False, True])
def test_end_of_the_stream(sentinel: bool) -> None:
    messages = [b"a", b"", b"c" * 300_000]
    with Buffer(replace(CONFIG, sentinel=sentinel)) as buffer:
        with Pull(buffer.pull_urls, acknowledge=True) as sink:
            push(buffer, messages)
            buffer.drain()
            assert drain(sink) == messages + [b""] * sentinel
        assert buffer.wait(20.0)
        assert buffer.is_complete


def test_buffer_that_is_gone_is_dialled_again() -> None:
    with Buffer(CONFIG) as first:
        port = int(first.pull_urls[0].rpartition(":")[2])
        with Pull(first.pull_urls, acknowledge=True, reconnect_timeout_s=20.0) as sink:
            push(first, [b"one"])
            assert bytes(sink.recv(20.0)) == b"one"
            # Between two messages, as when its process is killed.
            first.stop()
            assert first.wait(20.0)
            address = Address(host="127.0.0.1", first_port=port, last_port=port)
            with Buffer(replace(CONFIG, outputs=(address,))) as second:
                push(second, [b"two"])
                second.drain()
                assert drain(sink) == [b"two"]
                assert second.wait(20.0)


def test_buffer_that_does_not_come_back() -> None:
    with (
        Buffer(CONFIG) as buffer,
        Pull(buffer.pull_urls, acknowledge=True, reconnect_timeout_s=0.5) as sink,
    ):
        until(lambda: buffer.statistics().consumers == 1)
        push(buffer, [b"one"])
        assert bytes(sink.recv(20.0)) == b"one"
        buffer.stop()
        with pytest.raises(BufferClosedError, match=r"closed without a farewell|refused"):
            sink.recv(20.0)


@pytest.mark.parametrize("count", [1, 100])
def test_last_words_reach_a_peer_that_has_ended(count: int) -> None:
    """What comes last may be finished only when the end has been read already."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20.0)
        url = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        with ExitStack() as stack:
            sink = stack.enter_context(Pull(url, acknowledge=True))
            peer, _ = server.accept()
            stack.enter_context(peer)
            peer.settimeout(20.0)
            message = header(5) + b"hello"
            peer.sendall(handshake(Protocol.PUSH) + message * count)
            peer.shutdown(socket.SHUT_WR)
            assert drain(sink) == [b"hello"] * count
            said = bytearray()
            while part := peer.recv(4096):
                said += part
        reader = ControlReader()
        assert said.startswith(handshake(Protocol.PULL))
        frames = reader.received(bytes(said[HANDSHAKE_BYTES:]))
    assert [kind for kind, _ in frames[:2]] == [Frame.ACK, Frame.HELLO]
    assert frames[-1] == (Frame.ACK, count)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_data_that_looks_like_a_farewell_is_data(number: int) -> None:
    looks = MAGIC + struct.pack(">BQ", Frame.BYE, number)
    with Buffer(CONFIG) as buffer:
        with Pull(buffer.pull_urls, acknowledge=True) as sink:
            until(lambda: buffer.statistics().consumers == 1)
            messages = [b"one", looks, looks, b"last"]
            push(buffer, messages)
            buffer.drain()
            assert drain(sink) == messages
        assert buffer.wait(20.0)
        assert buffer.is_complete
