"""One XTC2 file, memory-mapped and read dgram by dgram."""

import mmap
from collections.abc import Iterator
from pathlib import Path

from lclstream.core.errors import NotFoundError
from lclstream.streamer.sources.xtc2_dgram import Dgram
from lclstream.streamer.sources.xtc2_format import DGRAM_HEADER, Bytes, NamesTable, Service


class Xtc2File:
    """Yields the dgrams of a file; only their headers are read until values are asked for.

    Reading ends at the last whole dgram. A file whose writer died has the beginning of another
    one behind it: `truncated_at` then says where. A Configure dgram replaces the Names for what
    follows it, so a file may hold several.

    Resource handling: the map lives as long as a dgram or an array taken from it; there is
    nothing to close.

    Error handling: `NotFoundError` when the file cannot be read, `DecodeError` when what is in
    it is not XTC2.

    Args:
        path: the file.
        names: what the previous file of the same stream ended with; a continuation file has no
            Configure of its own.
    """

    def __init__(self, path: Path, names: NamesTable | None = None) -> None:
        self.path = path
        self.names: NamesTable = names or {}
        self.truncated_at: int | None = None
        self._names_before = self.names
        try:
            with path.open("rb") as file:
                self.size_bytes = file.seek(0, 2)
                self._bytes: Bytes = b""
                # An empty file cannot be mapped.
                if self.size_bytes:
                    self._bytes = mmap.mmap(file.fileno(), self.size_bytes, prot=mmap.PROT_READ)
        except OSError as error:
            raise NotFoundError(f"cannot read {path}: {error.strerror}") from error

    def __iter__(self) -> Iterator[Dgram]:
        self.names, self.truncated_at = self._names_before, None
        at, where = 0, str(self.path)
        while at + DGRAM_HEADER.size <= self.size_bytes:
            dgram = Dgram(self._bytes, at, self.names, where)
            if dgram.end > self.size_bytes:
                break
            if dgram.service is Service.CONFIGURE:
                self.names = dgram.names = dgram.described()
            at = dgram.end
            yield dgram
        if at < self.size_bytes:
            self.truncated_at = at
