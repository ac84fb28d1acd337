"""What says which files a rank has written, and which events are in them.

While a rank runs, its journal gets one line of JSON for each file, behind a line about the rank;
a process that is killed leaves it behind. At the end the manifest, one JSON document with the same
content, takes its place.
"""

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from lclstream.core.errors import DecodeError
from lclstream.core.files import write_atomically
from lclstream.core.ledger import digest64
from lclstream.streamer.event_set import Run, runs_from

logger = logging.getLogger(__name__)

MANIFEST = ".manifest.json"
JOURNAL = ".journal"
# Of the files in a journal so many are read: those that were new when its rank died.
DOUBTFUL_FILES = 2


@dataclass(frozen=True, slots=True)
class Entry:
    """One file."""

    file: str
    bytes: int
    events: int
    xxh3_64: str
    index: tuple[Run, ...] = ()
    """Which events; empty where that is not known."""

    def document(self) -> dict[str, Any]:
        """Return it for JSON."""
        shown: dict[str, Any] = {"file": self.file, "bytes": self.bytes, "events": self.events}
        if self.index:
            shown["index"] = [list(run) for run in self.index]
        return shown | {"xxh3_64": self.xxh3_64}

    @classmethod
    def read(cls, document: Any, where: str) -> Self:
        """Return what JSON says.

        Raises:
            DecodeError: it is something else; names where.
        """
        kinds = {"file": str, "bytes": int, "events": int, "xxh3_64": str}
        if not isinstance(document, dict) or any(
            type(document.get(name)) is not kind for name, kind in kinds.items()
        ):
            raise DecodeError(f"{where}: does not describe a file")
        if "/" in document["file"]:
            raise DecodeError(f"{where}: a file must be in the same folder")
        index = runs_from(document.get("index", []), where)
        return cls(**{name: document[name] for name in kinds}, index=tuple(index))


@dataclass(frozen=True, slots=True)
class Manifest:
    """The files of one rank."""

    rank: int
    ranks: int
    configuration: str = ""
    """`configuration_hash` of what was run; empty where that is not known."""
    complete: bool = False
    """Whether the files hold everything that was read."""
    continued: bool = False
    """Whether another run wrote, into files of its own, what this rank did not."""
    files: Mapping[str, Entry] = field(default_factory=dict)
    damaged: frozenset[str] = frozenset()
    """Which of the files are not there, or not whole."""

    @property
    def whole_files(self) -> dict[str, Entry]:
        """Those that are as they were written."""
        return {name: each for name, each in self.files.items() if name not in self.damaged}

    def document(self) -> dict[str, Any]:
        """Return it for JSON."""
        shown: dict[str, Any] = {"rank": self.rank, "ranks": self.ranks, "complete": self.complete}
        if self.continued:
            shown["continued"] = True
        files = [entry.document() for entry in self.files.values()]
        return shown | {"configuration": self.configuration, "files": files}

    def write(self, path: Path) -> None:
        """Write it as one document, at once."""
        write_atomically(path, json.dumps(self.document(), indent=1).encode())

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a manifest.

        Raises:
            DecodeError: it is damaged.
            OSError: it cannot be read.
        """
        try:
            document = json.loads(path.read_bytes())
        except ValueError as error:
            raise DecodeError(f"{path}: not JSON: {error}") from None
        found = cls._read_head(document, str(path))
        files = document.get("files")
        if not isinstance(files, list):
            raise DecodeError(f"{path}: has no list of files")
        entries = [Entry.read(each, str(path)) for each in files]
        return replace(found, files={entry.file: entry for entry in entries})

    @classmethod
    def read_journal(cls, path: Path) -> Self | None:
        """Read a journal; a last line that was not written whole is left out.

        Returns:
            None if there is nothing in it yet.

        Raises:
            DecodeError: it is damaged.
            OSError: it cannot be read.
        """
        lines = path.read_bytes().split(b"\n")[:-1]
        if not lines:
            return None
        where = [f"{path}, line {number}" for number in range(1, len(lines) + 1)]
        documents = []
        for each, line in zip(where, lines, strict=True):
            try:
                documents.append(json.loads(line))
            except ValueError as error:
                raise DecodeError(f"{each}: not JSON: {error}") from None
        entries = [
            Entry.read(document, each)
            for each, document in zip(where[1:], documents[1:], strict=True)
        ]
        head = cls._read_head(documents[0], where[0])
        return replace(head, files={entry.file: entry for entry in entries})

    @classmethod
    def _read_head(cls, document: Any, where: str) -> Self:
        if not isinstance(document, dict) or any(
            type(document.get(name)) is not int for name in ("rank", "ranks")
        ):
            raise DecodeError(f"{where}: names no rank")
        configuration = document.get("configuration", "")
        if not isinstance(configuration, str):
            raise DecodeError(f"{where}: the hash of the configuration is no text")
        return cls(
            rank=document["rank"],
            ranks=document["ranks"],
            configuration=configuration,
            complete=document.get("complete") is True,
            continued=document.get("continued") is True,
        )


class Journal:
    """Appends to the journal of a rank.

    Resource handling: holds the file open until `close`.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        """Begin a journal, or continue the one that is there.

        Raises:
            OSError: it cannot be written.
        """
        self._path = path
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._file = os.open(path, flags, 0o644)
        whole_bytes = path.read_bytes().rfind(b"\n") + 1
        # The rest is the line of a file that was never announced.
        os.ftruncate(self._file, whole_bytes)
        if not whole_bytes:
            self._append({**manifest.document(), "files": []})

    def add(self, entry: Entry) -> None:
        """Announce a file that lies under its name."""
        self._append(entry.document())

    def close(self) -> None:
        """Close the file; may be called again."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _append(self, document: Mapping[str, Any]) -> None:
        line = json.dumps(document).encode() + b"\n"
        if os.write(self._file, line) < len(line):
            raise OSError(0, "disk full", str(self._path))


def manifests_in(folder: Path, stem: str) -> dict[int, Manifest]:
    """Return what the ranks of earlier runs have written, by rank.

    Args:
        folder: where the files are.
        stem: the beginning of their names, in front of the rank.

    Raises:
        DecodeError: a manifest or journal is damaged.
    """
    found: dict[int, Manifest] = {}
    for rank in sorted(_ranks(folder, stem)):
        path = folder / f"{stem}{rank}"
        # In this order: a rank that ends writes its manifest before it removes its journal.
        journal = _if_there(Manifest.read_journal, Path(f"{path}{JOURNAL}"))
        manifest = _if_there(Manifest.read, Path(f"{path}{MANIFEST}"))
        head = journal or manifest
        if head is None:
            continue
        new = journal.files if journal else {}
        doubtful = list(new)[-DOUBTFUL_FILES:]
        files = {**(manifest.files if manifest else {}), **new}
        damaged = {
            name
            for name, entry in files.items()
            if not _is_whole(folder, entry, reads=name in doubtful)
        }
        found[rank] = replace(head, files=files, damaged=frozenset(damaged))
    return found


def _ranks(folder: Path, stem: str) -> Iterator[int]:
    for path in folder.iterdir():
        for end in (MANIFEST, JOURNAL):
            middle = path.name[len(stem) : -len(end)]
            if path.name == f"{stem}{middle}{end}" and middle.isascii() and middle.isdigit():
                yield int(middle)


def _if_there(read: Callable[[Path], Manifest | None], path: Path) -> Manifest | None:
    try:
        return read(path)
    except FileNotFoundError:
        return None


def _is_whole(folder: Path, entry: Entry, *, reads: bool) -> bool:
    """Return whether a file is there and has its size, and its hash if it is to be read."""
    path = folder / entry.file
    try:
        if path.stat().st_size != entry.bytes:
            return False
        return not reads or f"{digest64(path.read_bytes()):016x}" == entry.xxh3_64
    except FileNotFoundError:
        return False
