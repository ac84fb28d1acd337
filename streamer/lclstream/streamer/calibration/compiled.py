"""The arithmetic of `planes` and `images` as machine code; imported only where numba is installed.

Pixels are taken in blocks. In most of them all pixels are in the same range of the gain: one plane
of constants is read, by vector instructions. In the others every plane is computed and each pixel
keeps what belongs to it.
"""

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from lclstream.streamer.machine_code import MachineCode

BLOCK = 256
_MASK = np.int32((1 << 14) - 1)
_SHIFT = np.int32(14)

Floats = npt.NDArray[np.float32]


@numba.njit(nogil=True)
def _difference(raw: npt.NDArray[np.uint16]) -> Any:
    """Return the bits above the number in which pixels differ."""
    first, difference = np.int32(raw[0]), np.int32(0)
    for i in range(raw.size):
        difference |= np.int32(raw[i]) ^ first
    return difference >> _SHIFT


@numba.njit(nogil=True)
def _one_range(raw: npt.NDArray[np.uint16], offsets: Floats, factors: Floats, out: Floats) -> None:
    for i in range(raw.size):
        out[i] = (np.float32(np.int32(raw[i]) & _MASK) - offsets[i]) * factors[i]


@numba.njit(nogil=True)
def _of_range(
    raw: npt.NDArray[np.uint16], offsets: Floats, factors: Floats, bits: Any, code: Any, out: Floats
) -> None:
    for i in range(raw.size):
        pixel = np.int32(raw[i])
        value = (np.float32(pixel & _MASK) - offsets[i]) * factors[i]
        out[i] = value if ((pixel >> _SHIFT) & bits) == code else out[i]


@MachineCode
def _calibrate(
    raw: npt.NDArray[np.uint16],
    offsets: Floats,
    factors: Floats,
    bits: Any,
    codes: npt.NDArray[np.int32],
    out: Floats,
) -> None:
    for start in range(0, raw.size, BLOCK):
        stop = min(start + BLOCK, raw.size)
        pixels, values = raw[start:stop], out[start:stop]
        is_mixed = (_difference(pixels) & bits) != 0
        code = (np.int32(pixels[0]) >> _SHIFT) & bits
        is_done = False
        if is_mixed:
            values[:] = 0
        for plane in range(codes.size):
            plane_offsets, plane_factors = offsets[plane, start:stop], factors[plane, start:stop]
            if is_mixed:
                _of_range(pixels, plane_offsets, plane_factors, bits, codes[plane], values)
                is_done = True
            elif codes[plane] == code:
                _one_range(pixels, plane_offsets, plane_factors, values)
                is_done = True
        if not is_done:
            values[:] = 0


def with_numba(
    raw: npt.NDArray[np.uint16],
    offsets: Floats,
    factors: Floats,
    bits: int,
    codes: npt.NDArray[np.int32],
    out: Floats,
) -> None:
    """Write the calibrated pixels; see `planes.Kernel`."""
    _calibrate(raw, offsets, factors, np.int32(bits), codes, out)
