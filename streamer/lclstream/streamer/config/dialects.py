"""Older ways to write a configuration, turned into the present one.

Every change adds a notice that says what was read as what. Nothing here fails: what is
not understood is left as it is, for validation to name it.
"""

from collections.abc import Mapping
from typing import Any

from lclstream.streamer.config.class_map import from_class_map, is_class_map
from lclstream.streamer.config.old_sources import as_of_today
from lclstream.streamer.config.references import with_our_names

Document = dict[Any, Any]

# Section -> names that the paper and earlier versions use for a type.
ALIASES: Mapping[str, Mapping[str, str]] = {
    "event_source": {"GenericEventSource": "InternalEventSource"},
    "processing_pipeline": {
        "BatchPipeline": "BatchProcessingPipeline",
        "NoOpPipeline": "BatchProcessingPipeline",
        "NoOpProcessingPipeline": "BatchProcessingPipeline",
        "PreprocessingBatchPipeline": "PeaknetPreprocessingPipeline",
    },
    "data_serializer": {
        "HDF5Serializer": "HDF5BinarySerializer",
        "Hdf5BinarySerializer": "HDF5BinarySerializer",
        "Hdf5Serializer": "HDF5BinarySerializer",
    },
}
# Options that mean nothing any more, in any section.
DROPPED = ("async_on",)
# How people write that there is no codec, when it is not null.
NO_CODEC = ("none", "null", "")


def modernise(document: Mapping[Any, Any]) -> tuple[Document, list[str]]:
    """Return the document in the present form, and a notice for every change."""
    notices: list[str] = []
    now = dict(document)
    if is_class_map(now):
        now = from_class_map(now)
        notices.append("the old form with a section 'lclstreamer' was converted")
    _batch_size(now, notices)
    for section in ("event_source", "processing_pipeline", "data_serializer"):
        if section in now:
            now[section] = _model(now[section], section, section, notices)
    if "data_handlers" in now:
        now["data_handlers"] = _handlers(now["data_handlers"], notices)
    if isinstance(sources := now.get("data_sources"), Mapping):
        now["data_sources"] = _sources(sources, notices)
    for change in (_identifier, _internal_source, _codec):
        change(now, notices)
    if "data_serializer" in now:
        now["data_serializer"] = with_our_names(now, notices)
    return now, notices


def _model(written: Any, section: str, where: str, notices: list[str]) -> Any:
    """Return a model with the present name of its type."""
    aliases = ALIASES.get(section, {})
    if isinstance(written, str) and written:
        notices.append(f"{where}: {written} is read as a mapping with this type")
        written = {"type": written}
    if not isinstance(written, Mapping):
        return written
    now = _without_dropped(written, where, notices)
    name = now.get("type")
    if isinstance(name, str) and name in aliases:
        notices.append(f"{where}: {name} is read as {aliases[name]}")
        now["type"] = aliases[name]
    return now


def _without_dropped(written: Mapping[Any, Any], where: str, notices: list[str]) -> Document:
    found = [key for key in DROPPED if key in written]
    notices += [f"{where}: {key} has no meaning any more and is left out" for key in found]
    return {key: value for key, value in written.items() if key not in DROPPED}


def _handlers(written: Any, notices: list[str]) -> Any:
    if isinstance(written, Mapping):
        notices.append("data_handlers: one handler is read as a list of one")
        written = [written]
    if not isinstance(written, list):
        return [] if written is None else written
    return [
        _model(each, "data_handlers", f"data_handlers.{number}", notices)
        for number, each in enumerate(written)
    ]


def _sources(written: Mapping[Any, Any], notices: list[str]) -> Document:
    now: Document = {}
    for name, source in written.items():
        where = f"data_sources.{name}"
        now[name] = _model(source, "data_sources", where, notices)
        if not isinstance(now[name], Mapping):
            continue
        if not now[name] and source:
            # It held nothing but what means nothing any more.
            del now[name]
        elif (converted := as_of_today(now[name])) is not None:
            now[name], notice = converted
            notices.append(f"{where}: {notice}")
    return now


def _identifier(now: Document, notices: list[str]) -> None:
    """Write `{exp: x, run: 3}` as text, as psana takes it."""
    written = now.get("source_identifier")
    if not isinstance(written, Mapping) or not written:
        return
    if not all(isinstance(value, str | int) for value in written.values()):
        return
    separator = ":" if _type(now.get("event_source")) == "Psana1EventSource" else ","
    text = separator.join(f"{key}={value}" for key, value in written.items())
    notices.append(f"source_identifier: the mapping is read as {text!r}")
    now["source_identifier"] = text


def _internal_source(now: Document, notices: list[str]) -> None:
    """Leave out what the internal source never knew, and yet was allowed."""
    source = now.get("event_source")
    if not isinstance(source, Mapping) or _type(source) != "InternalEventSource":
        return
    from lclstream.streamer.config.event_sources import InternalEventSourceConfig

    known = dict(source)
    if "events" in known and "number_of_events_to_generate" not in known:
        known["number_of_events_to_generate"] = known.pop("events")
        notices.append("event_source: events is read as number_of_events_to_generate")
    for key in [key for key in known if key not in InternalEventSourceConfig.model_fields]:
        notices.append(f"event_source: InternalEventSource has no option {key!r}; it is left out")
        del known[key]
    now["event_source"] = known


def _batch_size(now: Document, notices: list[str]) -> None:
    """Move a batch size at the top to the pipeline, where it belongs; no pipeline has 1."""
    pipeline = now.get("processing_pipeline")
    if isinstance(pipeline, str):
        pipeline = {"type": pipeline}
    if not isinstance(pipeline, Mapping) or "batch_size" in pipeline:
        return
    if "batch_size" in now:
        now["processing_pipeline"] = {**pipeline, "batch_size": now.pop("batch_size")}
        notices.append("batch_size is read as processing_pipeline.batch_size")
    elif str(_type(pipeline)).startswith("NoOp"):
        now["processing_pipeline"] = {**pipeline, "batch_size": 1}


def _codec(now: Document, notices: list[str]) -> None:
    """Read the word for no compression as null."""
    serializer = now.get("data_serializer")
    if not isinstance(serializer, Mapping) or _type(serializer) != "HDF5BinarySerializer":
        return
    written = serializer.get("compression")
    if isinstance(written, str) and written.lower() in NO_CODEC:
        notices.append(f"data_serializer.compression: {written!r} is read as null")
        now["data_serializer"] = {**serializer, "compression": None}


def _type(model: Any) -> Any:
    return model.get("type") if isinstance(model, Mapping) else None
