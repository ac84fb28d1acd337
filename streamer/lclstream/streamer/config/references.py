"""Names that the newest LCLStreamer gives to values, where ours are meant.

It calls what comes from a detector `<psana_name>.<field>`, whatever the data source is called, and
so do the options of its serializers that name values.
"""

from collections.abc import Mapping
from typing import Any

from lclstream.core.models import shown

INTERFACES = ("Psana1DetectorInterface", "Psana2DetectorInterface")
# Options of serializers that name one value.
SINGLE = ("data_source_to_serialize", "photon_wavelength_source", "spectrometer_source")


def with_our_names(document: Mapping[Any, Any], notices: list[str]) -> Any:
    """Return the serializer of a document with the names of the data sources in it.

    Args:
        document: in the present form.
        notices: gets one for each name that was changed.
    """
    serializer, sources = document.get("data_serializer"), document.get("data_sources")
    is_ours = document.get("wire_names", "own") == "own"
    if not (isinstance(serializer, Mapping) and isinstance(sources, Mapping) and is_ours):
        return serializer
    meant = _names_on_the_wire(sources)

    def ours(name: Any, where: str) -> Any:
        if not isinstance(name, str) or name in sources or name not in meant:
            return name
        notices.append(f"data_serializer.{where}: {shown(name)} is read as {meant[name]!r}")
        return meant[name]

    now = dict(serializer)
    for key in SINGLE:
        if key in now:
            now[key] = ours(now[key], key)
    fields = now.get("fields")
    # One that is there already is not lost by this.
    if isinstance(fields, Mapping) and not any(meant.get(str(name)) in fields for name in fields):
        now["fields"] = {ours(name, "fields"): path for name, path in fields.items()}
    return now


def _names_on_the_wire(sources: Mapping[Any, Any]) -> dict[str, str]:
    """Return the name of a value there -> ours, where there is no doubt."""
    found: dict[str, list[str]] = {}
    for name, source in sources.items():
        if not isinstance(source, Mapping) or source.get("type") not in INTERFACES:
            continue
        detector, fields = source.get("psana_name"), source.get("psana_fields")
        listed = fields if isinstance(fields, list) else [fields or ""]
        for field in listed if isinstance(detector, str) else ():
            several = len(listed) > 1
            # Fields that are stacked have no names of their own.
            if isinstance(field, str) and (source.get("separate_fields") or not several):
                theirs = f"{detector}.{field}" if field else str(detector)
                found.setdefault(theirs, []).append(
                    f"{name}.{field}" if source.get("separate_fields") else str(name)
                )
    return {theirs: ours[0] for theirs, ours in found.items() if len(ours) == 1}
