"""What one section of a configuration says about another.

The checks work on the document as written, so that their faults are reported together with
those of the single fields; what is malformed is passed over here, validation names it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lclstream.core.models import near
from lclstream.streamer.config.source_identifier import PSANA2_TOKENS, identifier_tokens

if TYPE_CHECKING:
    from lclstream.streamer.config import Parameters
    from lclstream.streamer.config.registry import Choice

Location = tuple[str | int, ...]

# Sources that make their events up need no `source_identifier`; these do.
FROM_FILES = ("Hdf5EventSource", "Psana1EventSource", "Psana2EventSource", "Xtc2EventSource")
# The highest level of the codecs that have levels; zfp compresses numbers of 32 and 64 bits.
MAX_LEVEL = {"gzip": 9, "gzip_with_shuffle": 9, "bitshuffle_with_zstd": 22}
NOT_FOR_ZFP = ("bool", "int8", "int16", "uint8", "uint16", "float16", "str")


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault: where it is, what is wrong, what was written there."""

    location: Location
    text: str
    value: Any


def problems_of(document: Mapping[str, Any]) -> list[Problem]:
    """Return every contradiction between the sections of a configuration."""
    return [
        *_identifier(document),
        *_fields(document),
        *_codec(document),
        *_sources_exist(document),
    ]


def contradictions_of(parameters: "Parameters") -> Iterator[Problem]:
    """Yield what the models themselves find wrong with the rest of a configuration."""
    pipeline = parameters.processing_pipeline
    chosen: list[tuple[Location, Choice]] = [
        (("event_source",), parameters.event_source),
        *((("data_sources", name), each) for name, each in parameters.data_sources.items()),
        (("processing_pipeline",), pipeline),
        *((("processing_pipeline", "steps", i), s) for i, s in enumerate(pipeline.all_steps())),
        (("data_serializer",), parameters.data_serializer),
        *((("data_handlers", i), each) for i, each in enumerate(parameters.data_handlers)),
    ]
    for place, model in chosen:
        for location, text, value in model.problems(parameters):
            yield Problem((*place, *location), text, value)


def _type(document: Mapping[str, Any], section: str) -> Any:
    model = document.get(section)
    return model.get("type") if isinstance(model, Mapping) else None


def _sources(document: Mapping[str, Any]) -> Mapping[str, Any] | None:
    sources = document.get("data_sources")
    return sources if isinstance(sources, Mapping) else None


def _serializer(document: Mapping[str, Any], kind: str) -> Mapping[str, Any] | None:
    serializer = document.get("data_serializer")
    fits = isinstance(serializer, Mapping) and serializer.get("type") == kind
    return serializer if fits else None


def _identifier(document: Mapping[str, Any]) -> Iterator[Problem]:
    kind, identifier = _type(document, "event_source"), document.get("source_identifier", "")
    if not isinstance(kind, str) or not isinstance(identifier, str):
        return
    if not identifier.strip() and kind in FROM_FILES:
        yield Problem(("source_identifier",), f"must say what {kind} shall read", identifier)
    if kind == "Psana2EventSource":
        for key, value in identifier_tokens(identifier):
            if key not in PSANA2_TOKENS:
                text = f"unknown part {key!r}{near(key, PSANA2_TOKENS)}; allowed: " + ", ".join(
                    PSANA2_TOKENS
                )
                yield Problem(("source_identifier",), text, identifier)
            elif key in ("run", "max_events") and not value.isdigit():
                yield Problem(("source_identifier",), f"{key} must be a number", identifier)


def _fields(document: Mapping[str, Any]) -> Iterator[Problem]:
    serializer, sources = _serializer(document, "HDF5BinarySerializer"), _sources(document)
    fields = serializer.get("fields") if serializer else None
    if serializer is None or sources is None:
        return
    place: Location = ("data_serializer", "HDF5BinarySerializer", "fields")
    if not fields or serializer.get("hdf5_layout") == "flat":
        place, fields = ("data_sources",), {str(name): str(name) for name in sources}
    if not isinstance(fields, Mapping):
        return
    for name, path in fields.items():
        if name not in sources:
            text = f"no data source has this name{near(str(name), list(map(str, sources)))}"
            yield Problem((*place, name), text, path)
    yield from _paths(place, fields)
    if place[0] == "data_serializer":
        # The masks lie at the names of the data sources, wherever the data lie.
        yield from _paths(("data_sources",), {name: str(name) for name in fields})


def _paths(place: Location, paths: Mapping[Any, Any]) -> Iterator[Problem]:
    taken: dict[str, str] = {}
    for name, path in paths.items():
        if not isinstance(path, str):
            continue
        clean = "/" + path.strip("/")
        if clean == "/" or "//" in clean or "\0" in clean:
            yield Problem((*place, name), "must be the path of a dataset", path)
        elif clean == "/lclstream" or clean.startswith("/lclstream/"):
            yield Problem((*place, name), "/lclstream is the group of our own metadata", path)
        for other, owner in taken.items():
            if clean == other or clean.startswith(other + "/") or other.startswith(clean + "/"):
                yield Problem((*place, name), f"collides with the path of {owner!r}", path)
        taken[clean] = str(name)


def _codec(document: Mapping[str, Any]) -> Iterator[Problem]:
    serializer, sources = _serializer(document, "HDF5BinarySerializer"), _sources(document)
    if serializer is None:
        return
    codec, level = serializer.get("compression"), serializer.get("compression_level", 0)
    highest = MAX_LEVEL.get(codec) if isinstance(codec, str) else None
    if highest is not None and isinstance(level, int) and level > highest:
        place = ("data_serializer", "HDF5BinarySerializer", "compression_level")
        yield Problem(place, f"the level of {codec} must be 0 to {highest}", level)
    if codec != "zfp" or sources is None:
        return
    for name, source in sources.items():
        dtype = _dtype(source) if isinstance(source, Mapping) else None
        if isinstance(dtype, str) and dtype in NOT_FOR_ZFP:
            text = f"zfp cannot compress {dtype}; choose another compression or dtype"
            yield Problem(("data_sources", name), text, dtype)


def _dtype(source: Mapping[str, Any]) -> Any:
    if source.get("type") in ("SourceIdentifier", "Psana2RunInfo"):
        return "str"
    return source.get("array_dtype") or source.get("dtype")


def _sources_exist(document: Mapping[str, Any]) -> Iterator[Problem]:
    sources = _sources(document)
    if sources is not None and not sources:
        yield Problem(("data_sources",), "needs at least one data source", dict(sources))
