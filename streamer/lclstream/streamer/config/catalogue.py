"""What a configuration can name, as text for people."""

import inspect
import json
import typing
from collections.abc import Iterator
from types import UnionType
from typing import Any, Literal, Union

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from lclstream.core.errors import NotFoundError
from lclstream.core.models import near
from lclstream.core.places import models_in
from lclstream.streamer.config.choices import Choice
from lclstream.streamer.config.dialects import ALIASES
from lclstream.streamer.config.old_sources import OLD_SOURCES
from lclstream.streamer.config.plugins import PluginError
from lclstream.streamer.config.registry import SECTIONS

NAMES = {"str": "text", "int": "integer", "float": "number", "bool": "true or false"}


def describe_all() -> str:
    """Return every type with one line, by section; those of packages with their package."""
    lines: list[str] = []
    for base in SECTIONS:
        lines.append(f"{base.section.name}:")
        width = max(map(len, base.section.names))
        lines += [f"  {name:{width}}  {_summary(base, name)}" for name in base.section.names]
        lines += [
            f"  {name:{width}}  not used: {plugin.origin} offers a type that we have"
            for name, plugin in base.section.plugins.items()
            if plugin.is_ours
        ]
    return "\n".join(lines)


def describe_one(name: str) -> str:
    """Return what a type is, and its fields.

    Raises:
        NotFoundError: there is no such type.
    """
    bases = [base for base in SECTIONS if name in base.section.names]
    if not bases:
        raise NotFoundError(_not_found(name))
    return "\n\n".join("\n".join(_described(base, name)) for base in bases)


def _not_found(name: str) -> str:
    for section, aliases in ALIASES.items():
        if name in aliases:
            return f"nothing is called {name!r} any more; it is read as {aliases[name]} ({section})"
    if name in OLD_SOURCES:
        hint = "`lclstream streamer convert` writes what is read instead"
        return f"nothing is called {name!r} any more; {hint}"
    names = [each for base in SECTIONS for each in base.section.names]
    hint = near(name, names) or "; `lclstream streamer list` names all"
    return f"nothing is called {name!r}{hint}"


def _described(base: type[Choice], name: str) -> Iterator[str]:
    plugin = base.section.plugins.get(name)
    try:
        model = base.model_of(name)
    except PluginError as error:
        yield f"{name} cannot be used: the plugin {error}"
        return
    yield inspect.cleandoc(model.__doc__ or "")
    yield ""
    yield f"section: {base.section.name}"
    if plugin is not None and not plugin.is_ours:
        yield f"from: {plugin.origin}"
    yield f"type: {name}"
    yield from _fields(model, "")


def _fields(model: type[BaseModel], indent: str) -> Iterator[str]:
    for field, info in model.model_fields.items():
        if field == "type":
            continue
        yield f"{indent}{field}: {shown_type(info.annotation)}, {_default(info)}"
        if info.description:
            yield f"{indent}    {' '.join(info.description.split())}"
        inner = _plain_model(info.annotation)
        if inner is not None:
            yield from _fields(inner, f"{indent}    ")


def _plain_model(annotation: Any) -> type[BaseModel] | None:
    """Return the one model that a field holds, if it is no choice among several."""
    models = models_in(annotation)
    return models[0] if len(models) == 1 and not issubclass(models[0], Choice) else None


def _summary(base: type[Choice], name: str) -> str:
    plugin = base.section.plugins.get(name)
    try:
        model = base.model_of(name)
    except PluginError as error:
        return f"cannot be used: {error}"
    first = inspect.cleandoc(model.__doc__ or "").partition("\n")[0]
    return first if plugin is None or plugin.is_ours else f"{first} [{plugin.package}]"


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "has defaults"
    return f"default {json.dumps(value, default=str)}"


def shown_type(annotation: Any) -> str:
    """Return how a person calls what a field can hold."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return shown_type(arguments[0])
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(shown_type, arguments)))
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if annotation in (None, type(None)):
        return "null"
    if origin is dict:
        return f"mapping of {shown_type(arguments[0])} to {shown_type(arguments[1])}"
    if origin in (list, tuple, set, frozenset):
        inner = dict.fromkeys(shown_type(each) for each in arguments if each is not Ellipsis)
        return f"list of {' and '.join(inner) or 'anything'}"
    if isinstance(annotation, type) and issubclass(annotation, Choice):
        return f"one of {annotation.section.name}" if annotation.choices() else annotation.__name__
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "mapping with"
    name = getattr(annotation, "__name__", str(annotation))
    return NAMES.get(name, "anything" if annotation is Any else name)
