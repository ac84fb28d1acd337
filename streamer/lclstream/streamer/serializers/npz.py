"""Messages that are `.npz` archives, as `numpy.savez` and `numpy.savez_compressed` write them.

A member holds the values of one data source, axis 0 = events, and is named after it;
`numpy.load` gives them by these names. What else there is stands in
`lclstream.streamer.serializers.contents`; readers that ask for their names only never see it.
"""

from collections.abc import Iterable

import numpy as np

from lclstream.streamer.batching import Batch, Form
from lclstream.streamer.config import Parameters
from lclstream.streamer.config.more_serializers import NumpyBinarySerializerConfig
from lclstream.streamer.message import Message
from lclstream.streamer.rank import Place
from lclstream.streamer.serializers.contents import (
    GROUP,
    BatchSerializer,
    Data,
    Provenance,
    named_data,
)
from lclstream.streamer.serializers.held import held_batch
from lclstream.streamer.serializers.npz_archive import (
    Archive,
    Member,
    deflated_member,
    stored_member,
)
from lclstream.streamer.serializers.workers import OrderedWorkers

# Behind the name of an image: its size before it was padded.
ORIGINAL_SHAPE = "_original_shape"


class NumpyBinarySerializer(BatchSerializer):
    """Makes one archive of each batch; uncompressed arrays are sent from where they are."""

    def __init__(
        self, config: NumpyBinarySerializerConfig, parameters: Parameters, place: Place
    ) -> None:
        super().__init__(parameters.labels)
        self._config = config
        self._names = {label: label for label in self.labels}
        self._provenance = Provenance(parameters, place) if config.identification else None
        self._workers = OrderedWorkers(config.compression_threads)

    def new_batch(self, form: Form, capacity: int) -> Batch:
        """Return an empty batch."""
        return held_batch(form, capacity)

    def messages(self, batch: Batch) -> Iterable[Message]:
        """Return the one message of a batch; it is valid until the batch is used again."""
        archive = Archive()
        for name, data in named_data(batch, self._names, GROUP, self._provenance):
            archive.add(self._member(name, _shape_of_batch(name, batch) or data))
        return (Message(archive.finish(), batch.count),)

    def close(self) -> None:
        """End the threads that compress."""
        self._workers.close()

    def _member(self, name: str, data: Data) -> Member:
        if not self._config.use_compression:
            return stored_member(name, data)
        return deflated_member(name, data, self._config.compression_level, self._workers)


def _shape_of_batch(name: str, batch: Batch) -> Data | None:
    """Return the original shape of images as receivers expect it: one for the whole batch.

    That is [events, channels, rows, columns] in place of one [channels, rows, columns] an event,
    when these are all alike; None when it is something else.
    """
    image, shapes = name.removesuffix(ORIGINAL_SHAPE), batch.arrays.get(name)
    if image == name or shapes is None or image not in {*batch.arrays, *batch.ragged}:
        return None
    if shapes.ndim != 2 or shapes.dtype.kind not in "iu":
        return None
    of_events = shapes[: batch.count].astype(np.int64)
    if not (of_events == of_events[0]).all():
        return None
    return Data.of(np.array([batch.count, *of_events[0]], np.int32))
