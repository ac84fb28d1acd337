"""What is done to events and how many make a message: the `processing_pipeline` section."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from lclstream.streamer.config.known import Known, known_of
from lclstream.streamer.config.peaknet import PeaknetOptions, PeaknetPreprocessingConfig
from lclstream.streamer.config.registry import (
    DataSourceModel,
    Finding,
    ProcessingModel,
    StepModel,
)
from lclstream.streamer.config.steps import ValueStep

if TYPE_CHECKING:
    from lclstream.streamer.config import Parameters


class StepsPipeline(ProcessingModel):
    """A pipeline whose steps are checked one behind the other."""

    def labels_behind(self, data_sources: Mapping[str, DataSourceModel]) -> tuple[str, ...]:
        """Return the names of the values behind all steps."""
        return tuple(self.known_behind(data_sources))

    def known_behind(self, data_sources: Mapping[str, DataSourceModel]) -> dict[str, Known]:
        """Return what is known about the values behind all steps."""
        known = _known(data_sources)
        for step in self.all_steps():
            known = _known_after(step, known)
        return known

    def problems(self, parameters: "Parameters") -> Iterator[Finding]:
        """Yield what is wrong with each step behind those in front of it."""
        known = _known(parameters.sources_by_label)
        for number, step in enumerate(self.all_steps()):
            if isinstance(step, ValueStep):
                for place, text, value in step.faults(known):
                    yield (*self._place_of_step(number), *place), text, value
            known = _known_after(step, known)
        if not known:
            yield (), "no value is left behind the steps", []

    def _place_of_step(self, number: int) -> tuple[str | int, ...]:
        """Return where a person wrote a step."""
        del number
        return ()


class BatchProcessingPipelineConfig(StepsPipeline):
    """Collect events into batches; the last one may be smaller."""

    type: Literal["BatchProcessingPipeline"] = "BatchProcessingPipeline"


class PeaknetPreprocessingPipelineConfig(StepsPipeline, PeaknetOptions):
    """Pad images for the PeakNet neural network, add channels, and batch."""

    type: Literal["PeaknetPreprocessingPipeline"] = "PeaknetPreprocessingPipeline"

    def all_steps(self) -> tuple[StepModel, ...]:
        """Return the one step that does it."""
        options = self.model_dump(exclude={"type", "batch_size"})
        return (PeaknetPreprocessingConfig(**options),)


class ProcessingPipelineConfig(StepsPipeline):
    """Any steps, one after the other, then batches."""

    type: Literal["ProcessingPipeline"] = "ProcessingPipeline"
    steps: list[StepModel] = Field(default_factory=list)
    """What every event goes through, in this order."""

    def all_steps(self) -> tuple[StepModel, ...]:
        """Return the steps."""
        return tuple(self.steps)

    def _place_of_step(self, number: int) -> tuple[str | int, ...]:
        return ("steps", number)


def _known(data_sources: Mapping[str, DataSourceModel]) -> dict[str, Known]:
    return {label: known_of(source) for label, source in data_sources.items()}


def _known_after(step: StepModel, known: dict[str, Known]) -> dict[str, Known]:
    if isinstance(step, ValueStep):
        return step.known_after(known)
    # A step that others added says how values are called, but not what it makes of them.
    return {label: Known() for label in step.labels_after(tuple(known))}
