"""From messages to events: which series they belong to, and what index and time they have."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lclstream.core.errors import DecodeError
from lclstream.streamer import simplon
from lclstream.streamer.config.more_sources import SimplonEventSourceConfig
from lclstream.streamer.events import Event
from lclstream.streamer.simplon import lclstreamer, stream1
from lclstream.streamer.simplon.values import NS_PER_S
from lclstream.streamer.sources.simplon_own import own_words
from lclstream.streamer.sources.simplon_readings import OWN, ImageReadings, RunReadings

logger = logging.getLogger(__name__)

EPOCH_S = 631_152_000
"""1990-01-01 in Unix time, from where time stamps count."""
# Series whose end never comes must not fill the memory.
MAX_SERIES = 64
# Indices that are kept for a series of unknown length when another one begins before its end.
UNKNOWN_EXTENT = 1 << 32

Key = tuple[int | str, str]


@dataclass(slots=True)
class Series:
    """A series, or a run of lclstreamer's dialect, that is known."""

    name: str
    first: int
    """Index of its first image."""
    start: simplon.StartMessage | lclstreamer.RunStart | None = None
    announced: int = 0
    """Images that it has; 0 when that is not known."""
    images: int = 0
    after: int = 0
    """One more than the highest number of an image."""
    has_begun: bool = False
    has_ended: bool = False

    @property
    def missing(self) -> int:
        """Images that are announced and have not come."""
        return max(self.announced - self.images, 0)

    @property
    def extent(self) -> int:
        """How many indices it takes, as far as known."""
        return max(self.announced, self.after)


@dataclass
class SeriesBook:
    """Keeps account of the series, and makes an event of each image."""

    config: SimplonEventSourceConfig
    ended: int = 0
    """Series whose end has come."""
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(
        ("series", "images", "missing_images", "images_without_start"), 0
    ))  # fmt: skip
    _series: dict[Key, Series] = field(default_factory=dict)
    _floor: int = 0
    """One more than the highest index of those that were forgotten."""

    @property
    def under_way(self) -> int:
        """Series that have begun and not ended."""
        return sum(not each.has_ended for each in self._series.values())

    @property
    def missing(self) -> int:
        """Images that are announced by series that have ended, and have not come."""
        return sum(each.missing for each in self._series.values() if each.has_ended)

    @property
    def is_counted(self) -> bool:
        """Whether the number of images of every series is known."""
        return all(each.announced for each in self._series.values())

    def state(self) -> str:
        """Return how far the series are, as part of a sentence."""
        open_series = [each for each in self._series.values() if not each.has_ended]
        if not open_series:
            return f"{self.ended} of {self.config.series} series have ended"
        last = open_series[-1]
        of = f" of {last.announced}" if last.announced else ""
        return f"series {last.name} has not ended after {last.images}{of} images"

    def finish(self) -> None:
        """Say what has not come."""
        for each in self._series.values():
            self._say_missing(each)

    def take(self, parts: Sequence[memoryview]) -> Event | None:
        """Return the event of an image; None for a start or end, which are remembered.

        Args:
            parts: of a message; only those of Stream V1 have several, or begin as JSON does.

        Raises:
            DecodeError: the message is damaged.
        """
        dialect, message = self.config.dialect, parts[0]
        is_json = dialect == "auto" and bytes(message[:1]) == b"{"
        if dialect == "stream1" or len(parts) > 1 or is_json:
            return self._stream2(stream1.decode(parts))
        if dialect == "auto":
            dialect = "stream2" if lclstreamer.dialect_of(message) == "stream2" else "lclstreamer"
        if dialect == "stream2":
            return self._stream2(simplon.decode(message))
        return self._lclstreamer(lclstreamer.decode(message))

    def _stream2(self, message: simplon.Message) -> Event | None:
        key = (message.series_id, message.series_unique_id)
        is_start = isinstance(message, simplon.StartMessage)
        series = self._of(key, str(message.series_id), is_start=is_start)
        if isinstance(message, simplon.StartMessage):
            announced = message.fields.get("number_of_images")
            self._begin(series, message, announced if type(announced) is int else 0)
        elif isinstance(message, simplon.EndMessage):
            self._end(series)
        else:
            return self._image(series, message)
        return None

    def _lclstreamer(self, message: lclstreamer.RunMessage) -> Event | None:
        is_start = isinstance(message, lclstreamer.RunStart)
        series = self._of((message.run, ""), message.run, is_start=is_start)
        if isinstance(message, lclstreamer.RunStart):
            self._begin(series, message, 0)
        elif isinstance(message, lclstreamer.RunStop):
            self._end(series)
        else:
            return self._run_image(series, message)
        return None

    def _of(self, key: Key, name: str, *, is_start: bool) -> Series:
        """Return the series of a message; a new one when that of this name has ended already.

        Raises:
            DecodeError: there is more than one series, and ranks share it.
        """
        found = self._series.get(key)
        if found is not None and not (is_start and found.has_ended):
            return found
        if self._series and self.config.ranks == "share":
            raise DecodeError(f"series {name}: ranks can share one series only")
        first = self._first_free()
        if found is not None:
            self._forget(key)
        elif len(self._series) >= MAX_SERIES:
            ended = (each for each, series in self._series.items() if series.has_ended)
            self._forget(next(ended, next(iter(self._series))))
        self.counts["series"] += 1
        self._series[key] = Series(name, first)
        return self._series[key]

    def _first_free(self) -> int:
        """Return an index that no image of the series so far has, or will have."""
        ends = (each.first + each.extent for each in self._series.values())
        first = max(self._floor, *ends, 0)
        if any(not each.has_ended and not each.announced for each in self._series.values()):
            first = -(-first // UNKNOWN_EXTENT) * UNKNOWN_EXTENT or UNKNOWN_EXTENT
        return first

    def _forget(self, key: Key) -> None:
        series = self._series.pop(key)
        self._floor = max(self._floor, series.first + series.extent)
        self._say_missing(series)

    def _say_missing(self, series: Series) -> None:
        # Where ranks share, the others may have them.
        if not series.missing or self.config.ranks == "share":
            return
        self.counts["missing_images"] += series.missing
        logger.warning("simplon_images_missing", extra={
            "series": series.name, "images": series.images, "announced": series.announced,
        })  # fmt: skip

    def _begin(
        self, series: Series, start: simplon.StartMessage | lclstreamer.RunStart, announced: int
    ) -> None:
        if series.has_begun:
            raise DecodeError(f"series {series.name} begins twice")
        series.start, series.announced, series.has_begun = start, announced, True

    def _end(self, series: Series) -> None:
        self.ended += not series.has_ended
        series.has_ended = True
        # Late images of this one may come; the tables of those before take memory for nothing.
        for each in self._series.values():
            if each.has_ended and each is not series:
                each.start = None

    def _image(self, series: Series, image: simplon.ImageMessage) -> Event:
        said = own_words(image.user_data)
        number = series.images if image.image_id is None else image.image_id
        index = _whole(said.get("event_index"), series.first + number)
        start = series.start if isinstance(series.start, simplon.StartMessage) else None
        self._counted(series, number)
        return Event(
            timestamp=_whole(said.get("timestamp"), time_of(image, index)),
            index=_in_64_bits(index),
            run=_whole(said.get("run"), self._run(image.series_id)),
            experiment=_text(said.get("experiment"), self.config.experiment),
            run_timestamp=_whole(said.get("run_timestamp"), begin_of(image)),
            step=_whole(said.get("step"), 0),
            readings=ImageReadings(self.config, start, image),
        )

    def _run_image(self, series: Series, image: lclstreamer.RunImage) -> Event:
        start = series.start
        if not isinstance(start, lclstreamer.RunStart):
            raise DecodeError(f"an image of run {series.name!r}, whose start did not come")
        said = own_words(image.fields.get(OWN))
        index = _whole(said.get("event_index"), series.first + series.images)
        self._counted(series, series.images)
        began = start.fields.get("start_time")
        experiment = _text(start.fields.get("experiment"), self.config.experiment)
        stamp = index if image.timestamp is None else image.timestamp
        return Event(
            timestamp=_whole(said.get("timestamp"), stamp),
            index=_in_64_bits(index),
            run=_whole(said.get("run"), self._run(_digits(image.run))),
            experiment=_text(said.get("experiment"), experiment),
            run_timestamp=_digits(began) if isinstance(began, str) else _whole(began, 0),
            step=_whole(said.get("step"), 0),
            readings=RunReadings(self.config, start, image),
        )

    def _counted(self, series: Series, number: int) -> None:
        series.images += 1
        series.after = max(series.after, number + 1)
        self.counts["images"] += 1
        self.counts["images_without_start"] += series.start is None

    def _run(self, said: int) -> int:
        return said if self.config.run is None else self.config.run


def begin_of(image: simplon.ImageMessage) -> int:
    """Return when an image's series began, in 64 bits; 0 when it does not say so."""
    return 0 if image.series_date is None else stamp_of(image.series_date.ns()) or 0


def time_of(image: simplon.ImageMessage, default: int) -> int:
    """Return when an exposure began, in 64 bits: exactly, as whole nanoseconds.

    Args:
        image: the message.
        default: for one that does not say it.
    """
    if image.series_date is None:
        return default
    since = image.start_time.ns() if image.start_time is not None else 0
    stamp = stamp_of(image.series_date.ns() + since)
    return default if stamp is None else stamp


def stamp_of(unix_ns: int) -> int | None:
    """Return a time as seconds since 1990-01-01 << 32 | nanoseconds; None outside of 64 bits."""
    seconds, nanoseconds = divmod(unix_ns, NS_PER_S)
    seconds -= EPOCH_S
    return seconds << 32 | nanoseconds if 0 <= seconds < 1 << 32 else None


def _whole(value: Any, default: int) -> int:
    return value if type(value) is int and 0 <= value < 1 << 64 else default


def _in_64_bits(index: int) -> int:
    if index >= 1 << 64:
        raise DecodeError(f"image_id: {index} has more than 64 bits")
    return index


def _text(value: Any, default: str) -> str:
    return value if isinstance(value, str) and value else default


def _digits(text: str) -> int:
    is_number = text.isascii() and text.isdigit() and len(text) < 20
    return _whole(int(text), 0) if is_number else 0
