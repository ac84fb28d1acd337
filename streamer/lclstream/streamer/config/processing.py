"""What is done to events and how many make a message: the `processing_pipeline` section."""

from typing import Literal

from pydantic import Field

from lclstream.streamer.config.registry import ProcessingModel, StepModel
from lclstream.streamer.config.steps import PeaknetPreprocessingConfig


class BatchProcessingPipelineConfig(ProcessingModel):
    """Collect events into batches; the last one may be smaller."""

    type: Literal["BatchProcessingPipeline"] = "BatchProcessingPipeline"


class PeaknetPreprocessingPipelineConfig(ProcessingModel):
    """Pad images for the PeakNet neural network, add channels, and batch."""

    type: Literal["PeaknetPreprocessingPipeline"] = "PeaknetPreprocessingPipeline"
    target_height: int = Field(gt=0)
    target_width: int = Field(gt=0)
    pad_style: Literal["center", "bottom-right"] = "center"
    add_channel_dim: bool = True
    num_channels: int = Field(default=1, gt=0)
    """How often the image is repeated along the channel axis."""

    def all_steps(self) -> tuple[StepModel, ...]:
        """Return the one step that does it."""
        options = self.model_dump(exclude={"type", "batch_size"})
        return (PeaknetPreprocessingConfig(**options),)


class ProcessingPipelineConfig(ProcessingModel):
    """Any steps, one after the other, then batches."""

    type: Literal["ProcessingPipeline"] = "ProcessingPipeline"
    steps: list[StepModel] = Field(default_factory=list)
    """What every event goes through, in this order."""

    def all_steps(self) -> tuple[StepModel, ...]:
        """Return the steps."""
        return tuple(self.steps)
