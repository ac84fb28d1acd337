"""What a producer knows to be safe: a count that never says too much, and gets there."""

import pytest
from tests.buffer.peers import in_thread, until
from tests.buffer.proxy import breaking
from tests.buffer.relayed import END_S, SAFE, numbered, pull_all

from lclstream.buffer.endpoints import Pull, Push
from lclstream.buffer.relay import Buffer


@pytest.mark.parametrize("connections", [1, 3])
def test_the_count_says_never_more_than_the_buffer_has(connections: int) -> None:
    sent = numbered(400, [0, 20, 900, 40_000, 300_000])
    with Buffer(SAFE) as buffer, breaking(buffer.push_urls[0], connections) as proxy:
        received: list[bytes] = []
        counts = []
        with in_thread(lambda: received.extend(pull_all(buffer))):
            with Push(proxy.url, delivery="safe", connections=connections) as push:
                for message in sent:
                    push.send(message)
                    counts.append(push.settled)
                    assert counts[-1] <= buffer.statistics().received.messages
            assert push.settled == len(sent)
        assert buffer.wait(END_S)
    assert proxy.broken
    assert counts == sorted(counts)
    assert counts[-1] > 0
    assert sorted(received) == sorted(sent)


def test_what_is_held_is_not_settled() -> None:
    with Buffer(SAFE) as buffer, breaking(buffer.push_urls[0], 0, breaks=0) as proxy:
        with Push(proxy.url, delivery="safe") as push:
            push.send(b"one" * 20_000)
            until(lambda: push._sender.look() and push.settled == 1)
        assert pull_all(buffer) == [b"one" * 20_000]
        assert buffer.wait(END_S)


def test_small_messages_count_when_they_are_in_the_kernel() -> None:
    with Pull("tcp://127.0.0.1:0", listen=True) as pull:
        got: list[bytes] = []

        def consume() -> None:
            got.extend(bytes(pull.recv(END_S)) for _ in range(10))

        with in_thread(consume):
            push = Push(pull.urls[0])
            for _ in range(10):
                push.send(b"x")
                assert push.settled <= 10
            push.flush()
            assert push.settled == 10
        push.abort()
    assert got == [b"x"] * 10
