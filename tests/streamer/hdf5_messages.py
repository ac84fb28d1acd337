"""Messages in HDF5 for tests, and what is in them."""

import io
from collections.abc import Iterable, Iterator
from typing import Any

import h5py
import numpy as np
from tests.streamer.serializing import PLACE, document_of

from lclstream.streamer.batching import Batch, Batcher, Form
from lclstream.streamer.config import Parameters, parse_parameters
from lclstream.streamer.data_sources import Extractor
from lclstream.streamer.events import Event
from lclstream.streamer.message import Message
from lclstream.streamer.serializers import Serializer, open_serializer
from lclstream.streamer.steps import Steps
from lclstream.streamer.values import Array, Values


def parameters_of(names: Iterable[str], batch_size: int, **serializer: Any) -> Parameters:
    return parse_parameters(
        document_of(names, batch_size, type="HDF5BinarySerializer", **serializer)
    )


def messages_of(parameters: Parameters, given_events: Iterable[Event]) -> list[bytes]:
    """Return the messages of some events, with the steps of the configuration."""
    serializer = open_serializer(parameters, PLACE)
    extractor = Extractor(parameters, list(serializer.labels))
    steps = Steps(parameters)
    batch_size = parameters.processing_pipeline.batch_size
    batcher = Batcher(serializer.labels, batch_size, extractor.may_miss, serializer.new_batch)
    found: list[bytes] = []
    try:
        for event in given_events:
            values = extractor.extract(event)
            after = None if values is None else steps.apply(event, values)
            if after is not None:
                found += made(serializer, batcher.add(event, after), len(found))
        return found + made(serializer, batcher.finish(), len(found))
    finally:
        serializer.close()


def made(serializer: Serializer, batches: Iterable[Batch], first: int) -> list[bytes]:
    found = []
    for number, batch in enumerate(batches, first):
        batch.sequence = number
        found += [message.tobytes() for message in serializer.messages(batch)]
    return found


def opened(message: bytes) -> h5py.File:
    return h5py.File(io.BytesIO(message), "r")


def filters(dataset: h5py.Dataset) -> dict[str, tuple[int, ...]]:
    creation = dataset.id.get_create_plist()
    found = (creation.get_filter(number) for number in range(creation.get_nfilters()))
    return {str(code): values for code, _, values, _ in found}


def reused_batches(
    parameters: Parameters, given_events: Iterable[tuple[Event, Values]], *, lasting: bool
) -> Iterator[tuple[Batch, Message]]:
    """Yield each batch of some events with its message; one batch is used again and again.

    Both are valid until the next one is asked for.
    """
    serializer = open_serializer(parameters, PLACE)
    kept: list[Batch] = []

    def make(form: Form, capacity: int) -> Batch:
        if not kept:
            kept.append(serializer.new_batch(form, capacity))
        kept[0].clear()
        return kept[0]

    size = parameters.processing_pipeline.batch_size
    batcher = Batcher(serializer.labels, size, with_masks=True, make=make, lasting=lasting)
    try:
        for event, values in given_events:
            for batch in batcher.add(event, values):
                yield from ((batch, message) for message in serializer.messages(batch))
        for batch in batcher.finish():
            yield from ((batch, message) for message in serializer.messages(batch))
    finally:
        serializer.close()


def as_array(part: memoryview) -> Array:
    """Return the bytes of a part of a message, where they lie."""
    return np.frombuffer(part, np.uint8)
