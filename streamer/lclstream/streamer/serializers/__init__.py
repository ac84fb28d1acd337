"""Turn batches into messages, one module for each format."""

from collections.abc import Iterable
from typing import Protocol

from lclstream.streamer.batching import Batch, Form
from lclstream.streamer.config import Parameters, SerializerModel
from lclstream.streamer.config.registry import implementation_of
from lclstream.streamer.message import Message
from lclstream.streamer.rank import Place


class Serializer(Protocol):
    """Makes room for batches, and messages of them."""

    labels: tuple[str, ...]
    """The values that go into the messages."""

    def __init__(self, config: SerializerModel, parameters: Parameters, place: Place) -> None:
        """Prepare.

        Raises:
            InvalidConfigError: its codec is not installed.
        """

    def new_batch(self, form: Form, capacity: int) -> Batch:
        """Return an empty batch in the memory that suits the format."""
        ...

    def messages(self, batch: Batch) -> Iterable[Message]:
        """Yield the messages of a batch; they are valid until the batch is used again.

        The first one has the number `batch.sequence` in this rank, the others those after it.
        """
        ...

    def begin(self) -> Iterable[Message]:
        """Yield what goes before the first batch of all ranks.

        Called once, of one rank only, before its first call of `messages`: when its first batch is
        complete, so that the serializer can look at the batch that it has made; or when it has
        none. With several ranks all of them also call this and `end` at their start, to learn
        whether there is anything to agree on, and drop what they get.
        """
        ...

    def end(self) -> Iterable[Message]:
        """Yield what goes behind the last batch of all ranks; called once, as `begin`."""
        ...

    def close(self) -> None:
        """Release threads and memory; may be called again."""
        ...


def open_serializer(parameters: Parameters, place: Place) -> Serializer:
    """Return the serializer that a configuration names.

    Raises:
        InvalidConfigError: its codec is not installed.
    """
    config = parameters.data_serializer
    kind = implementation_of(config, Serializer)  # type: ignore[type-abstract]
    return kind(config, parameters, place)
