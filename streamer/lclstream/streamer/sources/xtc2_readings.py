"""The readings of one event, and what holds for all events between two transitions."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from lclstream.core.errors import DecodeError
from lclstream.streamer.sources.xtc2_dgram import Dgram, Place, ShapesData
from lclstream.streamer.sources.xtc2_format import LOST, Value
from lclstream.streamer.sources.xtc2_layout import Detector, Layout, Part, Plan
from lclstream.streamer.sources.xtc2_stream import Reading, Slow

IMAGE_RANK = 3

_Found: TypeAlias = tuple[ShapesData, int]
"""A contribution, and the place of the field in it."""


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
            if self._is_known_damage(plan):
                self._reading.counts["damaged_readings"] += 1
                return None
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

    def _is_known_damage(self, plan: Plan) -> bool:
        """Return whether the data acquisition itself said that something is broken there."""
        found = 0
        for part in plan.parts:
            if part.stream in self._dgrams:
                found |= self._dgrams[part.stream].damage
                found |= self._places.get(part.stream, {}).get(part.names_id, (0, 0, 0))[2]
        return bool(found & LOST)

    def _contribution(self, part: Part) -> ShapesData | None:
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
    arrays = [np.asarray(value) for value in values]
    # Texts may have different lengths.
    forms = {(each.shape, "" if each.dtype.kind == "U" else each.dtype.str) for each in arrays}
    if len(forms) > 1:
        found = ", ".join(sorted(f"{kind or 'text'} {shape}" for shape, kind in forms))
        raise DecodeError(
            f"segments of {plan.name!r} differ in {plan.field!r}: {found}; "
            f"{plan.name}[{plan.segments[0]}] would be one of them alone"
        )
    stacked = np.stack(arrays)
    has_panels = arrays[0].ndim >= IMAGE_RANK
    return stacked.reshape(-1, *stacked.shape[-2:]) if has_panels else stacked
