"""One stream of a run: its dgrams from chunk to chunk, also while they are being written."""

import contextlib
import logging
import mmap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lclstream.core.errors import DecodeError, LclstreamError, NotFoundError
from lclstream.streamer.sources.xtc2_dgram import Dgram, ShapesData
from lclstream.streamer.sources.xtc2_file import Access, Head, Xtc2File
from lclstream.streamer.sources.xtc2_files import file_name
from lclstream.streamer.sources.xtc2_format import NamesTable, Service
from lclstream.streamer.sources.xtc2_index import SmallDataIndex, UnusableIndexError
from lclstream.streamer.sources.xtc2_watch import Watch

logger = logging.getLogger(__name__)

END = 1 << 64
"""Later than every timestamp: the stream has ended."""

_CHUNK_FIELDS = {"chunkid", "filename"}

Slow = Mapping[int, tuple[int, ShapesData]]
"""By `names_id`: the last contribution from outside of events, and the order of its coming."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How streams are read."""

    access: Access = "map"
    is_share: bool = False
    """Whether only some of the events are wanted, so that an index helps."""
    use_index: bool = True
    watch: Watch | None = None
    """Waits for more; None = what is there now is all."""
    keep_damaged: bool = False
    """Whether values count that the data acquisition marked as damaged."""
    skip_errors: bool = False
    """Whether a stream ends, and a reading is missing, where a file cannot be decoded."""
    counts: Counter[str] = field(default_factory=Counter)
    """What was found wrong, and how often."""

    @contextlib.contextmanager
    def going_on(self, what: str) -> Iterator[None]:
        """Pass over what cannot be decoded within, if that is wanted.

        Raises:
            DecodeError: it is not.
        """
        try:
            yield
        except DecodeError as error:
            if not self.skip_errors:
                raise
            self.passed_over(what, error)

    def passed_over(self, what: str, error: LclstreamError) -> None:
        """Count an error that does not end the reading, and say so."""
        self.counts[what] += 1
        logger.warning("xtc2_passed_over", extra={"what": what, "reason": str(error)})


class Stream:
    """One stream's dgrams across its chunks, and the last values from outside of events.

    `timestamp` and `service` are those of the next dgram, `timestamp` is `END` at the end.

    Args:
        paths: its chunks.
        number: its place among the streams.
        reading: how.
        is_whole: whether there are no other chunks than these.
    """

    def __init__(
        self, paths: Sequence[Path], number: int, reading: Reading, *, is_whole: bool
    ) -> None:
        self.number = number
        self.timestamp, self.service = 0, int(Service.CONFIGURE)
        self.names: NamesTable = {}
        self.slow: Slow = {}
        self._configured: Slow = {}
        self._further = list(paths)
        self._reading, self._is_whole = reading, is_whole
        self._announced: str | None = None
        self._gave_up = False
        self._at = self._end = 0
        self._index: SmallDataIndex | None = None
        self._file: Xtc2File | None = None

    def close(self) -> None:
        """Release the file."""
        if self._file is not None:
            self._file.close()

    def advance(self) -> None:
        """Go on to the next dgram, which may have to be waited for.

        Raises:
            DecodeError: none begins there.
            NotFoundError: a chunk is missing.
            StoppedError: the end was asked for while we waited.
        """
        at = self._end
        while True:
            head = None if self._file is None else self._head(self._file, at)
            if head is not None:
                self._at = at
                self.timestamp, self.service, self._end = head
                return
            if not self._next_file(at):
                self.timestamp = END
                return
            at = 0

    def dgram(self) -> Dgram:
        """Return the next dgram itself.

        Raises:
            DecodeError: it is not what the index said.
        """
        if self._file is None:
            raise ValueError("the stream has ended")
        dgram = self._file.dgram(self._at, self._end, self.names)
        if self._index is not None and dgram.timestamp != self.timestamp:
            raise DecodeError(
                f"{self._file.path}: byte {self._at}: the index {self._index.path} does not belong "
                "to this file; remove it, or set use_index: false"
            )
        if self._reading.is_share:
            self._file.prefetch(self._at, self._end)
        return dgram

    def apply(self, order: int) -> None:
        """Remember what the transition that comes next says about the events that follow it.

        Args:
            order: higher than of any transition before, in whatever stream.

        Raises:
            DecodeError: it is damaged.
        """
        transition = self.dgram()
        if transition.service is Service.CONFIGURE:
            self.names = transition.names = transition.described()
            self._configured = self.slow = {}
        elif transition.service is Service.BEGIN_RUN:
            self.slow = self._configured
        said = {each.names.names_id: (order, each) for each in transition.contributions()}
        # Events that were made before keep the values of their time.
        self.slow = {**self.slow, **said} if said else self.slow
        if transition.service is Service.CONFIGURE:
            self._configured = self.slow
        elif transition.service is Service.ENABLE:
            for _, each in said.values():
                if each.names.detector == "chunkinfo":
                    self._announced = self._chunk_after(each)

    def _head(self, file: Xtc2File, at: int) -> Head | None:
        """Return what begins at a byte, None at the end of what can be read."""
        try:
            return self._indexed(file, at) if self._index is not None else file.head(at)
        except DecodeError as error:
            if not self._reading.skip_errors:
                raise
            self._reading.passed_over("corrupt_file", error)
            self._gave_up = True
            return None

    def _indexed(self, file: Xtc2File, at: int) -> Head | None:
        try:
            return None if self._index is None else self._index.head(at, file)
        except UnusableIndexError as error:
            self._drop_index(error)
            return file.head(at)

    def _drop_index(self, error: UnusableIndexError) -> None:
        extra = {"path": str(self._file.path) if self._file else "", "reason": str(error)}
        logger.warning("xtc2_index_not_used", extra=extra)
        self._reading.counts["index_not_used"] += 1
        self._index = None

    def _next_file(self, at: int) -> bool:
        """Leave the file, whose last whole dgram ends at a byte; return whether there is another.

        Raises:
            NotFoundError: there should be.
        """
        if self._file is not None:
            self._leave(self._file, at)
        path = self._next_path()
        if path is None:
            self._file = None
            return False
        self._file = self._opened(path)
        self._announced, self._gave_up = None, False
        reading = self._reading
        if reading.is_share and reading.use_index and reading.watch is None:
            try:
                self._index = SmallDataIndex.of(path, self._index)
            except UnusableIndexError as error:
                self._drop_index(error)
        return True

    def _opened(self, path: Path) -> Xtc2File:
        reading = self._reading
        return Xtc2File(
            path,
            self.names,
            access=reading.access,
            grows=reading.watch is not None,
            hint=mmap.MADV_NORMAL if reading.is_share else mmap.MADV_SEQUENTIAL,
        )

    def _leave(self, file: Xtc2File, at: int) -> None:
        if at < file.size_bytes and not self._gave_up:
            left = file.size_bytes - at
            extra = {"path": str(file.path), "offset": at, "bytes_left": left}
            logger.warning("xtc2_truncated", extra=extra)
            self._reading.counts["truncated_files"] += 1
        file.close()

    def _next_path(self) -> Path | None:
        """Return the file in which the stream goes on, None at its end.

        Raises:
            NotFoundError: it is announced, and missing.
        """
        if self._further:
            return self._further.pop(0)
        if self._announced is None or self._file is None:
            return None
        text = f"{self._file.path} goes on in {self._announced}, which is missing"
        if self._is_whole:
            raise NotFoundError(text)
        # Only some of the files were asked for.
        self._reading.passed_over("chunk_not_read", NotFoundError(text))
        return None

    def _chunk_after(self, contribution: ShapesData) -> str | None:
        """Return the name of the file that is announced, None when it is not another one."""
        if self._file is None or not contribution.names.index.keys() >= _CHUNK_FIELDS:
            return None
        name = file_name(self._file.path)
        chunk, told = contribution.value("chunkid"), contribution.value("filename")
        is_sound = isinstance(chunk, np.integer) and isinstance(told, str)
        if not is_sound or (name is not None and int(chunk) <= name.chunk):
            return None
        # A path that a file tells is no reason to go anywhere else.
        return str(name.next_chunk) if name else Path(told).name or None
