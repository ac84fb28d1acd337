"""What a run announces: detectors, their segments and fields, and variables with their names."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from lclstream.streamer.events import unknown_reading
from lclstream.streamer.sources.xtc2_format import VARIABLES, FieldType, Names
from lclstream.streamer.sources.xtc2_stream import Reading, Slow, Stream

LABEL = ".label"
"""Behind the name of an enumeration: its label, instead of its number."""

# Only the acquisition's own bookkeeping has these names.
NO_DETECTORS = frozenset({"runinfo", "epics", "epicsinfo", "scan", "chunkinfo", "smdinfo"})
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


class Part(NamedTuple):
    """Where one segment's values of a field are."""

    segment: int
    key: tuple[int, int]
    """Its stream and `names_id`."""
    place: int
    names: Names

    @property
    def stream(self) -> int:
        """Number of its stream."""
        return self.key[0]

    @property
    def names_id(self) -> int:
        """What it is announced by."""
        return self.key[1]

    @property
    def is_enumeration(self) -> bool:
        """Whether the value is a number that may have a label."""
        field = self.names.fields[self.place]
        return field.type is FieldType.ENUMVAL and field.rank == 0


@dataclass(frozen=True, slots=True)
class Plan:
    """How one reading is put together."""

    name: str
    field: str
    parts: tuple[Part, ...]
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
        if name not in self._detectors or name in NO_DETECTORS:
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
        return tuple(sorted(self._detectors.keys() - NO_DETECTORS))

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
            parts = [each for each in parts if each.is_enumeration]
        if not parts:
            raise unknown_reading(name, field, self._known())
        segments = dict.fromkeys(part.segment for part in parts)
        return Plan(
            name=name,
            field=field,
            parts=tuple(parts),
            segments=tuple(segments),
            is_plain=len(parts) == 1 and not is_label and owner not in NO_DETECTORS,
            is_label=is_label,
            is_slow=owner in NO_DETECTORS,
        )

    def _parts(self, detector: str, path: str) -> list[Part]:
        """Return who has a field, in the order of the segments."""
        algorithm, _, field = path.partition(".")
        one = _ONE_SEGMENT.fullmatch(detector)
        wanted: int | None = None
        if detector not in self._detectors and one:
            detector, wanted = one[1], int(one[2])
        parts = [
            Part(names.segment, (stream, names.names_id), names.index[field], names)
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
