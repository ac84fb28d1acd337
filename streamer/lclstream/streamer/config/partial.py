"""What is valid in a configuration that is not, so that all its mistakes can be named at once."""

import functools
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from lclstream.streamer.config.choices import Choice
from lclstream.streamer.config.naming import NamedValues
from lclstream.streamer.config.plugins import PluginError
from lclstream.streamer.config.registry import (
    DataSourceModel,
    EventSourceModel,
    HandlerModel,
    ProcessingModel,
    SerializerModel,
)


class UnknownSectionError(Exception):
    """A check asked for a section that is not valid; then it cannot find anything wrong."""


class PartialParameters(NamedValues):
    """The valid sections of a configuration, for checks that ask for no others.

    Of a section that is not valid there is what is valid in it, if its type is known; and of a
    data source always the name.
    """

    def __init__(self, sections: Mapping[str, Any]) -> None:
        self._sections = sections

    def __getattr__(self, name: str) -> Any:
        """Return a section.

        Raises:
            UnknownSectionError: it is not valid.
        """
        try:
            return self.__dict__["_sections"][name]
        except KeyError:
            raise UnknownSectionError(name) from None


def valid_part(model: type[BaseModel], document: Mapping[str, Any]) -> PartialParameters:
    """Return what is valid in a document.

    Args:
        model: of the whole configuration.
        document: in the present form.
    """
    sections = _valid_fields(model, document)
    for name, base in _SINGLE.items():
        if name not in sections and (found := _part_of(base, document.get(name))) is not None:
            sections[name] = found
    if isinstance(written := document.get("data_sources"), Mapping):
        sections["data_sources"] = {str(name): _data_source(each) for name, each in written.items()}
    if isinstance(handlers := document.get("data_handlers"), list):
        parts = (_part_of(HandlerModel, each) for each in handlers)
        sections["data_handlers"] = [each for each in parts if each is not None]
    return PartialParameters(sections)


_SINGLE: Mapping[str, type[Choice]] = {
    "event_source": EventSourceModel,
    "processing_pipeline": ProcessingModel,
    "data_serializer": SerializerModel,
}


def _data_source(written: Any) -> Choice:
    """Return a data source; options that are not valid have their defaults."""
    found = _part_of(DataSourceModel, written)
    fields = type(found).model_fields if found is not None else {}
    lacking = [name for name in fields if name not in found.__dict__]
    if found is None or any(fields[name].is_required() for name in lacking):
        return DataSourceModel.model_construct(type="")
    defaults = {name: fields[name].get_default(call_default_factory=True) for name in lacking}
    return found.model_copy(update=defaults)


def _part_of(base: type[Choice], written: Any) -> Choice | None:
    """Return the model that is named, with those of its fields that are valid."""
    valid, found = _valid(_adapter(base), written)
    if valid:
        return found  # type: ignore[no-any-return]
    try:
        model = base.model_of(written["type"])
    except (KeyError, TypeError, PluginError):
        return None
    fields = _valid_fields(model, written)
    part = model.model_construct(**fields)
    # Who asks for one that is not valid shall not get its default.
    for name in model.model_fields.keys() - fields.keys():
        part.__dict__.pop(name, None)
    return part


def _valid_fields(model: type[BaseModel], written: Mapping[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, info in model.model_fields.items():
        if name in written:
            valid, value = _valid(_adapter(model, name), written[name])
            if valid:
                fields[name] = value
        elif not info.is_required():
            fields[name] = info.get_default(call_default_factory=True)
    return fields


@functools.cache
def _adapter(model: type[BaseModel], field: str = "") -> TypeAdapter[Any]:
    """Return what validates a model, or one of its fields."""
    if not field:
        return TypeAdapter(model)
    info = model.model_fields[field]
    allowed: Any = Annotated[info.annotation, info]
    return TypeAdapter(allowed)


def _valid(adapter: TypeAdapter[Any], written: Any) -> tuple[bool, Any]:
    try:
        return True, adapter.validate_python(written)
    except ValidationError:
        return False, None
