"""Reads events from HDF5 files of any layout whose datasets have the events as first axis."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import h5py
import numpy as np

from lclstream.core.errors import DecodeError, InvalidConfigError
from lclstream.core.models import near
from lclstream.streamer.config import Hdf5EventSourceConfig, Parameters
from lclstream.streamer.config.data_sources import wanted_readings
from lclstream.streamer.config.source_identifier import identifier_files
from lclstream.streamer.events import Event, Value, unknown_reading


@dataclass(frozen=True, slots=True)
class _Row:
    """The readings of one event: the same row of every dataset."""

    source: "Hdf5EventSource"
    file: h5py.File
    row: int

    def read(self, name: str, field: str) -> Value | None:
        dataset = self.source.dataset(self.file, name, field)
        try:
            value = dataset[self.row]
        except OSError as error:
            raise DecodeError(
                f"cannot read event {self.row} of {dataset.name} in {self.file.filename}: {error}"
            ) from None
        return value.decode() if isinstance(value, bytes) else value


class Hdf5EventSource:
    """Gives this rank's share of the events of some files, one file after the other.

    Values keep their dtype and every bit. A data source finds a dataset by its path, or by the
    name that `names` of the configuration gives it.

    Resource handling: holds one file open at a time.
    """

    def __init__(self, parameters: Parameters, rank: int, size: int) -> None:
        """Look into every file: do they have what the data sources ask for?

        Raises:
            InvalidConfigError: a file cannot be opened, or lacks a dataset, or datasets differ in
                the number of events.
        """
        config = parameters.event_source
        if not isinstance(config, Hdf5EventSourceConfig):
            raise InvalidConfigError(f"not an Hdf5EventSource: {config.type}")
        self._config = config
        self._rank, self._size = rank, size
        self._names = MappingProxyType(dict(config.names))
        self._wanted = wanted_readings(parameters.data_sources)
        self._paths = [
            Path(each).expanduser() for each in identifier_files(parameters.source_identifier)
        ]
        self._counts = [self._count(path) for path in self._paths]
        self._file: h5py.File | None = None

    def __iter__(self) -> Iterator[Event]:
        """Yield this rank's share."""
        first = 0
        for path, count in zip(self._paths, self._counts, strict=True):
            self.close()
            self._file = _open(path)
            for index in range(first, first + count):
                if index % self._size == self._rank:
                    yield self._event(self._file, index, index - first)
            first += count
        self.close()

    def close(self) -> None:
        """Close the file that is open."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def dataset(self, file: h5py.File, name: str, field: str) -> h5py.Dataset:
        """Return the dataset that a detector's field or a path names.

        Raises:
            InvalidConfigError: the file has none.
        """
        called = f"{name}.{field}" if field else name
        path = self._names.get(called, called)
        found = file.get(path)
        if isinstance(found, h5py.Dataset):
            return found
        known = self._known(file)
        if called in self._names:
            hint = near(path, list(known)) or f"; there are: {', '.join(sorted(known))}"
            raise InvalidConfigError(f"no dataset {path!r}, which names gives for {called!r}{hint}")
        raise unknown_reading(called, "", known | {each: [""] for each in self._names})

    def _event(self, file: h5py.File, index: int, row: int) -> Event:
        stamp = index
        if self._config.timestamp is not None:
            stamp = int(self.dataset(file, self._config.timestamp, "")[row])
        return Event(
            timestamp=stamp,
            index=index,
            run=self._config.run,
            experiment=self._config.experiment,
            readings=_Row(self, file, row),
        )

    def _known(self, file: h5py.File) -> dict[str, list[str]]:
        paths: list[str] = []
        file.visititems(
            lambda name, item: paths.append(f"/{name}") if isinstance(item, h5py.Dataset) else None
        )
        return {path: [""] for path in paths}

    def _count(self, path: Path) -> int:
        """Return the number of events of a file."""
        with _open(path) as file:
            lengths: dict[str, int] = {}
            try:
                datasets = [self.dataset(file, name, field) for name, field in self._wanted]
                if self._config.timestamp is not None:
                    datasets.append(self._stamps(file))
            except InvalidConfigError as error:
                raise InvalidConfigError(f"{path}: {error}") from None
            for dataset in datasets:
                if not dataset.shape:
                    raise InvalidConfigError(f"{path}: {dataset.name} has no axis of events")
                lengths[str(dataset.name)] = int(dataset.shape[0])
        if not lengths:
            raise InvalidConfigError("no data source names a dataset: how many events are there?")
        if len(set(lengths.values())) > 1:
            each = ", ".join(f"{name} has {length}" for name, length in lengths.items())
            raise InvalidConfigError(f"{path}: the datasets differ in their events: {each}")
        return next(iter(lengths.values()))

    def _stamps(self, file: h5py.File) -> h5py.Dataset:
        dataset = self.dataset(file, self._config.timestamp or "", "")
        if not np.issubdtype(dataset.dtype, np.integer):
            raise InvalidConfigError(
                f"{dataset.name}: time stamps must be integers of 64 bits, got {dataset.dtype}"
            )
        return dataset


def describe(source_identifier: str) -> Iterator[str]:
    """Yield the lines of a listing of files: their datasets with dtype and shape.

    Raises:
        InvalidConfigError: a file cannot be read.
    """
    for path in identifier_files(source_identifier):
        yield path
        with _open(Path(path).expanduser()) as file:
            yield from _listing(file)


def _listing(file: h5py.File) -> list[str]:
    lines: list[str] = []
    file.visititems(lambda name, item: lines.extend(_line(name, item)))
    return lines


def _line(name: str, item: h5py.Dataset | h5py.Group) -> list[str]:
    if not isinstance(item, h5py.Dataset):
        return []
    shape = " x ".join(map(str, item.shape)) or "one value"
    return [f"  /{name}: {item.dtype}, {shape}"]


def _open(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r")
    except OSError as error:
        if not path.is_file():
            raise InvalidConfigError(f"{path}: no such file") from None
        raise InvalidConfigError(f"{path}: not a readable HDF5 file: {error}") from None
