"""Put the panels of a detector into one image, as psana's `image` does.

Where several pixels fall into one place the last counts, and a place that none falls into, amid
four that have one, gets the least of these: both come from rounding positions to whole pixels. The
image is as large as that of all panels of the geometry, also when the data have only some.
"""

import numpy as np
import numpy.typing as npt

from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.calibration.geometry import image_places, parse, pixel_coordinates

Floats = npt.NDArray[np.float32]
Places = npt.NDArray[np.intp]

MAX_PIXELS = 1 << 28
"""No detector is larger; a geometry that says so has a mistake in a position."""


class ImageAssembler:
    """Makes images of the frames of one detector."""

    def __init__(
        self, geometry: str, segments: tuple[int, ...], panel: tuple[int, int], origin: str
    ) -> None:
        """Compute where every pixel goes.

        Args:
            geometry: text, see the module `geometry`.
            segments: numbers of the segments in the data.
            panel: rows and columns of one.
            origin: where the text comes from, for messages.

        Raises:
            InvalidConfigError: the geometry cannot be understood, or is of another detector.
        """
        x, y, pixel_um = pixel_coordinates(parse(geometry, origin), origin)
        if x.shape[1:] != panel or x.shape[0] <= max(segments):
            raise InvalidConfigError(
                f"{origin}: the geometry is of panels {x.shape}, which do not fit segments "
                f"{list(segments)} of {panel}"
            )
        rows, columns = image_places(x, y, pixel_um)
        self.shape = int(rows.max()) + 1, int(columns.max()) + 1
        if self.shape[0] * self.shape[1] > MAX_PIXELS:
            raise InvalidConfigError(f"{origin}: an image of {self.shape} pixels is too large")
        chosen = list(segments)
        rows, columns = rows[chosen].reshape(-1), columns[chosen].reshape(-1)
        source = np.full(self.shape, -1, np.intp)
        source[rows, columns] = np.arange(rows.size)
        self._source = np.maximum(source, 0).reshape(-1)
        self._empty = np.flatnonzero(source < 0)
        self._holes = _holes(source[: rows.max() + 1, : columns.max() + 1] >= 0)

    def __call__(self, frame: Floats) -> Floats:
        """Return the image of a frame.

        Args:
            frame: shape (panels, rows, columns).

        Returns:
            Shape `shape`, float32; 0 where there is no pixel.
        """
        image = np.take(frame.reshape(-1), self._source)
        image[self._empty] = 0
        image = image.reshape(self.shape)
        rows, columns = self._holes
        if rows.size:
            # Of places at the last edge psana has no rule.
            below = np.minimum(rows + 1, self.shape[0] - 1)
            right = np.minimum(columns + 1, self.shape[1] - 1)
            around = np.minimum(image[rows - 1, columns], image[below, columns])
            beside = np.minimum(image[rows, columns - 1], image[rows, right])
            image[rows, columns] = np.minimum(around, beside)
        return image


def _holes(full: npt.NDArray[np.bool_]) -> tuple[Places, Places]:
    """Return rows and columns of empty places between full ones on all sides that there are."""
    empty = ~full
    empty[:-1] &= full[1:]
    empty[1:] &= full[:-1]
    empty[:, :-1] &= full[:, 1:]
    empty[:, 1:] &= full[:, :-1]
    rows, columns = np.nonzero(empty)
    return rows, columns
