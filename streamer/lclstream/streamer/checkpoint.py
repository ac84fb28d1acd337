"""Remembers, beside the messages, which events have arrived, so that a run can be continued.

Each rank appends to a file of its own, `<path>.r<rank>`: a line of JSON about the rank, then for
every few messages a line with the runs of their events. Any number of ranks can continue from the
files of all.
"""

import json
import logging
import os
import re
import time
from pathlib import Path
from typing import Any

from lclstream.core.errors import DecodeError, InvalidConfigError
from lclstream.core.files import write_atomically
from lclstream.streamer.event_set import EventSet, Run, runs_from
from lclstream.streamer.rank import Place

logger = logging.getLogger(__name__)

# Messages that follow each other faster share a line.
WRITE_INTERVAL_S = 0.05


class Checkpoint:
    """What one rank adds, and what all ranks of earlier runs have left.

    What arrived between the last line and the death of a process is not in it: these events are
    sent again, and can be told by their index.

    Resource handling: holds a file open from `open` to `close`.
    """

    def __init__(self, path: Path, place: Place, configuration: str) -> None:
        """Read what earlier runs have left; nothing is changed yet.

        Args:
            path: beginning of the names of the files.
            place: this rank.
            configuration: the hash of the configuration.

        Raises:
            InvalidConfigError: the files are damaged, or of another configuration.
        """
        self._path = path.with_name(f"{path.name}.r{place.rank}")
        self._head = {"rank": place.rank, "ranks": place.size, "configuration": configuration}
        self._mine = EventSet()
        self.events = EventSet()
        """Those that have arrived before."""
        self._waiting: list[Run] = []
        self._written_at = 0.0
        self._file = -1
        try:
            for each in sorted(path.parent.glob(f"{_escaped(path.name)}.r*")):
                if re.fullmatch(rf"{re.escape(path.name)}\.r\d+", each.name):
                    runs = read(each, configuration)
                    self.events.add(runs)
                    if each == self._path:
                        self._mine.add(runs)
        except (OSError, DecodeError) as error:
            raise InvalidConfigError(f"cannot continue from {path}: {error}") from None

    def open(self) -> None:
        """Begin to write.

        Raises:
            InvalidConfigError: the file cannot be written.
        """
        runs = sorted(self._mine.runs())
        lines = [self._head, *([runs] if runs else [])]
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, b"".join(map(_line, lines)), mode=0o644)
            self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        except OSError as error:
            raise InvalidConfigError(f"cannot write {self._path}: {error.strerror}") from None

    def add(self, runs: list[Run]) -> None:
        """Note events that have arrived."""
        self._waiting += runs
        if time.monotonic() >= self._written_at + WRITE_INTERVAL_S:
            self.flush()

    def flush(self) -> None:
        """Write what is noted."""
        if self._waiting and self._file >= 0:
            os.write(self._file, _line(self._waiting))
            self._waiting = []
            self._written_at = time.monotonic()

    def close(self) -> None:
        """Write what is noted and close the file; may be called again."""
        if self._file >= 0:
            try:
                self.flush()
            finally:
                os.close(self._file)
                self._file = -1


def read(path: Path, configuration: str) -> list[Run]:
    """Return the events in one file; a last line that was not written whole is left out.

    Raises:
        InvalidConfigError: the file is of another configuration.
        DecodeError: it is damaged.
        OSError: it cannot be read.
    """
    lines = path.read_bytes().split(b"\n")[:-1]
    runs: list[Run] = []
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        try:
            document = json.loads(line)
        except ValueError as error:
            raise DecodeError(f"{where}: not JSON: {error}") from None
        if number > 1:
            runs += runs_from(document, where)
        elif not isinstance(document, dict) or "configuration" not in document:
            raise DecodeError(f"{where}: names no configuration")
        elif document["configuration"] != configuration:
            before = str(document["configuration"])[:8]
            raise InvalidConfigError(
                f"{path} is of another configuration ({before}, now {configuration[:8]})"
            )
    return runs


def _line(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


def _escaped(name: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", name)
