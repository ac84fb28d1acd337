"""Turns detector frames into images that Simplon's clients can read, and says what was done.

| what the detector gives | what is sent (`image_dtype: native`) |
|---|---|
| uint8, uint16, uint32, int32, float32 | the same |
| bool | uint8 |
| int8, int16 | int32 |
| float16, float64 | float32 |
| int64, uint64 | nothing: choose an `image_dtype` |

With `image_dtype` uint8, uint16 or uint32 a pixel is sent as round((value - offset) / scale). In
images of unsigned integers with a mask, or converted ones, the greatest number means a masked
pixel: one that the mask calls bad, or that is not finite. The next one, which some clients take
for a mask too, is not used: other pixels are between 0 and the greatest minus 2, and what is
beyond gets one of these. In images of floats a masked pixel is NaN. When a whole frame is missing,
all its pixels are masked; in images of int32, which have no such number, it has the fill value.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.values import Array

NATIVE = {
    "bool": "uint8", "uint8": "uint8", "uint16": "uint16", "uint32": "uint32", "int8": "int32",
    "int16": "int32", "int32": "int32", "float16": "float32", "float32": "float32",
    "float64": "float32",
}  # fmt: skip
"""dtype of a frame -> that of its image, unless another one is asked for."""
# The greatest number means a masked pixel, and the one below it is kept free.
RESERVED = 2


@dataclass(frozen=True, slots=True)
class Pixels:
    """How frames of one form become images (rows, columns)."""

    source: np.dtype[np.generic]
    target: np.dtype[np.generic]
    scale: float = 1.0
    offset: float = 0.0
    is_masked: bool = False
    """Whether a mask comes with the frames."""

    @property
    def top(self) -> int:
        """The number of a masked pixel in images of unsigned integers."""
        return (1 << (8 * self.target.itemsize)) - 1

    @property
    def saturation(self) -> int | None:
        """The greatest number that a pixel which is not masked can have; None for floats."""
        if self.target.kind == "f":
            return None
        if self.target.kind == "i":
            return self.top >> 1
        return self.top - RESERVED if self._reserves else self.top

    @property
    def _is_converted(self) -> bool:
        return self.target.kind == "u" and (
            self.source.kind not in "ub" or self.source.itemsize > self.target.itemsize
            or (self.scale, self.offset) != (1.0, 0.0)
        )  # fmt: skip

    @property
    def _reserves(self) -> bool:
        """Whether the greatest numbers are kept for masked pixels."""
        return self.target.kind == "u" and (self.is_masked or self._is_converted)

    def described(self) -> dict[str, Any]:
        """Return what a reader needs to know to undo it."""
        found: dict[str, Any] = {
            "detector_dtype": self.source.name,
            "image_dtype": self.target.name,
        }
        if self._is_converted:
            found |= {"scale": self.scale, "offset": self.offset}
        if self._reserves:
            found["masked"] = self.top
        return found

    def image(self, frame: Array, mask: Array | None = None) -> Array:
        """Return a frame as an image; a view of it where nothing changes.

        Args:
            frame: at least two axes; panels of a stack end up one below the other.
            mask: of the same shape, 0 where a pixel is bad; None for none.

        Raises:
            InvalidConfigError: the mask is of another shape.
        """
        slab = _slab(frame)
        good = None if mask is None else self._good(mask, frame)
        if self._is_converted:
            return self._unsigned(slab, good)
        with np.errstate(over="ignore"):
            image = slab.astype(self.target, copy=False)
        if self._reserves:
            image = np.minimum(image, self.target.type(self.top - RESERVED))
        return image if good is None else self._masked(image, good)

    def missing(self, frame: Array) -> Array:
        """Return the image of a frame that does not exist.

        Args:
            frame: of the same shape, of fill values.
        """
        slab = _slab(frame)
        if self.target.kind == "i":
            return slab.astype(self.target)
        masked: float = self.top if self.target.kind == "u" else np.nan
        return np.full(slab.shape, masked, self.target)

    def _good(self, mask: Array, frame: Array) -> npt.NDArray[np.bool_]:
        if mask.shape != frame.shape:
            raise InvalidConfigError(
                f"the mask has shape {mask.shape}, the frame {frame.shape}: they must be the same"
            )
        return np.not_equal(_slab(mask), 0)

    def _unsigned(self, slab: Array, good: npt.NDArray[np.bool_] | None) -> Array:
        # float32 holds 24 bits.
        holds = self.source.itemsize <= 2 or self.source == np.float32
        wide = np.float32 if holds and self.target.itemsize <= 2 else np.float64
        numbers: npt.NDArray[np.floating[Any]] = slab.astype(wide)
        if self.offset:
            numbers -= wide(self.offset)
        if self.scale != 1.0:
            numbers /= wide(self.scale)
        np.rint(numbers, out=numbers)
        bad = None
        if self.source.kind == "f":
            # Infinity is no measurement either.
            bad = ~np.isfinite(numbers)
            numbers[bad] = 0
        np.clip(numbers, 0, self.top - RESERVED, out=numbers)
        image = numbers.astype(self.target)
        if bad is not None:
            image[bad] = self.top
        if good is not None:
            image[~good] = self.top
        return image

    def _masked(self, image: Array, good: npt.NDArray[np.bool_]) -> Array:
        if self.target.kind == "i":
            return image
        masked: float = self.top if self.target.kind == "u" else np.nan
        return np.where(good, image, self.target.type(masked))


def pixels_of(
    source: np.dtype[np.generic],
    image_dtype: str,
    scale: float = 1.0,
    offset: float = 0.0,
    is_masked: bool = False,
) -> Pixels:
    """Return how frames of a dtype become images of what a configuration asks for.

    Raises:
        InvalidConfigError: no image can be made of them.
    """
    if source.kind not in "biuf":
        raise InvalidConfigError(f"frames must be of numbers, not of {source}")
    target = NATIVE.get(source.name) if image_dtype == "native" else image_dtype
    if target is None:
        raise InvalidConfigError(
            f"frames of {source} need an image_dtype: uint8, uint16, uint32 or float32"
        )
    return Pixels(source, np.dtype(target), scale, offset, is_masked)


def _slab(frame: Array) -> Array:
    return frame.reshape(-1, frame.shape[-1]) if frame.size else frame.reshape(0, frame.shape[-1])
