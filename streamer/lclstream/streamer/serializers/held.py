"""Batches that hold the large arrays of events as they came, where these stay as they are."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from types import EllipsisType
from typing import cast

import numpy as np

from lclstream.streamer.batching import Batch, Column, Form, new_batch
from lclstream.streamer.events import Event
from lclstream.streamer.serializers.pieces import bytes_of
from lclstream.streamer.values import Array, Values

# To copy a smaller array costs less than to hand it over by itself.
HELD_BYTES = 16 << 10


class HeldRows:
    """The arrays of one label, each where it lies; in `Batch.arrays` in place of an array."""

    def __init__(self, column: Column, capacity: int) -> None:
        self.dtype, self._shape, self._capacity = column.dtype, column.shape, capacity
        self.lasting = False
        """Whether arrays that are given may be held; see `Batch.lasting`."""
        # None: copied into a row of ours.
        self._rows: list[Array | None] = [None] * capacity
        self._own: Array | None = None
        # Stands for those that are missing.
        self._fill: Array | None = None

    def __setitem__(self, row: int, value: Array | float | bytes) -> None:
        """Hold the array of an event, or a copy of it; a number fills the row."""
        if not isinstance(value, np.ndarray) or value.shape != self._shape:
            if self._fill is None:
                self._fill = np.full(self._shape, value, self.dtype)
            self._rows[row] = self._fill
        elif self.lasting and value.dtype == self.dtype and value.flags.c_contiguous:
            self._rows[row] = value
        else:
            if self._own is None:
                self._own = np.empty((self._capacity, *self._shape), self.dtype)
            self._own[row] = value
            self._rows[row] = None

    def __getitem__(self, key: int | tuple[int, EllipsisType]) -> Array:
        """Return the array of an event that was added; it must not be changed."""
        row = key if isinstance(key, int) else key[0]
        held = self._rows[row]
        return cast("Array", self._own)[row] if held is None else held

    def parts(self, count: int) -> Iterator[memoryview]:
        """Yield the bytes of the first events; those that were copied lie side by side."""
        for is_own, rows in groupby(range(count), lambda row: self._rows[row] is None):
            if is_own:
                run = list(rows)
                yield bytes_of(cast("Array", self._own)[run[0] : run[-1] + 1])
            else:
                yield from (bytes_of(self[row]) for row in rows)

    def clear(self) -> None:
        """Let the arrays go."""
        self._rows = [None] * self._capacity


@dataclass(slots=True)
class HeldBatch(Batch):
    """A batch some of whose `arrays` are `HeldRows`."""

    held: tuple[HeldRows, ...] = ()

    def add(self, event: Event, values: Values) -> bool:
        """Take one event; see `Batch`."""
        if not self.count:
            for rows in self.held:
                rows.lasting = self.lasting
        return Batch.add(self, event, values)

    def clear(self) -> None:
        """Forget the events, and let their arrays go."""
        for rows in self.held:
            rows.clear()
        Batch.clear(self)


def held_batch(form: Form, capacity: int, holds: Callable[[Column], bool] | None = None) -> Batch:
    """Return an empty batch that holds what is large.

    Args:
        form: of the batch.
        capacity: in events.
        holds: whether an array of this form may be held; None: all that are large.
    """
    held = {
        column.label: HeldRows(column, capacity)
        for column in form.columns
        if not column.is_ragged
        and column.event_bytes >= HELD_BYTES
        and (holds is None or holds(column))
    }
    # No room is needed for them.
    rest = tuple(column for column in form.columns if column.label not in held)
    batch = new_batch(Form(rest, form.labels, form.run, form.experiment, form.with_masks), capacity)
    if not held:
        return batch
    in_order = (column.label for column in form.columns if not column.is_ragged)
    arrays = {label: held.get(label, batch.arrays.get(label)) for label in in_order}
    return HeldBatch(
        form=form,
        capacity=capacity,
        arrays=cast("dict[str, Array]", arrays),
        valid=batch.valid,
        index=batch.index,
        timestamp=batch.timestamp,
        step=batch.step,
        ragged=batch.ragged,
        held=tuple(held.values()),
    )


def parts_of(array: Array | HeldRows, count: int) -> tuple[memoryview, ...]:
    """Return the bytes of the first events, not copied."""
    return tuple(array.parts(count)) if isinstance(array, HeldRows) else (bytes_of(array[:count]),)
