"""A simulated X-ray detector whose frames anybody can make again, bit for bit."""

from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

from lclstream.streamer.config import SimulatedDetectorEventSourceConfig
from lclstream.streamer.events import Value, unknown_reading
from lclstream.streamer.sources import diffraction as physics

WAVELENGTH_PV = "SIOC:SYS0:ML00:AO192"
ENERGY_PV = "SIOC:SYS0:ML00:AO627"
# Electron volts times angstrom.
HC_EV_ANGSTROM = 12398.419843320026
TRUTH = "truth"
FRAME_FIELDS = ("raw.raw", "raw.calib", "raw.image")
EBEAM_FIELDS = {
    "raw.ebeamL3Energy": (3600.0, 4.0),
    "raw.ebeamUndAngX": (0.1, 0.01),
    "raw.ebeamUndAngY": (0.2, 0.01),
    "raw.ebeamUndPosX": (0.3, 0.02),
    "raw.ebeamUndPosY": (0.4, 0.02),
}


class SimulatedDetector:
    """All that is the same in every event: calibration, bad pixels, crystal, names.

    Args:
        config: settings of the simulation.
        number: of the detector, from 0; decides about noise and bad pixels.
    """

    def __init__(self, config: SimulatedDetectorEventSourceConfig, number: int = 0) -> None:
        self.config = config
        self.stack_shape = (config.panels, *config.shape)
        self.pixels = config.panels * config.shape[0] * config.shape[1]
        self.panels = physics.Panels(config.panels, config.shape)
        self.crystal = physics.Crystal(config)
        radius = self.panels.radius()
        # A ring as of water in the beam, above a background that is the same everywhere.
        place = min(self.panels.image_shape) * 0.35
        ring = 1.0 / (1.0 + ((radius - place) / (0.15 * place)) ** 2)
        photons = config.background_photons * (0.6 + 0.8 * ring)
        adu = physics.ADU_PER_PHOTON
        self._mean = (physics.PEDESTAL_ADU + adu * photons).astype(np.float32).ravel()
        width = np.sqrt(photons * adu * adu + physics.READ_NOISE_ADU**2)
        self._width = width.astype(np.float32).ravel()
        self._noise = physics.noise_bank(config.seed, self.pixels + physics.NOISE_SLACK, number)
        bad = round(self.pixels * config.bad_pixels)
        drawn = physics.draws(config.seed, 3, number, count=bad) % np.uint64(self.pixels)
        self._hot, self._dead = drawn[: bad // 2], drawn[bad // 2 :]
        self.mask = np.ones(self.stack_shape, np.uint8)
        self.mask.reshape(-1)[drawn] = 0
        self.known = {
            config.detector: [
                *FRAME_FIELDS, "raw.mask", "_detid", "raw._det_geotxt_default",
            ],
            WAVELENGTH_PV: [""],
            ENERGY_PV: [""],
            "gmd": ["raw.milliJoulesPerPulse"],
            "ebeamh": list(EBEAM_FIELDS),
            TRUTH: ["hit", "peak_count", "positions"],
        }  # fmt: skip

    def frame(self, shift: int, spots: npt.NDArray[np.float64]) -> npt.NDArray[np.uint16]:
        """Return the raw pixels of one event, uint16 (panels, rows, columns).

        Args:
            shift: where this event's noise begins in the bank.
            spots: (panel, row, column, photons) of each Bragg peak.
        """
        values = self._noise[shift : shift + self.pixels] * self._width
        values += self._mean
        self._add_spots(values, spots)
        np.clip(values, 0.0, 65535.0, out=values)
        raw = values.astype(np.uint16)
        raw[self._hot] = physics.HOT_PIXEL_ADU
        raw[self._dead] = physics.DEAD_PIXEL_ADU
        return raw.reshape(self.stack_shape)

    def _add_spots(self, values: npt.NDArray[np.float32], spots: npt.NDArray[np.float64]) -> None:
        reach = np.arange(-physics.SPOT_RADIUS, physics.SPOT_RADIUS + 1)
        rows = np.floor(spots[:, 1]).astype(np.int64)[:, None] + reach
        columns = np.floor(spots[:, 2]).astype(np.int64)[:, None] + reach
        down = (rows - spots[:, 1:2])[:, :, None]
        across = (columns - spots[:, 2:3])[:, None, :]
        falloff = 1.0 + (down * down + across * across) / 0.5
        adu = physics.ADU_PER_PHOTON * 0.2 * spots[:, 3, None, None] / (falloff * falloff)
        height, width = self.config.shape
        first = spots[:, 0].astype(np.int64) * (height * width)
        places = first[:, None, None] + rows[:, :, None] * width + columns[:, None, :]
        np.add.at(values, places.ravel(), adu.astype(np.float32).ravel())

    def calibrated(self, raw: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
        """Return photons in each pixel, float32; 0 where the pixel is bad."""
        photons = raw.astype(np.float32)
        photons -= np.float32(physics.PEDESTAL_ADU)
        photons *= np.float32(1.0 / physics.ADU_PER_PHOTON)
        flat = photons.reshape(-1)
        flat[self._hot] = 0
        flat[self._dead] = 0
        return photons

    @cached_property
    def geometry(self) -> str:
        """Where the panels lie, as text."""
        lines = [f"# {self.config.panels} panels, pixel {self.config.pixel_um} um"]
        for panel in range(self.config.panels):
            top, left = self.panels.corner(panel)
            lines.append(f"panel {panel} row {top} column {left}")
        return "\n".join(lines) + "\n"


class SimulatedReadings:
    """The readings of one event, made when they are asked for."""

    def __init__(self, detector: SimulatedDetector, index: int) -> None:
        self._detector = detector
        raw = physics.draws(detector.config.seed, 4, index, count=64)
        u = physics.fractions(raw)
        self._is_hit = bool(u[0] < detector.config.hit_rate)
        self._has_frame = bool(u[1] >= detector.config.missing_frames)
        self._shift = int(raw[2] % np.uint64(physics.NOISE_SLACK))
        self._scalars = u[3:24]
        self._rotation = raw[24:]

    def read(self, name: str, field: str) -> Value | None:
        """Return one reading, None when it is missing.

        Raises:
            InvalidConfigError: there is no such detector or field.
        """
        known = self._detector.known
        if name not in known or field not in known[name]:
            raise unknown_reading(name, field, known)
        if name == self._detector.config.detector:
            return self._frame(field)
        if name == TRUTH:
            return self._truth(field)
        return self._scalar(name, field)

    @cached_property
    def _spots(self) -> npt.NDArray[np.float64]:
        if not self._is_hit:
            return np.empty((0, 4))
        rotation = physics.random_rotation(self._rotation)
        most = self._detector.config.peaks
        placed = self._detector.panels.place(self._detector.crystal.spots(rotation, 4 * most))
        return placed[:most]

    @cached_property
    def _raw(self) -> npt.NDArray[np.uint16]:
        return self._detector.frame(self._shift, self._spots)

    def _frame(self, field: str) -> Value | None:
        if field == "_detid":
            return f"{self._detector.config.detector}_simulated"
        if field == "raw._det_geotxt_default":
            return self._detector.geometry
        if field == "raw.mask":
            return self._detector.mask
        if not self._has_frame:
            return None
        if field == "raw.raw":
            return self._raw
        photons = self._detector.calibrated(self._raw)
        return photons if field == "raw.calib" else self._detector.panels.assemble(photons)

    def _truth(self, field: str) -> Value:
        if field == "hit":
            return np.uint8(self._is_hit)
        if field == "peak_count":
            return np.int32(len(self._spots))
        positions = np.full((self._detector.config.peaks, 3), -1.0, np.float32)
        positions[: len(self._spots)] = self._spots[:, :3]
        return positions

    def _scalar(self, name: str, field: str) -> Value | None:
        fields = [("gmd", "raw.milliJoulesPerPulse"), *(("ebeamh", each) for each in EBEAM_FIELDS)]
        number = 0 if name == WAVELENGTH_PV else 1
        if (name, field) in fields:
            number = 2 + fields.index((name, field))
        chance, value = self._scalars[2 * number], float(self._scalars[2 * number + 1]) - 0.5
        if chance < self._detector.config.missing_scalars:
            return None
        wavelength = self._detector.config.wavelength_angstrom
        if name == WAVELENGTH_PV:
            return np.float64(wavelength * (1.0 + 0.002 * value))
        if name == ENERGY_PV:
            return np.float64(HC_EV_ANGSTROM / wavelength * (1.0 + 0.002 * value))
        centre, spread = EBEAM_FIELDS.get(field, (2.0, 1.0))
        return np.float64(centre + spread * value)


@lru_cache(maxsize=2)
def detector_of(config: SimulatedDetectorEventSourceConfig) -> SimulatedDetector:
    """Return the first detector of a configuration; the same one for the same."""
    return SimulatedDetector(config)
