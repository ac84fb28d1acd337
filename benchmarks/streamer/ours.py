"""The streamer's own way from events to messages, without its threads."""

from collections.abc import Iterable, Mapping
from itertools import repeat
from typing import Any

import numpy as np
import numpy.typing as npt

from lclstream.streamer.batching import Column, Form
from lclstream.streamer.config import parse_parameters
from lclstream.streamer.events import Event, Value
from lclstream.streamer.message import Message
from lclstream.streamer.rank import Place
from lclstream.streamer.serializers import Serializer, open_serializer

Array = npt.NDArray[Any]
Values = Mapping[str, Array]


class Nothing:
    """Readings that nobody asks for: the values are there already."""

    def read(self, name: str, field: str) -> Value | None:
        """Return nothing."""
        del name, field
        return None


class Messages:
    """Makes messages of the same event, in two batches that take turns as in a run.

    Resource handling: a context is not needed, but `close` ends the serializer's threads.
    """

    def __init__(
        self,
        values: Values,
        batch_size: int,
        *,
        lasting: bool = False,
        library: str = "nng",
        **serializer: Any,
    ) -> None:
        """Prepare.

        Args:
            values: those of every event.
            batch_size: events of a message.
            lasting: whether the batch may hold the arrays of the events.
            library: of the socket that the messages are for.
            serializer: options of `HDF5BinarySerializer`.
        """
        self._values, self._batch_size = values, batch_size
        self._serializer = open_hdf5(values, batch_size, library, **serializer)
        columns = tuple(Column(name, each.dtype, each.shape) for name, each in values.items())
        form = Form(columns, tuple(values), 1, "benchmark", with_masks=True)
        self._batches = [self._serializer.new_batch(form, batch_size) for _ in range(2)]
        for batch in self._batches:
            batch.lasting = lasting
        self._event = Event(timestamp=1, index=1, run=1, experiment="benchmark", readings=Nothing())
        self._turn = 0

    def next(self, given: Iterable[Values] = ()) -> Message:
        """Fill the batch whose turn it is, and return its message.

        Args:
            given: the values of its events; none = the same ones again and again.
        """
        batch = self._batches[self._turn]
        self._turn = 1 - self._turn
        batch.clear()
        add, event = batch.add, self._event
        for values in given or repeat(self._values, self._batch_size):
            add(event, values)
        (message,) = self._serializer.messages(batch)
        return message

    def close(self) -> None:
        """End the serializer's threads."""
        self._serializer.close()


def open_hdf5(values: Values, batch_size: int, library: str, **options: Any) -> Serializer:
    """Return the serializer for some values."""
    handler = {"type": "BinaryDataStreamingDataHandler", "urls": ["tcp://127.0.0.1:1"]}
    parameters = parse_parameters(
        {
            "source_identifier": "benchmark",
            "event_source": {"type": "InternalEventSource", "number_of_events_to_generate": 1},
            "data_sources": {name: {"type": "EventValue", "name": name} for name in values},
            "processing_pipeline": {"type": "BatchProcessingPipeline", "batch_size": batch_size},
            "data_serializer": {"type": "HDF5BinarySerializer", **options},
            "data_handlers": [{**handler, "library": library}],
        }
    )
    return open_serializer(parameters, Place(0, 1))


def frame_event(dtype: str = "float32", *, whole: bool = False) -> dict[str, Array]:
    """Return two panels of noise with some peaks, and two numbers."""
    generator = np.random.default_rng(0)
    frame = generator.normal(0, 3, (2, 512, 1024))
    for _ in range(60):
        row, column = generator.integers(2, 500), generator.integers(2, 1000)
        frame[generator.integers(2), row : row + 3, column : column + 3] += 500
    numbers = np.rint(frame) if whole or dtype != "float32" else frame
    values = (numbers + 20).clip(0) if dtype == "uint16" else numbers
    return {
        "frame": values.astype(dtype),
        "timestamp": np.array(1 << 62, np.uint64),
        "energy": np.array(9500.0),
    }


def small_event() -> dict[str, Array]:
    """Return a waveform of 1 kB and two numbers."""
    return {
        "waveform": np.arange(512, dtype=np.uint16),
        "timestamp": np.array(1 << 62, np.uint64),
        "energy": np.array(9500.0),
    }
