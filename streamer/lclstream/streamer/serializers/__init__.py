"""Turn batches into messages, one module for each format."""

from typing import Protocol

from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.batching import Batch, Form
from lclstream.streamer.config import HDF5BinarySerializerConfig, Parameters
from lclstream.streamer.rank import Place


class Serializer(Protocol):
    """Makes room for batches, and messages of them."""

    labels: tuple[str, ...]
    """The data sources that go into the messages."""

    def new_batch(self, form: Form, capacity: int) -> Batch:
        """Return an empty batch in the memory that suits the format."""
        ...

    def payload(self, batch: Batch) -> memoryview:
        """Return the message of a batch; it is valid until the batch is used again."""
        ...


def open_serializer(parameters: Parameters, place: Place) -> Serializer:
    """Return the serializer that a configuration names.

    Raises:
        InvalidConfigError: this version does not have it, or its codec is not installed.
    """
    config = parameters.data_serializer
    if isinstance(config, HDF5BinarySerializerConfig):
        from lclstream.streamer.serializers.hdf5 import HDF5BinarySerializer

        return HDF5BinarySerializer(config, parameters, place)
    raise InvalidConfigError(f"{config.type} is not supported by this version")
