"""A step that subtracts what pixels have in common."""

import numpy as np

from lclstream.streamer.config import Parameters
from lclstream.streamer.config import number_steps as configs
from lclstream.streamer.steps.mapping import MappingStep, Numbers, image_of
from lclstream.streamer.steps.masks import Bools, mask_of
from lclstream.streamer.steps.shapes import panels_of
from lclstream.streamer.values import Reading, Values

# The axes of (panel rows, panel columns, row, column) over which the common mode is one number.
AXES = {"panel": (-2, -1), "row": (-1,), "column": (-2,)}


class CommonMode(MappingStep[configs.CommonModeConfig]):
    """Subtracts the median or mean of whole panels, or of each of their rows or columns."""

    def __init__(self, config: configs.CommonModeConfig, parameters: Parameters) -> None:
        """Read the mask, if there is one.

        Raises:
            InvalidConfigError: it cannot be read.
        """
        super().__init__(config, parameters)
        self._mask = mask_of(config.mask, config)
        self._axes = AXES[config.over]

    def changed(self, label: str, value: Reading, values: Values) -> Reading | None:
        """Return the image without the common mode; None where the mask is missing."""
        image = image_of(self.config, label, value)
        for text in self.config.shape_objections(image.shape):
            raise self.misfit(label, text)
        good: Bools | None = None
        if self._mask is not None and (good := self._mask.of(label, image, values)) is None:
            return None
        dtype = np.result_type(image.dtype, np.float32) if image.dtype.kind != "f" else image.dtype
        out = self.rooms.take(label, image.shape, dtype)
        np.copyto(out, image)
        panels = panels_of(out, self.config.panel_shape)
        panels -= self._common(panels, good)
        return out

    def _common(self, panels: Numbers, good: Bools | None) -> Numbers:
        """Return the common mode, in a form that fits the panels; 0 where too little counts."""
        counted = np.isfinite(panels)
        if good is not None:
            counted &= panels_of(good, self.config.panel_shape)
        if self.config.below is not None:
            counted &= panels < panels.dtype.type(self.config.below)
        count = np.count_nonzero(counted, axis=self._axes, keepdims=True)
        if self.config.method == "mean":
            total = np.sum(panels, axis=self._axes, keepdims=True, where=counted, dtype=np.float64)
            common = total / np.maximum(count, 1)
        else:
            common = _median(panels, counted, count, self._axes)
        return np.where(count >= self.config.least_pixels, common, 0).astype(panels.dtype)


def _median(panels: Numbers, counted: Bools, count: Numbers, axes: tuple[int, ...]) -> Numbers:
    """Return the median of the elements that count, along some axes, which stay with size 1."""
    # What does not count is sorted behind everything else.
    kept = np.where(counted, panels, panels.dtype.type(np.inf))
    kept = np.moveaxis(kept, axes, range(-len(axes), 0))
    ordered = np.sort(kept.reshape(*kept.shape[: -len(axes)], -1), axis=-1)
    number = count.reshape(ordered.shape[:-1])[..., None]
    lower = np.take_along_axis(ordered, np.maximum(number - 1, 0) // 2, axis=-1)
    upper = np.take_along_axis(ordered, np.minimum(number // 2, ordered.shape[-1] - 1), axis=-1)
    middle: Numbers = (lower.astype(np.float64) + upper) / 2
    return middle.reshape(count.shape)
