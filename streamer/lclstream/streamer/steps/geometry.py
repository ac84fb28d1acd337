"""Where pixels are, seen from the beam."""

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.config.diffraction_steps import GeometryConfig
from lclstream.streamer.steps.crystfel_geometry import read_geometry
from lclstream.streamer.steps.masks import read_array

Doubles: TypeAlias = npt.NDArray[np.float64]
Bools: TypeAlias = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Pixels:
    """The pixels of frames of one shape."""

    radius: Doubles
    """Distance from the beam in pixels, in the shape of the frame; NaN where none is known."""
    panel_shape: tuple[int, int] | None
    """Rows and columns of one panel where all are alike; None where it is not known."""


class Geometry:
    """Tells where the pixels of a frame are."""

    def __init__(self, config: GeometryConfig, where: str) -> None:
        """Read the file, if there is one.

        Args:
            config: how the geometry is given.
            where: what it is needed for, for messages.

        Raises:
            InvalidConfigError: it cannot be read, or is not understood.
        """
        self._config, self._where = config, where
        self._panels = read_geometry(Path(config.crystfel)) if config.crystfel else ()
        self._radius: Doubles | None = None
        if config.coordinates:
            path = Path(config.coordinates)
            x, y = (read_array(path, axis, f"{where}: geometry").astype(float) for axis in "xy")
            if x.shape != y.shape:
                raise InvalidConfigError(f"{path}: x has shape {x.shape}, but y {y.shape}")
            self._radius = np.hypot(x, y)

    def pixels(self, label: str, shape: tuple[int, ...]) -> Pixels:
        """Return the pixels of frames of a shape.

        Raises:
            InvalidConfigError: the geometry is that of other frames.
        """
        for text in self._config.objections(shape):
            raise InvalidConfigError(f"{self._where}: {label!r} {text}")
        if self._config.center is not None:
            return Pixels(self._around(self._config.center, shape), None)
        if self._radius is not None:
            if self._radius.shape != shape:
                raise InvalidConfigError(
                    f"{self._where}: {label!r} has shape {shape}, but its coordinates "
                    f"{self._radius.shape}"
                )
            return Pixels(self._radius, None)
        return self._crystfel(label, shape)

    def _around(self, center: tuple[float, float], shape: tuple[int, ...]) -> Doubles:
        corners = self._config.panel_corners or [(0.0, 0.0)]
        rows, columns = np.arange(shape[-2])[:, None], np.arange(shape[-1])
        stack = [
            np.hypot(rows + (top - center[0]), columns + (left - center[1]))
            for top, left in corners
        ]
        return np.stack(stack).reshape(shape)

    def _crystfel(self, label: str, shape: tuple[int, ...]) -> Pixels:
        """Return the pixels of panels that lie in one array; those of a stack below each other."""
        radius = np.full((int(np.prod(shape[:-1])), shape[-1]), np.nan)
        for panel in self._panels:
            first = panel.index * shape[-2]
            rows = slice(first + panel.min_ss, first + panel.max_ss + 1)
            columns = slice(panel.min_fs, panel.max_fs + 1)
            if rows.stop > len(radius) or columns.stop > radius.shape[1]:
                raise InvalidConfigError(
                    f"{self._where}: {label!r} has shape {shape}, in which there is no panel "
                    f"{panel.name!r} of {self._config.crystfel}"
                )
            radius[rows, columns] = panel.radius()
        sizes = {panel.shape for panel in self._panels}
        return Pixels(radius.reshape(shape), sizes.pop() if len(sizes) == 1 else None)
