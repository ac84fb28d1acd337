"""What messages of whole batches hold, whatever their format: values, and what identifies them.

Beside the values of the data sources a message holds, below `lclstream/`:

| name | dtype, shape | |
|---|---|---|
| `event_index`, `timestamp` | uint64, (events,) | |
| `step` | uint32, (events,) | number of the scan's step within the run |
| `sequence` | uint64, () | number of the message among those of its rank, from 0 |
| `run`, `rank`, `ranks`, `format` | uint64, uint32, uint32, uint32; () | |
| `experiment`, `source_identifier` | bytes, () | |
| `configuration_sha256` | bytes, () | hash of what decides the data, in hexadecimal digits |
| `valid/<name>` | uint8, (events,) | 1 where the reading exists; absent: it always does |
| `units/<name>` | bytes, () | as far as the configuration says them |
| `offsets/<name>` | uint64, (events + 1,) | event i has the readings offsets[i] to \
offsets[i + 1] of the values `<name>` |

The offsets alone are there in any case, for without them nobody knows whose readings are whose.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np

from lclstream.streamer.batching import Batch, Form, new_batch
from lclstream.streamer.config import Parameters
from lclstream.streamer.config.canonical import configuration_hash
from lclstream.streamer.message import Message
from lclstream.streamer.rank import Place
from lclstream.streamer.serializers.held import parts_of
from lclstream.streamer.serializers.pieces import bytes_of
from lclstream.streamer.values import Array

GROUP = "lclstream"
FORMAT_VERSION = 1


class BatchSerializer:
    """What serializers have in common that need nothing before, behind or beside the batches."""

    def __init__(self, labels: Iterable[str]) -> None:
        self.labels = tuple(labels)

    def new_batch(self, form: Form, capacity: int) -> Batch:
        """Return an empty batch."""
        return new_batch(form, capacity)

    def begin(self) -> Iterable[Message]:
        """Return nothing: every message stands by itself."""
        return ()

    def end(self) -> Iterable[Message]:
        """Return nothing: every message stands by itself."""
        return ()

    def close(self) -> None:
        """Do nothing: nothing is held."""


class Provenance:
    """Where the messages of a rank come from, in forms that formats can store."""

    def __init__(self, parameters: Parameters, place: Place) -> None:
        self.source_identifier = parameters.source_identifier
        self.place = place
        self._configuration = configuration_hash(parameters)
        sources, labels = parameters.sources_by_label, parameters.labels
        self.units = {
            label: sources[label].units
            for label in labels
            if label in sources and sources[label].units
        }
        """Label -> units of its values, as far as the configuration says them."""

    def of_events(self, batch: Batch) -> Iterator[tuple[str, Array]]:
        """Yield what has one element for each event, by name."""
        count = batch.count
        yield "event_index", batch.index[:count]
        yield "timestamp", batch.timestamp[:count]
        yield "step", batch.step[:count]

    def of_message(self, batch: Batch) -> Mapping[str, int | str]:
        """Return what a whole message has in common, by name."""
        return {
            "sequence": batch.sequence,
            "run": batch.form.run,
            "rank": self.place.rank,
            "ranks": self.place.size,
            "format": FORMAT_VERSION,
            "experiment": batch.form.experiment,
            "source_identifier": self.source_identifier,
            "configuration_sha256": self._configuration,
        }


@dataclass(frozen=True, slots=True)
class Data:
    """One array of a message, where its bytes lie."""

    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    parts: tuple[memoryview, ...]
    """One after the other they are the array in row-major order."""

    @classmethod
    def of(cls, array: Array) -> Self:
        """Return a contiguous array."""
        return cls(array.dtype, array.shape, (bytes_of(array),))

    @property
    def nbytes(self) -> int:
        """Size of the array in bytes."""
        return sum(part.nbytes for part in self.parts)


def named_data(
    batch: Batch, names: Mapping[str, str], group: str, provenance: Provenance | None
) -> Iterator[tuple[str, Data]]:
    """Yield everything that the message of a batch holds, by name.

    Args:
        batch: what is sent.
        names: label -> name of its values.
        group: what precedes our own names.
        provenance: None leaves out what identifies the events.
    """
    count = batch.count
    for column in batch.form.columns:
        name = names[column.label]
        if column.is_ragged:
            yield name, Data.of(batch.ragged[column.label].values(count))
        else:
            parts = parts_of(batch.arrays[column.label], count)
            yield name, Data(column.dtype, (count, *column.shape), parts)
    for label, ragged in batch.ragged.items():
        name = names[label].strip("/")
        yield f"{group}/offsets/{name}", Data.of(ragged.offsets[: count + 1])
    if provenance is not None:
        for name, array in _identification(batch, names, provenance):
            yield f"{group}/{name}", Data.of(array)


def _identification(
    batch: Batch, names: Mapping[str, str], provenance: Provenance
) -> Iterator[tuple[str, Array]]:
    yield from provenance.of_events(batch)
    for name, value in provenance.of_message(batch).items():
        yield name, scalar(name, value)
    for label, units in provenance.units.items():
        if label in names:
            yield f"units/{names[label].strip('/')}", scalar("units", units)
    for label, mask in batch.valid.items():
        yield f"valid/{names[label].strip('/')}", mask[: batch.count]


def scalar(name: str, value: int | str) -> Array:
    """Return a number or text as an array without axes."""
    if isinstance(value, str):
        # An empty text would have no size.
        return np.array(value.encode() or b"\0")
    return np.array(value, np.uint64 if name in ("sequence", "run") else np.uint32)
