"""Runs that hypothesis makes: any detectors, fields, rates, steps and damage."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from tests.helpers.xtc2_runs import EXPERIMENT, RUN, START, field, stream_path

from lclstream.streamer.sources.xtc2_format import (
    Damage,
    Field,
    FieldType,
    Key,
    Names,
    Service,
    later,
)
from lclstream.streamer.sources.xtc2_index_writer import write_index
from lclstream.streamer.sources.xtc2_writer import EPICS_KEY, Xtc2Writer

NUMBERS = tuple(each for each in FieldType if each < FieldType.CHARSTR)
TEXTS = st.text("ab .,\u00fc\u2192", max_size=12)
DAMAGE = st.sampled_from([0, 0, 0, *(each.value for each in Damage)])
VARIABLES = (*NUMBERS, FieldType.CHARSTR)


@dataclass(frozen=True, kw_only=True)
class Moment:
    """What happens at one time: in which streams which values."""

    service: Service
    timestamp: int
    values: tuple[Mapping[Key, Mapping[str, Any]] | None, ...]
    """By stream; None = the stream takes no part."""
    damage: Mapping[Key, int]


@dataclass(frozen=True, kw_only=True)
class GeneratedRun:
    detectors: tuple[tuple[Names, ...], ...]
    """By stream."""
    epics: Mapping[str, tuple[str, FieldType]]
    scan: Mapping[str, FieldType]
    moments: tuple[Moment, ...]

    @property
    def events(self) -> list[Moment]:
        return [each for each in self.moments if each.service is Service.L1ACCEPT]


def write_generated(folder: Path, run: GeneratedRun) -> list[Path]:
    """Write the streams, and an index for each; return the streams' paths."""
    paths = []
    for stream, detectors in enumerate(run.detectors):
        path = stream_path(folder, stream)
        is_first = stream == 0
        with Xtc2Writer(
            path,
            experiment=EXPERIMENT,
            run=RUN,
            start=START,
            detectors=detectors,
            epics=run.epics if is_first else {},
            scan=run.scan if is_first else {},
        ) as file:
            file.begin_run(later(START, 10))
            for each in run.moments:
                values = each.values[stream]
                if values is not None:
                    file.transition(each.service, each.timestamp, values, each.damage)
            file.end_run(later(run.moments[-1].timestamp, 10) if run.moments else later(START, 99))
        write_index([path])
        paths.append(path)
    return paths


def value_of_kind(draw: st.DrawFn, each: Field) -> Any:
    if each.type is FieldType.CHARSTR:
        return draw(TEXTS)
    longest = 3 if each.rank < 3 else 2
    shape = tuple(draw(st.integers(1, longest)) for _ in range(each.rank))
    size = math.prod(shape) * each.dtype.itemsize
    raw = draw(st.binary(min_size=size, max_size=size))
    value = np.frombuffer(raw, each.dtype).reshape(shape)
    return value if each.rank else value[()]


@st.composite
def detector_fields(draw: st.DrawFn) -> tuple[Field, ...]:
    found = []
    for place in range(draw(st.integers(1, 4))):
        name = f"f{place}"
        kind = draw(st.sampled_from([*NUMBERS, FieldType.CHARSTR, FieldType.ENUMVAL]))
        if kind is FieldType.ENUMVAL:
            found += [field(f"on{place}:E{place}", FieldType.ENUMDICT)]
            found += [field(f"{name}:E{place}", kind)]
        else:
            rank = 1 if kind is FieldType.CHARSTR else draw(st.integers(0, 5))
            found += [field(name, kind, rank)]
    return tuple(found)


@st.composite
def generated_detectors(draw: st.DrawFn, streams: int) -> tuple[tuple[Names, ...], ...]:
    """Return what each stream has: detectors of its own, and perhaps segments of a common one."""
    common = draw(detector_fields())
    found = []
    for stream in range(streams):
        names = [
            Names(
                detector=f"det{stream}{place}",
                detector_type="generic",
                serial=f"serial{stream}{place}",
                algorithm=draw(st.sampled_from(["raw", "fex"])),
                version=(1, 2, 3),
                segment=draw(st.integers(0, 3)),
                fields=draw(detector_fields()),
            )
            for place in range(draw(st.integers(1, 2)))
        ]
        if draw(st.booleans()):
            names.append(
                Names(
                    detector="common",
                    detector_type="generic",
                    serial=f"serial{stream}",
                    algorithm="raw",
                    segment=stream,
                    fields=common,
                )
            )
        found.append(tuple(names))
    return tuple(found)


@st.composite
def generated_runs(draw: st.DrawFn, max_streams: int = 3) -> GeneratedRun:
    streams = draw(st.integers(1, max_streams))
    detectors = draw(generated_detectors(streams))
    kinds = st.sampled_from(VARIABLES)
    epics = {f"key{i}": (f"PV:{i}:X", draw(kinds)) for i in range(draw(st.integers(0, 2)))}
    scan = {f"motor{i}": draw(kinds) for i in range(draw(st.integers(0, 2)))}
    timestamp, moments = later(START, 1000), []
    happenings = st.sampled_from(["event"] * 5 + ["update", "step"])
    for what in draw(st.lists(happenings, max_size=8)):
        timestamp = later(timestamp, draw(st.integers(1, 2 * 10**9)))
        if what == "event":
            moments.append(_event(draw, timestamp, detectors))
        elif what == "update":
            values = _variables(draw, EPICS_KEY, {key: kind for key, (_, kind) in epics.items()})
            moments.append(_transition(Service.SLOW_UPDATE, timestamp, values, streams))
        else:
            values = _variables(draw, ("scan", 0, "raw"), scan)
            for offset, service in enumerate((Service.DISABLE, Service.END_STEP)):
                moments.append(_transition(service, timestamp + offset, {}, streams))
            moments.append(_transition(Service.BEGIN_STEP, timestamp + 2, values, streams))
            moments.append(_transition(Service.ENABLE, timestamp + 3, {}, streams))
            timestamp += 3
    return GeneratedRun(detectors=detectors, epics=epics, scan=scan, moments=tuple(moments))


def _variables(
    draw: st.DrawFn, key: Key, kinds: Mapping[str, FieldType]
) -> dict[Key, dict[str, Any]]:
    fields = [field(name, kind, int(kind is FieldType.CHARSTR)) for name, kind in kinds.items()]
    return {key: {each.name: value_of_kind(draw, each) for each in fields}} if fields else {}


def _transition(
    service: Service, timestamp: int, values: Mapping[Key, Mapping[str, Any]], streams: int
) -> Moment:
    """Return a transition, which is in every stream; its values are in the first."""
    inside = (values, *({} for _ in range(streams - 1)))
    return Moment(service=service, timestamp=timestamp, values=inside, damage={})


def _event(draw: st.DrawFn, timestamp: int, detectors: tuple[tuple[Names, ...], ...]) -> Moment:
    taking_part = draw(st.sets(st.sampled_from(range(len(detectors))), min_size=1))
    values: list[dict[Key, dict[str, Any]] | None] = []
    damage: dict[Key, int] = {}
    for stream, described in enumerate(detectors):
        if stream not in taking_part:
            values.append(None)
            continue
        inside = {}
        for names in described:
            if draw(st.integers(0, 5)):
                inside[names.key] = {each.name: value_of_kind(draw, each) for each in names.fields}
                damage[names.key] = draw(DAMAGE)
        values.append(inside)
    return Moment(
        service=Service.L1ACCEPT, timestamp=timestamp, values=tuple(values), damage=damage
    )
