"""Reading from Kafka as a member of a consumer group.

librdkafka blocks while it polls, so it lives in a thread and hands what it reads to the event
loop. An unknown topic, a broker that is down and a rebalance are part of life: they are logged
and show in the statistics, and work goes on when they are over. Only what librdkafka itself
calls fatal, or a setting that it does not know, ends the reader.
"""

import asyncio
import json
import logging
import queue
import threading
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from lclstream.core.errors import InvalidConfigError, UnavailableError
from lclstream.elog.config import Options
from lclstream.elog.librdkafka import client_logger
from lclstream.elog.messages import InLoop, RawMessage, ReaderStatistics, Receiver
from lclstream.elog.models import Position
from lclstream.elog.offsets import OffsetTracker, Partition

logger = logging.getLogger(__name__)

POLL_S = 0.05
"""Longest time until a finished message is committed and a request to stop is seen."""

LAST_COMMIT_S = 3.0
"""For the commit before leaving; a blocking commit waits a minute for a broker that hangs."""

LEAVE_S = 5.0
"""For leaving the group, which has no time limit of its own."""

MEASURE_S = 0.25
"""How old the statistics may be."""

COMMIT_RETRY_S = 1.0
"""Pause after a commit that the broker did not take."""

REPEATED_ERROR_S = 30.0
"""The same error is logged again only after this time."""

_CONNECTION_ERRORS = ("_ALL_BROKERS_DOWN", "_TRANSPORT", "_RESOLVE", "_TIMED_OUT")

DEFAULTS: Options = {
    # Partitions that stay keep their messages in flight when another watcher comes or goes.
    "partition.assignment.strategy": "cooperative-sticky",
    # A topic that appears later is found within this time.
    "topic.metadata.refresh.interval.ms": 5000,
    "reconnect.backoff.max.ms": 2000,
    # A broker that hangs must not hold up the end of the service.
    "socket.timeout.ms": 5000,
    # How often librdkafka tells the state of its connections.
    "statistics.interval.ms": 2000,
}


class KafkaReader:
    """Reads topics as a member of a group; commits only what was finished.

    Resource handling: `run` owns a thread and the connections; both are gone when it returns.

    Error handling: `run` raises InvalidConfigError for a setting that librdkafka does not know,
    UnavailableError for what librdkafka calls fatal; everything else is survived.
    """

    def __init__(
        self, options: Options, group: str, topics: Iterable[str], *, in_flight: int
    ) -> None:
        """Describe what to read.

        Args:
            options: shared settings of librdkafka.
            group: the consumer group.
            topics: names; they need not exist yet.
            in_flight: at how many unfinished messages to stop reading.
        """
        self._options: dict[str, Any] = {
            **DEFAULTS,
            **options,
            "group.id": group,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            # A new group reads what is there; the age of an event decides whether it fires.
            "auto.offset.reset": "earliest",
            "error_cb": self._on_error,
            "on_commit": self._on_commit,
            "stats_cb": self._on_statistics,
        }
        self._topics = list(topics)
        self._bound = in_flight
        self._finished: queue.SimpleQueue[RawMessage] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._tracker = OffsetTracker()
        self._committed: dict[Partition, int] = {}
        self._committing = False
        self._commit_after = 0.0
        self._paused = False
        self._errors_logged: dict[str, float] = {}
        self._statistics = ReaderStatistics()
        self._error = ""
        self._commits = 0
        self._measure_after = 0.0
        self._joined = False
        self._connected = False

    @property
    def statistics(self) -> ReaderStatistics:
        """How the reader stands now."""
        return self._statistics

    def finish(self, message: RawMessage) -> None:
        """A message was handled and may be committed; safe from any thread."""
        self._finished.put(message)

    async def run(self, receiver: Receiver) -> None:
        """Read until cancelled; then commit what is finished and leave the group."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()

        def work() -> None:
            try:
                self._read(InLoop(receiver, loop))
            except Exception as error:
                loop.call_soon_threadsafe(_fail, ended, error)
            else:
                loop.call_soon_threadsafe(_succeed, ended)

        thread = threading.Thread(target=work, name="kafka reader")
        thread.start()
        try:
            await asyncio.shield(ended)
        finally:
            self._stop.set()
            await asyncio.wait([ended])
            thread.join()

    def _read(self, receiver: Receiver) -> None:
        try:
            consumer = Consumer(self._options, logger=client_logger(__name__))
        except KafkaException as error:
            raise InvalidConfigError(f"kafka: {error.args[0].str()}") from None

        def on_assign(_: Consumer, partitions: list[TopicPartition]) -> None:
            # New partitions arrive unpaused.
            self._paused = False
            self._joined = self._connected = True
            self._measure_after = 0.0
            receiver.assigned()
            logger.info("partitions_assigned", extra={"partitions": _names(partitions)})

        def on_revoke(current: Consumer, partitions: list[TopicPartition]) -> None:
            # The next reader begins where we say, so say it while we still may.
            if not self._stop.is_set():
                self._take_finished()
                self._commit_now(current)
            on_lost(current, partitions)

        def on_lost(_: Consumer, partitions: list[TopicPartition]) -> None:
            gone = frozenset((each.topic, each.partition) for each in partitions)
            self._tracker.drop(gone)
            for partition in gone:
                self._committed.pop(partition, None)
            receiver.revoked(gone)
            logger.info("partitions_revoked", extra={"partitions": _names(partitions)})

        consumer.subscribe(self._topics, on_assign=on_assign, on_revoke=on_revoke, on_lost=on_lost)
        try:
            while not self._stop.is_set():
                self._turn(consumer, receiver)
            self._commit_last(consumer)
        finally:
            _close(consumer)

    def _turn(self, consumer: Consumer, receiver: Receiver) -> None:
        self._take_finished()
        self._commit(consumer)
        self._balance(consumer)
        message = consumer.poll(POLL_S)
        if message is not None:
            self._take(message, receiver)
        if time.monotonic() > self._measure_after:
            self._measure_after = time.monotonic() + MEASURE_S
            self._statistics = self._measure(consumer)

    def _take(self, message: Message, receiver: Receiver) -> None:
        error = message.error()
        if error is not None:
            self._on_error(error)
            return
        topic, partition, offset = message.topic(), message.partition(), message.offset()
        if topic is None or partition is None or offset is None:
            return
        self._error = ""
        position = Position(
            topic=topic,
            partition=partition,
            offset=offset,
            recorded_at=_recorded_at(message),
        )
        self._tracker.begin((topic, partition), offset)
        receiver.deliver(RawMessage(value=message.value(), position=position))

    def _take_finished(self, wait_s: float = 0.0) -> None:
        """Note what was finished; wait for a first one at most so long."""
        while True:
            try:
                message = self._finished.get(block=wait_s > 0, timeout=wait_s or None)
            except queue.Empty:
                return
            wait_s = 0.0
            self._tracker.finish(message.partition, message.position.offset)

    def _balance(self, consumer: Consumer) -> None:
        """Pause or resume reading; polling goes on, else the group takes us for dead."""
        # Resumed at half, not at the first gap: librdkafka fetches anew after each pause.
        bound = max(1, self._bound // 2) if self._paused else self._bound
        if not self._paused and self._tracker.in_flight >= bound:
            # Most messages take no time at all: pausing for them would cost far more.
            self._take_finished(POLL_S)
        full = self._tracker.in_flight >= bound
        if full != self._paused:
            change = consumer.pause if full else consumer.resume
            change(consumer.assignment())
            self._paused = full

    def _uncommitted(self) -> list[TopicPartition]:
        return [
            TopicPartition(*partition, offset)
            for partition, offset in self._tracker.positions().items()
            if self._committed.get(partition) != offset
        ]

    def _commit(self, consumer: Consumer) -> None:
        """Start a commit unless one is under way; `_on_commit` gets the answer."""
        if self._committing or time.monotonic() < self._commit_after:
            return
        offsets = self._uncommitted()
        if offsets:
            self._committing = True
            consumer.commit(offsets=offsets, asynchronous=True)

    def _commit_now(self, consumer: Consumer) -> None:
        """Commit and wait; what fails is read again by the next reader."""
        offsets = self._uncommitted()
        if not offsets:
            return
        try:
            consumer.commit(offsets=offsets, asynchronous=False)
        except KafkaException as error:
            self._on_error(error.args[0])

    def _commit_last(self, consumer: Consumer) -> None:
        """Commit what is finished before we leave, unless the broker does not answer."""
        self._take_finished()
        # Nothing may be read any more, but a poll is what brings the answer.
        consumer.pause(consumer.assignment())
        until = time.monotonic() + LAST_COMMIT_S
        self._commit_after = 0.0
        self._commit(consumer)
        while self._committing and time.monotonic() < until:
            consumer.poll(POLL_S)
            self._commit(consumer)

    def _on_commit(self, error: KafkaError | None, partitions: list[TopicPartition]) -> None:
        self._committing = False
        errors = [error, *(each.error for each in partitions)]
        failed = next((each for each in errors if each is not None), None)
        if failed is not None:
            self._commit_after = time.monotonic() + COMMIT_RETRY_S
            self._on_error(failed)
            return
        self._error = ""
        self._commits += 1
        self._committed |= {(each.topic, each.partition): each.offset for each in partitions}

    def _on_statistics(self, text: str) -> None:
        brokers = json.loads(text).get("brokers", {}).values()
        # A name to connect to first has a negative id and stays beside the broker itself.
        self._connected = any(each["state"] == "UP" for each in brokers)
        if self._connected and self._error.startswith(_CONNECTION_ERRORS):
            self._error = ""

    def _on_error(self, error: KafkaError) -> None:
        if error.fatal():
            raise UnavailableError(f"Kafka: {error.str()}")
        self._error = f"{error.name()}: {error.str()}"
        now = time.monotonic()
        if now > self._errors_logged.get(error.name(), 0.0):
            self._errors_logged[error.name()] = now + REPEATED_ERROR_S
            logger.warning("kafka_trouble", extra={"error": error.name(), "reason": error.str()})

    def _measure(self, consumer: Consumer) -> ReaderStatistics:
        assignment = consumer.assignment()
        return ReaderStatistics(
            connected=self._connected,
            joined=self._joined,
            partitions=_names(assignment),
            lag_messages=self._lag(consumer, assignment),
            in_flight=self._tracker.in_flight,
            paused=self._paused,
            committed=self._commits,
            error=self._error,
        )

    def _lag(self, consumer: Consumer, assignment: list[TopicPartition]) -> int | None:
        """Sum what is stored beyond our positions, from what the client knows already."""
        done = self._tracker.positions()
        total, known = 0, False
        for partition in consumer.position(assignment) if assignment else []:
            key = (partition.topic, partition.partition)
            try:
                _, high = consumer.get_watermark_offsets(TopicPartition(*key), cached=True)
            except KafkaException:
                # Nothing was fetched from there so far.
                continue
            position = done.get(key, partition.offset)
            if high >= 0 and position >= 0:
                known = True
                total += max(0, high - position)
        return total if known else None


def _close(consumer: Consumer) -> None:
    """Leave the group; a broker that hangs is left without a word, and finds out by itself."""
    closer = threading.Thread(target=consumer.close, name="kafka closer", daemon=True)
    closer.start()
    closer.join(LEAVE_S)
    if closer.is_alive():
        logger.warning("group_not_left", extra={"reason": "the broker does not answer"})


def _recorded_at(message: Message) -> datetime:
    """Return the broker's time of a message, now if it has none."""
    _, milliseconds = message.timestamp()
    if milliseconds <= 0:
        return datetime.now(UTC)
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def _succeed(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _fail(future: asyncio.Future[None], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


def _names(partitions: Iterable[TopicPartition]) -> tuple[str, ...]:
    return tuple(sorted(f"{each.topic}:{each.partition}" for each in partitions))
