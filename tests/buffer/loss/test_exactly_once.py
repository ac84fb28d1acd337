"""Every message exactly once, whoever is killed: an independent md5 tally over random rounds."""

from pathlib import Path

import pytest
from tests.buffer.loss.nursery import Nursery
from tests.buffer.loss.oracle import DISTINCT_BYTES
from tests.buffer.loss.rounds import ALL_KINDS, Round
from tests.buffer.loss.scale import pick

pytestmark = pytest.mark.timeout(300)


# Each is played in turn.
VARIANTS: tuple[tuple[str, ...], ...] = ((), ("--lanes", "2"))


def variant(seed: int) -> tuple[str, ...]:
    return VARIANTS[seed % len(VARIANTS)]


def anybody(*kinds: str) -> tuple[tuple[str, str], ...]:
    return tuple((role, kind) for role in ("produce", "consume") for kind in kinds)


@pytest.mark.parametrize("seed", range(pick(4, 80)))
def test_fast_never_twice_and_losses_are_named(nursery: Nursery, seed: int) -> None:
    """Whoever is killed: nothing comes twice, and what is missing went to the dead."""
    played = Round(
        nursery, seed, ALL_KINDS, anybody(*ALL_KINDS), ("--delivery", "fast", *variant(seed))
    )
    played.run()
    verdict = played.verdict()
    told = played.told()
    report = played.report
    assert not verdict.unknown, told
    assert not verdict.twice, told
    survivors = [producer for producer in played.producers if not producer.killed]
    assert all(producer.how == "closed" for producer in survivors), told
    # What a producer had not handed over when it was killed is nobody's loss.
    accepted = report["received"]["messages"]
    assert accepted >= sum(len(producer.orders.sizes) for producer in survivors), told
    undelivered = report["counters"]["undelivered"]
    assert accepted == report["sent"]["messages"] + undelivered, told
    with_the_dead = played.delivered_to_the_dead() - sum(
        len(consumer.got()) for consumer in played.consumers if consumer.killed
    )
    assert accepted - len(played.got) == with_the_dead + undelivered, told
    assert (played.code == 0) == report["complete"], told
    if not played.killed:
        assert played.code == 0, told
        assert not verdict.lost, told


@pytest.mark.parametrize("seed", range(pick(4, 80)))
def test_safe_loses_nothing(nursery: Nursery, seed: int) -> None:
    """Our own ends are killed, and plain producers: all that was accepted arrives."""
    mortal = (*anybody("safe"), ("produce", "pynng"), ("produce", "pyzmq"))
    kinds = ("pynng", "pyzmq", "safe")
    played = Round(nursery, seed, kinds, mortal, ("--delivery", "safe", *variant(seed)))
    played.run()
    told = played.told()
    verdict = played.verdict()
    report = played.report
    assert not verdict.unknown, told
    assert_only_the_dead_stopped(played)
    assert_only_unacknowledged_twice(played)
    counters = report["counters"]
    assert report["received"]["messages"] == report["sent"]["messages"], told
    assert len(played.got) - verdict.twice.total() == report["received"]["messages"], told
    assert counters["undelivered"] == counters["possibly_lost"] == 0, told
    if not any(producer.killed for producer in played.producers):
        assert played.code == 0, told


@pytest.mark.parametrize("seed", range(1, pick(5, 61)))
def test_durable_outlives_its_buffer(nursery: Nursery, tmp_path: Path, seed: int) -> None:
    """The buffer itself is killed, with our own ends around it: all arrives in the end."""
    mortal = (("buffer", ""), ("consume", "safe"))
    options = ("--delivery", "safe", "--durable", str(tmp_path / "journal"))
    played = Round(nursery, seed, ("safe",), mortal, options)
    played.run()
    told = played.told()
    verdict = played.verdict()
    assert not verdict.unknown, told
    assert not verdict.lost, told
    assert all(producer.how == "closed" for producer in played.producers), told
    assert all(consumer.killed or consumer.how == "closed" for consumer in played.consumers), told
    # Whether a producer had said goodbye may be forgotten with the buffer; that is told.
    faults = played.report["error"].split("; ")[:-1]
    assert not [fault for fault in faults if "ended without a word" not in fault], told


def assert_only_the_dead_stopped(played: Round) -> None:
    """What is missing is the end of what a killed producer would have sent."""
    lost = set(played.verdict().lost)
    alike_lost = alike_of_the_dead = 0
    for producer in played.producers:
        told = []
        for index, size in enumerate(producer.orders.sizes):
            is_lost = f"{producer.orders.producer}/{index}" in lost
            if size >= DISTINCT_BYTES:
                told.append(is_lost)
            else:
                alike_lost += is_lost
                alike_of_the_dead += producer.killed
        assert told == sorted(told), played.told()
        assert producer.killed or not any(told), played.told()
    # Of those that look alike only the number is known.
    assert alike_lost <= alike_of_the_dead, played.told()


def assert_only_unacknowledged_twice(played: Round) -> None:
    """What came twice was among the last that a killed consumer had."""
    twice = played.verdict().twice
    last = {digest for consumer in played.consumers if consumer.killed for digest in consumer.got()}
    assert set(twice) <= last, played.told()
