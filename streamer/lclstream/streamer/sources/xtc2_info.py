"""What is in XTC2 files: streams, transitions, detectors with their fields, and how often."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.sources.xtc2_dgram import Dgram
from lclstream.streamer.sources.xtc2_file import Xtc2File
from lclstream.streamer.sources.xtc2_files import Recording, finished_or_not, select
from lclstream.streamer.sources.xtc2_format import (
    VARIABLES,
    Field,
    FieldType,
    Names,
    NamesTable,
    Service,
    to_datetime,
)
from lclstream.streamer.sources.xtc2_index import index_path


def describe(source_identifier: str) -> Iterator[str]:
    """Yield the lines of a listing; every contribution's header is read, no values are.

    Args:
        source_identifier: files, or `exp=NAME,run=NUMBER[,dir=FOLDER]`.

    Raises:
        InvalidConfigError: it names no files.
        DecodeError: a file is damaged.
    """
    for recording in _recordings(source_identifier):
        for chunks in recording.streams:
            names: NamesTable = {}
            for path in chunks:
                file = Xtc2File(path, names)
                yield from _describe_file(path, file)
                names = file.names


def _recordings(source_identifier: str) -> Iterator[Recording]:
    selection = select(source_identifier)
    yield from selection.recordings
    for search in selection.searches:
        recording = search.recording()
        if recording is None:
            raise InvalidConfigError(
                f"source_identifier: no {search.pattern} in {search.folder} so far"
            )
        yield recording


def _describe_file(path: Path, file: Xtc2File) -> Iterator[str]:
    services: Counter[Service] = Counter()
    in_events: Counter[int] = Counter()
    in_transitions: Counter[int] = Counter()
    events: list[int] = []
    names = dict(file.names)
    aliases: dict[str, str] = {}
    for dgram in file:
        services[dgram.service] += 1
        names.update(dgram.names)
        if dgram.service is Service.L1ACCEPT:
            events.append(dgram.timestamp)
        elif dgram.service is Service.CONFIGURE:
            aliases |= _aliases(dgram)
        counted = in_events if dgram.service is Service.L1ACCEPT else in_transitions
        counted.update(each.names.names_id for each in dgram.contributions())
    yield f"{path}: {file.size_bytes} bytes"
    yield "  " + ", ".join(f"{services[each]} {each.name}" for each in sorted(services))
    if events:
        first, last = (to_datetime(stamp).isoformat() for stamp in (min(events), max(events)))
        yield f"  events from {first} to {last}"
    if file.truncated_at is not None:
        left = file.size_bytes - file.truncated_at
        yield f"  cut off: {left} bytes from byte {file.truncated_at} on are no whole dgram"
    index = finished_or_not(index_path(path))
    if index is not None:
        yield f"  index: {index}"
    for each in sorted(names.values(), key=lambda each: each.key):
        transitions = in_transitions[each.names_id]
        where = (
            f"{transitions} transitions" if transitions else f"{in_events[each.names_id]} events"
        )
        yield f"  {_describe_names(each)}; in {where}"
    for key, name in sorted(aliases.items()):
        yield f"  epics {key}: {name}"


def _aliases(configure: Dgram) -> dict[str, str]:
    """Return key -> process variable, where they differ."""
    found = (each for each in configure.contributions() if each.names.detector == "epicsinfo")
    pairs = (pair for each in found for pair in each.values().items())
    texts = {key: name for key, name in pairs if isinstance(name, str)}
    return {key: name for key, name in texts.items() if key not in ("keys", name)}


def _describe_names(names: Names) -> str:
    shown = (field for field in names.fields if field.type is not FieldType.ENUMDICT)
    in_variables = names.detector in VARIABLES
    fields = ", ".join(_describe_field(each, is_variable=in_variables) for each in shown)
    version = ".".join(map(str, names.version))
    owner = f"{names.detector}[{names.segment}] ({names.detector_type} {names.serial})"
    return f"{owner} {names.algorithm} {version}: {fields}"


def _describe_field(field: Field, *, is_variable: bool) -> str:
    if field.type is FieldType.CHARSTR:
        return f"{field.name} text"
    if field.type is FieldType.ENUMVAL:
        name = field.name if is_variable else field.name.partition(":")[0]
        return f"{name} enumeration"
    return f"{field.name} {field.type.dtype.name}" + (f" rank {field.rank}" if field.rank else "")
