"""Steps that replace some elements of an array by one number."""

import math

import numpy as np

from lclstream.streamer.config import Parameters
from lclstream.streamer.config import number_steps as configs
from lclstream.streamer.steps.mapping import (
    MappingStep,
    Numbers,
    array_of,
    elements_of,
    exactly,
    like,
)
from lclstream.streamer.steps.masks import Mask
from lclstream.streamer.values import Reading, Values


class MaskPixels(MappingStep[configs.MaskPixelsConfig]):
    """Gives bad pixels one value."""

    def __init__(self, config: configs.MaskPixelsConfig, parameters: Parameters) -> None:
        """Read the mask.

        Raises:
            InvalidConfigError: it cannot be read.
        """
        super().__init__(config, parameters)
        self._mask = Mask(config.mask, config)

    def changed(self, label: str, value: Reading, values: Values) -> Reading | None:
        """Return the frame with its bad pixels replaced; None where the mask is missing."""
        frame = array_of(self.config, label, value)
        good = self._mask.of(label, frame, values)
        if good is None:
            return None
        out = self.rooms.take(label, frame.shape, frame.dtype)
        out[...] = exactly(self.config, label, "fill", self.config.fill, frame.dtype)
        np.copyto(out, frame, where=good)
        return out


class Threshold(MappingStep[configs.ThresholdConfig]):
    """Replaces what is below or above limits."""

    def changed(self, label: str, value: Reading, values: Values) -> Reading:
        """Return the elements, those beyond the limits replaced."""
        del values
        elements = elements_of(self.config, label, value)
        out = self.rooms.take(label, elements.shape, elements.dtype)
        np.copyto(out, elements)
        fill = exactly(self.config, label, "fill", self.config.fill, elements.dtype)
        if self.config.minimum is not None:
            out[_less(elements, self.config.minimum)] = fill
        if self.config.maximum is not None:
            out[_more(elements, self.config.maximum)] = fill
        return like(value, out)


def _less(elements: Numbers, limit: float) -> Numbers:
    # Integers are compared with an integer: exactly, and without a copy as floats.
    return elements < (math.ceil(limit) if elements.dtype.kind in "iu" else limit)


def _more(elements: Numbers, limit: float) -> Numbers:
    return elements > (math.floor(limit) if elements.dtype.kind in "iu" else limit)
