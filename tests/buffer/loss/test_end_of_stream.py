"""The end of a stream: who comes late, comes back, or says nothing for a while."""

import pytest
from tests.buffer.loss.nursery import Nursery, until, until_still
from tests.buffer.loss.oracle import KIB, MIB, md5
from tests.buffer.loss.streams import KINDS, digests, gather, refuses

pytestmark = pytest.mark.timeout(200)
EMPTY = md5(b"")


def test_three_producers_one_after_the_other(nursery: Nursery) -> None:
    """Each connects when the one before has long gone; the end comes after the third."""
    relay = nursery.relay("--expect-producers", "3", "--grace", "0.2")
    consumer = nursery.consume("own", relay.pull_url)
    producers = []
    for number, kind in enumerate(KINDS):
        producers.append(nursery.produce(kind, relay.push_url, producer=number, sizes=[KIB] * 20))
        assert producers[-1].wait() == 0
        until(lambda number=number: len(consumer.said("got")) == 20 * (number + 1))  # type: ignore[misc]
    code, report = relay.finish()
    assert sorted(gather(consumer)) == sorted(digests(*producers))
    assert (code, report["counters"]["producers_seen"]) == (0, 3)


def test_producer_that_comes_back_in_time(nursery: Nursery) -> None:
    """All that were expected have gone; one that is back before the grace is over counts."""
    relay = nursery.relay("--expect-producers", "1", "--grace", "5")
    consumer = nursery.consume("pynng", relay.pull_url)
    first = nursery.produce("own", relay.push_url, sizes=[KIB] * 10)
    first.wait()
    second = nursery.produce("own", relay.push_url, producer=1, sizes=[KIB] * 10, pause_before=5)
    until(lambda: bool(second.said("paused")))
    # It is there, so there is no end, for however long.
    with pytest.raises(AssertionError):
        until(lambda: relay.poll() is not None, 6.0)
    second.tell("go")
    code, _ = relay.finish()
    assert sorted(gather(consumer)) == sorted(digests(first, second))
    assert code == 0


def test_late_producer_is_not_missed(nursery: Nursery) -> None:
    """A consumer that has waited in vain is still there when the producer comes at last."""
    relay = nursery.relay("--expect-producers", "2", "--grace", "0.2")
    consumers = [nursery.consume(kind, relay.pull_url) for kind in KINDS]
    first = nursery.produce("pynng", relay.push_url, sizes=[KIB] * 30)
    first.wait()
    until(lambda: sum(len(consumer.said("got")) for consumer in consumers) == 30)
    with pytest.raises(AssertionError):
        until(lambda: relay.poll() is not None, 1.5)
    late = nursery.produce("pyzmq", relay.push_url, producer=1, sizes=[KIB] * 30)
    late.wait()
    code, _ = relay.finish()
    assert sorted(gather(*consumers)) == sorted(digests(first, late))
    assert code == 0


def test_late_consumers_get_a_share_of_what_is_held(nursery: Nursery) -> None:
    """Consumers that come while the buffer drains get what there is, each a part."""
    relay = nursery.relay("--term-timeout", "60", "--memory", "64MiB")
    producer = nursery.produce("own", relay.push_url, sizes=[300 * KIB] * 100)
    producer.wait()
    early = nursery.consume("own", relay.pull_url, stall_after=1)
    until(lambda: bool(early.said("stalled")))
    relay.terminate()
    until(lambda: refuses(relay.push_url))
    late = [nursery.consume(kind, relay.pull_url, stall_after=1) for kind in KINDS]
    until(lambda: all(consumer.said("stalled") for consumer in late))
    for consumer in (early, *late):
        consumer.tell("go")
    code, _ = relay.finish()
    assert sorted(gather(early, *late)) == sorted(digests(producer))
    assert all(consumer.got() for consumer in late)
    assert code == 0


def test_too_late_consumers_get_a_clean_end(nursery: Nursery) -> None:
    """Nothing came at all: consumers within the linger time get the end, after it nothing."""
    relay = nursery.relay("--term-timeout", "60", "--linger", "4")
    relay.terminate()
    until(lambda: bool(relay.events("buffer_state")))
    own = nursery.consume("own", relay.pull_url)
    plain = nursery.consume("pynng", relay.pull_url)
    own.wait()
    assert own.how == "closed"
    code, _ = relay.finish()
    assert gather(plain) == []
    assert plain.how == "closed"
    assert refuses(relay.pull_url)
    assert code == 0


@pytest.mark.parametrize("kind", KINDS)
def test_sentinel_is_the_last_message(nursery: Nursery, kind: str) -> None:
    """With the option each consumer gets an empty message after all others, and only then."""
    relay = nursery.relay("--sentinel", "--expect-producers", "1", "--grace", "0.2")
    consumers = [nursery.consume(kind, relay.pull_url) for _ in range(3)]
    producer = nursery.produce("own", relay.push_url, sizes=[300 * KIB] * 30)
    producer.wait()
    code, report = relay.finish()
    gather(*consumers)
    for consumer in consumers:
        got = consumer.got()
        assert got.count(EMPTY) <= 1
        assert EMPTY not in got[:-1]
    # Who never connected before the end has none.
    assert all(consumer.got()[-1] == EMPTY for consumer in consumers if consumer.got())
    delivered = [digest for consumer in consumers for digest in consumer.got() if digest != EMPTY]
    assert sorted(delivered) == sorted(digests(producer))
    assert (code, report["sent"]["messages"]) == (0, 30)


def test_sigterm_with_a_stalled_consumer_ends_by_the_deadline(nursery: Nursery) -> None:
    """What it did not take is counted, to the message."""
    relay = nursery.relay("--term-timeout", "2", "--memory", "8MiB")
    consumer = nursery.consume("own", relay.pull_url, stall_after=1)
    producer = nursery.produce("pyzmq", relay.push_url, sizes=[MIB] * 60)
    until(lambda: bool(consumer.said("stalled")))
    until_still(lambda: len(producer.said("sent")))
    relay.terminate()
    code, report = relay.finish()
    consumer.tell("go")
    gather(consumer)
    counters = report["counters"]
    assert (code, report["complete"]) == (1, False)
    assert report["received"]["messages"] == report["sent"]["messages"] + counters["undelivered"]
    assert counters["undelivered"] > 0
    assert counters["producers_cut"] == 1
    # Beyond what it got, only what is named as unsure was counted as sent.
    unsure = report["sent"]["messages"] - len(consumer.got())
    assert unsure <= counters["possibly_lost"] + 1 or counters["consumers_broken"]
