"""How batches of one form become messages.

Small rows live in the header of the message: storing an event there is writing the file. Large
rows are sent from where they are, and compressed ones from where the codec has put them. So no
value is copied between the batch and the socket.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.batching import Batch, Column, Form, RaggedColumn
from lclstream.streamer.events import Event
from lclstream.streamer.message import Message
from lclstream.streamer.serializers.codecs.workers import Staging
from lclstream.streamer.serializers.hdf5_index import Image
from lclstream.streamer.serializers.hdf5_items import (
    EVENT_INDEX,
    GROUP,
    LEAST_PACKED_BYTES,
    SEQUENCE,
    STEP,
    TIMESTAMP,
    Recipe,
    items_of,
    mask_path,
    offsets_path,
)
from lclstream.streamer.serializers.hdf5_layout import Item, Layout
from lclstream.streamer.serializers.hdf5_rows import KeptRows, PackedRows, Section, bytes_of
from lclstream.streamer.serializers.hdf5_template import build_template
from lclstream.streamer.values import Array, Values

# Of batches that are not full, by their number of events.
PARTIAL_LAYOUTS = 4


@dataclass(slots=True)
class HDF5Batch(Batch):
    """A batch that is part of a message from the beginning."""

    plan: "Plan | None" = None
    """Who makes its message."""
    held: tuple[KeptRows | PackedRows, ...] = ()
    """Those of `arrays` that are not arrays."""
    packed: dict[str, PackedRows] = field(default_factory=dict)
    """The compressed chunks of ragged columns, by label."""

    def add(self, event: Event, values: Values) -> bool:
        """Take one event; see `Batch`."""
        if not self.count:
            for rows in self.held:
                rows.lasting = self.lasting
        return Batch.add(self, event, values)

    def clear(self) -> None:
        """Forget the events."""
        for rows in (*self.held, *self.packed.values()):
            rows.clear()
        Batch.clear(self)


class Plan:
    """The messages of batches of one form and capacity."""

    def __init__(
        self, recipe: Recipe, form: Form, capacity: int, attributes: Mapping[str, object]
    ) -> None:
        """Lay out the messages.

        Args:
            recipe: what all messages have in common.
            form: of the batches.
            capacity: of the batches, in events.
            attributes: of the group `/lclstream`.

        Raises:
            InvalidConfigError: HDF5 cannot hold such data, or two datasets have the same path.
        """
        self._recipe, self._form, self._capacity = recipe, form, capacity
        self._items = items_of(recipe, form)
        datasets = {path: item.dataset for path, item in self._items.items()}
        try:
            self._template = build_template(datasets, GROUP, attributes)
        except (ValueError, TypeError) as error:
            raise InvalidConfigError(f"HDF5 cannot hold these data: {error}") from None
        self._layout = Layout(self._template, self._items, capacity)
        self._partial: dict[int, Layout] = {}
        self._staging = Staging()

    def new_batch(self) -> HDF5Batch:
        """Return an empty batch."""
        header = self._layout.header()
        fixed = [column for column in self._form.columns if not column.is_ragged]
        ragged = [column for column in self._form.columns if column.is_ragged]
        arrays = {column.label: self._rows(column, header) for column in fixed}
        masks = self._form.labels if self._form.with_masks else ()
        return HDF5Batch(
            form=self._form,
            capacity=self._capacity,
            arrays=cast("Mapping[str, Array]", arrays),
            valid={label: self._own(header, mask_path(label), np.uint8) for label in masks},
            index=self._own(header, EVENT_INDEX, np.uint64),
            timestamp=self._own(header, TIMESTAMP, np.uint64),
            step=self._own(header, STEP, np.uint32),
            ragged={column.label: self._ragged(column, header) for column in ragged},
            image=header,
            plan=self,
            held=tuple(each for each in arrays.values() if not isinstance(each, np.ndarray)),
        )

    def message(self, batch: HDF5Batch) -> Message:
        """Return the message of a batch; it is valid until the batch is used again."""
        layout, header = self._layout, batch.image
        if header is None or not batch.is_full:
            layout = self._partial_layout(batch.count)
            header = layout.header()
            for path, array in self._inside(batch):
                if layout.has_inside(path):
                    layout.view(header, path)[...] = array
        if self._recipe.identification:
            layout.view(header, SEQUENCE)[...] = batch.sequence
        return Message(layout.parts(header, self._sections(batch)), batch.count)

    # How a batch is made.

    def _rows(self, column: Column, header: Image) -> "Array | KeptRows | PackedRows":
        path = self._recipe.paths[column.label]
        if self._items[path].inside:
            return self._layout.view(header, path)
        if self._items[path].dataset.filters:
            return self._packed(path, self._capacity)
        return KeptRows(column.dtype, column.shape, self._capacity)

    def _ragged(self, column: Column, header: Image) -> RaggedColumn:
        offsets = self._layout.view(header, offsets_path(self._recipe.paths[column.label]))
        room = np.empty((self._capacity, *column.shape), column.dtype)
        return RaggedColumn(room, cast("npt.NDArray[np.uint64]", offsets))

    def _own(self, header: Image, path: str, dtype: type[np.unsignedinteger[Any]]) -> Any:
        """Return what identifies the events: in the message, if that is to say it."""
        if self._recipe.identification:
            return self._layout.view(header, path)
        return np.zeros(self._capacity, dtype)

    def _packed(self, path: str, capacity: int) -> PackedRows:
        dataset, filters = self._items[path].dataset, self._template.filters[path]
        workers, codec = self._recipe.workers, self._recipe.codec
        if codec is None:
            raise AssertionError(f"{path} has filters without a codec")
        shape = dataset.shape if dataset.chunk_rows == 1 else (dataset.chunk_rows, *dataset.shape)
        # Where there are fewer chunks than threads, several work on one.
        parts = workers.threads // capacity
        pieces = codec.pieces(dataset.row_bytes * dataset.chunk_rows, filters, parts)
        skippable = len(filters)
        return PackedRows(dataset.dtype, shape, capacity, pieces, skippable, workers, self._staging)

    # How it becomes a message.

    def _partial_layout(self, events: int) -> Layout:
        """Return that of a batch that is not full."""
        if events not in self._partial:
            while len(self._partial) >= PARTIAL_LAYOUTS:
                self._partial.pop(next(iter(self._partial)))
            items = {path: _outside(item) for path, item in self._items.items()}
            self._partial[events] = Layout(self._template, items, events)
        return self._partial[events]

    def _inside(self, batch: Batch) -> Iterator[tuple[str, Array]]:
        """Yield all arrays of a batch, without the rows that are not used, by path."""
        count, paths = batch.count, self._recipe.paths
        for label, array in batch.arrays.items():
            if isinstance(array, np.ndarray):
                yield paths[label], array[:count]
        for label, column in batch.ragged.items():
            yield offsets_path(paths[label]), column.offsets[: count + 1]
        if self._recipe.identification:
            yield EVENT_INDEX, batch.index[:count]
            yield TIMESTAMP, batch.timestamp[:count]
            yield STEP, batch.step[:count]
            yield from ((mask_path(label), mask[:count]) for label, mask in batch.valid.items())

    def _sections(self, batch: HDF5Batch) -> dict[str, Section]:
        """Return what may lie behind the header, by path."""
        count, paths = batch.count, self._recipe.paths
        arrays = cast("Mapping[str, Array | KeptRows | PackedRows]", batch.arrays)
        return {
            paths[label]: _plain(array[:count])
            if isinstance(array, np.ndarray)
            else array.section(count)
            for label, array in arrays.items()
        } | {
            paths[label]: self._ragged_section(batch, label, column.values(count))
            for label, column in batch.ragged.items()
        }

    def _ragged_section(self, batch: HDF5Batch, label: str, values: Array) -> Section:
        path = self._recipe.paths[label]
        rows = self._items[path].dataset.chunk_rows
        if not rows or not len(values):
            return _plain(values)
        chunks = -(-len(values) // rows)
        packed = batch.packed.get(label)
        if packed is None or packed.capacity < chunks:
            packed = batch.packed[label] = self._packed(path, chunks)
            packed.lasting = True
        packed.clear()
        for chunk in range(chunks):
            part = values[chunk * rows : (chunk + 1) * rows]
            packed[chunk] = part if len(part) == rows else _filled_up(part, rows)
        section = packed.section(chunks)
        return replace(section, rows=len(values))


def _outside(item: Item) -> Item:
    """Return what is worth to be sent from where it lies, although it was made to lie inside."""
    dataset = item.dataset
    is_large = dataset.chunk_rows and dataset.row_bytes >= LEAST_PACKED_BYTES
    return replace(item, inside=False) if item.inside and is_large else item


def _plain(array: Array) -> Section:
    return Section((bytes_of(array),), len(array), array.nbytes)


def _filled_up(values: Array, rows: int) -> Array:
    room = np.zeros((rows, *values.shape[1:]), values.dtype)
    room[: len(values)] = values
    return room
