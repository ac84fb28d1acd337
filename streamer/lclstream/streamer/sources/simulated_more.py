"""Events of a simulated experiment with more detectors than one."""

from functools import lru_cache

from lclstream.streamer.config import SimulatedDetectorEventSourceConfig
from lclstream.streamer.events import Value, unknown_reading
from lclstream.streamer.sources.simulated_detector import (
    TRUTH,
    SimulatedDetector,
    SimulatedReadings,
    detector_of,
)
from lclstream.streamer.sources.waveforms import Digitizer, DigitizerReadings, digitizer


class Experiment:
    """All that is the same in every event."""

    def __init__(self, config: SimulatedDetectorEventSourceConfig) -> None:
        self.first = detector_of(config)
        self.cameras: dict[str, SimulatedDetector] = {}
        for number, camera in enumerate(config.cameras, start=1):
            changes = {key: value for key, value in camera if key != "name"}
            changed = config.model_copy(update={"detector": camera.name, **changes})
            self.cameras[camera.name] = SimulatedDetector(changed, number)
        self.digitizers: dict[str, Digitizer] = {
            each.name: digitizer(each, config.seed, number)
            for number, each in enumerate(config.digitizers)
        }
        self.known = dict(self.first.known)
        for name, detector in self.cameras.items():
            self.known[name] = detector.known[name]
        truth = list(self.known[TRUTH])
        for name, each in self.digitizers.items():
            self.known[name] = each.fields
            truth += each.truth_fields
        self.known[TRUTH] = truth


class ExperimentReadings:
    """The readings of one event of all detectors, made when they are asked for."""

    def __init__(self, experiment: Experiment, index: int) -> None:
        self._experiment, self._index = experiment, index
        self._first = SimulatedReadings(experiment.first, index)
        self._cameras: dict[str, SimulatedReadings] = {}
        self._digitizers: dict[str, DigitizerReadings] = {}

    def read(self, name: str, field: str) -> Value | None:
        """Return one reading, None when it is missing.

        Raises:
            InvalidConfigError: there is no such detector or field.
        """
        known = self._experiment.known
        if name not in known or field not in known[name]:
            raise unknown_reading(name, field, known)
        if name in self._experiment.digitizers:
            return self._digitizer(name).read(field)
        owner = field.partition(".")[0]
        if name == TRUTH and owner in self._experiment.digitizers:
            return self._digitizer(owner).truth(field)
        if name in self._experiment.cameras:
            return self._camera(name).read(name, field)
        return self._first.read(name, field)

    def _camera(self, name: str) -> SimulatedReadings:
        if name not in self._cameras:
            self._cameras[name] = SimulatedReadings(self._experiment.cameras[name], self._index)
        return self._cameras[name]

    def _digitizer(self, name: str) -> DigitizerReadings:
        if name not in self._digitizers:
            digitizer_of = self._experiment.digitizers[name]
            self._digitizers[name] = DigitizerReadings(digitizer_of, self._index)
        return self._digitizers[name]


@lru_cache(maxsize=2)
def experiment_of(config: SimulatedDetectorEventSourceConfig) -> Experiment:
    """Return the experiment of a configuration; the same one for the same."""
    return Experiment(config)
