"""One HDF5 file as events."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from lclstream.core.errors import DecodeError, InvalidConfigError
from lclstream.core.models import near
from lclstream.streamer.config.event_sources import EventFilesConfig
from lclstream.streamer.events import Event, Value, unknown_reading
from lclstream.streamer.sources.hdf5_column import (
    Chain,
    Column,
    Constant,
    RaggedRows,
    Rows,
    reading,
)
from lclstream.streamer.sources.hdf5_info import listing
from lclstream.streamer.sources.hdf5_layout import (
    SIGNAL,
    Layout,
    child_of,
    discover,
    known_paths,
    series,
    text_in,
)

logger = logging.getLogger(__name__)

Name = tuple[str, str]
"""A detector or path, and the field below it."""


@dataclass(frozen=True, slots=True)
class Masked:
    """Rows some of which are marked as missing."""

    rows: Rows
    mask: Column

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, index: int) -> Value | None:
        """Return one row; None where it is missing.

        Raises:
            DecodeError: it cannot be read.
        """
        return self.rows.row(index) if self.mask.row(index) else None


class Hdf5EventFile:
    """The events of one file.

    Resource handling: holds the file open until it is closed.

    Args:
        path: of the file.
        config: names, constants and where the time stamps are.

    Raises:
        InvalidConfigError: there is no such file, or it is none of HDF5.
        DecodeError: it is damaged.
    """

    def __init__(self, path: Path, config: EventFilesConfig) -> None:
        self.path, self._config = path, config
        self.absent: frozenset[Name] = frozenset()
        """Readings that this file lacks and others of the source have."""
        self.file = open_file(path)
        try:
            self.layout = discover(self.file) if config.discover else Layout()
        except DecodeError:
            self.file.close()
            raise
        self._rows: dict[Name, Rows | None] = {}
        self._stamps: Rows | None = None
        self._parts: tuple[Rows, Rows] | None = None
        self._steps: Rows | None = None

    def close(self) -> None:
        """Close the file."""
        self._rows.clear()
        self._stamps = self._parts = self._steps = None
        self.file.close()

    def has(self, name: Name) -> bool:
        """Return whether the file has a reading."""
        return self._place(name) is not None

    def count(self, wanted: Iterable[Name]) -> int:
        """Return how many events the file has.

        Args:
            wanted: what is read from them; all of it must have as many.

        Raises:
            InvalidConfigError: the numbers differ, or nothing says how many there are.
        """
        if self._config.one_event:
            return 1
        rows = [found for found in map(self.rows, wanted) if found is not None]
        lengths = {_title(each): len(each) for each in rows if not isinstance(each, Constant)}
        self._open_stamps()
        own = [each for each in (self._stamps, self._steps, *(self._parts or ())) if each]
        lengths |= {_title(each): len(each) for each in own}
        if not lengths and SIGNAL in self.layout.names:
            signal = self.rows((SIGNAL, ""))
            lengths = {SIGNAL: len(signal)} if signal is not None else {}
        if not lengths:
            raise InvalidConfigError("no data source names a dataset: how many events are there?")
        if len(set(lengths.values())) > 1:
            each = ", ".join(f"{name} has {length}" for name, length in lengths.items())
            raise InvalidConfigError(f"the datasets differ in their events: {each}")
        return next(iter(lengths.values()))

    def event(self, row: int, index: int) -> Event:
        """Return one event.

        Args:
            row: in this file.
            index: in the whole source.
        """
        self._open_stamps()
        return Event(
            timestamp=self._timestamp(row, index),
            index=index,
            run=self._config.run or self.layout.run,
            experiment=self._config.experiment or self.layout.experiment,
            step=0 if self._steps is None else _whole(self._steps, row),
            readings=FileReadings(self, row),
        )

    def rows(self, name: Name) -> Rows | None:
        """Return the rows of a reading; None where only other files have it.

        Raises:
            InvalidConfigError: there is no such dataset, or it has no axis of events.
            DecodeError: it is damaged.
        """
        if name in self._rows:
            return self._rows[name]
        found: Rows | None = None
        if name not in self.absent:
            path = self._place(name)
            if path is None:
                raise self.unknown(name)
            found = self._opened(path, _called(name))
        self._rows[name] = found
        return found

    def describe(self) -> list[str]:
        """Return a line for each dataset, and for each name that data sources may use.

        Raises:
            DecodeError: the file is damaged.
        """
        return listing(self.file, self.layout.names)

    def _place(self, name: Name) -> str | None:
        """Return the path of a reading, None when the file has none."""
        called = _called(name)
        path = self._config.names.get(called)
        if path is None and isinstance(self._get(called), h5py.Dataset):
            path = called
        path = path or self.layout.names.get(called, called)
        if "*" in path:
            return path if self._series(path) else None
        return path if isinstance(self._get(path), h5py.Dataset) else None

    def _get(self, path: str) -> object:
        with reading(f"{path} in {self.path}"):
            return child_of(self.file, path)

    def _series(self, path: str) -> list[str]:
        parent, _, pattern = path.rpartition("/")
        group = self._get(parent or "/")
        if not isinstance(group, h5py.Group):
            return []
        return [f"{parent}/{name}" for name in series(group, pattern)]

    def _opened(self, path: str, called: str) -> Rows:
        if "*" in path:
            return Chain([self._column(each) for each in self._series(path)])
        dataset = self._dataset(path)
        clean = "/" + path.strip("/")
        if self._config.one_event or {called, path, clean} & set(self._config.constants):
            return Constant(dataset, 1)
        rows: Rows = self._column(path)
        offsets = self.layout.offsets.get(clean) or self._said_offsets(dataset)
        if offsets:
            rows = RaggedRows(self._column(path), self._column(offsets))
        if clean in self.layout.masks:
            return Masked(rows, self._column(self.layout.masks[clean]))
        return rows

    def _said_offsets(self, dataset: h5py.Dataset) -> str:
        """Return the path of the offsets that a dataset of our own names; empty for none."""
        if not self._config.discover:
            return ""
        with reading(f"{dataset.name} in {self.path}"):
            path = text_in(dataset.attrs.get("offsets"))
        return path if path and isinstance(self._get(path), h5py.Dataset) else ""

    def _column(self, path: str) -> Column:
        dataset = self._dataset(path)
        if not dataset.shape:
            raise InvalidConfigError(
                f"{dataset.name} has no axis of events; if it is the same for all, add it to"
                " `constants`"
            )
        return Column(dataset, self._config.max_chunk_bytes)

    def _dataset(self, path: str) -> h5py.Dataset:
        dataset = self._get(path)
        if not isinstance(dataset, h5py.Dataset):
            target = self._linked(path)
            where = f": {target}, in which it is, is not there" if target else ""
            raise InvalidConfigError(f"no dataset {path!r}{where}")
        if dataset.dtype.kind == "O" and h5py.check_ref_dtype(dataset.dtype) is not None:
            raise InvalidConfigError(f"{dataset.name} holds references, which cannot be sent")
        return dataset

    def _linked(self, path: str) -> str:
        """Return the name of the file that a link leads to; empty when there is no such link."""
        link = self.file.get(path, getlink=True) if path in self.file else None
        return str(link.filename) if isinstance(link, h5py.ExternalLink) else ""

    def unknown(self, name: Name) -> InvalidConfigError:
        """Return the error for a reading that the file does not have."""
        called = _called(name)
        path = self._config.names.get(called)
        known = {**known_paths(self.file), **self.layout.known()}
        if path is not None:
            hint = near(path, list(known)) or f"; there are: {', '.join(sorted(known))}"
            return InvalidConfigError(
                f"no dataset {path!r}, which names gives for {called!r}{hint}"
            )
        target = self._linked(called)
        if target:
            return InvalidConfigError(f"{called!r} is in {target}, which is not there")
        return unknown_reading(called, "", known | {each: [""] for each in self._config.names})

    def _open_stamps(self) -> None:
        if self._stamps is not None or self._parts is not None or self._config.one_event:
            return
        config, layout = self._config, self.layout
        place = config.timestamp or layout.timestamp
        if place:
            self._stamps = self._integers(place, "time stamps must be integers of 64 bits")
        elif layout.seconds is not None:
            first, second = (self._integers(each, "must be integers") for each in layout.seconds)
            self._parts = (first, second)
        place = config.step or layout.step
        if place:
            self._steps = self._integers(place, "steps must be integers")

    def _integers(self, path: str, text: str) -> Column:
        if self._place((path, "")) is None:
            raise self.unknown((path, ""))
        column = self._column(self._place((path, "")) or path)
        if not np.issubdtype(column.dtype, np.integer) or len(column.shape) != 1:
            raise InvalidConfigError(f"{path}: {text}, got {column.dtype}")
        return column

    def _timestamp(self, row: int, index: int) -> int:
        if self._config.one_event and self._config.timestamp is not None:
            return _whole(Constant(self._dataset(self._config.timestamp), 1), 0)
        if self._stamps is not None:
            return _whole(self._stamps, row)
        if self._parts is not None:
            seconds, nanoseconds = (_whole(each, row) for each in self._parts)
            return (seconds << 32 | nanoseconds) & (1 << 64) - 1
        return index


@dataclass(frozen=True, slots=True)
class FileReadings:
    """The readings of one event: the same row of every dataset."""

    file: Hdf5EventFile
    number: int

    def read(self, name: str, field: str) -> Value | None:
        """Return one reading, None when it is missing.

        Raises:
            InvalidConfigError: there is no such dataset.
            DecodeError: it is damaged.
        """
        rows = self.file.rows((name, field))
        return None if rows is None else rows.row(self.number)


def open_file(path: Path) -> h5py.File:
    """Open a file to read.

    Raises:
        InvalidConfigError: it is not there, or none of HDF5.
    """
    try:
        return h5py.File(path, "r")
    except OSError as error:
        if not path.is_file():
            raise InvalidConfigError(f"{path}: no such file") from None
        raise InvalidConfigError(f"{path}: not a readable HDF5 file: {error}") from None


def _called(name: Name) -> str:
    return f"{name[0]}.{name[1]}" if name[1] else name[0]


def _title(rows: Rows) -> str:
    inner = rows.rows if isinstance(rows, Masked) else rows
    return str(getattr(inner, "name", "")).partition(" in ")[0]


def _whole(rows: Rows, index: int) -> int:
    value = rows.row(index)
    return int(value) & (1 << 64) - 1 if isinstance(value, np.generic) else 0
