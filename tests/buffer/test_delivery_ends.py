"""What is known of a stream when its producer ends, in whatever way."""

import subprocess
import sys
from dataclasses import replace

import pynng
import pytest
from tests.buffer.peers import in_thread, pynng_url
from tests.buffer.relayed import END_S, MIB, QUICK, SAFE, pull_all

from lclstream.buffer.control import Frame, frame
from lclstream.buffer.endpoints import Push
from lclstream.buffer.relay import Buffer

MODES = {"fast": QUICK, "safe": SAFE}


@pytest.mark.parametrize("delivery", ["fast", "safe"])
@pytest.mark.parametrize(("count", "size"), [(8, MIB), (2, 16 * MIB), (200, 1000), (0, 0)])
def test_close_right_after_the_last_send_loses_nothing(
    delivery: str, count: int, size: int
) -> None:
    with Buffer(MODES[delivery]) as buffer:
        with Push(buffer.push_urls[0], delivery=delivery, connections=2) as push:
            for i in range(count):
                push.send(bytes([i % 256]) * size)
        # Nobody has read anything yet.
        assert sorted(pull_all(buffer)) == sorted(bytes([i % 256]) * size for i in range(count))
        assert buffer.wait(END_S)
        assert buffer.is_complete
        assert buffer.statistics().counters.producers_seen == 1


ENDINGS = """
import os, sys
from lclstream.buffer import Push
push = Push(sys.argv[1], delivery=sys.argv[2])
for i in range(int(sys.argv[4])):
    push.send(i.to_bytes(4, "big") * int(sys.argv[5]))
if sys.argv[3] == "close":
    push.close()
elif sys.argv[3] == "_exit":
    os._exit(0)
"""


@pytest.mark.parametrize("delivery", ["fast", "safe"])
@pytest.mark.parametrize(
    ("ending", "count", "size"),
    [
        ("close", 200, 1000),
        ("exit", 200, 1000),
        ("exit", 20, MIB),
        ("_exit", 200, 1000),
        ("_exit", 20, MIB),
        ("_exit", 1000, 100_000),
    ],
)
def test_only_a_killed_producer_is_incomplete(
    delivery: str, ending: str, count: int, size: int
) -> None:
    with Buffer(replace(MODES[delivery], resume_timeout_s=0.2)) as buffer:
        received: list[bytes] = []
        with in_thread(lambda: received.extend(pull_all(buffer))):
            words = [delivery, ending, str(count), str(size // 4)]
            program = [sys.executable, "-c", ENDINGS, buffer.push_urls[0], *words]
            subprocess.run(program, check=True, timeout=50)
        assert buffer.wait(END_S)
        final = buffer.statistics()
    # In order, and nothing in between is missing.
    assert received == [i.to_bytes(4, "big") * (size // 4) for i in range(len(received))]
    assert final.received.messages == final.sent.messages == len(received)
    if ending == "_exit":
        assert not buffer.is_complete
        assert final.counters.producers_unfinished == 1
    else:
        assert buffer.is_complete
        assert len(received) == count


def test_leaving_by_an_error_is_incomplete() -> None:
    with Buffer(replace(QUICK, resume_timeout_s=0.1)) as buffer:
        with pytest.raises(ZeroDivisionError), Push(buffer.push_urls[0]) as push:
            send_badly(push)
        pull_all(buffer)
        assert buffer.wait(END_S)
        assert not buffer.is_complete


def send_badly(push: Push) -> None:
    push.send(b"x")
    push.send(bytes(1 // 0))


@pytest.mark.parametrize("delivery", ["fast", "safe"])
def test_what_looks_like_control_is_delivered(delivery: str) -> None:
    sent = [frame(kind, 1)[8:] for kind in Frame] * 3
    sent[4:4] = [b"small", b"large" * 50_000]
    with Buffer(MODES[delivery]) as buffer:
        with Push(buffer.push_urls[0], delivery=delivery) as push:
            for message in sent:
                push.send([message[:5], message[5:]])
        assert pull_all(buffer) == sent
        assert buffer.wait(END_S)
        assert buffer.is_complete


def test_plain_consumer_gets_it_without_any_sign() -> None:
    lookalike = frame(Frame.BYE, 1)[8:]
    with pynng.Pull0(listen="tcp://127.0.0.1:0", recv_timeout=20_000) as consumer:

        def produce() -> None:
            with Push(pynng_url(consumer)) as push:
                push.send(lookalike)
                push.send(b"after")

        with in_thread(produce):
            assert [consumer.recv(), consumer.recv()] == [lookalike, b"after"]
