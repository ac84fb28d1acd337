"""The configuration of the streamer: one strict model that reads the dialects of every version.

Imports nothing but pydantic, so that services can check a request without the libraries that
carry it out.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import (
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from lclstream.core.models import StrictModel, parse, read_document
from lclstream.streamer.config.checks import Problem, contradictions_of, problems_of
from lclstream.streamer.config.dialects import modernise
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
from lclstream.streamer.config.registry import (
    DataSourceModel,
    EventSourceModel,
    HandlerModel,
    ProcessingModel,
    SerializerModel,
    StepModel,
)
from lclstream.streamer.config.serializers import (
    HDF5BinarySerializerConfig,
    SimplonBinarySerializerConfig,
)

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


class Parameters(StrictModel):
    """What a streamer reads, what it takes from each event, and where it sends that."""

    source_identifier: str = ""
    """What to read: files, or experiment and run; the event source says how it is written."""
    skip_incomplete_events: bool = False
    """Whether an event that lacks a required reading is dropped (and counted); else it is sent
    with a documented fill value and marked in the validity mask."""
    event_source: EventSourceModel
    data_sources: dict[str, DataSourceModel]
    """Name of a value in the messages -> where it comes from."""
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

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the values that reach the serializer, in order."""
        return self.processing_pipeline.labels_behind(self.data_sources)

    @model_validator(mode="wrap")
    @classmethod
    def _any_dialect(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(data, Mapping):
            return handler(data)
        document, notices = modernise(data)
        problems = [_as_error(problem) for problem in problems_of(document)]
        try:
            parameters = handler(document)
        except ValidationError as error:
            problems = [_repeated(each) for each in error.errors(include_url=False)] + problems
        else:
            problems += [_as_error(problem) for problem in contradictions_of(parameters)]
        if problems:
            raise ValidationError.from_exception_data(cls.__name__, problems)
        parameters._notices = (*notices, *_advice(parameters))  # noqa: SLF001
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
    return InitErrorDetails(
        type=detail["type"], loc=detail["loc"], input=detail["input"], ctx=detail.get("ctx", {})
    )


def _advice(parameters: Parameters) -> list[str]:
    """Return what is allowed and yet probably not meant."""
    advice = []
    serializer = parameters.data_serializer
    if isinstance(serializer, HDF5BinarySerializerConfig):
        if serializer.compression == "zfp":
            advice.append("zfp loses precision and may enlarge noisy frames")
        if serializer.layout == "fields" and serializer.fields:
            left = [name for name in parameters.data_sources if name not in serializer.fields]
            advice += [f"data source {name!r} is not in fields and is not sent" for name in left]
    return advice
