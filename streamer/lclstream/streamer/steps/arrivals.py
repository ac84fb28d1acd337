"""The third step of the compression of waveforms: arrival times."""

from abc import ABC, abstractmethod
from typing import Generic, TypeAlias, TypeVar, cast

import numpy as np
import numpy.typing as npt

from lclstream.streamer.config import Parameters
from lclstream.streamer.config import waveform_steps as configs
from lclstream.streamer.events import Event
from lclstream.streamer.steps.fourier import logic_vector
from lclstream.streamer.steps.mapping import Numbers, array_of, elements_of, misfit
from lclstream.streamer.steps.waveforms import runs
from lclstream.streamer.values import Ragged, Reading, Values

Doubles: TypeAlias = npt.NDArray[np.float64]
Indices: TypeAlias = npt.NDArray[np.int64]
Edges = tuple[Numbers, Numbers]
"""Times and slopes, one element for each edge."""
Config = TypeVar("Config", bound=configs.ArrivalStep)

# Of the logic vector, this many elements at either end are not looked at.
MARGIN = 10
# The last two windows, and the first, are markers.
MARKERS_BEFORE, MARKERS_BEHIND = 1, 2


class ArrivalTimes(ABC, Generic[Config]):
    """Finds the edges of every channel."""

    def __init__(self, config: Config, parameters: Parameters) -> None:
        del parameters
        self.config = config
        self._removed = frozenset(config.removes())

    def apply(self, event: Event, values: Values) -> Values:
        """Return the values with times, slopes and numbers; those of a missing input are missing.

        Raises:
            InvalidConfigError: an input is not what it should be.
        """
        after = {label: value for label, value in values.items() if label not in self._removed}
        for number, (label, output) in enumerate(self.config.pairs):
            names = configs.arrival_labels(output)
            edges = self.edges(number, label, event, values)
            if edges is None:
                after |= dict.fromkeys(names)
                continue
            count = np.array(len(edges[0]), np.uint32)
            made: tuple[Reading, ...] = (Ragged(edges[0]), Ragged(edges[1]), count)
            after |= dict(zip(names, made, strict=True))
        return after

    @abstractmethod
    def edges(self, number: int, label: str, event: Event, values: Values) -> Edges | None:
        """Return the edges of one channel, None when it is missing.

        Args:
            number: of the channel, from 0.
            label: name of the input.
            event: that the values are of.
            values: all values in front of the step.
        """


class WindowArrivalTimes(ArrivalTimes[configs.WindowArrivalTimesConfig]):
    """Finds the crests behind steep rises, by the difference of samples."""

    def edges(self, number: int, label: str, event: Event, values: Values) -> Edges | None:
        """Return the edges of one channel in whole samples."""
        del number, event
        windows = self._windows(label, values)
        if windows is None:
            return None
        starts, lengths, samples = windows
        if self.config.markers:
            first = int(lengths[:MARKERS_BEFORE].sum())
            chosen = slice(MARKERS_BEFORE, max(len(lengths) - MARKERS_BEHIND, MARKERS_BEFORE))
            starts, lengths = starts[chosen], lengths[chosen]
            samples = samples[first : first + int(lengths.sum())]
        threshold = self.config.thresholds.get(label, self.config.threshold)
        # Differences of differences need two bits more.
        wide = np.result_type(samples.dtype, np.int32 if samples.dtype.itemsize < 4 else np.int64)
        samples = samples.astype(np.int64 if samples.dtype == np.uint64 else wide)
        times, slopes = crests(samples, starts, lengths, self.config.distance, threshold)
        return times.astype(np.uint32), slopes

    def _windows(self, label: str, values: Values) -> tuple[Indices, Indices, Numbers] | None:
        if self.config.source == "waveform":
            value = values.get(label)
            if value is None:
                return None
            waveform = array_of(self.config, label, value)
            if waveform.ndim != 1:
                raise misfit(self.config, label, f"has shape {waveform.shape}, not one axis")
            return np.zeros(1, np.int64), np.array([len(waveform)]), waveform
        names = self.config.windows_of(label)
        parts = [values.get(name) for name in names]
        starts, lengths, samples = (
            None if part is None else elements_of(self.config, name, part)
            for name, part in zip(names, parts, strict=True)
        )
        if starts is None or lengths is None or samples is None:
            return None
        if len(starts) != len(lengths) or int(lengths.sum()) != len(samples):
            text = f"has {len(starts)} starts, {len(lengths)} lengths that make {lengths.sum()}"
            raise misfit(self.config, label, f"{text} samples, and {len(samples)} samples")
        return starts.astype(np.int64), lengths.astype(np.int64), samples


class WaveformArrivalTimes(ArrivalTimes[configs.WaveformArrivalTimesConfig]):
    """Finds crests between the samples, by the logic vector of the interpolated waveform."""

    def edges(self, number: int, label: str, event: Event, values: Values) -> Edges | None:
        """Return the edges of one channel."""
        value, config = values.get(label), self.config
        if value is None:
            return None
        waveform = array_of(config, label, value)
        if waveform.ndim != 1 or len(waveform) < max(config.roll_off, 32):
            text = f"has shape {waveform.shape}, not one axis of at least {config.roll_off} samples"
            raise misfit(config, label, text)
        kind = np.dtype(config.precision)
        logic = logic_vector(waveform.astype(kind), config.roll_off, config.inflate)
        times, slopes = zero_crossings(logic, self._threshold(label, logic))
        times *= config.expand
        return self._rounded(times, number, event), slopes

    def _threshold(self, label: str, logic: Numbers) -> float:
        """Return the limit that fulfils every given one."""
        absolute = self.config.thresholds.get(label, self.config.threshold)
        limits = [] if absolute is None else [absolute]
        if self.config.relative_threshold is not None:
            limits.append(float(logic.min()) * self.config.relative_threshold)
        return min(limits)

    def _rounded(self, times: Doubles, number: int, event: Event) -> Numbers:
        match self.config.rounding:
            case "none":
                return times
            case "nearest":
                return np.rint(times).astype(np.uint32)
        draws = np.random.default_rng([self.config.seed, number, event.index])
        whole = np.floor(times)
        return (whole + (draws.random(len(times)) < times - whole)).astype(np.uint32)


def crests(
    samples: Numbers, starts: Indices, lengths: Indices, distance: int, threshold: float
) -> tuple[Indices, Numbers]:
    """Return time and slope of the crest behind each steep rise.

    The difference of a sample and the one `distance` later is at most the threshold where an
    edge begins, and negative until its crest. Windows do not look into each other.

    Args:
        samples: of all windows, one after the other; wide enough for their differences.
        starts: time of the first sample of each window.
        lengths: samples of each window.
        distance: between the samples that are compared.
        threshold: negative.
    """
    if len(samples) <= distance:
        return np.zeros(0, np.int64), samples[:0]
    difference = samples[:-distance] - samples[distance:]
    window = np.repeat(np.arange(len(lengths)), lengths)
    begins = np.cumsum(lengths) - lengths
    is_inside = window[:-distance] == window[distance:]
    falls = (difference < 0) & is_inside
    # The first difference of a window starts no edge.
    falls[begins[begins < len(falls)]] = False
    first, end = runs(falls)
    deepest = _deepest(np.where(falls, difference, 0), first)
    # A run that reaches the end of its window has no crest.
    found = end[(deepest <= threshold) & (end < len(falls))]
    found = found[is_inside[found]]
    # The crest is where the difference is nearest to zero.
    crest = found - (difference[found] > -difference[found - 1])
    times = starts[window[crest]] + crest - begins[window[crest]]
    return times, difference[crest] - difference[crest - 1]


def zero_crossings(logic: Numbers, threshold: float) -> tuple[Doubles, Doubles]:
    """Return where the logic vector crosses zero behind each deep dip, and how steeply.

    Between its samples it is taken for straight. A dip that goes on to the end is left out.
    """
    inner = cast("Doubles", logic[MARGIN : max(len(logic) - MARGIN, MARGIN)])
    first, end = runs(inner < 0)
    stop = end[(_deepest(inner, first) <= threshold) & (end < len(inner))]
    slopes = inner[stop].astype(np.float64) - inner[stop - 1]
    return MARGIN + stop - inner[stop] / slopes, slopes


def _deepest(values: Numbers, first: Indices) -> Numbers:
    """Return the least value of each run; between runs nothing is negative."""
    return np.minimum.reduceat(values, first) if len(first) else values[:0]
