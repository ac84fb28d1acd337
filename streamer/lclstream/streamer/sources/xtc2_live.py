"""Streams that are followed while they are written.

A stream goes on when its file grows, and in the next chunk when that appears. It has ended after
EndRun, or when its file got its final name and nothing more is announced. Streams may grow at
different speed: an event is complete when every stream is past it, and the acquisition writes
transitions to all of them about once a second.
"""

import logging
import time
from pathlib import Path

from lclstream.core.errors import InvalidConfigError, NotFoundError
from lclstream.streamer.sources.xtc2_file import Head, Xtc2File
from lclstream.streamer.sources.xtc2_files import (
    UNFINISHED,
    Recording,
    Search,
    file_name,
    finished_or_not,
)
from lclstream.streamer.sources.xtc2_format import Service
from lclstream.streamer.sources.xtc2_stream import Stream
from lclstream.streamer.sources.xtc2_watch import Watch

logger = logging.getLogger(__name__)

_OVER = object()
SETTLE_S = 1.0
"""How long no further stream may appear until those that are there count as all."""


class LiveStream(Stream):
    """A stream whose end is waited for.

    Error handling: when nothing comes for the time limit, the stream ends where it is, with the
    warning `xtc2_live_timeout`.
    """

    _is_final = False
    """Whether nobody writes the file any more."""

    def _head(self, file: Xtc2File, at: int) -> Head | None:
        while True:
            head = super()._head(file, at)
            if head is not None or self._gave_up or not self._has_more(file, at):
                return head
            # It may have been copied to its final name.
            file = self._file or file

    def _opened(self, path: Path) -> Xtc2File:
        final = path.with_name(path.name.removesuffix(UNFINISHED))
        # It may have got its final name since it was found.
        self._is_final = not path.is_file() and final.is_file()
        return super()._opened(final if self._is_final else path)

    def _has_more(self, file: Xtc2File, at: int) -> bool:
        """Wait until there is more in the file; return false when there will not be."""
        if file.grow():
            return True
        for _ in self._watch.looks():
            if self._file is file and file.grow():
                return True
            if self._is_complete(file, at):
                # What was written just before.
                return self._file is not file or file.grow()
        self._timed_out(str(file.path))
        return False

    def _is_complete(self, file: Xtc2File, at: int) -> bool:
        if file.is_over(at) and self.service == Service.END_RUN:
            return True
        if self._is_final or self._next_chunk(file) is not None:
            return True
        if file.path.name.endswith(UNFINISHED):
            self._is_final = self._has_final_name(file)
        return self._is_final

    def _has_final_name(self, file: Xtc2File) -> bool:
        """Return whether a file has its final name now, and go on with what has it."""
        final = file.path.with_name(file.path.name.removesuffix(UNFINISHED))
        try:
            status = final.stat()
        except FileNotFoundError:
            return False
        if (status.st_dev, status.st_ino) == file.identity:
            file.path = final
        elif status.st_size >= file.size_bytes:
            # Programs that move files to another file system copy them.
            self._file = super()._opened(final)
            file.close()
        else:
            # The copy is not complete.
            return False
        return True

    def _next_path(self) -> Path | None:
        before, announced = self._file, self._announced
        if before is None or self._further:
            return super()._next_path()
        found = self._next_chunk(before)
        if found is not None or announced is None or self._gave_up:
            return found
        for _ in self._watch.looks():
            found = self._next_chunk(before)
            if found is not None:
                return found
        self._timed_out(announced)
        return None

    def _next_chunk(self, file: Xtc2File) -> Path | None:
        name = file_name(file.path)
        following = str(name.next_chunk) if name else self._announced
        return None if following is None else finished_or_not(file.path.with_name(following))

    def _timed_out(self, what: str) -> None:
        extra = {"path": what, "timeout_s": self._watch.timeout_s}
        logger.warning("xtc2_live_timeout", extra=extra)
        self._reading.counts["live_timeouts"] += 1
        self._gave_up = True

    @property
    def _watch(self) -> Watch:
        if self._reading.watch is None:
            raise ValueError("a live stream needs somebody who waits")
        return self._reading.watch


def awaited(search: Search, watch: Watch, streams: int) -> Recording:
    """Wait for the files of a run and return it.

    Args:
        search: which run, where.
        watch: waits.
        streams: how many there will be; 0 = as many as appear within a second of each other.

    Raises:
        NotFoundError: they did not appear within the time limit.
        StoppedError: the end was asked for.
    """
    seen = -1
    while True:
        recording = present(search)
        count = len(recording.streams) if recording else 0
        if recording and streams and count >= streams:
            return recording
        if count > seen:
            # A new time limit begins.
            seen, since, looks = count, time.monotonic(), watch.looks()
        is_over = next(looks, _OVER) is _OVER
        if recording and not streams and (is_over or time.monotonic() - since >= SETTLE_S):
            return recording
        if is_over:
            break
    wanted = f"{streams or 1} stream{'s' if streams > 1 else ''} of {search.pattern}"
    raise NotFoundError(f"{seen} instead of {wanted} in {search.folder} in {watch.timeout_s:g} s")


def present(search: Search) -> Recording | None:
    """Return what there is of a run now, None when there is nothing."""
    try:
        return search.recording()
    except InvalidConfigError:
        # The folder was read while a file got its final name, or a chunk is still to be moved.
        return None
