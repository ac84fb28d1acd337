"""Runs that are made for tests: what is written, and what must be read back."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from lclstream.streamer.config import Parameters, parse_parameters
from lclstream.streamer.sources.xtc2_format import (
    Damage,
    Field,
    FieldType,
    Key,
    Names,
    Service,
    later,
)
from lclstream.streamer.sources.xtc2_writer import EPICS_KEY, Xtc2Writer

START = 1_100_000_000 << 32
EXPERIMENT, RUN = "tst000124", 5
PANEL = (185, 388)


def field(name: str, kind: FieldType, rank: int = 0) -> Field:
    return Field(name=name, type=kind, rank=rank)


CAMERA = [
    Names(
        detector="cam",
        detector_type="cspad",
        serial=f"serial{segment}",
        algorithm="raw",
        version=(2, 3, 42),
        segment=segment,
        fields=(field("arrayRaw", FieldType.I4, 2),),
    )
    for segment in range(3)
]
WAVE = Names(
    detector="wave",
    detector_type="generic",
    serial="w1",
    algorithm="fex",
    version=(7, 8, 9),
    fields=(
        field("label", FieldType.CHARSTR, 1),
        field("pulse", FieldType.U8),
        field("energy", FieldType.F4),
        field("trace", FieldType.I2, 1),
        field("mode:Mode", FieldType.ENUMVAL),
        field("offset", FieldType.F8),
    ),
)
EPICS = {"gas": ("GDET:FEE1:241", FieldType.F8), "note": ("CXI:NOTE", FieldType.CHARSTR)}


@dataclass(frozen=True, kw_only=True)
class MadeEvent:
    timestamp: int
    values: Mapping[Key, Mapping[str, Any]]
    damage: Mapping[Key, Damage]
    epics: Mapping[str, Any]


def camera_values(index: int, segment: int) -> dict[str, Any]:
    frame = np.arange(PANEL[0] * PANEL[1], dtype=np.int32).reshape(PANEL)
    return {"arrayRaw": frame * (index + 1) - segment}


def wave_values(index: int) -> dict[str, Any]:
    return {
        "label": f"event {index} ü",
        "pulse": np.uint64(2**63 + index),
        "energy": np.float32(index / 3),
        "trace": np.arange(index, dtype=np.int16),
        "mode:Mode": index % 3,
        "offset": float("nan") if index == 1 else index / 7,
    }


def made_events(count: int, first: int = 0) -> list[MadeEvent]:
    """Return events with a damaged one (1) and one that lacks a segment (2)."""
    events = []
    for index in range(first, first + count):
        values: dict[Key, Mapping[str, Any]] = {
            each.key: camera_values(index, each.segment) for each in CAMERA
        }
        values[WAVE.key] = wave_values(index)
        if index == 2:
            del values[CAMERA[0].key]
        damage = {CAMERA[1].key: Damage.MISSING_DATA} if index == 1 else {}
        update = index // 2
        events.append(
            MadeEvent(
                timestamp=later(START, 1_000_000 * (index + 1)),
                values=values,
                damage=damage,
                epics={"gas": update + 0.5, "note": f"update {update}"},
            )
        )
    return events


def write_run(
    path: Path,
    events: Sequence[MadeEvent],
    *,
    detectors: Iterable[Names] = (*CAMERA, WAVE),
    epics: bool = True,
    run: int = RUN,
) -> Path:
    """Write one stream with what the given detectors have of the events."""
    detectors = list(detectors)
    keys = {each.key for each in detectors}
    file = Xtc2Writer(
        path,
        experiment=EXPERIMENT,
        run=run,
        start=later(events[0].timestamp, -100_000),
        detectors=detectors,
        epics=EPICS if epics else {},
    )
    with file:
        file.begin_run(later(events[0].timestamp, -50_000))
        last: Mapping[str, Any] = {}
        for event in events:
            if event.epics != last:
                # A transition is in every stream, its values in one.
                values = {EPICS_KEY: event.epics} if epics else {}
                file.transition(Service.SLOW_UPDATE, later(event.timestamp, -1000), values)
                last = event.epics
            mine = {key: value for key, value in event.values.items() if key in keys}
            if mine:
                file.event(event.timestamp, mine, event.damage)
        file.end_run(later(events[-1].timestamp, 1000))
    return path


def stream_path(folder: Path, stream: int = 0, chunk: int = 0, run: int = RUN) -> Path:
    return folder / f"{EXPERIMENT}-r{run:04d}-s{stream:03d}-c{chunk:03d}.xtc2"


def write_chunks(folder: Path, events: Sequence[MadeEvent], cuts: Sequence[int]) -> list[Path]:
    """Write one stream in several chunks.

    Args:
        folder: where.
        events: of all of them.
        cuts: with which event each chunk but the first begins.
    """
    parts = [events[a:b] for a, b in itertools.pairwise([0, *cuts, len(events)])]
    paths = [stream_path(folder, chunk=chunk) for chunk in range(len(parts))]
    for chunk, (path, part) in enumerate(zip(paths, parts, strict=True)):
        file = Xtc2Writer(
            path,
            experiment=EXPERIMENT,
            run=RUN,
            start=START,
            detectors=[*CAMERA, WAVE],
            epics=EPICS,
            continues=chunk > 0,
        )
        with file:
            if chunk == 0:
                file.begin_run(later(START, 10))
            for event in part:
                file.slow_update(later(event.timestamp, -1000), event.epics)
                file.event(event.timestamp, event.values, event.damage)
            if chunk + 1 < len(paths):
                following = paths[chunk + 1].name
                file.announce_chunk(later(part[-1].timestamp, 1000), chunk + 1, following)
            else:
                file.end_run(later(part[-1].timestamp, 1000))
    return paths


def parameters(
    source_identifier: str,
    *,
    source: Mapping[str, Any] = MappingProxyType({}),
    **data_sources: Mapping[str, Any],
) -> Parameters:
    """Return a configuration that reads XTC2 files."""
    return parse_parameters(
        {
            "source_identifier": source_identifier,
            "event_source": {"type": "Xtc2EventSource", **source},
            "data_sources": {"stamp": {"type": "Psana2Timestamp"}, **data_sources},
            "processing_pipeline": {"type": "BatchProcessingPipeline", "batch_size": 1},
            "data_serializer": {"type": "HDF5BinarySerializer"},
        }
    )


def same(left: Any, right: Any) -> bool:
    """Return whether two values are equal in type, shape and every bit."""
    if isinstance(left, str) or isinstance(right, str):
        return bool(left == right)
    one, other = np.asarray(left), np.asarray(right)
    return (one.dtype, one.shape) == (other.dtype, other.shape) and one.tobytes() == other.tobytes()
