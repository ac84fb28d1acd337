"""The ends of a stream for asyncio."""

import asyncio
import socket

import pynng
import pytest
from tests.buffer.peers import pynng_url, reset

from lclstream.buffer.aio import AsyncPull, AsyncPush
from lclstream.buffer.config import BufferConfig, Delivery
from lclstream.buffer.endpoints import ReceiveTimeoutError
from lclstream.buffer.relay import Buffer
from lclstream.core.errors import BufferClosedError, DeliveryError, EndOfStream, UnavailableError

pytestmark = pytest.mark.anyio

SIZES = [0, 1, 13, 1000, 40_000, 131_072, 700_000]
MESSAGES = [bytes([i % 256]) * SIZES[i % len(SIZES)] for i in range(200)]


async def drained(pull: AsyncPull) -> list[bytes]:
    return [bytes(message) async for message in pull]


async def push_all(urls: str, messages: list[bytes], delivery: str = "fast") -> None:
    async with AsyncPush(urls, delivery=delivery) as push:
        for message in messages:
            await push.send(message)


async def test_push_and_pull() -> None:
    async with AsyncPull("tcp://127.0.0.1:0", listen=True) as pull:
        producing = asyncio.create_task(push_all(pull.urls[0], MESSAGES))
        assert await drained(pull) == MESSAGES
        await producing
        (count,) = pull.counts
        assert (count.messages, count.is_open) == (len(MESSAGES), False)


@pytest.mark.parametrize("delivery", ["fast", "safe"])
async def test_through_a_buffer(delivery: str) -> None:
    config = BufferConfig(delivery=Delivery(delivery), expect_producers=2, grace_s=0.1)
    with Buffer(config) as buffer:
        producing = [
            asyncio.create_task(push_all(buffer.push_urls[0], MESSAGES, delivery)) for _ in range(2)
        ]
        received: list[bytes] = []

        async def consume() -> None:
            async with AsyncPull(buffer.pull_urls[0], acknowledge=True) as pull:
                received.extend(await drained(pull))

        await asyncio.gather(consume(), consume(), *producing)
        async with asyncio.timeout(20):
            while not buffer.has_ended:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert buffer.is_complete
        assert buffer.statistics().counters.acknowledged == 2 * len(MESSAGES)
    assert sorted(received) == sorted(2 * MESSAGES)


async def test_plain_peers() -> None:
    with pynng.Pull0(listen="tcp://127.0.0.1:0", recv_timeout=20_000) as consumer:
        producing = asyncio.create_task(push_all(pynng_url(consumer), MESSAGES))
        assert [await consumer.arecv() for _ in MESSAGES] == MESSAGES
        await producing
    with pynng.Push0(listen="tcp://127.0.0.1:0", send_timeout=20_000) as producer:
        async with AsyncPull(pynng_url(producer)) as pull:
            for message in MESSAGES:
                await producer.asend(message)
                assert bytes(await pull.recv(20.0)) == message


async def test_last_small_messages_are_not_held_back() -> None:
    async with AsyncPull("tcp://127.0.0.1:0", listen=True) as pull, AsyncPush(pull.urls) as push:
        for message in (b"one", b"two", b"three"):
            await push.send(message)
        assert [bytes(await pull.recv(20.0)) for _ in range(3)] == [b"one", b"two", b"three"]


async def test_recv_times_out_and_can_be_cancelled() -> None:
    async with AsyncPull("tcp://127.0.0.1:0", listen=True) as pull, AsyncPush(pull.urls) as push:
        with pytest.raises(ReceiveTimeoutError, match=r"^no message within 0\.05 s$"):
            await pull.recv(0.05)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pull.recv(), 0.05)
        await push.send(b"late")
        assert bytes(await pull.recv(20.0)) == b"late"


async def test_many_tasks_share_an_end() -> None:
    async with AsyncPull("tcp://127.0.0.1:0", listen=True) as pull:
        received: list[int] = []

        async def consume() -> None:
            while True:
                try:
                    received.append(len(await pull.recv(20.0)))
                except EndOfStream:
                    return

        async with AsyncPush(pull.urls) as push, asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(consume())

            async def produce(size: int) -> None:
                for _ in range(50):
                    await push.send(bytes(size))

            async with asyncio.TaskGroup() as producers:
                for size in (10, 50_000, 200_000):
                    producers.create_task(produce(size))
            await push.close()
    assert sorted(received) == [10] * 50 + [50_000] * 50 + [200_000] * 50


async def test_other_tasks_get_their_turn() -> None:
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.create_task(count_turns())
    async with AsyncPull("tcp://127.0.0.1:0", listen=True) as pull:
        producing = asyncio.create_task(push_all(pull.urls[0], [bytes(100_000)] * 200))
        assert len(await drained(pull)) == 200
        await producing
    counting.cancel()
    await asyncio.wait([counting])
    assert turns > 200


async def test_cancelled_send_is_not_sent_and_what_follows_is_whole() -> None:
    async with AsyncPull("tcp://127.0.0.1:0", listen=True) as pull, AsyncPush(pull.urls) as push:
        await push.send(b"first")
        assert bytes(await pull.recv(20.0)) == b"first"
        with pytest.raises(TimeoutError):
            # More than the kernels take, and nobody reads.
            await asyncio.wait_for(push.send(bytes(200_000_000)), 0.2)
        closing = asyncio.create_task(push_and_close(push, b"second"))
        assert await drained(pull) == [b"second"]
        await closing
        assert pull.partial == 1


async def push_and_close(push: AsyncPush, message: bytes) -> None:
    await push.send(message)
    await push.close()


async def test_cancelled_wait_for_a_connection_loses_nothing_that_waits() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    async with AsyncPush(url, connect_timeout_s=60) as push:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(push.send(b"given up"), 0.1)
        async with AsyncPull(url, listen=True) as pull:
            closing = asyncio.create_task(push_and_close(push, b"goes"))
            assert await drained(pull) == [b"goes"]
            await closing


async def test_send_without_listener_fails() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    async with AsyncPush(url, send_timeout_s=0.1) as push:
        with pytest.raises(UnavailableError, match=r"^no connection within 0\.1 s: "):
            await push.send(b"x")


async def test_idle_push_comes_back_by_itself() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        loop = asyncio.get_running_loop()

        async def accept() -> socket.socket:
            peer, _ = await loop.sock_accept(listener)
            await loop.sock_sendall(peer, b"\0SP\0\0\x51\0\0")
            assert await loop.sock_recv(peer, 8) == b"\0SP\0\0\x50\0\0"
            return peer

        async with AsyncPush(f"tcp://127.0.0.1:{listener.getsockname()[1]}") as push:
            with await accept() as peer:
                reset(peer)
            # Nobody calls it, and it dials again.
            with await accept() as peer:
                await push.send(b"x")
                assert await loop.sock_recv(peer, 100) == b"\0\0\0\0\0\0\0\x01x"
                await push.abort()


async def test_close_counts_what_is_not_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        push = AsyncPush(f"tcp://127.0.0.1:{listener.getsockname()[1]}", send_timeout_s=0.5)
        await push.__aenter__()
        peer, _ = listener.accept()
        with peer:
            peer.sendall(b"\0SP\0\0\x51\0\0")
            with pytest.raises(UnavailableError):
                await send_for_ever(push)
            with pytest.raises(DeliveryError) as caught:
                await push.close(0.5)
            assert 0 < caught.value.undelivered < 100


async def send_for_ever(push: AsyncPush) -> None:
    while True:
        await push.send(bytes(1 << 20))


async def test_use_outside_of_the_context() -> None:
    push = AsyncPush("tcp://127.0.0.1:0", listen=True)
    with pytest.raises(BufferClosedError, match=r"^send before the context was entered$"):
        await push.send(b"x")
    async with push:
        pass
    with pytest.raises(BufferClosedError, match=r"^send after close$"):
        await push.send(b"x")
    pull = AsyncPull("tcp://127.0.0.1:0", listen=True)
    with pytest.raises(BufferClosedError, match=r"^receive before the context was entered$"):
        await pull.recv()
    async with pull:
        pass
    with pytest.raises(BufferClosedError, match=r"^receive after close$"):
        await pull.recv()


async def test_close_wakes_who_waits() -> None:
    async with AsyncPull("tcp://127.0.0.1:0", listen=True) as pull:
        waiting = asyncio.create_task(pull.recv())
        await asyncio.sleep(0)
        await pull.close()
        with pytest.raises(BufferClosedError):
            await waiting
