"""What can be done to single events: the models of the `steps` of a pipeline."""

from typing import ClassVar, Literal

from pydantic import Field

from lclstream.streamer.config.registry import StepModel


class PeaknetPreprocessingConfig(StepModel):
    """Pad images for the PeakNet neural network, and add channels."""

    implementation: ClassVar = "lclstream.streamer.steps.peaknet:PeaknetPreprocessing"
    type: Literal["PeaknetPreprocessing"] = "PeaknetPreprocessing"
    target_height: int = Field(gt=0)
    target_width: int = Field(gt=0)
    pad_style: Literal["center", "bottom-right"] = "center"
    add_channel_dim: bool = True
    num_channels: int = Field(default=1, gt=0)
    """How often the image is repeated along the channel axis."""
