"""Where events come from."""

from collections.abc import Iterator

import numpy as np

from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.config import Parameters
from lclstream.streamer.events import Event, Value, unknown_reading
from my_streamer_parts.config import NoiseEventSourceConfig


class Frame:
    """The readings of one event; made only when they are asked for."""

    def __init__(self, config: NoiseEventSourceConfig, index: int) -> None:
        self._config, self._index = config, index

    def read(self, name: str, field: str) -> Value | None:
        """Return one reading; None when it is missing from this event.

        Raises:
            InvalidConfigError: there is no such detector or field at all.
        """
        if (name, field) != ("camera", "raw"):
            raise unknown_reading(name, field, {"camera": ["raw"]})
        if self._index % 10 == 9:
            return None
        generator = np.random.default_rng(self._index)
        return generator.poisson(100, self._config.shape).astype(np.uint16)


class NoiseEventSource:
    """Counts events, and yields this rank's share of them."""

    def __init__(self, parameters: Parameters, rank: int, size: int) -> None:
        if not isinstance(parameters.event_source, NoiseEventSourceConfig):
            raise InvalidConfigError(f"not a NoiseEventSource: {parameters.event_source.type}")
        self._config = parameters.event_source
        self._mine = range(rank, self._config.events, size)

    def __iter__(self) -> Iterator[Event]:
        """Yield the events whose index % size is the rank."""
        for index in self._mine:
            # 64 bits: seconds since 1990-01-01 << 32 | nanoseconds.
            timestamp = (1_000_000_000 + index) << 32
            readings = Frame(self._config, index)
            yield Event(
                timestamp=timestamp, index=index, run=1, experiment="noise", readings=readings
            )

    def close(self) -> None:
        """Release files and connections; here are none."""
