"""A simulated digitiser whose waveforms anybody can make again, bit for bit.

Only sums, products and quotients of IEEE numbers are used, as in `diffraction`.
"""

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from lclstream.streamer.config.simulated_parts import SimulatedDigitizer
from lclstream.streamer.events import Value
from lclstream.streamer.sources import diffraction as physics
from lclstream.streamer.values import Ragged

Doubles = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

# Keys of what is drawn; the area detectors use small ones.
_NOISE, _OFFSETS, _HITS = 101, 102, 103
# How far from the middle of a pulse it still adds something, in its widths.
REACH = 12
# Electrons of one energy arrive within so many widths of a pulse.
JITTER = 6.0
WINDOW_FIELDS = ("starts", "lengths", "samples")
TRUTH_FIELDS = ("times", "heights")


class Digitizer:
    """All that is the same in every event: offsets of the converters, noise, names."""

    def __init__(self, config: SimulatedDigitizer, seed: int, number: int) -> None:
        """Draw what is drawn once.

        Args:
            config: one of the digitisers of a simulation.
            seed: of the simulation.
            number: of the digitiser, from 0.
        """
        self.config, self._seed, self._number = config, seed, number
        self.times: Doubles = np.arange(config.samples) / (config.rate_ghz * 1e9)
        self._noise = physics.noise_bank(seed, 2 * config.samples, _NOISE + 1000 * number)
        count = config.converters
        self._baseline: dict[int, Doubles] = {}
        for segment in config.segments:
            drawn = physics.draws(seed, _OFFSETS, number, segment, count=count)
            offsets = (2.0 * physics.fractions(drawn) - 1.0) * config.converter_offset_adu
            baseline = np.resize(config.baseline_adu + offsets, config.samples)
            self._baseline[segment] = baseline
        self.fields = [
            *(f"raw.waveforms.{segment}.{each}" for segment in config.segments
              for each in ("0", "times")),
            *(f"raw.peaks.{segment}.0.{each}" for segment in config.segments
              for each in WINDOW_FIELDS),
        ]  # fmt: skip
        self.truth_fields = [
            f"{config.name}.{segment}.{each}" for segment in config.segments
            for each in TRUTH_FIELDS
        ]  # fmt: skip

    def pulses(self, index: int, segment: int) -> tuple[Doubles, Doubles] | None:
        """Return times (samples) and heights (ADU) of the pulses; None when all is missing."""
        config = self.config
        most = 4 * int(config.hits) + 8
        drawn = physics.draws(self._seed, _HITS, self._number, segment, index, count=4 * most + 2)
        chances = physics.fractions(drawn)
        if chances[0] < config.missing:
            return None
        count = min(_poisson_like(config.hits, chances[1]), most)
        kind, place, spread, height = chances[2:].reshape(4, most)[:, :count]
        times = place * config.samples
        if config.lines:
            lines = np.array(config.lines)
            nearest = lines[np.minimum((place * len(lines)).astype(np.int64), len(lines) - 1)]
            jitter = (spread - 0.5) * (JITTER * config.pulse_samples)
            times = np.where(kind < 0.5, nearest * config.samples + jitter, times)
        order = np.argsort(times, kind="stable")
        low, high = config.pulse_adu
        return times[order], (low + (high - low) * height * height)[order]

    def waveform(self, index: int, segment: int) -> npt.NDArray[np.uint16] | None:
        """Return the samples of one event, shape (samples,); None when they are missing."""
        pulses = self.pulses(index, segment)
        if pulses is None:
            return None
        config = self.config
        shift = int(physics.draws(self._seed, _NOISE, self._number, segment, index, count=1)[0])
        shift %= config.samples
        values = self._baseline[segment].copy()
        noise = self._noise[shift : shift + config.samples].astype(np.float64)
        values += noise * config.noise_adu
        for time, height in zip(*pulses, strict=True):
            self._add(values, float(time), float(height))
        np.clip(values, 0.0, float(config.highest_adu), out=values)
        return values.astype(np.uint16)

    def _add(self, values: Doubles, time: float, height: float) -> None:
        """Add one pulse: a bell with tails that fall with the fourth power."""
        width = self.config.pulse_samples
        first = max(int(time - REACH * width), 0)
        last = min(int(time + REACH * width) + 1, len(values))
        away = (np.arange(first, last) - time) / width
        falloff = 1.0 + 0.25 * away * away
        values[first:last] += height / (falloff * falloff)

    def windows(self, waveform: npt.NDArray[np.uint16]) -> tuple[Indices, Indices]:
        """Return first sample and length of the windows that the digitiser keeps."""
        config, size = self.config, len(waveform)
        high = np.flatnonzero(waveform > config.baseline_adu + config.threshold_adu)
        # A window ends where the next sample of a pulse is farther away than both margins.
        breaks = np.flatnonzero(np.diff(high) - 1 > config.before + config.after) + 1
        runs = np.split(high, breaks) if len(high) else []
        starts = np.array([max(int(run[0]) - config.before, 0) for run in runs], np.int64)
        ends = np.array([min(int(run[-1]) + 1 + config.after, size) for run in runs], np.int64)
        if config.markers:
            starts = np.concatenate(([0], starts, [size, size]))
            ends = np.concatenate(([min(config.marker_samples, size)], ends, [size, size]))
        return starts, ends - starts


class DigitizerReadings:
    """The readings of one digitiser in one event, made when they are asked for."""

    def __init__(self, digitizer: Digitizer, index: int) -> None:
        self._digitizer, self._index = digitizer, index
        self._waveforms: dict[int, npt.NDArray[np.uint16] | None] = {}
        self._windows: dict[int, tuple[Indices, Indices]] = {}

    def read(self, field: str) -> Value | None:
        """Return one reading, None when it is missing; the field must be one that it has."""
        _, kind, segment, *rest = field.split(".")
        if rest == ["times"]:
            return self._digitizer.times
        waveform = self._waveform(int(segment))
        if waveform is None or kind == "waveforms":
            return waveform
        starts, lengths = self._kept(int(segment), waveform)
        if rest[1] == "starts":
            return Ragged(starts.astype(np.uint32))
        if rest[1] == "lengths":
            return Ragged(lengths.astype(np.uint32))
        pairs = zip(starts, starts + lengths, strict=True)
        return Ragged(np.concatenate([waveform[:0], *(waveform[a:b] for a, b in pairs)]))

    def truth(self, field: str) -> Value | None:
        """Return where the pulses are (samples), or how high (ADU): ragged float64."""
        *_, segment, what = field.split(".")
        pulses = self._digitizer.pulses(self._index, int(segment))
        return None if pulses is None else Ragged(pulses[TRUTH_FIELDS.index(what)])

    def _kept(self, segment: int, waveform: npt.NDArray[np.uint16]) -> tuple[Indices, Indices]:
        if segment not in self._windows:
            self._windows[segment] = self._digitizer.windows(waveform)
        return self._windows[segment]

    def _waveform(self, segment: int) -> npt.NDArray[np.uint16] | None:
        if segment not in self._waveforms:
            self._waveforms[segment] = self._digitizer.waveform(self._index, segment)
        return self._waveforms[segment]


@lru_cache(maxsize=16)
def digitizer(config: SimulatedDigitizer, seed: int, number: int) -> Digitizer:
    """Return a digitiser; the same one for the same arguments."""
    return Digitizer(config, seed, number)


def _poisson_like(mean: float, chance: float) -> int:
    """Return a number around a mean, spread as the sum of three uniform ones, from one draw.

    The exact distribution is no matter here; that it needs no exponential is.
    """
    if mean <= 0:
        return 0
    width = math.sqrt(3.0 * mean)
    return max(int(mean + (2.0 * chance - 1.0) * width + 0.5), 0)
