"""Which files have appeared in folders and are whole, in their order."""

import math
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from lclstream.core.errors import StreamError
from lclstream.streamer.config.more_sources import FolderEventSourceConfig
from lclstream.streamer.sources.folder_notices import notices_of
from lclstream.streamer.sources.hdf5_layout import natural

UNFINISHED = (".part", ".partial", ".tmp", ".temp", ".inprogress", ".lock", "~")
# A file that nobody has written to for so long is whole, whatever the clocks of two machines say.
OLD_S = 60.0

Key = tuple[Any, ...]


@dataclass(slots=True)
class _Seen:
    """How a file was when it was looked at last."""

    size: int
    changed_ns: int
    since: float
    """On the clock of the process: since when it has been so."""


class FolderWatch:
    """Finds files as they appear.

    A file that is not whole holds up those behind it, so that the order is the same for all who
    look. Which files are whole: those that were closed or renamed while we watched, those with a
    file that says so beside them, and those that have not changed for a while.

    Resource handling: owns a descriptor of the system's notices until it is closed.

    Args:
        folders: to look into; not below them.
        config: which files, in what order, and when it ends.
        is_shared: whether several processes must find the same order.
        asked_to_end: returns whether to end now.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        config: FolderEventSourceConfig,
        asked_to_end: Callable[[], bool],
        *,
        is_shared: bool,
    ) -> None:
        self._folders, self._config = folders, config
        self._asked_to_end, self._is_shared = asked_to_end, is_shared
        self._taken: set[Path] = set()
        self._seen: dict[Path, _Seen] = {}
        self._last: Key = ()
        self._last_path: Path | None = None
        self._notices = notices_of(folders) if config.watch == "auto" and config.follow else None

    def close(self) -> None:
        """Stop watching."""
        if self._notices is not None:
            self._notices.close()

    def __iter__(self) -> Iterator[Path]:
        """Yield whole files, until no more will come.

        Raises:
            StreamError: a folder has gone, or several processes look and a file appeared out of
                order.
        """
        wanted: set[Path] | None = None
        news = time.monotonic()
        while True:
            # What ends the wait must have been there before the files were looked for.
            is_last = self._has_ended()
            found = self._candidates()
            if not self._config.follow:
                # Only those that were there when we began.
                wanted = {path for _, path in found} if wanted is None else wanted
                found = [each for each in found if each[1] in wanted]
                is_last = True
            for key, path in found:
                if not self._is_whole(path):
                    break
                self._take(key, path)
                yield path
                news = time.monotonic()
            else:
                if is_last:
                    return
            news = max(news, *(each.since for each in self._seen.values()), news)
            idle_s = self._config.idle_timeout_s or math.inf
            if self._asked_to_end() or time.monotonic() - news > idle_s:
                return
            self._wait()

    def _has_ended(self) -> bool:
        name = self._config.end_file
        return bool(name) and any((folder / name).exists() for folder in self._folders)

    def _candidates(self) -> list[tuple[Key, Path]]:
        """Return the files that have not been taken, in order."""
        found: list[tuple[Key, Path]] = []
        for number, folder in enumerate(self._folders):
            for name in self._names(folder):
                path = folder / name
                if path in self._taken:
                    continue
                status = self._look(path)
                if status is not None:
                    by_name = (natural(name), number)
                    is_by_name = self._config.order == "name"
                    found.append((by_name if is_by_name else (status.changed_ns, *by_name), path))
        return sorted(found)

    def _names(self, folder: Path) -> list[str]:
        try:
            return [each.name for each in folder.iterdir() if self._counts(each.name)]
        except OSError as error:
            raise StreamError(f"{folder}: {error.strerror}") from None

    def _counts(self, name: str) -> bool:
        if name.startswith(".") or name.endswith(UNFINISHED) or name == self._config.end_file:
            return False
        return any(fnmatchcase(name, pattern) for pattern in self._config.patterns)

    def _look(self, path: Path) -> _Seen | None:
        """Return how a file is and since when; None when it has gone, or is no file."""
        try:
            status = path.stat()
        except FileNotFoundError:
            self._seen.pop(path, None)
            return None
        if not stat.S_ISREG(status.st_mode):
            return None
        seen = self._seen.get(path)
        if seen is None or (seen.size, seen.changed_ns) != (status.st_size, status.st_mtime_ns):
            seen = _Seen(status.st_size, status.st_mtime_ns, time.monotonic())
            self._seen[path] = seen
        return seen

    def _is_whole(self, path: Path) -> bool:
        if self._config.done_suffix:
            return path.with_name(path.name + self._config.done_suffix).exists()
        seen = self._seen[path]
        if self._notices is not None and path in self._notices.closed:
            return seen.size > 0
        is_old = time.time() - seen.changed_ns / 1e9 > max(OLD_S, self._config.stable_s)
        # An empty file is probably about to be written.
        patience_s = self._config.stable_s if seen.size else OLD_S
        return time.monotonic() - seen.since >= patience_s or is_old

    def _take(self, key: Key, path: Path) -> None:
        if self._is_shared and key < self._last:
            raise StreamError(
                f"{path} appeared after {self._last_path}, which is behind it: ranks that share"
                " a folder need files that appear in their order"
            )
        self._last, self._last_path = max(key, self._last), path
        self._taken.add(path)
        self._seen.pop(path, None)
        if self._notices is not None:
            self._notices.closed.discard(path)

    def _wait(self) -> None:
        if self._notices is not None:
            self._notices.wait(self._config.poll_s)
        else:
            time.sleep(self._config.poll_s)
