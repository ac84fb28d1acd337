"""The sockets that messages are pushed into."""

from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.config import BinaryDataStreamingDataHandlerConfig
from lclstream.streamer.handlers import Handler
from lclstream.streamer.rank import Place


def BinaryDataStreamingDataHandler(  # noqa: N802
    config: BinaryDataStreamingDataHandlerConfig, place: Place
) -> Handler:
    """Return the pushing socket of the library that the configuration names.

    Raises:
        InvalidConfigError: an address cannot be used, or the library is not installed.
    """
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
