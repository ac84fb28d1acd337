"""Pushes messages to NNG receivers and our own buffer."""

from lclstream.buffer.endpoints import Push
from lclstream.streamer.config import BinaryDataStreamingDataHandlerConfig
from lclstream.streamer.message import Message


class NngPushHandler:
    """One pushing socket, which shares the messages between its addresses."""

    def __init__(self, config: BinaryDataStreamingDataHandlerConfig, urls: list[str]) -> None:
        """Connect or listen.

        Raises:
            InvalidConfigError: an address cannot be used.
        """
        listens = config.role == "server"
        self._flush_timeout_s = config.flush_timeout_s
        self._push = Push(
            urls,
            listen=listens,
            delivery=config.delivery,
            send_timeout_s=config.send_timeout_s,
            # Who listens waits for its receivers as long as for a slow one.
            connect_timeout_s=config.send_timeout_s if listens else config.connect_timeout_s,
        )

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
        self._push.send(message.joined())

    def close(self, *, complete: bool = True) -> None:
        """Wait until the receivers, or their kernels, have acknowledged everything.

        Raises:
            DeliveryError: messages were lost.
        """
        del complete
        self._push.close(self._flush_timeout_s)

    def abort(self) -> None:
        """Close the connections without waiting."""
        self._push.abort()
