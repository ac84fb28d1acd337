"""A durable buffer is killed, and started again, and has lost nothing."""

import os
import random
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.buffer.disk_ends import (
    AcknowledgingConsumer,
    PlainProducer,
    SafeProducer,
    numbered,
    pull_plain,
    until,
)
from tests.buffer.forked import Forks
from tests.buffer.loss.nursery import Nursery, RelayProcess, nursery_at

from lclstream.buffer.journal import Journal, Recovered

ROUNDS = 12
MESSAGES = 150
PRODUCERS = 2


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    with nursery_at(tmp_path_factory.mktemp("processes")) as made:
        yield made


def start(nursery: Nursery, journal: Path, *options: str) -> RelayProcess:
    words = ("--durable", str(journal), "--delivery", "safe", *options)
    return nursery.relay(*words)


def look_into(journal: Path) -> Recovered:
    """Return what a buffer that was started now would find."""
    copy = journal.with_name("copy")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(journal, copy)
    opened = Journal(copy)
    opened.close(is_complete=False)
    return opened.recovered


def counts(journal: Path) -> tuple[int, int]:
    """Return how many messages the journal has accepted, and how many wait."""
    found = look_into(journal)
    return found.received.messages, found.waiting.messages


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Path]:
    """A folder that a killed process leaves as it is, and that costs no time if possible."""
    memory = Path("/dev/shm")  # noqa: S108
    if not os.access(memory, os.W_OK):
        yield tmp_path / "journal"
        return
    with tempfile.TemporaryDirectory(dir=memory, prefix="lclstream-test-") as folder:
        yield Path(folder) / "journal"


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks() as made:
        yield made


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_killed_at_any_moment_it_loses_nothing(forks: Forks, journal: Path, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311
    memory_bytes = chance.choice([1, 4, 64]) << 20
    buffer = forks.start(journal, memory_bytes)
    addresses = buffer.addresses
    messages = [
        numbered(number, chance.choice([0, 100, 10_000, 200_000]))
        for number in range(PRODUCERS * MESSAGES)
    ]
    producers = [
        SafeProducer(addresses[0], messages[first::PRODUCERS]) for first in range(PRODUCERS)
    ]
    consumers = [AcknowledgingConsumer(addresses[1]) for _ in range(chance.choice([1, 2]))]
    kills = 1 + seed % 2
    try:
        for kill in range(kills):
            enough = len(messages) * (kill + chance.random()) / kills
            until(
                lambda enough=enough: sum(len(each.got) for each in consumers) >= enough,  # type: ignore[misc]
                "messages at the consumers",
            )
            buffer.kill()
            buffer = forks.start(journal, memory_bytes)
            assert buffer.addresses == addresses
        for producer in producers:
            producer.join()
            assert producer.error is None
        until(
            lambda: {body for each in consumers for body in each.got} == set(messages),
            "every message at a consumer",
        )
        report = buffer.finish()
    finally:
        buffer.kill()
        for each in consumers:
            each.stop()
            assert each.error is None
    got = Counter(body for each in consumers for body in each.got)
    assert set(got) == set(messages)
    # Twice only what was with a consumer, unacknowledged, when the buffer was killed.
    assert max(got.values()) <= 1 + kills
    assert report["state"] == "complete"
    assert report["received"]["messages"] == report["sent"]["messages"] == len(messages)
    assert report["received"]["digest"] == report["sent"]["digest"] != ""
    # What is finished is not kept.
    assert list(journal.glob("messages-*")) == []


def test_what_was_acknowledged_does_not_come_again(nursery: Nursery, journal: Path) -> None:
    messages = [numbered(number, 50_000) for number in range(200)]
    buffer = start(nursery, journal, "--memory", "2MiB")
    producer = SafeProducer(buffer.push_url, messages)
    pull = pull_plain(buffer.pull_url, acknowledge=True)
    # Asking for the last one acknowledges those before.
    first = [next(pull) for _ in range(121)]
    producer.join()
    until(lambda: counts(journal) == (200, 80), "120 consumed in the journal")
    buffer.kill()
    pull.close()
    buffer = start(nursery, journal, "--memory", "2MiB")
    pull = pull_plain(buffer.pull_url)
    second = [next(pull) for _ in range(80)]
    assert first[:120] + second == messages
    buffer.terminate()
    assert list(pull) == []
    code, report = buffer.finish()
    assert code == 0
    assert report["sent"]["messages"] == 200


def test_messages_of_plain_producers_survive(nursery: Nursery, journal: Path) -> None:
    messages = [numbered(number, size) for number, size in enumerate([0, 1, 300_000, 5000] * 20)]
    buffer = start(nursery, journal)
    PlainProducer(buffer.push_url, iter(messages)).join()
    until(lambda: counts(journal) == (80, 80), "80 in the journal")
    buffer.kill()
    buffer = start(nursery, journal)
    pull = pull_plain(buffer.pull_url)
    assert [next(pull) for _ in messages] == messages
    buffer.terminate()
    assert list(pull) == []
    assert buffer.finish()[0] == 0


def test_what_is_not_delivered_at_the_end_is_kept(nursery: Nursery, journal: Path) -> None:
    messages = [numbered(number, 1000) for number in range(50)]
    buffer = start(nursery, journal, "--consumer-timeout", "0")
    SafeProducer(buffer.push_url, messages).join()
    buffer.terminate()
    code, report = buffer.finish()
    assert code == 1
    assert report["counters"]["undelivered"] == report["counters"]["kept_on_disk"] == 50
    buffer = start(nursery, journal)
    pull = pull_plain(buffer.pull_url)
    assert [next(pull) for _ in messages] == messages
    buffer.terminate()
    assert list(pull) == []
    assert buffer.finish()[0] == 0


def test_service_that_is_killed_goes_on_where_it_was(nursery: Nursery, journal: Path) -> None:
    """The whole program: first one of its processes dies, then all of them."""
    messages = [numbered(number, 20_000) for number in range(100)]
    buffer = start(nursery, journal)
    addresses = buffer.addresses
    SafeProducer(buffer.push_url, messages).join()
    (lane,) = [pid for pid in buffer.family() if pid != buffer.pid]
    os.kill(lane, signal.SIGKILL)
    consumer = AcknowledgingConsumer(buffer.pull_url)
    try:
        until(lambda: len(set(consumer.got)) >= 50, "half of the messages")
        buffer.kill()
        buffer = start(nursery, journal)
        assert buffer.addresses == addresses
        until(lambda: set(consumer.got) == set(messages), "all messages")
        buffer.terminate()
        code, report = buffer.finish()
    finally:
        consumer.stop()
    assert (code, report["error"]) == (0, ""), buffer.log()
    assert report["received"]["messages"] == 100
    assert report["received"] == report["sent"]


def test_second_buffer_in_the_folder_is_refused(nursery: Nursery, journal: Path) -> None:
    buffer = start(nursery, journal, "--linger", "0")
    second = nursery.unready_relay("--durable", str(journal), "--delivery", "safe")
    assert second.wait() == 2
    assert "is in use by another buffer" in second.log()
    buffer.terminate()
    assert buffer.finish()[0] == 0
