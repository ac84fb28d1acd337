"""Pushes messages to NNG receivers and our own buffer."""

import logging

from lclstream.buffer.endpoints import Push
from lclstream.core.tls import Credentials
from lclstream.streamer.config import BinaryDataStreamingDataHandlerConfig
from lclstream.streamer.message import Message

logger = logging.getLogger(__name__)


class NngPushHandler:
    """One pushing socket, which shares the messages between its addresses.

    What a message consists of goes to the kernel as it lies in memory. In safe delivery it is
    copied once, because it is kept longer than its memory belongs to it.
    """

    def __init__(
        self,
        config: BinaryDataStreamingDataHandlerConfig,
        urls: list[str],
        tls: Credentials | None = None,
    ) -> None:
        """Connect or listen.

        Raises:
            InvalidConfigError: an address cannot be used.
            IdentityError: the credentials cannot be used.
        """
        listens = config.role == "server"
        self._config = config
        self._push = Push(
            urls,
            listen=listens,
            delivery=config.delivery,
            send_timeout_s=config.send_timeout_s,
            # Who listens waits for its receivers as long as for a slow one.
            connect_timeout_s=config.send_timeout_s if listens else config.connect_timeout_s,
            tls=tls,
            sndbuf_bytes=config.buffer or None,
        )
        if listens:
            logger.info("listening", extra={"urls": self.urls})

    @property
    def urls(self) -> list[str]:
        """The addresses in use, with the real port in place of 0."""
        return list(self._push.urls)

    def send(self, message: Message) -> None:
        """Send one message; it is in the kernel, or kept until acknowledged, when this returns.

        Raises:
            UnavailableError: nobody took it in time.
            DeliveryError: a connection broke with messages on it.
        """
        self._push.send(message.parts)

    @property
    def settled(self) -> int:
        """How many messages, from the first one on, are safe whatever becomes of this process."""
        return self._push.settled

    def settle(self) -> None:
        """Wait until the receivers, or their kernels, have all that was sent.

        Raises:
            UnavailableError: they have not acknowledged it in time.
            DeliveryError: messages were lost.
        """
        self._push.settle()

    def close(self, *, complete: bool = True) -> None:
        """Wait until the receivers, or their kernels, have acknowledged everything.

        Raises:
            DeliveryError: messages were lost.
            UnavailableError: nobody took the end of the stream.
        """
        if complete and self._config.end_of_stream:
            self._push.send_end()
        self._push.close(self._config.flush_timeout_s)

    def abort(self) -> None:
        """Close the connections without waiting."""
        self._push.abort()
