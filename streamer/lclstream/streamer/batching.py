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
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from lclstream.streamer.events import Event
from lclstream.streamer.values import Array, Ragged, Reading, Values

logger = logging.getLogger(__name__)

MISSING_INTEGER = -999
MISSING: Mapping[str, float | bytes] = {"f": math.nan, "c": math.nan, "S": b"None"}


@dataclass(frozen=True, slots=True)
class Column:
    """The form of one label: what every event of a batch has."""

    label: str
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    """Of one event; of one of its readings where it is ragged."""
    is_ragged: bool = False
    """Whether the number of readings differs from event to event."""

    @property
    def event_bytes(self) -> int:
        """Bytes of one event, or of one of its readings."""
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
class RaggedColumn:
    """The readings of all events of a batch, one event's after the other's."""

    room: Array
    """Shape (how many fit, *shape of one); grows."""
    offsets: npt.NDArray[np.uint64]
    """Event i has the readings offsets[i] to offsets[i + 1]; shape (capacity + 1,)."""

    def values(self, count: int) -> Array:
        """Return the readings of the first events, shape (number, *shape of one)."""
        return self.room[: int(self.offsets[count])]

    def add(self, row: int, readings: Array | None) -> None:
        """Add those of one event; None when they are missing."""
        start = int(self.offsets[row])
        end = start + (0 if readings is None else len(readings))
        if end > len(self.room):
            room = np.empty((max(end, 2 * len(self.room)), *self.room.shape[1:]), self.room.dtype)
            room[:start] = self.room[:start]
            self.room = room
        if readings is not None:
            self.room[start:end] = readings
        self.offsets[row + 1] = end


@dataclass(slots=True)
class Batch:
    """Room for the values of some events, and how much of it is used.

    Its arrays may be replaced, by others of the same form, until the first event is added.
    """

    form: Form
    capacity: int
    arrays: Mapping[str, Array]
    valid: Mapping[str, npt.NDArray[np.uint8]]
    """1 where the reading of an event exists; empty when no reading may be missing."""
    index: npt.NDArray[np.uint64]
    timestamp: npt.NDArray[np.uint64]
    step: npt.NDArray[np.uint32]
    """Number of the scan's step within the run."""
    ragged: Mapping[str, RaggedColumn] = field(default_factory=dict)
    """Those labels whose number of readings differs from event to event."""
    count: int = 0
    image: npt.NDArray[np.uint8] | None = None
    """The message that the arrays are part of, where the serializer works so."""
    sequence: int = 0
    """Number of the message of this rank, from 0."""
    lasting: bool = False
    """Whether the arrays of events stay as they are for as long as somebody holds them: then a
    batch may hold them instead of copies. Whoever fills it says so, before the first event."""
    _rows: "_Rows | None" = None

    @property
    def is_full(self) -> bool:
        """Whether no event fits in any more."""
        return self.count == self.capacity

    def add(self, event: Event, values: Values) -> bool:
        """Copy one event in; return whether it fits: if not, nothing is added."""
        rows = self._rows
        if rows is None:
            rows = self._rows = _Rows(self)
        if not rows.store(self.count, event, values):
            return False
        self.count += 1
        return True

    def clear(self) -> None:
        """Forget the events."""
        self.count = 0
        if self._rows is not None:
            self._rows.expect_all()


class _Rows:
    """What is done to a batch for each event, with all looked up that stays the same."""

    __slots__ = (
        "_absent", "_experiment", "_fixed", "_index", "_masks", "_ragged", "_run", "_step",
        "_timestamp",
    )  # fmt: skip

    def __init__(self, batch: Batch) -> None:
        form = batch.form
        self._run, self._experiment = form.run, form.experiment
        # Views take plain numbers faster than arrays do.
        self._index = batch.index.data
        self._timestamp = batch.timestamp.data
        self._step = batch.step.data
        self._masks = batch.valid
        columns = {column.label: column for column in form.columns}
        self._fixed = [
            (label, array, array.dtype, columns[label].shape, self._masks.get(label))
            for label, array in batch.arrays.items()
        ]
        self._ragged = [
            (columns[label], column, self._masks.get(label))
            for label, column in batch.ragged.items()
        ]
        self._absent = [label for label in form.labels if label not in columns]
        self.expect_all()

    def expect_all(self) -> None:
        """Mark every reading as there, for those are many, and the missing ones few."""
        for label, mask in self._masks.items():
            mask.fill(label not in self._absent)

    def store(self, row: int, event: Event, values: Values) -> bool:
        """Write one event, unless its form is another one."""
        if event.run != self._run or event.experiment != self._experiment:
            return False
        for label, array, dtype, shape, mask in self._fixed:
            value = values.get(label)
            if value is None:
                fill(array, row)
                if mask is not None:
                    mask[row] = 0
            elif isinstance(value, Ragged) or value.shape != shape:
                return False
            elif value.dtype is dtype or _fits_into(value.dtype, dtype):
                array[row] = value
            else:
                return False
        for label in self._absent:
            if values.get(label) is not None:
                return False
        if self._ragged and not self._store_ragged(row, values):
            return False
        self._index[row] = event.index
        self._timestamp[row] = event.timestamp
        self._step[row] = event.step
        return True

    def _store_ragged(self, row: int, values: Values) -> bool:
        for column, room, mask in self._ragged:
            value = values.get(column.label)
            if value is not None and not fits(value, column):
                return False
            if value is None and mask is not None:
                mask[row] = 0
            room.add(row, value.array if isinstance(value, Ragged) else None)
        return True


def new_batch(form: Form, capacity: int) -> Batch:
    """Return an empty batch in memory of its own."""
    fixed = [column for column in form.columns if not column.is_ragged]
    ragged = [column for column in form.columns if column.is_ragged]
    return Batch(
        form=form,
        capacity=capacity,
        arrays={each.label: np.empty((capacity, *each.shape), each.dtype) for each in fixed},
        ragged={
            each.label: RaggedColumn(
                np.empty((capacity, *each.shape), each.dtype), np.zeros(capacity + 1, np.uint64)
            )
            for each in ragged
        },
        valid={label: np.zeros(capacity, np.uint8) for label in form.labels if form.with_masks},
        index=np.zeros(capacity, np.uint64),
        timestamp=np.zeros(capacity, np.uint64),
        step=np.zeros(capacity, np.uint32),
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
    lasting: bool = False
    """Whether the arrays of the values stay as they are; see `Batch.lasting`."""
    changes: int = 0
    """How often a batch was closed early because the next event had another form."""
    _columns: dict[str, Column] = field(default_factory=dict)
    _form: Form | None = None
    _batch: Batch | None = None

    def add(self, event: Event, values: Values) -> Iterable[Batch]:
        """Add one event; yield every batch that is complete with it, to be taken at once."""
        batch = self._batch
        if batch is not None and batch.add(event, values):
            return self.finish() if batch.count == batch.capacity else ()
        return self._add_to_next(event, values)

    def finish(self) -> Iterable[Batch]:
        """Return the batch under way, if there is one."""
        batch, self._batch = self._batch, None
        return () if batch is None else (batch,)

    def _add_to_next(self, event: Event, values: Values) -> Iterator[Batch]:
        self._form = form = self._form_with(event, values)
        if self._batch is not None:
            self.changes += 1
            logger.info("batch_form_changed", extra={"event_index": event.index})
            yield from self.finish()
        self._batch = self.make(form, self.batch_size)
        self._batch.lasting = self.lasting
        if not self._batch.add(event, values):
            raise AssertionError(f"event {event.index} does not fit the batch made for it")
        if self._batch.is_full:
            yield from self.finish()

    def _form_with(self, event: Event, values: Values) -> Form:
        changed = False
        for label in self.labels:
            value = values.get(label)
            if value is None:
                continue
            column = self._columns.get(label)
            if column is None or not fits(value, column):
                self._columns[label] = _column(label, value)
                changed = True
        form = self._form
        if form and not changed and (form.run, form.experiment) == (event.run, event.experiment):
            return form
        columns = tuple(self._columns[each] for each in self.labels if each in self._columns)
        return Form(columns, self.labels, event.run, event.experiment, self.with_masks)


def _column(label: str, value: Reading) -> Column:
    if isinstance(value, Ragged):
        return Column(label, value.array.dtype, value.array.shape[1:], is_ragged=True)
    return Column(label, value.dtype, value.shape)


def fits(value: Reading, column: Column) -> bool:
    """Return whether a reading can be stored in a column."""
    if isinstance(value, Ragged) != column.is_ragged:
        return False
    array = value.array if isinstance(value, Ragged) else value
    if array.shape[column.is_ragged :] != column.shape:
        return False
    return array.dtype is column.dtype or _fits_into(array.dtype, column.dtype)


def _fits_into(dtype: np.dtype[np.generic], room: np.dtype[np.generic]) -> bool:
    # A shorter text fits into the room of a longer one.
    if dtype.kind == "S" and room.kind == "S":
        return dtype.itemsize <= room.itemsize
    return bool(dtype == room)
