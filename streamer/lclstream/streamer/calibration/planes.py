"""From raw pixels to calibrated ones: one plane of constants for each range of the gain.

A raw pixel is a 14-bit number and, above it, two bits that say in which range of the gain it was
measured. The result is `(number - offset) * factor` with the constants of that range, in float32
and in this order: that is how psana computes it, and the bits are the same.
"""

import importlib
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt

from lclstream.streamer.calibration.constants import Array

logger = logging.getLogger(__name__)

NUMBER_BITS = 14
NUMBER_MASK = (1 << NUMBER_BITS) - 1
# References to an array that only its owner knows: the attribute, and getrefcount's argument.
_OWN_REFERENCES = 2
# One in so many pixels.
_MANY = 20

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Planes:
    """The constants of all pixels, panel by panel and in it by range of the gain."""

    offsets: Floats
    """Shape (panels, planes, rows, columns)."""
    factors: Floats
    """Same shape; 0 for bad pixels."""
    bits: int
    """Which of the two bits above the number choose the plane."""
    codes: tuple[int, ...]
    """What these bits are for each plane; a pixel with other bits becomes 0."""


def by_panel(constants: Array) -> Floats:
    """Return constants of shape (planes, panels, rows, columns) as `Planes` has them."""
    return np.ascontiguousarray(constants.swapaxes(0, 1), np.float32)


class Kernel(Protocol):
    """Calibrates pixels."""

    def __call__(
        self,
        raw: npt.NDArray[np.uint16],
        offsets: Floats,
        factors: Floats,
        bits: int,
        codes: npt.NDArray[np.int32],
        out: Floats,
    ) -> None:
        """Write the calibrated pixels.

        Args:
            raw: shape (pixels,).
            offsets: shape (planes, pixels).
            factors: shape (planes, pixels).
            bits: see `Planes`.
            codes: see `Planes`.
            out: shape (pixels,).
        """


def with_numpy(
    raw: npt.NDArray[np.uint16],
    offsets: Floats,
    factors: Floats,
    bits: int,
    codes: npt.NDArray[np.int32],
    out: Floats,
) -> None:
    """Write the calibrated pixels; fast when most are in the first range of the gain."""
    number = (raw & np.uint16(NUMBER_MASK)).astype(np.float32)
    code = (raw >> NUMBER_BITS) & bits
    is_other = code != codes[0]
    count = np.count_nonzero(is_other)
    np.subtract(number, offsets[0], out=out)
    out *= factors[0]
    if count * _MANY > raw.size:
        # Whole planes are faster than picking pixels.
        in_no_plane = is_other
        for plane in range(1, len(codes)):
            here = code == codes[plane]
            values = number - offsets[plane]
            values *= factors[plane]
            np.copyto(out, values, where=here)
            in_no_plane &= ~here
        np.copyto(out, 0, where=in_no_plane)
    elif count:
        others = np.flatnonzero(is_other)
        rest, rest_code = number[others], code[others]
        values = np.zeros(others.size, np.float32)
        for plane in range(1, len(codes)):
            here = np.flatnonzero(rest_code == codes[plane])
            where = others[here]
            values[here] = (rest[here] - offsets[plane, where]) * factors[plane, where]
        out[others] = values


def fastest() -> Kernel:
    """Return the machine code that numba makes, or numpy's way where numba is not installed."""
    try:
        module = importlib.import_module("lclstream.streamer.calibration.compiled")
    except ImportError as error:
        logger.info("calibration_without_numba", extra={"reason": str(error)})
        return with_numpy
    return cast("Kernel", module.with_numba)


class Calibrator:
    """Calibrates the events of one detector.

    Resource handling: the array of the last event is used again when nobody else holds it.
    """

    def __init__(self, planes: Planes, kernel: Kernel | None = None) -> None:
        self.planes = planes
        self._kernel = kernel or fastest()
        panels, count, *panel = planes.offsets.shape
        self._shape = (panels, *panel)
        self._offsets = planes.offsets.reshape(panels, count, -1)
        self._factors = planes.factors.reshape(panels, count, -1)
        self._codes = np.array(planes.codes, np.int32)
        self._last: Floats | None = None

    def __call__(self, raw: Sequence[Array]) -> Floats:
        """Return the calibrated pixels.

        Args:
            raw: those of each segment, uint16, in the order of the constants.

        Returns:
            Shape (panels, rows, columns), float32.
        """
        out = self._room()
        for panel, pixels in enumerate(raw):
            self._kernel(
                # In a file nothing is aligned.
                np.require(pixels, np.uint16, ("C", "A")).reshape(-1),
                self._offsets[panel],
                self._factors[panel],
                self.planes.bits,
                self._codes,
                out[panel].reshape(-1),
            )
        return out

    def _room(self) -> Floats:
        # Fresh memory costs as much as the arithmetic: the system clears it page by page.
        if self._last is None or sys.getrefcount(self._last) > _OWN_REFERENCES:
            self._last = np.empty(self._shape, np.float32)
        return self._last
