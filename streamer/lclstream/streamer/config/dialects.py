"""Older ways to write a configuration, turned into the present one.

Every change adds a notice that says what was read as what. Nothing here fails: what is
not understood is left as it is, for validation to name it.
"""

from collections.abc import Callable, Mapping
from typing import Any

Document = dict[str, Any]

# Names that the paper and earlier versions use for the same class.
ALIASES = {
    "HDF5Serializer": "HDF5BinarySerializer",
    "Hdf5Serializer": "HDF5BinarySerializer",
    "Hdf5BinarySerializer": "HDF5BinarySerializer",
}
OLD_SECTIONS = ("event_source", "processing_pipeline", "data_serializer")


def modernise(document: Mapping[str, Any]) -> tuple[Document, list[str]]:
    """Return the document in the present form, and a notice for every change."""
    notices: list[str] = []
    now = dict(document)
    if isinstance(now.get("lclstreamer"), Mapping):
        now = from_class_map(now)
        notices.append("the old form with a section 'lclstreamer' was converted")
    for section in OLD_SECTIONS:
        now[section] = _renamed(now.get(section), section, notices)
    handlers = now.get("data_handlers")
    if isinstance(handlers, list):
        now["data_handlers"] = [
            _renamed(each, f"data_handlers.{number}", notices)
            for number, each in enumerate(handlers)
        ]
    sources = now.get("data_sources")
    if isinstance(sources, Mapping):
        now["data_sources"] = {
            name: _as_interface(_renamed(each, f"data_sources.{name}", notices), name, notices)
            for name, each in sources.items()
        }
    # A section that was not there must still be reported as missing.
    return {key: value for key, value in now.items() if key in document or value is not None}, (
        notices
    )


def from_class_map(document: Mapping[str, Any]) -> Document:
    """Convert the oldest form: `lclstreamer` names the classes, sections map class -> options."""
    chosen = document["lclstreamer"]
    now: Document = {
        key: value
        for key, value in chosen.items()
        if key not in (*OLD_SECTIONS, "data_handlers", "data_sources")
    }
    for section in OLD_SECTIONS:
        if section in chosen:
            now[section] = _typed(chosen[section], document.get(section))
    if isinstance(names := chosen.get("data_handlers"), list):
        now["data_handlers"] = [_typed(name, document.get("data_handlers")) for name in names]
    sources = document.get("data_sources", chosen.get("data_sources"))
    if sources is not None:
        now["data_sources"] = sources
    return now


def _typed(name: Any, options: Any) -> Any:
    chosen = options.get(name) if isinstance(options, Mapping) and isinstance(name, str) else None
    return {"type": name, **(chosen if isinstance(chosen, Mapping) else {})}


def _renamed(model: Any, where: str, notices: list[str]) -> Any:
    if not isinstance(model, Mapping):
        return model
    new = ALIASES.get(model["type"]) if isinstance(model.get("type"), str) else None
    if new is None:
        return model
    notices.append(f"{where}: {model['type']} is read as {new}")
    return {**model, "type": new}


def _interface(generation: int, field: Callable[[Mapping[str, Any]], str | None]) -> Any:
    return f"Psana{generation}DetectorInterface", field


# The classes of older versions -> the interface and the field that do the same.
_OLD_DETECTORS: Mapping[str, tuple[str, Callable[[Mapping[str, Any]], str | None]]] = {
    "Psana1AreaDetector": _interface(
        1, lambda old: "calib" if old.get("calibration", True) else "raw"
    ),
    "Psana1AssembledAreaDetector": _interface(1, lambda old: "image"),
    "Psana1PV": _interface(1, lambda old: old.get("psana_function")),
    "Psana2AreaDetector": _interface(
        2, lambda old: "raw.calib" if old.get("calibration", True) else "raw.raw"
    ),
    "Psana2AssembledAreaDetector": _interface(2, lambda old: "raw.image"),
    "Psana2PV": _interface(2, lambda old: None),
}


def _as_interface(model: Any, name: str, notices: list[str]) -> Any:
    kind = model.get("type") if isinstance(model, Mapping) else None
    if not isinstance(kind, str) or kind not in _OLD_DETECTORS:
        return model
    new, field = _OLD_DETECTORS[kind]
    kept = {
        key: value for key, value in model.items() if key not in ("calibration", "psana_function")
    }
    path = field(model)
    notices.append(
        f"data_sources.{name}: {kind} is read as {new}"
        + (f" with psana_fields {path!r}" if path else "")
    )
    return {**kept, "type": new, **({"psana_fields": path} if path else {})}
