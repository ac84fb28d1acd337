"""Messages that are complete HDF5 files.

For the reader: one dataset for each data source, axis 0 = events, chunks of one event. The
group `/lclstream`, which plain readers ignore, identifies the events:

| what | in `/lclstream` |
|---|---|
| `event_index`, `timestamp` | datasets, uint64, one element for each event |
| `step` | dataset, uint32, one element for each event: number of the scan's step in the run |
| `sequence` | dataset, uint64, one element: number of the message of its rank, from 0 |
| `valid/<data source>` | datasets, uint8: 1 where the reading exists. Absent: it always does. \
Their attribute `dataset` is the path of the dataset that they speak of |
| `experiment`, `run`, `rank`, `ranks`, `source_identifier`, `configuration`, \
`configuration_sha256`, `versions`, `format` | attributes |

Readings whose number differs from event to event lie one after the other in one dataset. Its
attribute `offsets` is the path of another one, `<path>_offsets`, uint64, (events + 1,): event i
has the readings offsets[i] to offsets[i + 1].
"""

import threading
from collections.abc import Iterable
from typing import cast

from lclstream.streamer.batching import Batch, Form
from lclstream.streamer.config import (
    BinaryDataStreamingDataHandlerConfig,
    HandlerModel,
    HDF5BinarySerializerConfig,
    Parameters,
)
from lclstream.streamer.message import Message
from lclstream.streamer.rank import Place
from lclstream.streamer.serializers.codecs import open_codec
from lclstream.streamer.serializers.codecs.cores import cores_of_rank
from lclstream.streamer.serializers.codecs.workers import Workers
from lclstream.streamer.serializers.hdf5_items import Recipe
from lclstream.streamer.serializers.hdf5_plan import HDF5Batch, Plan
from lclstream.streamer.serializers.hdf5_provenance import Provenance

# Forms in use at a time: before and after a change.
PLANS_KEPT = 4


class HDF5BinarySerializer:
    """Makes one HDF5 file in memory of each batch.

    Resource handling: owns the threads that compress; `close` ends them.
    """

    def __init__(
        self, config: HDF5BinarySerializerConfig, parameters: Parameters, place: Place
    ) -> None:
        """Load the codec.

        Raises:
            InvalidConfigError: the codec is not installed.
        """
        paths = config.paths(parameters)
        self.labels = tuple(name for name in parameters.labels if name in paths)
        """The values that are sent, in order."""
        sources = parameters.sources_by_label.items()
        self._recipe = Recipe(
            paths=paths,
            units={label: source.units for label, source in sources if source.units},
            identification=config.identification,
            codec=open_codec(config),
            workers=Workers(config.compression_threads or cores_of_rank()),
            in_one_piece=any(map(_wants_one_piece, parameters.data_handlers)),
        )
        self._provenance = Provenance(parameters, place) if config.identification else None
        self._plans: dict[tuple[Form, int], Plan] = {}
        # Batches are made by the thread that reads, messages by the one that sends.
        self._lock = threading.Lock()

    def new_batch(self, form: Form, capacity: int) -> Batch:
        """Return an empty batch; what is not compressed already lies in its message.

        Raises:
            InvalidConfigError: HDF5 cannot hold such data, or two datasets have the same path.
        """
        return self._plan(form, capacity).new_batch()

    def messages(self, batch: Batch) -> Iterable[Message]:
        """Return the one message of a batch; it is valid until the batch is used again."""
        own = cast("HDF5Batch", batch)
        plan = own.plan or self._plan(batch.form, batch.capacity)
        return (plan.message(own),)

    def begin(self) -> Iterable[Message]:
        """Return nothing: every message is a file of its own."""
        return ()

    def end(self) -> Iterable[Message]:
        """Return nothing: every message is a file of its own."""
        return ()

    def close(self) -> None:
        """Wait for the threads that compress to end."""
        self._recipe.workers.close()

    def _plan(self, form: Form, capacity: int) -> Plan:
        key = (form, capacity)
        with self._lock:
            plan = self._plans.pop(key, None)
            if plan is None:
                while len(self._plans) >= PLANS_KEPT:
                    self._plans.pop(next(iter(self._plans)))
                attributes = self._provenance.attributes(form) if self._provenance else {}
                plan = Plan(self._recipe, form, capacity, attributes)
            # The one that was used last is let go last.
            self._plans[key] = plan
            return plan


def _wants_one_piece(handler: HandlerModel) -> bool:
    """Return whether a handler has to copy together what lies in several pieces."""
    if isinstance(handler, BinaryDataStreamingDataHandlerConfig):
        # ZeroMQ would make a frame of each.
        return handler.library == "zmq"
    return False
