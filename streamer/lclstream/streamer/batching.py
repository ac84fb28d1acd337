"""Collects the values of events into batches.

A batch holds one array for each label, with the events along axis 0. The dtype and shape of a
label are those of its first reading; a label joins the batches then. When an event does not
fit the batch under way (a label appears, a dtype or shape changes, another run begins), that
batch is closed with fewer events, and the next has the new form: no event is lost.

A missing reading is filled (float NaN, signed integer -999, unsigned integer 0, bool false,
text `None`; -128 where -999 does not fit) and marked in the validity mask, which alone decides.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from lclstream.streamer.events import Event

logger = logging.getLogger(__name__)

Array: TypeAlias = npt.NDArray[np.generic]
MISSING_INTEGER = -999
MISSING: Mapping[str, float | bytes] = {"f": math.nan, "c": math.nan, "S": b"None"}


@dataclass(frozen=True, slots=True)
class Column:
    """The form of one label: what every event of a batch has."""

    label: str
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]

    @property
    def event_bytes(self) -> int:
        """Bytes of one event."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Form:
    """What makes two batches alike: their columns, and the run that they belong to."""

    columns: tuple[Column, ...]
    labels: tuple[str, ...]
    """All labels in order, those without any reading so far included."""
    run: int
    experiment: str
    with_masks: bool


@dataclass(slots=True)
class Batch:
    """Room for the values of some events, and how much of it is used."""

    form: Form
    capacity: int
    arrays: Mapping[str, Array]
    valid: Mapping[str, npt.NDArray[np.uint8]]
    """1 where the reading of an event exists; empty when no reading may be missing."""
    index: npt.NDArray[np.uint64]
    timestamp: npt.NDArray[np.uint64]
    count: int = 0
    image: npt.NDArray[np.uint8] | None = None
    """The message that the arrays are part of, where the serializer works so."""
    sequence: int = 0
    """Number of the message of this rank, from 0."""

    @property
    def is_full(self) -> bool:
        """Whether no event fits in any more."""
        return self.count == self.capacity

    def add(self, event: Event, values: Mapping[str, Array | None]) -> None:
        """Copy one event in; it must fit."""
        row = self.count
        self.index[row] = event.index
        self.timestamp[row] = event.timestamp
        for label, array in self.arrays.items():
            value = values[label]
            if value is None:
                fill(array, row)
            else:
                array[row] = value
        for label, mask in self.valid.items():
            mask[row] = values[label] is not None
        self.count += 1


def new_batch(form: Form, capacity: int) -> Batch:
    """Return an empty batch in memory of its own."""
    shape = {column.label: (capacity, *column.shape) for column in form.columns}
    return Batch(
        form=form,
        capacity=capacity,
        arrays={each.label: np.empty(shape[each.label], each.dtype) for each in form.columns},
        valid={label: np.zeros(capacity, np.uint8) for label in form.labels if form.with_masks},
        index=np.zeros(capacity, np.uint64),
        timestamp=np.zeros(capacity, np.uint64),
    )


def fill(array: Array, row: int) -> None:
    """Write the documented value of a missing reading."""
    kind = array.dtype.kind
    if kind == "i":
        array[row] = MISSING_INTEGER if array.dtype.itemsize > 1 else -128
    else:
        array[row] = MISSING.get(kind, 0)


@dataclass(slots=True)
class Batcher:
    """Puts events into batches one after the other."""

    labels: tuple[str, ...]
    batch_size: int
    with_masks: bool
    make: Callable[[Form, int], Batch]
    """Returns an empty batch; may wait until one is free."""
    changes: int = 0
    """How often a batch was closed early because the next event had another form."""
    _columns: dict[str, Column] = field(default_factory=dict)
    _form: Form | None = None
    _batch: Batch | None = None

    def add(self, event: Event, values: Mapping[str, Array | None]) -> Iterator[Batch]:
        """Add one event; yield every batch that is complete with it."""
        form = self._form_with(event, values)
        if self._batch is not None and form is not self._form:
            self.changes += 1
            logger.info("batch_form_changed", extra={"event_index": event.index})
            yield from self.finish()
        self._form = form
        if self._batch is None:
            self._batch = self.make(form, self.batch_size)
        self._batch.add(event, values)
        if self._batch.is_full:
            yield from self.finish()

    def finish(self) -> Iterator[Batch]:
        """Yield the batch under way, if there is one."""
        batch, self._batch = self._batch, None
        if batch is not None:
            yield batch

    def _form_with(self, event: Event, values: Mapping[str, Array | None]) -> Form:
        changed = False
        for label, value in values.items():
            if value is None:
                continue
            column = self._columns.get(label)
            if column is None or not _fits(value, column):
                self._columns[label] = Column(label, value.dtype, value.shape)
                changed = True
        form = self._form
        if form and not changed and (form.run, form.experiment) == (event.run, event.experiment):
            return form
        columns = tuple(self._columns[each] for each in self.labels if each in self._columns)
        return Form(columns, self.labels, event.run, event.experiment, self.with_masks)


def _fits(value: Array, column: Column) -> bool:
    if value.shape != column.shape:
        return False
    if value.dtype is column.dtype:
        return True
    # A shorter text fits into the room of a longer one.
    if value.dtype.kind == "S" and column.dtype.kind == "S":
        return value.dtype.itemsize <= column.dtype.itemsize
    return bool(value.dtype == column.dtype)
