"""Publishing JSON on Kafka, with an answer for each message.

librdkafka reports deliveries only while it is polled, so a thread polls it.
"""

import asyncio
import json
import logging
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from lclstream.core.errors import DeliveryError, InvalidConfigError, UnavailableError
from lclstream.elog.config import Options
from lclstream.elog.librdkafka import client_logger

logger = logging.getLogger(__name__)

POLL_S = 0.05
"""Longest time until the thread sees the request to stop."""

DELIVERY_TIMEOUT_MS = 30_000
"""How long a message may wait for a broker before its writer is told that it failed."""


class KafkaWriter:
    """Publishes JSON; a call returns when the broker has the message.

    Resource handling: an asynchronous context manager; owns a thread and the connections.
    """

    def __init__(self, options: Options) -> None:
        """Describe where to write; `options` are settings of librdkafka."""
        self._options: dict[str, Any] = {
            "message.timeout.ms": DELIVERY_TIMEOUT_MS,
            "reconnect.backoff.max.ms": 2000,
            **options,
        }
        self._producer: Producer | None = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    async def __aenter__(self) -> Self:
        """Start; does not wait for a broker.

        Raises:
            InvalidConfigError: a setting that librdkafka does not know.
        """
        try:
            self._producer = producer = Producer(self._options, logger=client_logger(__name__))
        except KafkaException as error:
            raise InvalidConfigError(f"kafka: {error.args[0].str()}") from None

        def work() -> None:
            while not self._stop.is_set():
                producer.poll(POLL_S)

        self._thread = threading.Thread(target=work, name="kafka writer")
        self._thread.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            # It ends within one poll.
            self._thread.join()
        # Nobody waits any more for what is still on its way.
        if self._producer is not None:
            self._producer.purge()
            self._producer.flush(0)
            self._producer = None

    async def publish(
        self,
        topic: str,
        document: Mapping[str, Any],
        *,
        key: str | None = None,
        partition: int | None = None,
    ) -> None:
        """Send a document and wait until it is stored.

        Args:
            topic: where to.
            document: becomes UTF-8 JSON.
            key: decides the partition; without one it is random.
            partition: a fixed one; None to leave it to the key.

        Raises:
            DeliveryError: the broker refused it, or did not take it in time.
        """
        if self._producer is None:
            raise UnavailableError("the Kafka writer is not started")
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def delivered(error: KafkaError | None, _: Message) -> None:
            if error is None:
                loop.call_soon_threadsafe(_succeed, done)
            else:
                failure = DeliveryError(f"Kafka topic {topic}: {error.str()}", undelivered=1)
                loop.call_soon_threadsafe(_fail, done, failure)

        try:
            self._producer.produce(
                topic,
                json.dumps(document).encode(),
                key=key,
                partition=-1 if partition is None else partition,
                on_delivery=delivered,
            )
        except (BufferError, KafkaException) as error:
            raise DeliveryError(f"Kafka topic {topic}: {error}", undelivered=1) from None
        await done


def _succeed(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _fail(future: asyncio.Future[None], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
