"""The oldest form of a configuration: names of classes in one section, their options in others.

```yaml
lclstreamer: {event_source: Psana1EventSource, data_handlers: [BinaryFileWritingDataHandler], ...}
event_source: {Psana1EventSource: {}}
data_handlers: {BinaryFileWritingDataHandler: {file_prefix: x}}
```
"""

from collections.abc import Mapping
from typing import Any

SECTION = "lclstreamer"
CHOSEN = ("event_source", "processing_pipeline", "data_serializer", "data_handlers")


def is_class_map(document: Mapping[Any, Any]) -> bool:
    """Return whether a document has this form."""
    return isinstance(document.get(SECTION), Mapping)


def from_class_map(document: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return a document with each class as `type` among its options.

    What the form does not know stays as it is, for validation to name it.
    """
    chosen = document[SECTION]
    now = {key: value for key, value in document.items() if key != SECTION and key not in CHOSEN}
    now |= {key: value for key, value in chosen.items() if key not in CHOSEN}
    for section in CHOSEN:
        if section not in chosen:
            if section in document:
                now[section] = document[section]
            continue
        names, options = chosen[section], document.get(section)
        if section == "data_handlers":
            names = [names] if isinstance(names, str) else names
            is_list = isinstance(names, list)
            now[section] = [_typed(name, options) for name in names] if is_list else names
        else:
            now[section] = _typed(names, options)
    return now


def _typed(name: Any, options: Any) -> Any:
    if not isinstance(name, str):
        return name
    written = options.get(name) if isinstance(options, Mapping) else None
    return {"type": name, **(written if isinstance(written, Mapping) else {})}
