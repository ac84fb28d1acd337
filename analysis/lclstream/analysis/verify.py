"""Checks received events bit for bit against what their source must have given.

Events of the simulated detector can be made again from the streamer's configuration alone. For
other sources the events can be recorded and compared with the files they came from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lclstream.client.decode import Array, Batch, Event
from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.batching import fill
from lclstream.streamer.config import (
    HDF5BinarySerializerConfig,
    Parameters,
    SimulatedDetectorEventSourceConfig,
)
from lclstream.streamer.data_sources import Extractor
from lclstream.streamer.sources.simulated import SimulatedDetectorEventSource
from lclstream.streamer.steps import Steps
from lclstream.streamer.values import Ragged

# The first differences tell what is wrong; a million more do not tell more.
MOST_EXAMPLES = 20


@dataclass(slots=True)
class Findings:
    """What a verification found."""

    events: int = 0
    verified: int = 0
    """Events that were compared and are equal bit for bit."""
    different: int = 0
    duplicates: int = 0
    unidentified: int = 0
    """Events without an index, which cannot be compared."""
    examples: list[str] = field(default_factory=list)
    seen: set[int] = field(default_factory=set)

    @property
    def ok(self) -> bool:
        """Whether every event was as it should be, and came once."""
        return not (self.different or self.duplicates or self.unidentified)

    def summary(self) -> dict[str, Any]:
        """Return the findings as JSON data."""
        return {
            "events": self.events,
            "verified": self.verified,
            "different": self.different,
            "duplicates": self.duplicates,
            "unidentified": self.unidentified,
            "examples": self.examples,
            "indices": ranges(self.seen),
        }


class Expectation:
    """What each event of a simulated run must be."""

    def __init__(self, parameters: Parameters) -> None:
        """Prepare to make events again.

        Raises:
            InvalidConfigError: the source or serializer of the configuration does not allow it.
        """
        source, serializer = parameters.event_source, parameters.data_serializer
        if not isinstance(source, SimulatedDetectorEventSourceConfig):
            raise InvalidConfigError(f"cannot make events of a {source.type} again, record them")
        if not isinstance(serializer, HDF5BinarySerializerConfig):
            raise InvalidConfigError(f"cannot compare messages of a {serializer.type}")
        self._parameters = parameters
        self._events = source.events
        fields = serializer.fields if serializer.layout == "fields" else None
        self.paths = {
            name: (name if fields is None else fields[name]).strip("/")
            for name in parameters.data_sources
            if fields is None or name in fields
        }
        """Data source -> path of its dataset."""
        self._extractor = Extractor(parameters, list(self.paths))
        self._steps = Steps(parameters)

    def differences(self, event: Event) -> list[str]:
        """Return what of an event with an index is not as it must be."""
        index = event.index
        if index is None or not 0 <= index < self._events:
            return [f"the source has no event {index}"]
        # A rank that has just this one event makes it.
        expected = next(iter(SimulatedDetectorEventSource(self._parameters, index, self._events)))
        found = []
        if event.timestamp != expected.timestamp:
            found.append(f"timestamp {event.timestamp}, expected {expected.timestamp}")
        if (event.batch.experiment, event.batch.run) != (expected.experiment, expected.run):
            found.append(f"experiment {event.batch.experiment!r} run {event.batch.run}")
        values = self._extractor.extract(expected)
        if values is None:
            return [*found, "the event is incomplete and should have been skipped"]
        processed = self._steps.apply(expected, values)
        if processed is None:
            return [*found, "a step of the processing should have dropped the event"]
        for name, value in processed.items():
            if isinstance(value, Ragged):
                raise InvalidConfigError(f"cannot compare {name!r}: its number of readings varies")
            found += self._compare(event, name, value)
        return [f"event {index}: {text}" for text in found]

    def _compare(self, event: Event, name: str, value: Array | None) -> list[str]:
        path = self.paths[name]
        if path not in event.batch.arrays:
            # A source joins the messages with its first reading.
            return [] if value is None else [f"{path} is not in the message"]
        got = event[path]
        if value is None:
            filled = np.empty((1, *got.shape), got.dtype)
            fill(filled, 0)
            wrong = event.is_valid(name) or filled[0].tobytes() != got.tobytes()
            return [f"{path} should be marked as missing"] if wrong else []
        if not event.is_valid(name):
            return [f"{path} is marked as missing"]
        if value.dtype.kind == "S":
            # Texts of one batch share the length of the longest.
            return [] if bool((value == got).all()) else [f"{path} differs"]
        if (value.dtype, value.shape) != (got.dtype, got.shape):
            return [f"{path} is {got.dtype} {got.shape}, not {value.dtype} {value.shape}"]
        return [] if value.tobytes() == got.tobytes() else [f"{path} differs"]


class Verifier:
    """Counts and compares the events of a stream."""

    def __init__(self, expectation: Expectation | None = None) -> None:
        self._expectation = expectation
        self.findings = Findings()

    def add(self, batch: Batch) -> None:
        """Verify the events of one batch."""
        for event in batch:
            self._add(event)

    def _add(self, event: Event) -> None:
        findings = self.findings
        findings.events += 1
        index = event.index
        if index is None:
            findings.unidentified += 1
            return
        findings.duplicates += index in findings.seen
        findings.seen.add(index)
        if self._expectation is None:
            return
        differences = self._expectation.differences(event)
        if differences:
            findings.different += 1
            room = MOST_EXAMPLES - len(findings.examples)
            findings.examples += differences[:room]
        else:
            findings.verified += 1


def ranges(numbers: set[int]) -> list[list[int]]:
    """Return numbers as [first, last] ranges in order."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and found[-1][1] == number - 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return found


def missing(findings: Sequence[Mapping[str, Any]], events: int) -> list[list[int]]:
    """Return the indices below `events` that no consumer has got, from their summaries."""
    seen = {
        index
        for one in findings
        for first, last in one["indices"]
        for index in range(first, last + 1)
    }
    return ranges(set(range(events)) - seen)
