"""Rows of HDF5 datasets, each chunk decompressed once."""

import bisect
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np

from lclstream.core.errors import DecodeError
from lclstream.streamer.events import Value
from lclstream.streamer.values import Array, Ragged

logger = logging.getLogger(__name__)

# Rows of small things are read so many bytes at a time.
BLOCK_BYTES = 1 << 18
# What a damaged file says can be anything.
MAX_ROW_BYTES = 1 << 32
# Numbers of filters above are not built into the library.
LAST_OWN_FILTER = 255
_FAULTS = (
    OSError, RuntimeError, LookupError, ValueError, TypeError, MemoryError, ArithmeticError,
    AttributeError, SystemError,
)  # fmt: skip


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turn whatever the HDF5 library raises into a `DecodeError` that says what was read."""
    try:
        yield
    except _FAULTS as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise DecodeError(f"cannot read {what}: {text}") from None


class Rows(Protocol):
    """Something with one row for each event."""

    def __len__(self) -> int:
        """Return the number of rows."""
        ...

    def row(self, index: int) -> Value | None:
        """Return one row; None where it is missing.

        Raises:
            DecodeError: it cannot be read.
        """
        ...


class Column:
    """The rows of one dataset.

    Reads blocks that end where chunks do, and keeps the last one: rows that are asked for in
    order cost one decompression for each chunk. What it returns stays valid.

    Args:
        dataset: of at least one axis.
        max_chunk_bytes: of decompressed chunks to keep; larger ones are read row by row.

    Raises:
        DecodeError: the dataset is damaged.
    """

    def __init__(self, dataset: h5py.Dataset, max_chunk_bytes: int) -> None:
        self._dataset = dataset
        self.name = f"{dataset.name} in {dataset.file.filename}"
        with reading(self.name):
            self.shape, self.dtype = tuple(dataset.shape), dataset.dtype
            _load_filters(dataset)
            self._is_text = h5py.check_string_dtype(self.dtype) is not None
            self._is_ragged = not self._is_text and h5py.check_vlen_dtype(self.dtype) is not None
            self._gaps = missing_rows(dataset) if dataset.is_virtual else ()
            row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
            self._span = self._rows_at_once(row_bytes, max_chunk_bytes)
        if row_bytes > MAX_ROW_BYTES:
            raise DecodeError(f"{self.name}: {row_bytes} bytes for one event")
        self._block: Array | None = None
        self._first = 0

    def __len__(self) -> int:
        return int(self.shape[0])

    def row(self, index: int) -> Value | None:
        """Return one row: an array or number, text, or `Ragged`; None where it is missing.

        Raises:
            DecodeError: it cannot be read.
        """
        if any(first <= index < last for first, last in self._gaps):
            return None
        block = self._block
        if block is None or not self._first <= index < self._first + len(block):
            block = self._load(index)
        return self._value(block[index - self._first])

    def rows(self, first: int, last: int) -> Array:
        """Return some rows as an array, shape (last - first, *shape of one).

        Raises:
            DecodeError: they cannot be read.
        """
        block = self._block
        if block is None or not self._first <= first <= last <= self._first + len(block):
            if last - first > self._span:
                return self._read(first, last)
            block = self._load(first, last)
        return block[first - self._first : last - self._first]

    def _load(self, index: int, last: int = 0) -> Array:
        """Return the block with a row, which is kept; where it is damaged, as little as needed."""
        first = index // self._span * self._span
        end = min(max(first + self._span, last), len(self))
        try:
            block = self._read(first, end)
        except DecodeError:
            if end - first == 1:
                raise
            first, block = index, self._read(index, max(index + 1, last))
        self._block, self._first = block, first
        return block

    def _read(self, first: int, last: int) -> Array:
        of = f"event {first}" if last - first < 2 else f"events {first} to {last - 1}"
        with reading(f"{of} of {self.name}"):
            return np.asarray(self._dataset[first:last])

    def _value(self, value: Any) -> Value:
        if self._is_ragged:
            return Ragged(np.asarray(value))
        if isinstance(value, bytes):
            return text_of(value)
        if isinstance(value, np.ndarray) and self._is_text:
            texts = np.array([text_of(each) for each in value.flat], dtype=np.object_)
            return texts.astype(np.str_).reshape(value.shape)
        return value  # type: ignore[no-any-return]

    def _rows_at_once(self, row_bytes: int, max_chunk_bytes: int) -> int:
        """Return how many rows a block has: whole chunks, and some of these when they are small."""
        rows = _chunk_rows(self._dataset)
        if rows > 1 and rows * row_bytes > max_chunk_bytes:
            logger.warning("hdf5_chunks_too_large", extra={
                "dataset": self.name, "chunk_events": rows, "chunk_bytes": rows * row_bytes,
                "max_chunk_bytes": max_chunk_bytes,
            })  # fmt: skip
            return 1
        return rows * max(1, BLOCK_BYTES // max(rows * row_bytes, 1))


class Chain:
    """Several columns one after the other, as detectors write them into a row of files."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self._columns = columns
        self._ends = list(accumulate(len(column) for column in columns))
        self.name = columns[0].name

    def __len__(self) -> int:
        return self._ends[-1]

    def row(self, index: int) -> Value | None:
        """Return one row; None where it is missing.

        Raises:
            DecodeError: it cannot be read.
        """
        which = bisect.bisect_right(self._ends, index)
        column = self._columns[which]
        return column.row(index - self._ends[which] + len(column))


class RaggedRows:
    """Readings of a number that varies: all of them one after the other, and where each begins."""

    def __init__(self, values: Column, offsets: Column) -> None:
        self._values, self._offsets = values, offsets
        self.name = values.name

    def __len__(self) -> int:
        return max(len(self._offsets) - 1, 0)

    def row(self, index: int) -> Value | None:
        """Return the readings of one event.

        Raises:
            DecodeError: they cannot be read, or lie outside of what is there.
        """
        first, last = (int(each) for each in self._offsets.rows(index, index + 2))
        if not 0 <= first <= last <= len(self._values):
            raise DecodeError(
                f"{self.name}: event {index} has {first} to {last} of {len(self._values)} readings"
            )
        return Ragged(self._values.rows(first, last))


class Constant:
    """The same value for every event."""

    def __init__(self, dataset: h5py.Dataset, count: int) -> None:
        self.name = f"{dataset.name} in {dataset.file.filename}"
        self._count = count
        with reading(self.name):
            _load_filters(dataset)
            if dataset.nbytes > MAX_ROW_BYTES:
                raise DecodeError(f"{self.name}: {dataset.nbytes} bytes for one event")
            value = dataset[()]
        if h5py.check_string_dtype(dataset.dtype) is not None:
            texts = np.array([text_of(each) for each in np.asarray(value).flat], dtype=np.object_)
            value = texts.astype(np.str_).reshape(dataset.shape)[()]
        self._value: Value = value

    def __len__(self) -> int:
        return self._count

    def row(self, index: int) -> Value | None:
        """Return the value."""
        del index
        return self._value


def text_of(value: bytes) -> str | np.bytes_:
    """Return bytes as text; what is none stays as it is."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return np.bytes_(value)


def missing_rows(dataset: h5py.Dataset) -> tuple[tuple[int, int], ...]:
    """Return the rows (first, after the last) of a virtual dataset whose files are not there.

    The library would fill them with zeros and say nothing.
    """
    folder = Path(dataset.file.filename).parent
    gaps: list[tuple[int, int]] = []
    for source in dataset.virtual_sources():
        name = source.file_name
        # The names of an unlimited dataset have a counter in them.
        if name == "." or "%" in name or (folder / name).is_file() or Path(name).is_file():
            continue
        first, last = source.vspace.get_select_bounds()
        gaps.append((int(first[0]), int(last[0]) + 1))
        extra = {"dataset": dataset.name, "file": name, "first": gaps[-1][0], "end": gaps[-1][1]}
        logger.warning("hdf5_virtual_source_missing", extra=extra)
    return tuple(gaps)


def _chunk_rows(dataset: h5py.Dataset) -> int:
    if dataset.chunks is not None:
        return int(dataset.chunks[0])
    if not dataset.is_virtual:
        return 1
    # All sources of one dataset are usually written by the same program.
    sources = dataset.virtual_sources()
    if not sources or "%" in sources[0].file_name or sources[0].file_name == ".":
        return 1
    path = Path(dataset.file.filename).parent / sources[0].file_name
    try:
        with h5py.File(path, "r") as file:
            found = file.get(sources[0].dset_name)
            chunks = found.chunks if isinstance(found, h5py.Dataset) else None
    except OSError:
        return 1
    return int(chunks[0]) if chunks is not None else 1


def _load_filters(dataset: h5py.Dataset) -> None:
    """Load the codecs that the library does not have itself, when the dataset needs one."""
    properties = dataset.id.get_create_plist()
    numbers = [properties.get_filter(each)[0] for each in range(properties.get_nfilters())]
    if dataset.is_virtual or any(number > LAST_OWN_FILTER for number in numbers):
        try:
            import hdf5plugin  # noqa: F401
        except ImportError:
            logger.warning("hdf5plugin_missing", extra={"dataset": dataset.name})
