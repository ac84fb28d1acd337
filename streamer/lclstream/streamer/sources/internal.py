"""Numbered events without readings: tests, and the throughput of everything behind."""

from collections.abc import Iterator
from typing import ClassVar

from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.config import InternalEventSourceConfig, Parameters
from lclstream.streamer.events import Event, Value, unknown_reading


class NoReadings:
    """What an event without detectors has."""

    def read(self, name: str, field: str) -> Value | None:
        """Refuse: there is nothing to read.

        Raises:
            InvalidConfigError: always.
        """
        raise unknown_reading(name, field, {})


class InternalEventSource:
    """Counts events, this rank's share of them; an event's time stamp is its index."""

    arrays_stay: ClassVar[bool] = True

    def __init__(self, parameters: Parameters, rank: int, size: int) -> None:
        config = parameters.event_source
        if not isinstance(config, InternalEventSourceConfig):
            raise InvalidConfigError(f"not an InternalEventSource: {config.type}")
        self._mine = range(rank, config.number_of_events_to_generate, size)

    def __iter__(self) -> Iterator[Event]:
        """Yield this rank's share."""
        readings = NoReadings()
        for index in self._mine:
            yield Event(timestamp=index, index=index, run=0, experiment="", readings=readings)

    def close(self) -> None:
        """Do nothing: nothing is held."""
