"""What a configuration can name, as text for people."""

import inspect
from typing import Any

from pydantic import BaseModel

from lclstream.core.errors import NotFoundError
from lclstream.core.models import near
from lclstream.streamer.config.registry import SECTIONS


def describe_all() -> str:
    """Return every type with one line, by section."""
    lines: list[str] = []
    for section in SECTIONS:
        models = section.choices()
        lines.append(f"{section.section.name}:")
        width = max(len(name) for name in models)
        lines += [f"  {name:{width}}  {_summary(kind)}" for name, kind in models.items()]
    return "\n".join(lines)


def describe_one(name: str) -> str:
    """Return the fields of one type.

    Raises:
        NotFoundError: there is no such type.
    """
    models = {key: kind for section in SECTIONS for key, kind in section.choices().items()}
    if name not in models:
        hint = near(name, list(models)) or "; `lclstream streamer list` names all"
        raise NotFoundError(f"nothing is called {name!r}{hint}")
    kind = models[name]
    lines = [inspect.cleandoc(kind.__doc__ or ""), "", f"type: {name}"]
    for field, info in kind.model_fields.items():
        if field == "type":
            continue
        default = "required" if info.is_required() else f"default {_default(info)}"
        lines.append(f"{field}: {_shown(info.annotation)}, {default}")
        if info.description:
            lines.append("    " + " ".join(info.description.split()))
    return "\n".join(lines)


def _summary(kind: type[BaseModel]) -> str:
    return inspect.cleandoc(kind.__doc__ or "").partition("\n")[0]


def _default(info: Any) -> Any:
    return info.get_default(call_default_factory=True)


def _shown(annotation: Any) -> str:
    return (
        annotation.__name__
        if isinstance(annotation, type)
        else str(annotation).replace("typing.", "")
    )
