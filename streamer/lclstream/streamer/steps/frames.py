"""Frames as the loops over pixels take them, and the rings around the beam that pixels lie in."""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from lclstream.streamer.config.diffraction_steps import FrameStep
from lclstream.streamer.steps.geometry import Geometry, Pixels
from lclstream.streamer.steps.mapping import Numbers, image_of
from lclstream.streamer.steps.masks import Bools, mask_of
from lclstream.streamer.values import Values

Floats: TypeAlias = npt.NDArray[np.float32] | npt.NDArray[np.float64]


class Frames:
    """Takes the frame of a step out of the values of an event."""

    def __init__(self, config: FrameStep) -> None:
        """Read geometry and mask.

        Raises:
            InvalidConfigError: they cannot be read.
        """
        self._config = config
        self._geometry = Geometry(config.geometry, config.type)
        self._mask = mask_of(config.mask, config)
        self._buffer: Floats = np.empty((0, 0), np.float32)

    def frame(self, values: Values) -> Numbers | None:
        """Return the frame as it came, None when it is missing.

        Raises:
            InvalidConfigError: it has no rows and columns.
        """
        value = values.get(self._config.input)
        return None if value is None else image_of(self._config, self._config.input, value)

    def pixels(self, shape: tuple[int, ...]) -> Pixels:
        """Return where the pixels of frames of a shape are; NaN where they are bad in all events.

        Raises:
            InvalidConfigError: geometry or mask are those of other frames.
        """
        pixels = self._geometry.pixels(self._config.input, shape)
        if self._mask is None or self._mask.fixed is None:
            return pixels
        radius = pixels.radius.copy()
        good = self._mask.of(self._config.input, radius, {})
        if good is not None:
            radius[~good] = np.nan
        return Pixels(radius, pixels.panel_shape)

    def slab(self, frame: Numbers, values: Values) -> Floats | None:
        """Return a frame as contiguous floats (rows, columns), NaN where it is bad in this event.

        Of a stack, the panels lie one below the other. None: the mask of this event is missing.
        The memory may be the frame's, or that of the slab before.

        Raises:
            InvalidConfigError: the mask has another shape.
        """
        good: Bools | None = None
        if self._mask is not None and self._mask.fixed is None:
            good = self._mask.of(self._config.input, frame, values)
            if good is None:
                return None
        slab = frame.reshape(-1, frame.shape[-1])
        kind = np.result_type(slab.dtype, np.float32)
        # What cannot be written is of another type to the compiler.
        is_ready = slab.dtype == kind and slab.flags.c_contiguous and slab.flags.writeable
        if is_ready and good is None:
            return slab
        if self._buffer.shape != slab.shape or self._buffer.dtype != kind:
            self._buffer = np.empty(slab.shape, kind)
        np.copyto(self._buffer, slab)
        if good is not None:
            self._buffer[~good.reshape(slab.shape)] = np.nan
        return self._buffer
