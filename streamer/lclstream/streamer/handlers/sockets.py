"""The sockets that messages are pushed into."""

import os
from pathlib import Path

from lclstream.core.errors import InvalidConfigError
from lclstream.core.ledger import ENV_IDENTITY, identity_folder
from lclstream.core.tls import Credentials
from lclstream.streamer.config import BinaryDataStreamingDataHandlerConfig
from lclstream.streamer.handlers import Handler
from lclstream.streamer.rank import Place


def BinaryDataStreamingDataHandler(  # noqa: N802
    config: BinaryDataStreamingDataHandlerConfig, place: Place
) -> Handler:
    """Return the pushing socket of the library that the configuration names.

    Raises:
        InvalidConfigError: an address cannot be used, or the library is not installed.
        IdentityError: the identity for TLS cannot be used.
    """
    urls = urls_of_rank(config, place)
    try:
        return _opened(config, urls)
    except InvalidConfigError as error:
        if config.role == "server" and place.size > 1 and "in use" in str(error):
            raise InvalidConfigError(
                f"{error}: ranks of one host need a port each; give a range, as"
                " tcp://HOST:5000-5007, of which each takes the first that is free"
            ) from None
        raise


def _opened(config: BinaryDataStreamingDataHandlerConfig, urls: list[str]) -> Handler:
    if config.library == "nng":
        from lclstream.streamer.handlers.nng import NngPushHandler

        return NngPushHandler(config, urls, credentials(config, urls))
    try:
        from lclstream.streamer.handlers.zeromq import ZmqPushHandler
    except ImportError:
        raise InvalidConfigError(
            "library 'zmq' needs pyzmq, which is not installed; 'nng' is built in"
        ) from None
    return ZmqPushHandler(config, urls)


def credentials(
    config: BinaryDataStreamingDataHandlerConfig, urls: list[str]
) -> Credentials | None:
    """Return what connections inside TLS need, None when there is none of them.

    Raises:
        InvalidConfigError: there is no identity.
        IdentityError: it cannot be used.
    """
    if not any(url.startswith("tls+tcp://") for url in urls):
        return None
    if config.identity:
        return Credentials.from_folder(Path(config.identity).expanduser())
    folder = os.environ.get(ENV_IDENTITY)
    if not folder:
        raise InvalidConfigError(
            "tls+tcp needs an identity: the folder with id.crt, id.key, ca.crt"
        )
    return Credentials.from_folder(identity_folder(folder))


def urls_of_rank(config: BinaryDataStreamingDataHandlerConfig, place: Place) -> list[str]:
    """Return the addresses that this rank uses."""
    urls = config.urls
    if not config.distribute:
        return list(urls)
    if place.size >= len(urls):
        return [urls[place.rank % len(urls)]]
    return urls[place.rank :: place.size]
