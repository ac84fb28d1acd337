"""Reads events from HDF5 files whose datasets have the events as first axis.

Layouts that are known (NeXus, CXI, our own) need no configuration: see `hdf5_layout`.
"""

import glob
import logging
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import ClassVar

from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.config import Hdf5EventSourceConfig, Parameters
from lclstream.streamer.config.data_sources import wanted_readings
from lclstream.streamer.config.source_identifier import identifier_files
from lclstream.streamer.events import Event
from lclstream.streamer.sources.hdf5_file import Hdf5EventFile, Name
from lclstream.streamer.sources.hdf5_layout import natural

logger = logging.getLogger(__name__)

SUFFIXES = (".h5", ".hdf5", ".hdf", ".cxi", ".nxs", ".nx", ".nexus")


class Hdf5EventSource:
    """Gives this rank's share of the events of some files, one file after the other.

    Values keep their dtype and every bit. A data source finds a dataset by its path, by the name
    that `names` of the configuration gives it, or by that of the file's layout. What is in some
    of the files only is missing in the events of the others.

    Resource handling: holds one file open at a time; what was read from an event stays valid.

    Error handling: `DecodeError` with file and dataset when a file is damaged.
    """

    arrays_stay: ClassVar[bool] = True
    """What was read from an event is valid as long as it is held."""

    def __init__(self, parameters: Parameters, rank: int, size: int) -> None:
        """Look into every file: do they have what the data sources ask for?

        Raises:
            InvalidConfigError: a file cannot be opened, no file has a dataset, or datasets differ
                in the number of events.
            DecodeError: a file is damaged.
        """
        config = parameters.event_source
        if not isinstance(config, Hdf5EventSourceConfig):
            raise InvalidConfigError(f"not an Hdf5EventSource: {config.type}")
        self._config = config
        self._rank, self._size = rank, size
        self._paths = files_of(parameters.source_identifier)
        self._absent: dict[Path, frozenset[Name]] = {}
        self._counts = self._look(wanted_readings(parameters.data_sources))
        self._file: Hdf5EventFile | None = None

    def __iter__(self) -> Iterator[Event]:
        """Yield this rank's share.

        Raises:
            DecodeError: a file is damaged.
        """
        first = 0
        for path, count in zip(self._paths, self._counts, strict=True):
            mine = range(first + (self._rank - first) % self._size, first + count, self._size)
            if mine:
                self.close()
                self._file = file = self._opened(path)
                for index in mine:
                    yield file.event(index - first, index)
            first += count
        self.close()

    def close(self) -> None:
        """Close the file that is open."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _opened(self, path: Path) -> Hdf5EventFile:
        file = Hdf5EventFile(path, self._config)
        file.absent = self._absent.get(path, frozenset())
        return file

    def _look(self, wanted: list[Name]) -> list[int]:
        """Return how many events each file has, and remember what it lacks and others have."""
        has: dict[Path, set[Name]] = {}
        counts: dict[Path, int] = {}
        for path in self._paths:
            with closing(self._opened(path)) as file:
                has[path] = {name for name in wanted if file.has(name)}
                # What has nothing that is wanted may have nothing that can be counted.
                if has[path] or not wanted:
                    counts[path] = _count(file, [name for name in wanted if name in has[path]])
        somewhere = set().union(*has.values())
        for path, found in has.items():
            self._absent[path] = frozenset(somewhere - found)
            if self._absent[path]:
                names = sorted(".".join(filter(None, name)) for name in self._absent[path])
                logger.warning("hdf5_readings_missing", extra={
                    "path": str(path), "readings": names,
                })  # fmt: skip
            if path not in counts or not somewhere.issuperset(wanted):
                with closing(self._opened(path)) as file:
                    counts[path] = _count(file, wanted)
        return [counts[path] for path in self._paths]


def _count(file: Hdf5EventFile, wanted: list[Name]) -> int:
    try:
        return file.count(wanted)
    except InvalidConfigError as error:
        raise InvalidConfigError(f"{file.path}: {error}") from None


def files_of(source_identifier: str) -> list[Path]:
    """Return the files that paths, folders and patterns name, in the order of their numbers.

    Raises:
        InvalidConfigError: there is none.
    """
    found: list[Path] = []
    for name in identifier_files(source_identifier):
        path = Path(name).expanduser()
        matches = [path]
        if path.is_dir():
            matches = [each for each in path.iterdir() if each.suffix.lower() in SUFFIXES]
        elif not path.exists() and glob.has_magic(name):
            matches = [Path(each) for each in glob.glob(str(path))]  # noqa: PTH207 - of folders too
        if not matches:
            raise InvalidConfigError(f"{name}: no such file")
        found += sorted(matches, key=lambda each: natural(str(each)))
    return found


def describe(source_identifier: str) -> Iterator[str]:
    """Yield the lines of a listing of files: their datasets with dtype and shape, and names.

    Raises:
        InvalidConfigError: a file cannot be read.
        DecodeError: it is damaged.
    """
    for path in files_of(source_identifier):
        yield str(path)
        with closing(Hdf5EventFile(path, Hdf5EventSourceConfig())) as file:
            yield from file.describe()
