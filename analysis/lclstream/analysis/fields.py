"""Which datasets of a message hold the detector frames and their mask."""

from collections.abc import Mapping

import numpy as np

from lclstream.client.decode import Array, Batch
from lclstream.core.errors import InvalidConfigError

# A smaller image is a list of positions, a matrix, or the like.
SMALLEST_EDGE = 8


def frames_name(batch: Batch, wanted: str | None = None) -> str | None:
    """Return the path of the dataset of frames; None if this batch has none.

    A dataset joins the messages of a stream with its first reading only.

    Args:
        batch: any batch of the stream.
        wanted: its path or last part; None takes the only dataset of images, or among several
            the only one with `calib` in its name.

    Raises:
        InvalidConfigError: there are several and no telling which.
    """
    if wanted is not None:
        return batch.path(wanted) if wanted in batch else None
    images = [path for path, array in batch.arrays.items() if _is_image(path, array)]
    found = images if len(images) == 1 else [path for path in images if "calib" in path]
    if len(found) == 1 or not images:
        return found[0] if found else None
    raise InvalidConfigError(
        f"several datasets may hold the frames, name one: {shapes(batch.arrays)}"
    )


def mask_name(batch: Batch, frames: str, wanted: str | None = None) -> str | None:
    """Return the path of the mask that belongs to the frames; None if there is none.

    Args:
        batch: any batch of the stream.
        frames: path of the frames.
        wanted: its path or last part; None takes the only one of the frames' shape whose name
            ends with `mask`.

    Raises:
        InvalidConfigError: the wanted one has another shape.
        NotFoundError: the wanted one does not exist.
    """
    shape = batch.arrays[frames].shape
    if wanted is not None:
        path = batch.path(wanted)
        if batch.arrays[path].shape != shape:
            raise InvalidConfigError(f"the mask {path} must have shape {shape} of {frames}")
        return path
    found = [
        path for path, array in batch.arrays.items() if _is_mask(path) and array.shape == shape
    ]
    return found[0] if len(found) == 1 else None


def _is_image(path: str, array: Array) -> bool:
    suits = array.ndim >= 3 and array.dtype.kind in "iuf" and not _is_mask(path)
    return suits and min(array.shape[-2:]) >= SMALLEST_EDGE


def _is_mask(path: str) -> bool:
    return path.lower().endswith("mask")


def shapes(arrays: Mapping[str, Array]) -> str:
    """Return what arrays there are, for messages."""
    return ", ".join(f"{path} {array.dtype} {array.shape}" for path, array in arrays.items())


def is_present(frame: Array) -> bool:
    """Return whether a frame exists.

    A missing one is filled with a single value; no detector gives the same in every pixel.
    """
    if frame.dtype.kind == "f" and not np.isfinite(frame).any():
        return False
    return bool((frame != frame.reshape(-1)[:1]).any())
