"""Where everything lies in the files of one form.

```
header: the library's bytes | indexes of chunks | data of small datasets
behind it: the data of the other datasets, one after the other
```

All that the header says is known before there is any data, apart from the addresses and sizes
of what lies behind it where that is compressed or ragged.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lclstream.streamer.serializers.hdf5_index import ChunkIndex, Image, Numbers, starts_of
from lclstream.streamer.serializers.hdf5_rows import Section
from lclstream.streamer.serializers.hdf5_template import ADDRESS, END_OF_FILE, Dataset, Template
from lclstream.streamer.values import Array

# Data begin at a multiple of it, so that readers can use them where they lie.
ALIGNMENT = 64
PADDING = memoryview(bytes(ALIGNMENT))


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One dataset of the messages of one form."""

    dataset: Dataset
    inside: bool
    """Whether the data lie in the header."""
    rows: int | None = None
    """How many it has, where that is the same in every message."""
    more_rows: int = 0
    """How many it has beside one for each event."""
    is_ragged: bool = False
    """Whether the number of rows is known only from the data."""

    def count(self, events: int) -> int:
        """Return how many rows it has in a message; of no meaning when it is ragged."""
        return events + self.more_rows if self.rows is None else self.rows


@dataclass(frozen=True, slots=True)
class _Behind:
    """A dataset whose data lie behind the header."""

    path: str
    item: Item
    index: ChunkIndex | None
    """In the header, unless the number of chunks is known only from the data."""
    index_at: int

    @property
    def is_constant(self) -> bool:
        """Whether its size is known before there are any data."""
        return not (self.item.is_ragged or self.item.dataset.filters)

    @property
    def is_chunked_raggedly(self) -> bool:
        """Whether the number of its chunks is known only from the data."""
        return self.item.is_ragged and self.item.dataset.chunk_rows > 0


class Layout:
    """The files of one form with one number of events."""

    def __init__(self, template: Template, items: Mapping[str, Item], events: int) -> None:
        """Lay out.

        Args:
            template: the library's file.
            items: by path, in the order of the data.
            events: how many rows a dataset has; at least 1.
        """
        self._template, self._items, self._events = template, items, events
        indexes: dict[str, tuple[ChunkIndex, int]] = {}
        at = len(template.content)
        for path, item in items.items():
            index = _index(item, item.count(events))
            if index is not None:
                indexes[path] = index, at
                at += index.nbytes
        before_data = at
        self._inside: dict[str, int] = {}
        for path, item in items.items():
            if item.inside:
                self._inside[path] = at = _aligned(at)
                at += item.count(events) * item.dataset.row_bytes
        nothing = None, 0
        self._behind = [
            _Behind(path, item, *indexes.get(path, nothing))
            for path, item in items.items()
            if not item.inside
        ]
        self._size = _aligned(at) if self._behind else at
        self._beginning = np.zeros(before_data, np.uint8)
        self._write_beginning(indexes)
        self._is_announced = False
        if all(each.is_constant for each in self._behind):
            self._written(
                self._beginning, {each.path: self._expected(each) for each in self._behind}
            )
            self._is_announced = True

    def header(self) -> Image:
        """Return the header of a new file; the data in it are zeros."""
        # Such memory is not touched before it is written to.
        header = np.zeros(self._size, np.uint8)
        header[: len(self._beginning)] = self._beginning
        return header

    def has_inside(self, path: str) -> bool:
        """Return whether the data of a dataset lie in the header."""
        return path in self._inside

    def view(self, header: Image, path: str) -> Array:
        """Return the data of a dataset that lie in the header."""
        item, at = self._items[path], self._inside[path]
        shape = (item.count(self._events), *item.dataset.shape)
        return np.ndarray(shape, item.dataset.dtype, header.data, at)

    def parts(self, header: Image, sections: Mapping[str, Section]) -> tuple[memoryview, ...]:
        """Return a whole file.

        Args:
            header: of this layout; what it says of the sections is written here.
            sections: what lies behind it, by path.
        """
        return tuple(
            part for part in (header.data, *self._written(header, sections)) if part.nbytes
        )

    def _written(self, header: Image, sections: Mapping[str, Section]) -> list[memoryview]:
        """Return what lies behind the header, and write there what it says of that."""
        parts, end = list[memoryview](), self._size
        for each in self._behind:
            section = sections[each.path]
            before = PADDING[: -end % ALIGNMENT] if each.is_constant else PADDING[:0]
            if each.is_chunked_raggedly and section.nbytes:
                before = self._own_index(header, each, section, end)
            elif not self._is_announced:
                self._announce(header, each, section, end + before.nbytes)
            parts += [before, *section.parts]
            end += before.nbytes + section.nbytes
        if not self._is_announced:
            ADDRESS.pack_into(header.data, END_OF_FILE, end)
        return parts

    def _write_beginning(self, indexes: Mapping[str, tuple[ChunkIndex, int]]) -> None:
        """Write all that does not depend on what lies behind the header."""
        header = self._beginning
        header[: len(self._template.content)] = np.frombuffer(self._template.content, np.uint8)
        for index, at in indexes.values():
            index.write(header, at)
        for path, at in self._inside.items():
            item, fields = self._items[path], self._template.fields[path]
            rows, row_bytes = item.count(self._events), item.dataset.row_bytes
            if path in indexes:
                index, index_at = indexes[path]
                # What is so small is not worth a filter.
                skipped = (1 << len(item.dataset.filters)) - 1
                places = at + row_bytes * np.arange(rows, dtype=np.uint64)
                index.place(header, index_at, places, row_bytes, skipped)
                fields.write(header, rows, index_at + index.root, 0)
            else:
                size = rows * row_bytes
                fields.write(header, rows, at if size else None, size)
        ADDRESS.pack_into(header.data, END_OF_FILE, self._size)

    def _expected(self, each: _Behind) -> Section:
        rows = each.item.count(self._events)
        return Section((), rows, rows * each.item.dataset.row_bytes)

    def _announce(self, header: Image, each: _Behind, section: Section, at: int) -> None:
        """Write into the header where a dataset lies."""
        fields = self._template.fields[each.path]
        if each.index is None:
            fields.write(header, section.rows, at if section.nbytes else None, section.nbytes)
            return
        _place(each.index, header, each.index_at, section, at)
        fields.write(header, section.rows, each.index_at + each.index.root, 0)

    def _own_index(self, header: Image, each: _Behind, section: Section, at: int) -> memoryview:
        """Return an index to stand in front of a dataset whose chunks were not known before."""
        dataset = each.item.dataset
        chunks = -(-section.rows // dataset.chunk_rows)
        index = ChunkIndex(len(dataset.shape) + 1, dataset.chunk_rows, chunks)
        image = np.empty(index.nbytes, np.uint8)
        index.write(image, 0, at)
        _place(index, image, 0, section, at + index.nbytes)
        self._template.fields[each.path].write(header, section.rows, at + index.root, 0)
        return image.data


def _index(item: Item, rows: int) -> ChunkIndex | None:
    dataset = item.dataset
    if not dataset.chunk_rows or item.is_ragged:
        return None
    return ChunkIndex(len(dataset.shape) + 1, dataset.chunk_rows, rows // dataset.chunk_rows)


def _place(index: ChunkIndex, image: Image, at: int, section: Section, data_at: int) -> None:
    """Write into an index where the chunks of a section lie that begins at some address."""
    sizes: Numbers | int
    if section.sizes is None:
        sizes = section.nbytes // index.count
        places = data_at + sizes * np.arange(index.count, dtype=np.uint64)
    else:
        sizes, places = section.sizes, starts_of(section.sizes, data_at)
    skipped = 0 if section.skipped is None else section.skipped
    index.place(image, at, places, sizes, skipped)


def _aligned(at: int) -> int:
    return at + -at % ALIGNMENT
