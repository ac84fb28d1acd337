"""Reads result files, draws them, and combines those of several consumers of one stream."""

import io
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from lclstream.analysis.result import (
    EVENT_COLUMNS,
    PEAK_COLUMNS,
    UNKNOWN,
    ImageSum,
    write_attributes,
)
from lclstream.core.errors import DecodeError, NotFoundError
from lclstream.core.files import write_atomically
from lclstream.core.ledger import MODULUS

logger = logging.getLogger(__name__)

Table = dict[str, npt.NDArray[Any]]

PATTERN = "peaks-*.h5"
# Totals that are sums over consumers.
SUMMED = ("messages", "bytes", "damaged_messages")


@dataclass(slots=True, kw_only=True)
class Result:
    """The content of a result file."""

    events: Table
    peaks: Table
    image: ImageSum
    attributes: dict[str, Any]


def read_result(path: Path) -> Result:
    """Read a result file; raises `DecodeError` when it is damaged or another kind of file."""
    try:
        with h5py.File(path, "r") as file:
            image = ImageSum()
            if "image/sum" in file:
                image = ImageSum(file["image/sum"][...], file["image/count"][...])
            return Result(
                events={name: file[f"events/{name}"][...] for name in EVENT_COLUMNS},
                peaks={name: file[f"peaks/{name}"][...] for name in PEAK_COLUMNS},
                image=image,
                attributes=dict(file.attrs),
            )
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise DecodeError(f"no result of a peak finder in {str(path)!r}: {error}") from error


def draw_result(path: Path, result: Result, title: str) -> Path:
    """Draw a result as PNG."""
    # Matplotlib is slow to load; a consumer must not wait for it before its first message.
    from lclstream.analysis.picture import PictureData, draw

    seen = result.events["valid"].astype(bool)
    time_s, label = times_of(result.events)
    data = PictureData(
        title=title,
        mean=result.image.mean(),
        panel=result.peaks["panel"],
        row=result.peaks["row"],
        column=result.peaks["column"],
        time_s=time_s[seen],
        hit=result.events["hit"].astype(bool)[seen],
        time_label=label,
    )
    return draw(path, data)


def times_of(events: Table) -> tuple[npt.NDArray[np.float64], str]:
    """Return when each event was, from 0, and the name of that axis."""
    stamps = events["timestamp"]
    if len(stamps) and (stamps != UNKNOWN).all():
        seconds, nanoseconds = stamps >> np.uint64(32), stamps & np.uint64(0xFFFFFFFF)
        # Whole seconds apart first: a double has no room for nanoseconds since 1990.
        whole = (seconds - seconds.min()).astype(np.float64)
        exact = whole + nanoseconds.astype(np.float64) * 1e-9
        return exact - exact.min(), "time / s"
    if len(stamps) and (events["index"] != UNKNOWN).all():
        return (events["index"] - events["index"].min()).astype(np.float64), "event index"
    return np.arange(len(stamps), dtype=np.float64), "event in order of arrival"


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """What came of a merge."""

    result: Path
    picture: Path
    summary: Mapping[str, Any]


def merge_results(folder: Path, name: str = "merged") -> Merged:
    """Combine all results in a folder into `<name>.h5` and `<name>.png`.

    Events are put in order of their index. An event that several consumers have got counts
    once, and is named in the summary; images are summed as they are.

    Raises:
        NotFoundError: there is no result in the folder.
        DecodeError: one of them is damaged.
    """
    paths = sorted(folder.glob(PATTERN))
    if not paths:
        raise NotFoundError(f"no result {PATTERN} in {str(folder)!r}")
    results = [read_result(path) for path in paths]
    merged = _joined(results)
    events_before = len(merged.events["index"])
    _sort_and_deduplicate(merged)
    summary = _summary(merged, results, events_before - len(merged.events["index"]))
    path = folder / f"{name}.h5"
    _write(path, merged, {**summary, "inputs": [one.name for one in paths]})
    title = f"{summary['experiment']} run {summary['run']}: {summary['events']} events"
    picture = draw_result(folder / f"{name}.png", merged, f"{title}, {len(paths)} consumers")
    return Merged(result=path, picture=picture, summary=summary)


def _joined(results: Sequence[Result]) -> Result:
    joined = Result(events={}, peaks={}, image=ImageSum(), attributes={})
    first_rows = np.cumsum([0, *(len(one.events["index"]) for one in results)])
    for name in EVENT_COLUMNS:
        joined.events[name] = np.concatenate([one.events[name] for one in results])
    for name in PEAK_COLUMNS:
        joined.peaks[name] = np.concatenate([one.peaks[name] for one in results])
    shifts = [
        np.full(len(one.peaks["event"]), first, np.uint64)
        for one, first in zip(results, first_rows, strict=False)
    ]
    joined.peaks["event"] = joined.peaks["event"] + np.concatenate(shifts)
    for one in results:
        if one.image.total is not None and one.image.count is not None:
            joined.image.merge(one.image.total, one.image.count)
    return joined


def _sort_and_deduplicate(result: Result) -> None:
    """Put events in order of index, keep the first of each; peaks follow their events."""
    index = result.events["index"]
    order = np.lexsort((result.events["received"], index))
    again = np.zeros(len(index), bool)
    in_order = index[order]
    again[1:] = (in_order[1:] == in_order[:-1]) & (in_order[1:] != UNKNOWN)
    kept = order[~again]
    place = np.full(len(index), UNKNOWN, np.uint64)
    place[kept] = np.arange(len(kept), dtype=np.uint64)
    result.events = {name: column[kept] for name, column in result.events.items()}
    event = place[result.peaks["event"].astype(np.intp)]
    chosen = np.flatnonzero(event != UNKNOWN)
    chosen = chosen[np.argsort(event[chosen], kind="stable")]
    result.peaks = {name: column[chosen] for name, column in result.peaks.items()}
    result.peaks["event"] = event[chosen]


def _summary(merged: Result, results: Sequence[Result], duplicates: int) -> dict[str, Any]:
    events = merged.events
    valid = int(events["valid"].sum())
    index = events["index"][events["index"] != UNKNOWN]
    gaps = int(index.max() - index.min()) + 1 - len(index) if len(index) else 0
    first = results[0].attributes
    digest = sum(int(str(one.attributes["digest"]), 16) for one in results) % MODULUS
    return {
        "experiment": str(first["experiment"]),
        "run": int(first["run"]),
        "consumers": len(results),
        "events": len(events["index"]),
        "missing_frames": len(events["index"]) - valid,
        "hits": int(events["hit"].sum()),
        "hit_rate": int(events["hit"].sum()) / max(valid, 1),
        "peaks": len(merged.peaks["event"]),
        "duplicate_events": duplicates,
        "gaps_in_index": gaps,
        **{name: sum(int(one.attributes[name]) for one in results) for name in SUMMED},
        "digest": f"{digest:016x}",
        "complete": all(bool(one.attributes["complete"]) for one in results),
    }


def _write(path: Path, result: Result, attributes: Mapping[str, Any]) -> None:
    memory = io.BytesIO()
    with h5py.File(memory, "w") as file:
        for part, table in (("events", result.events), ("peaks", result.peaks)):
            for name, column in table.items():
                file[f"{part}/{name}"] = column
        if result.image.total is not None:
            options = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
            file.create_dataset("image/sum", data=result.image.total, **options)
            file.create_dataset("image/count", data=result.image.count, **options)
        write_attributes(file, {**attributes, "merged": time.strftime("%Y-%m-%dT%H:%M:%S%z")})
    write_atomically(path, memory.getvalue())
