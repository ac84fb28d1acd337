"""What a configuration can choose from, section by section, and how third parties add to it.

Every section chooses one of several models by its `type`. Those of ours are in the tables
below; an installed package adds its own by an entry point in the group of the section:

```toml
[project.entry-points."lclstream.streamer.steps"]
Despeckle = "my_package.config:DespeckleConfig"
```

A model names the class that does the work in `implementation`, as `module:Class`; that is
imported only when a configuration asks for it, so that a missing library concerns nobody else.
"""

import functools
import importlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    create_model,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from lclstream.core.errors import InvalidConfigError
from lclstream.core.models import StrictModel

if TYPE_CHECKING:
    from lclstream.streamer.config import Parameters

logger = logging.getLogger(__name__)

CONFIG = "lclstream.streamer.config"

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
    def models(self) -> Mapping[str, type["Choice"]]:
        """Type -> model, in alphabetical order; those of third parties included."""
        found = {name: _load(place) for name, place in self.own.items()}
        for entry in entry_points(group=self.group):
            if entry.name in found:
                logger.warning("plugin_ignored", extra={"type": entry.name, "from": entry.value})
            else:
                found[entry.name] = _third_party(entry)
        return dict(sorted(found.items()))


class Choice(StrictModel):
    """Base of the models of one section; as a field's type it means any of them."""

    # The models of a section are known when the last of them is imported.
    model_config = ConfigDict(defer_build=True)

    section: ClassVar[Section]
    implementation: ClassVar[str] = ""
    """`module:Class` of what is configured."""

    @classmethod
    def choices(cls) -> Mapping[str, type["Choice"]]:
        """Return the models that a field of this type can hold; none when it is one of them."""
        return cls.section.models if "section" in cls.__dict__ else {}

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: type[BaseModel], handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Return the schema of the union, or that of one of its members."""
        models = cls.choices()
        if not models:
            return handler(source)
        members = {name: handler.generate_schema(model) for name, model in models.items()}
        return core_schema.tagged_union_schema(members, discriminator="type")

    def problems(self, parameters: "Parameters") -> Iterator[Finding]:
        """Yield what contradicts the rest of a configuration whose fields are all valid."""
        del parameters
        return iter(())


class EventSourceModel(Choice):
    """Where events come from."""

    section: ClassVar = Section(
        "event_source",
        "lclstream.streamer.event_sources",
        {
            name: f"{CONFIG}.event_sources:{name}Config"
            for name in (
                "Hdf5EventSource",
                "InternalEventSource",
                "Psana1EventSource",
                "Psana2EventSource",
                "SimulatedDetectorEventSource",
                "Xtc2EventSource",
            )
        }
        | {
            name: f"{CONFIG}.more_sources:{name}Config"
            for name in ("FolderEventSource", "SimplonEventSource")
        },
    )
    type: str


class DataSourceModel(Choice):
    """One value that is taken from each event."""

    section: ClassVar = Section(
        "data_sources",
        "lclstream.streamer.data_sources",
        {
            name: f"{CONFIG}.data_sources:{name}Config"
            for name in (
                "ConstValue",
                "EventValue",
                "FloatValue",
                "GenericRandomNumpyArray",
                "IntValue",
                "Psana1BbmonDetectorTotalIntensity",
                "Psana1DetectorInterface",
                "Psana1EvrCodes",
                "Psana1IpmDetector",
                "Psana1Timestamp",
                "Psana1UsdUsbDetector",
                "Psana2DetectorInterface",
                "Psana2RunInfo",
                "Psana2Timestamp",
                "SourceIdentifier",
            )
        },
    )
    type: str
    required: bool = True
    """Whether an event without this reading is incomplete (see `skip_incomplete_events`)."""

    def readings(self) -> list[tuple[str, str]]:
        """Return (name, field) of everything that this reads from an event."""
        return []


class ProcessingModel(Choice):
    """What happens to the events before they become messages."""

    section: ClassVar = Section(
        "processing_pipeline",
        "lclstream.streamer.processing",
        {
            name: f"{CONFIG}.processing:{name}Config"
            for name in (
                "BatchProcessingPipeline",
                "PeaknetPreprocessingPipeline",
                "ProcessingPipeline",
            )
        },
    )
    type: str
    batch_size: int = Field(gt=0)
    """Events in one message."""

    def all_steps(self) -> "tuple[StepModel, ...]":
        """Return the steps that every event goes through, in order."""
        return ()


class StepModel(Choice):
    """One step of the processing of single events."""

    section: ClassVar = Section("steps", "lclstream.streamer.steps", {
        "PeaknetPreprocessing": f"{CONFIG}.steps:PeaknetPreprocessingConfig",
    })  # fmt: skip
    type: str

    def labels_after(self, labels: tuple[str, ...]) -> tuple[str, ...]:
        """Return the names of the values behind this step, from the configuration alone.

        Args:
            labels: the names of the values in front of it.
        """
        return labels


class SerializerModel(Choice):
    """How a batch of events becomes a message."""

    event_wise: ClassVar[bool] = False
    """Whether each message holds one event, whatever the batch size."""

    section: ClassVar = Section(
        "data_serializer",
        "lclstream.streamer.serializers",
        {
            name: f"{CONFIG}.serializers:{name}Config"
            for name in ("HDF5BinarySerializer", "SimplonBinarySerializer")
        }
        | {
            name: f"{CONFIG}.more_serializers:{name}Config"
            for name in (
                "ArrowSerializer",
                "FastBinarySerializer",
                "NumpyBinarySerializer",
            )
        },
    )
    type: str


class HandlerModel(Choice):
    """Where messages go."""

    section: ClassVar = Section(
        "data_handlers",
        "lclstream.streamer.handlers",
        {
            name: f"{CONFIG}.handlers:{name}Config"
            for name in (
                "BinaryDataStreamingDataHandler",
                "BinaryFileWritingDataHandler",
                "CrystfelRequestDataHandler",
            )
        },
    )
    type: str


SECTIONS: tuple[type[Choice], ...] = (
    EventSourceModel, DataSourceModel, ProcessingModel, StepModel, SerializerModel, HandlerModel,
)  # fmt: skip

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
    try:
        found = getattr(importlib.import_module(module), name)
    except ImportError as error:
        missing = f"{error.name} is not installed" if error.name else str(error)
        raise InvalidConfigError(f"{type_name} cannot be used: {missing}") from None
    return cast("type[Kind]", found)


def _load(place: str) -> type[Choice]:
    module, _, name = place.partition(":")
    return cast("type[Choice]", getattr(importlib.import_module(module), name))


def _third_party(entry: EntryPoint) -> type[Choice]:
    """Return the model of an entry point, or one that says why there is none.

    A package that cannot be loaded must not hinder those who do not use it.
    """
    try:
        model = entry.load()
    except Exception as error:
        return _unusable(entry, f"cannot be loaded: {type(error).__name__}: {error}")
    if not (isinstance(model, type) and issubclass(model, Choice)):
        return _unusable(entry, "is not a model of lclstream.streamer.config.registry")
    return model


def _unusable(entry: EntryPoint, reason: str) -> type[Choice]:
    def refuse(data: Any) -> Any:
        del data
        raise ValueError(f"the plugin {entry.name!r} ({entry.value}) {reason}")

    fields: dict[str, Any] = {"type": (Literal[entry.name], entry.name)}
    refusal: Any = model_validator(mode="before")(refuse)
    return create_model(
        entry.name,
        __base__=Choice,
        __doc__=f"Unusable: {reason}",
        __validators__={"refuse": refusal},
        **fields,
    )
