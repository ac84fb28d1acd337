"""The ends inside TLS: against each other, and through a buffer with safe delivery."""

import asyncio
import ipaddress
from pathlib import Path

import pytest
from cryptography import x509
from tests.buffer.certificates import Authority
from tests.buffer.peers import drain, in_thread

from lclstream.buffer.aio import AsyncPull, AsyncPush
from lclstream.buffer.config import BufferConfig, Delivery
from lclstream.buffer.endpoints import Pull, Push
from lclstream.buffer.relay import Buffer
from lclstream.core.errors import InvalidConfigError, UnavailableError
from lclstream.core.tls import Credentials

LOCAL = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
SIZES = [1, 1000, 16_384, 131_072, 700_000]
MESSAGES = [bytes([i % 251]) * SIZES[i % len(SIZES)] for i in range(60)] + [b"", b"end"]
LISTEN = "tls+tcp://127.0.0.1:0"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def local(authority: Authority) -> Credentials:
    return authority.issue("local", LOCAL)


def test_push_dials(local: Credentials) -> None:
    with Pull(LISTEN, listen=True, tls=local) as pull:
        assert pull.urls[0].startswith("tls+tcp://127.0.0.1:")

        def produce() -> None:
            with Push(pull.urls, tls=local.client_context()) as push:
                for message in MESSAGES:
                    push.send(message)

        with in_thread(produce):
            assert drain(pull) == MESSAGES


def test_pull_dials(local: Credentials) -> None:
    with Push(LISTEN, listen=True, tls=local) as push, Pull(push.urls, tls=local) as pull:

        def produce() -> None:
            for message in MESSAGES:
                push.send(message)
            push.close()

        with in_thread(produce):
            assert drain(pull) == MESSAGES


def test_server_of_another_name_is_refused(authority: Authority, local: Credentials) -> None:
    other = authority.issue("other", x509.DNSName("dtn.example.org"))
    with (
        Pull(LISTEN, listen=True, tls=other) as pull,
        in_thread(lambda: hear_nothing(pull)),
    ):
        push = Push(pull.urls, tls=local, send_timeout_s=0.5)
        with pytest.raises(UnavailableError, match=r"(?i)certificate"):
            push.send(b"secret")
        push.abort()


def hear_nothing(pull: Pull) -> None:
    with pytest.raises(TimeoutError):
        pull.recv(1.0)


def test_client_of_another_authority_is_refused(tmp_path: Path, local: Credentials) -> None:
    stranger = Authority(tmp_path).issue("stranger", LOCAL)
    with (
        Pull(LISTEN, listen=True, tls=local) as pull,
        in_thread(lambda: hear_nothing(pull)),
    ):
        push = Push(pull.urls, tls=stranger, send_timeout_s=0.5)
        with pytest.raises(UnavailableError):
            push.send(b"x")
        push.abort()


def test_address_with_tls_needs_it() -> None:
    for end in (Push, Pull):
        with pytest.raises(InvalidConfigError, match=r"^tls must be given for tls\+tcp addresses$"):
            end("tls+tcp://127.0.0.1:1")


@pytest.mark.anyio
async def test_safely_through_a_buffer(local: Credentials) -> None:
    config = BufferConfig(
        delivery=Delivery.SAFE, expect_producers=1, grace_s=0.1, tls=local.server_context()
    )
    with Buffer(config) as buffer:

        async def produce() -> None:
            url = buffer.push_urls[0].replace("tcp://", "tls+tcp://")
            async with AsyncPush(url, delivery="safe", tls=local, connections=2) as push:
                for message in MESSAGES:
                    await push.send(message)

        producing = asyncio.create_task(produce())
        url = buffer.pull_urls[0].replace("tcp://", "tls+tcp://")
        async with AsyncPull(url, acknowledge=True, tls=local) as pull:
            received = [bytes(message) async for message in pull]
        await producing
        async with asyncio.timeout(20):
            while not buffer.has_ended:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert buffer.is_complete
    assert sorted(received) == sorted(MESSAGES)
