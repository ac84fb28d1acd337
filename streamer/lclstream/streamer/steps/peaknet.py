"""Images as the PeakNet neural network takes them."""

import numpy as np

from lclstream.streamer.config import Parameters
from lclstream.streamer.config.steps import PeaknetPreprocessingConfig
from lclstream.streamer.events import Event
from lclstream.streamer.values import Reading, Values


class PeaknetPreprocessing:
    """Pads every image (2-D value) with zeros and repeats it along a channel axis.

    An image that is larger than the target keeps its size; stacks of panels pass unchanged.
    """

    def __init__(self, config: PeaknetPreprocessingConfig, parameters: Parameters) -> None:
        del parameters
        self._config = config

    def apply(self, event: Event, values: Values) -> Values:
        """Return the values, images padded and with channels."""
        del event
        return {name: self._padded(value) for name, value in values.items()}

    def _padded(self, value: Reading | None) -> Reading | None:
        if not isinstance(value, np.ndarray) or value.ndim != 2:
            return value
        down = max(self._config.target_height - value.shape[0], 0)
        across = max(self._config.target_width - value.shape[1], 0)
        centred = self._config.pad_style == "center"
        before = (down // 2, across // 2) if centred else (0, 0)
        padded = np.pad(value, ((before[0], down - before[0]), (before[1], across - before[1])))
        if not self._config.add_channel_dim:
            return padded
        return np.broadcast_to(padded, (self._config.num_channels, *padded.shape))
