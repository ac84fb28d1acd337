"""Writes each message into a file of its own."""

import logging
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from lclstream.core.errors import DecodeError, DeliveryError, InvalidConfigError
from lclstream.streamer.config import BinaryFileWritingDataHandlerConfig
from lclstream.streamer.event_set import EventSet, runs_of
from lclstream.streamer.handlers.manifests import (
    JOURNAL,
    MANIFEST,
    Entry,
    Journal,
    Manifest,
    manifests_in,
)
from lclstream.streamer.message import Message
from lclstream.streamer.rank import Place

logger = logging.getLogger(__name__)

# The system takes no more pieces in one call.
PIECES_PER_CALL = 1024


class BinaryFileWritingDataHandler:
    """Writes `<prefix_>r<rank>_<number>.<suffix>`, numbers from 0, and at the end a manifest.

    A file appears under its name only when it is whole. Files of an earlier run are never
    replaced unless the configuration says so; then they are all removed at the beginning,
    lest old ones remain among the new.

    The manifest `<prefix_>r<rank>.manifest.json` lists the files with their sizes, hashes and
    events; `complete` tells whether they hold everything that was read. Until the end a journal
    `<prefix_>r<rank>.journal` says the same. From both an earlier run, however it ended and
    however many ranks it had, can be continued: then files that they do not list, or that are not
    whole, are removed, and their events are written again.
    """

    def __init__(self, config: BinaryFileWritingDataHandlerConfig, place: Place) -> None:
        """Make the folder and look for files of an earlier run.

        Raises:
            InvalidConfigError: there are some that are neither to be replaced nor continued, or
                cannot be, or the folder cannot be written to.
        """
        prefix = config.file_prefix
        self._stem = f"{prefix}{'' if not prefix or prefix.endswith('_') else '_'}r"
        self._config, self._place = config, place
        self._folder = Path(config.write_directory).expanduser()
        self._earlier: dict[int, Manifest] = {}
        self._manifest = Manifest(place.rank, place.size)
        self._files: dict[str, Entry] = {}
        self._number = 0
        self._journal: Journal | None = None
        self._closed = False
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if config.resume:
                self._take_up()
            else:
                self._clear()
        except DecodeError as error:
            raise InvalidConfigError(f"cannot continue the earlier run: {error}") from None
        except OSError as error:
            raise InvalidConfigError(
                f"cannot write into {self._folder}: {error.strerror}"
            ) from None

    def prepare(self, configuration: str) -> EventSet | None:
        """Take note of what is run; return the events that need not be written again, if any.

        Args:
            configuration: the hash of the configuration.

        Raises:
            InvalidConfigError: the earlier run had another configuration, or what it has not
                finished cannot be removed.
        """
        self._manifest = replace(self._manifest, configuration=configuration)
        for earlier in self._earlier.values():
            if earlier.configuration not in ("", configuration):
                raise InvalidConfigError(
                    f"{self._folder} holds files of another configuration"
                    f" ({earlier.configuration[:8]}, now {configuration[:8]}): they cannot be"
                    " continued; choose another write_directory or file_prefix"
                )
        if not self._config.resume:
            return None
        held = EventSet()
        for earlier in self._earlier.values():
            for entry in earlier.whole_files.values():
                held.add(entry.index)
        try:
            self._tidy()
        except OSError as error:
            raise InvalidConfigError(
                f"cannot continue in {self._folder}: {error.strerror}"
            ) from None
        return held

    def send(self, message: Message) -> None:
        """Write one file.

        Raises:
            DeliveryError: the file exists, or the disk does not take it.
        """
        name = f"{self._stem}{self._place.rank}_{self._number}.{self._config.file_suffix}"
        entry = Entry(
            name,
            message.nbytes,
            message.events,
            f"{message.hash64():016x}",
            () if message.index is None else tuple(runs_of(message.index, self._place.size)),
        )
        try:
            if self._journal is None:
                self._journal = Journal(self._path(JOURNAL), self._manifest)
            self._write(self._folder / name, message.parts)
            self._journal.add(entry)
        except FileExistsError:
            raise DeliveryError(f"{self._folder / name} exists already", 1) from None
        except OSError as error:
            raise DeliveryError(
                f"cannot write {self._folder / name}: {error.strerror}", 1
            ) from None
        self._files[name] = entry
        self._number += 1

    def close(self, *, complete: bool = True) -> None:
        """Write the manifest.

        Args:
            complete: whether the files hold everything.

        Raises:
            DeliveryError: the disk does not take it.
        """
        self._end(complete=complete)

    def abort(self) -> None:
        """Write the manifest of what there is, marked as not complete."""
        if self._journal is not None:
            self._end(complete=False)

    def _path(self, end: str, rank: int | None = None) -> Path:
        return self._folder / f"{self._stem}{self._place.rank if rank is None else rank}{end}"

    def _write(self, path: Path, parts: Sequence[memoryview]) -> None:
        handle, temporary = tempfile.mkstemp(dir=self._folder, prefix=f".{path.name}.")
        try:
            try:
                os.fchmod(handle, 0o644)
                write_all(handle, parts)
            finally:
                os.close(handle)
            if self._config.overwrite:
                Path(temporary).replace(path)
            else:
                # A link, unlike a renaming, does not replace what is there.
                path.hardlink_to(temporary)
        finally:
            Path(temporary).unlink(missing_ok=True)

    # Earlier runs.

    def _clear(self) -> None:
        """Remove what an earlier run has left, or refuse to."""
        earlier = sorted(path for path, _, _ in self._mine())
        if earlier and not self._config.overwrite:
            count = f"{len(earlier)} file{'s' if len(earlier) > 1 else ''}"
            raise InvalidConfigError(
                f"{self._folder} holds {count} of an earlier run, e.g. {earlier[0].name}: choose"
                " another write_directory or file_prefix, or set overwrite or resume"
            )
        for path in earlier:
            path.unlink()

    def _take_up(self) -> None:
        """Look at what earlier runs have written; nothing is changed yet."""
        self._earlier = manifests_in(self._folder, self._stem)
        for path, rank, number in self._mine():
            if number is not None and not self._may_continue(path.name, rank, number):
                raise InvalidConfigError(
                    f"{path} is in no manifest or journal: it cannot be continued; choose another"
                    " write_directory or file_prefix"
                )
        mine = self._earlier.get(self._place.rank)
        if mine is not None:
            self._files = mine.whole_files
            self._number = max(map(self._number_of, mine.files), default=-1) + 1

    def _may_continue(self, name: str, rank: int, number: int) -> bool:
        """Return whether a file is listed, or is the one that was to be listed next."""
        manifest = self._earlier.get(rank)
        if manifest is None:
            return False
        last = max(map(self._number_of, manifest.files), default=-1)
        return name in manifest.files or number == last + 1

    def _number_of(self, name: str) -> int:
        match = re.fullmatch(rf"{re.escape(self._stem)}\d+_(\d+)\..*", name)
        return int(match[1]) if match is not None else -1

    def _tidy(self) -> None:
        """Remove what earlier runs have not finished, for its events will be written again."""
        whole = {name for each in self._earlier.values() for name in each.whole_files}
        for path, _, number in list(self._mine()):
            is_hidden = path.name.startswith(".")
            if is_hidden or (number is not None and path.name not in whole):
                logger.warning("unfinished_file_removed", extra={"file": str(path)})
                path.unlink()
        for rank, manifest in self._earlier.items() if self._place.rank == 0 else ():
            if rank >= self._place.size:
                kept = replace(manifest, continued=True, files=manifest.whole_files)
                kept.write(self._path(MANIFEST, rank))
                self._path(JOURNAL, rank).unlink(missing_ok=True)

    def _mine(self) -> Iterator[tuple[Path, int, int | None]]:
        """Yield the files of earlier runs of this rank, or of one that is no more.

        With each, its rank, and its number if it holds data under its own name; the others are
        manifests, journals and what was not written to its end.
        """
        stem, suffix = re.escape(self._stem), re.escape(self._config.file_suffix)
        ends = rf"_(\d+)\.{suffix}|{re.escape(MANIFEST)}|{re.escape(JOURNAL)}"
        form = re.compile(rf"(\.?){stem}(\d+)(?:{ends})(\.\w{{8}})?")
        for path in self._folder.iterdir():
            match = form.fullmatch(path.name)
            # What is not written to its end is hidden and has something behind its name.
            if match is None or bool(match[1]) != bool(match[4]):
                continue
            rank = int(match[2])
            if rank == self._place.rank or (self._place.rank == 0 and rank >= self._place.size):
                is_data = match[3] is not None and not match[1]
                yield path, rank, int(match[3]) if is_data else None

    def _end(self, *, complete: bool) -> None:
        if self._closed:
            return
        self._closed = True
        path = self._path(MANIFEST)
        try:
            replace(self._manifest, complete=complete, files=self._files).write(path)
            self._path(JOURNAL).unlink(missing_ok=True)
        except OSError as error:
            raise DeliveryError(f"cannot write {path}: {error.strerror}", 0) from None
        finally:
            if self._journal is not None:
                self._journal.close()


def write_all(handle: int, parts: Sequence[memoryview]) -> None:
    """Write pieces of memory into a file, one behind the other, without copying them together.

    Raises:
        OSError: the disk does not take them.
    """
    left = [part for part in parts if part.nbytes]
    while left:
        written = os.writev(handle, left[:PIECES_PER_CALL])
        done = 0
        while done < len(left) and written >= left[done].nbytes:
            written -= left[done].nbytes
            done += 1
        del left[:done]
        if written:
            left[0] = left[0].cast("B")[written:]
