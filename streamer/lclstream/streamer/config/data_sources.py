"""What is taken from each event: the models of the `data_sources` section."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from lclstream.streamer.config.numbers import fits, numbers_in, shape_of
from lclstream.streamer.config.registry import DataSourceModel

# What numpy can store in HDF5; `str` is text of a fixed length.
DType = Literal[
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "float16", "float32", "float64", "str",
]  # fmt: skip
# Other names that numpy has for them; byte orders too, for data are sent as they come.
_DTYPE_ALIASES = {
    "float": "float64", "double": "float64", "single": "float32", "half": "float16",
    "int": "int64", "uint": "uint64", "byte": "int8", "ubyte": "uint8", "short": "int16",
    "ushort": "uint16", "bool_": "bool", "b1": "bool", "?": "bool", "str_": "str",
    "unicode": "str", "U": "str",
} | {
    f"{letter}{bits // 8}": f"{name}{bits}"
    for letter, name, sizes in (
        ("i", "int", (8, 16, 32, 64)), ("u", "uint", (8, 16, 32, 64)), ("f", "float", (16, 32, 64))
    )
    for bits in sizes
}  # fmt: skip


def _as_dtype(value: Any) -> Any:
    """Turn what numpy understands, such as `<f4` and `numpy.float32`, into our names."""
    if not isinstance(value, str):
        return value
    name = value.strip().removeprefix("numpy.").removeprefix("np.").lstrip("<=|")
    return _DTYPE_ALIASES.get(name, name)


DTypeOrAlias = Annotated[DType, BeforeValidator(_as_dtype, json_schema_input_type=DType | str)]
"""A dtype by our name or any that numpy has for it."""


def _as_shape(value: Any) -> Any:
    """Turn `"512, 512"`, 512 and [512, 512] into a sequence."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return [value] if isinstance(value, int) else value


# One array of the largest shape has as many bytes as a message may have.
MAX_ELEMENTS = 1 << 32


class GenericRandomNumpyArrayConfig(DataSourceModel):
    """Random numbers: integers 0..254, floats in [0, 1)."""

    type: Literal["GenericRandomNumpyArray"] = "GenericRandomNumpyArray"
    array_shape: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...],
        BeforeValidator(_as_shape, json_schema_input_type=int | str | list[int]),
    ]
    """One number, a list, or text such as `512, 512`."""
    array_dtype: DTypeOrAlias
    always_random: bool = True
    """Whether each event gets new numbers; false repeats the first array, which costs nothing."""

    @field_validator("array_shape")
    @classmethod
    def _fits_into_memory(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if math.prod(value) > MAX_ELEMENTS:
            raise ValueError(f"must have at most {MAX_ELEMENTS} elements")
        return value

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
    value: int = Field(ge=-(1 << 63), lt=1 << 63)


def _as_numbers(value: Any) -> Any:
    """Turn `"6, 1"` into [6, 1], and `"6,"` into 6, as LCLStreamer does."""
    if not isinstance(value, str):
        return value
    parts = [part.strip() for part in value.split(",") if part.strip()]
    try:
        numbers = [int(part) if part.lstrip("+-").isdigit() else float(part) for part in parts]
    except ValueError:
        raise ValueError("must be numbers, separated by commas") from None
    return numbers[0] if len(numbers) == 1 else numbers


class ConstValueConfig(DataSourceModel):
    """The same number or list of numbers in every event."""

    type: Literal["ConstValue"] = "ConstValue"
    value: Annotated[
        int | float | list[Any],
        BeforeValidator(_as_numbers, json_schema_input_type=int | float | str | list[Any]),
    ]
    """A number, a list (nested for more dimensions), or text such as `6,1`."""
    dtype: DTypeOrAlias
    """The value must fit without loss."""

    @field_validator("value")
    @classmethod
    def _regular(cls, value: int | float | list[Any]) -> int | float | list[Any]:
        shape_of(value)
        return value

    @model_validator(mode="after")
    def _without_loss(self) -> Self:
        for number in numbers_in(self.value):
            if not fits(number, self.dtype):
                raise ValueError(f"{number!r} does not fit into {self.dtype}")
        return self


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
    dtype: DTypeOrAlias | None = None
    """Convert to this; without it the reading keeps its own."""

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
    """Dotted path or list of paths, e.g. `raw.calib`; several are stacked along a new axis. Empty
    text is the detector itself, such as a process variable without `:` in its name."""
    separate_fields: bool = False
    """Whether every field is a value of its own, `<name>.<field>`, of its own shape and dtype."""
    dtype: DTypeOrAlias | None = None
    """Convert to this; without it the reading keeps its own."""

    @model_validator(mode="after")
    def _fields_unless_variable(self) -> Self:
        if self.psana_fields in (None, []) and not self._has_no_fields():
            raise ValueError(
                "psana_fields is required unless psana_name is a process variable or dataset path"
            )
        if len(set(self.fields)) < len(self.fields):
            raise ValueError("psana_fields names a field twice")
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

    def parts(self) -> tuple[str, ...]:
        """Return the fields, if each is a value of its own."""
        return self.fields if self.separate_fields and any(self.fields) else ()

    def psana_parts(self) -> tuple[tuple[str, str], ...]:
        """Return every field with the name of its detector in front of it."""
        return tuple((".".join(filter(None, (self.psana_name, f))), f) for f in self.fields)

    def part(self, part: str) -> Self:
        """Return the data source of one field."""
        return self.model_copy(update={"psana_fields": part, "separate_fields": False})


class Psana1DetectorInterfaceConfig(DetectorInterface):
    """Fields of a detector of the LCLS-I kind, or a process variable."""

    type: Literal["Psana1DetectorInterface"] = "Psana1DetectorInterface"


class Psana2DetectorInterfaceConfig(DetectorInterface):
    """Fields of a detector, or a process variable, of psana2 and of all our own sources."""

    type: Literal["Psana2DetectorInterface"] = "Psana2DetectorInterface"


RUN_INFO = ("experiment", "run_timestamp", "run_number", "source_identifier")


class Psana2RunInfoConfig(DataSourceModel):
    """Text of [experiment, time stamp of the run, run number, source identifier]."""

    type: Literal["Psana2RunInfo"] = "Psana2RunInfo"
    separate_fields: bool = False
    """Whether each is a value of its own: `<name>.experiment`, `.run_timestamp`, `.run_number`,
    `.source_identifier`."""

    def parts(self) -> tuple[str, ...]:
        """Return what each is called, if they are values of their own."""
        return RUN_INFO if self.separate_fields else ()

    def psana_parts(self) -> tuple[tuple[str, str], ...]:
        """Return what each is called."""
        return tuple((each, each) for each in RUN_INFO)

    def part(self, part: str) -> "Psana2RunInfoConfig":
        """Return the same, as one text."""
        del part
        return self.model_copy(update={"separate_fields": True})


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
