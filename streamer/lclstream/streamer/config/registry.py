"""What a configuration can choose from, section by section, and how third parties add to it.

Every section chooses one of several models by its `type`. Those of ours are in the tables
below; an installed package adds its own by an entry point in the group of the section:

```toml
[project.entry-points."lclstream.streamer.steps"]
Despeckle = "my_package.config:DespeckleConfig"
```

A model names the class that does the work in `implementation`, as `module:Class`; that is
imported only when a configuration asks for it, so that a missing library concerns nobody else.
`docs/how-to/add-to-the-streamer.md` shows a whole package.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from lclstream.streamer.config.choices import Choice, Finding, Section, implementation_of

if TYPE_CHECKING:
    from lclstream.streamer.config import Parameters

__all__ = [
    "SECTIONS",
    "Choice",
    "DataSourceModel",
    "EventSourceModel",
    "Finding",
    "HandlerModel",
    "ProcessingModel",
    "Section",
    "SerializerModel",
    "StepModel",
    "implementation_of",
]

CONFIG = "lclstream.streamer.config"


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
    units: str = ""
    """Of the value, such as `keV`; goes into messages that can hold it."""

    def readings(self) -> list[tuple[str, str]]:
        """Return (name, field) of everything that this reads from an event."""
        return []

    def parts(self) -> tuple[str, ...]:
        """Return what its values are called, when it gives several instead of one.

        Each is sent as `<name of the data source>.<part>`.
        """
        return ()

    def psana_parts(self) -> tuple[tuple[str, str], ...]:
        """Return (name, part) of its values as psana calls them; none: it has no such names."""
        return tuple((part, part) for part in self.parts())

    def part(self, part: str) -> "DataSourceModel":
        """Return the data source that gives one of its parts alone."""
        del part
        return self


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

    def labels_behind(self, data_sources: Mapping[str, DataSourceModel]) -> tuple[str, ...]:
        """Return the names of the values behind all steps, from the configuration alone."""
        labels = tuple(data_sources)
        for step in self.all_steps():
            labels = step.labels_after(labels)
        return labels


class StepModel(Choice):
    """One step of the processing of single events."""

    section: ClassVar = Section(
        "steps",
        "lclstream.streamer.steps",
        {"PeaknetPreprocessing": f"{CONFIG}.peaknet:PeaknetPreprocessingConfig"}
        | {
            name: f"{CONFIG}.{module}:{name}Config"
            for module, names in (
                ("steps", ("DropValues", "Prescale", "RenameValues", "RequireValues",
                           "SelectEvents", "SelectValues")),
                ("pixel_steps", ("Bin", "Crop", "SelectPanels", "SplitPanels", "StackValues")),
                ("number_steps", ("CommonMode", "ConvertType", "MaskPixels", "PhotonCounts",
                                  "Threshold")),
                ("diffraction_steps", ("PeakFinder8", "RadialProfile")),
                ("waveform_steps", ("SpectrumCentroid", "WaveformArrivalTimes",
                                    "WaveformBaseline", "WaveformWindows",
                                    "WindowArrivalTimes")),
            )
            for name in names
        },
    )  # fmt: skip
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
    file_suffixes: ClassVar[tuple[str, ...]] = ()
    """How names of files end that hold such a message, without the dot; none: no matter."""

    section: ClassVar = Section(
        "data_serializer",
        "lclstream.streamer.serializers",
        {
            "HDF5BinarySerializer": f"{CONFIG}.serializers:HDF5BinarySerializerConfig",
            "SimplonBinarySerializer": f"{CONFIG}.simplon:SimplonBinarySerializerConfig",
        }
        | {
            name: f"{CONFIG}.more_serializers:{name}Config"
            for name in (
                "ArrowSerializer",
                "CrystfelMsgpackSerializer",
                "FastBinarySerializer",
                "NumpyBinarySerializer",
            )
        },
    )
    type: str

    def names_in_messages(self, parameters: "Parameters") -> dict[str, str]:
        """Return the values that are sent, and what each is called in the messages."""
        fields = getattr(self, "fields", None) or {label: label for label in parameters.labels}
        return {label: fields[label] for label in parameters.labels if label in fields}


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

    def advice_for_ranks(self, ranks: int) -> Iterator[str]:
        """Yield what several ranks are probably not meant to do with it, one sentence each."""
        del ranks
        return iter(())


SECTIONS: tuple[type[Choice], ...] = (
    EventSourceModel, DataSourceModel, ProcessingModel, StepModel, SerializerModel, HandlerModel,
)  # fmt: skip
