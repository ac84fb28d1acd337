"""What a run announces, and the readings of one event."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from lclstream.core.errors import DecodeError
from lclstream.streamer.events import unknown_reading
from lclstream.streamer.sources.xtc2_dgram import Dgram, Place, ShapesData
from lclstream.streamer.sources.xtc2_format import LOST, VARIABLES, FieldType, Names, Value
from lclstream.streamer.sources.xtc2_stream import Reading, Slow, Stream

IMAGE_RANK = 3
LABEL = ".label"
"""Behind the name of an enumeration: its label, instead of its number."""

# Only the acquisition's own bookkeeping has these names.
_NO_DETECTORS = frozenset({"runinfo", "epics", "epicsinfo", "scan", "chunkinfo", "smdinfo"})
_ONE_SEGMENT = re.compile(r"(.+)\[(\d{1,9})\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Detector:
    """What the Configure dgrams announce of one detector."""

    name: str
    kind: str
    """Its type, such as `jungfrau` or `epix10ka`; psana's detType."""
    serials: Mapping[int, str]
    """Segment -> serial number of its hardware, in the order of the segments; psana's detId."""
    fields: tuple[str, ...]
    """`algorithm.field` of everything that can be read."""

    @property
    def segments(self) -> tuple[int, ...]:
        """The numbers of the segments, in order: the first axis of a reading of several."""
        return tuple(self.serials)

    @property
    def unique_id(self) -> str:
        """Type and serial numbers, by which calibration constants are filed; psana's uniqueid."""
        return "_".join([self.kind, *self.serials.values()])


_Found: TypeAlias = tuple[ShapesData, int]
"""A contribution, and the place of the field in it."""


class _Part(NamedTuple):
    """Where one segment's values of a field are."""

    segment: int
    key: tuple[int, int]
    """Its stream and `names_id`."""
    place: int
    names: Names

    @property
    def stream(self) -> int:
        return self.key[0]

    @property
    def names_id(self) -> int:
        return self.key[1]

    @property
    def type(self) -> FieldType:
        return self.names.fields[self.place].type


@dataclass(frozen=True, slots=True)
class Plan:
    """How one reading is put together."""

    name: str
    field: str
    parts: tuple[_Part, ...]
    """In the order of the segments; a segment may have several."""
    segments: tuple[int, ...]
    is_plain: bool
    """Whether there is one part, and its value is the reading."""
    is_label: bool
    is_slow: bool
    """Whether it is said outside of events only."""


class Layout:
    """What a run announced: which segments have which field of which detector."""

    def __init__(self, streams: Iterable[Stream], reading: Reading) -> None:
        """Take in what the streams' Configure dgrams announced together."""
        self._detectors: dict[str, list[tuple[int, Names]]] = {}
        self._variables: dict[str, tuple[str, str]] = {}
        self.plans: dict[tuple[str, str], Plan] = {}
        """What was asked for so far."""
        aliases: dict[str, str] = {}
        for stream in streams:
            for names in stream.names.values():
                self._detectors.setdefault(names.detector, []).append((stream.number, names))
            with reading.going_on("undecodable_transitions"):
                aliases |= _aliases(stream.slow)
        # What is in the file under its own name goes before other names, and epics before scans.
        for owner in VARIABLES:
            for _, names in self._detectors.get(owner, ()):
                for key in names.index:
                    self._variables[key] = owner, f"{names.algorithm}.{key}"
        for alias, key in aliases.items():
            if key in self._variables:
                self._variables.setdefault(alias, self._variables[key])

    def detector(self, name: str) -> Detector:
        """Return what was announced of a detector.

        Raises:
            InvalidConfigError: there is none of this name.
        """
        if name not in self._detectors or name in _NO_DETECTORS:
            raise unknown_reading(name, "", self._known())
        found = sorted((names for _, names in self._detectors[name]), key=lambda each: each.segment)
        fields = dict.fromkeys(f"{each.algorithm}.{key}" for each in found for key in each.index)
        return Detector(
            name=name,
            kind=found[0].detector_type,
            serials={each.segment: each.serial for each in found},
            fields=tuple(fields),
        )

    @property
    def detectors(self) -> tuple[str, ...]:
        """The names of the detectors."""
        return tuple(sorted(self._detectors.keys() - _NO_DETECTORS))

    def require(self, name: str, field: str) -> None:
        """Refuse what the run does not have.

        Raises:
            InvalidConfigError: says what is there instead.
        """
        self.plan(name, field)

    def plan(self, name: str, field: str) -> Plan:
        """Return how a reading is put together.

        Raises:
            InvalidConfigError: the run does not have it; says what is there instead.
        """
        plan = self.plans.get((name, field))
        if plan is None:
            plan = self.plans[name, field] = self._made_plan(name, field)
        return plan

    def _made_plan(self, name: str, field: str) -> Plan:
        owner, path = self._variables.get(name, ("", "")) if not field else (name, field)
        parts, is_label = self._parts(owner, path), False
        if not parts and path.endswith(LABEL):
            parts, is_label = self._parts(owner, path.removesuffix(LABEL)), True
            parts = [each for each in parts if each.type is FieldType.ENUMVAL]
        if not parts:
            raise unknown_reading(name, field, self._known())
        segments = dict.fromkeys(part.segment for part in parts)
        return Plan(
            name=name,
            field=field,
            parts=tuple(parts),
            segments=tuple(segments),
            is_plain=len(parts) == 1 and not is_label and owner not in _NO_DETECTORS,
            is_label=is_label,
            is_slow=owner in _NO_DETECTORS,
        )

    def _parts(self, detector: str, path: str) -> list[_Part]:
        """Return who has a field, in the order of the segments."""
        algorithm, _, field = path.partition(".")
        one = _ONE_SEGMENT.fullmatch(detector)
        wanted: int | None = None
        if detector not in self._detectors and one:
            detector, wanted = one[1], int(one[2])
        parts = [
            _Part(names.segment, (stream, names.names_id), names.index[field], names)
            for stream, names in self._detectors.get(detector, ())
            if names.algorithm == algorithm and field in names.index
        ]
        chosen = (part for part in parts if wanted in (None, part.segment))
        return sorted(chosen, key=lambda part: part.segment)

    def _known(self) -> dict[str, list[str]]:
        """Return the fields of every detector, and every process variable."""
        found: dict[str, list[str]] = {name: [""] for name in sorted(self._variables)}
        return found | {name: sorted(self.detector(name).fields) for name in self.detectors}


def _aliases(slow: Slow) -> dict[str, str]:
    """Return other name -> key of process variables, from the `epicsinfo` of a Configure."""
    found: dict[str, str] = {}
    for _, contribution in slow.values():
        if contribution.names.detector == "epicsinfo":
            for key, name in contribution.values().items():
                if key != "keys" and isinstance(name, str):
                    # Some writers put a description behind it.
                    found |= {name: key, name.partition(",")[0]: key}
    return found


class Situation:
    """What holds for all events from one transition to the next; never changes."""

    __slots__ = ("_values", "experiment", "layout", "run", "run_timestamp", "slow", "step")

    def __init__(
        self,
        layout: Layout,
        slow: Sequence[Slow],
        *,
        experiment: str = "",
        run: int = 0,
        run_timestamp: int = 0,
        step: int = 0,
    ) -> None:
        self.layout, self.slow = layout, slow
        self.experiment, self.run, self.run_timestamp = experiment, run, run_timestamp
        self.step = step
        self._values: dict[tuple[str, str], Value | None] = {}

    def value(self, plan: Plan, reading: Reading) -> Value | None:
        """Return what was said last outside of events, None when nothing was."""
        key = plan.name, plan.field
        if key not in self._values:
            self._values[key] = _value(plan, self._newest(plan), reading)
        return self._values[key]

    def _newest(self, plan: Plan) -> list[_Found | None]:
        """Return the newest contribution of each segment, or of all that tell of a variable."""
        newest: dict[int, tuple[int, _Found]] = {}
        for part in plan.parts:
            order, contribution = self.slow[part.stream].get(part.names_id, (-1, None))
            segment = 0 if plan.is_slow else part.segment
            if contribution is not None and order > newest.get(segment, (-1,))[0]:
                newest[segment] = order, (contribution, part.place)
        segments = (0,) if plan.is_slow else plan.segments
        return [newest[each][1] if each in newest else None for each in segments]


class Xtc2Readings:
    """The readings of one event, decoded when they are asked for.

    Arrays are views of the mapped files where a detector has one segment; they stay valid.
    """

    __slots__ = ("_dgrams", "_found", "_places", "_plans", "_reading", "_situation")

    def __init__(self, situation: Situation, dgrams: Mapping[int, Dgram], reading: Reading) -> None:
        """Take what an event consists of: its dgrams by the number of their stream."""
        self._situation, self._dgrams, self._reading = situation, dgrams, reading
        self._plans = situation.layout.plans
        self._places: dict[int, dict[int, Place]] = {}
        """Of the streams that were looked into."""
        self._found: dict[tuple[int, int], ShapesData] = {}

    def read(self, name: str, field: str) -> Value | None:
        """Return one reading, None when it is missing from this event.

        Several segments are stacked as psana does it: along a new first axis, which is joined
        with their own first axes where they have three or more dimensions.

        Args:
            name: a detector; or a process variable, its key, or a variable of the scan.
            field: `algorithm.field`, such as `raw.raw`, with `.label` behind it for the label of
                an enumeration; empty for a variable.

        Raises:
            InvalidConfigError: the run has no such detector or field at all.
            DecodeError: the event is damaged.
        """
        plan = self._plans.get((name, field)) or self._situation.layout.plan(name, field)
        try:
            if plan.is_plain:
                # The usual case, and the same as the others for it.
                part = plan.parts[0]
                contribution = self._found.get(part.key) or self._contribution(part)
                if contribution is not None and not contribution.damage:
                    return contribution.at(part.place)
            return self._read(plan)
        except DecodeError as error:
            if not self._reading.skip_errors:
                raise
            self._reading.passed_over("undecodable_readings", error)
            return None

    def detector(self, name: str) -> Detector:
        """Return type, segments, serial numbers and fields of a detector.

        Raises:
            InvalidConfigError: the run has no such detector.
        """
        return self._situation.layout.detector(name)

    def _read(self, plan: Plan) -> Value | None:
        situation = self._situation
        if plan.is_slow:
            return situation.value(plan, self._reading)
        found = {
            part.segment: (contribution, part.place)
            for part in plan.parts
            if (contribution := self._contribution(part)) is not None
        }
        if not found:
            # A detector's configuration is said once, outside of events.
            return situation.value(plan, self._reading)
        if len(found) < len(plan.segments):
            return None
        return _value(plan, list(found.values()), self._reading)

    def _contribution(self, part: _Part) -> ShapesData | None:
        """Return a segment's contribution to the event."""
        found = self._found.get(part.key)
        if found is None:
            stream = part.stream
            if stream not in self._places:
                dgram = self._dgrams.get(stream)
                self._places[stream] = {} if dgram is None else dgram.places()
            place = self._places[stream].get(part.names_id)
            if place is None:
                return None
            found = ShapesData(self._dgrams[stream].window, part.names, *place)
            self._found[part.key] = found
        return found


def _value(plan: Plan, found: Sequence[_Found | None], reading: Reading) -> Value | None:
    """Return the value of contributions, None when one is missing or damaged."""
    values: list[Any] = []
    for each in found:
        if each is None:
            return None
        contribution, place = each
        if contribution.damage & LOST and not reading.keep_damaged:
            reading.counts["damaged_readings"] += 1
            return None
        values.append(contribution.label(place) if plan.is_label else contribution.at(place))
        if values[-1] is None:
            return None
    return values[0] if len(values) == 1 else _stacked(values, plan)


def _stacked(values: list[Value], plan: Plan) -> Value:
    """Join segments along a new first axis, or along that of panels where they have one."""
    shapes = {np.shape(value) for value in values}
    if len(shapes) > 1:
        raise DecodeError(
            f"segments of {plan.name!r} differ in the shape of {plan.field!r}: {sorted(shapes)}; "
            f"{plan.name}[{plan.segments[0]}] would be one of them alone"
        )
    stacked = np.stack(values)
    has_panels = np.ndim(values[0]) >= IMAGE_RANK
    return stacked.reshape(-1, *stacked.shape[-2:]) if has_panels else stacked
