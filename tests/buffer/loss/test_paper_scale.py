"""128 producers, as two nodes of 64 ranks, and 8 consumers: the books balance to the byte."""

import pytest
from tests.buffer.loss.nursery import Nursery, PeerProcess, until
from tests.buffer.loss.oracle import KIB
from tests.buffer.loss.scale import pick

pytestmark = pytest.mark.timeout(600)
NODES = {"pynng": 64, "own": 64}
CONSUMERS = {"pynng": 2, "pyzmq": 2, "own": 4}
SECONDS = pick(10, 60)
# From a histogram to a small image.
SIZES = [2 * KIB, 64 * KIB, 200 * KIB, 500, 130 * KIB]


def added(peers: list[PeerProcess]) -> tuple[int, int, str]:
    """Return messages, bytes and the sum of the hashes of what all of them counted."""
    tallies = [words for peer in peers for words in peer.said("tally")]
    assert len(tallies) == len(peers), [peer.how for peer in peers]
    digest = sum(int(words[2], 16) for words in tallies) % 2**64
    return (
        sum(int(words[0]) for words in tallies),
        sum(int(words[1]) for words in tallies),
        (f"{digest:016x}"),
    )


@pytest.mark.parametrize(
    "options", [("--delivery", "fast"), ("--delivery", "safe")], ids=["fast", "safe"]
)
def test_128_producers_and_8_consumers(nursery: Nursery, options: tuple[str, ...]) -> None:
    relay = nursery.relay(
        *options, "--digest", "--memory", "64MiB", "--expect-producers", "128",
        "--consumer-timeout", "60",
    )  # fmt: skip
    consumers = [
        nursery.consume(kind, relay.pull_url, tallies=True)
        for kind, count in CONSUMERS.items()
        for _ in range(count)
    ]
    kinds = [kind for kind, count in NODES.items() for _ in range(count)]
    producers = [
        nursery.produce(
            kind, relay.push_url, producer=number, sizes=SIZES, seconds=SECONDS, tallies=True
        )
        for number, kind in enumerate(kinds)
    ]
    for producer in producers:
        producer.wait(SECONDS + 120.0)
    code, report = relay.finish()
    for consumer in consumers:
        consumer.tell("stop")
    until(lambda: all(consumer.poll() is not None for consumer in consumers))
    sent, got = added(producers), added(consumers)
    assert got == sent
    for side in ("received", "sent"):
        tally = report[side]
        assert (tally["messages"], tally["bytes"], tally["digest"]) == sent
    assert report["counters"]["producers_seen"] == 128
    assert (code, report["complete"]) == (0, True)
