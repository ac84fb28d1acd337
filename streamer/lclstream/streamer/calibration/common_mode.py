"""Remove the noise that neighbouring pixels share, from panels of an epix10ka.

The median of the pixels of a bank, of a row in a bank, or of a column in a half panel is what they
have in common; it is subtracted. Only good pixels in high or medium gain take part, as in psana,
and medians are computed as it computes them: in float32, of the two in the middle.

The constants `common_mode` say what to do: (algorithm, mode, largest correction, fewest pixels).
Bits of the mode: 1 rows, 2 columns, 4 banks. Algorithm 7 leaves pixels in low gain as they are.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.calibration.constants import Array

ROWS, COLUMNS, BANKS = 1, 2, 4
BANKS_PER_HALF = 8
_WITHOUT_LOW_GAIN = 7
_FEWEST_PIXELS = 10

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class CommonMode:
    """What is removed."""

    mode: int
    largest: float
    """A larger median is no noise and is not subtracted."""
    fewest: float = _FEWEST_PIXELS
    """With fewer pixels nothing is subtracted."""
    only_high_and_medium: bool = True
    """Whether pixels in low gain are left out."""

    @classmethod
    def of(cls, constants: Array, origin: str) -> Self:
        """Return what the constants say.

        Raises:
            InvalidConfigError: they are too few numbers.
        """
        numbers = np.asarray(constants).reshape(-1).tolist()
        if len(numbers) < 3:
            raise InvalidConfigError(
                f"{origin}: constants 'common_mode' must be at least 3 numbers, got {numbers}"
            )
        return cls(
            mode=int(numbers[1]),
            largest=numbers[2],
            fewest=numbers[3] if len(numbers) > 3 else _FEWEST_PIXELS,
            only_high_and_medium=int(numbers[0]) == _WITHOUT_LOW_GAIN,
        )

    def remove(self, panels: Floats, mask: Mask) -> None:
        """Subtract what pixels have in common, in place.

        Args:
            panels: numbers less pedestals, shape (panels, rows, columns).
            mask: pixels that take part, same shape.
        """
        for panel, good in zip(panels, mask, strict=True):
            middle = panel.shape[0] // 2
            halves = [(panel[half], good[half]) for half in (slice(middle), slice(middle, None))]
            if self.mode & BANKS:
                for half, chosen in halves:
                    for values, each in _banks(half, chosen):
                        self._whole(values, each)
            if self.mode & ROWS:
                for values, each in _banks(panel, good):
                    self._along(values, each, axis=1)
            if self.mode & COLUMNS:
                for half, chosen in halves:
                    self._along(half, chosen, axis=0)

    def _along(self, values: Floats, good: Mask, axis: int) -> None:
        """Subtract the medians along an axis."""
        counts = good.sum(axis=axis, keepdims=True)
        ordered = np.sort(np.where(good, values, np.float32(np.inf)), axis=axis)
        upper = np.minimum(counts // 2, values.shape[axis] - 1)
        lower = np.maximum(np.where(counts % 2 == 1, upper, upper - 1), 0)
        both = [np.take_along_axis(ordered, each, axis=axis) for each in (lower, upper)]
        median = (both[0] + both[1]) / np.float32(2)
        median[counts <= self.fewest] = 0
        median[~(np.abs(median) < self.largest)] = 0
        np.subtract(values, median, out=values, where=good)

    def _whole(self, values: Floats, good: Mask) -> None:
        """Subtract the median of everything."""
        chosen = values[good]
        if chosen.size < self.fewest:
            return
        median = np.median(chosen) if chosen.size else np.float32(0)
        if abs(median) < self.largest:
            np.subtract(values, median, out=values, where=good)


def _banks(values: Floats, good: Mask) -> list[tuple[Floats, Mask]]:
    """Return views of the banks of columns."""
    width = values.shape[1] // BANKS_PER_HALF
    cuts = [slice(start, start + width) for start in range(0, values.shape[1], width)]
    return [(values[:, cut], good[:, cut]) for cut in cuts]
