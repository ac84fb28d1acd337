"""The events of a message, decoded."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from lclstream.core.errors import NotFoundError
from lclstream.core.models import near

Array: TypeAlias = npt.NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class Ragged:
    """Readings whose number differs from event to event, one event's after the other's."""

    values: Array
    """Shape (number of all, *shape of one)."""
    offsets: npt.NDArray[np.uint64]
    """Event i has the readings offsets[i] to offsets[i + 1]; shape (events + 1,)."""

    def __getitem__(self, row: int) -> Array:
        """Return the readings of one event, shape (number, *shape of one)."""
        return self.values[int(self.offsets[row]) : int(self.offsets[row + 1])]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The decoded events of one message."""

    arrays: Mapping[str, Array]
    """Values by dataset path without leading slash; axis 0 = events."""
    ragged: Mapping[str, Ragged] = field(default_factory=dict)
    """The same for those whose number differs from event to event."""
    count: int
    """Number of events."""
    indices: npt.NDArray[np.uint64] | None = None
    """Position of each event in the whole run; None if the message does not say."""
    timestamps: npt.NDArray[np.uint64] | None = None
    """Seconds << 32 | nanoseconds of each event, as the DAQ wrote it; None if unknown."""
    steps: npt.NDArray[np.uint64] | None = None
    """Number of the scan's step within the run, for each event; None if unknown."""
    valid: Mapping[str, npt.NDArray[np.uint8]] = field(default_factory=dict)
    """By data source: 1 where the reading exists. What is not here always exists."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Dataset path -> data source, for those that have a mask."""
    units: Mapping[str, str] = field(default_factory=dict)
    """By dataset path, as far as the message says them."""
    configuration: str = ""
    """Of the streamer, as canonical JSON; empty if the message does not say."""
    experiment: str = ""
    run: int | None = None
    rank: int | None = None
    """Of the producer that sent the message."""
    sequence: int | None = None
    """Number of the message among those of its rank, from 0."""
    size_bytes: int = 0
    """Of the message."""

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, name: str) -> Array:
        """Return the values of all events; of ragged ones all readings, without the offsets.

        Args:
            name: path of the dataset, or its last part where only one dataset has it.

        Raises:
            NotFoundError: there is no such dataset, or several.
        """
        path = self.path(name)
        return self.ragged[path].values if path in self.ragged else self.arrays[path]

    def __contains__(self, name: str) -> bool:
        with contextlib.suppress(NotFoundError):
            return bool(self.path(name))
        return False

    def __iter__(self) -> Iterator["Event"]:
        return (Event(self, row) for row in range(self.count))

    def mask(self, name: str) -> npt.NDArray[np.uint8] | None:
        """Return 1 for each event whose reading exists; None if all do.

        Args:
            name: of a data source, or of its dataset as in `__getitem__`; with a leading slash
                it is always a dataset's.
        """
        if name in self.valid:
            return self.valid[name]
        path = self.path(name) if name in self else name.strip("/")
        return self.valid.get(self.sources.get(path, path))

    def path(self, name: str) -> str:
        """Return the full path of a dataset; see `__getitem__`."""
        wanted, there = name.strip("/"), [*self.arrays, *self.ragged]
        if wanted in there:
            return wanted
        found = [path for path in there if path.rpartition("/")[2] == wanted]
        if len(found) == 1:
            return found[0]
        if found:
            raise NotFoundError(f"several datasets are named {name!r}: {', '.join(found)}")
        hint = near(wanted, there) or f"; there are: {', '.join(there)}"
        raise NotFoundError(f"the message has no dataset {name!r}{hint}")


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a batch."""

    batch: Batch
    row: int

    def __getitem__(self, name: str) -> Array:
        """Return one value, an array without the axis of the events.

        Of ragged values it is the readings of this event, shape (number, *shape of one).
        """
        path = self.batch.path(name)
        ragged = self.batch.ragged.get(path)
        return np.asarray(self.batch.arrays[path][self.row]) if ragged is None else ragged[self.row]

    def is_valid(self, name: str) -> bool:
        """Return whether a reading exists in this event.

        Args:
            name: as in `Batch.mask`.
        """
        mask = self.batch.mask(name)
        return mask is None or bool(mask[self.row])

    @property
    def index(self) -> int | None:
        """Position in the whole run."""
        return None if self.batch.indices is None else int(self.batch.indices[self.row])

    @property
    def timestamp(self) -> int | None:
        """Seconds << 32 | nanoseconds, as the DAQ wrote it."""
        return None if self.batch.timestamps is None else int(self.batch.timestamps[self.row])

    @property
    def step(self) -> int | None:
        """Number of the scan's step within the run."""
        return None if self.batch.steps is None else int(self.batch.steps[self.row])
