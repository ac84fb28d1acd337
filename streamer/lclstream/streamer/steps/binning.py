"""A step that joins neighbouring pixels."""

from typing import Any

import numpy as np

from lclstream.streamer.config import Parameters
from lclstream.streamer.config import pixel_steps as configs
from lclstream.streamer.steps.mapping import MappingStep, Numbers, exactly, image_of
from lclstream.streamer.steps.masks import Bools, mask_of
from lclstream.streamer.values import Reading, Values


class Bin(MappingStep[configs.BinConfig]):
    """Sums or averages blocks of the last two axes."""

    def __init__(self, config: configs.BinConfig, parameters: Parameters) -> None:
        """Read the mask, if there is one.

        Raises:
            InvalidConfigError: it cannot be read.
        """
        super().__init__(config, parameters)
        self._mask = mask_of(config.mask, config)
        # A mean adds up what it divides: integers without loss.
        self._sum = config.model_copy(update={"method": "sum"})

    def changed(self, label: str, value: Reading, values: Values) -> Reading | None:
        """Return the joined pixels; None where the mask is missing."""
        image = image_of(self.config, label, value)
        for text in self.config.shape_objections(image.shape):
            raise self.misfit(label, text)
        good: Bools | None = None
        if self._mask is not None and (good := self._mask.of(label, image, values)) is None:
            return None
        dtype = np.dtype(self.config.result_dtype(image.dtype.name))
        total = self._joined(image, good, np.dtype(self._sum.result_dtype(image.dtype.name)))
        counts: Numbers | int = self.config.rows * self.config.columns
        if good is not None:
            counts = self._joined(good, None, np.dtype(np.int32))
        if self.config.method == "mean":
            out = self.rooms.take(label, total.shape, dtype)
            total = np.divide(total, np.maximum(counts, 1), out=out, casting="same_kind")
        if good is not None:
            empty = exactly(self.config, label, "empty", self.config.empty, dtype)
            np.copyto(total, empty, where=counts == 0)
        return total

    def _joined(self, image: Numbers, good: Bools | None, dtype: np.dtype[Any]) -> Numbers:
        """Return the sum of each block."""
        down, across = self.config.rows, self.config.columns
        *before, rows, columns = image.shape
        rows, columns = rows // down, columns // across
        blocks = (*before, rows, down, columns * across)
        used = (..., slice(rows * down), slice(columns * across))
        where = True if good is None else good[used].reshape(blocks)
        # First downwards, along whole rows of memory.
        lines = np.add.reduce(image[used].reshape(blocks), axis=-2, dtype=dtype, where=where)
        total: Numbers = lines[..., 0::across].copy()
        for first in range(1, across):
            total += lines[..., first::across]
        return total
