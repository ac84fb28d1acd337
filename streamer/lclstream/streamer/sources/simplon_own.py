"""What our own serializers add to Simplon messages, and what follows from it for the images."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from lclstream.streamer.batching import MISSING_INTEGER
from lclstream.streamer.values import Array


def own_words(value: object) -> Mapping[str, Any]:
    """Return what our own serializers add to a message; nothing where they added nothing."""
    return value if isinstance(value, Mapping) else {}


def is_missing(image: Array, said: Mapping[str, Any]) -> bool:
    """Return whether an image only stands for a frame that does not exist.

    Our own serializer says that something is missing; that it is the frame, its label says, or
    that all pixels are masked.
    """
    valid = own_words(said.get("valid"))
    if all(valid.values()):
        return False
    label = said.get("label")
    if isinstance(label, str):
        return valid.get(label) is False
    filler = said.get("masked", MISSING_INTEGER if image.dtype.kind == "i" else None)
    if image.dtype.kind == "f":
        return bool(np.isnan(image).all())
    return isinstance(filler, int) and bool((image == filler).all())


def restored(image: Array, said: Mapping[str, Any], shape: object) -> Array:
    """Return the frame that our own serializer made an image of, as far as it can be known.

    Args:
        image: of any message; without the serializer's words it stays as it is.
        said: dtype of the frame, scale and offset, number of masked pixels.
        shape: of the frame, as the start of the series says it.
    """
    if isinstance(shape, list) and all(type(each) is int and each >= 0 for each in shape):
        image = image.reshape(shape) if math.prod(shape) == image.size else image
    scale, offset, masked = (said.get(key) for key in ("scale", "offset", "masked"))
    dtype = str(said.get("detector_dtype", ""))
    if isinstance(scale, int | float) and isinstance(offset, int | float):
        is_wide = image.dtype.itemsize > 2 or dtype == "float64"
        frame: npt.NDArray[np.floating[Any]] = image.astype("f8" if is_wide else "f4")
        # In place: the dtype stays.
        frame *= scale
        frame += offset
        if isinstance(masked, int):
            frame[image == masked] = np.nan
        return frame
    is_narrower = dtype in ("bool", "int8", "int16") and masked is None
    return image.astype(dtype) if is_narrower else image
