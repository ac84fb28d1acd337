"""Reads events from files as they appear in folders."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import ClassVar, TypeAlias

from lclstream.core.errors import DecodeError, InvalidConfigError
from lclstream.streamer.config import Parameters
from lclstream.streamer.config.data_sources import wanted_readings
from lclstream.streamer.config.more_sources import FolderEventSourceConfig
from lclstream.streamer.config.source_identifier import identifier_files
from lclstream.streamer.events import Event
from lclstream.streamer.sources.folder_arrays import ArrayEventFile
from lclstream.streamer.sources.folder_watch import FolderWatch
from lclstream.streamer.sources.hdf5_file import Hdf5EventFile, Name
from lclstream.streamer.sources.xtc2_watch import Stop

logger = logging.getLogger(__name__)

ARRAYS = (".npy", ".npz")

EventFile: TypeAlias = Hdf5EventFile | ArrayEventFile


class FirstFileError(Exception):
    """The first file lacks what the data sources name."""


class FolderEventSource:
    """Gives this rank's share of the events of files that appear, file after file.

    Every rank opens every file, to know how many events it has, and reads its own events only.

    Resource handling: holds one file open at a time; what was read from an event stays valid.

    Error handling: the first file must have all that the data sources name; what later ones lack
    is missing. A file that cannot be read ends the run, or is skipped.
    """

    arrays_stay: ClassVar[bool] = True
    """What was read from an event is valid as long as it is held."""

    def __init__(self, parameters: Parameters, rank: int, size: int) -> None:
        """Begin to watch the folders.

        Raises:
            InvalidConfigError: one does not exist.
        """
        config = parameters.event_source
        if not isinstance(config, FolderEventSourceConfig):
            raise InvalidConfigError(f"not a FolderEventSource: {config.type}")
        self._config, self._rank, self._size = config, rank, size
        self._wanted = wanted_readings(parameters.data_sources)
        self._is_first = True
        self._stop: Stop | None = None
        self._counts = {"files": 0, "events": 0, "skipped_files": 0}
        self._file: EventFile | None = None
        folders = folders_of(parameters.source_identifier)
        self._watch = FolderWatch(folders, config, self._asked_to_end, is_shared=size > 1)

    @property
    def counts(self) -> Mapping[str, int]:
        """What came so far: files, events of all ranks, files that could not be read."""
        return dict(self._counts)

    def interrupt_by(self, stop: Stop) -> None:
        """Let a wish to end cut every wait short."""
        self._stop = stop

    def __iter__(self) -> Iterator[Event]:
        """Yield this rank's share.

        Raises:
            DecodeError: a file is damaged.
            InvalidConfigError: a file has not what the data sources ask for.
            StreamError: several ranks look, and a file appeared out of order.
        """
        first = 0
        for path in self._watch:
            opened = self._opened(path)
            if opened is None:
                self._counts["skipped_files"] += 1
                continue
            file, count = opened
            self._counts["files"] += 1
            self._counts["events"] += count
            begin = first + (self._rank - first) % self._size
            for index in range(begin, first + count, self._size):
                yield file.event(index - first, index)
            first += count
        self.close()

    def close(self) -> None:
        """Close the file that is open, and watch no more."""
        self._close_file()
        self._watch.close()

    def _opened(self, path: Path) -> tuple[EventFile, int] | None:
        """Return a file and how many events it has; None when it is skipped."""
        self._close_file()
        try:
            self._file = file = open_event_file(path, self._config)
            has = {name for name in self._wanted if file.has(name)}
            self._check_first(file, has)
            file.absent = frozenset(set(self._wanted) - has)
            count = file.count([name for name in self._wanted if name in has])
        except FirstFileError as error:
            raise InvalidConfigError(f"{path}: {error}") from None
        except (DecodeError, InvalidConfigError) as error:
            text = str(error) if str(path) in str(error) else f"{path}: {error}"
            # Ranks must not skip what others have read before it was removed.
            if self._config.on_error == "stop" or (self._size > 1 and not path.exists()):
                raise type(error)(text) from None
            logger.warning("folder_file_skipped", extra={"path": str(path), "reason": text})
            return None
        self._is_first = False
        return file, count

    def _check_first(self, file: EventFile, has: set[Name]) -> None:
        """Refuse what the data sources name and the first file does not have: a mistake."""
        for name in self._wanted if self._is_first else ():
            if name not in has:
                raise FirstFileError(str(file.unknown(name)))

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _asked_to_end(self) -> bool:
        return self._stop is not None and self._stop.wait(0)


def open_event_file(path: Path, config: FolderEventSourceConfig) -> Hdf5EventFile | ArrayEventFile:
    """Open a file of the kind that its name says.

    Raises:
        InvalidConfigError: it is not there, or of no kind that is known.
        DecodeError: it is damaged.
    """
    if path.suffix in ARRAYS:
        return ArrayEventFile(path, config)
    return Hdf5EventFile(path, config)


def folders_of(source_identifier: str) -> list[Path]:
    """Return the folders that a `source_identifier` names.

    Raises:
        InvalidConfigError: there is none, or one does not exist.
    """
    folders = [Path(each).expanduser() for each in identifier_files(source_identifier)]
    missing = [str(folder) for folder in folders if not folder.is_dir()]
    if missing or not folders:
        what = f"no such folder: {', '.join(missing)}" if missing else "names no folder"
        raise InvalidConfigError(f"source_identifier: {what}")
    return list(dict.fromkeys(folders))


def describe(source_identifier: str) -> Iterator[str]:
    """Yield the lines of a listing of what is in folders now.

    Raises:
        InvalidConfigError: a folder does not exist.
    """
    config = FolderEventSourceConfig(follow=False, stable_s=0)
    folders = folders_of(source_identifier)
    yield from describe_files(FolderWatch(folders, config, lambda: False, is_shared=False))


def describe_files(paths: Iterable[Path]) -> Iterator[str]:
    """Yield the lines of a listing of files of any kind; of one that cannot be read, why."""
    config = FolderEventSourceConfig()
    for path in paths:
        yield str(path)
        try:
            with closing(open_event_file(path, config)) as file:
                lines = list(file.describe())
        except (DecodeError, InvalidConfigError) as error:
            lines = [f"  {error}"]
        yield from lines
