"""How the stand-in's messages reach Kafka: in the background, keyless, sometimes badly."""

import asyncio
import logging
import random

from lclstream.core.errors import DeliveryError
from lclstream.elog.config import Options
from lclstream.elog.producer import KafkaWriter
from lclstream.elog.standin.config import MisbehaviourConfig
from lclstream.elog.standin.documents import Doc

logger = logging.getLogger(__name__)

HOLD_S = 0.2
"""Longest time that a message waits for others to be reordered with."""


class Publisher:
    """Takes messages at once and publishes them one after the other.

    Without misbehaviour the order of publication is the order of the calls; partitions are
    random all the same, because there is no key.
    """

    def __init__(self, options: Options, misbehaviour: MisbehaviourConfig) -> None:
        """Prepare; `options` are settings of librdkafka."""
        self._options = options
        self._bad = misbehaviour
        # Not for secrets: the same seed must give the same disorder.
        self._dice = random.Random(misbehaviour.seed)  # noqa: S311
        self._waiting: asyncio.Queue[tuple[str, Doc]] = asyncio.Queue()
        self.lost = 0
        """How many messages the broker did not take."""

    def publish(self, topic: str, envelope: Doc) -> None:
        """Take a message; returns at once."""
        self._waiting.put_nowait((topic, envelope))

    async def run(self) -> None:
        """Publish until cancelled; what was taken before is still sent."""
        async with KafkaWriter(self._options) as writer:
            try:
                while True:
                    await self._send(writer, await self._batch())
            finally:
                rest = [self._waiting.get_nowait() for _ in range(self._waiting.qsize())]
                await self._send(writer, rest)

    async def _batch(self) -> list[tuple[str, Doc]]:
        """Wait for a message, and a moment for others when they are to be reordered."""
        batch = [await self._waiting.get()]
        try:
            async with asyncio.timeout(HOLD_S):
                while len(batch) < self._bad.reorder:
                    batch.append(await self._waiting.get())
        except TimeoutError:
            logger.debug("reorder_window_closed", extra={"messages": len(batch)})
        self._dice.shuffle(batch)
        return batch

    async def _send(self, writer: KafkaWriter, batch: list[tuple[str, Doc]]) -> None:
        for topic, envelope in batch:
            times = 1 + (self._dice.random() < self._bad.duplicate)
            if self._dice.random() < self._bad.lose:
                times = 0
            for _ in range(times):
                try:
                    await writer.publish(topic, envelope)
                except DeliveryError as error:
                    # The real one does not even look.
                    self.lost += 1
                    logger.warning("message_lost", extra={"topic": topic, "reason": str(error)})
