"""Small-data files: where the events of a recording begin, without looking into it.

Beside every stream the data acquisition writes `smalldata/<name>.smd.xtc2`, with the same
transitions, and of every event its time, offset and size only. A rank that wants one event of
many then need not touch those between, which matters where the files are far away.

Nothing is believed that cannot be checked: reader and index go side by side through the file,
an event counts only when the next one begins where it ends, transitions and a sample of the
events are compared with the file. Whatever does not agree, or ends early, is not used from there
on; the reader then walks through the file itself, from the very same place. All ranks come to the
same decision, since they check the same things.
"""

from collections.abc import Iterator
from pathlib import Path
from struct import Struct
from typing import NamedTuple

from lclstream.core.errors import DecodeError, LclstreamError
from lclstream.streamer.sources.xtc2_dgram import Dgram
from lclstream.streamer.sources.xtc2_file import Head, Xtc2File
from lclstream.streamer.sources.xtc2_files import INDEX_SUFFIX, SUFFIX, finished_or_not
from lclstream.streamer.sources.xtc2_format import FieldType, NamesTable, Service

FOLDER = "smalldata"
ALWAYS_CHECKED = 64
"""So many events are compared with the file; of the others, number 128, 256 and so on."""

_OVER = -1
_L1ACCEPT = int(Service.L1ACCEPT)
_OFFSET_AND_SIZE = Struct("<QQ").unpack_from
_FIELDS = [("intOffset", FieldType.U8, 0), ("intDgramSize", FieldType.U8, 0)]
_STAMP_AND_ENV = 12


class Entry(NamedTuple):
    """One dgram of the file: `offset` and `end` are known of events only."""

    timestamp: int
    service: int
    offset: int = -1
    end: int = -1


class UnusableIndexError(Exception):
    """The index does not fit the file, or has come to its end."""


def index_path(path: Path) -> Path:
    """Return where the index of a file should be."""
    stem = path.name.partition(SUFFIX)[0]
    return path.parent / FOLDER / (stem + INDEX_SUFFIX)


class SmallDataIndex:
    """Goes through a file together with its reader, and spares it the headers of the events.

    Error handling: whatever is wrong with the index is an `UnusableIndexError`.

    Args:
        path: the small-data file.
        names: what the index of the stream's previous file ended with.
    """

    def __init__(self, path: Path, names: NamesTable | None = None) -> None:
        self.path = path
        try:
            self._file = Xtc2File(path, names)
        except LclstreamError as error:
            raise UnusableIndexError(str(error)) from error
        self._entries = _entries(self._file)
        self._events = 0
        self._next = self._after = Entry(0, _OVER)
        self._step()
        self._step()

    @classmethod
    def of(cls, path: Path, before: "SmallDataIndex | None" = None) -> "SmallDataIndex | None":
        """Return the index of a file, or that of the file before if it goes on; None without.

        Raises:
            UnusableIndexError: there is one that cannot be read.
        """
        found = finished_or_not(index_path(path))
        if found is None:
            return before
        return cls(found, before.names if before else None)

    @property
    def names(self) -> NamesTable:
        """What has been announced so far."""
        return self._file.names

    def head(self, at: int, file: Xtc2File) -> Head | None:
        """Return what begins at a byte of the file, None at its end.

        Raises:
            UnusableIndexError: the index says something else; the file has to be asked.
            DecodeError: no dgram begins there.
        """
        entry = self._next
        if entry.offset == at and self._is_sound(entry, file):
            self._step()
            return entry.timestamp, _L1ACCEPT, entry.end
        head = file.head(at)
        if head is None:
            return None
        if entry.service == _OVER:
            raise UnusableIndexError(f"it ends at byte {at} of {file.path}")
        timestamp, service, end = head
        is_same = (timestamp, service) == (entry.timestamp, entry.service)
        if not is_same or (service == _L1ACCEPT and (at, end) != (entry.offset, entry.end)):
            raise UnusableIndexError(f"it says something else than {file.path}, byte {at}")
        self._step()
        return head

    def _is_sound(self, entry: Entry, file: Xtc2File) -> bool:
        """Return whether an event's end is that of a dgram, and need not be compared."""
        self._events += 1
        if self._events <= ALWAYS_CHECKED or self._events & (self._events - 1) == 0:
            return False
        return self._after.offset == entry.end <= file.size_bytes

    def _step(self) -> None:
        self._next = self._after
        try:
            self._after = next(self._entries, Entry(0, _OVER))
        except DecodeError as error:
            raise UnusableIndexError(str(error)) from error


def _entries(file: Xtc2File) -> Iterator[Entry]:
    """Yield what an index says."""
    at, quick = 0, _Shortcut()
    names = file.names
    while (head := file.head(at)) is not None:
        timestamp, service, end = head
        if service == _L1ACCEPT:
            offset, size = quick.read(file.dgram(at, end, names))
            yield Entry(timestamp, service, offset, offset + size)
        else:
            if service == Service.CONFIGURE:
                file.names = names = file.dgram(at, end, {}).described()
                quick = _Shortcut()
            yield Entry(timestamp, service)
        at = end


class _Shortcut:
    """Finds offset and size at once in dgrams that are built as the one before."""

    def __init__(self) -> None:
        self._headers = b""
        self._values = 0

    def read(self, dgram: Dgram) -> tuple[int, int]:
        buffer, first = dgram.window.buffer, dgram.offset + _STAMP_AND_ENV
        if self._headers and buffer[first : first + len(self._headers)] == self._headers:
            offset, size = _OFFSET_AND_SIZE(buffer, first + self._values)
            return offset, size
        for each in dgram.contributions():
            fields = [(field.name, field.type, field.rank) for field in each.names.fields[:2]]
            if fields == _FIELDS:
                offset, size = (int(each.at(place)) for place in (0, 1))
                self._headers = bytes(buffer[first : each.data_at])
                self._values = each.data_at - first
                return offset, size
        raise dgram.window.bad(dgram.offset, "an event without its place")
