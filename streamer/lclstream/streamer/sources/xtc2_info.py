"""What is in XTC2 files: streams, transitions, detectors with their fields, and how often."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from lclstream.streamer.sources.xtc2_file import Xtc2File
from lclstream.streamer.sources.xtc2_files import select
from lclstream.streamer.sources.xtc2_format import (
    Field,
    FieldType,
    Names,
    NamesTable,
    Service,
    to_datetime,
)


def describe(source_identifier: str) -> Iterator[str]:
    """Yield the lines of a listing; every contribution's header is read, no values are.

    Args:
        source_identifier: files, or `exp=NAME,run=NUMBER[,dir=FOLDER]`.

    Raises:
        InvalidConfigError: it names no files.
        DecodeError: a file is damaged.
    """
    for recording in select(source_identifier).recordings:
        for chunks in recording.streams:
            names: NamesTable = {}
            for path in chunks:
                file = Xtc2File(path, names)
                yield from _describe_file(path, file)
                names = file.names


def _describe_file(path: Path, file: Xtc2File) -> Iterator[str]:
    services: Counter[Service] = Counter()
    contributions: Counter[int] = Counter()
    events: list[int] = []
    names = dict(file.names)
    for dgram in file:
        services[dgram.service] += 1
        names.update(dgram.names)
        if dgram.service is Service.L1ACCEPT:
            events.append(dgram.timestamp)
            contributions.update(each.names.names_id for each in dgram.contributions())
    yield f"{path}: {file.size_bytes} bytes"
    yield "  " + ", ".join(f"{services[each]} {each.name}" for each in sorted(services))
    if events:
        first, last = (to_datetime(stamp).isoformat() for stamp in (min(events), max(events)))
        yield f"  events from {first} to {last}"
    if file.truncated_at is not None:
        left = file.size_bytes - file.truncated_at
        yield f"  cut off: {left} bytes from byte {file.truncated_at} on are no whole dgram"
    for each in sorted(names.values(), key=lambda each: each.key):
        yield "  " + _describe_names(each, contributions[each.names_id])


def _describe_names(names: Names, count: int) -> str:
    shown = (field for field in names.fields if field.type is not FieldType.ENUMDICT)
    fields = ", ".join(map(_describe_field, shown))
    version = ".".join(map(str, names.version))
    owner = f"{names.detector}[{names.segment}] ({names.detector_type} {names.serial})"
    return f"{owner} {names.algorithm} {version}: {fields}; in {count} events"


def _describe_field(field: Field) -> str:
    if field.type is FieldType.CHARSTR:
        return f"{field.name} text"
    if field.type is FieldType.ENUMVAL:
        return f"{field.name.partition(':')[0]} enumeration"
    return f"{field.name} {field.type.dtype.name}" + (f" rank {field.rank}" if field.rank else "")
