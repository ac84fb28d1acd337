"""Calibrated frames of one detector in one run, whichever kind it is of."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.calibration import epix10ka, jungfrau
from lclstream.streamer.calibration.common_mode import CommonMode
from lclstream.streamer.calibration.constants import Array, Constants, Panel
from lclstream.streamer.calibration.planes import Calibrator

Floats = npt.NDArray[np.float32]
Configuration: TypeAlias = Callable[[str], Sequence[Any]]
"""Returns the values of a field of the configuration, for every segment in order; None for one
that was not said."""

JUNGFRAU_PANEL: Panel = (512, 1024)
KINDS = (jungfrau.KIND, *epix10ka.KINDS)


class Frames(Protocol):
    """Makes frames of the raw panels of events."""

    panel: Panel
    """Rows and columns of a panel."""

    def __call__(self, panels: Sequence[Array], configuration: Configuration) -> Floats | None:
        """Return the calibrated pixels, shape (panels, rows, columns).

        Args:
            panels: uint16, shape (rows, columns), in the order of the segments.
            configuration: of the detector, at the time of the event.

        Returns:
            None when the configuration is missing.
        """
        ...


class JungfrauFrames:
    """Frames of a Jungfrau."""

    panel = JUNGFRAU_PANEL

    def __init__(self, constants: Constants, segments: tuple[int, ...]) -> None:
        """Combine the constants.

        Raises:
            InvalidConfigError: they are missing or of another detector.
        """
        self._calibrate = Calibrator(jungfrau.planes_of(constants, segments, self.panel))

    def __call__(self, panels: Sequence[Array], configuration: Configuration) -> Floats | None:
        """Return the calibrated pixels; see `Frames`."""
        del configuration
        return self._calibrate(panels)


class Epix10kaFrames:
    """Frames of an epix10ka; its constants are combined again whenever it is configured anew."""

    panel = epix10ka.PANEL

    def __init__(
        self, constants: Constants, segments: tuple[int, ...], *, is_by_pixel: bool
    ) -> None:
        """Take the constants of the segments.

        Args:
            constants: see the module `constants`.
            segments: their numbers.
            is_by_pixel: whether the configuration is given for each pixel, as in later versions.

        Raises:
            InvalidConfigError: they are missing or of another detector.
        """
        self._constants = epix10ka.constants_of(constants, segments)
        self._fields = epix10ka.BY_PIXEL if is_by_pixel else epix10ka.BY_CHIP
        common_mode = None if is_by_pixel else constants.get("common_mode")
        self._common_mode = (
            None if common_mode is None else CommonMode.of(common_mode, constants.origin)
        )
        self._configured: list[Any] = []
        self._calibrate: Callable[[Sequence[Array]], Floats] | None = None

    def __call__(self, panels: Sequence[Array], configuration: Configuration) -> Floats | None:
        """Return the calibrated pixels; see `Frames`."""
        values = [list(configuration(name)) for name in self._fields]
        now = [value for each in values for value in each]
        if any(value is None for value in now):
            return None
        # Between transitions the very same objects come again.
        is_same = len(now) == len(self._configured) and all(
            one is other for one, other in zip(now, self._configured, strict=True)
        )
        if self._calibrate is None or not is_same:
            self._calibrate, self._configured = self._calibrator(values), now
        return self._calibrate(panels)

    def _calibrator(self, values: list[list[Any]]) -> Callable[[Sequence[Array]], Floats]:
        by_segment = zip(*values, strict=True)
        bits = np.stack(
            [
                epix10ka.control_bits(dict(zip(self._fields, each, strict=True)))
                for each in by_segment
            ]
        )
        if self._common_mode is not None and self._common_mode.mode:
            return epix10ka.WithCommonMode(self._constants, self._common_mode, bits)
        return Calibrator(self._constants.planes(bits))


def frames_of(
    kind: str, fields: tuple[str, ...], constants: Constants, segments: tuple[int, ...]
) -> Frames:
    """Return what makes frames of a detector.

    Args:
        kind: one of `KINDS`.
        fields: what there is of the detector in the data, such as `config.trbit`.
        constants: see the module `constants`.
        segments: numbers of the segments in the data.

    Raises:
        InvalidConfigError: constants are missing or of another detector, or the data do not say
            how the detector is configured.
    """
    if kind == jungfrau.KIND:
        return JungfrauFrames(constants, segments)
    for names in (epix10ka.BY_PIXEL, epix10ka.BY_CHIP):
        if all(f"config.{name}" in fields for name in names):
            is_by_pixel = names == epix10ka.BY_PIXEL
            return Epix10kaFrames(constants, segments, is_by_pixel=is_by_pixel)
    wanted = " or ".join(" and ".join(each) for each in (epix10ka.BY_PIXEL, epix10ka.BY_CHIP))
    raise InvalidConfigError(
        f"{constants.origin}: the data do not say how the pixels of the {kind} are configured: "
        f"no config.{wanted}"
    )
