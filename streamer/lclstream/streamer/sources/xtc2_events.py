"""Put the streams of a run together into events.

Streams are joined by equal 64-bit timestamps. Detectors run at different rates, so an event is
the *union* of what the streams have for its timestamp: a stream that has nothing for it takes no
part, and a detector that is absent reads as missing. Whoever wants complete events only says so
with `skip_incomplete_events`, detector by detector.

Where a detector consists of several segments, its reading is there only when every segment that
the run announced is there, and none was damaged in a way that loses data.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lclstream.core.errors import DecodeError
from lclstream.streamer.events import unknown_reading
from lclstream.streamer.sources.xtc2_dgram import Dgram, ShapesData
from lclstream.streamer.sources.xtc2_file import Xtc2File
from lclstream.streamer.sources.xtc2_files import Recording
from lclstream.streamer.sources.xtc2_format import Damage, Names, NamesTable, Service, Value

logger = logging.getLogger(__name__)

LOST = Damage.TRUNCATED | Damage.CORRUPTED | Damage.DROPPED_CONTRIBUTION | Damage.MISSING_DATA
"""Damage that means that the values are not what the detector measured."""
IMAGE_RANK = 3

_RUN_FIELDS = {"expt", "runnum"}
# Only the acquisition's own bookkeeping has these names.
_NO_DETECTORS = frozenset({"runinfo", "epics", "epicsinfo", "scan", "chunkinfo", "smdinfo"})


class Stream:
    """One stream's dgrams across its chunks, and the last values from outside of events.

    `head` is the next dgram, None at the end.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.names: NamesTable = {}
        self.slow: dict[int, ShapesData] = {}
        """Last contribution of each Names from a transition, the newest at the end."""
        self._dgrams = self._read(paths)
        self.head = next(self._dgrams, None)

    def advance(self) -> None:
        """Go on to the next dgram."""
        self.head = next(self._dgrams, None)

    def apply(self, transition: Dgram) -> None:
        """Remember what a transition says about the events that follow it."""
        if transition.service is Service.CONFIGURE:
            self.names, self.slow = transition.names, {}
        slow = dict(self.slow)
        for contribution in transition.contributions():
            # Taken out first, so that the newest is the last.
            slow.pop(contribution.names.names_id, None)
            slow[contribution.names.names_id] = contribution
        # Events that were made before keep the values of their time.
        self.slow = slow

    def _read(self, paths: Sequence[Path]) -> Iterator[Dgram]:
        names: NamesTable = {}
        for path in paths:
            file = Xtc2File(path, names)
            yield from file
            names = file.names
            if file.truncated_at is not None:
                left = file.size_bytes - file.truncated_at
                extra = {"path": str(path), "offset": file.truncated_at, "bytes_left": left}
                logger.warning("xtc2_truncated", extra=extra)


@dataclass(frozen=True, slots=True)
class Layout:
    """What a run announced: which segments have which field of which detector."""

    segments: Mapping[tuple[str, str], frozenset[int]]
    """(detector, `algorithm.field`) -> segments."""
    variables: Mapping[str, str]
    """Process variable or its key -> key in the `epics` contributions."""

    def require(self, name: str, field: str) -> None:
        """Refuse what the run does not have.

        Raises:
            InvalidConfigError: says what is there instead.
        """
        is_known = (name, field) in self.segments if field else name in self.variables
        if not is_known:
            raise unknown_reading(name, field, self._known())

    def _known(self) -> dict[str, list[str]]:
        """Return the fields of every detector, and every process variable."""
        found: dict[str, list[str]] = {name: [""] for name in sorted(self.variables)}
        for detector, field in sorted(self.segments):
            if detector not in _NO_DETECTORS:
                found.setdefault(detector, []).append(field)
        return found


def layout_of(streams: Iterable[Stream]) -> Layout:
    """Return what the streams' Configure dgrams announce together."""
    segments: dict[tuple[str, str], set[int]] = {}
    variables: dict[str, str] = {}
    for stream in streams:
        for names in stream.names.values():
            for field in names.index:
                key = names.detector, f"{names.algorithm}.{field}"
                segments.setdefault(key, set()).add(names.segment)
                if names.detector == "epics":
                    variables[field] = field
        variables |= _variable_names(stream)
    frozen = {key: frozenset(found) for key, found in segments.items()}
    return Layout(frozen, variables)


def _variable_names(stream: Stream) -> dict[str, str]:
    """Return process variable -> key from the `epicsinfo` of a Configure."""
    found: dict[str, str] = {}
    for contribution in stream.slow.values():
        if contribution.names.detector == "epicsinfo":
            values = contribution.values()
            texts = {key: name for key, name in values.items() if isinstance(name, str)}
            found |= {name: key for key, name in texts.items() if key != "keys"}
    return found


class EventBuilder:
    """Merges the streams of a recording in the order of time.

    Iterating yields, for each event, the streams that take part in it: their `head` is their
    part until the next event is asked for. Payloads are not touched.
    """

    def __init__(self, recording: Recording) -> None:
        self.streams = [Stream(paths) for paths in recording.streams]
        self.experiment, self.run = recording.experiment, recording.run
        self.run_timestamp = 0
        self.layout = Layout({}, {})

    def __iter__(self) -> Iterator[list[Stream]]:
        while due := self._due():
            transitions = [each for each in due if _head(each).service is not Service.L1ACCEPT]
            if transitions:
                self._apply(transitions)
                due = transitions
            else:
                yield due
            for stream in due:
                stream.advance()

    def _due(self) -> list[Stream]:
        """Return the streams whose next dgram is the earliest of all."""
        heads = [(each.head.timestamp, each) for each in self.streams if each.head is not None]
        earliest = min((timestamp for timestamp, _ in heads), default=0)
        return [each for timestamp, each in heads if timestamp == earliest]

    def _apply(self, streams: list[Stream]) -> None:
        for stream in streams:
            stream.apply(_head(stream))
        services = {_head(stream).service for stream in streams}
        if Service.CONFIGURE in services:
            self.layout = layout_of(self.streams)
        if Service.BEGIN_RUN in services:
            self._begin_run(streams)

    def _begin_run(self, streams: list[Stream]) -> None:
        """Take over what BeginRun says; a file without it keeps what its name says."""
        self.run_timestamp = _head(streams[0]).timestamp
        for stream in streams:
            for each in stream.slow.values():
                if each.names.detector == "runinfo":
                    self.experiment, self.run = _run_info(each) or (self.experiment, self.run)


def _run_info(contribution: ShapesData) -> tuple[str, int] | None:
    """Return experiment and run; a damaged announcement of them says nothing."""
    if not contribution.names.index.keys() >= _RUN_FIELDS:
        return None
    experiment, run = contribution.value("expt"), contribution.value("runnum")
    is_sound = isinstance(experiment, str) and isinstance(run, np.integer)
    return (experiment, int(run)) if is_sound else None


def _head(stream: Stream) -> Dgram:
    if stream.head is None:
        raise ValueError("the stream has ended")
    return stream.head


class Xtc2Readings:
    """The readings of one event, decoded when they are asked for.

    Arrays are views of the mapped files where a detector has one segment; they stay valid.
    """

    __slots__ = ("_dgrams", "_found", "_layout", "_slow")

    def __init__(
        self,
        layout: Layout,
        dgrams: Sequence[Dgram],
        slow: Sequence[Mapping[int, ShapesData]],
    ) -> None:
        self._layout, self._dgrams, self._slow = layout, dgrams, slow
        self._found: list[ShapesData] | None = None

    def read(self, name: str, field: str) -> Value | None:
        """Return one reading, None when it is missing from this event.

        Args:
            name: a detector, or a process variable or its key.
            field: `algorithm.field`, such as `raw.raw`; empty for a process variable.

        Raises:
            InvalidConfigError: the run has no such detector or field at all.
            DecodeError: the event is damaged.
        """
        self._layout.require(name, field)
        if not field:
            key = self._layout.variables[name]
            values = self._outside("epics", None, key).values()
            return next((each.value(key) for each in values), None)
        segments = self._layout.segments[name, field]
        algorithm, _, path = field.partition(".")
        # A detector's configuration is said once, outside of events.
        found = self._inside(name, algorithm, path) or self._outside(name, algorithm, path)
        if found.keys() != segments or any(each.damage & LOST for each in found.values()):
            return None
        return _stacked([found[segment].value(path) for segment in sorted(found)], name, field)

    def _inside(self, detector: str, algorithm: str, path: str) -> dict[int, ShapesData]:
        """Return the event's contributions with a field, by segment."""
        if self._found is None:
            self._found = [each for dgram in self._dgrams for each in dgram.contributions()]
        return {
            each.names.segment: each
            for each in self._found
            if _has(each.names, detector, algorithm, path)
        }

    def _outside(self, detector: str, algorithm: str | None, path: str) -> dict[int, ShapesData]:
        """Return the newest contributions from before the event with a field, by segment."""
        return {
            each.names.segment: each
            for slow in self._slow
            for each in slow.values()
            if _has(each.names, detector, algorithm, path)
        }


def _has(names: Names, detector: str, algorithm: str | None, path: str) -> bool:
    return (
        names.detector == detector and algorithm in (None, names.algorithm) and path in names.index
    )


def _stacked(values: list[Value], name: str, field: str) -> Value:
    """Join segments along a new first axis, or along that of panels where they have one."""
    if len(values) == 1:
        return values[0]
    shapes = {np.shape(value) for value in values}
    if len(shapes) > 1:
        raise DecodeError(f"segments of {name!r} differ in the shape of {field!r}: {shapes}")
    has_panels = np.ndim(values[0]) >= IMAGE_RANK
    return np.concatenate(values) if has_panels else np.stack(values)
