"""The loss cases Z1 to Z8: faults at which a cache of ZeroMQ programs loses messages."""

import signal
import socket
from pathlib import Path

import pytest
from tests.buffer.loss.nursery import Nursery, until, until_still
from tests.buffer.loss.oracle import KIB, MIB, judge
from tests.buffer.loss.streams import KINDS, digests, gather, totals
from tests.buffer.reports import open_desk

from lclstream.identity.authority import Authority

pytestmark = pytest.mark.timeout(200)


@pytest.mark.parametrize("kind", KINDS)
def test_z1_sigterm_with_data_buffered(nursery: Nursery, kind: str) -> None:
    """Z1: 300 messages are held; a consumer that comes before the deadline gets all of them."""
    relay = nursery.relay("--term-timeout", "90")
    producer = nursery.produce(kind, relay.push_url, sizes=[10 * KIB] * 300)
    assert producer.wait() == 0
    relay.terminate()
    until(lambda: bool(relay.events("buffer_state")))
    consumer = nursery.consume("pyzmq" if kind == "pyzmq" else "pynng", relay.pull_url)
    code, report = relay.finish()
    assert sorted(gather(consumer)) == sorted(digests(producer))
    assert (code, report["sent"]["messages"]) == (0, 300)


@pytest.mark.parametrize("count", [0, 25])
def test_z2_sigint_ends_by_the_deadline(nursery: Nursery, count: int) -> None:
    """Z2: with data and no consumer, and with neither, an interrupted buffer ends."""
    relay = nursery.relay("--term-timeout", "1", "--linger", "0.2")
    producer = nursery.produce("pyzmq", relay.push_url, sizes=[MIB] * count)
    assert producer.wait() == 0
    until(lambda: not count or bool(relay.events("peer_left")))
    relay.send_signal(signal.SIGINT)
    code, report = relay.finish()
    assert report["received"]["messages"] == count == report["counters"]["undelivered"]
    assert report["received"]["bytes"] == count * MIB
    assert report["sent"]["messages"] == 0
    assert report["reason"] == "SIGINT"
    assert (code, report["complete"]) == (1 if count else 0, not count)


@pytest.mark.parametrize("kind", KINDS)
def test_z3_silence_is_not_an_end(nursery: Nursery, kind: str) -> None:
    """Z3: a producer pauses for longer than anybody waits."""
    relay = nursery.relay("--expect-producers", "1", "--grace", "0.1")
    consumer = nursery.consume(kind, relay.pull_url)
    producer = nursery.produce(kind, relay.push_url, sizes=[KIB] * 200, pause_before=100)
    until(lambda: len(consumer.said("got")) == 100)
    with pytest.raises(AssertionError):
        until(lambda: relay.poll() is not None or bool(consumer.how), 2.5)
    producer.tell("go")
    code, _ = relay.finish()
    assert sorted(gather(consumer)) == sorted(digests(producer))
    assert code == 0


def test_z4_multipart_messages_stay_together(nursery: Nursery) -> None:
    """Z4: 50 messages of two parts are 50 messages, or none; never 100."""
    import zmq

    relay = nursery.relay()
    consumers = [nursery.consume(kind, relay.pull_url) for kind in KINDS]
    with zmq.Context() as context, context.socket(zmq.PUSH) as push:
        push.setsockopt(zmq.SNDTIMEO, 20_000)
        push.setsockopt(zmq.LINGER, 1000)
        # Refused once, it must not come back and be refused for ever.
        push.setsockopt(zmq.RECONNECT_IVL, -1)
        push.connect(relay.push_url)
        try:
            for number in range(50):
                push.send_multipart([b"%03d" % number, bytes(1000)])
        except zmq.Again:
            # The connection was closed.
            pass
        until(
            lambda: (
                bool(relay.events("peer_left"))
                or sum(len(consumer.said("got")) for consumer in consumers) == 50
            )
        )
    relay.terminate()
    code, report = relay.finish()
    got = [words for consumer in consumers for words in consumer.said("got")]
    gather(*consumers)
    assert {int(size) for _, size in got} <= {1003}
    assert len(got) == len({digest for digest, _ in got}) in {0, 50}
    if not got:
        assert code == 1
        assert report["counters"]["refused_messages"] >= 1


@pytest.mark.parametrize("side", ["--in", "--out"])
def test_z5_bound_port_ends_at_once(nursery: Nursery, side: str) -> None:
    """Z5: a port that is taken is a wrong configuration, and is named."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        process = nursery.unready_relay(side, url)
        assert process.wait() == 2
    assert f"cannot listen on {url}: Address already in use" in process.log()
    assert not (process.folder / "ready").exists()


@pytest.mark.parametrize(("count", "size"), [(20_000, 1000), (80, MIB)])
def test_z6_stalled_zmq_consumer_is_killed(nursery: Nursery, count: int, size: int) -> None:
    """Z6: only what its kernel had acknowledged is lost with it, and what went back is counted."""
    relay = nursery.relay("--delivery", "safe", "--memory", "16MiB")
    victim = nursery.consume("pyzmq", relay.pull_url, stall_after=3)
    survivor = nursery.consume("pyzmq", relay.pull_url, stall_after=3)
    producer = nursery.produce("pyzmq", relay.push_url, sizes=[size] * count)
    until(lambda: bool(victim.said("stalled")) and bool(survivor.said("stalled")))
    until_still(lambda: len(producer.said("sent")))
    victim.kill()
    survivor.tell("go")
    producer.wait()
    relay.terminate()
    code, report = relay.finish()
    verdict = judge({0: digests(producer)}, gather(survivor) + victim.got())
    counters = report["counters"]
    assert not verdict.unknown
    assert not verdict.twice
    assert report["received"]["messages"] == report["sent"]["messages"] == count
    assert counters["requeued"] > 0
    with_victim = totals(report["peers"], "out") - len(survivor.got())
    assert len(verdict.lost) == with_victim - len(victim.got())
    # It was killed with messages unread: that is told.
    assert code == 1
    assert counters["possibly_lost"] + counters["consumers_broken"] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_z7_producer_exits_without_a_word(nursery: Nursery, kind: str) -> None:
    """Z7: what arrived is delivered; a producer of ours that did not end leaves it incomplete."""
    relay = nursery.relay("--term-timeout", "60", "--resume-timeout", "1")
    consumer = nursery.consume("own", relay.pull_url)
    producer = nursery.produce(kind, relay.push_url, sizes=[100_000] * 1000, ending="_exit")
    assert producer.wait() == 0
    relay.terminate()
    code, report = relay.finish()
    got = gather(consumer)
    verdict = judge({0: digests(producer)}, got)
    assert not verdict.unknown
    assert not verdict.twice
    assert report["received"] == report["sent"]
    assert report["received"]["messages"] == len(got)
    if kind == "own":
        assert code == 1
        assert report["counters"]["producers_unfinished"] == 1
    elif report["counters"]["partial_in"] or report["counters"]["producers_broken"]:
        assert code == 1


def test_z8_last_figures_are_exact(nursery: Nursery, tmp_path: Path) -> None:
    """Z8: the final report and the last one to the transfer count the last interval, too."""
    authority = Authority.create(tmp_path / "ca", "Test CA")
    authority.issue_service(tmp_path / "service", "transfers", hosts=["127.0.0.1"])
    authority.issue_user(tmp_path / "identity", "job:1:buffer", "buffer")
    with open_desk(tmp_path / "service") as desk:
        relay = nursery.relay(
            environment={
                "LCLSTREAM_REPORT_URL": desk.url,
                "LCLSTREAM_IDENTITY": str(tmp_path / "identity"),
            }
        )
        consumers = [nursery.consume(kind, relay.pull_url) for kind in KINDS]
        producers = [
            nursery.produce(kind, relay.push_url, producer=number, sizes=[KIB] * 25)
            for number, kind in enumerate(KINDS)
        ]
        for producer in producers:
            producer.wait()
        relay.terminate()
        code, report = relay.finish()
        last = desk.reports[-1]
    assert code == 0
    assert len(gather(*consumers)) == 75
    assert last.final
    assert last.received is not None
    assert last.received.messages == report["received"]["messages"] == 75
    assert last.received.bytes == report["received"]["bytes"] == 75 * KIB
    assert report["sent"] == report["received"]
    assert totals(report["peers"], "in") == totals(report["peers"], "out") == 75
