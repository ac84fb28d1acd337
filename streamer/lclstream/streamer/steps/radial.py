"""Averages frames around the beam."""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.config import Parameters
from lclstream.streamer.config.diffraction_steps import RadialProfileConfig
from lclstream.streamer.events import Event
from lclstream.streamer.steps.frames import Frames
from lclstream.streamer.steps.mapping import array_of, misfit
from lclstream.streamer.steps.ring_kernels import ring_sums
from lclstream.streamer.values import Values

Doubles: TypeAlias = npt.NDArray[np.float64]
Integers: TypeAlias = npt.NDArray[np.int32]

# Electron volts times angstrom.
HC_EV_ANGSTROM = 12398.419843320026


class RadialProfile:
    """Sums or averages the good pixels of each ring."""

    def __init__(self, config: RadialProfileConfig, parameters: Parameters) -> None:
        """Read geometry and mask.

        Raises:
            InvalidConfigError: they cannot be read.
        """
        del parameters
        self._config = config
        self._frames = Frames(config)
        self._shape: tuple[int, ...] | None = None
        self._places = np.empty(0)
        self._rings = np.empty(0, np.int32)
        self._wavelength = 0.0

    def apply(self, event: Event, values: Values) -> Values:
        """Return the values with the profile; it is missing where something it needs is.

        Raises:
            InvalidConfigError: the frame does not fit geometry or mask, or a wavelength is not
                positive.
        """
        del event
        output = self._config.output
        profile, counts = self._profile(values) or (None, None)
        return {**values, output: profile, f"{output}_pixels": counts}

    def _profile(self, values: Values) -> tuple[Doubles, npt.NDArray[np.uint32]] | None:
        frame, wavelength = self._frames.frame(values), self._wavelength_of(values)
        if frame is None or wavelength is None:
            return None
        slab = self._frames.slab(frame, values)
        if slab is None:
            return None
        self._prepare(frame.shape, wavelength)
        bins = self._config.bins
        sums, squares = np.zeros(bins + 1), np.zeros(bins + 1)
        counts = np.zeros(bins + 1, np.int64)
        high = np.full(bins + 1, np.finfo(np.float64).max)
        low = -high
        # Pixels outside of all rings are in the last one, and never counted.
        low[-1] = np.inf
        ring_sums(slab.ravel(), self._rings, low, high, sums, squares, counts)
        profile = np.where(counts[:bins] > 0, sums[:bins], np.nan)
        if self._config.method == "mean":
            profile /= np.maximum(counts[:bins], 1)
        return profile, counts[:bins].astype(np.uint32)

    def _wavelength_of(self, values: Values) -> float | None:
        """Return the wavelength of an event in angstrom, 1 where it does not matter."""
        config = self._config
        label = config.wavelength or config.photon_energy
        if label is None:
            return config.wavelength_angstrom or 1.0
        value = values.get(label)
        if value is None:
            return None
        array = array_of(config, label, value)
        if array.size != 1:
            raise misfit(config, label, f"has shape {array.shape}, not one number")
        number = float(array.item())
        if not (np.isfinite(number) and number > 0):
            return None
        return number if config.wavelength else HC_EV_ANGSTROM / number

    def _prepare(self, shape: tuple[int, ...], wavelength: float) -> None:
        """Sort the pixels into rings, where they are not sorted so already."""
        if shape != self._shape:
            self._places = self._places_of(self._frames.pixels(shape).radius.ravel())
        elif wavelength == self._wavelength:
            return
        config = self._config
        number = self._places / (wavelength if config.unit == "q" else 1.0) - config.minimum
        number *= config.bins / (config.maximum - config.minimum)
        # NaN, for bad pixels, is inside nothing.
        inside = (number >= 0) & (number < config.bins)
        self._rings = np.where(inside, number, config.bins).astype(np.int32)
        self._shape, self._wavelength = shape, wavelength

    def _places_of(self, radius: Doubles) -> Doubles:
        """Return where pixels are on the axis, for a wavelength of 1 angstrom."""
        config = self._config
        if config.unit == "pixel":
            return radius
        if config.distance_mm is None or config.pixel_um is None:
            raise InvalidConfigError(f"{config.type}: unit: q needs distance_mm and pixel_um")
        angle = np.arctan(radius * (config.pixel_um * 1e-3 / config.distance_mm))
        return 4 * np.pi * np.sin(angle / 2)
