"""Steps that change which elements of an array go on, and its shape; no element changes."""

import numpy as np

from lclstream.streamer.config import Parameters
from lclstream.streamer.config import pixel_steps as configs
from lclstream.streamer.events import Event
from lclstream.streamer.steps.mapping import MappingStep, Numbers, array_of, image_of, misfit
from lclstream.streamer.steps.rooms import Rooms
from lclstream.streamer.values import Reading, Values


class Crop(MappingStep[configs.CropConfig]):
    """Cuts a region out of the last two axes; the result is a view."""

    def changed(self, label: str, value: Reading, values: Values) -> Reading:
        """Return the region."""
        del values
        image = image_of(self.config, label, value)
        for text in self.config.shape_objections(image.shape):
            raise self.misfit(label, text)
        rows, columns = (
            slice(None) if span is None else slice(*span) for _, span in self.config.spans
        )
        return image[..., rows, columns]


class SelectPanels(MappingStep[configs.SelectPanelsConfig]):
    """Keeps some elements of the first axis."""

    def changed(self, label: str, value: Reading, values: Values) -> Reading:
        """Return the panels."""
        del values
        stack = array_of(self.config, label, value)
        if stack.ndim < 2 or stack.shape[0] <= max(self.config.panels):
            raise self.misfit(label, f"has shape {stack.shape}, not panels {self.config.panels}")
        panels = self.config.panels
        out = self.rooms.take(label, (len(panels), *stack.shape[1:]), stack.dtype)
        return np.take(stack, panels, axis=0, out=out, mode="clip")


class SplitPanels(MappingStep[configs.SplitPanelsConfig]):
    """Takes images apart into panels."""

    def changed(self, label: str, value: Reading, values: Values) -> Reading:
        """Return (panels, rows, columns)."""
        del values
        image = image_of(self.config, label, value)
        for text in self.config.shape_objections(image.shape):
            raise self.misfit(label, text)
        panels = panels_of(image, self.config.panel_shape)
        out = self.rooms.take(label, panels.shape, panels.dtype)
        out[...] = panels
        return out.reshape(-1, *self.config.panel_shape)


class StackValues:
    """Puts values along a new first axis."""

    def __init__(self, config: configs.StackValuesConfig, parameters: Parameters) -> None:
        del parameters
        self._config = config
        self._removed = frozenset(config.removes())
        self._rooms = Rooms()

    def apply(self, event: Event, values: Values) -> Values:
        """Return the values with the stack; it is missing where one of its parts is.

        Raises:
            InvalidConfigError: shapes or dtypes differ.
        """
        del event
        after = {label: value for label, value in values.items() if label not in self._removed}
        after[self._config.output] = self._stacked(values)
        return after

    def _stacked(self, values: Values) -> Numbers | None:
        arrays: list[Numbers] = []
        for label in self._config.inputs:
            value = values.get(label)
            if value is None:
                return None
            arrays.append(array_of(self._config, label, value))
            self._compare(label, arrays)
        shape = (len(arrays), *arrays[0].shape)
        out = self._rooms.take(self._config.output, shape, arrays[0].dtype)
        return np.stack(arrays, out=out)

    def _compare(self, label: str, arrays: list[Numbers]) -> None:
        first, last = arrays[0], arrays[-1]
        if (last.shape, last.dtype) != (first.shape, first.dtype):
            text = (
                f"is {last.dtype} {last.shape}, but {self._config.inputs[0]!r} is {first.dtype} "
                f"{first.shape}"
            )
            raise misfit(self._config, label, text)


def panels_of(image: Numbers, panel_shape: tuple[int, int] | None) -> Numbers:
    """Return a view with the axes (..., panel rows, panel columns, row, column).

    Args:
        image: shape (..., rows, columns), multiples of those of a panel.
        panel_shape: of one panel; None for whole images.
    """
    if panel_shape is None:
        return image[..., None, None, :, :]
    *before, rows, columns = image.shape
    down, across = rows // panel_shape[0], columns // panel_shape[1]
    grid = image.reshape(*before, down, panel_shape[0], across, panel_shape[1])
    return grid.swapaxes(-3, -2)
