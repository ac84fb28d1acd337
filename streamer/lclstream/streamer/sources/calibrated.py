"""Calibrated frames and images of a detector, beside what is in the files.

`raw.calib` and `raw.image` of Jungfrau and epix10ka detectors are computed from `raw.raw` and
constants, as psana computes them. The other readings pass through.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lclstream.core.errors import DecodeError, InvalidConfigError
from lclstream.streamer.calibration import jungfrau
from lclstream.streamer.calibration.constants import Array, Constants, Detector, Store
from lclstream.streamer.calibration.frames import KINDS, frames_of
from lclstream.streamer.calibration.geometry import ONE_JUNGFRAU
from lclstream.streamer.calibration.images import ImageAssembler
from lclstream.streamer.calibration.service import ServiceStore, default_cache
from lclstream.streamer.calibration.stores import FileStore
from lclstream.streamer.config.calibration import CalibrationConfig
from lclstream.streamer.events import Readings, Value
from lclstream.streamer.sources.xtc2_layout import Detector as Announced
from lclstream.streamer.sources.xtc2_layout import Layout
from lclstream.streamer.sources.xtc2_readings import Situation, Xtc2Readings

Floats = npt.NDArray[np.float32]

RAW, CALIB, IMAGE = "raw.raw", "raw.calib", "raw.image"


@dataclass(frozen=True, slots=True)
class Run:
    """For which run constants are valid."""

    experiment: str
    number: int


class Calibration:
    """Derives readings for the events of one source.

    Args:
        config: where constants come from; without it nothing is derived.

    Raises:
        InvalidConfigError: there is no such file or folder.
    """

    def __init__(self, config: CalibrationConfig | None) -> None:
        self._config = config
        self._store = open_store(config) if config else None
        self._run: Run | None = None
        self._detectors: dict[str, _Calibrated] = {}
        self._layout: Layout | None = None
        self._derived: dict[tuple[str, str], bool] = {}

    def require(self, situation: Situation, name: str, field: str) -> None:
        """Refuse a reading that is neither in the data nor can be derived.

        Raises:
            InvalidConfigError: says what is missing.
            UnavailableError: the calibration service does not answer.
        """
        if self._derives(situation, name, field):
            self._calibrated(situation, name).require(field)
        else:
            situation.layout.require(name, field)

    def readings(self, situation: Situation, readings: Xtc2Readings) -> Readings:
        """Return the readings of an event together with those that are derived."""
        return CalibratedReadings(self, situation, readings)

    def detector(self, situation: Situation, name: str, field: str) -> "_Calibrated | None":
        """Return what derives a reading, None for what is in the data.

        Raises:
            InvalidConfigError: it is not in the data, and there are no constants for it.
            UnavailableError: the calibration service does not answer.
        """
        return self._calibrated(situation, name) if self._derives(situation, name, field) else None

    def _derives(self, situation: Situation, name: str, field: str) -> bool:
        """Return whether a reading is to be derived; what is in the data goes first.

        Raises:
            InvalidConfigError: it would be, but there are no constants.
        """
        if field not in (CALIB, IMAGE):
            return False
        if situation.layout is not self._layout:
            self._layout, self._derived = situation.layout, {}
        if (name, field) not in self._derived:
            self._derived[name, field] = is_derived(situation.layout, name, field)
        if self._derived[name, field] and self._store is None:
            raise InvalidConfigError(
                f"{name}.{field} is not in the files; to have it computed, say in "
                "event_source.calibration where the constants are"
            )
        return self._derived[name, field]

    def _calibrated(self, situation: Situation, name: str) -> "_Calibrated":
        run = Run(situation.experiment, situation.run)
        if run != self._run:
            # Other runs have other constants.
            self._run, self._detectors = run, {}
        found = self._detectors.get(name)
        if found is None or not found.is_of(situation.layout):
            found = self._opened(situation.layout.detector(name), run)
            self._detectors[name] = found
        return found

    def _opened(self, announced: Announced, run: Run) -> "_Calibrated":
        if self._store is None or self._config is None:
            raise InvalidConfigError("there are no calibration constants")
        detector = Detector(announced.name, announced.kind, announced.serials)
        number = run.number if self._config.run is None else self._config.run
        return _Calibrated(announced, self._store.constants(detector, run.experiment, number))


class CalibratedReadings:
    """The readings of one event, calibrated when they are asked for."""

    __slots__ = ("_calibration", "_frames", "_readings", "_situation")

    def __init__(
        self, calibration: Calibration, situation: Situation, readings: Xtc2Readings
    ) -> None:
        self._calibration, self._situation, self._readings = calibration, situation, readings
        # An image is made of a frame, which may be asked for as well.
        self._frames: dict[str, Floats | None] = {}

    def read(self, name: str, field: str) -> Value | None:
        """Return one reading, None when it is missing from this event.

        Raises:
            InvalidConfigError: there is no such reading, or no constants for it.
            DecodeError: the event is damaged.
        """
        detector = self._calibration.detector(self._situation, name, field)
        if detector is None:
            return self._readings.read(name, field)
        if name not in self._frames:
            self._frames[name] = detector.frame(self._readings)
        frame = self._frames[name]
        return frame if frame is None or field == CALIB else detector.image(frame)


class _Calibrated:
    """One detector in one run."""

    def __init__(self, announced: Announced, constants: Constants) -> None:
        self._announced = announced
        self._layout: Layout | None = None
        # The arrays are combined below, and may be large.
        self._geometry, self._origin = constants.geometry, constants.origin
        self._kind, self._segments = announced.kind, announced.segments
        self._names = [f"{announced.name}[{segment}]" for segment in announced.segments]
        self._frames = frames_of(announced.kind, announced.fields, constants, announced.segments)
        self._images: ImageAssembler | None = None

    def is_of(self, layout: Layout) -> bool:
        """Return whether the detector is still announced as it was."""
        if layout is not self._layout:
            if layout.detector(self._announced.name) != self._announced:
                return False
            self._layout = layout
        return True

    def require(self, field: str) -> None:
        """Refuse what cannot be computed.

        Raises:
            InvalidConfigError: an image is wanted, and the geometry is missing or wrong.
        """
        if field == IMAGE and self._images is None:
            self._images = self._assembler()

    def frame(self, readings: Xtc2Readings) -> Floats | None:
        """Return the calibrated pixels, None when a segment is missing from the event.

        Raises:
            DecodeError: the raw pixels are no panels of this kind of detector.
        """
        raw = [readings.read(name, RAW) for name in self._names]
        panels = [self._panel(each) for each in raw if isinstance(each, np.ndarray)]
        if len(panels) < len(raw):
            return None
        frame = self._frames(
            panels, lambda name: [readings.read(each, f"config.{name}") for each in self._names]
        )
        # Of one segment the raw pixels come as they are in the file, of several stacked.
        is_flat = len(raw) == 1 and raw[0] is panels[0]
        return frame[0] if is_flat and frame is not None else frame

    def image(self, frame: Floats) -> Floats:
        """Return the panels of a frame as one image.

        Raises:
            InvalidConfigError: the geometry is missing or wrong.
        """
        if self._images is None:
            self._images = self._assembler()
        return self._images(frame)

    def _panel(self, raw: Array) -> Array:
        """Return the pixels of a segment as rows and columns.

        Raises:
            DecodeError: they are no panel of this kind of detector.
        """
        panel = raw[0] if raw.ndim == 3 and raw.shape[0] == 1 else raw
        if panel.shape != self._frames.panel or panel.dtype != np.uint16:
            raise DecodeError(
                f"{self._names[0]} ...: a panel of a {self._kind} is uint16 {self._frames.panel}, "
                f"got {raw.dtype} {raw.shape}"
            )
        return panel

    def _assembler(self) -> ImageAssembler:
        geometry, origin = self._geometry, self._origin
        if not geometry and self._kind == jungfrau.KIND and self._segments == (0,):
            geometry = ONE_JUNGFRAU
        if not geometry:
            raise InvalidConfigError(
                f"{origin}: an image needs constants 'geometry', the text that says where the "
                "panels are"
            )
        return ImageAssembler(geometry, self._segments, self._frames.panel, f"{origin}: geometry")


def is_derived(layout: Layout, name: str, field: str) -> bool:
    """Return whether a reading is not in the data but can be computed from what is there."""
    if name not in layout.detectors:
        return False
    detector = layout.detector(name)
    return field not in detector.fields and RAW in detector.fields and detector.kind in KINDS


def open_store(config: CalibrationConfig) -> Store:
    """Return what a configuration takes constants from.

    Raises:
        InvalidConfigError: there is no such file or folder.
    """
    place = config.constants
    if place.startswith(("http://", "https://")):
        cache = Path(config.cache) if config.cache else default_cache()
        return ServiceStore(place, cache, config.timeout_s)
    return FileStore(Path(place))
