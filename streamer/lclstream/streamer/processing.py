"""What is done to the values of an event before they join a batch."""

from collections.abc import Mapping
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from lclstream.streamer.config import (
    BatchProcessingPipelineConfig,
    PeaknetPreprocessingPipelineConfig,
    ProcessingPipelineConfig,
)

Array = npt.NDArray[np.generic]
Values: TypeAlias = Mapping[str, Array | None]


class Processing(Protocol):
    """Changes the values of single events; batching comes after it."""

    batch_size: int

    def apply(self, values: Values) -> Values:
        """Return what is sent instead of the values of an event."""
        ...

    def transform(self, value: Array) -> Array:
        """Return what is sent instead of one value."""
        ...


class BatchOnly:
    """Sends the values as they are."""

    def __init__(self, config: BatchProcessingPipelineConfig) -> None:
        self.batch_size = config.batch_size

    def apply(self, values: Values) -> Values:
        """Return the values."""
        return values

    def transform(self, value: Array) -> Array:
        """Return the value."""
        return value


class PeaknetPreprocessing:
    """Pads every image (2-D value) with zeros and repeats it along a channel axis.

    An image that is larger than the target keeps its size; stacks of panels pass unchanged.
    """

    def __init__(self, config: PeaknetPreprocessingPipelineConfig) -> None:
        self.batch_size = config.batch_size
        self._config = config

    def apply(self, values: Values) -> Values:
        """Return the values, images padded and with channels."""
        return {
            name: None if value is None else self.transform(value) for name, value in values.items()
        }

    def transform(self, value: Array) -> Array:
        """Return an image padded and with channels, anything else as it is."""
        if value.ndim != 2:
            return value
        down = max(self._config.target_height - value.shape[0], 0)
        across = max(self._config.target_width - value.shape[1], 0)
        centred = self._config.pad_style == "center"
        before = (down // 2, across // 2) if centred else (0, 0)
        padded = np.pad(value, ((before[0], down - before[0]), (before[1], across - before[1])))
        if not self._config.add_channel_dim:
            return padded
        return np.broadcast_to(padded, (self._config.num_channels, *padded.shape))


def open_processing(config: ProcessingPipelineConfig) -> Processing:
    """Return the processing that a configuration names."""
    if isinstance(config, PeaknetPreprocessingPipelineConfig):
        return PeaknetPreprocessing(config)
    return BatchOnly(config)
