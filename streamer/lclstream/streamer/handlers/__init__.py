"""Hand messages to sockets and files, one module for each kind."""

from collections.abc import Iterator
from typing import Protocol

from lclstream.streamer.config import (
    BinaryDataStreamingDataHandlerConfig,
    HandlerModel,
    Parameters,
)
from lclstream.streamer.config.registry import implementation_of
from lclstream.streamer.message import Message
from lclstream.streamer.rank import Place


class Handler(Protocol):
    """Takes messages; has delivered all of them when `close` returns.

    All methods are called by one thread, that which made it excepted. It may also have

    - `settled`, a number: how many messages, from the first one on, will not be lost whatever
      happens to this process. Without it, that is a message for which `send` has returned;
    - `settle()`, which waits until the other side has all that was sent;
    - `prepare(configuration)`, called before the first message with the hash of the configuration;
      returns the `EventSet` of what earlier runs have delivered, if it is to continue one.
    """

    def __init__(self, config: HandlerModel, place: Place) -> None:
        """Open everything.

        Raises:
            InvalidConfigError: an address cannot be used, or files of an earlier run are in the
                way.
        """

    def send(self, message: Message) -> None:
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


def open_handler(config: HandlerModel, place: Place) -> Handler:
    """Return the handler that a configuration names, ready to take messages.

    Raises:
        InvalidConfigError: an address cannot be used, or files of an earlier run are in the way.
    """
    kind = implementation_of(config, Handler)  # type: ignore[type-abstract]
    return kind(config, place)


def open_handlers(parameters: Parameters, place: Place) -> Iterator[tuple[str, Handler]]:
    """Open one handler after the other, and yield their names in figures with them.

    Raises:
        InvalidConfigError: as of `open_handler`.
    """
    for number, config in enumerate(parameters.data_handlers):
        copies = each_alone(config)
        for copy, alone in enumerate(copies):
            name = f"{number}.{copy}" if len(copies) > 1 else f"{number}"
            yield name, open_handler(alone, place)


def each_alone(config: HandlerModel) -> list[HandlerModel]:
    """Return the handlers that a configuration means: a mirror is one for each of its urls."""
    if not (isinstance(config, BinaryDataStreamingDataHandlerConfig) and config.mirror):
        return [config]
    return [config.model_copy(update={"urls": [url], "mirror": False}) for url in config.urls]
