"""How the pixels of an epix10ka are calibrated.

Each pixel has one of five modes, which its configuration fixes, and in two of them it changes from
high or medium to low gain by itself; bit 14 of a raw pixel says that it did. That makes seven
ranges of the gain, in the order of the constants:

| control bits | range | mode |
|---|---|---|
| x111xx | 0 | fixed high |
| x011xx | 1 | fixed medium |
| xx10xx | 2 | fixed low |
| 0100xx | 3 | automatic high to low, is high |
| 0000xx | 4 | automatic medium to low, is medium |
| 1100xx | 5 | automatic high to low, is low |
| 1000xx | 6 | automatic medium to low, is low |

From the right: test, mask, gain, automatic gain, the `trbit` of the pixel's chip, and bit 14 of the
raw pixel. A combination that is not listed has no constants; its pixels are passed on as raw
numbers times `good`, which is what psana does. For a given configuration a pixel has thus two
ranges to choose from, and `energy = (number - pedestal) * (1 / gain * good)`.

Data of version 2 hold the configuration by chip, later ones by pixel. Only for version 2 does
psana remove common noise, when the constants say how; see `common_mode`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from lclstream.core.errors import DecodeError
from lclstream.streamer.calibration.common_mode import CommonMode
from lclstream.streamer.calibration.constants import Array, Constants, Panel, inverse
from lclstream.streamer.calibration.planes import (
    NUMBER_BITS,
    Calibrator,
    Floats,
    Planes,
    by_panel,
)

KINDS = ("epix10ka", "epix")
RANGES = 7
PANEL: Panel = (352, 384)
CHIP: Panel = (176, 192)

BY_PIXEL = ("cbitsConfig",)
BY_CHIP = ("asicPixelConfig", "trbit")
"""Fields of the configuration, of later versions and of version 2."""

_GAIN_BITS = 0b1100
_TRBIT = 1 << 4
_LOW = 1 << 5
# Mask, value under it, and the range that they mean.
_RANGES = (
    (0b011100, 0b011100, 0),
    (0b011100, 0b001100, 1),
    (0b001100, 0b001000, 2),
    (0b111100, 0b010000, 3),
    (0b111100, 0b000000, 4),
    (0b111100, 0b110000, 5),
    (0b111100, 0b100000, 6),
)
NO_RANGE = -1
_HIGH_AND_MEDIUM = (0, 1, 3, 4)

Bits = npt.NDArray[np.uint8]


def _table() -> npt.NDArray[np.int8]:
    table = np.full(256, NO_RANGE, np.int8)
    bits = np.arange(256)
    for mask, value, number in _RANGES:
        table[bits & mask == value] = number
    return table


_RANGE_OF = _table()


def control_bits(configuration: Mapping[str, Any]) -> Bits:
    """Return the control bits of one panel's pixels.

    Args:
        configuration: the fields of `BY_PIXEL`, or else those of `BY_CHIP`.

    Returns:
        Shape (352, 384).

    Raises:
        DecodeError: the fields have another shape.
    """
    by_pixel = configuration.get(BY_PIXEL[0])
    if by_pixel is not None:
        return _of_shape(BY_PIXEL[0], by_pixel, PANEL)
    chips = _of_shape(BY_CHIP[0], configuration[BY_CHIP[0]], (4, *CHIP)) & _GAIN_BITS
    trbits = _of_shape(BY_CHIP[1], configuration[BY_CHIP[1]], (4,)) != 0
    chips = chips | np.where(trbits, _TRBIT, 0).astype(np.uint8)[:, None, None]
    # The chips of the upper half are mounted upside down.
    upper = [chips[2, ::-1, ::-1], chips[1, ::-1, ::-1]]
    return np.block([upper, [chips[3], chips[0]]]).astype(np.uint8)


def _of_shape(name: str, value: Any, shape: tuple[int, ...]) -> Array:
    array = np.asarray(value)
    if array.shape != shape or array.dtype.kind not in "iub":
        raise DecodeError(
            f"the configuration of an epix10ka has {name} of {array.dtype} {array.shape}, "
            f"expected integers {shape}"
        )
    return array.astype(np.uint8)


def ranges_of(bits: Bits) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int8]]:
    """Return each pixel's range while bit 14 of the raw pixel is 0, and while it is 1."""
    return _RANGE_OF[bits], _RANGE_OF[bits | _LOW]


@dataclass(frozen=True, slots=True, kw_only=True)
class Epix10ka:
    """The constants of the panels in the data, whatever their configuration."""

    pedestals: Array
    """Shape (7, panels, 352, 384)."""
    factors: Array
    """1 / gain, same shape."""
    good: Bits
    """1 or 0, shape (panels, 352, 384)."""

    def planes(self, bits: Bits) -> Planes:
        """Return what calibrates pixels of a configuration.

        Args:
            bits: control bits, shape (panels, 352, 384).
        """
        ranges = ranges_of(bits)
        offsets = np.stack([chosen(self.pedestals, each, 0) for each in ranges])
        factors = np.stack([chosen(self.factors, each, 1) * self.good for each in ranges])
        return Planes(offsets=by_panel(offsets), factors=by_panel(factors), bits=0b01, codes=(0, 1))


def constants_of(constants: Constants, segments: tuple[int, ...]) -> Epix10ka:
    """Return the constants of the given segments.

    Raises:
        InvalidConfigError: pedestals or gains are missing, or are of another detector.
    """
    pedestals = constants.panels("pedestals", RANGES, segments, PANEL)
    gain = constants.panels("pixel_gain", RANGES, segments, PANEL)
    good = constants.good(segments, PANEL)
    if good is None:
        good = np.ones((len(segments), *PANEL), np.uint8)
    return Epix10ka(pedestals=pedestals, factors=inverse(gain, gain), good=good)


def chosen(constants: Array, ranges: npt.NDArray[np.int8], default: int) -> Array:
    """Return for each pixel the constant of its range, or the default for `NO_RANGE`."""
    index = np.maximum(ranges, 0).astype(np.intp)
    picked: Array = np.take_along_axis(constants, index[None], axis=0)[0]
    picked[ranges == NO_RANGE] = default
    return picked


class WithCommonMode:
    """Calibrates events of version 2 whose constants say how common noise is removed."""

    def __init__(self, constants: Epix10ka, common_mode: CommonMode, bits: Bits) -> None:
        self._planes = constants.planes(bits)
        only_offsets = replace(self._planes, factors=np.ones_like(self._planes.factors))
        self._subtract = Calibrator(only_offsets)
        self._common_mode = common_mode
        good = constants.good != 0
        if common_mode.only_high_and_medium:
            high = [good & np.isin(each, _HIGH_AND_MEDIUM) for each in ranges_of(bits)]
        else:
            high = [good, good]
        self._takes_part = high

    def __call__(self, raw: Sequence[Array]) -> Floats:
        """Return the calibrated pixels; see `planes.Calibrator`."""
        out = self._subtract(raw)
        switched = np.stack([(np.asarray(panel) >> NUMBER_BITS) & 1 for panel in raw])
        switched = switched.reshape(out.shape) != 0
        self._common_mode.remove(out, np.where(switched, self._takes_part[1], self._takes_part[0]))
        factors = self._planes.factors
        out *= np.where(switched, factors[:, 1], factors[:, 0])
        return out
