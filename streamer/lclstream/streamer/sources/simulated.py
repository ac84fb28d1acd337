"""A simulated experiment whose events anybody can make again, bit for bit."""

from collections.abc import Iterator
from typing import ClassVar

from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.config import Parameters, SimulatedDetectorEventSourceConfig
from lclstream.streamer.config.source_identifier import identifier_tokens
from lclstream.streamer.events import Event, Readings
from lclstream.streamer.sources.simulated_detector import (
    ENERGY_PV,
    WAVELENGTH_PV,
    SimulatedReadings,
    detector_of,
)
from lclstream.streamer.sources.simulated_more import ExperimentReadings, experiment_of

__all__ = [
    "ENERGY_PV",
    "FIRST_SECOND",
    "NS_PER_S",
    "PULSE_NS",
    "WAVELENGTH_PV",
    "SimulatedDetectorEventSource",
    "SimulatedReadings",
    "expected_event",
]

# 2026-01-01 in the seconds of the DAQ, which count from 1990-01-01.
FIRST_SECOND = 1_136_073_600
# The beam's pulses, 1/120 s apart.
PULSE_NS = 8_333_333
NS_PER_S = 1_000_000_000


def expected_event(
    config: SimulatedDetectorEventSourceConfig,
    index: int,
    experiment: str = "simulated",
    run: int = 1,
) -> Event:
    """Return event `index` as the source gives it, on any machine.

    Args:
        config: the `event_source` section of the configuration.
        index: from 0.
        experiment: as `source_identifier` names it.
        run: as `source_identifier` names it.
    """
    seconds, nanoseconds = divmod(index * PULSE_NS, NS_PER_S)
    readings: Readings = SimulatedReadings(detector_of(config), index)
    if config.cameras or config.digitizers:
        readings = ExperimentReadings(experiment_of(config), index)
    return Event(
        timestamp=(FIRST_SECOND + seconds) << 32 | nanoseconds,
        index=index,
        run=run,
        experiment=experiment,
        readings=readings,
        run_timestamp=FIRST_SECOND << 32,
        step=index // config.events_per_step if config.events_per_step else 0,
    )


class SimulatedDetectorEventSource:
    """Gives this rank's share of the simulated events."""

    arrays_stay: ClassVar[bool] = True

    def __init__(self, parameters: Parameters, rank: int, size: int) -> None:
        config = parameters.event_source
        if not isinstance(config, SimulatedDetectorEventSourceConfig):
            raise InvalidConfigError(f"not a SimulatedDetectorEventSource: {config.type}")
        named = dict(identifier_tokens(parameters.source_identifier))
        self._experiment = named.get("exp") or "simulated"
        number = named.get("run", "1")
        if not number.isdigit():
            raise InvalidConfigError(f"source_identifier: run must be a number, got {number!r}")
        self._run = int(number)
        self._config = config
        self._mine = range(rank, config.events, size)

    def __iter__(self) -> Iterator[Event]:
        """Yield this rank's share."""
        for index in self._mine:
            yield expected_event(self._config, index, self._experiment, self._run)

    def close(self) -> None:
        """Do nothing: nothing is held."""
