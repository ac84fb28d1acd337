"""The configuration of the streamer: one strict model that reads the dialects of every version.

Imports nothing but pydantic, so that services can check a request without the libraries that
carry it out.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, get_args

from pydantic import (
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError, core_schema

from lclstream.core.models import StrictModel, parse, read_document
from lclstream.streamer.config.checks import Problem, advice_of, problems_of
from lclstream.streamer.config.dialects import modernise
from lclstream.streamer.config.naming import NamedValues, WireNames
from lclstream.streamer.config.partial import valid_part
from lclstream.streamer.config.registry import (
    DataSourceModel,
    EventSourceModel,
    HandlerModel,
    ProcessingModel,
    SerializerModel,
    StepModel,
)

if TYPE_CHECKING:
    from lclstream.streamer.config.event_sources import (
        Hdf5EventSourceConfig,
        InternalEventSourceConfig,
        Psana1EventSourceConfig,
        Psana2EventSourceConfig,
        SimulatedDetectorEventSourceConfig,
        Xtc2EventSourceConfig,
    )
    from lclstream.streamer.config.handlers import (
        BinaryDataStreamingDataHandlerConfig,
        BinaryFileWritingDataHandlerConfig,
        CrystfelRequestDataHandlerConfig,
    )
    from lclstream.streamer.config.processing import (
        BatchProcessingPipelineConfig,
        PeaknetPreprocessingPipelineConfig,
        ProcessingPipelineConfig,
    )
    from lclstream.streamer.config.serializers import HDF5BinarySerializerConfig
    from lclstream.streamer.config.simplon import SimplonBinarySerializerConfig

__all__ = [
    "BatchProcessingPipelineConfig",
    "BinaryDataStreamingDataHandlerConfig",
    "BinaryFileWritingDataHandlerConfig",
    "CrystfelRequestDataHandlerConfig",
    "DataSourceModel",
    "EventSourceModel",
    "HDF5BinarySerializerConfig",
    "HandlerModel",
    "Hdf5EventSourceConfig",
    "InternalEventSourceConfig",
    "Parameters",
    "PeaknetPreprocessingPipelineConfig",
    "ProcessingModel",
    "ProcessingPipelineConfig",
    "Psana1EventSourceConfig",
    "Psana2EventSourceConfig",
    "SerializerModel",
    "SimplonBinarySerializerConfig",
    "SimulatedDetectorEventSourceConfig",
    "StepModel",
    "Xtc2EventSourceConfig",
    "load_parameters",
    "parse_parameters",
]


# Imported when somebody asks for it: most configurations need few of them.
_MODELS = {
    "event_sources": (
        "Hdf5EventSourceConfig",
        "InternalEventSourceConfig",
        "Psana1EventSourceConfig",
        "Psana2EventSourceConfig",
        "SimulatedDetectorEventSourceConfig",
        "Xtc2EventSourceConfig",
    ),
    "handlers": (
        "BinaryDataStreamingDataHandlerConfig",
        "BinaryFileWritingDataHandlerConfig",
        "CrystfelRequestDataHandlerConfig",
    ),
    "processing": (
        "BatchProcessingPipelineConfig",
        "PeaknetPreprocessingPipelineConfig",
        "ProcessingPipelineConfig",
    ),
    "serializers": ("HDF5BinarySerializerConfig",),
    "simplon": ("SimplonBinarySerializerConfig",),
}
_MODULE_OF = {name: module for module, names in _MODELS.items() for name in names}


def __getattr__(name: str) -> Any:
    """Return one of the models of ours."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


class Parameters(NamedValues, StrictModel):
    """What a streamer reads, what it takes from each event, and where it sends that."""

    source_identifier: str = ""
    """What to read: files, or experiment and run; the event source says how it is written."""
    skip_incomplete_events: bool = False
    """Whether an event that lacks a required reading is dropped (and counted); else it is sent
    with a documented fill value and marked in the validity mask."""
    event_source: EventSourceModel
    data_sources: dict[str, DataSourceModel] = Field(max_length=4096)
    """Name of a value in the messages -> where it comes from."""
    wire_names: WireNames = "own"
    """`own`: values are called as in `data_sources`; `psana`: detectors' as psana does,
    `<psana_name>.<field>`, each field by itself, as the newest LCLStreamer sends them."""
    processing_pipeline: ProcessingModel
    data_serializer: SerializerModel
    data_handlers: list[HandlerModel] = Field(default_factory=list)
    """Every message goes to each of them; none = run and discard."""
    workers: int = Field(default=1, ge=1, le=64)
    """Threads that apply the steps of the processing pipeline; events keep their order."""

    _notices: tuple[str, ...] = PrivateAttr(default=())

    @property
    def notices(self) -> tuple[str, ...]:
        """What was read otherwise than it was written, one sentence each."""
        return self._notices

    @model_validator(mode="wrap")
    @classmethod
    def _any_dialect(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(data, Mapping):
            return handler(data)
        document, notices = modernise(data)
        try:
            parameters = handler(document)
        except ValidationError as error:
            found = [_repeated(each) for each in error.errors(include_url=False)]
            found += map(_as_error, problems_of(valid_part(cls, document)))
        else:
            found = [_as_error(problem) for problem in problems_of(parameters)]
        if found:
            raise ValidationError.from_exception_data(cls.__name__, found)
        parameters._notices = (*notices, *advice_of(parameters))  # noqa: SLF001
        return parameters


def parse_parameters(data: Any, where: str = "streamer configuration") -> Parameters:
    """Check a decoded YAML or JSON document of any dialect.

    Raises:
        InvalidConfigError: names every fault at once.
    """
    return parse(Parameters, data, where)


def load_parameters(path: Path) -> Parameters:
    """Read and check a YAML or JSON file of any dialect.

    Raises:
        InvalidConfigError: names every fault at once.
    """
    return parse_parameters(read_document(path), str(path))


def _as_error(problem: Problem) -> InitErrorDetails:
    return InitErrorDetails(
        type=PydanticCustomError("contradiction", "{text}", {"text": problem.text}),
        loc=problem.location,
        input=problem.value,
    )


def _repeated(detail: ErrorDetails) -> InitErrorDetails:
    """Return an error that was reported once, to be reported again among others."""
    if detail["type"] not in get_args(core_schema.ErrorType):
        text = PydanticCustomError("other", "{text}", {"text": detail["msg"]})
        return InitErrorDetails(type=text, loc=detail["loc"], input=detail["input"])
    return InitErrorDetails(
        type=detail["type"], loc=detail["loc"], input=detail["input"], ctx=detail.get("ctx", {})
    )
