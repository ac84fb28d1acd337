"""Writes each message into a file of its own."""

import json
import os
import re
import tempfile
from pathlib import Path

from lclstream.core.errors import DeliveryError, InvalidConfigError
from lclstream.core.files import write_atomically
from lclstream.core.ledger import digest64
from lclstream.streamer.config import BinaryFileWritingDataHandlerConfig
from lclstream.streamer.message import Message
from lclstream.streamer.rank import Place


class BinaryFileWritingDataHandler:
    """Writes `<prefix_>r<rank>_<number>.<suffix>`, numbers from 0, and at the end a manifest.

    A file appears under its name only when it is whole. Files of an earlier run are never
    replaced unless the configuration says so; then they are all removed at the beginning,
    lest old ones remain among the new.

    The manifest `<prefix_>r<rank>.manifest.json` lists the files with their sizes, events and
    hashes; `complete` tells whether they hold everything that was read.
    """

    def __init__(self, config: BinaryFileWritingDataHandlerConfig, place: Place) -> None:
        """Make the folder and look for files of an earlier run.

        Raises:
            InvalidConfigError: there are some, or the folder cannot be written to.
        """
        prefix = config.file_prefix
        self._stem = f"{prefix}{'' if not prefix or prefix.endswith('_') else '_'}r"
        self._suffix = config.file_suffix
        self._overwrite = config.overwrite
        self._place = place
        self._folder = Path(config.write_directory).expanduser()
        self._files: list[dict[str, object]] = []
        self._closed = False
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._clear()
        except OSError as error:
            raise InvalidConfigError(
                f"cannot write into {self._folder}: {error.strerror}"
            ) from None

    def send(self, message: Message) -> None:
        """Write one file.

        Raises:
            DeliveryError: the file exists, or the disk does not take it.
        """
        payload = message.joined()
        name = f"{self._stem}{self._place.rank}_{len(self._files)}.{self._suffix}"
        try:
            self._write(self._folder / name, payload)
        except FileExistsError:
            raise DeliveryError(f"{self._folder / name} exists already", 1) from None
        except OSError as error:
            raise DeliveryError(
                f"cannot write {self._folder / name}: {error.strerror}", 1
            ) from None
        self._files.append(
            {
                "file": name,
                "bytes": payload.nbytes,
                "events": message.events,
                "xxh3_64": f"{digest64(payload):016x}",
            }
        )

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
        self._end(complete=False)

    def _write(self, path: Path, payload: memoryview) -> None:
        handle, temporary = tempfile.mkstemp(dir=self._folder, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                os.fchmod(file.fileno(), 0o644)
                file.write(payload)
            if self._overwrite:
                Path(temporary).replace(path)
            else:
                # A link, unlike a renaming, does not replace what is there.
                path.hardlink_to(temporary)
        finally:
            Path(temporary).unlink(missing_ok=True)

    def _clear(self) -> None:
        earlier = sorted(path for path in self._folder.iterdir() if self._is_mine(path.name))
        if earlier and not self._overwrite:
            count = f"{len(earlier)} file{'s' if len(earlier) > 1 else ''}"
            raise InvalidConfigError(
                f"{self._folder} holds {count} of an earlier run, e.g. {earlier[0].name}: choose"
                " another write_directory or file_prefix, or set overwrite: true"
            )
        for path in earlier:
            path.unlink()

    def _is_mine(self, name: str) -> bool:
        """Return whether a file is from an earlier run of this rank, or of one that is no more."""
        form = rf"{re.escape(self._stem)}(\d+)(_\d+\.{re.escape(self._suffix)}|\.manifest\.json)"
        match = re.fullmatch(form, name)
        if match is None:
            return False
        rank = int(match[1])
        return rank == self._place.rank or (self._place.rank == 0 and rank >= self._place.size)

    def _end(self, *, complete: bool) -> None:
        if self._closed:
            return
        self._closed = True
        manifest = {"rank": self._place.rank, "ranks": self._place.size, "complete": complete}
        content = json.dumps(manifest | {"files": self._files}, indent=1).encode()
        path = self._folder / f"{self._stem}{self._place.rank}.manifest.json"
        try:
            write_atomically(path, content)
        except OSError as error:
            raise DeliveryError(f"cannot write {path}: {error.strerror}", 0) from None
