"""What is taken from each event."""

import numpy as np

from lclstream.streamer.config import Parameters
from lclstream.streamer.events import Event, Value
from my_streamer_parts.config import FrameStatisticsConfig


class FrameStatistics:
    """Makes two numbers of a frame."""

    def __init__(self, config: FrameStatisticsConfig, parameters: Parameters) -> None:
        del parameters
        self._config = config

    def read(self, event: Event) -> dict[str, Value | None] | None:
        """Return the value of each part; None when they are missing from this event.

        A source of one value returns just that. What it raises ends the run: only what is really
        missing is None.
        """
        frame = event.read(self._config.detector, self._config.field)
        if frame is None:
            return None
        pixels = np.asarray(frame)
        return {"mean": pixels.mean(), "maximum": pixels.max()}
