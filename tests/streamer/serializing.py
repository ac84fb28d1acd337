"""Events that tests make up, and the messages that a serializer makes of them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from lclstream.streamer.batching import Batch, Batcher
from lclstream.streamer.config import Parameters, parse_parameters
from lclstream.streamer.data_sources import Extractor
from lclstream.streamer.events import Event, Value
from lclstream.streamer.message import Message
from lclstream.streamer.rank import Place
from lclstream.streamer.serializers import Serializer, open_serializer
from lclstream.streamer.values import Ragged

STAMP = 1 << 63
PLACE = Place(1, 3)
NUMBERS = (
    "|b1", "|i1", "|u1", "<i2", "<u2", ">u2", "<i4", "<u4", "<i8", "<u8",
    "<f2", "<f4", ">f4", "<f8", "<c8", "<c16",
)  # fmt: skip

Given = dict[str, Value | None]


class Readings:
    """Readings that a test gives."""

    def __init__(self, values: Mapping[str, Value | None]) -> None:
        self._values = values

    def read(self, name: str, field: str) -> Value | None:
        return self._values[f"{name}.{field}" if field else name]


def events(values: Sequence[Given], run: int = 3, experiment: str = "tst000124") -> list[Event]:
    return [
        Event(
            timestamp=STAMP + index,
            index=index,
            run=run,
            experiment=experiment,
            readings=Readings(each),
            step=index // 2,
        )
        for index, each in enumerate(values)
    ]


def document_of(names: Iterable[str], batch_size: int, **serializer: Any) -> dict[str, Any]:
    return {
        "source_identifier": "exp=tst000124,run=3",
        "event_source": {"type": "InternalEventSource", "number_of_events_to_generate": 1},
        "data_sources": {name: {"type": "EventValue", "name": name} for name in names},
        "processing_pipeline": {"type": "BatchProcessingPipeline", "batch_size": batch_size},
        "data_serializer": serializer,
    }


def parameters_of(names: Iterable[str], batch_size: int, **serializer: Any) -> Parameters:
    return parse_parameters(document_of(names, batch_size, **serializer))


@dataclass
class Sent:
    """What a serializer made of some events."""

    serializer: Serializer
    batches: list[Batch]
    messages: list[list[Message]]
    """Of each batch."""

    @property
    def payloads(self) -> list[bytes]:
        return [message.tobytes() for batch in self.messages for message in batch]


def sent(
    parameters: Parameters, given: Iterable[Event], place: Place = PLACE, *, lasting: bool = False
) -> Sent:
    """Serialize events; every batch keeps its own memory, so that messages stay valid.

    Args:
        parameters: the configuration.
        given: the events.
        place: of the rank.
        lasting: whether their arrays stay as they are, as those of most sources do.
    """
    serializer = open_serializer(parameters, place)
    try:
        result = Sent(serializer, [], [])
        sequence = 0
        for batch in batches_of(parameters, serializer, given, lasting=lasting):
            batch.sequence = sequence
            messages = list(serializer.messages(batch))
            sequence += len(messages)
            result.batches.append(batch)
            result.messages.append(messages)
        return result
    finally:
        serializer.close()


def batches_of(
    parameters: Parameters,
    serializer: Serializer,
    given: Iterable[Event],
    *,
    lasting: bool = False,
) -> Iterator[Batch]:
    extractor = Extractor(parameters, list(serializer.labels))
    size = parameters.processing_pipeline.batch_size
    batcher = Batcher(serializer.labels, size, extractor.may_miss, serializer.new_batch)
    batcher.lasting = lasting
    for event in given:
        values = extractor.extract(event)
        if values is not None:
            yield from batcher.add(event, values)
    yield from batcher.finish()


def whole_stream(
    parameters: Parameters, given: Iterable[Event], place: Place = PLACE
) -> list[bytes]:
    """Return all messages of the only rank, with those in front of them and behind them."""
    serializer = open_serializer(parameters, place)
    try:
        front: list[bytes] = []
        found: list[bytes] = []
        for batch in batches_of(parameters, serializer, given):
            front = front or payloads(serializer.begin())
            batch.sequence = len(found)
            found += [message.tobytes() for message in serializer.messages(batch)]
        return [*(front or payloads(serializer.begin())), *found, *payloads(serializer.end())]
    finally:
        serializer.close()


def payloads(messages: Iterable[Message]) -> list[bytes]:
    """Return messages that only accompany the stream."""
    found = list(messages)
    assert not any(message.events for message in found)
    return [message.tobytes() for message in found]


@dataclass(frozen=True)
class Kind:
    """What the readings of one label are like."""

    dtype: str
    shape: tuple[int, ...]
    ragged: bool


def kinds(dtypes: Sequence[str] = NUMBERS, *, ragged: bool = True) -> st.SearchStrategy[Kind]:
    return st.builds(
        Kind,
        dtype=st.sampled_from(dtypes),
        shape=st.lists(st.integers(1, 4), max_size=3).map(tuple),
        ragged=st.booleans() if ragged else st.just(value=False),
    )


@st.composite
def tables(draw: st.DrawFn, dtypes: Sequence[str] = NUMBERS, *, ragged: bool = True) -> list[Given]:
    """Draw events of any form, some of whose readings are missing."""
    columns = draw(
        st.dictionaries(
            st.sampled_from(["a", "b.c", "SIOC:SYS0:ML00:AO192", "tîmestamp", "long" * 9]),
            kinds(dtypes, ragged=ragged),
            min_size=1,
            max_size=4,
        )
    )
    generator = np.random.default_rng(draw(st.integers(0, 1 << 20)))
    count, missing = draw(st.integers(1, 9)), draw(st.sampled_from([0.0, 0.3]))
    return [
        {
            # The first shows what every label is like.
            name: None if index and generator.random() < missing else made(generator, kind)
            for name, kind in columns.items()
        }
        for index in range(count)
    ]


def made(generator: np.random.Generator, kind: Kind) -> Value:
    shape = (int(generator.integers(0, 4)), *kind.shape) if kind.ragged else kind.shape
    dtype = np.dtype(kind.dtype)
    raw = generator.integers(0, 256, (*shape, dtype.itemsize), np.uint8)
    # Numbers that every dtype holds exactly; which bits they are does not matter here.
    array = (raw[..., 0] % 100).astype(dtype) if dtype.kind in "bfc" else raw.view(dtype)[..., 0]
    return Ragged(np.asarray(array)) if kind.ragged else np.asarray(array)


def same(found: Any, wanted: Value | None) -> bool:
    """Return whether a decoded reading is exactly the one that was given."""
    array = np.asarray(wanted.array if isinstance(wanted, Ragged) else wanted)
    found = np.asarray(found)
    return bool(
        found.dtype == array.dtype and found.shape == array.shape and np.array_equal(found, array)
    )


def shares_memory(message: Message, array: Any) -> bool:
    """Return whether a message holds an array where it is, not a copy."""
    return any(np.shares_memory(np.frombuffer(part, np.uint8), array) for part in message.parts)
