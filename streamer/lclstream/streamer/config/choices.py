"""How a configuration chooses one of several models by its `type`, and finds what it configures.

`registry.py` has the sections of a configuration and the tables of the models that they offer.
A model is imported and built when a configuration names its type, or when all are asked for:
there are many, and a run needs six.
"""

import contextlib
import contextvars
import functools
import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from lclstream.core.errors import InvalidConfigError
from lclstream.core.models import StrictModel
from lclstream.streamer.config.plugins import Plugin, PluginError, plugins_in

if TYPE_CHECKING:
    from lclstream.streamer.config import Parameters

Finding = tuple[tuple[str | int, ...], str, Any]
"""Where a contradiction is, below the section; what is wrong; what was written there."""


@dataclass(frozen=True)
class Section:
    """A part of the configuration that chooses among models."""

    name: str
    """As people call it: the name of the part, where it has one."""
    group: str
    """Of the entry points that add models."""
    own: Mapping[str, str]
    """Type -> `module:Model` of ours."""

    @functools.cached_property
    def plugins(self) -> Mapping[str, Plugin]:
        """Type -> what installed packages offer, in alphabetical order; nothing is loaded."""
        return plugins_in(self.group, self.own)

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """Every type that can be named, in alphabetical order."""
        return tuple(sorted({*self.own, *self.plugins}))


class Choice(StrictModel):
    """Base of the models of one section; as a field's type it means any of them."""

    # The models of a section are known when the last of them is imported.
    model_config = ConfigDict(defer_build=True)

    section: ClassVar[Section]
    implementation: ClassVar[str] = ""
    """`module:Class` of what is configured."""

    @classmethod
    def choices(cls) -> Mapping[str, type["Choice"]]:
        """Return the models that a field of this type can hold, in alphabetical order.

        Loads all of them, those of installed packages included, and leaves out what cannot be
        used. A model that is itself one of them has none.
        """
        if "section" not in cls.__dict__:
            return {}
        models: dict[str, type[Choice]] = {}
        for name in cls.section.names:
            if name in cls.section.own or not _own_only.get():
                with contextlib.suppress(PluginError):
                    models[name] = cls.model_of(name)
        return models

    @classmethod
    def tags(cls) -> tuple[str, ...]:
        """Return every type that a field of this type can name, also what cannot be used."""
        return cls.section.names if "section" in cls.__dict__ else ()

    @classmethod
    def model_of(cls, name: str) -> type["Choice"]:
        """Return the model of one type of this section, ours or that of a package.

        Raises:
            PluginError: the package's cannot be used; says why.
        """
        if name in cls.section.own:
            module, _, model = cls.section.own[name].partition(":")
            found = getattr(importlib.import_module(module), model)
        else:
            found = cls.section.plugins[name].load(cls)
        return cast("type[Choice]", found)

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: type[BaseModel], handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Return the schema of the union, whose members are loaded when one is chosen."""
        if "section" not in cls.__dict__:
            return handler(source)
        members: dict[Any, CoreSchema] = {
            name: core_schema.no_info_plain_validator_function(
                functools.partial(_validated, cls, name)
            )
            for name in cls.section.names
        }
        return core_schema.tagged_union_schema(members, discriminator="type")

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Return the JSON schema of the union, for which all members are loaded."""
        if schema["type"] != "tagged-union":
            return handler(schema)
        members: dict[Any, CoreSchema] = {
            name: _referred_to(model) for name, model in cls.choices().items()
        }
        return handler(core_schema.tagged_union_schema(members, discriminator="type"))

    def problems(self, parameters: "Parameters") -> Iterator[Finding]:
        """Yield what contradicts the rest of a configuration whose fields are all valid.

        When some section is not valid, the check is tried all the same, so that all mistakes are
        named at once; it ends by itself when it asks for that section.
        """
        del parameters
        return iter(())

    def advice(self, parameters: "Parameters") -> Iterator[str]:
        """Yield what is allowed and yet probably not meant, one sentence each."""
        del parameters
        return iter(())


Kind = TypeVar("Kind")


def implementation_of(config: Choice, kind: type[Kind]) -> type[Kind]:
    """Return the class that does what a model configures.

    Args:
        config: one choice of a configuration.
        kind: what the class is made to; for the type checker.

    Raises:
        InvalidConfigError: it cannot be imported; says which library is missing.
    """
    del kind
    type_name = getattr(config, "type", type(config).__name__)
    module, _, name = config.implementation.partition(":")
    if not (module and name):
        raise InvalidConfigError(f"{type_name} cannot be used: its model names no implementation")
    try:
        found = getattr(importlib.import_module(module), name)
    except ImportError as error:
        missing = f"{error.name} is not installed" if error.name else str(error)
        raise InvalidConfigError(f"{type_name} cannot be used: {missing}") from error
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise InvalidConfigError(f"{type_name} cannot be used: {reason}") from error
    return cast("type[Kind]", found)


@contextlib.contextmanager
def own_types_only() -> Iterator[None]:
    """Within it, `choices` and JSON schemas know nothing of installed packages."""
    token = _own_only.set(True)
    try:
        yield
    finally:
        _own_only.reset(token)


_own_only = contextvars.ContextVar("_own_only", default=False)


def _validated(base: type[Choice], name: str, data: Any) -> Choice:
    """Return the model of a plugin, which is loaded only now."""
    try:
        return base.model_of(name).model_validate(data)
    except (ValueError, AssertionError):
        # What validation is told this way, it reports with the field.
        raise
    except PluginError as error:
        reason = str(error)
    except Exception as error:
        reason = f"failed to check its fields: {type(error).__name__}: {error}"
    context = {"name": name, "reason": reason}
    raise PydanticCustomError("plugin", "the plugin '{name}' {reason}", context)


def _referred_to(model: type[BaseModel]) -> CoreSchema:
    """Return the schema of a model under a name, so that a JSON schema has it only once."""
    model.model_rebuild()
    schema: Any = model.__pydantic_core_schema__
    return {**schema, "ref": f"{model.__module__}.{model.__qualname__}:{id(model)}"}
