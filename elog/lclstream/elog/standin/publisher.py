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
        self._hand: list[tuple[str, Doc]] = []
        self.lost = 0
        """How many messages the broker did not take."""

    def publish(self, topic: str, envelope: Doc) -> None:
        """Take a message; returns at once."""
        self._waiting.put_nowait((topic, envelope))

    async def sent(self) -> None:
        """Wait until everything that was taken was sent."""
        await self._waiting.join()

    async def run(self) -> None:
        """Publish until cancelled; what was taken before is still sent."""
        async with KafkaWriter(self._options) as writer:
            try:
                while True:
                    await self._fill_hand()
                    await self._send_hand(writer)
            finally:
                self._hand += [self._waiting.get_nowait() for _ in range(self._waiting.qsize())]
                await self._send_hand(writer)

    async def _fill_hand(self) -> None:
        """Wait for a message, and a moment for others when they are to be reordered."""
        self._hand.append(await self._waiting.get())
        try:
            async with asyncio.timeout(HOLD_S):
                while len(self._hand) < self._bad.reorder:
                    self._hand.append(await self._waiting.get())
        except TimeoutError:
            logger.debug("reorder_window_closed", extra={"messages": len(self._hand)})

    async def _send_hand(self, writer: KafkaWriter) -> None:
        if self._bad.reorder > 1:
            self._dice.shuffle(self._hand)
        while self._hand:
            topic, envelope = self._hand[0]
            times = 1 + (self._dice.random() < self._bad.duplicate)
            if self._dice.random() < self._bad.lose:
                times = 0
            for _ in range(times):
                await self._send(writer, topic, envelope)
            # Only now: when we are cancelled meanwhile, it is sent at the end.
            del self._hand[0]
            self._waiting.task_done()

    async def _send(self, writer: KafkaWriter, topic: str, envelope: Doc) -> None:
        try:
            await writer.publish(topic, envelope)
        except DeliveryError as error:
            # The real one does not even look.
            self.lost += 1
            logger.warning("message_lost", extra={"topic": topic, "reason": str(error)})
