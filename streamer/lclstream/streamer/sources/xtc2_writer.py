"""Write XTC2 files as the LCLS-II data acquisition does, one file per stream.

psana2 reads them back identically. They serve to convert data, and to test on data that is
made for the purpose:

```
raw = Names(detector="jungfrau", detector_type="jungfrau", serial="0001", algorithm="raw",
            version=(0, 2, 0), fields=(Field(name="raw", type=FieldType.U2, rank=3),))
with Xtc2Writer(path, experiment="mfx101332224", run=7, detectors=[raw], start=stamp) as file:
    file.begin_run(stamp1)
    file.event(stamp2, {raw.key: {"raw": pixels}})
    file.end_run(stamp3)
```
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self, TypeAlias

import numpy as np

from lclstream.streamer.sources.xtc2_bookkeeping import (
    CHUNKINFO,
    EPICS_KEY,
    EPICSINFO_KEY,
    RUNINFO,
    SCAN_KEY,
    epics_names,
    scan_names,
)
from lclstream.streamer.sources.xtc2_format import (
    DGRAM_HEADER,
    FIELD,
    NAMES_HEADER,
    SHAPE,
    XTC_HEADER,
    Field,
    FieldType,
    Key,
    Names,
    Service,
    Version,
    XtcType,
    later,
)

__all__ = [
    "EPICS_KEY",
    "SCAN_KEY",
    "Parts",
    "Xtc2Writer",
    "encode_dgram",
    "encode_names",
    "encode_shapes_data",
]

FIRST_NAMES_ID = 0x100
TEXT_ALIGNMENT = 4

Parts: TypeAlias = list[bytes | memoryview]
Values: TypeAlias = Mapping[str, Any]
NOTHING: Mapping[Any, Any] = MappingProxyType({})


class Xtc2Writer:
    """Writes one stream of a run, or several runs one after the other.

    The file has the suffix `.inprogress` until it is complete, as at the data acquisition.

    Resource handling: a context manager; owns the open file. Leaving it by an exception leaves
    the `.inprogress` file.

    Args:
        path: the file to be; psana wants `<experiment>-r0007-s000-c000.xtc2`.
        experiment: such as `mfx101332224`.
        run: number of the first run.
        start: timestamp of the Configure dgram.
        detectors: what events will contain; the writer chooses their `names_id`.
        epics: key -> (name of the process variable, its type).
        scan: variable of the scan -> its type.
        continues: whether this is a later chunk of a stream, which has no Configure.
    """

    def __init__(
        self,
        path: Path,
        *,
        experiment: str,
        run: int,
        start: int,
        detectors: Sequence[Names],
        epics: Mapping[str, tuple[str, FieldType]] = NOTHING,
        scan: Mapping[str, FieldType] = NOTHING,
        continues: bool = False,
    ) -> None:
        self.path, self.experiment, self.run = path, experiment, run
        special = [RUNINFO, *epics_names(epics), *scan_names(scan), CHUNKINFO]
        described = [
            dataclasses.replace(names, names_id=FIRST_NAMES_ID + place)
            for place, names in enumerate([*special, *detectors])
        ]
        self._names = {names.key: names for names in described}
        self._pv_names = {key: name for key, (name, _) in epics.items()}
        self._last = -1
        if len(self._names) != len(described):
            raise ValueError("two detectors have the same name, segment and algorithm")
        beginning = [] if continues else self._configure(start)
        self._unfinished = path.with_name(path.name + ".inprogress")
        self._file = self._unfinished.open("wb")
        self.write(beginning)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        if kind is None:
            self._unfinished.rename(self.path)

    def begin_run(self, timestamp: int, *, run: int | None = None, scan: Values = NOTHING) -> None:
        """Write BeginRun, BeginStep with the values of the scan, and Enable, one ns apart."""
        self.run = self.run if run is None else run
        info = {"expt": self.experiment, "runnum": self.run}
        self.transition(Service.BEGIN_RUN, timestamp, {RUNINFO.key: info})
        self._begin_step(later(timestamp, 1), scan)

    def next_step(self, timestamp: int, scan: Values = NOTHING) -> None:
        """Write Disable, EndStep, BeginStep with the values of the scan, and Enable."""
        self.transition(Service.DISABLE, timestamp)
        self.transition(Service.END_STEP, later(timestamp, 1))
        self._begin_step(later(timestamp, 2), scan)

    def announce_chunk(self, timestamp: int, chunk: int, file_name: str) -> None:
        """Write Disable, and Enable that says in which file the stream goes on: the last of this.

        Args:
            timestamp: of Disable; Enable is one nanosecond later.
            chunk: number of the next chunk.
            file_name: without folder.
        """
        info = {"chunkid": chunk, "filename": file_name}
        self.transition(Service.DISABLE, timestamp)
        self.transition(Service.ENABLE, later(timestamp, 1), {CHUNKINFO.key: info})

    def end_run(self, timestamp: int) -> None:
        """Write Disable, EndStep and EndRun, one nanosecond apart."""
        self.transition(Service.DISABLE, timestamp)
        self.transition(Service.END_STEP, later(timestamp, 1))
        self.transition(Service.END_RUN, later(timestamp, 2))

    def slow_update(self, timestamp: int, values: Values) -> None:
        """Write the values of all process variables, by their keys."""
        self.transition(Service.SLOW_UPDATE, timestamp, {EPICS_KEY: values})

    def event(
        self,
        timestamp: int,
        contributions: Mapping[Key, Values],
        damage: Mapping[Key, int] = NOTHING,
    ) -> None:
        """Write one event.

        Args:
            timestamp: later than what was written before.
            contributions: `Names.key` -> field -> value, for any of the detectors.
            damage: bits of `Damage` for contributions that have some.
        """
        self.transition(Service.L1ACCEPT, timestamp, contributions, damage)

    def transition(
        self,
        service: Service,
        timestamp: int,
        contributions: Mapping[Key, Values] = NOTHING,
        damage: Mapping[Key, int] = NOTHING,
    ) -> None:
        """Write one dgram.

        Raises:
            ValueError: it is not later than the one before, or a value does not fit its field.
        """
        if timestamp <= self._last:
            raise ValueError(f"timestamp {timestamp} is not after {self._last}")
        parts: Parts = []
        for key, values in contributions.items():
            parts += encode_shapes_data(self._names[key], values, damage.get(key, 0))
        self.write(encode_dgram(service, timestamp, parts))
        self._last = timestamp

    def flush(self) -> None:
        """Let readers see what was written."""
        self._file.flush()

    def write(self, parts: Iterable[bytes | memoryview]) -> None:
        """Write bytes as they are, such as an unusual dgram from `encode_dgram`."""
        self._file.writelines(parts)

    def _begin_step(self, timestamp: int, scan: Values) -> None:
        values = {SCAN_KEY: scan} if scan else NOTHING
        self.transition(Service.BEGIN_STEP, timestamp, values)
        self.transition(Service.ENABLE, later(timestamp, 1))

    def _configure(self, timestamp: int) -> Parts:
        self._last = timestamp
        parts: Parts = []
        for names in self._names.values():
            parts += encode_names(names)
        if self._pv_names:
            values = {"keys": ",".join(self._pv_names), **self._pv_names}
            parts += encode_shapes_data(self._names[EPICSINFO_KEY], values)
        return encode_dgram(Service.CONFIGURE, timestamp, parts)


def encode_dgram(service: Service, timestamp: int, parts: Parts, env: int = 0) -> Parts:
    """Return a dgram around encoded xtcs; `env` holds further bits, such as readout groups."""
    extent = XTC_HEADER.size + sum(len(part) for part in parts)
    return [
        DGRAM_HEADER.pack(timestamp, env | service << 24, 0, 0, XtcType.PARENT, extent),
        *parts,
    ]


def encode_names(names: Names) -> Parts:
    """Return the Names xtc that announces a contribution."""
    header = NAMES_HEADER.pack(
        sum(each.rank > 0 for each in names.fields),
        *(_name(each) for each in (names.detector_type, names.detector, names.serial)),
        _name(names.algorithm),
        _packed(names.version),
        names.segment,
    )
    fields = [
        FIELD.pack(
            _name(each.algorithm), _packed(each.version), _name(each.name), each.type, each.rank
        )
        for each in names.fields
    ]
    return _xtc(XtcType.NAMES, [header, *fields], names.names_id)


def encode_shapes_data(
    names: Names, values: Values, damage: int = 0, *, data_first: bool = False
) -> Parts:
    """Return the ShapesData xtc of one contribution.

    Args:
        names: what it looks like.
        values: every field's value, by its full name.
        damage: bits of `Damage`.
        data_first: whether the values precede their shapes; both orders are legal.

    Raises:
        ValueError: a value is missing, is too many or does not fit its field.
    """
    if values.keys() != {each.name for each in names.fields}:
        wanted = ", ".join(each.name for each in names.fields)
        raise ValueError(f"{names.detector}.{names.algorithm} takes {wanted}; got {list(values)}")
    shapes: Parts = []
    data: Parts = []
    for each in names.fields:
        shape, encoded = _encode_value(each, values[each.name])
        data.append(encoded)
        if each.rank > 0:
            shapes.append(SHAPE.pack(*shape, *[0] * (5 - len(shape))))
    inner = [_xtc(XtcType.SHAPES, shapes), _xtc(XtcType.DATA, data)]
    ordered = reversed(inner) if data_first else inner
    parts = [part for xtc in ordered for part in xtc]
    return _xtc(XtcType.SHAPES_DATA, parts, names.names_id, damage)


def _xtc(kind: XtcType, parts: Parts, src: int = 0, damage: int = 0) -> Parts:
    extent = XTC_HEADER.size + sum(len(part) for part in parts)
    return [XTC_HEADER.pack(src, damage, kind, extent), *parts]


def _encode_value(each: Field, value: Any) -> tuple[tuple[int, ...], bytes | memoryview]:
    if each.type is FieldType.CHARSTR and isinstance(value, str):
        raw = value.encode() + b"\0"
        raw += bytes(-len(raw) % TEXT_ALIGNMENT)
        return (len(raw),), raw
    array = np.asarray(value)
    dtype = each.type.dtype
    # Numbers without a type of their own take the field's; an overflow is numpy's error.
    if not isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value, dtype=dtype)
    elif not np.can_cast(array.dtype, dtype):
        raise ValueError(f"field {each.name!r} is {dtype}, cannot hold {array.dtype}")
    if array.ndim != each.rank:
        raise ValueError(f"field {each.name!r} has rank {each.rank}, got {array.ndim} dimensions")
    contiguous = np.ascontiguousarray(array, dtype=dtype)
    return array.shape, contiguous.reshape(-1).view(np.uint8).data


def _name(value: str) -> bytes:
    raw = value.encode()
    if len(raw) > 255:
        raise ValueError(f"a name has at most 255 bytes, got {value!r}")
    return raw


def _packed(version: Version) -> int:
    major, minor, micro = version
    return major << 16 | minor << 8 | micro
