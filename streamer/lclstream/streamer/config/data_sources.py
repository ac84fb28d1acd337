"""What is taken from each event: the models of the `data_sources` section."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from lclstream.streamer.config.registry import DataSourceModel

# What numpy can store in HDF5; `str` is text of a fixed length.
DTYPES = (
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "float16", "float32", "float64", "str",
)  # fmt: skip
DType = Literal[
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "float16", "float32", "float64", "str",
]  # fmt: skip
_DTYPE_ALIASES = {"float": "float64", "int": "int64", "single": "float32", "double": "float64"}


def _as_dtype(value: Any) -> Any:
    return _DTYPE_ALIASES.get(value, value) if isinstance(value, str) else value


def _as_shape(value: Any) -> Any:
    """Turn `"512, 512"`, 512 and [512, 512] into a sequence."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return [value] if isinstance(value, int) else value


class GenericRandomNumpyArrayConfig(DataSourceModel):
    """Random numbers: integers 0..254, floats in [0, 1)."""

    type: Literal["GenericRandomNumpyArray"] = "GenericRandomNumpyArray"
    array_shape: tuple[Annotated[int, Field(ge=1)], ...]
    """One number, a list, or text such as `512, 512`."""
    array_dtype: DType
    always_random: bool = True
    """Whether each event gets new numbers; false repeats the first array, which costs nothing."""

    _shape = field_validator("array_shape", mode="before")(_as_shape)
    _dtype = field_validator("array_dtype", mode="before")(_as_dtype)

    @field_validator("array_dtype")
    @classmethod
    def _numeric(cls, value: str) -> str:
        if value in ("str", "bool"):
            raise ValueError("must be an integer or floating point dtype")
        return value


class FloatValueConfig(DataSourceModel):
    """The same float64 in every event."""

    type: Literal["FloatValue"] = "FloatValue"
    value: float


class IntValueConfig(DataSourceModel):
    """The same int64 in every event."""

    type: Literal["IntValue"] = "IntValue"
    value: int


class ConstValueConfig(DataSourceModel):
    """The same number or list of numbers in every event."""

    type: Literal["ConstValue"] = "ConstValue"
    value: int | float | list[Any]
    """A number, a list (nested for more dimensions), or text such as `6,1`."""
    dtype: DType
    """The value must fit without loss."""

    _dtype = field_validator("dtype", mode="before")(_as_dtype)

    @field_validator("value", mode="before")
    @classmethod
    def _numbers(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        numbers = [float(part) if _is_float(part) else int(part) for part in value.split(",")]
        return numbers if len(numbers) > 1 else numbers[0]


def _is_float(text: str) -> bool:
    return any(letter in text.lower() for letter in ".enif")


class SourceIdentifierConfig(DataSourceModel):
    """The configuration's own `source_identifier`, as text."""

    type: Literal["SourceIdentifier"] = "SourceIdentifier"


class EventValueConfig(DataSourceModel):
    """One reading of an event, by the name that the event source gives it."""

    type: Literal["EventValue"] = "EventValue"
    name: str = Field(min_length=1)
    """Detector, process variable or dataset path."""
    field: str = ""
    """Dotted path below a detector, e.g. `raw.calib`."""
    dtype: DType | None = None
    """Convert to this; without it the reading keeps its own."""

    _dtype = field_validator("dtype", mode="before")(_as_dtype)

    def readings(self) -> list[tuple[str, str]]:
        """Return the one that it is."""
        return [(self.name, self.field)]


class Psana1TimestampConfig(DataSourceModel):
    """When the event happened, as uint64: seconds << 32 | nanoseconds."""

    type: Literal["Psana1Timestamp"] = "Psana1Timestamp"
    dtype: Literal["uint64", "float64"] = "uint64"
    """float64 rounds to steps of 1024 and is here only for old readers."""


class Psana2TimestampConfig(DataSourceModel):
    """When the event happened, as uint64: seconds << 32 | nanoseconds."""

    type: Literal["Psana2Timestamp"] = "Psana2Timestamp"
    dtype: Literal["uint64", "float64"] = "uint64"
    """float64 rounds to steps of 1024 and is here only for old readers."""


class DetectorInterface(DataSourceModel):
    """Fields of a detector, or a process variable."""

    psana_name: str = Field(min_length=1)
    """Detector, or process variable (with `:` in its name)."""
    psana_fields: str | list[str] | None = None
    """Dotted path or list of paths, e.g. `raw.calib`; several are stacked along a new axis."""
    dtype: DType | None = None
    """Convert to this; without it the reading keeps its own."""

    _dtype = field_validator("dtype", mode="before")(_as_dtype)

    @model_validator(mode="after")
    def _fields_unless_variable(self) -> "DetectorInterface":
        if not self.psana_fields and not self._has_no_fields():
            raise ValueError(
                "psana_fields is required unless psana_name is a process variable or dataset path"
            )
        return self

    def _has_no_fields(self) -> bool:
        return ":" in self.psana_name or self.psana_name.startswith("/")

    @property
    def fields(self) -> tuple[str, ...]:
        """The paths that are read; one empty path for a process variable."""
        if isinstance(self.psana_fields, str):
            return (self.psana_fields,)
        return tuple(self.psana_fields or ("",))

    def readings(self) -> list[tuple[str, str]]:
        """Return every field."""
        return [(self.psana_name, field) for field in self.fields]


class Psana1DetectorInterfaceConfig(DetectorInterface):
    """Fields of a detector of the LCLS-I kind, or a process variable."""

    type: Literal["Psana1DetectorInterface"] = "Psana1DetectorInterface"


class Psana2DetectorInterfaceConfig(DetectorInterface):
    """Fields of a detector, or a process variable, of psana2 and of all our own sources."""

    type: Literal["Psana2DetectorInterface"] = "Psana2DetectorInterface"


class Psana2RunInfoConfig(DataSourceModel):
    """Text of [experiment, time stamp of the run, run number, source identifier]."""

    type: Literal["Psana2RunInfo"] = "Psana2RunInfo"


class Psana1Function(DataSourceModel):
    """What one function of a detector returns, through psana1."""

    field: ClassVar[str]
    """Its path below the detector."""
    dtype: ClassVar[str | None] = "float64"

    psana_name: str = Field(min_length=1)
    """The detector."""

    def readings(self) -> list[tuple[str, str]]:
        """Return the one that it is."""
        return [(self.psana_name, self.field)]


class Psana1BbmonDetectorTotalIntensityConfig(Psana1Function):
    """Total intensity of a beam monitor, through psana1."""

    field: ClassVar = "get.TotalIntensity"

    type: Literal["Psana1BbmonDetectorTotalIntensity"] = "Psana1BbmonDetectorTotalIntensity"


class Psana1IpmDetectorConfig(Psana1Function):
    """Channels of an intensity and position monitor, through psana1."""

    field: ClassVar = "channel"

    type: Literal["Psana1IpmDetector"] = "Psana1IpmDetector"
    psana_function: Literal["channel"] = "channel"


class Psana1EvrCodesConfig(Psana1Function):
    """Event codes padded with zeros to 256, through psana1."""

    field: ClassVar = "eventCodes"
    dtype: ClassVar = None

    type: Literal["Psana1EvrCodes"] = "Psana1EvrCodes"


class Psana1UsdUsbDetectorConfig(Psana1Function):
    """Values of a USB encoder, through psana1."""

    field: ClassVar = "values"

    type: Literal["Psana1UsdUsbDetector"] = "Psana1UsdUsbDetector"
    psana_function: Literal["values"] = "values"


def wanted_readings(sources: Mapping[str, DataSourceModel]) -> list[tuple[str, str]]:
    """Return (name, field) of everything that data sources read from an event."""
    return [reading for source in sources.values() for reading in source.readings()]
