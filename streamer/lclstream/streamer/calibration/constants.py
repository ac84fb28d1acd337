"""The calibration constants of one detector, and what they have to look like.

Their names are those of the facility's calibration database (`ctype` there):

| name | shape | meaning |
|---|---|---|
| `pedestals` | (ranges, panels, rows, columns) | what a pixel reads without light |
| `pixel_offset` | same | is subtracted as well; optional |
| `pixel_gain` | same | units of the converter per keV |
| `pixel_status` | same, or without ranges | a bad pixel has a number other than 0; optional |
| `status_extra` | same | more bad pixels; optional |
| `common_mode` | a few numbers | how noise that panels share is removed; optional |
| `geometry` | text | where the panels are; optional |

The ranges of the gain are 3 for a Jungfrau and 7 for an epix10ka.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from lclstream.core.errors import InvalidConfigError

Array: TypeAlias = npt.NDArray[Any]
Panel: TypeAlias = tuple[int, int]
"""Rows and columns of one segment."""

ARRAYS = (
    "pedestals",
    "pixel_offset",
    "pixel_gain",
    "pixel_status",
    "status_extra",
    "common_mode",
)
GEOMETRY = "geometry"
NAMES = (*ARRAYS, GEOMETRY)
MAX_RANGES_OF_STATUS = 5
"""The last two ranges of an epix10ka are computed from others, as is their status."""


@dataclass(frozen=True, slots=True)
class Detector:
    """Whose constants are asked for."""

    name: str
    """As in the data, such as `jungfrau`."""
    kind: str
    """Class of detectors, such as `epix10ka`."""
    serials: Mapping[int, str]
    """Segment -> what identifies its hardware."""

    @property
    def segments(self) -> tuple[int, ...]:
        """The numbers of the segments, in order."""
        return tuple(sorted(self.serials))

    @property
    def unique(self) -> str:
        """The long name under which the facility knows this very set of panels."""
        return "_".join([self.kind, *(self.serials[segment] for segment in self.segments)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Constants:
    """The constants of one detector in one run."""

    arrays: Mapping[str, Array]
    geometry: str = ""
    """Text of the geometry; empty when there is none."""
    origin: str = ""
    """Where they come from, for messages."""

    def get(self, name: str) -> Array | None:
        """Return an optional array of constants."""
        return self.arrays.get(name)

    def require(self, name: str) -> Array:
        """Return an array of constants.

        Raises:
            InvalidConfigError: it is not there.
        """
        if name not in self.arrays:
            there = ", ".join(sorted(self.arrays)) or "nothing"
            raise InvalidConfigError(f"{self.origin}: no constants {name!r}; there are: {there}")
        return self.arrays[name]

    def panels(self, name: str, ranges: int, segments: tuple[int, ...], panel: Panel) -> Array:
        """Return constants that are needed, those of the given segments only.

        Returns:
            Shape (ranges, panels, rows, columns).

        Raises:
            InvalidConfigError: they are not there, or are of another detector.
        """
        return self.fit(name, self.require(name), ranges, segments, panel)

    def fit(
        self, name: str, array: Array, ranges: int, segments: tuple[int, ...], panel: Panel
    ) -> Array:
        """Return an array of constants for the given segments only.

        Args:
            name: what it is, for messages.
            array: constants of these segments, or of all that the detector has.
            ranges: how many ranges of the gain there are; 0 = the array has no such axis.
            segments: numbers of the segments in the data.
            panel: rows and columns of one segment.

        Raises:
            InvalidConfigError: it is not of such a detector.
        """
        wanted = 4 if ranges else 3
        if array.ndim == wanted - 1:
            array = np.expand_dims(array, -3)
        is_fitting = array.ndim == wanted and array.shape[-2:] == panel
        if ranges and is_fitting:
            is_fitting = array.shape[0] == ranges
        if is_fitting and array.shape[-3] == len(segments):
            return array
        if is_fitting and array.shape[-3] > max(segments):
            # A detector may be read out in part; its constants are those of all its panels.
            return array.take(segments, axis=-3)
        leading = (ranges,) if ranges else ()
        raise InvalidConfigError(
            f"{self.origin}: constants {name!r} have shape {array.shape}, which does not fit "
            f"{(*leading, len(segments), *panel)} of the data (segments {list(segments)})"
        )

    def good(self, segments: tuple[int, ...], panel: Panel) -> npt.NDArray[np.uint8] | None:
        """Return 1 for pixels that are good in every range of the gain, 0 for others.

        Returns:
            Shape (panels, rows, columns); None when no constants say anything about it.

        Raises:
            InvalidConfigError: the constants are of another detector.
        """
        merged: npt.NDArray[np.uint8] | None = None
        for name in ("pixel_status", "status_extra"):
            status = self.arrays.get(name)
            if status is None:
                continue
            whole = np.trunc(status) if status.dtype.kind == "f" else status
            good = (whole == 0).astype(np.uint8)
            if good.ndim == 3 and self.require("pedestals").ndim == 3:
                # Constants of a single panel without an axis for it: the first is that of ranges.
                good = good[:, None]
            if good.ndim == 4:
                good = good[:MAX_RANGES_OF_STATUS].min(axis=0)
            good = self.fit(name, good, 0, segments, panel)
            merged = good if merged is None else merged & good
        return merged


class Store(Protocol):
    """Where constants come from."""

    def constants(self, detector: Detector, experiment: str, run: int) -> Constants:
        """Return the constants of a detector that are valid for a run.

        Raises:
            InvalidConfigError: there are none, or they cannot be read.
            UnavailableError: who has them does not answer.
        """
        ...


def inverse(gain: Array, like: Array) -> Array:
    """Return 1 / gain, and 0 where the gain is 0.

    Args:
        gain: the gains.
        like: array whose dtype takes part in that of the result.
    """
    factor: Array = np.ones_like(like, shape=gain.shape) / np.where(gain != 0, gain, 1)
    factor[gain == 0] = 0
    return factor
