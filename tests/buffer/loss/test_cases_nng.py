"""The loss cases N1 to N8: faults at which NNG programs lose messages, or their lives."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.buffer.loss.nursery import ROOT, Nursery, PeerProcess, until, until_still
from tests.buffer.loss.oracle import KIB, MIB, Stream, judge
from tests.buffer.loss.peers import Orders
from tests.buffer.loss.scale import pick
from tests.buffer.loss.streams import KINDS, claimed, digests, gather, refuses, totals

pytestmark = pytest.mark.timeout(200)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("count", "size"), [(8, MIB), (2, 16 * MIB)])
def test_n1_close_right_after_the_last_send(
    nursery: Nursery, kind: str, count: int, size: int
) -> None:
    """N1: `close` after the last send, while a consumer is there that does not read yet."""
    relay = nursery.relay("--memory", "1MiB")
    consumer = nursery.consume(kind, relay.pull_url, stall_after=0)
    until(lambda: bool(consumer.said("stalled")))
    producer = nursery.produce("own", relay.push_url, sizes=[size] * count)
    until(lambda: bool(producer.said("begin")))
    consumer.tell("go")
    producer.wait()
    relay.terminate()
    code, report = relay.finish()
    assert producer.how == "closed"
    assert sorted(gather(consumer)) == sorted(digests(producer))
    assert (code, report["sent"]["messages"]) == (0, count)


@pytest.mark.parametrize("delivery", ["fast", "safe"])
@pytest.mark.parametrize(("count", "size"), [(8, MIB), (2, 16 * MIB)])
def test_n1_what_nobody_takes_is_named(
    nursery: Nursery, delivery: str, count: int, size: int
) -> None:
    """N1: nobody reads at all: the buffer says so, and in safe delivery the producer, too."""
    relay = nursery.relay("--memory", "1MiB", "--term-timeout", "3")
    producer = nursery.produce(
        "own",
        relay.push_url,
        sizes=[size] * count,
        close_timeout_s=0.5,
        options={"send_timeout_s": 0.5, "delivery": delivery},
    )
    producer.wait()
    relay.terminate()
    code, report = relay.finish()
    assert report["received"]["messages"] == report["counters"]["undelivered"] < count
    assert (code, report["complete"]) == (1, False)
    # Otherwise the acknowledgements of the buffer's kernel are all that there is.
    if delivery == "safe":
        assert producer.said("failed") or producer.how != "closed"
        assert claimed(producer) <= report["received"]["messages"]


@pytest.mark.parametrize(("count", "size"), [(200, 1000), (20, MIB)])
@pytest.mark.parametrize("ending", ["close", "exit", "_exit"])
def test_n2_ways_to_end_a_program(
    nursery: Nursery, tmp_path: Path, ending: str, count: int, size: int
) -> None:
    """N2: `close` and a normal exit deliver everything; after `_exit` the end is missing."""
    relay = nursery.relay("--resume-timeout", "1", "--term-timeout", "60")
    consumer = nursery.consume("own", relay.pull_url)
    orders = Orders(
        role="produce",
        kind="own",
        url=relay.push_url,
        folder=str(tmp_path),
        sizes=[size] * count,
        ending=ending,
    )
    # A real interpreter, for its real exit.
    command = [sys.executable, "-m", "tests.buffer.loss.peers", orders.to_json()]
    subprocess.run(command, cwd=ROOT, check=True, timeout=100)
    relay.terminate()
    code, report = relay.finish()
    got = gather(consumer)
    verdict = judge({0: Stream(0, orders.sizes).digests()}, got)
    assert not verdict.unknown
    assert not verdict.twice
    assert report["received"]["messages"] == report["sent"]["messages"] == len(got)
    if ending == "_exit":
        assert (code, report["complete"]) == (1, False)
        assert report["counters"]["producers_unfinished"] == 1
        assert "1 streams of producers ended without a word" in report["error"]
    else:
        assert not verdict.lost
        assert code == 0


@pytest.mark.parametrize(("count", "size"), [(20_000, 1000), (60, MIB)])
@pytest.mark.parametrize("kind", ["safe", "own", "pynng"])
def test_n3_stalled_consumer_is_killed(nursery: Nursery, kind: str, count: int, size: int) -> None:
    """N3: an acknowledging consumer takes nothing with it; what others took is counted."""
    relay = nursery.relay("--delivery", "safe", "--memory", "16MiB")
    options = {"acknowledge": True} if kind == "safe" else {}
    victim = nursery.consume(kind, relay.pull_url, stall_after=3, options=options)
    survivor = nursery.consume(kind, relay.pull_url, stall_after=3, options=options)
    producer = nursery.produce("own", relay.push_url, sizes=[size] * count)
    until(lambda: bool(victim.said("stalled")) and bool(survivor.said("stalled")))
    until_still(lambda: len(producer.said("sent")))
    victim.kill()
    survivor.tell("go")
    producer.wait()
    relay.terminate()
    code, report = relay.finish()
    verdict = judge({0: digests(producer)}, gather(survivor) + victim.got())
    counters = report["counters"]
    assert producer.how == "closed"
    assert not verdict.unknown
    assert report["received"]["messages"] == report["sent"]["messages"] == count
    assert counters["requeued"] > 0
    if kind == "safe":
        assert not verdict.lost
        # What it had finished and not acknowledged: the last one that it was given.
        assert verdict.twice.total() <= len(victim.got())
        assert code == 0
    else:
        assert not verdict.twice
        # It was killed with messages unread, so its connection broke and that is told.
        assert code == 1
        assert counters["possibly_lost"] + counters["consumers_broken"] > 0
        with_victim = totals(report["peers"], "out") - len(survivor.got())
        assert len(verdict.lost) == with_victim - len(victim.got())


def test_n4_message_above_the_limit_of_our_sender(nursery: Nursery) -> None:
    """N4: our sender refuses the one that is too large before it sends anything of it."""
    relay = nursery.relay("--max-message", "1000")
    consumer = nursery.consume("pynng", relay.pull_url)
    sizes = [1000] * 5 + [1001] + [1000] * 5
    producer = nursery.produce(
        "own", relay.push_url, sizes=sizes, options={"max_message_bytes": 1000}
    )
    producer.wait()
    relay.terminate()
    code, _ = relay.finish()
    assert [(number, error) for number, error, *_ in producer.said("failed")] == [
        ("5", "TooLargeError")
    ]
    wanted = digests(producer)
    del wanted[5]
    assert sorted(gather(consumer)) == sorted(wanted)
    assert code == 0


@pytest.mark.parametrize("kind", ["pynng", "pyzmq"])
def test_n4_message_above_the_limit_of_the_buffer(nursery: Nursery, kind: str) -> None:
    """N4: a plain sender's message that is too large closes its connection, and is told."""
    relay = nursery.relay("--max-message", "1MiB")
    consumer = nursery.consume("pynng", relay.pull_url)
    producer = nursery.produce(
        kind, relay.push_url, sizes=[1000] * 5 + [MIB + 1], ending="stay", reconnect_ms=10_000
    )
    until(lambda: bool(relay.events("peer_left")))
    relay.terminate()
    code, report = relay.finish()
    producer.kill()
    (left,) = [event for event in relay.events("peer_left") if event["side"] == "in"]
    assert f"{MIB + 1} bytes is above the limit of {MIB}" in left["reason"]
    assert report["counters"]["refused_messages"] == 1
    assert sorted(gather(consumer)) == sorted(digests(producer)[:5])
    assert (code, report["complete"]) == (1, False)


@pytest.mark.parametrize("kind", KINDS)
def test_n5_first_rank_ends_before_the_second_connects(nursery: Nursery, kind: str) -> None:
    """N5: the end is when two producers have come and gone, not when nobody is connected."""
    relay = nursery.relay("--expect-producers", "2", "--grace", "0.5")
    consumer = nursery.consume("pynng", relay.pull_url)
    first = nursery.produce(kind, relay.push_url, sizes=[KIB] * 5)
    assert first.wait() == 0
    until(lambda: len(consumer.said("got")) == 5)
    until(lambda: bool(relay.events("peer_left")))
    second = nursery.produce(kind, relay.push_url, producer=1, sizes=[KIB] * 5)
    assert second.wait() == 0
    code, _ = relay.finish()
    assert sorted(gather(consumer)) == sorted(digests(first, second))
    assert code == 0


@pytest.mark.parametrize("kind", KINDS)
def test_n6_connected_producer_finishes_while_draining(nursery: Nursery, kind: str) -> None:
    """N6: the drain refuses new producers and lets those that are connected finish."""
    relay = nursery.relay("--term-timeout", "90")
    consumer = nursery.consume("own", relay.pull_url)
    producer = nursery.produce(kind, relay.push_url, sizes=[100 * KIB] * 40, pause_before=10)
    until(lambda: bool(producer.said("paused")) and len(consumer.said("got")) == 10)
    relay.terminate()
    until(lambda: refuses(relay.push_url))
    producer.tell("go")
    assert producer.wait() == 0
    code, report = relay.finish()
    assert sorted(gather(consumer)) == sorted(digests(producer))
    assert (code, report["sent"]["messages"]) == (0, 40)


def test_n8_plain_producer_survives_a_long_drain(nursery: Nursery) -> None:
    """N8: pynng producers that dial every 10 ms live through a drain, connected before or not."""
    relay = nursery.relay("--term-timeout", "200", "--max-message", "1MiB")
    holding = nursery.produce("own", relay.push_url, sizes=[1000])
    holding.wait()
    stubborn = {"ending": "stay", "reconnect_ms": 10}
    # What it sends last has it cut off.
    cut = nursery.produce(
        "pynng", relay.push_url, producer=1, sizes=[1000, 2 * MIB], pause_before=1, **stubborn
    )
    until(lambda: bool(cut.said("paused")))
    relay.terminate()
    until(lambda: refuses(relay.push_url))
    late = nursery.produce("pynng", relay.push_url, producer=2, sizes=[1000], **stubborn)
    cut.tell("go")
    until(lambda: len(relay.events("peer_left")) == 2)
    for _ in range(pick(8, 60)):
        assert lives_on(cut, 0.5)
        assert lives_on(late, 0.5)
    consumer = nursery.consume("own", relay.pull_url)
    code, report = relay.finish()
    assert sorted(gather(consumer)) == sorted(digests(holding) + digests(cut)[:1])
    assert (code, report["counters"]["refused_messages"]) == (1, 1)
    for producer in (cut, late):
        assert lives_on(producer, 0.0)
        producer.kill()


def lives_on(peer: PeerProcess, seconds: float) -> bool:
    """Watch a peer for a while; return whether it is still there."""
    try:
        until(lambda: peer.poll() is not None, seconds)
    except AssertionError:
        return True
    return False
