"""What is done to the values of single events."""

import numpy as np

from lclstream.streamer.config import Parameters
from lclstream.streamer.events import Event
from lclstream.streamer.values import Values
from my_streamer_parts.config import SubtractPedestalConfig


class SubtractPedestal:
    """Subtracts a constant; a missing value stays missing."""

    def __init__(self, config: SubtractPedestalConfig, parameters: Parameters) -> None:
        del parameters
        self._config = config

    def apply(self, event: Event, values: Values) -> Values | None:
        """Return the values that go on; None drops the event, which is counted.

        The arrays may be views of memory that is not ours: return new ones, change none.
        """
        del event
        value = values[self._config.input]
        if not isinstance(value, np.ndarray):
            return values
        changed = value.astype(np.float32) - np.float32(self._config.pedestal)
        return {**values, self._config.input: changed}
