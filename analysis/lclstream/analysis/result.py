"""The result file of a peak finding job: written while the stream runs, named when complete.

| in the file | what |
|---|---|
| `events/{index,timestamp,n_peaks,hit,valid,received}` | one element for each event |
| `peaks/{event,panel,row,column,intensity,snr,pixels}` | one for each peak |
| `peaks/event` | row of the peak's event in `events` |
| `image/sum` | sum of the frames without bad pixels: (panels, rows, columns) |
| `image/count` | how many frames each of its pixels has |
| attributes of `/` | provenance and totals, see `ResultWriter.finish` |
"""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
import numpy.typing as npt

from lclstream.analysis.finder import Bools, Peaks, panels_of
from lclstream.core.errors import DecodeError

EVENT_COLUMNS: Mapping[str, str] = {
    "index": "u8",
    "timestamp": "u8",
    "n_peaks": "i4",
    "hit": "u1",
    "valid": "u1",
    "received": "f8",
}
PEAK_COLUMNS: Mapping[str, str] = {
    "event": "u8",
    "panel": "i4",
    "row": "f4",
    "column": "f4",
    "intensity": "f4",
    "snr": "f4",
    "pixels": "i4",
}
# Of an event whose message does not say.
UNKNOWN = np.iinfo(np.uint64).max
# What is kept in memory before it is appended to the file.
FLUSH_EVENTS = 512
CHUNK = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class EventResult:
    """What was found in one event."""

    index: int | None
    timestamp: int | None
    peaks: Peaks | None
    """None when the event has no frame."""
    hit: bool


@dataclass(slots=True)
class Totals:
    """Sums over all events so far."""

    events: int = 0
    missing_frames: int = 0
    hits: int = 0
    peaks: int = 0

    @property
    def hit_rate(self) -> float:
        """Hits among the events that have a frame."""
        return self.hits / max(self.events - self.missing_frames, 1)


@dataclass(slots=True)
class ImageSum:
    """The sum of frames and how many each pixel has seen."""

    total: npt.NDArray[np.float64] | None = None
    count: npt.NDArray[np.uint32] | None = None

    def add(self, frame: npt.NDArray[np.generic], mask: Bools | None) -> None:
        """Add one frame; bad and not finite pixels are left out.

        Raises:
            DecodeError: it has another shape than those before.
        """
        stack = panels_of(frame).astype(np.float32, copy=False)
        good = np.isfinite(stack)
        if mask is not None:
            good &= panels_of(mask).astype(bool, copy=False)
        if self.total is None or self.count is None:
            self.total = np.zeros(stack.shape)
            self.count = np.zeros(stack.shape, np.uint32)
        if self.total.shape != stack.shape:
            raise DecodeError(
                f"the frames change their shape from {self.total.shape} to {stack.shape}"
            )
        np.add(self.total, stack, out=self.total, where=good)
        self.count += good

    def merge(self, total: npt.NDArray[np.float64], count: npt.NDArray[np.uint32]) -> None:
        """Add the sum of another job; raises `DecodeError` if its frames have another shape."""
        if self.total is None or self.count is None:
            self.total, self.count = total.copy(), count.copy()
        elif self.total.shape != total.shape:
            raise DecodeError(
                f"images of shape {self.total.shape} and {total.shape} cannot be added"
            )
        else:
            self.total += total
            self.count += count

    def mean(self) -> npt.NDArray[np.float64] | None:
        """Return the mean frame, NaN where no frame has a good pixel; None without frames."""
        if self.total is None or self.count is None:
            return None
        return np.where(self.count > 0, self.total / np.maximum(self.count, 1), np.nan)


@dataclass(slots=True)
class _Table:
    """Columns that grow in the file; few rows wait in memory."""

    group: h5py.Group
    columns: Mapping[str, str]
    rows: int = 0
    _waiting: list[Mapping[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name, dtype in self.columns.items():
            self.group.create_dataset(name, (0,), dtype, maxshape=(None,), chunks=(CHUNK,))

    def add(self, count: int, values: Mapping[str, Any]) -> None:
        self._waiting.append(values)
        self.rows += count

    def flush(self) -> None:
        for name, dtype in self.columns.items():
            parts = [np.atleast_1d(np.asarray(each[name], dtype)) for each in self._waiting]
            if parts:
                dataset = self.group[name]
                dataset.resize((self.rows,))
                new = np.concatenate(parts)
                dataset[self.rows - len(new) :] = new
        self._waiting.clear()


class ResultWriter:
    """Writes a result file beside its place; `finish` completes and renames it.

    Resource handling: a context manager; without `finish` the unfinished file is removed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.totals = Totals()
        self.image = ImageSum()
        self._beside = path.with_name(f".{path.name}.{os.getpid()}")
        self._file = h5py.File(self._beside, "w")
        self._events = _Table(self._file.create_group("events"), EVENT_COLUMNS)
        self._peaks = _Table(self._file.create_group("peaks"), PEAK_COLUMNS)
        self._since_flush = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        self._beside.unlink(missing_ok=True)

    def add(self, result: EventResult) -> None:
        """Append what was found in one event."""
        peaks = result.peaks
        count = 0 if peaks is None else len(peaks)
        row = self._events.rows
        self._events.add(
            1,
            {
                "index": UNKNOWN if result.index is None else result.index,
                "timestamp": UNKNOWN if result.timestamp is None else result.timestamp,
                "n_peaks": count,
                "hit": result.hit,
                "valid": peaks is not None,
                "received": time.time(),
            },
        )
        if peaks is not None and count:
            values = {name: getattr(peaks, name) for name in PEAK_COLUMNS if name != "event"}
            self._peaks.add(count, values | {"event": np.full(count, row, np.uint64)})
        self.totals.events += 1
        self.totals.missing_frames += peaks is None
        self.totals.hits += result.hit
        self.totals.peaks += count
        self._since_flush += 1
        if self._since_flush >= FLUSH_EVENTS:
            self._flush()

    def finish(self, provenance: Mapping[str, Any]) -> Path:
        """Write the rest, the image and the provenance, and give the file its name.

        Args:
            provenance: becomes attributes; what is no number or text is written as JSON.
        """
        self._flush()
        if self.image.total is not None:
            options = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
            self._file.create_dataset("image/sum", data=self.image.total, **options)
            self._file.create_dataset("image/count", data=self.image.count, **options)
        totals = self.totals
        write_attributes(
            self._file,
            {
                "events": totals.events,
                "missing_frames": totals.missing_frames,
                "hits": totals.hits,
                "peaks": totals.peaks,
                "hit_rate": totals.hit_rate,
                **provenance,
            },
        )
        self._file.close()
        with self._beside.open("rb") as written:
            os.fsync(written.fileno())
        return self._beside.replace(self.path)

    def _flush(self) -> None:
        self._events.flush()
        self._peaks.flush()
        self._since_flush = 0


def write_attributes(file: h5py.File, values: Mapping[str, Any]) -> None:
    """Write attributes of the root; what is no number or text is written as JSON."""
    for name, value in values.items():
        plain = isinstance(value, str | int | float)
        file.attrs[name] = value if plain else json.dumps(value, default=str)
