"""Hand messages to sockets and files, one module for each kind."""

from typing import Protocol

from lclstream.streamer.config import HandlerModel
from lclstream.streamer.config.registry import implementation_of
from lclstream.streamer.message import Message
from lclstream.streamer.rank import Place


class Handler(Protocol):
    """Takes messages; has delivered all of them when `close` returns."""

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
