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

import numpy as np

from lclstream.streamer.batching import Batch, Form, new_batch
from lclstream.streamer.config import Parameters
from lclstream.streamer.config.canonical import configuration_hash
from lclstream.streamer.message import Message
from lclstream.streamer.rank import Place
from lclstream.streamer.values import Array

GROUP = "lclstream"
FORMAT_VERSION = 1
# Handing over a piece costs more than a copy of this size.
SMALL_BYTES = 2048


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


def named_arrays(
    batch: Batch, names: Mapping[str, str], group: str, provenance: Provenance | None
) -> Iterator[tuple[str, Array]]:
    """Yield everything that the message of a batch holds, by name.

    Args:
        batch: what is sent.
        names: label -> name of its values.
        group: what precedes our own names.
        provenance: None leaves out what identifies the events.
    """
    for label, array in values_of(batch):
        yield names[label], array
    for label, column in batch.ragged.items():
        yield f"{group}/offsets/{names[label].strip('/')}", column.offsets[: batch.count + 1]
    if provenance is None:
        return
    for name, array in provenance.of_events(batch):
        yield f"{group}/{name}", array
    for name, value in provenance.of_message(batch).items():
        yield f"{group}/{name}", scalar(name, value)
    for label, units in provenance.units.items():
        if label in names:
            yield f"{group}/units/{names[label].strip('/')}", scalar("units", units)
    for label, mask in batch.valid.items():
        yield f"{group}/valid/{names[label].strip('/')}", mask[: batch.count]


def values_of(batch: Batch) -> Iterator[tuple[str, Array]]:
    """Yield the values of a batch by label, in order; of ragged ones all readings."""
    for column in batch.form.columns:
        label = column.label
        if column.is_ragged:
            yield label, batch.ragged[label].values(batch.count)
        else:
            yield label, batch.arrays[label][: batch.count]


def scalar(name: str, value: int | str) -> Array:
    """Return a number or text as an array without axes."""
    if isinstance(value, str):
        # An empty text would have no size.
        return np.array(value.encode() or b"\0")
    return np.array(value, np.uint64 if name in ("sequence", "run") else np.uint32)


def bytes_of(array: Array) -> memoryview:
    """Return the bytes of a contiguous array, not copied, whatever its dtype and shape."""
    if not array.size:
        return memoryview(b"")
    return array.reshape(-1).view(np.uint8).data


def merged(pieces: Iterable[bytes | memoryview]) -> tuple[memoryview, ...]:
    """Return the pieces of a message, small neighbours joined and empty ones left out."""
    found: list[memoryview] = []
    small: list[bytes | memoryview] = []
    for piece in pieces:
        if len(piece) < SMALL_BYTES:
            small.append(piece)
            continue
        if small:
            found.append(memoryview(b"".join(small)))
            small = []
        found.append(memoryview(piece))
    return (*found, memoryview(b"".join(small))) if small else tuple(found)
