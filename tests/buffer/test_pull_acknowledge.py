"""A consumer that tells a buffer what it has finished."""

import random
from collections import Counter

import pynng
import pytest
from tests.buffer.peers import drain, in_thread, pynng_url
from tests.buffer.proxy import breaking
from tests.buffer.relayed import END_S, SAFE, numbered, pull_all

from lclstream.buffer.endpoints import Pull, Push
from lclstream.buffer.relay import Buffer


def test_unfinished_messages_go_to_another_consumer() -> None:
    sent = numbered(300, [1000])
    with Buffer(SAFE) as buffer:
        with Push(buffer.push_urls[0], delivery="safe") as push:
            for message in sent:
                push.send(message)
        with (
            pytest.raises(ZeroDivisionError),
            Pull(buffer.pull_urls[0], acknowledge=True) as pull,
        ):
            analyse_badly(pull)
        # The hundredth was in hand, and what was read besides was never looked at.
        assert pull.counts[0].acknowledged == 99
        rest = pull_all(buffer)
        assert buffer.wait(END_S)
        assert buffer.is_complete
    assert rest == sent[99:]


def analyse_badly(pull: Pull) -> list[bytes]:
    return [bytes(pull.recv(END_S)) for i in range(100)] + [bytes(1 // 0)]


def test_leaving_properly_finishes_what_is_in_hand() -> None:
    sent = numbered(10, [1000])
    with Buffer(SAFE) as buffer:
        with Push(buffer.push_urls[0], delivery="safe") as push:
            for message in sent:
                push.send(message)
        with Pull(buffer.pull_urls[0], acknowledge=True) as pull:
            first = [bytes(pull.recv(END_S)) for _ in range(4)]
        assert first + pull_all(buffer) == sent


def test_program_that_works_ahead_says_itself_what_is_done() -> None:
    sent = numbered(20, [1000])
    with Buffer(SAFE) as buffer:
        with Push(buffer.push_urls[0], delivery="safe") as push:
            for message in sent:
                push.send(message)
        with Pull(buffer.pull_urls[0], acknowledge=True, auto=False) as pull:
            for _ in range(10):
                pull.recv(END_S)
            assert pull.in_hand == 10
            pull.done(6)
            pull.done()
            assert pull.in_hand == 3
        assert pull_all(buffer) == sent[7:]


def test_end_of_stream_comes_before_the_last_is_done() -> None:
    with Buffer(SAFE) as buffer:
        with Push(buffer.push_urls[0], delivery="safe") as push:
            push.send(b"last")
        with Pull(buffer.pull_urls[0], acknowledge=True, auto=False) as pull:
            message = pull.recv(END_S)
            assert bytes(message) == b"last"
            assert buffer.statistics().counters.acknowledged == 0
            pull.done()
            assert drain(pull, END_S) == []
        assert buffer.wait(END_S)
        assert buffer.is_complete


def test_acknowledgements_disturb_no_plain_producer() -> None:
    with (
        pynng.Push0(listen="tcp://127.0.0.1:0", send_timeout=20_000) as producer,
        Pull(pynng_url(producer), acknowledge=True) as pull,
    ):
        for i in range(300):
            producer.send(i.to_bytes(4, "big"))
            assert bytes(pull.recv(20.0)) == i.to_bytes(4, "big")


@pytest.mark.parametrize("seed", range(4))
def test_acknowledging_consumers_over_a_bad_network(seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311
    sent = numbered(500, [chance.choice([0, 900, 40_000, 300_000]) for _ in range(29)])
    received: list[list[bytes]] = [[], []]
    with Buffer(SAFE) as buffer, breaking(buffer.pull_urls[0], seed) as proxy:

        def consume(mine: list[bytes]) -> None:
            with Pull(proxy.url, acknowledge=True) as pull:
                mine.extend(drain(pull, END_S))

        with (
            in_thread(lambda: consume(received[0])),
            in_thread(lambda: consume(received[1])),
            Push(buffer.push_urls[0], delivery="safe") as push,
        ):
            for message in sent:
                push.send(message)
        assert proxy.broken > 3
        assert buffer.wait(END_S)
        final = buffer.statistics()
    counts = Counter(received[0] + received[1])
    assert set(counts) == set(sent)
    # Twice only what was finished, or in hand, and not acknowledged when a connection broke.
    assert sum(counts.values()) - len(sent) <= final.counters.requeued
