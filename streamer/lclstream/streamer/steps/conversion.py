"""Steps that change the dtype of numbers, and say what happens to those that do not fit."""

from pathlib import Path
from typing import Literal

import numpy as np

from lclstream.streamer.config import Parameters
from lclstream.streamer.config import number_steps as configs
from lclstream.streamer.config.steps import MapStep
from lclstream.streamer.steps.mapping import (
    MappingStep,
    Numbers,
    array_of,
    elements_of,
    like,
    misfit,
)
from lclstream.streamer.steps.masks import read_array
from lclstream.streamer.values import Reading, Values

ROUNDING = {"nearest": np.rint, "down": np.floor, "up": np.ceil, "toward_zero": np.trunc}


class ConvertType(MappingStep[configs.ConvertTypeConfig]):
    """Converts numbers to another dtype."""

    def __init__(self, config: configs.ConvertTypeConfig, parameters: Parameters) -> None:
        super().__init__(config, parameters)
        self._casting = Casting(config, config.dtype, config.out_of_range, config.nan)
        self._is_plain = config.scale == 1 and config.offset == 0

    def changed(self, label: str, value: Reading, values: Values) -> Reading:
        """Return the numbers in the dtype.

        Raises:
            InvalidConfigError: some do not fit.
        """
        del values
        elements = elements_of(self.config, label, value)
        if not self._is_plain:
            elements = self._scaled(label, elements)
        return like(value, self._casting.cast(label, self._rounded(elements)))

    def _scaled(self, label: str, elements: Numbers) -> Numbers:
        """Return the numbers on the new scale: in float32 where the input fits exactly."""
        kind = np.result_type(elements.dtype, np.float32)
        scaled = self.rooms.take(label, elements.shape, kind)
        np.multiply(elements, kind.type(self.config.scale), out=scaled)
        scaled += kind.type(self.config.offset)
        return scaled

    def _rounded(self, elements: Numbers) -> Numbers:
        if elements.dtype.kind != "f" or not self._casting.to_integers:
            return elements
        # A number without axes would become a scalar.
        return np.asarray(ROUNDING[self.config.rounding](elements))


class PhotonCounts(MappingStep[configs.PhotonCountsConfig]):
    """Divides the signal of pixels by that of one photon."""

    def __init__(self, config: configs.PhotonCountsConfig, parameters: Parameters) -> None:
        """Read the gains.

        Raises:
            InvalidConfigError: they cannot be read, or are not positive.
        """
        super().__init__(config, parameters)
        self._casting = Casting(config, config.dtype, config.out_of_range, config.nan)
        gains = np.array(config.gain)
        if config.gain_file:
            gains = read_array(Path(config.gain_file), "", f"{config.type}: gain_file")
            if gains.dtype.kind not in "iuf" or not (gains > 0).all():
                raise misfit(config, config.gain_file, "must hold positive gains only")
        self._photons_per_unit: Numbers = 1.0 / gains.astype(np.float64)

    def changed(self, label: str, value: Reading, values: Values) -> Reading:
        """Return photons.

        Raises:
            InvalidConfigError: there are more than the dtype can hold, or NaN.
        """
        del values
        signal = array_of(self.config, label, value)
        factors = self._photons_per_unit
        if factors.ndim and factors.shape != signal.shape:
            raise self.misfit(label, f"has shape {signal.shape}, but gain_file {factors.shape}")
        kind = np.result_type(signal.dtype, np.float32)
        photons = self.rooms.take(label, signal.shape, kind)
        np.subtract(signal, kind.type(self.config.offset), out=photons)
        photons *= factors.astype(kind, copy=False)
        photons += kind.type(1 - self.config.least)
        np.floor(photons, out=photons)
        np.maximum(photons, kind.type(0), out=photons)
        return self._casting.cast(label, photons)


class Casting:
    """Casts numbers that are rounded already."""

    def __init__(
        self,
        step: MapStep,
        dtype: str,
        out_of_range: Literal["error", "clip", "wrap"],
        nan: float | None,
    ) -> None:
        self._step, self._dtype = step, np.dtype(dtype)
        self._out_of_range, self._nan = out_of_range, nan
        self.to_integers = self._dtype.kind in "iu"

    def cast(self, label: str, elements: Numbers) -> Numbers:
        """Return the numbers in the dtype.

        Raises:
            InvalidConfigError: some do not fit.
        """
        if elements.dtype == self._dtype:
            return elements
        if not self.to_integers:
            return self._to_floats(label, elements)
        if elements.dtype.kind == "f":
            return self._floats_to_integers(label, elements)
        return self._integers_to_integers(label, elements)

    def _to_floats(self, label: str, elements: Numbers) -> Numbers:
        if not elements.size:
            return elements.astype(self._dtype)
        clips = self._out_of_range == "clip"
        if elements.dtype.kind != "f":
            exact = 1 << (np.finfo(self._dtype).nmant + 1)
            if not clips and max(-int(elements.min()), int(elements.max())) > exact:
                raise self._misfit(label, f"integers beyond {exact}, which are not exact as")
            return elements.astype(self._dtype)
        largest = np.finfo(self._dtype).max
        with np.errstate(over="ignore"):
            out = elements.astype(self._dtype)
        overflown = np.isinf(out) & np.isfinite(elements)
        if overflown.any():
            if not clips:
                raise self._misfit(label, "numbers too large for")
            out[overflown] = np.copysign(largest, elements[overflown])
        return out

    def _floats_to_integers(self, label: str, elements: Numbers) -> Numbers:
        if not elements.size:
            return elements.astype(self._dtype)
        # NaN where any element is.
        low, high = float(elements.min()), float(elements.max())
        gaps = None
        if low != low:
            if self._nan is None:
                raise self._misfit(label, "NaN, for which nan says no number, for")
            gaps = np.isnan(elements)
            elements = np.where(gaps, elements.dtype.type(0), elements)
            low, high = float(elements.min()), float(elements.max())
        info = np.iinfo(self._dtype)
        if low >= info.min and high < info.max + 1:
            out = elements.astype(self._dtype)
        else:
            out = self._beyond(label, elements, low, high)
        if gaps is not None and self._nan is not None:
            out[gaps] = self._dtype.type(self._nan)
        return out

    def _beyond(self, label: str, elements: Numbers, low: float, high: float) -> Numbers:
        """Return floats as integers, some of which are out of range."""
        info = np.iinfo(self._dtype)
        if self._out_of_range == "error":
            raise self._misfit(label, f"numbers from {low:g} to {high:g}, too far for")
        if self._out_of_range == "wrap":
            if low < -(2.0**63) or high >= 2.0**63:
                raise self._misfit(label, f"numbers from {low:g} to {high:g}, too far to wrap to")
            return elements.astype(np.int64).astype(self._dtype)
        # The limits themselves may not be exact as floats.
        above, below = elements >= float(info.max) + 1, elements < info.min
        out = np.where(above | below, elements.dtype.type(0), elements).astype(self._dtype)
        out[above], out[below] = info.max, info.min
        return out

    def _integers_to_integers(self, label: str, elements: Numbers) -> Numbers:
        info = np.iinfo(self._dtype)
        if elements.dtype.kind == "b" or not elements.size or self._out_of_range == "wrap":
            return elements.astype(self._dtype)
        if np.can_cast(elements.dtype, self._dtype):
            return elements.astype(self._dtype)
        low, high = int(elements.min()), int(elements.max())
        if low >= info.min and high <= info.max:
            return elements.astype(self._dtype)
        if self._out_of_range == "error":
            raise self._misfit(label, f"numbers from {low} to {high}, too far for")
        own = np.iinfo(elements.dtype)
        limits = max(info.min, own.min), min(info.max, own.max)
        return np.clip(elements, *limits).astype(self._dtype)

    def _misfit(self, label: str, what: str) -> Exception:
        return misfit(
            self._step, label, f"holds {what} {self._dtype} (out_of_range: {self._out_of_range})"
        )
