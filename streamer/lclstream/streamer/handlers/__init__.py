"""Hand messages to sockets and files, one module for each kind."""

from typing import Protocol

from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.config import (
    BinaryDataStreamingDataHandlerConfig,
    BinaryFileWritingDataHandlerConfig,
    DataHandlerConfig,
)
from lclstream.streamer.rank import Place


class Handler(Protocol):
    """Takes messages; has delivered all of them when `close` returns."""

    def send(self, payload: memoryview, events: int) -> None:
        """Take one message; its memory is used again when this returns.

        Raises:
            UnavailableError: nobody took it in time.
            DeliveryError: messages were lost.
        """
        ...

    def close(self, *, complete: bool = True) -> None:
        """Deliver what is left and release everything; may be called again.

        Args:
            complete: whether all that the run has was sent.

        Raises:
            DeliveryError: messages could not be delivered.
        """
        ...

    def abort(self) -> None:
        """Release everything without waiting."""
        ...


def open_handler(config: DataHandlerConfig, place: Place) -> Handler:
    """Return the handler that a configuration names, ready to take messages.

    Raises:
        InvalidConfigError: an address cannot be used, or files of an earlier run are in the way.
    """
    if isinstance(config, BinaryFileWritingDataHandlerConfig):
        from lclstream.streamer.handlers.files import BinaryFileWritingDataHandler

        return BinaryFileWritingDataHandler(config, place)
    return _open_socket(config, place)


def _open_socket(config: BinaryDataStreamingDataHandlerConfig, place: Place) -> Handler:
    urls = urls_of_rank(config, place)
    if config.library == "nng":
        from lclstream.streamer.handlers.nng import NngPushHandler

        return NngPushHandler(config, urls)
    try:
        from lclstream.streamer.handlers.zeromq import ZmqPushHandler
    except ImportError:
        raise InvalidConfigError(
            "library 'zmq' needs pyzmq, which is not installed; 'nng' is built in"
        ) from None
    return ZmqPushHandler(config, urls)


def urls_of_rank(config: BinaryDataStreamingDataHandlerConfig, place: Place) -> list[str]:
    """Return the addresses that this rank uses."""
    urls = config.urls
    if not config.distribute:
        return list(urls)
    if place.size >= len(urls):
        return [urls[place.rank % len(urls)]]
    return urls[place.rank :: place.size]
