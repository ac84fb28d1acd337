"""LCLS-I data through psana1, the facility's own library.

`source_identifier` is a data source string of psana1, such as `exp=xpptut15:run=430` or
`shmem=psana.0:stop=no`, or files separated by commas. How the events come to the ranks:

- An experiment is read with `:smd`, which is added unless another way is asked for: psana1 hands
  the events out to the ranks in turn.
- With `:idx` psana1 knows all events beforehand; each rank takes its own by their times.
- From shared memory every rank gets other events, whichever come first.
- In any other way every rank gets all events and takes its share.
"""

import logging
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.config import Parameters, Psana1EventSourceConfig
from lclstream.streamer.events import Event, Value
from lclstream.streamer.sources.psana_library import require
from lclstream.streamer.sources.psana_paths import NoSuchFieldError, Reader, as_value

logger = logging.getLogger(__name__)

SMALL_DATA, INDEX, SHARED_MEMORY = "smd", "idx", "shmem"
# What an experiment's string may say about the way of reading; the others are options of these.
_WAYS = frozenset({SMALL_DATA, INDEX, "xtc", "h5"})
EVENT_CODES = 256
"""Event codes are filled up with zeros to as many numbers, else their number would vary."""


class Psana1EventSource:
    """Reads the events that psana1 has for this rank.

    An event's index is its position in the whole source, except in shared memory, where nobody
    knows it; there the n-th event of a rank has index `n * size + rank`.

    Error handling: what goes wrong inside of psana1 is raised as it is.
    """

    def __init__(self, parameters: Parameters, rank: int, size: int) -> None:
        """Open the data source.

        Raises:
            InvalidConfigError: psana1 is not installed, or does not find the data.
        """
        config = parameters.event_source
        require(1, config.type)
        import psana

        self._psana: Any = psana
        self._rank, self._size = rank, size
        self._detectors: dict[str, Any] = {}
        self._readers: dict[tuple[str, str], Reader] = {}
        name = complete(parameters.source_identifier)
        self.experiment, self.run = of_identifier(name)
        self._way = way_of(name)
        if isinstance(config, Psana1EventSourceConfig) and config.calib_dir:
            psana.setOption("psana.calib-dir", config.calib_dir)
        make = psana.MPIDataSource if self._way == SMALL_DATA else psana.DataSource
        try:
            self._source: Any = make(name if "=" in name else name.split(","))
        except (RuntimeError, OSError, ValueError) as error:
            raise InvalidConfigError(
                f"source_identifier: psana1 cannot read {name!r}: {error}"
            ) from error
        logger.info("psana1_opened", extra={"source": name, "way": self._way})

    def __iter__(self) -> Iterator[Event]:
        """Yield the events of this rank, in psana1's order."""
        for index, event in self._numbered():
            yield Event(
                timestamp=self._timestamp(event),
                index=index,
                run=self._run_of(event),
                experiment=self.experiment,
                readings=Psana1Readings(self, event),
            )

    def _numbered(self) -> Iterator[tuple[int, Any]]:
        """Yield the index of each event of this rank, and the event."""
        if self._way == INDEX:
            yield from self._by_time()
            return
        is_handed_out = self._way in (SMALL_DATA, SHARED_MEMORY)
        for number, event in enumerate(self._source.events()):
            if is_handed_out:
                yield number * self._size + self._rank, event
            elif number % self._size == self._rank:
                yield number, event

    def _by_time(self) -> Iterator[tuple[int, Any]]:
        first = 0
        for run in self._source.runs():
            times = run.times()
            for number in range(len(times)):
                if (first + number) % self._size == self._rank:
                    event = run.event(times[number])
                    # psana1 has no event where the file lacks what its index names.
                    if event is not None:
                        yield first + number, event
            first += len(times)

    def close(self) -> None:
        """Do nothing: psana1 closes its files itself."""

    def reader(self, name: str, field: str) -> Reader:
        """Return what reads a field of a detector.

        Raises:
            InvalidConfigError: there is no such detector.
            NoSuchFieldError: the detector has no such field.
        """
        key = name, field
        if key not in self._readers:
            self._readers[key] = Reader(self._detector(name), field)
        return self._readers[key]

    def _detector(self, name: str) -> Any:
        if name not in self._detectors:
            try:
                self._detectors[name] = self._psana.Detector(name)
            except (KeyError, RuntimeError, ValueError) as error:
                raise InvalidConfigError(
                    f"the source has no detector or variable {name!r}: {error}"
                ) from error
        return self._detectors[name]

    def _timestamp(self, event: Any) -> int:
        seconds, nanoseconds = event.get(self._psana.EventId).time()
        # Joined as numbers, not as text: 5 ms are 5000000 ns behind the seconds, not ".5000000".
        return int(seconds) << 32 | int(nanoseconds)

    def _run_of(self, event: Any) -> int:
        run = getattr(event, "run", None)
        number = run() if callable(run) else None
        return number if isinstance(number, int) else self.run


class Psana1Readings:
    """The readings of one event, computed by psana1 when they are asked for."""

    __slots__ = ("_event", "_source")

    def __init__(self, source: Psana1EventSource, event: Any) -> None:
        self._source, self._event = source, event

    def read(self, name: str, field: str) -> Value | None:
        """Return one reading, None when psana1 returns nothing.

        Raises:
            InvalidConfigError: there is no such detector or field.
        """
        try:
            found = self._source.reader(name, field)(self._event)
        except NoSuchFieldError as error:
            raise InvalidConfigError(f"{name!r} has no field {field!r}: no {error}") from error
        value = as_value(found, f"{name}.{field}")
        is_codes = value is not None and field.rpartition(".")[2] == "eventCodes"
        return padded_codes(value, name) if is_codes else value


def complete(source_identifier: str) -> str:
    """Return a data source string with `:smd` where it says no other way to read an experiment."""
    parts = [part.strip() for part in source_identifier.strip().split(":")]
    is_experiment = any(part.startswith("exp=") for part in parts)
    return (
        f"{':'.join(parts)}:smd" if is_experiment and _WAYS.isdisjoint(parts) else ":".join(parts)
    )


def way_of(name: str) -> str:
    """Return how a complete data source string is read; empty when every rank gets all events."""
    parts = name.split(":")
    if any(part.startswith(f"{SHARED_MEMORY}=") for part in parts):
        return SHARED_MEMORY
    return next((way for way in (INDEX, SMALL_DATA) if way in parts), "")


def of_identifier(source_identifier: str) -> tuple[str, int]:
    """Return experiment and run as a data source string names them; empty and 0 if it does not."""
    found = dict(re.findall(r"(?:^|:)(exp|run)=([^:]+)", source_identifier))
    run = found.get("run", "")
    return found.get("exp", "").rpartition("/")[2], int(run) if run.isdecimal() else 0


def padded_codes(value: Value | None, name: str) -> Value:
    """Return event codes, filled up with zeros.

    Raises:
        InvalidConfigError: there are more than there can be.
    """
    codes = np.asarray(value)
    if codes.ndim != 1 or codes.size > EVENT_CODES:
        raise InvalidConfigError(
            f"{name!r} gives event codes of shape {codes.shape}, at most {EVENT_CODES} expected"
        )
    padded = np.zeros(EVENT_CODES, np.int64)
    padded[: codes.size] = codes
    return padded
