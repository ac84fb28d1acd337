"""What a configuration can say about each part.

Imports neither numpy nor a facility's library: this module is read wherever a configuration is
checked. `implementation` names the class that does the work, which is imported when it runs.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from lclstream.streamer.config.registry import (
    DataSourceModel,
    EventSourceModel,
    Finding,
    HandlerModel,
    SerializerModel,
)
from lclstream.streamer.config.steps import Place, ValueStep

if TYPE_CHECKING:
    from lclstream.streamer.config import Parameters


class NoiseEventSourceConfig(EventSourceModel):
    """Frames of noise from a camera that does not exist."""

    implementation: ClassVar = "my_streamer_parts.event_source:NoiseEventSource"
    type: Literal["NoiseEventSource"] = "NoiseEventSource"
    events: int = Field(default=100, ge=0)
    """Events over all ranks."""
    shape: tuple[int, int] = (4, 6)
    """Rows and columns of a frame."""


class FrameStatisticsConfig(DataSourceModel):
    """Mean and maximum of a frame, as two values: `<name>.mean` and `<name>.maximum`."""

    implementation: ClassVar = "my_streamer_parts.data_source:FrameStatistics"
    type: Literal["FrameStatistics"] = "FrameStatistics"
    detector: str = Field(min_length=1)
    """Name of the detector, as the event source calls it."""
    field: str = "raw"
    """Which of its readings is the frame."""

    def parts(self) -> tuple[str, ...]:
        """Return what its values are called; leave this out for a source of one value."""
        return ("mean", "maximum")

    def readings(self) -> list[tuple[str, str]]:
        """Return (detector, field) of everything that it reads from an event."""
        return [(self.detector, self.field)]


class SubtractPedestalConfig(ValueStep):
    """Subtract a constant from a value."""

    implementation: ClassVar = "my_streamer_parts.step:SubtractPedestal"
    type: Literal["SubtractPedestal"] = "SubtractPedestal"
    input: str
    """Name of the value."""
    pedestal: float = 0.0

    def reads(self) -> Iterator[tuple[Place, str]]:
        """Yield (field that names it, value) of all that must exist in front of this step."""
        yield ("input",), self.input


class JsonSerializerConfig(SerializerModel):
    """Each message is a line of JSON: the values of a batch, as lists."""

    implementation: ClassVar = "my_streamer_parts.serializer:JsonSerializer"
    type: Literal["JsonSerializer"] = "JsonSerializer"
    digits: int = Field(default=6, ge=1, le=17)
    """Significant digits of floating point numbers."""

    def problems(self, parameters: "Parameters") -> Iterator[Finding]:
        """Yield (field, what is wrong, what was written) of what no other part can know."""
        for label in {"rank", "index"} & {*parameters.labels}:
            yield (), f"no value can be called {label!r} here; the message has one", label


class AppendingDataHandlerConfig(HandlerModel):
    """Append all messages of a rank to one file, `<path>.r<rank>`."""

    implementation: ClassVar = "my_streamer_parts.handler:AppendingDataHandler"
    type: Literal["AppendingDataHandler"] = "AppendingDataHandler"
    path: str = Field(min_length=1)
